//! What an instruction makes of registers and place, and when it is refused (facts B.4, C.4, D.2).

use std::num::{NonZeroU16, NonZeroU32};

use tlbscope_trace::addr::{Ep4ta, Gva};
use tlbscope_trace::op::{Invpcid, InvpcidType};
use tlbscope_trace::regs::{Cr0, Efer, Regs};

use super::{Instruction, Place, Processor, Refusal, Step};
use crate::arch::fault::{self, Gp, Limits};
use crate::arch::mode::Mode;

/// Bits of an EPTP below the address: memory type 2:0, walk length less one 5:3, A/D 6.
const EPTP_LOW: u64 = 0xfff;

impl Processor {
    /// Carries out one instruction or event.
    ///
    /// # Errors
    ///
    /// [`Refusal`] if it faults or fails; then nothing happens.
    pub fn execute(&self, instruction: &Instruction) -> Result<Step, Refusal> {
        self.known(instruction)?;
        // The fault comes before the VM exit (SDM vol. 3, 25.1.1).
        if self.cpl != 0 && privileged(instruction) {
            return Err(Gp("a privileged instruction at CPL > 0").into());
        }
        if self.intercepted && self.place.in_guest() && of_the_guest(instruction) {
            return Ok(Step::Exited);
        }
        let mut after = *self;
        match *instruction {
            Instruction::MovCr0(new) => {
                fault::cr0(&self.regs, new, &self.limits())?;
                after.write(Regs { cr0: new, ..self.regs });
                self.load_pdptes(&after, false)?;
            }
            Instruction::MovCr3(raw) => {
                after.regs.cr3 = fault::cr3(&self.regs, raw, &self.limits())?.value;
                self.load_pdptes(&after, true)?;
            }
            Instruction::MovCr4(new) => {
                fault::cr4(&self.regs, new, &self.limits())?;
                after.write(Regs { cr4: new, ..self.regs });
                self.load_pdptes(&after, false)?;
            }
            Instruction::WrmsrEfer(new) => {
                fault::efer(&self.regs, new, &self.limits())?;
                after.write(Regs { efer: new, ..self.regs });
            }
            Instruction::TaskSwitch(cr3) => {
                if self.regs.efer().contains(Efer::LMA) {
                    return Err(Gp("a task switch in IA-32e mode").into());
                }
                after.regs.cr3 = cr3;
                self.load_pdptes(&after, self.regs.cr3 != cr3)?;
            }
            Instruction::Invlpg(gva) if self.not_canonical(gva) => return Ok(Step::Nothing),
            Instruction::Invpcid { kind, descriptor, gva } => {
                let op = Invpcid { kind: invpcid_type(kind), pcid: descriptor, gva };
                fault::invpcid(&self.regs, &op, &self.limits())?;
            }
            Instruction::Invvpid { kind, descriptor, gva } => {
                self.invvpid(kind, descriptor, gva)?;
            }
            Instruction::Invept { kind, eptp } => self.invept(kind, eptp)?,
            Instruction::VmfuncEptp(eptp) => after.switch_eptp(eptp),
            Instruction::VmEntry { vpid, cr3, cr4 } => {
                let number = match vpid {
                    None => None,
                    Some(None) => Some(self.guest_vpid),
                    Some(Some(vpid)) => Some(
                        NonZeroU16::new(vpid.0)
                            .ok_or(Refusal::VmFail(7, "\"enable VPID\" with VPID 0000H"))?,
                    ),
                };
                after.guest_vpid = number.unwrap_or(self.guest_vpid);
                after.place = Place::VmxGuest { vpid: number, eptp: self.guest_eptp };
                let (cr3, cr4) = (cr3.unwrap_or(self.regs.cr3), cr4.unwrap_or(self.regs.cr4));
                after.write(Regs { cr3, cr4, ..self.regs });
            }
            Instruction::VmExit { .. }
            | Instruction::EptViolation { .. }
            | Instruction::SvmExit => {
                after.place = Place::Host;
            }
            Instruction::Vmrun { asid, control } => {
                let asid = NonZeroU32::new(asid).ok_or(Refusal::VmexitInvalid("ASID 0"))?;
                self.tlb_control(control)?;
                after.place = Place::SvmGuest { asid };
            }
            Instruction::Init => after.regs = reset(),
            Instruction::Reset => (after.regs, after.place) = (reset(), Place::Host),
            Instruction::WrmsrMtrr
            | Instruction::WrmsrPat
            | Instruction::Wrpkru
            | Instruction::Invlpg(_)
            | Instruction::Invlpga { .. }
            | Instruction::Invlpgb(_)
            | Instruction::Tlbsync
            | Instruction::Vmxon
            | Instruction::Vmxoff
            | Instruction::PageFault(_)
            | Instruction::Smi
            | Instruction::Rsm
            | Instruction::A20m
            | Instruction::Store => {}
        }
        Ok(Step::Done(after))
    }

