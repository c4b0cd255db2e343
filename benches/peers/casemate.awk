# The log of N rounds of unmap, flush, map for casemate-check: a legal break-before-make loop of one thread.
function event(text) { printf "(%s (src \"loop.c:1\"))\n", text }
function id() { return "(id " n++ ") (tid 0)" }
BEGIN {
    root = "40001000"; one = "40002000"; two = "40003000"; lock = "40004000"
    split("vtcr_el2 tcr_el2 mair_el2 hcr_el2 sctlr_el2", register); split("10 10 0 0 0", value)
    for (i = 1; i <= 5; i++) event("sysreg-write " id() " (sysreg " register[i] ") (value " value[i] ")")
    split(root " " one " " two, page)
    for (i = 1; i <= 3; i++) event("mem-init " id() " (address " page[i] ") (size 1000)")
    event("hint " id() " (kind set_root_lock) (location " root ") (value " lock ")")
    for (i = 2; i <= 3; i++) event("hint " id() " (kind set_owner_root) (location " page[i] ") (value " root ")")
    event("mem-write " id() " (mem-order plain) (address " root ") (value 40002003)")
    event("sysreg-write " id() " (sysreg vttbr_el2) (value " root ")")
    event("sysreg-write " id() " (sysreg hcr_el2) (value 1)")
    for (round = 0; round < N; round++) {
        event("lock " id() " (address " lock ")")
        event("mem-write " id() " (mem-order plain) (address " root ") (value 0)")
        event("barrier " id() " dsb (kind ish)")
        event("tlbi " id() " alle1is")
        event("barrier " id() " dsb (kind ish)")
        event("mem-write " id() " (mem-order plain) (address " root ") (value " (round % 2 ? "40002003" : "40003003") ")")
        event("unlock " id() " (address " lock ")")
    }
}
