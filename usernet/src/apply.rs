//! The verdict meets the kernel: claim, make, look again.
//!
//! A NIC is claimed in the ledger before it is made, so that a call which is killed leaves at worst one claim too many
//! until the next call. What a pot holds is what the ledger says together with what the kernel says, by the aliases and
//! names of the links themselves, so that a link without a line counts as well.

#![forbid(unsafe_code)]

use crate::grants::Grants;
use crate::label::Label;
use crate::ledger::{Change, Claim, Entry, Store, change, charged, entries, peek};
use crate::netlink::{Batch, Link, Mac, Netlink, Pair, Port, Reply};
use crate::ovs;
use crate::policy::{Charges, Choice, Line, Options, PATH, host_mac, is_link_name, peer_mac, stable_hash};
use crate::request::{Attach, Delete, NO_BRIDGE, shown};
use crate::status;
use helper::caller::{Caller, plain_number};
use helper::enter::{FullRoot, why_powerless};
use helper::report::{Failure, reason};
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{ErrorKind, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

/// How long a full pot is watched for a NIC that is going away: after the last process of a network namespace has
/// ended, its link lives on for 11 to 37 ms on an idle host.
const WATCH: Duration = Duration::from_millis(100);

/// How long it is watched in all while the kernel says that one of its NICs is going away: on a busy host that can take
/// seconds.
const WATCH_DYING: Duration = Duration::from_secs(3);

/// A NIC that has been made.
#[derive(Clone, Debug)]
pub struct Nic {
    /// What its alias says.
    pub label: Label,
    /// Name of the host end.
    pub host: Vec<u8>,
    /// Index of the host end.
    pub host_index: u32,
    /// Name of the peer.
    pub peer: Vec<u8>,
    /// Index of the peer in its network namespace.
    pub peer_index: u32,
    /// The number of the line that granted it.
    pub line: u64,
    /// Hardware address of the host end.
    mac: Mac,
    /// Whether the bridge is one of Open vSwitch.
    ovs: bool,
}

impl Nic {
    /// `NAME_IN_TARGET:IFINDEX_IN_TARGET:HOST_NAME:HOST_IFINDEX`.
    #[must_use]
    pub fn report(&self) -> Vec<u8> {
        let (peer_index, host_index) = (self.peer_index.to_string(), self.host_index.to_string());
        [self.peer.as_slice(), peer_index.as_bytes(), &self.host, host_index.as_bytes()].join(&b':')
    }
}

/// What is known before anything is locked.
#[derive(Debug)]
pub struct Plan<'a> {
    caller: &'a Caller,
    grants: &'a Grants,
    request: &'a Attach,
    netns: &'a OwnedFd,
    lines: Vec<Line>,
    netlink: Netlink,
    /// The bridge; `None` for `none`.
    bridge: Option<Link>,
    ovs: bool,
    /// Whether NICs of other users count: a group's pot is shared, and so is a pool of addresses.
    shared: bool,
    /// Whether the ledger's lock could not be had: it is not waited for again.
    stuck: bool,
}

/// A NIC that is being made: the claim is written, the caller's lock is held.
#[derive(Debug)]
struct Claimed {
    store: Store,
    line: Line,
    label: Label,
    host: Vec<u8>,
    /// Hardware address of the host end.
    mac: Mac,
}

/// Full pots.
#[derive(Debug)]
struct Full {
    /// The NICs in them.
    nics: BTreeSet<Vec<u8>>,
    /// What is known of those that are on the bridge.
    links: Vec<Link>,
}

/// What the kernel, the ledger and the claims say together.
struct Tally<'c> {
    charges: Charges,
    /// Pot and NIC of the lines of the ledger for these pots on this bridge.
    listed: BTreeSet<(&'c [u8], &'c [u8])>,
    /// Those of the lines that are dead.
    dead: Vec<Range<usize>>,
}

/// What [`Plan::claim`] found.
#[derive(Debug)]
enum Outcome {
    Claimed(Box<Claimed>),
    /// Every pot is full.
    Full(Full),
}

impl<'a> Plan<'a> {
    /// Finds the lines that grant, and the bridge.
    ///
    /// # Errors
    /// No grant, no bridge, or an option that the kernel cannot do; in words.
    pub fn new(
        caller: &'a Caller,
        grants: &'a Grants,
        request: &'a Attach,
        netns: &'a OwnedFd,
    ) -> Result<Self, Failure> {
        let lines = grants.on(&request.bridge)?;
        let mut netlink = Netlink::open().map_err(|error| system("open a netlink socket", error))?;
        let (mut bridge, mut ovs) = (None, false);
        if request.bridge != NO_BRIDGE {
            let link = find_bridge(&mut netlink, &request.bridge)?;
            ovs = link.kind != b"bridge";
            bridge = Some(link);
        }
        let shared = lines.iter().any(|line| {
            line.pot.first() == Some(&b'@') || line.grant.as_ref().is_ok_and(|(_, options)| options.pool.is_some())
        });
        let plan = Self { caller, grants, request, netns, lines, netlink, bridge, ovs, shared, stuck: false };
        for line in &plan.lines {
            plan.can_do(line)?;
        }
        Ok(plan)
    }