    /// VMX is Intel's, SVM and INVLPGB are AMD's.
    fn known(&self, instruction: &Instruction) -> Result<(), Refusal> {
        match instruction {
            Instruction::Invlpga { .. }
            | Instruction::Invlpgb(_)
            | Instruction::Tlbsync
            | Instruction::Vmrun { .. }
            | Instruction::SvmExit
                if !self.amd() =>
            {
                Err(Refusal::Undefined("an instruction of AMD"))
            }
            Instruction::Invvpid { .. }
            | Instruction::Invept { .. }
            | Instruction::VmfuncEptp(_)
            | Instruction::Vmxon
            | Instruction::Vmxoff
            | Instruction::VmEntry { .. }
            | Instruction::VmExit { .. }
            | Instruction::EptViolation { .. }
                if self.amd() =>
            {
                Err(Refusal::Undefined("an instruction of Intel"))
            }
            _ => Ok(()),
        }
    }

    /// The limits as the code segment has them: CR0.PG can be cleared from compatibility mode.
    fn limits(&self) -> Limits {
        let pg_clear_in_64_bit = self.limits.pg_clear_in_64_bit || self.compatibility;
        Limits { pg_clear_in_64_bit, ..self.limits }
    }

    /// Stores registers; EFER.LMA follows LME and CR0.PG.
    const fn write(&mut self, regs: Regs) {
        let (lme, lma) = (Efer::LME.bits(), Efer::LMA.bits());
        let long = regs.cr0 & Cr0::PG.bits() != 0 && regs.efer & lme != 0;
        let efer = regs.efer & !lma | if long { lma } else { 0 };
        self.regs = Regs { efer, ..regs };
    }

    /// The PDPTE registers of Intel fault where they are loaded (facts A.3); AMD reads PDPTEs
    /// during the walk. `always`: a MOV CR3 loads them whatever it changes.
    fn load_pdptes(&self, after: &Self, always: bool) -> Result<(), Refusal> {
        let loads = Mode::of(&after.regs) == Mode::Pae
            && (always || fault::pdptes_changed_by(&self.regs, &after.regs));
        if loads && self.bad_pdptes && !self.amd() {
            return Err(Gp("a present PDPTE has reserved bits set").into());
        }
        Ok(())
    }

    /// Whether 64-bit code names an address that is not canonical.
    fn not_canonical(&self, gva: Gva) -> bool {
        let long = self.regs.efer().contains(Efer::LMA) && !self.compatibility;
        long && !Mode::of(&self.regs).canonical(gva)
    }

    fn invvpid(&self, kind: u64, descriptor: u64, gva: Gva) -> Result<(), Refusal> {
        let named = matches!(kind, 0 | 1 | 3);
        let why = if kind > 3 {
            "INVVPID of a type above 3"
        } else if descriptor >> 16 != 0 {
            "bits 63:16 of the INVVPID descriptor"
        } else if named && descriptor == 0 {
            "INVVPID of VPID 0000H"
        } else if kind == 0 && self.not_canonical(gva) {
            "INVVPID of an address that is not canonical"
        } else {
            return Ok(());
        };
        Err(Refusal::VmFail(28, why))
    }

