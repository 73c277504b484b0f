//! newuidmap and newgidmap: may this caller write this map? Pure: no system call, no clock, no global.

#![forbid(unsafe_code)]

use crate::range::{Extent, IdKind, IdRange};
use crate::subid::Coverage;
use crate::target::Ids;
use core::fmt;

/// Most extents that the kernel takes (UID_GID_MAP_MAX_EXTENTS, user_namespaces(7)).
pub const MAX_EXTENTS: usize = 340;

/// The map's text must be shorter than this, in bytes (map_write() of kernel/user_namespace.c).
pub const MAX_TEXT: usize = 4096;

/// Everything that a decision depends on.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Which map.
    pub kind: IdKind,
    /// Real ids of the caller.
    pub caller: Ids,
    /// The caller's name, or the uid in digits, for messages.
    pub caller_name: &'a str,
    /// The caller's gid by passwd(5); `None` when the caller has no entry.
    pub account_gid: Option<u32>,
    /// Whether login.defs(5) lets a caller with another real gid than that.
    pub aux_groups: bool,
    /// Effective ids of the target.
    pub target: Ids,
    /// The target as the caller named it.
    pub target_name: &'a str,
    /// What /etc/subuid or /etc/subgid grants of the request.
    pub coverage: &'a Coverage,
    /// Why the file is not consulted or not believed; `None` when it was read.
    pub no_file: Option<&'a str>,
}

/// Why one extent is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The file grants it; the number of the first line that does.
    Granted(u64),
    /// It maps nothing but the caller's own id.
    Own,
}

/// A map that may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The text for the map file.
    pub text: String,
    /// For each extent in order, why.
    pub grounds: Vec<Ground>,
    /// Whether `setgroups` has to be denied first: nothing in a gid map comes from the file (CVE-2018-7169).
    pub deny_setgroups: bool,
}

/// Why a map may not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The target is another user's, or the caller runs with a group that is not his by passwd(5).
    Owner {
        /// Real ids of the caller.
        caller: Ids,
        /// Effective ids of the target.
        target: Ids,
        /// passwd(5)'s gid of the caller.
        account_gid: Option<u32>,
        /// Target as named.
        name: String,
    },
    /// An extent is neither granted nor the caller's own id.
    Range {
        /// Which map.
        kind: IdKind,
        /// The extent.
        extent: Extent,
        /// What is granted, or why the file grants nothing.
        why: String,
    },
    /// Two extents share an id.
    Overlap {
        /// Which map.
        kind: IdKind,
        /// The first.
        one: Extent,
        /// The second.
        other: Extent,
        /// Where: `inside` or `outside`.
        side: &'static str,
    },
    /// More than [`MAX_EXTENTS`].
    TooMany(IdKind, usize),
    /// Text of [`MAX_TEXT`] bytes or more.
    TooLong(IdKind, usize),
}

/// Decides, in the order of the originals: owner, then each extent in turn, then what the kernel would refuse.
///
/// # Errors
/// The first [`Refusal`].
pub fn decide(request: &[Extent], facts: &Facts<'_>) -> Result<Verdict, Refusal> {
    let group_is_theirs = facts.account_gid.is_none_or(|gid| gid == facts.caller.gid) || facts.aux_groups;
    if facts.caller != facts.target || !group_is_theirs {
        return Err(Refusal::Owner {
            caller: facts.caller,
            target: facts.target,
            account_gid: facts.account_gid,
            name: facts.target_name.to_owned(),
        });
    }
    let grounds =
        request.iter().enumerate().map(|(at, extent)| ground(at, *extent, facts)).collect::<Result<Vec<_>, _>>()?;
    let text: String = request.iter().map(|extent| format!("{extent}\n")).collect();
    fits(facts.kind, request, &text)?;
    let deny_setgroups = facts.kind == IdKind::Gid && grounds.iter().all(|ground| *ground == Ground::Own);
    Ok(Verdict { text, grounds, deny_setgroups })
}

