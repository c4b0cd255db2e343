//! Which kernel was recorded, as far as the recording tells versions apart: each sign leaves some of
//! the built-in policies, and only one that is left alone is taken. Backports may look like any.

use std::fmt::Write;

/// The policies of recorded kernels, oldest first.
pub(super) const POLICIES: [&str; 9] = [
    "kvm-5.10",
    "kvm-5.15",
    "kvm-5.17",
    "kvm-5.19",
    "kvm-6.1-lts",
    "kvm-6.4",
    "kvm-6.12-lts",
    "kvm-6.18",
    "kvm-7.3",
];

/// Some of [`POLICIES`], as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set(u16);

impl Set {
    const ALL: Self = Self((1 << POLICIES.len()) - 1);
    pub const V5_10: Self = Self(1);
    pub const SINCE_5_12: Self = Self(Self::ALL.0 & !1);
    pub const UP_TO_5_17: Self = Self(0b111);
    pub const SINCE_5_17: Self = Self(Self::ALL.0 & !0b11);
    pub const SINCE_5_18: Self = Self(Self::ALL.0 & !0b111);
    pub const UP_TO_5_19: Self = Self(0b1111);
    pub const SINCE_6_0: Self = Self(Self::ALL.0 & !0b1111);
    pub const UP_TO_6_3: Self = Self(0b1_1111);
    pub const SINCE_6_4: Self = Self(Self::ALL.0 & !0b1_1111);
    pub const UP_TO_6_4: Self = Self(0b11_1111);
    pub const SINCE_6_6: Self = Self(Self::ALL.0 & !0b11_1111);
    pub const UP_TO_6_12: Self = Self(0b111_1111);
    pub const SINCE_6_14: Self = Self(Self::ALL.0 & !0b111_1111);
    pub const UP_TO_6_18: Self = Self(0b1111_1111);
    pub const SINCE_7_2: Self = Self(0b1_0000_0000);

    fn names(self) -> Vec<&'static str> {
        let named = POLICIES.iter().enumerate().filter(|(at, _)| self.0 >> at & 1 == 1);
        named.map(|(_, name)| *name).collect()
    }
}

/// Signs, each told once, in the order in which they were first seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Signs {
    seen: Vec<(Set, &'static str)>,
}

impl Signs {
    pub fn add(&mut self, set: Set, why: &'static str) {
        if !self.seen.iter().any(|(_, known)| *known == why) {
            self.seen.push((set, why));
        }
    }

    /// The policy, and a sentence of evidence.
    pub fn decide(&self, release: Option<&str>) -> (Option<&'static str>, String) {
        if let Some(release) = release
            && let Some(policy) = of_release(release)
        {
            let why = format!("kernel {policy}: the recording names the kernel {release}");
            return (Some(policy), why);
        }
        let left = self.seen.iter().fold(Set::ALL, |left, (set, _)| Set(left.0 & set.0));
        let mut why = String::new();
        // A sign that rules out nothing new says nothing.
        let mut so_far = Set::ALL;
        for (set, sign) in &self.seen {
            if so_far.0 & set.0 != so_far.0 {
                let _ = write!(why, "{}{sign}", if why.is_empty() { "" } else { "; " });
            }
            so_far = Set(so_far.0 & set.0);
        }
        match left.names().as_slice() {
            [] => (None, format!("kernel not decided: the signs contradict each other ({why})")),
            [one] => (Some(*one), format!("kernel {one}: {why}")),
            _ if left == Set::ALL => (
                None,
                "kernel not decided: nothing tells the version; --policy names it".to_owned(),
            ),
            some => {
                let names = some.join(", ");
                (
                    None,
                    format!("several kernels fit: {names} ({why}); --policy names the right one"),
                )
            }
        }
    }
}

/// The policy nearest to a release such as `6.1.0-56-amd64`.
fn of_release(release: &str) -> Option<&'static str> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let major: u32 = parts.next()?.parse().ok()?;
    let minor: u32 = parts.next()?.parse().ok()?;
    let policy = match (major, minor) {
        (5, 8..=10) => 0,
        (5, 11..=15) => 1,
        (5, 16..=17) => 2,
        (5, 18..=19) => 3,
        (6, 0..=3) => 4,
        (6, 4..=8) => 5,
        (6, 9..=13) => 6,
        (6, 14..) | (7, 0..=1) => 7,
        (7.., _) => 8,
        _ => return None,
    };
    Some(POLICIES[policy])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_left_is_taken_and_several_are_listed() {
        let mut signs = Signs::default();
        signs.add(Set::UP_TO_6_3, "a");
        signs.add(Set::SINCE_5_12, "b");
        let (policy, why) = signs.decide(None);
        assert_eq!(policy, None);
        let list = "several kernels fit: kvm-5.15, kvm-5.17, kvm-5.19, kvm-6.1-lts (a; b)";
        assert!(why.starts_with(list) && why.contains("--policy"), "{why}");
        signs.add(Set::SINCE_6_0, "c");
        assert_eq!(signs.decide(None).0, Some("kvm-6.1-lts"));
        signs.add(Set::V5_10, "d");
        assert!(signs.decide(None).1.contains("contradict"));
        assert_eq!(signs.decide(Some("6.12.9-generic")).0, Some("kvm-6.12-lts"));
        assert_eq!(Signs::default().decide(None).0, None);
    }
}
