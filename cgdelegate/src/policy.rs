//! May this caller have this cgroup, with what, and under which limits? Pure: no system call, no clock, no global.

#![forbid(unsafe_code)]

use crate::config::{Config, Controller, DEFAULT_DEPTH, DEFAULT_DESCENDANTS, Entry, Key, Limit, PATH, Value, Who};
use crate::request::Ask;
use core::fmt;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller<'a> {
    /// Real uid.
    pub uid: u32,
    /// Real gid.
    pub gid: u32,
    /// Names of the uid by /etc/passwd.
    pub names: &'a [String],
    /// Real and supplementary gids.
    pub gids: &'a [u32],
    /// The name, or the uid in digits, for messages.
    pub shown: &'a str,
}

/// Everything else that a decision depends on.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Who asks.
    pub caller: Caller<'a>,
    /// The line that decides about him.
    pub entry: Option<&'a Entry>,
    /// Whether there is a file at all.
    pub file_exists: bool,
    /// Whether the host has a cgroup2 hierarchy.
    pub unified: bool,
    /// What the host can give: controllers of cgroup2, mounted v1 hierarchies, named ones that are there or can be made.
    pub available: &'a [Controller],
    /// The first gid that /etc/subgid grants the caller.
    pub subordinate_gid: Option<u32>,
    /// Whether the asked uid is one that /etc/subuid grants the caller.
    pub uid_is_granted: bool,
    /// Whether the asked gid is one that /etc/subgid grants the caller.
    pub gid_is_granted: bool,
}

/// Whose the cgroup becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Owner of the directory and of each file on the closed list.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Mode 0775 and group-writable files; only ever for a gid that is the caller's alone, a subordinate one.
    pub group_writes: bool,
}

/// What is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The line that decided.
    pub line: u64,
    /// How many cgroups the caller may have at a time.
    pub max: u32,
    /// What to delegate, in the order of the line.
    pub controllers: Vec<Controller>,
    /// Ceilings for the caller's total, on the directory above the cgroup.
    pub total: Vec<Limit>,
    /// Limits of the one cgroup.
    pub node: Vec<Limit>,
    /// Whose it becomes.
    pub owner: Ownership,
}

/// Why nothing is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Cause and cure in words.
    pub why: String,
    /// Exit status: 77 not permitted, 69 the host lacks it.
    pub status: u8,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

const UNAVAILABLE: u8 = 69;
const NOT_PERMITTED: u8 = 77;

/// The first line about the caller. `gid_of` tells the gids that /etc/group gives to a name.
pub fn entry<'a>(config: &'a Config, caller: &Caller<'_>, gid_of: impl Fn(&str) -> Vec<u32>) -> Option<&'a Entry> {
    config.entries.iter().find(|entry| match &entry.who {
        Who::Uid(uid) => *uid == caller.uid,
        Who::Gid(gid) => caller.gids.contains(gid),
        Who::Name(name) => caller.names.contains(name),
        Who::Group(name) => gid_of(name).iter().any(|gid| caller.gids.contains(gid)),
    })
}