    /// Whether the bridge can do what a line's options ask for, as far as it can be told beforehand.
    fn can_do(&self, line: &Line) -> Result<(), Failure> {
        let Ok((_, options)) = &line.grant else { return Ok(()) };
        let needs_port = options.isolated || options.locked || options.vid.is_some();
        let native = self.bridge.is_some() && !self.ovs;
        let why = if needs_port && !native {
            "isolated, locked and vid are properties of a port of a Linux bridge".to_owned()
        } else if options.vid.is_some() && self.bridge.as_ref().and_then(|b| b.vlan_filtering).is_none_or(|(on, _)| !on)
        {
            let name = shown(&self.request.bridge);
            format!("vid needs VLAN filtering on the bridge: ip link set {name} type bridge vlan_filtering 1")
        } else {
            return Ok(());
        };
        Err(Failure::new(format!("{PATH}:{}: {why}", line.number)).status(status::CONFIG))
    }

    /// Says what would be done, and changes nothing.
    ///
    /// # Errors
    /// As [`Plan::attach`].
    pub fn check(mut self) -> Result<String, Failure> {
        let root = FullRoot::begin(self.caller)?;
        let content = peek(&root)?;
        drop(root);
        let mut links = self.dump()?;
        let charges = self.tally(&content, &mut links, &[])?.charges;
        let Choice { line, used, .. } = charges.choose(&self.lines);
        let Some(line) = line else { return Err(self.full(&charges)) };
        self.may_choose_mac(line)?;
        let count = line.grant.as_ref().map_or(0, |(count, _)| *count);
        let warning = match (&line.grant, &self.bridge) {
            (Ok((_, options)), Some(bridge)) if options.mtu.is_some_and(|mtu| mtu < bridge.mtu) => {
                "; a bridge whose own MTU was never set follows down to the lowest of its ports"
            }
            _ => "",
        };
        Ok(format!(
            "a veth on {} would be made: {PATH}:{} grants {} {count}, of which {used} in use{warning}",
            shown(&self.request.bridge),
            line.number,
            shown(&line.pot),
        ))
    }

    /// Makes the NIC.
    ///
    /// # Errors
    /// In words; nothing is left then but, when the call is killed or the ledger is stuck, a claim that the next call
    /// takes away.
    pub fn attach(mut self) -> Result<Nic, Failure> {
        let mut claimed = self.claim_in_time()?;
        // From here on nothing may fail without the link and then the claim being taken away.
        let mac = claimed.mac;
        let made = self.make(&claimed);
        // Where the ledger cannot be written, the alias counts the NIC, and a line too many is dead for the next call.
        match made {
            Ok(_) if self.settle(&mut claimed).unwrap_or(true) => {}
            Ok(_) if remove(&claimed.host, mac) => {
                return Err(Failure::new(format!(
                    "Quota reached: while the NIC was made, another program took the last place of {} on {}: stop a container, or see usernet list",
                    shown(&claimed.label.pot),
                    shown(&claimed.label.bridge)
                ))
                .status(status::LATER));
            }
            Ok(_) => {}
            Err(_) if remove(&claimed.host, mac) => {
                let Claimed { store, label, host, .. } = &mut *claimed;
                let _ = drop_claim(self.caller, store, &entry(label, host), self.stuck);
            }
            Err(_) => {}
        }
        made
    }

    /// Sees to it that the ledger has the line of the NIC that was made: a stopped holder of the lock may have kept us
    /// from writing it, or the original has taken it for a dead one before the link was there, and may have given the
    /// place away. `false`: the pot holds more than it may, and the NIC has to go again.
    fn settle(&mut self, claimed: &mut Claimed) -> Result<bool, Failure> {
        if claimed.store.keeps(&entry(&claimed.label, &claimed.host).line()) {
            return Ok(true);
        }
        let root = FullRoot::begin(self.caller)?;
        if !claimed.store.lock_ledger(&root, self.stuck)? {
            return Ok(true);
        }
        let result = self.settle_locked(claimed, &root);
        claimed.store.unlock_ledger();
        result
    }

    /// The ledger's lock is held.
    fn settle_locked(&mut self, claimed: &mut Claimed, root: &FullRoot) -> Result<bool, Failure> {
        let ours = entry(&claimed.label, &claimed.host);
        let content = claimed.store.read()?;
        if entries(&content).any(|(_, entry)| entry == Some(ours)) {
            return Ok(true);
        }
        let claims = if self.shared { claimed.store.claims(root)? } else { Vec::new() };
        let mut links = self.dump()?;
        let Tally { charges, .. } = self.tally(&content, &mut links, &claims)?;
        let used = charges.pots.get(&claimed.line.pot).map_or(0, BTreeSet::len);
        let granted = claimed.line.grant.as_ref().map_or(0, |(count, _)| usize::try_from(*count).unwrap_or(usize::MAX));
        if used > granted {
            return Ok(false);
        }
        claimed.store.apply(&change(&content, &[], &[ours.line()]))?;
        Ok(true)
    }

