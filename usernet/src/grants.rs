//! The lines of lxc-usernet(5) that are the caller's.

#![forbid(unsafe_code)]

use crate::policy::{Line, PATH, Who, parse_line};
use crate::status;
use core::ops::ControlFlow;
use helper::caller::{Caller, plain_number};
use helper::enter::FullRoot;
use helper::report::Failure;
use helper::trusted::{Distrust, Trusted, Version};
use std::collections::BTreeMap;

const GROUP: &str = "/etc/group";

/// The caller's lines, in file order, and what in the file is ignored.
#[derive(Debug)]
pub struct Grants {
    /// The caller's name: the owner of what is charged to him alone.
    pub name: Vec<u8>,
    /// Lines of type veth that are for the caller, whatever their bridge; also those that grant nothing.
    pub lines: Vec<Line>,
    /// Lines that are for nobody, by number, with the reason.
    pub ignored: Vec<(u64, String)>,
    /// The files that this was read from, as they were then.
    sources: Vec<(&'static str, Version)>,
}

impl Grants {
    /// Reads the file as `caller`, whose supplementary groups are `groups`; `everyone` takes the lines of all.
    ///
    /// # Errors
    /// The file, /etc/group or /etc/passwd is missing, unreadable or not believed; in words.
    pub fn read(caller: &Caller, groups: &[u32], everyone: bool) -> Result<Self, Failure> {
        let name = caller.account.names.first().cloned().ok_or_else(|| {
            let why = format!("uid {} has no entry in /etc/passwd, and {PATH} grants by name", caller.uid);
            Failure::new(why).status(status::NOT_PERMITTED)
        })?;
        let (mut lines, mut ignored) = (Vec::new(), Vec::new());
        let mut sources = Vec::new();
        let version = each_line(PATH, |number, line| {
            match parse_line(number, line) {
                Ok(Some(line)) if everyone || matches!(&line.who, Who::Group(_)) => lines.push(line),
                Ok(Some(line)) if line.who == Who::User(name.clone()) => lines.push(line),
                Ok(_) => {}
                Err(why) => ignored.push((number, why)),
            }
            ControlFlow::Continue(())
        })?;
        sources.push((PATH, version));
        if !everyone && lines.iter().any(|line| matches!(line.who, Who::Group(_))) {
            let (gids, version) = gids_of(&lines)?;
            sources.push((GROUP, version));
            lines.retain(|line| match &line.who {
                Who::User(_) => true,
                Who::Group(group) => gids.get(group).is_some_and(|gid| groups.contains(gid)),
            });
        }
        Ok(Self { name, lines, ignored, sources })
    }

    /// Whether the files still are what was read: a call that its user stopped before it took his lock may be continued
    /// long after its grant was taken away.
    ///
    /// # Errors
    /// They are not, or cannot be looked at; in words.
    pub fn still_hold(&self, _root: &FullRoot) -> Result<(), Failure> {
        for (path, version) in &self.sources {
            if opened(path)?.version().as_ref() != Ok(version) {
                let why = format!("{path} has changed meanwhile: nothing was made: try again");
                return Err(Failure::new(why).status(status::LATER));
            }
        }
        Ok(())
    }

    /// The lines for `bridge` that grant something, in file order.
    ///
    /// # Errors
    /// There is none: in words, with what comes nearest to one.
    pub fn on(&self, bridge: &[u8]) -> Result<Vec<Line>, Failure> {
        let (granted, refused): (Vec<_>, Vec<_>) =
            self.lines.iter().filter(|line| line.bridge == bridge).cloned().partition(|line| line.grant.is_ok());
        if !granted.is_empty() {
            return Ok(granted);
        }
        let (name, link) = (String::from_utf8_lossy(&self.name), String::from_utf8_lossy(bridge));
        let mut why = format!("{PATH} grants {name} no veth on {link}");
        for line in refused.iter().take(2) {
            if let Err(reason) = &line.grant {
                why.push_str(&format!("; line {} grants nothing: {reason}", line.number));
            }
        }
        if refused.is_empty() {
            let mut others: Vec<_> = self.lines.iter().filter(|line| line.grant.is_ok()).map(|l| &l.bridge).collect();
            others.dedup();
            let others: Vec<_> = others.iter().take(4).map(|bridge| String::from_utf8_lossy(bridge)).collect();
            if !others.is_empty() {
                why.push_str(&format!(", only on {}", others.join(", ")));
            }
            why.push_str(&format!("; an administrator can add \"{name} veth {link} 1\""));
        }
        Err(Failure::new(why).status(status::NOT_PERMITTED))
    }
}

/// The gid of each group that is named in `lines`: the first line with the name counts.
fn gids_of(lines: &[Line]) -> Result<(BTreeMap<Vec<u8>, u32>, Version), Failure> {
    let wanted = |name: &[u8]| lines.iter().any(|line| matches!(&line.who, Who::Group(group) if group == name));
    let mut gids = BTreeMap::new();
    let version = each_line(GROUP, |_, line| {
        // group(5): name, password, gid, members.
        let mut fields = line.splitn(4, |b| *b == b':');
        if let (Some(name), Some(_), Some(gid)) = (fields.next(), fields.next(), fields.next())
            && let Some(gid) = plain_number(gid)
            && wanted(name)
        {
            gids.entry(name.to_vec()).or_insert(gid);
        }
        ControlFlow::Continue(())
    })?;
    Ok((gids, version))
}

/// Calls `each` for each line; the version of the file is taken before the first.
fn each_line(path: &str, each: impl FnMut(u64, &[u8]) -> ControlFlow<()>) -> Result<Version, Failure> {
    let failed = |why: String| Failure::new(format!("read {path}: {why}")).status(status::CONFIG);
    let mut file = opened(path)?;
    let version = file.version().map_err(failed)?;
    file.each_line(each).map_err(failed)?;
    Ok(version)
}

fn opened(path: &str) -> Result<Trusted, Failure> {
    let failed = |why: String| Failure::new(why).status(status::CONFIG);
    match Trusted::open(path) {
        Ok(file) => Ok(file),
        Err(Distrust::Missing) => Err(failed(format!(
            "cannot read {path}: there is no such file; an administrator writes a line like \"alice veth lxcbr0 10\" into it"
        ))),
        Err(Distrust::Refused(why)) => Err(failed(why)),
    }
}
