//! What each profile does in a turn of a vCPU. The mixes and their reasons are told in
//! [`Profile::about`].

use super::guest::{
    CR4, FRAME_STRIDE, KERNEL_PAGES, OWN_FRAMES, PAGES, SPACES, USER_PCID, kernel_page, perms,
    user_page,
};
use super::{Generator, Profile};
use crate::addr::{Gpa, PAGE_BYTES, PcpuId, VcpuId};
use crate::op::{AccessKind, HostOp, Invpcid, InvpcidType, Op, RegWrite};
use crate::regs::{CR3_NOFLUSH, Cr0, Cr4, Efer};

/// Pages above which Linux flushes a whole PCID (tlb_single_page_flush_ceiling).
const CEILING: u64 = 33;

impl Generator {
    /// The next turn of vCPU `v`.
    pub(super) fn step(&mut self, v: usize) {
        let current = self.guests[v].current;
        match self.profile {
            Profile::PtiSyscalls => self.pti(v),
            Profile::ContextSwitch => self.context_switch(v),
            Profile::ForkExit => self.fork(v),
            Profile::MmapChurn => self.churn(v),
            Profile::Boot => self.boot(v),
            Profile::PgeToggle => self.pge(v),
            Profile::Migration => {
                self.prepare(v, current);
                self.migration(v);
            }
            Profile::DirtyLog => {
                self.prepare(v, current);
                self.dirty_log(v);
            }
            Profile::Adversarial => self.adversarial(v),
        }
    }

    /// A system call: user, kernel, user. Two CR3 writes, so the chances are twice those of a CR3
    /// write.
    fn pti(&mut self, v: usize) {
        let current = self.guests[v].current;
        self.prepare(v, current);
        self.enter_user(v, true);
        let count = self.random.between(8, 40);
        self.user_accesses(v, count);
        self.enter_kernel(v, true);
        let count = self.random.between(8, 40);
        self.kernel_accesses(v, count, false);
        if self.random.chance(273_000) {
            self.change_user_page(v, true);
        }
        if self.random.chance(3_000) {
            self.change_kernel_page(v);
        }
        if self.random.chance(103_000) {
            let noflush = self.random.chance(730_000);
            self.switch(v, noflush);
            if !noflush {
                // Linux flushes the user half of a PCID with it.
                self.enter_user(v, false);
                self.enter_kernel(v, true);
            }
        }
    }

    /// A user page of the current space gets another frame, or loses its own.
    fn change_user_page(&mut self, v: usize, isolated: bool) {
        let page = self.pick();
        let guest = &mut self.guests[v];
        let space = &mut guest.spaces[guest.current];
        let (root, pcid) = (Gpa(space.root), space.pcid);
        if space.frames[page as usize] == 0 {
            return;
        }
        if self.random.chance(500_000) {
            let frame = self.guests[v].frame();
            let current = self.guests[v].current;
            self.guests[v].spaces[current].frames[page as usize] = frame;
            self.map_user(v, page, frame, true);
        } else {
            let current = self.guests[v].current;
            self.guests[v].spaces[current].frames[page as usize] = 0;
            self.put(v, Op::Unmap { gva: user_page(page), root: Some(root) });
        }
        let gva = user_page(page);
        self.put(v, Op::Invlpg(gva));
        if isolated {
            let (kind, pcid) = (InvpcidType::Addr, pcid | USER_PCID);
            self.put(v, Op::Invpcid(Invpcid { kind, pcid, gva }));
        }
    }

    /// A kernel page gets another frame; everything is flushed.
    fn change_kernel_page(&mut self, v: usize) {
        let page = self.random.below(KERNEL_PAGES);
        let global = self.profile != Profile::PtiSyscalls;
        self.map_kernel(v, page, global);
        let gva = kernel_page(0);
        self.put(v, Op::Invpcid(Invpcid { kind: InvpcidType::All, pcid: 0, gva }));
    }

    fn context_switch(&mut self, v: usize) {
        let current = self.guests[v].current;
        self.prepare(v, current);
        if self.random.chance(840_000) {
            let noflush = self.random.chance(726_000);
            self.switch(v, noflush);
        } else {
            self.enter_kernel(v, false);
        }
        let count = self.random.between(20, 100);
        self.kernel_accesses(v, count, true);
        for _ in 0..self.random.between(0, 4) {
            let count = self.random.between(10, 50);
            self.user_accesses(v, count);
            self.change_user_page(v, false);
        }
        let count = self.random.between(10, 50);
        self.user_accesses(v, count);
        if self.random.chance(22_000) {
            self.change_kernel_page(v);
        }
    }