fn ground(at: usize, extent: Extent, facts: &Facts<'_>) -> Result<Ground, Refusal> {
    if facts.no_file.is_none()
        && facts.coverage.is_granted(at)
        && let Some(line) = facts.coverage.first_line(at)
    {
        return Ok(Ground::Granted(line));
    }
    let own = match facts.kind {
        IdKind::Uid => facts.caller.uid,
        IdKind::Gid => facts.caller.gid,
    };
    if extent.count == 1 && extent.outside == own {
        return Ok(Ground::Own);
    }
    let path = facts.kind.subid_path();
    let why = match facts.no_file {
        Some(why) => why.to_owned(),
        None => {
            let mut why = String::new();
            if facts.account_gid.is_none() {
                why.push_str("Cannot determine your user name. Only a line with your uid could grant it: ");
            }
            why.push_str(&facts.coverage.describe(path, facts.caller_name));
            for (line, reason) in facts.coverage.ignored.iter().take(2) {
                why.push_str(&format!("; line {line} is ignored: {reason}"));
            }
            why.push_str(if facts.coverage.grant_count > 0 {
                "; `idmap plan` prints a map of what is granted"
            } else {
                "; an administrator can add a line NAME:START:65536 (usermod --add-subuids, --add-subgids)"
            });
            why
        }
    };
    Err(Refusal::Range { kind: facts.kind, extent, why })
}

/// The kernel's own limits (new_idmap_permitted's callers in kernel/user_namespace.c), found before anything changes.
fn fits(kind: IdKind, request: &[Extent], text: &str) -> Result<(), Refusal> {
    if request.len() > MAX_EXTENTS {
        return Err(Refusal::TooMany(kind, request.len()));
    }
    for (side, range) in [("inside", Extent::inside as fn(Extent) -> Option<IdRange>), ("outside", Extent::outside)] {
        let mut sorted: Vec<(IdRange, Extent)> = request.iter().filter_map(|e| Some((range(*e)?, *e))).collect();
        sorted.sort_by_key(|(range, _)| *range);
        for pair in sorted.windows(2) {
            if let [(low, one), (high, other)] = pair
                && low.overlaps(*high)
            {
                return Err(Refusal::Overlap { kind, one: *one, other: *other, side });
            }
        }
    }
    if text.len() >= MAX_TEXT { Err(Refusal::TooLong(kind, text.len())) } else { Ok(()) }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { caller, target, account_gid, name } => owner_text(f, *caller, *target, *account_gid, name),
            Self::Range { kind, extent, why } => {
                let word = kind.word();
                let end = |start: u32| u64::from(start).saturating_add(u64::from(extent.count));
                write!(
                    f,
                    "{word} range [{}-{}) -> [{}-{}) not allowed: {why}",
                    extent.inside,
                    end(extent.inside),
                    extent.outside,
                    end(extent.outside)
                )
            }
            Self::Overlap { kind, one, other, side } => write!(
                f,
                "write to {} failed: Invalid argument: \"{one}\" and \"{other}\" overlap {side} the namespace; give each id once",
                kind.map_file()
            ),
            Self::TooMany(kind, count) => write!(
                f,
                "write to {} failed: Invalid argument: {count} ranges are more than the kernel's limit of {MAX_EXTENTS}; merge neighbours",
                kind.map_file()
            ),
            Self::TooLong(kind, bytes) => write!(
                f,
                "write to {} failed: Invalid argument: the map is {bytes} bytes long, and the kernel takes fewer than {MAX_TEXT}; merge neighbours",
                kind.map_file()
            ),
        }
    }
}