    /// Claims, and when every pot is full, watches for a while whether a NIC goes away. No lock is held meanwhile.
    fn claim_in_time(&mut self) -> Result<Box<Claimed>, Failure> {
        let mut listener: Option<Netlink> = None;
        let begin = Instant::now();
        loop {
            let full = match self.claim()? {
                Outcome::Claimed(claimed) => return Ok(claimed),
                Outcome::Full(full) => full,
            };
            let Some(listener) = &mut listener else {
                // One more look, or a NIC that went before the listening began would be waited for in vain.
                listener = Some(Netlink::listen().map_err(|error| system("open a netlink socket", error))?);
                continue;
            };
            let dying = self.netlink.any_dying(full.links.iter()).unwrap_or(false);
            let limit = if dying { WATCH_DYING } else { WATCH };
            match begin.checked_add(limit).filter(|end| Instant::now() < *end) {
                // No longer than that at once, for what is not dying yet may be by then.
                Some(end) => {
                    listener.wait_for_deletion(&full.nics, end.min(Instant::now().checked_add(WATCH).unwrap_or(end)))
                }
                None => {
                    let mut charges = Charges::default();
                    full.nics.iter().for_each(|nic| charges.add(b"", nic));
                    return Err(self.full(&charges));
                }
            }
        }
    }

    fn full(&self, charges: &Charges) -> Failure {
        let bridge = shown(&self.request.bridge);
        let lines: Vec<_> = self
            .lines
            .iter()
            .filter_map(|line| {
                Some(format!("{} {} (line {})", shown(&line.pot), line.grant.as_ref().ok()?.0, line.number))
            })
            .collect();
        let used: usize = charges.pots.values().map(BTreeSet::len).sum::<usize>().saturating_add(charges.strays.len());
        Failure::new(format!(
            "Quota reached: {used} NICs on {bridge} are in use, and {PATH} grants {}: stop a container, or see usernet list",
            lines.join(", ")
        ))
        .status(status::LATER)
    }

    /// One try: under the caller's lock, and for a moment under the ledger's.
    fn claim(&mut self) -> Result<Outcome, Failure> {
        let mut root = FullRoot::begin(self.caller)?;
        let mut store = Store::open(self.caller, &root)?;
        if !store.lock_own(true)? {
            drop(root);
            store.lock_own(false)?;
            root = FullRoot::begin(self.caller)?;
        }
        self.grants.still_hold(&root)?;
        self.clear_unfinished(&store)?;
        // Nobody else makes anything for this user now. The kernel is asked before the ledger is locked, but for a
        // shared pot, whose other users it must not have moved on without.
        let before = if self.shared { None } else { Some(self.dump()?) };
        let locked = store.lock_ledger(&root, self.stuck)?;
        self.stuck = !locked;
        let result = self.decide(&mut store, &root, before, locked);
        if locked {
            store.unlock_ledger();
        }
        drop(root);
        Ok(match result? {
            Ok((line, label, host, mac)) => Outcome::Claimed(Box::new(Claimed { store, line, label, host, mac })),
            Err(full) => Outcome::Full(full),
        })
    }

    /// Deletes the NIC that the caller's last call claimed and, killed before it gave it an alias, never reported:
    /// else the next claim takes the place of the only record of it. The caller's lock is held.
    fn clear_unfinished(&mut self, store: &Store) -> Result<(), Failure> {
        let Some(Claim { nic, mac: Some(mac), .. }) = store.own_claim() else { return Ok(()) };
        let failed = |what: &str, error| system(&format!("{what} {}, which a killed call left", shown(&nic)), error);
        let found = self.netlink.find(&nic).map_err(|error| failed("look up", error))?;
        match found {
            Some(link) if link.mac == Some(mac) && link.alias.is_empty() => {
                match self.netlink.ask_one(|batch| batch.delete(link.index)) {
                    Ok(_) | Err(Errno::ENODEV) => Ok(()),
                    Err(error) => Err(failed("delete", error)),
                }
            }
            _ => Ok(()),
        }
    }

