//! NICs and quotas for people and programs, and the ledger brought up to date.

#![forbid(unsafe_code)]

use crate::apply::label_of;
use crate::grants::Grants;
use crate::label::Label;
use crate::ledger::{Entry, Store, change, entries, peek};
use crate::netlink::{Link, Netlink};
use crate::policy::{Line, PATH};
use crate::request::shown;
use crate::status;
use core::fmt::Write as _;
use core::ops::Range;
use helper::caller::Caller;
use helper::enter::FullRoot;
use helper::report::{Failure, Printable, print};
use std::collections::BTreeSet;

/// What the kernel and the ledger know of.
struct Seen {
    content: Vec<u8>,
    links: Vec<Link>,
    /// The NICs among the links that are the caller's, or for root all.
    nics: Vec<(Link, Label)>,
}

impl Seen {
    fn new(caller: &Caller, content: Vec<u8>) -> Result<Self, Failure> {
        let links = Netlink::open()
            .and_then(|mut netlink| netlink.veths(None))
            .map_err(|error| Failure::new(format!("dump the links: {}", error.desc())).status(status::SYSTEM))?;
        let mine = |label: &Label| caller.uid == 0 || label.uid == caller.uid;
        let label = |link: &Link| label_of(link, &content).filter(mine).map(|label| (link.clone(), label));
        let nics = links.iter().filter_map(label).collect();
        Ok(Self { content, links, nics })
    }

    /// The host ends that are charged to a pot on a bridge, whoever's they are.
    fn charged(&self, line: &Line) -> usize {
        let labels = self.links.iter().filter_map(|link| Some((&link.name, label_of(link, &self.content)?)));
        let mut nics: BTreeSet<&[u8]> = labels
            .filter(|(_, label)| label.pot == line.pot && label.bridge == line.bridge)
            .map(|(name, _)| name.as_slice())
            .collect();
        for entry in entries(&self.content).filter_map(|(_, entry)| entry) {
            let listed = entry.pot == line.pot && entry.bridge == line.bridge;
            if listed && self.links.iter().any(|link| link.name == entry.nic) {
                nics.insert(entry.nic);
            }
        }
        nics.len()
    }
}

/// Prints the caller's NICs and quotas; root's call prints everybody's.
///
/// # Errors
/// The configuration, the ledger or the kernel cannot be read; in words.
pub fn list(caller: &Caller, groups: &[u32], json: bool) -> Result<(), Failure> {
    let grants = Grants::read(caller, groups, caller.uid == 0)?;
    let root = FullRoot::begin(caller)?;
    let content = peek(&root)?;
    drop(root);
    let seen = Seen::new(caller, content)?;
    let lines: Vec<(&Line, u32)> =
        grants.lines.iter().filter_map(|line| Some((line, line.grant.as_ref().ok()?.0))).collect();
    print(&if json { as_json(&seen, &lines) } else { as_table(&seen, &lines) })
}

fn as_table(seen: &Seen, lines: &[(&Line, u32)]) -> String {
    let dash = |bytes: &[u8]| if bytes.is_empty() { "-".to_owned() } else { Printable(&shown(bytes)).to_string() };
    let mut text = String::new();
    if !seen.nics.is_empty() {
        let _ = writeln!(text, "{:<15} {:<15} {:<15} {:<10} CONTAINER", "NAME", "HOST", "BRIDGE", "UID");
    }
    for (link, label) in &seen.nics {
        let (nic, host, bridge) = (dash(&label.nic), dash(&link.name), dash(&label.bridge));
        let _ = writeln!(text, "{nic:<15} {host:<15} {bridge:<15} {:<10} {}", label.uid, dash(&label.container));
    }
    for (line, count) in lines {
        let (used, pot, bridge) = (seen.charged(line), dash(&line.pot), dash(&line.bridge));
        let _ = writeln!(text, "{used} of {count} used: {pot} on {bridge} ({PATH}:{})", line.number);
    }
    text
}

