//! argv becomes a request. No privilege, no kernel.

#![forbid(unsafe_code)]

use crate::netlink::Mac;
use crate::policy::is_link_name;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// The name that asks for the first free `eth0`, `eth1`...
pub const FIRST_FREE: &[u8] = b"eth%d";

/// The link that stands for no bridge.
pub const NO_BRIDGE: &[u8] = b"none";

/// What is to be attached to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The process whose network namespace gets the peer; `None`: the one of the handoff record on standard input.
    pub pid: Option<i32>,
    /// A bridge, or `none`.
    pub bridge: Vec<u8>,
    /// Name of the peer.
    pub nic: Vec<u8>,
    /// Hardware address of the peer.
    pub mac: Option<Mac>,
    /// The container's name, for labels and derived addresses.
    pub container: Vec<u8>,
}

/// What is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// A path to the network namespace that the peer is in.
    pub netns: Vec<u8>,
    /// The bridge that the host end is a port of.
    pub bridge: Vec<u8>,
    /// Name of the host end or of the peer; `None`: every NIC between the two.
    pub nic: Option<Vec<u8>>,
}

/// What the caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Make a NIC; with `true` only say whether it would be made.
    Attach(Attach, bool),
    /// lxc-user-nic delete.
    Delete(Delete),
    /// usernet detach: a host end.
    Detach(Vec<u8>),
    /// NICs and quotas, as JSON or as a table.
    List(bool),
    /// Bring the ledger up to date.
    Prune,
    /// Which lines grant the caller anything.
    CheckFile,
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// Reads the words after argv\[0\] of lxc-user-nic.
///
/// # Errors
/// What is wrong, in words; empty when nothing but the usage helps.
pub fn parse_drop_in(words: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut words: Vec<Vec<u8>> = words.into_iter().map(OsString::into_vec).collect();
    let check = words.first().is_some_and(|word| word == b"--check");
    if check {
        words.remove(0);
    }
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    match words.as_slice() {
        [b"--help", ..] if !check => Ok(Request::Help),
        [b"--version", ..] if !check => Ok(Request::Version),
        [b"create", _, container, pid, kind, link, name @ ..] if name.len() < 2 => {
            let nic = name.first().copied().unwrap_or(FIRST_FREE);
            let attach = Attach {
                pid: Some(parse_pid(pid)?),
                bridge: bridge(kind, link)?,
                nic: peer_name(nic)?,
                mac: None,
                container: container.to_vec(),
            };
            Ok(Request::Attach(attach, check))
        }
        [b"delete", _, _, netns, kind, link, name @ ..] if name.len() < 2 && !check => Ok(Request::Delete(Delete {
            netns: netns.to_vec(),
            bridge: bridge(kind, link)?,
            nic: name.first().map(|name| link_name(name)).transpose()?,
        })),
        [pid, kind, _] | [pid, kind, _, _] if !pid.is_empty() && pid.iter().all(u8::is_ascii_digit) && *kind == b"veth" => {
            Err("this is the command line of LXC 1.0; since LXC 2.0.9 it is: lxc-user-nic create LXCPATH NAME PID veth BRIDGE NICNAME".to_owned())
        }
        _ => Err(String::new()),
    }
}

/// Reads the words after argv\[0\] of usernet.
///
/// # Errors
/// As [`parse_drop_in`].
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let words: Vec<Vec<u8>> = words.into_iter().map(OsString::into_vec).collect();
    let mut words = words.iter().map(Vec::as_slice);
    let mut plain: Vec<&[u8]> = Vec::new();
    let (mut check, mut json, mut pid, mut mac, mut name, mut container) = (false, false, None, None, None, None);
    let mut options_of: Vec<&str> = Vec::new();
    while let Some(word) = words.next() {
        let (option, inline) = match word.iter().position(|b| *b == b'=') {
            Some(at) if word.starts_with(b"--") => (word.get(..at).unwrap_or(word), word.get(at.saturating_add(1)..)),
            _ => (word, None),
        };
        let mut value = || inline.or_else(|| words.next()).ok_or(format!("{} needs a value", shown(option)));
        match option {
            b"--help" => return Ok(Request::Help),
            b"--version" => return Ok(Request::Version),
            b"--check" if inline.is_none() => check = true,
            b"--json" if inline.is_none() => json = true,
            b"--pid" => pid = Some(parse_pid(value()?)?),
            b"--mac" => mac = Some(parse_mac(value()?)?),
            b"--name" => name = Some(peer_name(value()?)?),
            b"--container" => container = Some(value()?.to_vec()),
            [b'-', _, ..] => return Err(format!("unknown option {}", shown(word))),
            _ => plain.push(word),
        }
        match option {
            b"--pid" | b"--mac" | b"--name" | b"--container" => options_of.push("attach"),
            b"--json" => options_of.push("list"),
            b"--check" => options_of.push("attach or no command"),
            _ => {}
        }
    }
    let only = |command: &str| match options_of.iter().find(|of| !of.starts_with(command)) {
        Some(of) => Err(format!("an option here belongs to {of}")),
        None => Ok(()),
    };
    match plain.as_slice() {
        [b"attach", link] => {
            only("attach")?;
            let nic = name.map_or_else(|| peer_name(FIRST_FREE), Ok)?;
            let container = container.unwrap_or_default();
            Ok(Request::Attach(Attach { pid, bridge: bridge(b"veth", link)?, nic, mac, container }, check))
        }
        [b"detach", nic] => only("detach").and_then(|()| Ok(Request::Detach(link_name(nic)?))),
        [b"list"] => only("list").map(|()| Request::List(json)),
        [b"prune"] => only("prune").map(|()| Request::Prune),
        [] if check && options_of.len() == 1 => Ok(Request::CheckFile),
        [] => Err("a command is missing".to_owned()),
        [command, ..] => Err(format!("\"{}\" with these words is no command", shown(command))),
    }
}