    /// Counts, chooses, and writes the claim. Without the ledger's lock (its holder is stopped) nothing is written to
    /// the ledger: the claim in the caller's own file and then the alias stand for the line.
    #[expect(clippy::type_complexity, reason = "what Outcome carries, before the store is put to it")]
    fn decide(
        &mut self,
        store: &mut Store,
        root: &FullRoot,
        before: Option<Vec<Link>>,
        locked: bool,
    ) -> Result<Result<(Line, Label, Vec<u8>, Mac), Full>, Failure> {
        let host = host_name(self.caller.uid);
        let claims = if self.shared { store.claims(root)? } else { Vec::new() };
        let mut links = match before {
            Some(links) => links,
            None => self.dump()?,
        };
        let content = store.read()?;
        let Tally { charges, listed, dead } = self.tally(&content, &mut links, &claims)?;
        let choice = charges.choose(&self.lines);
        let mut lines = self.missing(&listed, &charges, &choice);
        let label = choice.line.map(|line| self.may_choose_mac(line).and_then(|()| self.label(line, &links, &claims)));
        let label = label.transpose();
        let mut chosen = None;
        match (choice.line, label) {
            (Some(line), Ok(Some(label))) => {
                let mac = host_mac(self.hash(line, &[&self.request.nic, b"@host".as_slice()].concat()));
                store.claim(Some((&entry(&label, &host), &label.addr, mac)))?;
                lines.push(entry(&label, &host).line());
                chosen = Some((line.clone(), label, host.clone(), mac));
            }
            (_, refused) => {
                store.claim(None)?;
                refused?;
            }
        }
        if self.shared
            && let Some((line, ..)) = &chosen
        {
            // Who goes round the ledger's lock is seen by his claim alone. Each writes his own before he reads the
            // others' for the last time, so that of two at least one counts both.
            let claims: Vec<Claim> = store.claims(root)?.into_iter().filter(|claim| claim.nic != host).collect();
            let mut links = self.dump()?;
            if !self.tally(&store.read()?, &mut links, &claims)?.charges.has_room(line) {
                store.claim(None)?;
                lines.pop();
                chosen = None;
            }
        }
        if locked && !(lines.is_empty() && dead.is_empty()) {
            let applied = store.apply(&change(&content, &dead, &lines));
            // A ledger that cannot be tidied is no reason to refuse; one that does not take the claim is.
            if chosen.is_some() {
                applied?;
            }
        }
        Ok(chosen.ok_or_else(|| {
            let nics: BTreeSet<Vec<u8>> = charges.pots.into_values().flatten().chain(charges.strays).collect();
            Full { links: links.into_iter().filter(|link| nics.contains(&link.name)).collect(), nics }
        }))
    }

    /// Lines for NICs that the kernel knows and the ledger does not.
    fn missing(&self, listed: &BTreeSet<(&[u8], &[u8])>, charges: &Charges, choice: &Choice<'_>) -> Vec<Vec<u8>> {
        let of_pots = charges.pots.iter().flat_map(|(pot, nics)| nics.iter().map(move |nic| (pot, nic)));
        of_pots
            .chain(choice.strays.iter().map(|(pot, nic)| (pot, nic)))
            .filter(|(pot, nic)| !listed.contains(&(pot.as_slice(), nic.as_slice())))
            .map(|(pot, nic)| Entry { pot, kind: b"veth", bridge: &self.request.bridge, nic }.line())
            .collect()
    }

    /// The veths that can be charged on this bridge: its ports, or where the kernel knows no such ports, all. Where only
    /// the caller's count, those are left out whose names tell that they are another user's.
    fn dump(&mut self) -> Result<Vec<Link>, Failure> {
        let own = self.caller.uid;
        let links = match self.bridge.as_ref().filter(|_| !self.ovs) {
            None => self.netlink.veths(None),
            Some(bridge) if self.shared => self.netlink.veths(Some(bridge.index)),
            Some(bridge) => self.netlink.ports(bridge, |name| uid_in(name).is_none_or(|uid| uid == own)),
        };
        links.map_err(|error| system("dump the links", error))
    }