    /// Space 0 is the parent, the others are its children.
    fn fork(&mut self, v: usize) {
        self.prepare(v, 0);
        self.user_accesses(v, 200);
        let child = self.random.between(1, SPACES as u64 - 1) as usize;
        self.prepare(v, child);
        let parent: Vec<u64> = self.guests[v].spaces[0].frames.clone();
        let (root, child_root) = (self.guests[v].spaces[0].root, self.guests[v].spaces[child].root);
        let mapped = || (0..PAGES).zip(parent.iter().copied()).filter(|(_, frame)| *frame != 0);
        for (page, _) in mapped() {
            let (gva, root) = (user_page(page), Some(Gpa(root)));
            self.put(v, Op::Protect { gva, perms: perms(false, true, false), root });
        }
        self.enter_kernel(v, false);
        self.guests[v].current = child;
        for (page, frame) in mapped() {
            self.map_user(v, page, frame, false);
        }
        self.guests[v].spaces[child].frames.clone_from(&parent);
        self.enter_kernel(v, false);
        self.child(v, &mapped().map(|(page, _)| page).collect::<Vec<_>>());
        // It ends: its pages go, and its PCID is not used again without a flush.
        for page in 0..PAGES {
            if std::mem::take(&mut self.guests[v].spaces[child].frames[page as usize]) != 0 {
                self.put(v, Op::Unmap { gva: user_page(page), root: Some(Gpa(child_root)) });
            }
        }
        self.enter_kernel(v, false);
        self.guests[v].current = 0;
        self.enter_kernel(v, true);
        for (page, frame) in mapped() {
            // The parent's pages are its own again: a right that is added needs no invalidation, but
            // the fault that found it missing did it.
            self.access(v, user_page(page), AccessKind::Write, true);
            self.map_user(v, page, frame, true);
            self.put(v, Op::Invlpg(user_page(page)));
        }
    }

    /// The child reads a third of its pages, and writes another third into copies.
    fn child(&mut self, v: usize, pages: &[u64]) {
        for page in pages {
            match self.random.below(3) {
                0 => self.access(v, user_page(*page), AccessKind::Read, true),
                1 => {
                    self.access(v, user_page(*page), AccessKind::Write, true);
                    let frame = self.guests[v].frame();
                    self.map_user(v, *page, frame, true);
                    self.put(v, Op::Invlpg(user_page(*page)));
                    self.access(v, user_page(*page), AccessKind::Write, true);
                }
                _ => {}
            }
        }
    }

    /// The page tables are those of vCPU 0; every vCPU flushes what one unmaps.
    fn churn(&mut self, v: usize) {
        self.prepare(0, 0);
        let count = self.random.between(1, 64);
        let first = self.random.below(PAGES - count);
        let root = Some(Gpa(self.guests[0].spaces[0].root));
        let all = self.guests.len();
        let mut gone = Vec::new();
        for page in first..first + count {
            if std::mem::take(&mut self.guests[0].spaces[0].frames[page as usize]) != 0 {
                self.put(v, Op::Unmap { gva: user_page(page), root });
                gone.push(page);
            }
        }
        for u in (0..all).map(|n| (v + n) % all) {
            if gone.len() as u64 > CEILING {
                self.enter_kernel(u, false);
            } else {
                for page in &gone {
                    self.put(u, Op::Invlpg(user_page(*page)));
                }
            }
        }
        for page in first..first + count {
            let frame = self.guests[0].frame();
            self.guests[0].spaces[0].frames[page as usize] = frame;
            let (gva, gpa) = (user_page(page), Gpa(frame));
            let (size, perms) = (Default::default(), perms(true, true, false));
            self.put(v, Op::Map { gva, gpa, size, perms, root });
        }
        for _ in 0..count * 8 {
            let page = first + self.random.below(count);
            let kind = self.kind();
            self.access(v, user_page(page), kind, true);
            let page = self.pick();
            if self.guests[0].spaces[0].frames[page as usize] != 0 {
                self.access(v, user_page(page), kind, true);
            }
        }
    }

    /// Page tables outlive INIT: memory does.
    fn boot(&mut self, v: usize) {
        self.prepare(v, 0);
        self.kernel_accesses(v, 64, false);
        let root = self.guests[v].spaces[0].root;
        self.put(v, Op::Init);
        self.put(v, Op::Cr0(RegWrite::value(0x11)));
        self.put(v, Op::Cr4(RegWrite::value(0x20)));
        self.put(v, Op::Cr3(root));
        self.put(v, Op::Efer(RegWrite::value(0x901)));
        self.put(v, Op::Cr0(RegWrite::value(0x8005_0033)));
        self.kernel_accesses(v, 16, false);
        let values = [0xa0, 0xb0, 0x2_00b0, 0x13_00b0, 0x33_00b0, 0x33_08b0, 0x33_08f0, CR4];
        for (n, value) in values.into_iter().enumerate() {
            self.put(v, Op::Cr4(RegWrite::value(value)));
            self.kernel_accesses(v, 16, false);
            if n < 3 {
                for page in 0..102 {
                    self.put(v, Op::Invlpg(kernel_page(page)));
                }
            }
        }
        // The kernel leaves PCID 0 for its first process.
        self.guests[v].current = 0;
        self.enter_kernel(v, false);
        self.user_accesses(v, 16);
    }

