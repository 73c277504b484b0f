//! Ranges of ids, with arithmetic that cannot wrap.

#![forbid(unsafe_code)]

use core::fmt;

/// Which of the two maps of a user namespace is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdKind {
    /// User ids: `/etc/subuid`, `uid_map`, CAP_SETUID.
    Uid,
    /// Group ids: `/etc/subgid`, `gid_map`, CAP_SETGID.
    Gid,
}

impl IdKind {
    /// The word that messages and log lines use: `uid` or `gid`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Gid => "gid",
        }
    }

    /// The file that grants subordinate ids of this kind (subuid(5), subgid(5)).
    #[must_use]
    pub const fn subid_path(self) -> &'static str {
        match self {
            Self::Uid => "/etc/subuid",
            Self::Gid => "/etc/subgid",
        }
    }

    /// The file below /proc/PID that holds the map (user_namespaces(7)).
    #[must_use]
    pub const fn map_file(self) -> &'static str {
        match self {
            Self::Uid => "uid_map",
            Self::Gid => "gid_map",
        }
    }

    /// The program that writes the map.
    #[must_use]
    pub const fn map_program(self) -> &'static str {
        match self {
            Self::Uid => "newuidmap",
            Self::Gid => "newgidmap",
        }
    }
}

/// A non-empty run of ids: `start` to `start + count - 1`.
///
/// The end, which is the first id that is not in the range, is at most 4294967295: that id is `(uid_t)-1`, means
/// "no id" in every system call, and can be neither granted nor mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdRange {
    start: u32,
    end: u32,
}

impl IdRange {
    /// `count` ids from `start` on; `None` when that is no id at all or goes beyond 4294967294.
    #[must_use]
    pub fn new(start: u32, count: u32) -> Option<Self> {
        let end = start.checked_add(count)?;
        (end > start).then_some(Self { start, end })
    }

    /// The ids from `start` up to, not including, `end`; `None` when there are none.
    #[must_use]
    pub fn between(start: u32, end: u32) -> Option<Self> {
        (end > start).then_some(Self { start, end })
    }

    /// The first id.
    #[must_use]
    pub const fn start(self) -> u32 {
        self.start
    }

    /// The first id after the range.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.end
    }

    /// The number of ids, at least 1.
    #[must_use]
    pub const fn count(self) -> u32 {
        // `start < end` holds from construction on.
        self.end.saturating_sub(self.start)
    }

    /// The last id.
    #[must_use]
    pub const fn last(self) -> u32 {
        self.end.saturating_sub(1)
    }

    /// Whether an id stands in both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What is left of `self` below and above `other`: nothing, one piece or two.
    #[must_use]
    pub fn minus(self, other: Self) -> (Option<Self>, Option<Self>) {
        (Self::between(self.start, self.end.min(other.start)), Self::between(self.start.max(other.end), self.end))
    }
}

/// `100000-165535`, or `1001` for a single id: the form used in messages.
impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count() == 1 { write!(f, "{}", self.start) } else { write!(f, "{}-{}", self.start, self.last()) }
    }
}

/// One extent of a map: `count` ids, `inside` the namespace and `outside` it, both consecutive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First id inside the namespace ("upper").
    pub inside: u32,
    /// First id outside it, which is the one that has to be granted ("lower").
    pub outside: u32,
    /// Number of ids.
    pub count: u32,
}

impl Extent {
    /// The ids inside; `None` when the extent is empty or goes beyond 4294967294.
    #[must_use]
    pub fn inside(self) -> Option<IdRange> {
        IdRange::new(self.inside, self.count)
    }

    /// The ids outside; `None` when the extent is empty or goes beyond 4294967294.
    #[must_use]
    pub fn outside(self) -> Option<IdRange> {
        IdRange::new(self.outside, self.count)
    }
}

/// `0 100000 65536`: the form of the map file and of newuidmap's arguments.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.inside, self.outside, self.count)
    }
}