    /// What is charged on this bridge to the pots of the caller's lines. Links that the ledger or a claim names and that
    /// are not in `links` are looked up, wherever they are, and added to it.
    fn tally<'c>(&mut self, content: &'c [u8], links: &mut Vec<Link>, claims: &[Claim]) -> Result<Tally<'c>, Failure> {
        let bridge = &self.request.bridge;
        let pots: BTreeSet<&[u8]> = self.lines.iter().map(|line| line.pot.as_slice()).collect();
        let listed = charged(content, bridge, &pots);
        let claimed: Vec<&Claim> =
            claims.iter().filter(|c| c.bridge == *bridge && pots.contains(c.pot.as_slice())).collect();
        let there: BTreeSet<&[u8]> = links.iter().map(|link| link.name.as_slice()).collect();
        let named = listed.iter().map(|(_, entry)| entry.nic).chain(claimed.iter().map(|claim| claim.nic.as_slice()));
        let unsure: Vec<&[u8]> = named.filter(|nic| is_link_name(nic) && !there.contains(nic)).collect();
        let found = self.netlink.look_up(&unsure, |batch, name| batch.get_by_name(name, None));
        links.extend(found.map_err(|error| system("look links up", error))?);

        let (mut charges, mut dead) = (Charges::default(), Vec::new());
        let links: BTreeMap<&[u8], (&Link, Option<Label>)> =
            links.iter().map(|link| (link.name.as_slice(), (link, Label::parse(&link.alias)))).collect();
        let says_pot = |label: &&Label| !label.pot.is_empty();
        let charged_here = |label: &&Label| label.bridge == *bridge && pots.contains(label.pot.as_slice());
        // Links that say themselves what they are charged to.
        for (name, (_, label)) in &links {
            if let Some(label) = label.as_ref().filter(says_pot).filter(charged_here) {
                charges.add(&label.pot, name);
            }
        }
        for (range, entry) in &listed {
            let counts = match links.get(entry.nic) {
                // The link itself may say otherwise.
                Some((_, label)) => label.as_ref().filter(says_pot).is_none_or(|label| charged_here(&label)),
                None => claimed.iter().any(|claim| claim.alive && claim.nic == entry.nic),
            };
            if counts { charges.add(entry.pot, entry.nic) } else { dead.push(range.clone()) }
        }
        for claim in claimed.iter().filter(|claim| claim.alive || links.contains_key(claim.nic.as_slice())) {
            charges.add(&claim.pot, &claim.nic);
        }
        // Links that carry the caller's uid but no pot: the original's, or one whose maker was killed before it had its
        // alias, or one whose pot has too long a name for an alias.
        let master = self.bridge.as_ref().filter(|_| !self.ovs).map(|bridge| bridge.index);
        for (name, (link, label)) in links.iter().filter(|(_, (_, label))| label.as_ref().filter(says_pot).is_none()) {
            // A link of a bridge's is its port. One of none or of Open vSwitch is nobody's when its maker was killed,
            // unless it or the ledger says otherwise.
            let elsewhere = |e: &Entry<'_>| e.nic == *name && e.bridge != bridge;
            let here = || match master {
                Some(master) => link.master == master,
                None => {
                    let mut listed = entries(content).filter_map(|(_, entry)| entry);
                    link.master == 0 && label.is_none() && !listed.any(|entry| elsewhere(&entry))
                }
            };
            let its_own = label.as_ref().is_some_and(|l| l.uid == self.caller.uid && l.bridge == *bridge);
            let named = uid_in(name) == Some(self.caller.uid);
            if (its_own || named && here()) && !charges.pots.values().any(|nics| nics.contains(*name)) {
                charges.strays.insert(name.to_vec());
            }
        }
        let listed = listed.into_iter().map(|(_, entry)| (entry.pot, entry.nic)).collect();
        Ok(Tally { charges, listed, dead })
    }

    /// Whether the line leaves the hardware address to the caller.
    fn may_choose_mac(&self, line: &Line) -> Result<(), Failure> {
        let word = match &line.grant {
            Ok((_, options)) if self.request.mac.is_some() && options.locked => "locked",
            Ok((_, options)) if self.request.mac.is_some() && options.stable_mac => "mac=stable",
            _ => return Ok(()),
        };
        let why =
            format!("{PATH}:{}: with {word} the hardware address is not the caller's: leave --mac out", line.number);
        Err(Failure::new(why).status(status::NOT_PERMITTED))
    }

    /// What the alias will say.
    fn label(&self, line: &Line, links: &[Link], claims: &[Claim]) -> Result<Label, Failure> {
        let mut label = Label {
            uid: self.caller.uid,
            pot: line.pot.clone(),
            bridge: self.request.bridge.clone(),
            nic: self.request.nic.clone(),
            addr: Vec::new(),
            container: self.request.container.clone(),
        };
        if let Ok((_, Options { pool: Some(pool), .. })) = &line.grant {
            let mut taken: BTreeSet<Vec<u8>> =
                links.iter().filter_map(|l| Label::parse(&l.alias)).map(|l| l.addr).collect();
            taken.extend(claims.iter().filter(|claim| claim.alive).map(|claim| claim.addr.clone()));
            let hash = stable_hash(self.caller.uid, &label.container, &label.nic);
            label.addr = pool.address(hash, &taken).map(String::into_bytes).ok_or_else(|| {
                let why = format!(
                    "{PATH}:{}: every address of its addr= is in use: stop a container, or see usernet list",
                    line.number
                );
                Failure::new(why).status(status::LATER)
            })?;
        }
        Ok(label)
    }

    /// What hardware addresses are made of: random, or the same for the same NIC.
    fn hash(&self, line: &Line, nic: &[u8]) -> u64 {
        match &line.grant {
            Ok((_, options)) if options.stable_mac => stable_hash(self.caller.uid, &self.request.container, nic),
            _ => RandomState::new().hash_one(0_u8),
        }
    }

    fn make(&mut self, claimed: &Claimed) -> Result<Nic, Failure> {
        let (request, mac) = (self.request, claimed.mac);
        let options = claimed.line.grant.as_ref().map(|(_, options)| *options).unwrap_or_default();
        // A derived address needs the name beforehand; else the kernel finds it.
        let peer = if options.stable_mac { self.first_free()? } else { request.nic.clone() };
        // The address that a port is locked to is chosen here, for root in the container can change the kernel's choice
        // before it is read back.
        let chosen = (options.stable_mac || options.locked).then(|| peer_mac(self.hash(&claimed.line, &peer)));
        let pair = Pair {
            host: &claimed.host,
            host_mac: mac,
            mtu: options.mtu.or(self.bridge.as_ref().map(|bridge| bridge.mtu)),
            master: self.bridge.as_ref().filter(|_| !self.ovs).map(|bridge| bridge.index),
            peer: &peer,
            peer_mac: chosen.or(request.mac),
            netns: self.netns.as_fd(),
        };
        let mut batch = Batch::default();
        batch.create(&pair);
        batch.get_by_name(&claimed.host, None);
        let mut answers = self.netlink.ask(&batch).map_err(|error| system("make a veth", error))?.into_iter();
        if let Some(Err(error)) = answers.next() {
            return Err(self.explain(error, &claimed.host));
        }
        let Some(Ok(Reply::Link(host))) = answers.next() else {
            return Err(Failure::new("look up the new veth: it is gone").status(status::SYSTEM));
        };
        let nic = Nic {
            label: Label { nic: peer.clone(), ..claimed.label.clone() },
            host: claimed.host.clone(),
            host_index: host.index,
            peer: peer.clone(),
            peer_index: host.peer,
            line: claimed.line.number,
            mac,
            ovs: self.ovs,
        };
        self.finish(nic, &host, &options, pair.peer_mac)
    }

    /// The name that was asked for, `%d` in it replaced by the first number that is free in the target.
    fn first_free(&mut self) -> Result<Vec<u8>, Failure> {
        let wanted = &self.request.nic;
        let Some(at) = wanted.iter().position(|b| *b == b'%') else { return Ok(wanted.clone()) };
        let failed = |error| system("look up names in the target's network namespace", error);
        let nsid = match self.netlink.nsid(self.netns.as_fd()).map_err(failed)? {
            None => {
                let netns = self.netns.as_fd();
                self.netlink.ask_one(|batch| batch.assign_nsid(netns)).map_err(failed)?;
                self.netlink.nsid(netns).map_err(failed)?
            }
            known => known,
        };
        // Without a number the names of this namespace would be looked up.
        let nsid = nsid.ok_or_else(|| failed(Errno::EINVAL))?;
        for number in 0..1024_u32 {
            let (before, after) = wanted.split_at_checked(at).unwrap_or((wanted, &[]));
            let name = [before, number.to_string().as_bytes(), after.get(2..).unwrap_or_default()].concat();
            match self.netlink.ask_one(|batch| batch.get_by_name(&name, Some(nsid))) {
                Err(Errno::ENODEV) => return Ok(name),
                Ok(_) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(Errno::ENFILE))
    }

    /// Reads the peer's name back, sets what cannot be set at creation, and brings the host end up.
    fn finish(&mut self, mut nic: Nic, host: &Link, options: &Options, mac: Option<Mac>) -> Result<Nic, Failure> {
        if nic.peer.contains(&b'%') {
            let peer = self.netlink.ask_one(|batch| batch.get_by_index(host.peer, host.peer_nsid));
            // Without a number of the target it would be a link of this namespace that was looked up.
            let peer =
                peer.ok().and_then(Reply::link).filter(|_| host.peer_nsid.is_some_and(|nsid| nsid >= 0)).ok_or_else(
                    || {
                        let why = "it is gone (or Linux is older than 4.16: give it a name)";
                        let text = format!("look up the new veth in the target's network namespace: {why}");
                        Failure::new(text).status(status::SYSTEM)
                    },
                )?;
            nic.label.nic.clone_from(&peer.name);
            nic.peer.clone_from(&peer.name);
        }
        let port = Port {
            isolated: options.isolated,
            locked_to: mac.filter(|_| options.locked),
            vid: options.vid.zip(self.bridge.as_ref().and_then(|b| b.vlan_filtering).map(|(_, pvid)| pvid)),
        };
        let alias = nic.label.alias();
        let plain = port == Port::default();
        if self.bridge.is_none() || self.ovs {
            no_ipv6(self.caller, &nic.host)?;
        }
        let mut batch = Batch::default();
        batch.no_link_local_address(nic.host_index);
        if plain {
            batch.set_alias_and_up(nic.host_index, alias.as_bytes());
        } else {
            batch.set_port(nic.host_index, port);
            batch.get_by_index(nic.host_index, None);
        }
        let answers = self.netlink.ask(&batch).map_err(|error| system("set up the new veth", error))?;
        for (at, answer) in answers.into_iter().enumerate() {
            match answer {
                Err(Errno::EAFNOSUPPORT) if at == 0 => {} // no IPv6
                Err(error) => {
                    let what = if plain { String::new() } else { format!(" as {PATH}:{} asks for", nic.line) };
                    let text = format!("set up the new veth{what}: {}", error.desc());
                    return Err(Failure::new(text).status(if plain { status::SYSTEM } else { status::UNAVAILABLE }));
                }
                Ok(reply) => {
                    if let Some(link) = reply.link()
                        && link.port != (port.isolated, port.locked_to.is_some())
                    {
                        return Err(Failure::new(format!(
                            "{PATH}:{}: this kernel has no isolated (Linux 4.18) or no locked (Linux 5.18) bridge ports",
                            nic.line
                        ))
                        .status(status::UNAVAILABLE));
                    }
                }
            }
        }
        if !plain {
            // Only now, so that nothing has passed the port before.
            self.netlink
                .ask_one(|batch| batch.set_alias_and_up(nic.host_index, alias.as_bytes()))
                .map_err(|error| system("bring the new veth up", error))?;
        }
        if self.ovs {
            let added = ovs::run(self.caller, "add-port", &self.request.bridge, &nic.host);
            if added.is_err() {
                // It may be in the database already, and would take up any later link of that name.
                let _ = ovs::run(self.caller, "del-port", &self.request.bridge, &nic.host);
            }
            added?;
        }
        Ok(nic)
    }

    fn explain(&mut self, error: Errno, host: &[u8]) -> Failure {
        let (bridge, nic) = (shown(&self.request.bridge), shown(&self.request.nic));
        match error {
            Errno::EEXIST if self.netlink.find(host).is_ok_and(|link| link.is_some()) => {
                Failure::new(format!("make a veth: the name {} has just been taken: try again", shown(host)))
                    .status(status::LATER)
            }
            Errno::EEXIST => Failure::new(format!(
                "make a veth: {nic} exists already in the target's network namespace: give another name"
            ))
            .status(status::NOT_PERMITTED),
            Errno::EPERM => Failure::new(format!(
                "make a veth: Operation not permitted: {}",
                why_powerless(self.caller, caps::Capability::CAP_NET_ADMIN)
            ))
            .status(status::NOT_PERMITTED),
            Errno::ENODEV => no_bridge(&self.request.bridge),
            Errno::EXFULL => system(&format!("make {bridge} the bridge of the new veth: it has no port left"), error),
            Errno::EOPNOTSUPP => {
                Failure::new("make a veth: this kernel has no veth: modprobe veth").status(status::UNAVAILABLE)
            }
            error => system(&format!("make a veth {nic} on {bridge}"), error),
        }
    }
}

