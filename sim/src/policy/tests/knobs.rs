//! Every mechanic of the contract parses, with each of its values.

use super::super::{Library, parse};

/// The contract: key and values, as a policy writes them. Values are separated by ` | `.
const CONTRACT: &str = r#"
guest-flush-shadow = "hw-only" | "unload" | "sync"
load-flush = true | false
reset = "unload" | "update-root"
prev-roots = 0 | 1 | 3
prev-root-min-level = 0 | 4
invalidate-pcid = "current" | "current+cached"
invalidate-pcid-without-pcide = "current" | "cached"
invlpg-roots = "current" | "all"
invlpg = "gva" | "all" | "none"
load-pdptrs = [] | ["free-root"] | ["request-pgd"] | ["free-root", "request-pgd"]
pdptr-cr4 = ["PSE", "PAE", "PGE", "SMEP"] | []
pdptr-cr0 = ["NW", "CD", "PG"] | []
role = "v510" | "v517" | "v519" | "v72"
role-omit = [] | ["wp"] | ["nx", "smep", "smap"]
tdp-root-lifetime = "last-user" | "last-user-async" | "vm"
migrate-vmx = "all" | "none"
migrate-svm = "per-vcpu" | "per-vmcb" | "both-vmcbs" | "none"
svm-tlb-control-clear = "always" | "on-success"
svm-pge-hook = true | false
wp-nonpaging = "reset" | "ignore"
invlpg-remote-flush = "always" | "changed"
set-spte-remote-flush = "never" | "lost-write" | "refreshed"
pg-clear-in-64-bit = "accept" | "gp"
guest-flush-vpid = "vpid01" | "active" | "active-if-enabled"
nested-transition = "nothing" | "all" | "guest"
nested-transition-when = "untagged" | "always"
nested-drain = "none" | "current" | "current+guest"
nested-fail-drain = true | false
nested-invvpid = "as-asked" | "single"
nested-tlb-control = "ignore" | "raw" | "decoded"
vpid02-alloc = "flush-first" | "keep-last"
vpid12-change = "hw-only" | "guest"
svm-flush = "asid" | "all"
svm-asid-wrap = "all" | "asid"
hv-input = "guest-mode" | "nested"
hv-noncanonical = "skip" | "pass"
invlpg-noncanonical = "skip" | "pass"
nested-cr3-bit63 = "drop" | "noflush"
hv-flush = "full" | "request" | "fifo"
invlpgb = "native" | "intercept"
pv-flush = "atomic" | "read-then-clear"
pv-preempt-store = "merge" | "overwrite"
pv-preempt-when = "every-put" | "preempted"
pv-flush-wait = true | false
no-wakeup = true | false
lockless-walk = "reading" | "outside"
fault-retry = true | false
fault-invalidates = true | false
nested-invvpid-roots = "none" | "all" | "guest-mode"
clear-dirty-flush = true | false
unmap-roots = "valid" | "all"
nested-invept-reach = "own" | "vm"
enlightened-npt-flush = "remote" | "current"
avic-flush = true | false
apic-page-reload = "before-unmap" | "after-unmap"
sregs = "reset" | "reset+guest"
link-unsync = "sync" | "as-is"
own-cr0 = ["TS"] | ["TS", "WP"]
own-cr4 = ["PVI", "TSD", "DE", "PGE", "PCE", "OSFXSR", "OSXMMEXCPT", "FSGSBASE"] | []
scope = "hardware" | "exact"
remote-flush.zap = true | false
remote-flush.write-protect = true | false
remote-flush.pfn-change = true | false
remote-flush.sync = true | false
remote-flush.before-unlock = true | false
remote-flush.populate = true | false
remote-flush.repeat = 1 | 2
remote-flush.own = true | false
remote-flush.invalid-roots = true | false
remote-flush.teardown = true | false
remote-flush.ipi = "in-guest" | "ever-ran"
remote-flush.range = "exact" | "first-page" | "shifted" | "none"
"#;

#[test]
fn each_value_of_the_contract_is_read_and_written() {
    for line in CONTRACT.trim().lines() {
        let (key, values) = line.split_once(" = ").unwrap();
        let mut seen = Vec::new();
        for value in values.split(" | ") {
            let text = format!("[mechanics]\n{key} = {value}");
            let policy = parse(&text, "t.toml", &Library::new()).unwrap_or_else(|e| panic!("{e}"));
            let written = match key.strip_prefix("remote-flush.") {
                Some(part) => find(policy.mechanics.remote_flush.entries(), part),
                None => find(policy.mechanics.entries(), key),
            };
            assert_eq!(written, value, "{key}");
            assert!(!seen.contains(&policy.mechanics), "{key} = {value} changes nothing");
            seen.push(policy.mechanics);
        }
    }
}

fn find(entries: Vec<(&str, String)>, key: &str) -> String {
    entries.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value).unwrap()
}

#[test]
fn the_example_of_the_contract_is_the_patch() {
    let text = r#"
name = "my-patch"
extends = "kvm-5.17"

[[cr4]]
id = "cr4-role"
when = { changed = ["PSE", "PAE", "LA57", "SMEP", "SMAP", "PKE"] }
do = ["mmu-reset"]

[[cr4]]
id = "cr4-pcide-set"
when = { set = ["PCIDE"], tdp = false }
do = ["mmu-unload"]

[[cr4]]
id = "cr4-all-pcids"
when = { any = [{ changed = ["PGE"] }, { cleared = ["PCIDE"] }] }
do = ["request TLB_FLUSH_GUEST"]

[[cr4]]
id = "cr4-current-pcid"
else = true
when = { any = [{ changed = ["PAE"] }, { set = ["SMEP"] }] }
do = ["request TLB_FLUSH_CURRENT"]
"#;
    use super::super::rule::Register;
    let mine = parse(text, "my-patch.toml", &Library::new()).unwrap();
    let merged = super::builtin("kvm-5.19");
    let (mine, merged) = (mine.rules(Register::Cr4), merged.rules(Register::Cr4));
    assert_eq!(mine.len(), 4);
    for (a, b) in mine.iter().zip(merged) {
        assert_eq!(
            (&a.id, a.or_else, &a.when, &a.actions),
            (&b.id, b.or_else, &b.when, &b.actions)
        );
    }
}