    /// An operand without low bits is taken for an EP4TA: its attributes are not judged.
    fn invept(&self, kind: u64, eptp: u64) -> Result<(), Refusal> {
        let (memory_type, length) = (eptp & 7, eptp >> 3 & 7);
        let attributes = !matches!(memory_type, 0 | 6)
            || !matches!(length, 3 | 4)
            || eptp & EPTP_LOW & !0x7f != 0;
        let why = if !matches!(kind, 1 | 2) {
            "INVEPT of a type other than 1 and 2"
        } else if kind == 1 && eptp & self.limits.above_physical() != 0 {
            "an EPTP with bits from MAXPHYADDR upward"
        } else if kind == 1 && eptp & EPTP_LOW != 0 && attributes {
            "an EPTP that VM entry would refuse"
        } else {
            return Ok(());
        };
        Err(Refusal::VmFail(28, why))
    }

    fn switch_eptp(&mut self, eptp: u64) {
        self.guest_eptp = Some(ep4ta(eptp));
        if let Place::VmxGuest { eptp, .. } = &mut self.place {
            *eptp = self.guest_eptp;
        }
    }

    fn tlb_control(&self, control: u64) -> Result<(), Refusal> {
        match control {
            0 | 1 => Ok(()),
            3 | 7 if self.flush_by_asid => Ok(()),
            3 | 7 => Err(Refusal::VmexitInvalid("TLB_CONTROL 3 or 7 without FlushByAsid")),
            _ => Err(Refusal::VmexitInvalid("a reserved TLB_CONTROL")),
        }
    }
}

/// The tag of an EPTP: its bits 51:12.
#[must_use]
pub const fn ep4ta(eptp: u64) -> Ep4ta {
    Ep4ta(eptp & 0x000f_ffff_ffff_f000)
}

/// The type operand of INVPCID.
pub const fn invpcid_type(kind: u64) -> InvpcidType {
    match kind {
        0 => InvpcidType::Addr,
        1 => InvpcidType::Single,
        2 => InvpcidType::All,
        3 => InvpcidType::AllNonglobal,
        other => InvpcidType::Reserved(other),
    }
}

/// Registers after RESET and INIT.
fn reset() -> Regs {
    Regs { cr0: (Cr0::CD | Cr0::NW | Cr0::ET).bits(), ..Regs::default() }
}

/// Whether a VM exit can take its place. The rest is the hypervisor's own doing, or nobody's.
const fn of_the_guest(instruction: &Instruction) -> bool {
    !matches!(
        instruction,
        Instruction::VmEntry { .. }
            | Instruction::VmExit { .. }
            | Instruction::Vmrun { .. }
            | Instruction::SvmExit
            | Instruction::EptViolation { .. }
            | Instruction::Reset
            | Instruction::A20m
            | Instruction::Store
    )
}

/// Whether it needs CPL 0. VMFUNC and WRPKRU do not; INVLPGB does.
const fn privileged(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::MovCr0(_)
            | Instruction::MovCr3(_)
            | Instruction::MovCr4(_)
            | Instruction::WrmsrEfer(_)
            | Instruction::WrmsrMtrr
            | Instruction::WrmsrPat
            | Instruction::Invlpg(_)
            | Instruction::Invpcid { .. }
            | Instruction::Invlpga { .. }
            | Instruction::Invlpgb(_)
            | Instruction::Tlbsync
            | Instruction::Invvpid { .. }
            | Instruction::Invept { .. }
            | Instruction::Vmxon
            | Instruction::Vmxoff
            | Instruction::VmEntry { .. }
            | Instruction::Vmrun { .. }
    )
}
