//! The id map of a container: which host id stands for each of its ids.

#![forbid(unsafe_code)]

use super::error::{Error, NOT_PERMITTED, Result, USAGE};
use core::fmt;
use helper::allotment::{Owner, none_granted, plan, ranges};
use helper::range::{Extent, IdKind, IdRange};
use serde::{Deserialize, Serialize};

/// `(uid_t)-1`: no id. The kernel takes it for "leave unchanged" in chown(2).
pub const NO_ID: u32 = u32::MAX;

/// Uids and gids of a container, as extents in the container's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// Extents of `lxc.idmap = u ...`.
    pub uids: Vec<Extent>,
    /// Extents of `lxc.idmap = g ...`.
    pub gids: Vec<Extent>,
}

impl Map {
    /// Every subordinate id of `owner`, as ids from 0 on.
    ///
    /// # Errors
    /// One of the two files grants nothing (77; the text proposes the missing line), or cannot be believed.
    pub fn whole(owner: &Owner) -> Result<Self> {
        let one = |kind| -> Result<Vec<Extent>> {
            let granted = ranges(kind, owner).map_err(|error| Error::new(NOT_PERMITTED, error.0))?;
            if granted.is_empty() {
                return Err(Error::new(NOT_PERMITTED, none_granted(kind, owner)));
            }
            Ok(plan(&granted))
        };
        Ok(Self { uids: one(IdKind::Uid)?, gids: one(IdKind::Gid)? })
    }

    /// One uid and one gid, as 0.
    #[must_use]
    pub fn single(uid: u32, gid: u32) -> Self {
        let one = |outside| vec![Extent { inside: 0, outside, count: 1 }];
        Self { uids: one(uid), gids: one(gid) }
    }

    /// The host's own ids, unshifted.
    #[must_use]
    pub fn identity() -> Self {
        let all = vec![Extent { inside: 0, outside: 0, count: NO_ID }];
        Self { uids: all.clone(), gids: all }
    }

    /// `count` uids from `uid` on and as many gids from `gid` on, as 0, 1, 2...
    #[must_use]
    pub fn run(uid: u32, gid: u32, count: u32) -> Self {
        let one = |outside: u32| vec![Extent { inside: 0, outside, count: count.min(NO_ID.saturating_sub(outside)) }];
        Self { uids: one(uid), gids: one(gid) }
    }

    /// The extents of a kind.
    #[must_use]
    pub fn of(&self, kind: IdKind) -> &[Extent] {
        match kind {
            IdKind::Uid => &self.uids,
            IdKind::Gid => &self.gids,
        }
    }

    /// Adds one extent in LXC's form: `u 0 100000 65536`, blanks or colons between the words, `b` for both kinds.
    ///
    /// # Errors
    /// The text has another form, or the extent goes beyond 4294967294, or overlaps one that is there (64).
    pub fn add(&mut self, text: &str) -> Result<()> {
        let bad = || Error::new(USAGE, format!("id map \"{text}\": not u|g|b INSIDE OUTSIDE COUNT"));
        let mut words = text.split(|c: char| c.is_ascii_whitespace() || c == ':').filter(|word| !word.is_empty());
        let kind = words.next().ok_or_else(bad)?;
        let mut number = || words.next()?.parse::<u32>().ok();
        let (Some(inside), Some(outside), Some(count)) = (number(), number(), number()) else { return Err(bad()) };
        let extent = Extent { inside, outside, count };
        if words.next().is_some() || !matches!(kind, "u" | "g" | "b") {
            return Err(bad());
        }
        let (Some(within), Some(without)) = (extent.inside(), extent.outside()) else { return Err(bad()) };
        for (letter, list) in [("u", &mut self.uids), ("g", &mut self.gids)] {
            if kind != letter && kind != "b" {
                continue;
            }
            let twice = |other: &Extent| {
                other.inside().is_none_or(|ids| ids.overlaps(within))
                    || other.outside().is_none_or(|ids| ids.overlaps(without))
            };
            if list.iter().any(twice) {
                return Err(Error::new(USAGE, format!("id map \"{text}\": overlaps another extent")));
            }
            list.push(extent);
        }
        Ok(())
    }

