//! Tags that are given a new meaning: a VPID or ASID that another vCPU runs under now, an EP4TA whose
//! page is the root of another EPT (facts on the architecture, D.1; DESIGN section 4, "Containers").
//!
//! Nothing that was cached under the old meaning may be used under the new one, whoever made it and
//! on whichever processor, so a birth is a floor over the tag and not over a vCPU. Cases worked by hand:
//!
//! * *VPID 1 of v0, destroyed, is given to v1 on p0.* What v0 left in (p0, VPID 1) is outlawed at v1's
//!   first entry there: its stamp is older. If v1 comes to p1, where v0 has been too, the tag is born
//!   there at that entry: the floor is kept for each processor by itself, because on p1 it is v1's own
//!   first flush on p1 that has to clean it.
//! * *v0 has the VPID again.* v0's own old copies are outlawed as well: v1 has had the tag between, and
//!   nobody has kept them for v0.
//! * *VPID 0* has no owner: each entry and exit without a VPID drops it.
//! * *A root page is freed and becomes the root of another EPT.* Copies under its EP4TA are older than
//!   the new tree; the flush that LOAD ends in cleans the processor of the vCPU that loads it, and a
//!   vCPU that comes elsewhere brings the flush of its move. A translation of which the guest's part
//!   was read anew through a guest-physical mapping of the old tree is as old as the older part.
//! * *AMD* tags nothing with the nested CR3: another root under the same ASID is covered by the duty to
//!   flush what the host has changed, there is no birth.
//!
//! There is no birth of a *PCID*, for no hypervisor gives one away:
//!
//! * Under TDP the guest's PCIDs are the processor's, within the VPID or ASID; KVM does not see them. With
//!   shadow paging KVM loads the shadow root together with the guest's own PCID (facts/kvm.md 5.6).
//! * So it is the guest that gives a PCID another meaning, by MOV CR3 of another root, and the manual says
//!   what that owes: without bit 63 the PCID's translations, with bit 63 nothing (facts B.1; B.3, "Reusing a
//!   PCID"). A floor on top would outlaw what a NOFLUSH return may legally use, and blame the hypervisor for
//!   a guest that reuses a PCID without a flush.
//! * PCIDE 0 to 1 gives nothing a new meaning: what is cached is of PCID 0, and valid for it (B.2). That
//!   KVM's cached roots carry a PCID which they had not before is its own affair: what it then forgets to
//!   sync is an obligation of the CR3 write that it mistook (bugs/kvm-pcide01-stale-prevroots).
//! * Another shadow root under the same PCID (a role change, a zap) is the hypervisor's doing, yet the
//!   PCID still means the same tables of the guest: what is stale then was owed by a store and its
//!   invalidation, by the host's change, or is an impossible translation.
//! * L1 and L2 share PCIDs where they share a VPID: each transition between them owes what VPID 0 owes
//!   (`vm-transition`), and in their own VPIDs or ASIDs they are apart.
//!
//! A birth is exposed if the tag's containers are not empty of older copies when a vCPU enters under it.
//! A recording does not show the tags that it was made under: there only uses are judged.

use tlbscope_sim::arch::required::BIRTH;
use tlbscope_trace::act::{At, Tag};

use super::hardware::Given;
use super::{Oracle, Vcpu};
use crate::finding::{Finding, Kind};

impl Vcpu {
    /// The operation in which something happens: the event's own, or that of the vCPU.
    pub(super) fn op_of(&self, at: &At) -> Given {
        let op = if self.op.0 == at.event { self.op.1 } else { "other" };
        (at.event, op)
    }
}

impl Oracle {
    /// A vCPU enters under this tag: births that something older under it may violate.
    pub(super) fn expose_births(&mut self, id: usize, tag: &Tag) {
        if self.auditing || self.without == Some(BIRTH.id) {
            return;
        }
        for (since, (cause, op)) in
            self.hardware.exposed_births(tag, self.now).into_iter().flatten()
        {
            let vcpu = &mut self.vcpus[id];
            if vcpu.births.contains(&since) {
                continue;
            }
            if vcpu.births.len() == BIRTHS {
                vcpu.births.remove(0);
            }
            vcpu.births.push(since);
            self.findings.add(Finding {
                cause,
                vcpu: id as u16,
                kind: Kind::Exposed,
                rule: BIRTH.id,
                op,
                mechanism: "entry",
                use_: None,
                address: None,
                count: 1,
            });
        }
    }
}

/// Births of a vCPU that were reported and are remembered, so that each is once.
const BIRTHS: usize = 64;