/// Decides.
///
/// # Errors
/// [`Refusal`].
pub fn decide(ask: &Ask, facts: &Facts<'_>) -> Result<Grant, Refusal> {
    let entry = facts.entry.ok_or_else(|| no_entry(facts))?;
    if entry.max == 0 {
        return Err(refuse(format!("{PATH}:{} refuses {} cgroups", entry.line, facts.caller.shown)));
    }
    let mut controllers = controllers(ask, entry, facts)?;
    let mut total = Vec::new();
    for limit in &entry.limits {
        if matches!(limit.key, Key::MaxDescendants | Key::MaxDepth) {
            if !facts.unified {
                return Err(lacking(limit.key, entry, "this host has no cgroup2 hierarchy"));
            }
            continue;
        }
        let carriers: Vec<Controller> =
            limit.key.carriers().into_iter().filter(|c| facts.available.contains(c)).collect();
        if carriers.is_empty() {
            return Err(lacking(limit.key, entry, &carrier_hint(limit.key)));
        }
        // A smaller ask must not get rid of a ceiling.
        for carrier in carriers.into_iter().filter(|c| entry.controllers.contains(c)) {
            if !controllers.contains(&carrier) {
                controllers.push(carrier);
            }
        }
        if !limit.key.carriers().iter().any(|carrier| controllers.contains(carrier)) {
            return Err(lacking(limit.key, entry, &carrier_hint(limit.key)));
        }
        total.push(*limit);
    }
    if controllers.is_empty() && !facts.unified {
        return Err(Refusal {
            why: format!(
                "nothing to delegate: this host has no cgroup2 hierarchy, and none of what {PATH}:{} grants is here; grant v1:NAME for hierarchies of /proc/self/cgroup",
                entry.line
            ),
            status: UNAVAILABLE,
        });
    }
    let mut node = Vec::new();
    for limit in &ask.limits {
        asked_limit(*limit, entry, facts, &controllers)?;
        if !matches!(limit.key, Key::MaxDescendants | Key::MaxDepth) {
            node.push(*limit);
        }
    }
    // Nodes themselves are not counted: a user with many of them can fill each as far as the line says.
    let structure = |key: Key, default: u64, above: u64| {
        let ceiling = match entry.limit(key) {
            Some(Value::Number(number)) => number,
            _ => default,
        };
        let asked = ask.limits.iter().find(|limit| limit.key == key).map(|limit| limit.value);
        let number = match asked {
            Some(Value::Number(number)) => number.min(ceiling),
            _ => ceiling,
        };
        let limit = |number| Limit { key, value: Value::Number(number) };
        (limit(ceiling.saturating_add(above)), limit(number))
    };
    if facts.unified {
        let (descendants, of_node) = structure(Key::MaxDescendants, DEFAULT_DESCENDANTS, u64::from(entry.max));
        let (depth, depth_of_node) = structure(Key::MaxDepth, DEFAULT_DEPTH, 1);
        total.splice(0..0, [descendants, depth]);
        node.splice(0..0, [of_node, depth_of_node]);
    }
    Ok(Grant { line: entry.line, max: entry.max, controllers, total, node, owner: ownership(ask, facts)? })
}

fn controllers(ask: &Ask, entry: &Entry, facts: &Facts<'_>) -> Result<Vec<Controller>, Refusal> {
    let Some(asked) = &ask.controllers else {
        return Ok(entry.controllers.iter().filter(|c| facts.available.contains(c)).cloned().collect());
    };
    for controller in asked {
        if !entry.controllers.contains(controller) {
            let granted: Vec<String> = entry.controllers.iter().map(Controller::to_string).collect();
            return Err(refuse(format!(
                "{PATH}:{} grants {} no {controller}, only {}",
                entry.line,
                facts.caller.shown,
                if granted.is_empty() { "-".to_owned() } else { granted.join(",") }
            )));
        }
        if !facts.available.contains(controller) {
            let why = match controller {
                Controller::Unified(name) => format!(
                    "this host's cgroup2 has no {name}: it is bound to a v1 hierarchy, not built in, or there is no cgroup2 (see cgroup.controllers)"
                ),
                _ => format!("this host has no {controller} hierarchy mounted"),
            };
            return Err(Refusal { why, status: UNAVAILABLE });
        }
    }
    Ok(asked.clone())
}

fn asked_limit(limit: Limit, entry: &Entry, facts: &Facts<'_>, controllers: &[Controller]) -> Result<(), Refusal> {
    let structural = matches!(limit.key, Key::MaxDescendants | Key::MaxDepth);
    let default = match limit.key {
        Key::MaxDescendants => Some(Value::Number(DEFAULT_DESCENDANTS)),
        Key::MaxDepth => Some(Value::Number(DEFAULT_DEPTH)),
        _ => None,
    };
    if let Some(ceiling) = entry.limit(limit.key).or(default)
        && !limit.value.within(ceiling)
    {
        return Err(refuse(format!(
            "{}={}: {PATH}:{} allows {} at most {ceiling}",
            limit.key.word(),
            limit.value,
            entry.line,
            facts.caller.shown
        )));
    }
    if structural {
        return if facts.unified {
            Ok(())
        } else {
            Err(lacking(limit.key, entry, "this host has no cgroup2 hierarchy"))
        };
    }
    let carriers = limit.key.carriers();
    if carriers.iter().any(|carrier| controllers.contains(carrier)) {
        return Ok(());
    }
    if carriers.iter().any(|carrier| entry.controllers.contains(carrier)) {
        return Err(lacking(limit.key, entry, &carrier_hint(limit.key)));
    }
    let words: Vec<String> = carriers.iter().map(Controller::to_string).collect();
    Err(refuse(format!(
        "{} needs the controller {}, which {PATH}:{} does not grant {}",
        limit.key.word(),
        words.join(" or "),
        entry.line,
        facts.caller.shown
    )))
}

