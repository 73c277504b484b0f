//! /etc/cgdelegate.conf and cgdelegate's arguments, separated by a NUL byte: whatever they are, nobody gets more than the
//! line that decides says, and every byte of an accepted file is accounted for.
#![no_main]

use cgdelegate::config::{self, Key, Value};
use cgdelegate::policy::{Caller, Facts, decide, entry};
use cgdelegate::request::{Name, Request, parse};
use libfuzzer_sys::fuzz_target;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let file = parts.next().unwrap_or_default();
    let words: Vec<OsString> = parts.map(|word| OsString::from_vec(word.to_vec())).collect();
    let request = parse(words);
    if let Ok(Request::Run { name, .. } | Request::Create { name, .. } | Request::Delete { name, .. }) = &request {
        assert_eq!(Name::new(name.as_str()).as_ref(), Ok(name));
        assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'));
    }
    let Ok(config) = config::parse(file) else { return };
    assert!(file.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b' '..=b'~')));
    for part in config.base.iter().flatten() {
        assert!(!part.is_empty() && !part.contains('/') && !part.starts_with('.'));
    }
    let names = ["alice".to_owned()];
    let caller = Caller { uid: 1001, gid: 1101, names: &names, gids: &[1101, 1150], shown: "alice" };
    let Some(line) = entry(&config, &caller, |_| vec![1150]) else { return };
    let ask = match request {
        Ok(Request::Run { ask, .. } | Request::Create { ask, .. } | Request::Check { ask } | Request::Attach { ask, .. }) => ask,
        _ => return,
    };
    let facts = Facts {
        caller: caller.clone(),
        entry: Some(line),
        file_exists: true,
        unified: true,
        available: &line.controllers,
        subordinate_gid: Some(100_000),
        uid_is_granted: false,
        gid_is_granted: false,
    };
    let Ok(grant) = decide(&ask, &facts) else { return };
    assert!(grant.max > 0 && grant.max == line.max && grant.max <= config::MAX_NODES);
    assert!(grant.controllers.iter().all(|controller| line.controllers.contains(controller)));
    for limit in &grant.node {
        if let Some(ceiling) = line.limit(limit.key) {
            assert!(limit.value.within(ceiling));
        }
    }
    for key in [Key::MaxDescendants, Key::MaxDepth] {
        for limits in [&grant.total, &grant.node] {
            assert!(limits.iter().any(|limit| limit.key == key && matches!(limit.value, Value::Number(1..))));
        }
    }
    assert!(grant.owner.uid == 1001 && (!grant.owner.group_writes || grant.owner.gid == 100_000));
});