/// A process id as strtol(3) with base 0 reads it to its end, as the original does: blanks and a plus sign before it,
/// hexadecimal after `0x`, octal after `0`.
fn parse_pid(word: &[u8]) -> Result<i32, String> {
    let digits = word.trim_ascii_start();
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let (digits, radix) = match digits {
        [b'0', b'x' | b'X', hex @ ..] => (hex, 16),
        [b'0', octal @ ..] if !octal.is_empty() => (octal, 8),
        _ => (digits, 10),
    };
    let plain = digits.iter().all(|b| char::from(*b).is_digit(radix));
    let number = core::str::from_utf8(digits).ok().filter(|_| plain).and_then(|d| i32::from_str_radix(d, radix).ok());
    number.filter(|pid| *pid > 0).ok_or_else(|| format!("\"{}\" is no process id", shown(word)))
}

fn parse_mac(word: &[u8]) -> Result<Mac, String> {
    let text = core::str::from_utf8(word).unwrap_or_default();
    let bytes: Vec<u8> = text
        .split(':')
        .filter(|byte| byte.len() == 2 && byte.bytes().all(|b| b.is_ascii_hexdigit()))
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let mac: Option<Mac> = bytes.try_into().ok().filter(|_| text.len() == 17);
    mac.filter(|mac: &Mac| *mac != [0; 6] && mac.first().is_some_and(|first| first & 1 == 0))
        .ok_or_else(|| format!("\"{}\" is no hardware address of one card (as 02:00:5e:10:00:01)", shown(word)))
}

fn bridge(kind: &[u8], link: &[u8]) -> Result<Vec<u8>, String> {
    if kind != b"veth" {
        return Err(format!("type \"{}\" is not supported: only veth is", shown(kind)));
    }
    link_name(link)
}

fn link_name(name: &[u8]) -> Result<Vec<u8>, String> {
    if is_link_name(name) {
        return Ok(name.to_vec());
    }
    Err(format!("\"{}\" is no name of a link: 1 to 15 bytes without blanks, \"/\" and \":\"", shown(name)))
}

/// The name of a peer: a name of a link, in which `%d` may stand for the first free number.
fn peer_name(name: &[u8]) -> Result<Vec<u8>, String> {
    let percents = name.iter().filter(|b| **b == b'%').count();
    if percents == 0 || (percents == 1 && name.windows(2).any(|pair| pair == b"%d")) {
        return link_name(name);
    }
    Err(format!("\"{}\" is no name of a link: \"%\" stands only in one \"%d\"", shown(name)))
}