/// The caller and his first subordinate group, or what he asked for, if that is his.
fn ownership(ask: &Ask, facts: &Facts<'_>) -> Result<Ownership, Refusal> {
    let caller = &facts.caller;
    let foreign = |kind: &str, id: u32| {
        refuse(format!("owner {id}: it is neither your own {kind} nor one that /etc/sub{kind} grants {}", caller.shown))
    };
    let uid = match ask.owner {
        Some((uid, _)) if uid == caller.uid || facts.uid_is_granted => uid,
        Some((uid, _)) => return Err(foreign("uid", uid)),
        None => caller.uid,
    };
    let gid = match ask.owner.and_then(|(_, gid)| gid) {
        Some(gid) if gid == caller.gid || facts.gid_is_granted => Some(gid),
        Some(gid) => return Err(foreign("gid", gid)),
        None => facts.subordinate_gid,
    };
    // The caller's own group may have other members: it never gets to write.
    let subordinate = gid.filter(|gid| *gid != caller.gid && !caller.gids.contains(gid));
    Ok(Ownership { uid, gid: gid.unwrap_or(caller.gid), group_writes: subordinate.is_some() })
}

fn no_entry(facts: &Facts<'_>) -> Refusal {
    let caller = &facts.caller;
    let cause = if facts.file_exists { "has no line for you" } else { "does not exist" };
    refuse(format!(
        "{PATH} {cause}: an administrator can add \"{} cpu,memory,pids,name=systemd 4 pids.max=1024\" (see cgdelegate.conf(5))",
        caller.shown
    ))
}

fn lacking(key: Key, entry: &Entry, cause: &str) -> Refusal {
    Refusal { why: format!("{} of {PATH}:{} cannot be set: {cause}", key.word(), entry.line), status: UNAVAILABLE }
}

fn carrier_hint(key: Key) -> String {
    let carriers = key.carriers();
    let words: Vec<String> = carriers.iter().map(Controller::to_string).collect();
    format!(
        "this host has no {} that the line grants (a controller bound to v1 is missing from cgroup2; see cgroup.controllers and /proc/self/cgroup)",
        words.join(" or ")
    )
}

