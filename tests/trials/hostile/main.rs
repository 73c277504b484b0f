//! A hostile caller gets nothing: whatever he does to newuidmap and newgidmap, the maps are written whole or not at
//! all, and only what is granted.

mod caller;
mod faults;
mod signals;

use std::process::ExitCode;

use tests::{Answer, Kind, target};

fn main() -> ExitCode {
    let modules = [caller::trials, signals::trials, faults::trials];
    tests::main(modules.iter().flat_map(|trials| trials()).collect())
}

/// A request that is granted, and that touches setgroups in newgidmap only when `own` says so.
pub struct Request {
    /// Words of the request.
    pub triples: String,
    /// Whether it maps the caller's own id alone.
    pub own: bool,
}

impl Request {
    /// A granted range, and the caller's own id.
    pub fn both(kind: Kind) -> [Self; 2] {
        let own = format!("0 {} 1", kind.own(tests::ALICE));
        [Self { triples: "0 100000 10 10 100010 5".to_owned(), own: false }, Self { triples: own, own: true }]
    }

    /// The target's map is whole or empty, setgroups is as it should be, and success means whole.
    #[track_caller]
    pub fn all_or_nothing(&self, answer: &Answer, why: &str) {
        self.target_is_sound(answer.kind, &answer.target, why);
        assert!(!answer.outcome.dumped_core(), "{why}: a core file");
        if answer.outcome.code() == Some(0) {
            assert_eq!(
                answer.target.map(answer.kind),
                tests::call::parse(&self.triples),
                "{why}: success means written"
            );
        }
    }

    /// The target's part of [`Request::all_or_nothing`].
    #[track_caller]
    pub fn target_is_sound(&self, kind: Kind, target: &target::Target, why: &str) {
        let map = target.map(kind);
        assert!(map.is_empty() || map == tests::call::parse(&self.triples), "{why}: a partial map {map:?}");
        if kind == Kind::Gid && self.own {
            // Denied first, then written: a call that ends in between leaves the stricter state.
            assert!(map.is_empty() || target.setgroups() == "deny", "{why}: a self map with setgroups allowed");
        } else {
            assert_eq!(target.setgroups(), "allow", "{why}");
        }
        let other = if kind == Kind::Uid { Kind::Gid } else { Kind::Uid };
        assert!(target.map(other).is_empty(), "{why}: the other map");
    }
}
