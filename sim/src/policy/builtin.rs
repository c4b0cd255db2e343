//! The built-in policies: files like a user's, read by the same loader.

/// Lists files of `sim/policies`.
macro_rules! builtins {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../policies/", $name, ".toml")))),*]
    };
}

/// Name and text of each, the oldest kernel first.
pub(super) const BUILTINS: &[(&str, &str)] = builtins! {
    "kvm-5.10" "kvm-5.15" "kvm-5.17" "kvm-patch-v2" "kvm-5.17-keep-roots" "kvm-patch-v2-18"
    "kvm-5.19" "kvm-6.1-lts" "kvm-6.4" "kvm-6.12-lts" "kvm-6.18" "kvm-7.3"
    "hw-min" "arch-min" "flush-all" "never"
};