fn refuse(why: String) -> Refusal {
    Refusal { why, status: NOT_PERMITTED }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{parse, parse_controllers, parse_limit};
    use proptest::prelude::*;

    const NAMES: &[String] = &[];

    fn alice() -> Caller<'static> {
        Caller { uid: 1001, gid: 1101, names: NAMES, gids: &[1101, 1150], shown: "alice" }
    }

    fn facts<'a>(entry: Option<&'a Entry>, available: &'a [Controller]) -> Facts<'a> {
        Facts {
            caller: alice(),
            entry,
            file_exists: true,
            unified: true,
            available,
            subordinate_gid: Some(100_000),
            uid_is_granted: false,
            gid_is_granted: false,
        }
    }

    fn line(text: &str) -> Entry {
        parse(text.as_bytes()).unwrap().entries.remove(0)
    }

    fn list(text: &str) -> Vec<Controller> {
        parse_controllers(text).unwrap()
    }

    #[test]
    fn the_first_line_that_matches_decides() {
        let config = parse(b"bob - 1\n@1150 - 2\n1001 - 3\nalice - 4\n@staff - 5").unwrap();
        let names = ["alice".to_owned()];
        let none = |_: &str| Vec::new();
        let caller = |names, gids| Caller { uid: 1001, gid: 1101, names, gids, shown: "alice" };
        assert_eq!(entry(&config, &caller(&names, &[1101, 1150]), none).unwrap().max, 2);
        assert_eq!(entry(&config, &caller(&names, &[1101]), none).unwrap().max, 3);
        let other = Caller { uid: 7, gid: 7, names: &names, gids: &[7], shown: "alice" };
        assert_eq!(entry(&config, &other, none).unwrap().max, 4);
        let other = Caller { uid: 7, gid: 7, names: &[], gids: &[7, 50], shown: "7" };
        assert_eq!(entry(&config, &other, |name| if name == "staff" { vec![50] } else { vec![] }).unwrap().max, 5);
        assert_eq!(entry(&config, &other, none), None);
    }

    #[test]
    fn nothing_is_granted_without_a_line_or_with_a_zero() {
        let error = decide(&Ask::default(), &facts(None, &[])).unwrap_err();
        assert_eq!(error.status, 77);
        assert!(error.why.contains("has no line for you") && error.why.contains("\"alice cpu,"), "{error}");
        let missing = Facts { file_exists: false, ..facts(None, &[]) };
        assert!(decide(&Ask::default(), &missing).unwrap_err().why.contains("does not exist"));
        let zero = line("alice pids 0");
        assert_eq!(decide(&Ask::default(), &facts(Some(&zero), &list("pids"))).unwrap_err().status, 77);
    }

    #[test]
    fn what_is_not_here_is_left_out_unless_asked_for_or_needed_for_a_ceiling() {
        let entry = line("alice cpu,memory,pids,v1:pids,name=systemd 4 pids.max=10");
        let here = list("v1:pids,name=systemd");
        let grant = decide(&Ask::default(), &facts(Some(&entry), &here)).unwrap();
        assert_eq!(grant.controllers, list("v1:pids,name=systemd"));
        let ask = Ask { controllers: Some(list("memory")), ..Ask::default() };
        assert_eq!(decide(&ask, &facts(Some(&entry), &here)).unwrap_err().status, 69);
        let ask = Ask { controllers: Some(list("name=systemd")), ..Ask::default() };
        assert_eq!(decide(&ask, &facts(Some(&entry), &here)).unwrap().controllers, list("name=systemd,v1:pids"));
        let ask = Ask { controllers: Some(list("v1:freezer")), ..Ask::default() };
        assert_eq!(decide(&ask, &facts(Some(&entry), &here)).unwrap_err().status, 77);
        assert_eq!(decide(&Ask::default(), &facts(Some(&entry), &list("cpu"))).unwrap_err().status, 69);
    }

    #[test]
    fn descendants_and_depth_are_always_limited() {
        for (text, descendants, depth) in
            [("alice - 3", 1000, 16), ("alice - 3 cgroup.max.descendants=20 cgroup.max.depth=2", 20, 2)]
        {
            let entry = line(text);
            let grant = decide(&Ask::default(), &facts(Some(&entry), &[])).unwrap();
            let number = |limits: &[Limit], key| limits.iter().find(|l| l.key == key).map(|l| l.value);
            assert_eq!(number(&grant.node, Key::MaxDescendants), Some(Value::Number(descendants)));
            assert_eq!(number(&grant.node, Key::MaxDepth), Some(Value::Number(depth)));
            assert_eq!(number(&grant.total, Key::MaxDescendants), Some(Value::Number(descendants + 3)));
            assert_eq!(number(&grant.total, Key::MaxDepth), Some(Value::Number(depth + 1)));
            for (key, most) in [("cgroup.max.descendants", descendants), ("cgroup.max.depth", depth)] {
                let asked = |value: u64| {
                    let limits = vec![parse_limit(&format!("{key}={value}")).unwrap()];
                    decide(&Ask { limits, ..Ask::default() }, &facts(Some(&entry), &[])).map(drop).map_err(|e| e.status)
                };
                assert_eq!((asked(most), asked(most + 1)), (Ok(()), Err(77)), "{text}: {key}");
            }
        }
    }

    #[test]
    fn an_owner_is_the_callers_own_or_a_subordinate_one_and_only_such_a_group_writes() {
        let entry = line("alice - 1");
        let ask = |owner| Ask { owner, ..Ask::default() };
        let base = || facts(Some(&entry), &[]);
        let owner =
            |ask: &Ask, facts: &Facts<'_>| decide(ask, facts).map(|g| (g.owner.uid, g.owner.gid, g.owner.group_writes));
        assert_eq!(owner(&ask(None), &base()), Ok((1001, 100_000, true)));
        assert_eq!(owner(&ask(None), &Facts { subordinate_gid: None, ..base() }), Ok((1001, 1101, false)));
        assert_eq!(owner(&ask(Some((1001, Some(1101)))), &base()), Ok((1001, 1101, false)));
        assert_eq!(owner(&ask(Some((165_536, None))), &base()).unwrap_err().status, 77);
        assert_eq!(owner(&ask(Some((1001, Some(165_536)))), &base()).unwrap_err().status, 77);
        assert_eq!(owner(&ask(Some((1001, Some(1150)))), &base()).unwrap_err().status, 77);
        let granted = Facts { uid_is_granted: true, gid_is_granted: true, ..base() };
        assert_eq!(owner(&ask(Some((100_000, Some(100_000)))), &granted), Ok((100_000, 100_000, true)));
        // A line in /etc/subgid that grants a group which others are in.
        let shared = Facts { subordinate_gid: Some(1150), ..base() };
        assert_eq!(owner(&ask(None), &shared), Ok((1001, 1150, false)));
    }

    fn any_limit() -> impl Strategy<Value = Limit> {
        prop_oneof![
            (1..2000_u64).prop_map(|n| format!("pids.max={n}")),
            Just("pids.max=max".to_owned()),
            (0..2000_u64).prop_map(|n| format!("memory.max={n}")),
            (1000..3000_u64, 1000..3000_u64).prop_map(|(a, b)| format!("cpu.max={a}/{b}")),
            (1..2000_u64).prop_map(|n| format!("cgroup.max.descendants={n}")),
            (1..40_u64).prop_map(|n| format!("cgroup.max.depth={n}")),
        ]
        .prop_map(|text| parse_limit(&text).unwrap())
    }

    fn any_list() -> impl Strategy<Value = Vec<Controller>> {
        proptest::sample::subsequence(list("cpu,memory,pids,v1:pids,v1:cpu,v1:freezer,name=systemd"), 0..7)
    }

    fn limits() -> impl Strategy<Value = Vec<Limit>> {
        proptest::collection::vec(any_limit(), 0..4).prop_map(|mut limits| {
            limits.sort_by_key(|l| l.key);
            limits.dedup_by_key(|l| l.key);
            limits
        })
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_his_line_says(
            granted in any_list(), here in any_list(), asked in proptest::option::of(any_list()),
            ceilings in limits(), wanted in limits(), max in 0..5_u32, unified: bool,
        ) {
            let entry = Entry { line: 7, who: Who::Uid(1001), controllers: granted.clone(), max, limits: ceilings.clone() };
            let ask = Ask { limits: wanted, controllers: asked, owner: None };
            let facts = Facts { unified, ..facts(Some(&entry), &here) };
            if let Ok(grant) = decide(&ask, &facts) {
                prop_assert!(max > 0 && grant.max == max && grant.line == 7);
                for controller in &grant.controllers {
                    prop_assert!(granted.contains(controller) && here.contains(controller));
                }
                for ceiling in &ceilings {
                    // Every ceiling is on the total, on something that carries it, and no node is above it.
                    let structural = matches!(ceiling.key, Key::MaxDescendants | Key::MaxDepth);
                    prop_assert!(grant.total.iter().any(|l| l.key == ceiling.key && (structural || l.value == ceiling.value)));
                    prop_assert!(structural || ceiling.key.carriers().iter().any(|c| grant.controllers.contains(c)));
                    for limit in grant.node.iter().filter(|l| l.key == ceiling.key) {
                        prop_assert!(limit.value.within(ceiling.value));
                    }
                }
                for limit in &ask.limits {
                    prop_assert!(grant.node.contains(limit));
                }
                if unified {
                    for key in [Key::MaxDescendants, Key::MaxDepth] {
                        prop_assert!(grant.node.iter().filter(|l| l.key == key).count() == 1);
                        prop_assert!(grant.total.iter().filter(|l| l.key == key).count() == 1);
                    }
                }
            }
        }

        #[test]
        fn an_owner_that_is_not_the_callers_is_never_granted(uid: u32, gid: u32, granted_uid: bool, granted_gid: bool) {
            let entry = line("alice - 1");
            let ask = Ask { owner: Some((uid, Some(gid))), ..Ask::default() };
            let facts = Facts { uid_is_granted: granted_uid, gid_is_granted: granted_gid, ..facts(Some(&entry), &[]) };
            if let Ok(grant) = decide(&ask, &facts) {
                prop_assert!((uid == 1001 || granted_uid) && (gid == 1101 || granted_gid));
                prop_assert!(!grant.owner.group_writes || granted_gid);
            }
        }
    }
}
