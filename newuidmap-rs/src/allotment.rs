//! A user's whole allotment of subordinate ids, and the map made of it. For programs without privilege.

#![forbid(unsafe_code)]

use crate::caller::{Account, ask_getent, look_up, plain_number, subid_source};
use crate::range::{Extent, IdKind, IdRange};
use crate::subid::{self, Line, parse_line};
use crate::trusted::{Distrust, Trusted};
use core::fmt;
use core::ops::ControlFlow;

/// Number of ids that a line in the messages proposes: what distributions allot to a user.
const USUAL_COUNT: u32 = 65536;

/// Why an allotment cannot be told: operation, object, cause and cure in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllotmentError(pub String);

impl fmt::Display for AllotmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AllotmentError {}

/// A user who may own subordinate ids.
#[derive(Clone, Debug)]
pub struct Owner {
    uid: u32,
    account: Account,
}

impl Owner {
    /// The user with this uid, with the names that /etc/passwd or else getent(1) gives it.
    ///
    /// # Errors
    /// /etc/passwd cannot be read or must not be believed. A uid without a name is no error.
    pub fn of_uid(uid: u32) -> Result<Self, AllotmentError> {
        let mut account = look_up(uid).map_err(|failure| AllotmentError(failure.text))?;
        if account.names.is_empty()
            && let Ok(Some((name, its_uid, gid))) = ask_getent(&uid.to_string(), false)
            && its_uid == uid
        {
            account = Account { names: vec![name], gid: Some(gid) };
        }
        Ok(Self { uid, account })
    }

    /// The user with this name or, when it is made of digits, this uid.
    ///
    /// # Errors
    /// There is no such user.
    pub fn of_word(word: &str) -> Result<Self, AllotmentError> {
        if let Some(uid) = plain_number(word.as_bytes()) {
            return Self::of_uid(uid);
        }
        let uid = crate::caller::uid_of_name(word.as_bytes()).map_err(|failure| AllotmentError(failure.text))?;
        if let Some(uid) = uid {
            return Self::of_uid(uid);
        }
        match ask_getent(word, false).map_err(|failure| AllotmentError(failure.text))? {
            Some((_, uid, _)) => Self::of_uid(uid),
            None => Err(AllotmentError(format!("no such user: {word}"))),
        }
    }

    /// The uid.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// The first name, or the uid in digits.
    #[must_use]
    pub fn shown(&self) -> String {
        self.account.shown(self.uid)
    }
}

/// Every subordinate range of `owner`, in file order. Empty: nothing is granted, see [`none_granted`].
///
/// # Errors
/// The file is missing, cannot be read or must not be believed, or nsswitch.conf names another source.
pub fn ranges(kind: IdKind, owner: &Owner) -> Result<Vec<IdRange>, AllotmentError> {
    let path = kind.subid_path();
    subid_source().map_err(AllotmentError)?;
    let mut file = Trusted::open(path).map_err(|error| match error {
        Distrust::Missing => AllotmentError(format!("{path} does not exist: {}", cure(kind, owner))),
        Distrust::Refused(why) => AllotmentError(why),
    })?;
    let line_owner = subid::Owner::new(owner.uid, &owner.account.names);
    let mut found = Vec::new();
    file.each_line(|_, line| {
        if let Line::Grant(ids) = parse_line(line, &line_owner) {
            found.push(ids);
        }
        ControlFlow::Continue(())
    })
    .map_err(|why| AllotmentError(format!("read {path}: {why}")))?;
    Ok(found)
}

/// What to say to a user without subordinate ids: the line that is missing.
#[must_use]
pub fn none_granted(kind: IdKind, owner: &Owner) -> String {
    format!("{} grants {} nothing: {}", kind.subid_path(), owner.shown(), cure(kind, owner))
}

fn cure(kind: IdKind, owner: &Owner) -> String {
    let (path, who) = (kind.subid_path(), owner.shown());
    format!(
        "an administrator can add the line \"{who}:START:{USUAL_COUNT}\" to {path}, START being the first of {USUAL_COUNT} ids that nobody else has (or run usermod --add-sub{}s)",
        kind.word()
    )
}

/// The map of a whole allotment: ids from 0 on inside, in the order of the ranges outside. Ids that are granted twice
/// are mapped once, and neighbours become one extent.
#[must_use]
pub fn plan(ranges: &[IdRange]) -> Vec<Extent> {
    let mut pieces: Vec<IdRange> = Vec::new();
    for range in ranges {
        let mut fresh = vec![*range];
        for taken in &pieces {
            fresh = fresh.into_iter().flat_map(|r| <[Option<IdRange>; 2]>::from(r.minus(*taken))).flatten().collect();
        }
        for piece in fresh {
            match pieces.last_mut() {
                Some(last) if last.end() == piece.start() => {
                    *last = IdRange::between(last.start(), piece.end()).unwrap_or(*last);
                }
                _ => pieces.push(piece),
            }
        }
    }
    let mut inside = 0_u32;
    let mut extents = Vec::with_capacity(pieces.len());
    for piece in pieces {
        extents.push(Extent { inside, outside: piece.start(), count: piece.count() });
        inside = inside.saturating_add(piece.count());
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn planned(ranges: &[(u32, u32)]) -> Vec<String> {
        let ranges: Vec<IdRange> = ranges.iter().map(|(start, count)| IdRange::new(*start, *count).unwrap()).collect();
        plan(&ranges).iter().map(Extent::to_string).collect()
    }

    #[test]
    fn neighbours_are_merged_and_doubles_mapped_once() {
        assert_eq!(planned(&[(100_000, 65536)]), ["0 100000 65536"]);
        assert_eq!(planned(&[(100, 10), (110, 10), (50, 5)]), ["0 100 20", "20 50 5"]);
        assert_eq!(planned(&[(100, 10), (105, 10), (100, 10)]), ["0 100 15"]);
        assert_eq!(planned(&[(100, 10), (90, 30)]), ["0 100 10", "10 90 10", "20 110 10"]);
        assert!(planned(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_plan_maps_each_granted_id_once(ranges in proptest::collection::vec((0..100_u32, 1..20_u32), 0..8)) {
            let granted: std::collections::BTreeSet<u32> = ranges.iter().flat_map(|(s, c)| *s..s + c).collect();
            let ranges: Vec<IdRange> = ranges.iter().map(|(s, c)| IdRange::new(*s, *c).unwrap()).collect();
            let extents = plan(&ranges);
            let outside: Vec<u32> = extents.iter().flat_map(|e| e.outside..e.outside + e.count).collect();
            let inside: Vec<u32> = extents.iter().flat_map(|e| e.inside..e.inside + e.count).collect();
            prop_assert_eq!(outside.iter().copied().collect::<std::collections::BTreeSet<_>>(), granted);
            prop_assert_eq!(inside, (0..outside.len() as u32).collect::<Vec<_>>());
        }
    }
}