/// Turns IPv6 off on a host end that is no port of a Linux bridge, before it is up: else the host believes the router
/// advertisements that come out of the container, and its default route goes there (CVE-2020-13401).
fn no_ipv6(caller: &Caller, host: &[u8]) -> Result<(), Failure> {
    let _section = FullRoot::begin(caller)?;
    let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", shown(host));
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"1"));
    match written {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let why = "a container must not advertise routes to the host: mount /proc/sys writable";
            Err(Failure::new(format!("write {path}: {}: {why}", reason(&error))).status(status::SYSTEM))
        }
        _ => Ok(()),
    }
}

/// Takes one line out of the ledger. When its lock cannot be had, the line stays as a dead one.
fn drop_claim(caller: &Caller, store: &mut Store, gone: &Entry<'_>, at_once: bool) -> Result<(), Failure> {
    with_ledger(caller, store, at_once, |content| {
        let dead: Vec<_> = entries(content).filter(|(_, e)| *e == Some(*gone)).map(|(range, _)| range).collect();
        if dead.is_empty() { Change::default() } else { change(content, &dead, &[]) }
    })
}

/// Makes a change of the ledger under its lock; none when the lock cannot be had.
fn with_ledger(
    caller: &Caller,
    store: &mut Store,
    at_once: bool,
    decide: impl FnOnce(&[u8]) -> Change,
) -> Result<(), Failure> {
    let root = FullRoot::begin(caller)?;
    if !store.lock_ledger(&root, at_once)? {
        return Ok(());
    }
    let done = store.read().and_then(|content| store.apply(&decide(&content)));
    store.unlock_ledger();
    done
}