    /// The host id of the container's `id`; `None` when the map has none.
    #[must_use]
    pub fn to_host(&self, kind: IdKind, id: u32) -> Option<u32> {
        look_up(self.of(kind), id, |e| (e.inside, e.outside))
    }

    /// The container's id of the host's `id`; `None` when the map has none.
    #[must_use]
    pub fn to_container(&self, kind: IdKind, id: u32) -> Option<u32> {
        look_up(self.of(kind), id, |e| (e.outside, e.inside))
    }

    /// Host uid and gid of the container's root.
    ///
    /// # Errors
    /// The map has no 0 (64).
    pub fn root(&self) -> Result<(u32, u32)> {
        match (self.to_host(IdKind::Uid, 0), self.to_host(IdKind::Gid, 0)) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(Error::new(USAGE, format!("id map {self}: maps no root (uid 0 and gid 0)"))),
        }
    }

    /// The host's ids in the map.
    #[must_use]
    pub fn host_ranges(&self, kind: IdKind) -> Vec<IdRange> {
        self.of(kind).iter().filter_map(|extent| extent.outside()).collect()
    }

    /// `lxc.idmap` lines.
    #[must_use]
    pub fn lxc_lines(&self) -> String {
        let lines = |letter: &str, list: &[Extent]| -> String {
            list.iter().map(|e| format!("lxc.idmap = {letter} {} {} {}\n", e.inside, e.outside, e.count)).collect()
        };
        lines("u", &self.uids) + &lines("g", &self.gids)
    }

    /// The same as numbers, for a file.
    #[must_use]
    pub fn to_plain(&self) -> PlainMap {
        let plain = |list: &[Extent]| list.iter().map(|e| [e.inside, e.outside, e.count]).collect();
        PlainMap { uids: plain(&self.uids), gids: plain(&self.gids) }
    }
}

/// [`Map`] as triples of inside, outside and count.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct PlainMap {
    /// Uids.
    pub uids: Vec<[u32; 3]>,
    /// Gids.
    pub gids: Vec<[u32; 3]>,
}

/// `0:100000:65536` (and the gids, when they differ): for messages.
impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |extents: &[Extent]| -> String {
            let words: Vec<String> =
                extents.iter().map(|e| format!("{}:{}:{}", e.inside, e.outside, e.count)).collect();
            if words.is_empty() { "nothing".to_owned() } else { words.join(",") }
        };
        if self.uids == self.gids {
            f.write_str(&list(&self.uids))
        } else {
            write!(f, "uids {} gids {}", list(&self.uids), list(&self.gids))
        }
    }
}

fn look_up(extents: &[Extent], id: u32, sides: impl Fn(&Extent) -> (u32, u32)) -> Option<u32> {
    extents.iter().find_map(|extent| {
        let (from, to) = sides(extent);
        let offset = id.checked_sub(from).filter(|offset| *offset < extent.count)?;
        to.checked_add(offset).filter(|id| *id != NO_ID)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lxc_lines_are_read_and_written() {
        let mut map = Map::default();
        map.add("u 0 100000 65536").unwrap();
        map.add("g:0:200000:10").unwrap();
        assert_eq!(map.to_host(IdKind::Uid, 27), Some(100_027));
        assert_eq!(map.to_host(IdKind::Gid, 10), None);
        assert_eq!(map.to_container(IdKind::Gid, 200_009), Some(9));
        assert_eq!(map.to_host(IdKind::Uid, NO_ID), None);
        assert_eq!(map.lxc_lines(), "lxc.idmap = u 0 100000 65536\nlxc.idmap = g 0 200000 10\n");
        assert_eq!(map.to_string(), "uids 0:100000:65536 gids 0:200000:10");
        for bad in ["", "u 0 1", "x 0 1 1", "u 0 1 0", "u 5 7 9 1", "u 0 5 1", "u 65536 100001 1", "u 0 4294967295 1"] {
            assert!(map.clone().add(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back_is_the_same_id(id: u32, outside in 0..u32::MAX, count in 1..u32::MAX) {
            let map = Map::run(outside, outside, count);
            if let Some(host) = map.to_host(IdKind::Uid, id) {
                prop_assert_eq!(map.to_container(IdKind::Uid, host), Some(id));
            }
        }
    }
}
