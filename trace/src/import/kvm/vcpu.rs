//! What is known of a vCPU while its lines go by.

use crate::addr::Hpa;

/// The registers whose first value is looked for, as indices of [`Vcpu::first`].
pub(super) const CR0: usize = 0;
pub(super) const CR3: usize = 1;
pub(super) const CR4: usize = 2;
pub(super) const EFER: usize = 3;

/// A register of a vCPU before the first operation that writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum First {
    #[default]
    Unknown,
    Value(u64),
    /// Written before it was seen.
    Written,
}

/// Where a vCPU's thread is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// In userspace, or not seen yet.
    #[default]
    Userspace,
    /// In the guest.
    Guest,
    /// In KVM, between an exit and the next entry or return to userspace.
    Exit,
}

/// One vCPU.
#[derive(Clone, Debug, Default)]
pub(super) struct Vcpu {
    pub first: [First; 4],
    /// Events were lost since the register was seen or written.
    pub relearn: [bool; 4],
    /// CR3 as last written, for INVPCID of the current PCID.
    pub cr3: u64,
    pub place: Place,
    /// The flush-relevant bits of `vcpu->requests` at the last function that printed them.
    pub req: Option<u64>,
    /// Between kvm_mmu_load and the flush at its end.
    pub in_load: bool,
    /// Whether the request of flush_current was seen, where kvm_service_local_tlb_flush_requests
    /// is probed; `None` where it is not.
    pub current_requested: Option<bool>,
    /// Inside kvm_set_cr0, 3 or 4: number of the operation.
    pub setting: Option<(usize, u64)>,
    /// An operation that kvm_cr told, which kvm_set_crN will tell again: register and number.
    pub told: Option<(usize, u64)>,
    /// INVLPG, INVPCID or WRMSR of EFER of this exit window: number of the operation.
    pub invlpg: Option<u64>,
    pub invpcid: Option<u64>,
    pub efer: Option<u64>,
    /// Userspace's register write under way: number of the operation.
    pub sregs: Option<u64>,
    /// Hooks that kvm_vcpu_reset still calls: CR0, CR3, CR4, EFER.
    pub reset_hooks: [bool; 4],
    /// The exit window may hold a WRMSR.
    pub wrmsr: bool,
    /// A vendor hook whose tail call svm_flush_tlb_asid follows.
    pub tail_follows: bool,
    /// The first of the two calls of __kvm_mmu_free_obsolete_roots was seen.
    pub obsolete_half: bool,
    /// Roots as last printed: the active one and the cached ones.
    pub roots: [Option<(Option<u64>, Option<Hpa>)>; 4],
    /// In system management mode.
    pub smm: bool,
    /// KVM_SET_CPUID was told, its kvm_init_mmu is still to come.
    pub cpuid: bool,
    /// Inside kvm_mmu_reset_context or kvm_mmu_unload: frees of all roots are theirs.
    pub in_reset: bool,
    /// The first free of all roots that belongs to neither: number of the record.
    pub bare_free: Option<u64>,
    /// The VPID of the last entry that printed one.
    pub vpid: Option<u64>,
    /// The physical CPU it ran on last.
    pub pcpu: Option<u16>,
    /// The thread that ran it last.
    pub thread: Option<u32>,
    /// Threads that ran it, when more than one did.
    pub other_thread: Option<u32>,
}

impl Vcpu {
    /// Notes a register's value if it is the first that is known.
    pub fn learn(&mut self, reg: usize, value: Option<u64>) {
        if let (First::Unknown, Some(value)) = (self.first[reg], value) {
            self.first[reg] = First::Value(value);
        }
    }

    /// Notes that an operation writes a register.
    pub fn writes(&mut self, reg: usize) {
        self.relearn[reg] = false;
        if self.first[reg] == First::Unknown {
            self.first[reg] = First::Written;
        }
    }

    /// The oldest operation that a later event may still complete.
    pub fn oldest_open(&self) -> Option<u64> {
        // A load of CS may stand before a register write, and is decided with it.
        let setting = self.setting.map(|(reg, number)| (reg, number.saturating_sub(1)));
        let pairs = [setting, self.told].map(|pair| pair.map(|(_, number)| number));
        let single = [self.invlpg, self.invpcid, self.efer, self.sregs];
        pairs.into_iter().chain(single).flatten().min()
    }

    /// An exit window begins or ends: what belongs to its operation is over.
    pub fn window(&mut self, place: Place) {
        self.place = place;
        self.in_load = false;
        self.setting = None;
        // Nothing told the old value of the register that kvm_cr spoke of.
        if let Some((reg, _)) = self.told.take() {
            self.writes(reg);
        }
        self.invlpg = None;
        self.invpcid = None;
        self.efer = None;
        self.sregs = None;
        self.wrmsr = false;
        self.tail_follows = false;
        self.obsolete_half = false;
        self.reset_hooks = [false; 4];
        self.in_reset = false;
        self.bare_free = None;
    }

    /// A record was inserted: the numbers behind it move.
    pub fn inserted(&mut self, at: u64) {
        let pairs = [&mut self.setting, &mut self.told].into_iter().flatten().map(|(_, n)| n);
        let plain = [
            &mut self.invlpg,
            &mut self.invpcid,
            &mut self.efer,
            &mut self.sregs,
            &mut self.bare_free,
        ];
        for number in pairs.chain(plain.into_iter().flatten()).filter(|number| **number >= at) {
            *number += 1;
        }
    }

    /// Events were lost: nothing half seen is completed any more.
    pub fn forget(&mut self) {
        let place = self.place;
        self.window(place);
        self.req = None;
        self.pcpu = None;
        self.roots = [None; 4];
        self.relearn = [true; 4];
    }
}