/// Takes a NIC away that was made and could not be reported.
pub fn undo(caller: &Caller, nic: &Nic) {
    if nic.ovs {
        let _ = ovs::run(caller, "del-port", &nic.label.bridge, &nic.host);
    }
    if remove(&nic.host, nic.mac) {
        let store = FullRoot::begin(caller).and_then(|root| Store::open(caller, &root));
        if let Ok(mut store) = store {
            let _ = drop_claim(caller, &mut store, &entry(&nic.label, &nic.host), false);
        }
    }
}

/// Deletes a host end, known by its name and hardware address. `false`: it is still there.
fn remove(host: &[u8], mac: Mac) -> bool {
    const TRIES: usize = 3;
    (0..TRIES).any(|_| {
        let Ok(mut netlink) = Netlink::open() else { return false };
        match netlink.find(host) {
            Ok(Some(link)) if link.mac == Some(mac) => netlink.ask_one(|batch| batch.delete(link.index)).is_ok(),
            Ok(_) => true,
            Err(_) => false,
        }
    })
}

/// Deletes NICs of the caller's between a bridge and a network namespace.
///
/// # Errors
/// There is none, or it cannot be deleted; in words.
pub fn delete(caller: &Caller, request: &Delete, netns: &OwnedFd) -> Result<(), Failure> {
    let mut netlink = Netlink::open().map_err(|error| system("open a netlink socket", error))?;
    let nsid = netlink.nsid(netns.as_fd()).unwrap_or(None);
    let ours = own_nics(caller, &mut netlink)?;
    let wanted: Vec<_> = ours
        .into_iter()
        .filter(|(_, label)| label.bridge == request.bridge)
        .filter(|(link, label)| match &request.nic {
            Some(name) if link.name == *name => true,
            Some(name) => label.nic == *name && nsid.is_some() && link.peer_nsid == nsid,
            None => nsid.is_some() && link.peer_nsid == nsid,
        })
        .collect();
    if wanted.is_empty() {
        let nic = request.nic.as_deref().map_or_else(|| "any NIC".to_owned(), shown);
        let why = format!("you have no such NIC: {nic} on {} (see usernet list)", shown(&request.bridge));
        return Err(Failure::new(why).status(status::NOT_PERMITTED));
    }
    let ovs = request.bridge != NO_BRIDGE && find_bridge(&mut netlink, &request.bridge)?.kind != b"bridge";
    wanted.iter().try_for_each(|(link, label)| delete_one(caller, &mut netlink, link, label, ovs))
}

