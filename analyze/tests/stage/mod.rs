//! A tiny world and a stage on which both oracles watch hand-written calls.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;

use tlbscope_analyze::naive::Naive;
use tlbscope_analyze::oracle::Oracle;
use tlbscope_trace::act::*;
use tlbscope_trace::addr::*;
use tlbscope_trace::observe::{Observer, World};
use tlbscope_trace::op::{Access, AccessKind, Actor};
use tlbscope_trace::regs::{Cr0, Cr4, Efer, MmuKind, Regs, Vendor};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const G: u64 = 1 << 8;

pub struct Fake {
    pub vendor: Vendor,
    pub mmu: MmuKind,
    pub regs: Vec<Regs>,
    pub memory: BTreeMap<u64, u64>,
    pub backing: BTreeMap<u64, u64>,
}

impl World for Fake {
    fn vendor(&self) -> Vendor {
        self.vendor
    }
    fn mmu(&self) -> MmuKind {
        self.mmu
    }
    fn maxphyaddr(&self) -> u32 {
        46
    }
    fn gbpages(&self) -> bool {
        true
    }
    fn regs(&self, vcpu: VcpuId) -> &Regs {
        &self.regs[usize::from(vcpu.0)]
    }
    fn read(&self, gpa: Gpa) -> u64 {
        self.memory.get(&(gpa.0 & !7)).copied().unwrap_or(0)
    }
    fn backing(&self, gpa: Gpa) -> Option<Hpa> {
        Some(Hpa(self.backing.get(&gpa.0).copied().unwrap_or(gpa.0)))
    }
    fn memory_bytes(&self) -> u64 {
        1 << 30
    }
}

pub struct Stage {
    pub w: Fake,
    pub o: Oracle,
    pub n: Naive,
    pub event: u64,
    pub class: Class,
}

/// 4-level paging; the tables are at 0x1000 (PML4), 0x2000, 0x3000 and 0x4000 (PT).
pub fn stage(vendor: Vendor, mmu: MmuKind) -> Stage {
    let regs = Regs {
        cr0: (Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET).bits(),
        cr3: 0x1001,
        cr4: (Cr4::PAE | Cr4::PGE | Cr4::PCIDE).bits(),
        efer: (Efer::LME | Efer::LMA | Efer::NXE).bits(),
        ..Regs::default()
    };
    let path = P | W | U | A;
    let memory =
        BTreeMap::from([(0x1000, 0x2000 | path), (0x2000, 0x3000 | path), (0x3000, 0x4000 | path)]);
    let class = match (vendor, mmu) {
        (Vendor::Amd, _) => Class::Asid,
        (_, MmuKind::Shadow) => Class::Linear,
        (_, MmuKind::Tdp) => Class::Combined,
    };
    let w = Fake { vendor, mmu, regs: vec![regs; 2], memory, backing: BTreeMap::new() };
    Stage { w, o: Oracle::new(2), n: Naive::new(2), event: 0, class }
}

pub fn intel(mmu: MmuKind) -> Stage {
    stage(Vendor::Intel, mmu)
}

impl Stage {
    pub fn at(&self, v: u16) -> At {
        At { event: self.event, time: Time(self.event), actor: Actor::Vcpu(VcpuId(v)) }
    }

    /// The next event; its number.
    pub fn event(&mut self) -> u64 {
        self.event += 1;
        self.event
    }

    pub fn tag(&self, pcid: u16) -> Tag {
        let ep4ta = Ep4ta(if self.class == Class::Combined { 0x9_0000 } else { 0 });
        Tag { pcpu: PcpuId(0), class: self.class, id: 3, ep4ta, pcid: Pcid(pcid) }
    }

    pub fn pcid(&self) -> u16 {
        self.w.regs[0].pcid().0
    }

    /// An operation of v0 takes effect in a new event.
    pub fn op(&mut self, op: ArchOp) -> u64 {
        let event = self.event();
        let before = self.w.regs[0];
        let regs = &mut self.w.regs[0];
        match op {
            ArchOp::Cr0 { new, .. } => regs.cr0 = new,
            ArchOp::Cr3 { new, .. } => regs.cr3 = new,
            ArchOp::Cr4 { new, .. } => regs.cr4 = new,
            ArchOp::Efer { new, .. } => regs.efer = new,
            _ => {}
        }
        let at = self.at(0);
        self.o.arch(&at, &op, &before, false, &self.w);
        self.n.arch(&at, &op, &before, false, &self.w);
        event
    }