    fn pge(&mut self, v: usize) {
        let current = self.guests[v].current;
        self.prepare(v, current);
        let count = self.random.between(16, 48);
        self.kernel_accesses(v, count, true);
        self.user_accesses(v, count);
        let page = self.random.below(KERNEL_PAGES);
        self.map_kernel(v, page, true);
        let pge = Cr4::PGE.bits();
        self.put(v, Op::Cr4(RegWrite { clear: pge, set: 0 }));
        self.put(v, Op::Cr4(RegWrite { clear: 0, set: pge }));
        self.access(v, kernel_page(page), AccessKind::Read, false);
    }

    fn migration(&mut self, v: usize) {
        let count = self.random.between(100, 500);
        self.user_accesses(v, count);
        if self.random.chance(700_000) {
            self.change_user_page(v, false);
        }
        let pcpu = PcpuId(self.random.below(self.guests.len() as u64 + 1) as u16);
        self.host(HostOp::Migrate { vcpu: VcpuId(v as u16), pcpu });
    }

    fn dirty_log(&mut self, v: usize) {
        let count = self.random.between(2000, 6000) / self.guests.len() as u64;
        for _ in 0..count.max(16) {
            let page = self.pick();
            self.fault_in(v, page, true);
            let write = self.random.below(3) == 0;
            let kind = if write { AccessKind::Write } else { AccessKind::Read };
            self.access(v, user_page(page), kind, true);
        }
        if v + 1 == self.guests.len() {
            let frames = self.guests.len() as u64 * FRAME_STRIDE + OWN_FRAMES;
            self.host(HostOp::DirtyLog { gpa: Gpa(0x1000_0000), size: frames * PAGE_BYTES });
        }
    }

    /// Anything that a guest may do without a #GP, in any order.
    fn adversarial(&mut self, v: usize) {
        let current = self.guests[v].current;
        self.prepare(v, current);
        match self.random.below(12) {
            0 => self.switch(v, true),
            1 => self.switch(v, false),
            2 => self.enter_kernel(v, true),
            3 => {
                let bits = [Cr4::SMEP, Cr4::SMAP, Cr4::PGE];
                let bit = bits[self.random.below(3) as usize].bits();
                self.flip_cr4(v, bit);
            }
            4 => {
                // PCIDE may be set with PCID 0 only: its bits of CR3 go first.
                let root = self.guests[v].spaces[current].root;
                self.put(v, Op::Cr3(root));
                self.put(v, Op::Cr4(RegWrite { clear: Cr4::PCIDE.bits(), set: 0 }));
                self.kernel_accesses(v, 4, true);
                self.put(v, Op::Cr3(root));
                self.put(v, Op::Cr4(RegWrite { clear: 0, set: Cr4::PCIDE.bits() }));
                self.enter_kernel(v, false);
            }
            5 => {
                let bit = Cr0::WP.bits();
                let on = self.random.chance(500_000);
                self.put(v, Op::Cr0(RegWrite { clear: bit, set: if on { bit } else { 0 } }));
            }
            6 => {
                let nxe = Efer::NXE.bits();
                let on = self.random.chance(500_000);
                self.put(v, Op::Efer(RegWrite { clear: nxe, set: if on { nxe } else { 0 } }));
            }
            7 => self.edit(v),
            8 => {
                let page = self.pick();
                self.put(v, Op::Invlpg(user_page(page)));
            }
            9 => self.any_invpcid(v),
            10 => {
                let page = self.pick();
                self.put(v, Op::Prefetch(user_page(page)));
            }
            _ => self.switch(v, true),
        }
        let count = self.random.between(4, 24);
        self.user_accesses(v, count);
        self.kernel_accesses(v, count / 2, true);
    }

    fn flip_cr4(&mut self, v: usize, bit: u64) {
        let on = self.random.chance(500_000);
        self.put(v, Op::Cr4(RegWrite { clear: bit, set: if on { bit } else { 0 } }));
    }

    /// A leaf gets another frame or other rights; half of the time nothing is invalidated.
    fn edit(&mut self, v: usize) {
        let page = self.pick();
        self.fault_in(v, page, true);
        let frame = self.guests[v].frame();
        let write = self.random.chance(500_000);
        self.map_user(v, page, frame, write);
        let kernel = self.random.below(KERNEL_PAGES);
        let global = self.random.chance(500_000);
        self.map_kernel(v, kernel, global);
        if self.random.chance(500_000) {
            self.put(v, Op::Invlpg(user_page(page)));
            self.put(v, Op::Invlpg(kernel_page(kernel)));
        }
    }

    fn any_invpcid(&mut self, v: usize) {
        let kinds =
            [InvpcidType::Addr, InvpcidType::Single, InvpcidType::All, InvpcidType::AllNonglobal];
        let kind = kinds[self.random.below(4) as usize];
        let pcid = self.random.between(1, SPACES as u64);
        let gva = user_page(self.pick());
        self.put(v, Op::Invpcid(Invpcid { kind, pcid, gva }));
        let space = &self.guests[v].spaces[self.guests[v].current];
        let root = space.root | space.pcid | CR3_NOFLUSH;
        self.put(v, Op::Cr3(root));
    }
}
