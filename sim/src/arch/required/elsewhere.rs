//! Where the other vendor differs (facts C.1 to C.4): what a finding says beside its rule.

use tlbscope_trace::regs::Vendor;

/// `(rule, machine, what the other vendor's processor does)`.
const ELSEWHERE: &[(&str, Vendor, &str)] = {
    use Vendor::{Amd, Intel};
    &[
        ("invlpg", Intel, "AMD: with EFER.TCE = 1 only the page's own path of upper-level entries"),
        ("invlpg", Amd, "Intel: always every paging-structure entry of the current PCID"),
        ("cr0-pg-set", Amd, "Intel: setting CR0.PG owes nothing"),
        ("cr0-wp-cd-nw-vmcb", Amd, "Intel: not required"),
        ("cr4-pae", Intel, "AMD: everything of the ASID"),
        ("cr4-pae-other-globals", Intel, "AMD: everything of the ASID, other PCIDs' globals too"),
        ("cr4-pae-amd", Amd, "Intel: the current PCID only"),
        ("cr4-smep-set", Intel, "AMD: not listed, owes nothing"),
        ("cr4-smep-other-globals", Intel, "AMD: not listed, owes nothing"),
        ("cr4-pse", Amd, "Intel: optional"),
        ("cr4-pke-set", Amd, "Intel: not listed, owes nothing"),
        ("efer-vmcb", Amd, "Intel: not required"),
        ("init", Intel, "AMD: advised only, the manual contradicts itself"),
        ("init-amd", Amd, "Intel: required"),
        ("smi", Amd, "Intel: not listed, owes nothing"),
        ("rsm", Amd, "Intel: not listed, owes nothing"),
        ("mtrr-amd", Amd, "Intel: software's job, advised"),
        ("mtrr", Intel, "AMD: the processor flushes every ASID"),
        ("page-fault", Amd, "Intel: the fault is raised without a second walk of the page"),
        ("page-fault-other-globals", Intel, "AMD: not demanded"),
        ("tag-birth", Intel, "AMD: the tag is the ASID alone"),
        ("tag-birth", Amd, "Intel: the tag is the VPID, with EPT the EP4TA too"),
        ("vm-transition", Intel, "AMD: VMRUN and #VMEXIT flush nothing but what TLB_CONTROL asks"),
        ("tlb-control", Amd, "Intel: INVVPID and INVEPT take its place"),
        ("invvpid", Intel, "AMD: no such instruction, TLB_CONTROL and INVLPGA take its place"),
        ("invept", Intel, "AMD: no such instruction, TLB_CONTROL takes its place"),
    ]
};

/// What the other vendor's processor does about the matter of a rule that was broken on a machine of
/// this vendor; `None`: the same.
#[must_use]
pub fn elsewhere(rule: &str, machine: Vendor) -> Option<&'static str> {
    ELSEWHERE.iter().find(|(id, of, _)| *id == rule && *of == machine).map(|(_, _, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::{ELSEWHERE, elsewhere};
    use crate::arch::required::rule;
    use tlbscope_trace::regs::Vendor;

    #[test]
    fn every_row_is_of_a_rule_that_can_be_broken_there() {
        for (id, machine, _) in ELSEWHERE {
            let rule = rule(id).unwrap_or_else(|| panic!("no rule {id}"));
            assert!(rule.vendor.is_none_or(|vendor| vendor == *machine), "{id}");
        }
    }

    #[test]
    fn rules_of_one_vendor_say_what_the_other_does() {
        for rule in super::super::RULES.iter().filter(|r| !["vpid-new"].contains(&r.id)) {
            if let Some(vendor) = rule.vendor {
                assert!(elsewhere(rule.id, vendor).is_some(), "{}", rule.id);
            }
        }
    }

    #[test]
    fn both_vendors_agree_on_mov_cr3() {
        assert_eq!(elsewhere("cr3", Vendor::Intel), None);
        assert_eq!(elsewhere("cr3", Vendor::Amd), None);
    }
}
