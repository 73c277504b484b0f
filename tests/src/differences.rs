//! Where ours differs from the original on purpose: the oracle's allow-list.
//!
//! "Theirs" is what the distribution's program does: shadow 4.13 of Debian 12. A trial asks [`expected`], so that the
//! same trial passes on both, and nothing differs that is not written here.

use crate::world::UnderTest;

/// What a program does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Exit 0, the map is written.
    Grants,
    /// Exit 1, nothing is written.
    Refuses,
}

use Does::{Grants, Refuses};

/// One difference.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// What is asked, as the trials name it.
    pub id: &'static str,
    /// What shadow 4.13 does.
    pub theirs: Does,
    /// What ours does.
    pub ours: Does,
    /// Why.
    pub reason: &'static str,
}

const fn row(id: &'static str, theirs: Does, ours: Does, reason: &'static str) -> Difference {
    Difference { id, theirs, ours, reason }
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    row("fd:N", Refuses, Grants, "since shadow 4.14.0; 4.13 knows pids only"),
    row(
        "real pidfd as fd:N",
        Refuses,
        Grants,
        "the usage text names a pidfd, and users ask for it (shadow issues 655, 977)",
    ),
    row(
        "caller without a passwd entry, numeric line",
        Refuses,
        Grants,
        "a numeric entry needs no name; hosts with network accounts have such callers",
    ),
    row("file missing, self map", Refuses, Grants, "self-mapping needs no file"),
    row(
        "symlink owned by root",
        Refuses,
        Grants,
        "shadow issue 1253: configuration management links files; root's link is root's word",
    ),
    row("trailing blanks", Refuses, Grants, "invisible at the end of a line, and meant by nobody"),
    row("carriage return", Refuses, Grants, "a file edited elsewhere; the line says what it says"),
    row("octal start", Grants, Refuses, "other readers of the file take 0100000 as decimal: one line, two meanings"),
    row("fourth field", Grants, Refuses, "shadow 4.20 ignores such lines as well"),
    row(
        "name of digits owns by its uid",
        Grants,
        Refuses,
        "a field of digits is a uid: two readings would grant one range to two users",
    ),
    row("count 4294967296", Grants, Refuses, "no range of 32-bit ids is that long; shadow 4.20 ignores the line too"),
    row("count -1", Grants, Refuses, "a negative count wraps to everything; shadow 4.20 ignores the line too"),
    row(
        "count 18446744073709551615",
        Grants,
        Refuses,
        "the count wraps to everything; shadow 4.20 ignores the line too",
    ),
    row(
        "group or world writable file",
        Grants,
        Refuses,
        "configuration is believed only when nobody but root can write it",
    ),
    row("file not owned by root", Grants, Refuses, "configuration is believed only when nobody but root can write it"),
    row(
        "mode 0600",
        Grants,
        Refuses,
        "the file is read as the caller, in both installs, with no right to pass permissions",
    ),
    row(
        "non-dumpable target",
        Grants,
        Refuses,
        "its uid_map belongs to root and cannot be opened without a right to pass permissions; shadow 4.20 refuses it too",
    ),
    row(
        "setuid, bounding set of SETUID and SETGID",
        Refuses,
        Grants,
        "Debian builds 4.13 without libcap: it keeps euid 0, and needs CAP_DAC_OVERRIDE to open the map",
    ),
    row(
        "another subid source",
        Grants,
        Refuses,
        "nsswitch.conf names another authority than the files, and no plugin is ever loaded",
    ),
];

/// What the program under test does with `id`.
///
/// # Panics
/// When the table has no such row.
#[must_use]
pub fn expected(id: &str) -> Does {
    let row = DIFFERENCES.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("no difference is called \"{id}\""));
    match UnderTest::get() {
        UnderTest::Ours => row.ours,
        UnderTest::Theirs => row.theirs,
    }
}