    pub fn cr4(&mut self, change: Cr4) -> u64 {
        let old = self.w.regs[0].cr4;
        self.op(ArchOp::Cr4 { old, new: old ^ change.bits() })
    }

    pub fn cr3(&mut self, new: u64, noflush: bool) -> u64 {
        let old = self.w.regs[0].cr3;
        self.op(ArchOp::Cr3 { old, new, noflush, task_switch: false })
    }

    pub fn host(&mut self, op: ArchOp) -> u64 {
        let event = self.event();
        let at = At { actor: Actor::Host, ..self.at(0) };
        let regs = Regs::default();
        self.o.arch(&at, &op, &regs, false, &self.w);
        self.n.arch(&at, &op, &regs, false, &self.w);
        event
    }

    pub fn act(&mut self, act: Act) {
        let at = self.at(0);
        self.o.act(&at, &act, &self.w);
        self.n.act(&at, &act, &self.w);
    }

    pub fn inv(&mut self, inv: Inv) {
        self.act(Act::Inv(inv));
    }

    pub fn hook(&mut self, hook: Hook, by: HookBy) {
        self.act(Act::Hook { hook, by, effective: true });
    }

    pub fn enter(&mut self) {
        self.enter_root(None);
    }

    pub fn enter_root(&mut self, shadow_root: Option<Sp>) {
        let tag = self.tag(self.pcid());
        self.act(Act::Entry(Context { tag, root: Hpa(0x9_0000), shadow_root }));
    }

    pub fn store(&mut self, gpa: u64, new: u64) {
        let old = self.w.read(Gpa(gpa));
        let at = self.at(0);
        self.o.store(&at, Gpa(gpa), 8, old, new, &self.w);
        self.n.store(&at, Gpa(gpa), 8, old, new, &self.w);
        self.w.memory.insert(gpa, new);
    }

    /// Maps page number `page` (0..512) to `gpa`.
    pub fn map(&mut self, page: u64, gpa: u64, bits: u64) {
        self.store(0x4000 + page * 8, gpa | bits);
    }

    /// Fills a translation of `page` as memory or the shadow entry has it.
    pub fn fill(&mut self, page: u64, gpa: u64, bits: u64, source: Source) -> Held {
        let tag = self.tag(self.pcid());
        let copy = Copied {
            gpa: Gpa(gpa),
            hpa: Hpa(gpa),
            write: bits & W != 0,
            user: bits & U != 0,
            xd: false,
            dirty: bits & D != 0,
            key: 0,
        };
        let global = bits & G != 0;
        let fill = Fill {
            tag,
            kind: FillKind::Translation,
            address: page << 12,
            size: PageSize::Size4K,
            global,
            source,
            copy,
        };
        let at = self.at(0);
        let mark = self.o.fill(&at, &fill, &self.w);
        self.n.fill(&at, &fill, &self.w);
        Held { page, tag, global, copy, mark }
    }

    /// Maps and fills a page from guest memory.
    pub fn warm(&mut self, page: u64, gpa: u64, bits: u64) -> Held {
        self.map(page, gpa, bits);
        self.fill(page, gpa, bits, Source::Guest)
    }

    /// An access of the supervisor through a held copy; both oracles must agree.
    pub fn access(&mut self, held: &Held, kind: AccessKind, outcome: Outcome) -> Option<bool> {
        self.event();
        let access = Access { gva: Gva(held.page << 12), kind, user: false, ac: false };
        let Held { tag, global, copy, mark, .. } = *held;
        let via = Via::Copy { mark, tag, global, copy, fresh: false };
        let hpa = if matches!(outcome, Outcome::Gpa(_)) { copy.hpa } else { Hpa(0) };
        let accessed = Accessed { access, via, outcome, hpa };
        let at = self.at(0);
        self.o.access(&at, &accessed, &self.w);
        self.n.access(&at, &accessed, &self.w);
        self.o.verdict()
    }

    /// A read that reaches what the copy says; the verdict of both.
    pub fn read(&mut self, held: &Held) -> Option<bool> {
        let verdict = self.access(held, AccessKind::Read, Outcome::Gpa(held.copy.gpa));
        assert_eq!(verdict, self.n.verdict(), "the oracles agree");
        verdict
    }
}

/// A copy that the fake hardware holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub page: u64,
    pub tag: Tag,
    pub global: bool,
    pub copy: Copied,
    pub mark: Mark,
}