fn as_json(seen: &Seen, lines: &[(&Line, u32)]) -> String {
    let nic = |(link, label): &(Link, Label)| {
        format!(
            "{{\"name\":{},\"host\":{},\"index\":{},\"bridge\":{},\"container\":{},\"uid\":{},\"pot\":{},\"addr\":{}}}",
            quoted(&label.nic),
            quoted(&link.name),
            link.index,
            quoted(&label.bridge),
            quoted(&label.container),
            label.uid,
            quoted(&label.pot),
            quoted(&label.addr)
        )
    };
    let quota = |(line, count): &(&Line, u32)| {
        format!(
            "{{\"pot\":{},\"bridge\":{},\"used\":{},\"allowed\":{count},\"line\":{}}}",
            quoted(&line.pot),
            quoted(&line.bridge),
            seen.charged(line),
            line.number
        )
    };
    let nics: Vec<String> = seen.nics.iter().map(nic).collect();
    let quotas: Vec<String> = lines.iter().map(quota).collect();
    format!("{{\"nics\":[{}],\"quotas\":[{}]}}\n", nics.join(","), quotas.join(","))
}

/// A JSON string; `null` for an empty one.
fn quoted(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "null".to_owned();
    }
    let mut text = String::from("\"");
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// Takes lines out of the ledger whose NICs are gone, and writes lines for NICs that have none: the caller's, or for
/// root everybody's. Prints how many.
///
/// # Errors
/// As [`list`]; also the ledger's lock.
pub fn prune(caller: &Caller, groups: &[u32]) -> Result<(), Failure> {
    let grants = Grants::read(caller, groups, caller.uid == 0)?;
    let mut root = FullRoot::begin(caller)?;
    let mut store = Store::open(caller, &root)?;
    if !store.lock_own(true)? {
        drop(root);
        store.lock_own(false)?;
        root = FullRoot::begin(caller)?;
    }
    if !store.lock_ledger(&root, false)? {
        let why = "the ledger is locked by a call that is stopped: try again";
        return Err(Failure::new(why).status(status::LATER));
    }
    let claims = store.claims(&root)?;
    let seen = Seen::new(caller, store.read()?)?;
    let exists = |nic: &[u8]| seen.links.iter().any(|link| link.name == nic);
    let claimed = |nic: &[u8]| claims.iter().any(|claim| claim.alive && claim.nic == nic);
    let mine = |entry: &Entry<'_>| {
        caller.uid == 0 || grants.lines.iter().any(|line| line.pot == entry.pot) || grants.name == entry.pot
    };
    let dead: Vec<Range<usize>> = entries(&seen.content)
        .filter_map(|(range, entry)| Some((range, entry?)))
        .filter(|(_, entry)| entry.kind == b"veth" && mine(entry) && !exists(entry.nic) && !claimed(entry.nic))
        .map(|(range, _)| range)
        .collect();
    let listed: BTreeSet<&[u8]> = entries(&seen.content).filter_map(|(_, entry)| Some(entry?.nic)).collect();
    let missing: Vec<Vec<u8>> = seen
        .nics
        .iter()
        .filter(|(link, label)| {
            !listed.contains(link.name.as_slice()) && !label.pot.is_empty() && !label.bridge.is_empty()
        })
        .map(|(link, label)| Entry { pot: &label.pot, kind: b"veth", bridge: &label.bridge, nic: &link.name }.line())
        .collect();
    store.apply(&change(&seen.content, &dead, &missing))?;
    store.unlock_ledger();
    drop(root);
    print(&format!("{} lines removed, {} lines written\n", dead.len(), missing.len()))
}

/// Prints each line that grants the caller something, and each that is ignored, with the reason; root's call reads
/// everybody's.
///
/// # Errors
/// As [`list`]; also, with status 78, that a line is ignored or grants nothing.
pub fn check_file(caller: &Caller, groups: &[u32]) -> Result<(), Failure> {
    let grants = Grants::read(caller, groups, caller.uid == 0)?;
    let mut said: Vec<(u64, String)> = Vec::new();
    let mut wrong = grants.ignored.len();
    for line in &grants.lines {
        let text = match &line.grant {
            Ok((count, _)) => format!("{} may have {count} on {}", shown(&line.pot), shown(&line.bridge)),
            Err(why) => {
                wrong = wrong.saturating_add(1);
                format!("{} gets nothing: {why}", shown(&line.pot))
            }
        };
        said.push((line.number, text));
    }
    said.extend(grants.ignored.into_iter().map(|(number, why)| (number, format!("ignored: {why}"))));
    said.sort();
    let text: String = said.iter().map(|(number, text)| format!("{PATH}:{number}: {}\n", Printable(text))).collect();
    print(&text)?;
    match wrong {
        0 => Ok(()),
        wrong => Err(Failure::new(format!("{PATH}: {wrong} lines grant nothing")).status(status::CONFIG)),
    }
}
