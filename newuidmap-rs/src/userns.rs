//! What on this host forbids user namespaces to ordinary users: each sysctl and security module that can.

#![forbid(unsafe_code)]

/// A setting that forbids user namespaces, the value that does so, and the cure.
const SETTINGS: [(&str, &str, &str); 3] = [
    ("user.max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    // Debian's and older Ubuntu's kernels.
    ("kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    // Ubuntu 23.10 and newer: only programs with an AppArmor profile that says `userns,` may.
    (
        "kernel.apparmor_restrict_unprivileged_userns",
        "1",
        "give the program an AppArmor profile with `userns,`, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

/// The first setting that forbids user namespaces, in words, with what an administrator can do; `None` when no known
/// setting does. A kernel without user namespaces (before 3.8, or built without) is named too.
#[must_use]
pub fn forbidden() -> Option<String> {
    if std::fs::symlink_metadata("/proc/self/ns/user").is_err() && std::fs::symlink_metadata("/proc/self/ns").is_ok() {
        return Some("this kernel has no user namespaces: Linux 3.8 or newer with CONFIG_USER_NS is needed".to_owned());
    }
    SETTINGS.iter().find_map(|(name, forbids, cure)| {
        let value = std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
        (value.trim() == *forbids)
            .then(|| format!("{name} is {forbids}, which forbids user namespaces (as root: {cure})"))
    })
}
