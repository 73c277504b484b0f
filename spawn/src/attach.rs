//! Network cards, the parent's side: usernet(1), or lxc-user-nic where there is none, puts them into the child's network
//! namespace.

#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Instant;

use crate::card::Card;
use crate::child::Child;
use crate::complain;
use crate::failure::{Failure, Outcome, one_line, words};
use crate::tool::{self, Tool};

/// Where LXC keeps lxc-user-nic: Debian and Fedora, Ubuntu (by architecture), Arch.
const LXC_PLACES: [&str; 4] =
    ["/usr/libexec/lxc", "/usr/lib/x86_64-linux-gnu/lxc", "/usr/lib/aarch64-linux-gnu/lxc", "/usr/lib/lxc"];

/// The tool that makes the cards, looked up once; none where no card is asked for.
#[derive(Debug)]
pub struct Attacher(Option<(Tool, Kind)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Usernet,
    LxcUserNic,
}

impl Attacher {
    /// Looks for usernet, see [`tool::places`], and then for lxc-user-nic there and where LXC has it.
    ///
    /// # Errors
    /// When neither is there with its privilege.
    pub fn find(cards: &[Card]) -> Outcome<Self> {
        if cards.is_empty() {
            return Ok(Self(None));
        }
        let mut places = tool::places();
        match Tool::find("usernet", &places, "userns-helpers, or lxc-user-nic of the package lxc in its place") {
            Ok(tool) => Ok(Self(Some((tool, Kind::Usernet)))),
            Err(failure) => {
                places.extend(LXC_PLACES.iter().map(|place| Path::new(place).to_owned()));
                let other = Tool::find("lxc-user-nic", &places, "the package lxc");
                other.map(|tool| Self(Some((tool, Kind::LxcUserNic)))).map_err(|_| failure)
            }
        }
    }

    /// Makes the cards, one after the other, in the network namespace of `child`. What was made, for each card
    /// `NAME:INDEX:HOST_NAME:HOST_INDEX`. Whatever fails, the cards end with the child.
    ///
    /// # Errors
    /// When the tool refuses one or has not ended at `deadline`; its own words are passed on.
    pub fn attach(&self, cards: &[Card], child: &Child, container: &str, deadline: Instant) -> Outcome<Vec<String>> {
        let Some((tool, kind)) = &self.0 else { return Ok(Vec::new()) };
        cards.iter().map(|card| one(tool, *kind, card, child, container, deadline)).collect()
    }
}

fn one(tool: &Tool, kind: Kind, card: &Card, child: &Child, container: &str, deadline: Instant) -> Outcome<String> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|errno| Failure::own(format!("cannot make a pipe: {}", words(errno))))?;
    let running = tool.start(arguments(kind, card, child.pid, container), &writer)?;
    drop(writer);
    let result = running.wait(deadline);
    if result != Some(0) {
        // A child that has ended has no network namespace: its own words are the cause.
        return Err(child.last_words().unwrap_or_else(|| {
            let failure = tool.failure(result, &reader);
            let text = match failure.text.strip_prefix(tool.name()) {
                Some(_) => failure.text,
                None => format!("{}: {}", tool.name(), failure.text),
            };
            Failure::own(format!("no card {} on {}: {text}", card.name, card.bridge))
        }));
    }
    let mut made = None;
    for line in tool::said(&reader).lines() {
        match line.split(':').collect::<Vec<_>>()[..] {
            [name, index, _, host_index]
                if name == card.name && index.parse::<u32>().is_ok() && host_index.parse::<u32>().is_ok() =>
            {
                made = Some(line.to_owned());
            }
            _ => complain(&one_line(line)),
        }
    }
    made.ok_or_else(|| {
        Failure::own(format!("{} has not said which card it made on {} as {}", tool.name(), card.bridge, card.name))
    })
}

fn arguments(kind: Kind, card: &Card, pid: i32, container: &str) -> Vec<String> {
    let pid = pid.to_string();
    let mut all: Vec<String> = match kind {
        Kind::Usernet => {
            vec!["attach", &card.bridge, "--name", &card.name, "--pid", &pid, "--container", container]
        }
        Kind::LxcUserNic => vec!["create", "/dev/null", container, &pid, "veth", &card.bridge, &card.name],
    }
    .into_iter()
    .map(str::to_owned)
    .collect();
    // lxc-user-nic takes none; the child sets it in any case.
    if let (Kind::Usernet, Some(mac)) = (kind, card.mac) {
        let octets: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
        all.extend(["--mac".to_owned(), octets.join(":")]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    #[test]
    fn the_tools_are_asked_in_their_own_words() {
        let cards = crate::card::cards(&[OsString::from("br0,mac=02:00:5e:10:00:0f"), "br1,name=x".into()]).unwrap();
        let line = |kind, card: &Card| arguments(kind, card, 42, "c7").join(" ");
        assert_eq!(
            line(Kind::Usernet, &cards[0]),
            "attach br0 --name eth0 --pid 42 --container c7 --mac 02:00:5e:10:00:0f"
        );
        assert_eq!(line(Kind::Usernet, &cards[1]), "attach br1 --name x --pid 42 --container c7");
        assert_eq!(line(Kind::LxcUserNic, &cards[0]), "create /dev/null c7 42 veth br0 eth0");
    }
}