/// Deletes the caller's NIC whose host end has this name.
///
/// # Errors
/// As [`delete`].
pub fn detach(caller: &Caller, nic: &[u8]) -> Result<(), Failure> {
    let mut netlink = Netlink::open().map_err(|error| system("open a netlink socket", error))?;
    let found = own_nics(caller, &mut netlink)?.into_iter().find(|(link, _)| link.name == nic);
    let Some((link, label)) = found else {
        let why = format!("you have no NIC with the host end {} (see usernet list)", shown(nic));
        return Err(Failure::new(why).status(status::NOT_PERMITTED));
    };
    let ovs = label.bridge != NO_BRIDGE && link.master == 0 && !label.bridge.is_empty()
        || find_bridge(&mut netlink, &label.bridge).is_ok_and(|bridge| bridge.kind != b"bridge");
    delete_one(caller, &mut netlink, &link, &label, ovs)
}

fn delete_one(caller: &Caller, netlink: &mut Netlink, link: &Link, label: &Label, ovs: bool) -> Result<(), Failure> {
    if ovs {
        // As the original: the port goes, and the link with its network namespace.
        return ovs::run(caller, "del-port", &label.bridge, &link.name);
    }
    match netlink.ask_one(|batch| batch.delete(link.index)) {
        Ok(_) | Err(Errno::ENODEV) => {}
        Err(error) => return Err(system(&format!("delete {}", shown(&link.name)), error)),
    }
    let root = FullRoot::begin(caller)?;
    let mut store = Store::open(caller, &root)?;
    drop(root);
    drop_claim(caller, &mut store, &entry(label, &link.name), false)
}

/// The caller's NICs: those whose alias or name carries his uid; with what the ledger says where there is no alias.
fn own_nics(caller: &Caller, netlink: &mut Netlink) -> Result<Vec<(Link, Label)>, Failure> {
    let root = FullRoot::begin(caller)?;
    let content = peek(&root)?;
    drop(root);
    let links = netlink.veths(None).map_err(|error| system("dump the links", error))?;
    Ok(links
        .into_iter()
        .filter_map(|link| label_of(&link, &content).map(|label| (link, label)))
        .filter(|(_, label)| label.uid == caller.uid)
        .collect())
}

/// What the alias of a link says, or its name and the ledger; `None`: it is not one of these NICs.
#[must_use]
pub fn label_of(link: &Link, content: &[u8]) -> Option<Label> {
    if let Some(label) = Label::parse(&link.alias) {
        return Some(label);
    }
    let entry = entries(content).filter_map(|(_, entry)| entry).find(|entry| entry.nic == link.name);
    let uid = uid_in(&link.name)?;
    let (pot, bridge) = entry.map_or_else(Default::default, |e| (e.pot.to_vec(), e.bridge.to_vec()));
    Some(Label { uid, pot, bridge, ..Label::default() })
}

fn find_bridge(netlink: &mut Netlink, name: &[u8]) -> Result<Link, Failure> {
    let link = netlink.find(name).map_err(|error| system(&format!("look up {}", shown(name)), error))?;
    let link = link.ok_or_else(|| no_bridge(name))?;
    if link.kind != b"bridge" && ovs::program().is_none() {
        let why = format!("{} is no bridge, and there is no ovs-vsctl for it to be one of Open vSwitch", shown(name));
        return Err(Failure::new(why).status(status::CONFIG));
    }
    Ok(link)
}

fn no_bridge(name: &[u8]) -> Failure {
    let name = shown(name);
    let why = format!(
        "there is no bridge {name}: an administrator can make it: ip link add {name} type bridge && ip link set {name} up"
    );
    Failure::new(why).status(status::CONFIG)
}

fn entry<'e>(label: &'e Label, host: &'e [u8]) -> Entry<'e> {
    Entry { pot: &label.pot, kind: b"veth", bridge: &label.bridge, nic: host }
}

/// A fresh name for a host end, as the original forms it: `veth<uid>_XXXX`, or `vethXXXXXX` for uids whose digits do
/// not fit and for root.
fn host_name(uid: u32) -> Vec<u8> {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let (mut name, random) = match uid {
        1..=65536 => (format!("veth{uid}_").into_bytes(), 4),
        _ => (b"veth".to_vec(), 6),
    };
    let mut bits = RandomState::new().hash_one(1_u8);
    for _ in 0..random {
        name.push(LETTERS.get(usize::try_from(bits % 62).unwrap_or(0)).copied().unwrap_or(b'0'));
        bits /= 62;
    }
    name
}

/// The uid in the name of a host end.
fn uid_in(name: &[u8]) -> Option<u32> {
    let (digits, rest) = name.strip_prefix(b"veth")?.split_last_chunk::<5>()?;
    plain_number(digits).filter(|_| rest.first() == Some(&b'_') && digits.first() != Some(&b'0'))
}

fn system(what: &str, error: Errno) -> Failure {
    Failure::new(format!("{what}: {}", error.desc())).status(status::SYSTEM)
}