fn owner_text(
    f: &mut fmt::Formatter<'_>,
    caller: Ids,
    target: Ids,
    account_gid: Option<u32>,
    name: &str,
) -> fmt::Result {
    write!(
        f,
        "Target process is owned by a different user: uid:{} pw_uid:{} st_uid:{}, ",
        caller.uid, caller.uid, target.uid
    )?;
    match account_gid {
        Some(gid) => write!(f, "gid:{} pw_gid:{gid} st_gid:{}: ", caller.gid, target.gid)?,
        None => write!(f, "gid:{} pw_gid:- st_gid:{}: ", caller.gid, target.gid)?,
    }
    if caller.uid != target.uid && target.uid == 0 {
        write!(f, "process {name} is root's (a setuid program perhaps)")
    } else if caller.uid != target.uid {
        write!(f, "process {name} runs as uid {}, and only its owner may map it", target.uid)
    } else if caller.gid != target.gid {
        write!(
            f,
            "process {name} runs with gid {}, you with {}; or /proc is mounted with a gid= option",
            target.gid, caller.gid
        )
    } else {
        write!(
            f,
            "your group is not your primary one; leave newgrp's shell, or set GRANT_AUX_GROUP_SUBIDS yes in /etc/login.defs"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subid::Owner;
    use proptest::prelude::*;

    const ALICE: Ids = Ids { uid: 1001, gid: 1002 };

    fn extent(inside: u32, outside: u32, count: u32) -> Extent {
        Extent { inside, outside, count }
    }

    fn coverage(request: &[Extent], lines: &[&str]) -> Coverage {
        let mut coverage = Coverage::new(request);
        for (number, line) in lines.iter().enumerate() {
            coverage.line(number as u64 + 1, line.as_bytes(), &Owner::new(1001, &[b"alice".to_vec()]));
        }
        coverage
    }

    fn facts(kind: IdKind, coverage: &Coverage) -> Facts<'_> {
        Facts {
            kind,
            caller: ALICE,
            caller_name: "alice",
            account_gid: Some(1002),
            aux_groups: false,
            target: ALICE,
            target_name: "77",
            coverage,
            no_file: None,
        }
    }

    fn decided(kind: IdKind, request: &[Extent], lines: &[&str]) -> Result<Verdict, Refusal> {
        decide(request, &facts(kind, &coverage(request, lines)))
    }

    #[test]
    fn granted_and_own_ids_mix_and_setgroups_is_denied_only_for_own_ids() {
        let file = &["bob:1:9", "alice:100000:65536"];
        let lxc = [extent(0, 100_000, 1), extent(1001, 1002, 1)];
        let verdict = decided(IdKind::Gid, &lxc, file).unwrap();
        assert_eq!(verdict.grounds, [Ground::Granted(2), Ground::Own]);
        assert_eq!((verdict.text.as_str(), verdict.deny_setgroups), ("0 100000 1\n1001 1002 1\n", false));
        assert!(decided(IdKind::Gid, &[extent(0, 1002, 1)], file).unwrap().deny_setgroups);
        assert!(!decided(IdKind::Uid, &[extent(0, 1001, 1)], &[]).unwrap().deny_setgroups);
    }

    #[test]
    fn own_ids_are_one_id_of_the_right_kind() {
        for (kind, request) in [
            (IdKind::Uid, extent(0, 1002, 1)),
            (IdKind::Gid, extent(0, 1001, 1)),
            (IdKind::Uid, extent(0, 1001, 2)),
            (IdKind::Uid, extent(0, 1000, 2)),
        ] {
            assert!(matches!(decided(kind, &[request], &[]), Err(Refusal::Range { .. })), "{request:?}");
        }
    }

    #[test]
    fn the_first_failing_extent_is_reported_in_the_text_that_clients_look_for() {
        let refusal =
            decided(IdKind::Uid, &[extent(0, 1001, 1), extent(1, 5, 3)], &["alice:100000:65536"]).unwrap_err();
        assert!(
            refusal.to_string().starts_with(
                "uid range [1-4) -> [5-8) not allowed: /etc/subuid grants alice 100000-165535 (line 1); `idmap plan`"
            ),
            "{refusal}"
        );
    }

    #[test]
    fn a_file_that_is_not_believed_grants_nothing_but_own_ids() {
        let request = [extent(0, 100_000, 1)];
        let coverage = coverage(&request, &["alice:100000:65536"]);
        let facts = Facts { no_file: Some("it is a FIFO"), ..facts(IdKind::Uid, &coverage) };
        assert!(decide(&request, &facts).unwrap_err().to_string().contains("it is a FIFO"));
        assert!(decide(&[extent(0, 1001, 1)], &facts).is_ok());
    }

    #[test]
    fn the_target_must_be_the_callers_in_uid_and_gid() {
        let request = [extent(0, 1001, 1)];
        let none = Coverage::new(&request);
        let base = || facts(IdKind::Uid, &none);
        for bad in [
            Facts { target: Ids { uid: 0, gid: 1002 }, ..base() },
            Facts { target: Ids { uid: 1001, gid: 0 }, ..base() },
            Facts { account_gid: Some(5), ..base() },
        ] {
            let text = decide(&request, &bad).unwrap_err().to_string();
            assert!(
                text.starts_with("Target process is owned by a different user: uid:1001 pw_uid:1001 st_uid:"),
                "{text}"
            );
        }
        assert!(decide(&request, &Facts { account_gid: Some(5), aux_groups: true, ..base() }).is_ok());
        assert!(decide(&request, &Facts { account_gid: None, ..base() }).is_ok());
        let root = Ids { uid: 0, gid: 0 };
        assert!(decide(&request, &Facts { caller: root, account_gid: Some(0), ..base() }).is_err());
    }

    #[test]
    fn what_the_kernel_refuses_is_refused_first() {
        let all = &["alice:0:4294967295"];
        for (request, text) in [
            (vec![extent(0, 10, 5), extent(4, 100, 1)], "overlap inside"),
            (vec![extent(0, 10, 5), extent(9, 14, 1)], "overlap outside"),
            ((0..341).map(|i| extent(i * 2, i * 2, 1)).collect(), "341 ranges"),
            ((0..330).map(|i| extent(i, 100_000 + 2 * i, 1)).collect(), "bytes long"),
        ] {
            let refusal = decided(IdKind::Uid, &request, all).unwrap_err().to_string();
            assert!(
                refusal.contains(text) && refusal.starts_with("write to uid_map failed: Invalid argument: "),
                "{refusal}"
            );
        }
        let most: Vec<Extent> = (0..340).map(|i| extent(i, i * 2, 1)).collect();
        assert!(decided(IdKind::Uid, &most, all).is_ok());
    }

    proptest! {
        #[test]
        fn only_granted_or_own_ids_are_ever_mapped(
            request in proptest::collection::vec((0..50_u32, 990..1010_u32, 1..6_u32), 1..4),
            lines in proptest::collection::vec((990..1010_u32, 1..6_u32), 0..4),
        ) {
            let request: Vec<Extent> = request.into_iter().map(|(i, o, c)| extent(i, o, c)).collect();
            let text: Vec<String> = lines.iter().map(|(start, count)| format!("alice:{start}:{count}")).collect();
            let text: Vec<&str> = text.iter().map(String::as_str).collect();
            let granted = |id: u32| lines.iter().any(|(start, count)| (*start..start + count).contains(&id));
            match decided(IdKind::Uid, &request, &text) {
                Ok(verdict) => {
                    for extent in &request {
                        for id in extent.outside..extent.outside + extent.count {
                            prop_assert!(granted(id) || (id == ALICE.uid && extent.count == 1));
                        }
                    }
                    prop_assert_eq!(verdict.grounds.len(), request.len());
                }
                Err(Refusal::Range { extent, .. }) => {
                    prop_assert!((extent.outside..extent.outside + extent.count).any(|id| !granted(id)));
                }
                Err(Refusal::Overlap { one, other, .. }) => {
                    prop_assert!(
                        one.inside().unwrap().overlaps(other.inside().unwrap())
                            || one.outside().unwrap().overlaps(other.outside().unwrap())
                    );
                }
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