/// A word of argv for a message, cut at 64 characters.
#[must_use]
pub fn shown(word: &[u8]) -> String {
    String::from_utf8_lossy(word).chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split('|').map(OsString::from).collect()
    }

    fn create(line: &str) -> Result<Attach, String> {
        match parse_drop_in(words(line))? {
            Request::Attach(attach, false) => Ok(attach),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_of_the_original_is_read() {
        let attach = create("create|/dev/null|dummy|42|veth|br0|eth0").unwrap();
        assert_eq!(
            (attach.pid, attach.bridge.as_slice(), attach.nic.as_slice()),
            (Some(42), &b"br0"[..], &b"eth0"[..])
        );
        for (pid, number) in [(" 42", 42), ("+42", 42), ("0x2a", 42), ("052", 42), ("2147483647", i32::MAX)] {
            assert_eq!(create(&format!("create|p|n|{pid}|veth|br0")).unwrap().pid, Some(number), "{pid}");
        }
        assert_eq!(create("create|p|n|1|veth|none").unwrap().nic, b"eth%d");
        for name in ["eth%d", "-x", "a", "123456789012345", "--help"] {
            assert_eq!(create(&format!("create|p|n|1|veth|br0|{name}")).unwrap().nic, name.as_bytes());
        }
        let delete = Request::Delete(Delete { netns: b"/x".to_vec(), bridge: b"br0".to_vec(), nic: None });
        assert_eq!(parse_drop_in(words("delete|p|n|/x|veth|br0")), Ok(delete));
        assert_eq!(parse_drop_in(words("--help")), Ok(Request::Help));
    }

    #[test]
    fn these_lines_of_the_drop_in_are_refused() {
        for line in ["", "create", "-h", "create|p|n|1|veth", "create|p|n|1|veth|br0|a|b", "make|p|n|1|veth|br0"] {
            assert_eq!(parse_drop_in(words(line)), Err(String::new()), "{line}");
        }
        for line in [
            "create|p|n|0|veth|br0",
            "create|p|n|-1|veth|br0",
            "create|p|n||veth|br0",
            "create|p|n|1x|veth|br0",
            "create|p|n|1 |veth|br0",
            "create|p|n|2147483648|veth|br0",
            "create|p|n|08|veth|br0",
            "create|p|n|1|macvlan|br0",
            "create|p|n|1|veth|1234567890123456",
            "create|p|n|1|veth|",
            "create|p|n|1|veth|br0|",
            "create|p|n|1|veth|br0|1234567890123456",
            "create|p|n|1|veth|br0|a/b",
            "create|p|n|1|veth|br0|a b",
            "create|p|n|1|veth|br0|..",
            "create|p|n|1|veth|br0|%s",
            "create|p|n|1|veth|br0|a%d%d",
            "delete|p|n|x|phys|br0|v",
            "42|veth|br0",
            "42|veth|br0|eth0",
        ] {
            let error = parse_drop_in(words(line)).unwrap_err();
            assert!(!error.is_empty(), "{line}");
        }
    }

    #[test]
    fn our_own_command_line_is_read() {
        let attach = |line: &str| match parse(words(line)) {
            Ok(Request::Attach(attach, check)) => (attach, check),
            other => panic!("{line}: {other:?}"),
        };
        let (all, check) = attach("attach|br0|--name|eth1|--pid=7|--mac|02:00:5E:10:00:01|--container|c1|--check");
        assert_eq!((all.pid, all.nic.as_slice(), check), (Some(7), &b"eth1"[..], true));
        assert_eq!(all.mac, Some([2, 0, 0x5e, 0x10, 0, 1]));
        assert_eq!(attach("attach|br0").0.pid, None);
        assert_eq!(parse(words("list|--json")), Ok(Request::List(true)));
        assert_eq!(parse(words("--check")), Ok(Request::CheckFile));
        assert_eq!(parse(words("detach|veth1_abcd")), Ok(Request::Detach(b"veth1_abcd".to_vec())));
        for line in [
            "",
            "attach",
            "attach|br0|x",
            "attach|br0|--pid",
            "attach|br0|--pid|0",
            "attach|br0|--json",
            "list|--pid|1",
            "prune|--check",
            "attach|br0|--mac|01:00:00:00:00:00",
            "attach|br0|--mac|2:0:0:0:0:1",
            "--json",
            "list|x",
            "attach|br0|--mac|00:00:00:00:00:00",
            "detach",
            "attach|br0|-x",
            "attach|br0|--check=1",
            "make|br0",
        ] {
            assert!(parse(words(line)).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_argv_panics(line in proptest::collection::vec(proptest::collection::vec(1..=255_u8, 0..12), 0..9)) {
            let line = || line.iter().cloned().map(OsString::from_vec);
            let _ = (parse(line()), parse_drop_in(line()));
        }

        #[test]
        fn a_name_that_passes_is_whole(name in proptest::collection::vec(1..=255_u8, 0..20)) {
            let words = ["attach", "br0", "--name"].map(OsString::from).into_iter().chain([OsString::from_vec(name.clone())]);
            if let Ok(Request::Attach(attach, _)) = parse(words) {
                prop_assert!(name.len() <= 15);
                prop_assert_eq!(attach.nic, name);
            }
        }
    }
}
