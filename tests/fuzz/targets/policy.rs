//! The decision: a map is granted only when every id outside is granted by a line or is the caller's own, nothing
//! overlaps, and the text is what the kernel takes.
#![no_main]

use std::collections::BTreeSet;

use helper::policy::{Facts, MAX_EXTENTS, MAX_TEXT, decide};
use helper::range::{Extent, IdKind};
use helper::subid::{Coverage, Owner};
use helper::target::Ids;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [flags, rest @ ..] = data else { return };
    let kind = if flags & 1 == 0 { IdKind::Uid } else { IdKind::Gid };
    let caller = Ids { uid: 101, gid: 102 };
    let target = if flags & 2 == 0 { caller } else { Ids { uid: 101, gid: 103 } };
    let account_gid = if flags & 4 == 0 { Some(102) } else { Some(7) };
    let aux_groups = flags & 8 != 0;
    let no_file = (flags & 16 != 0).then_some("no file");
    let lines = usize::from(flags >> 5);
    let mut extents = Vec::new();
    let mut allowed = BTreeSet::new();
    let mut file = Vec::new();
    // Small numbers, so that ranges meet.
    for (index, triple) in rest.chunks_exact(3).enumerate() {
        let [inside, outside, count] = [triple[0], triple[1], triple[2] % 16].map(u32::from);
        if index < lines {
            file.push(format!("u:{outside}:{count}"));
            allowed.extend(outside..outside + count);
        } else if count > 0 {
            extents.push(Extent { inside, outside, count });
        }
    }
    if extents.is_empty() {
        return;
    }
    let owner = Owner::new(101, &[b"u".to_vec()]);
    let mut coverage = Coverage::new(&extents);
    for (number, line) in file.iter().enumerate() {
        coverage.line(number as u64 + 1, line.as_bytes(), &owner);
    }
    // "0" alone is a number, but "007" is octal to some, so the lines above are plain by construction.
    let facts = Facts {
        kind,
        caller,
        caller_name: "u",
        account_gid,
        aux_groups,
        target,
        target_name: "7",
        coverage: &coverage,
        no_file,
    };
    let own = if kind == IdKind::Uid { 101 } else { 102 };
    let mut by_file = false;
    let mut wanted = target == caller && (account_gid == Some(102) || aux_groups);
    let (mut inside, mut outside) = (BTreeSet::new(), BTreeSet::new());
    for extent in &extents {
        let granted =
            no_file.is_none() && (extent.outside..extent.outside + extent.count).all(|id| allowed.contains(&id));
        by_file |= granted;
        wanted &= granted || (extent.count == 1 && extent.outside == own);
        for id in 0..extent.count {
            wanted &= inside.insert(extent.inside + id) && outside.insert(extent.outside + id);
        }
    }
    let text: String =
        extents.iter().map(|extent| format!("{} {} {}\n", extent.inside, extent.outside, extent.count)).collect();
    wanted &= extents.len() <= MAX_EXTENTS && text.len() < MAX_TEXT;
    match decide(&extents, &facts) {
        Ok(verdict) => {
            assert!(wanted, "granted against the rules: {extents:?} {file:?}");
            assert_eq!(verdict.text, text);
            assert_eq!(verdict.deny_setgroups, kind == IdKind::Gid && !by_file);
        }
        Err(refusal) => assert!(!wanted, "refused against the rules: {refusal:?}"),
    }
});
