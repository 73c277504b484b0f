//! lxc-usernet(5): its grammar, and which line a NIC is charged to. Pure: no system call, no clock, no global.

#![forbid(unsafe_code)]

use crate::netlink::Mac;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The configuration file.
pub const PATH: &str = "/etc/lxc/lxc-usernet";

/// Longest field in bytes, as the original reads it.
const MAX_FIELD: usize = 99;

/// Longest name of a link in bytes (IFNAMSIZ - 1).
pub const MAX_NAME: usize = 15;

/// The highest count, as the original's integer has it.
const MAX_COUNT: u32 = i32::MAX as u32;

/// Whether the kernel takes these bytes as the name of a link (dev_valid_name() of net/core/dev.c).
#[must_use]
pub fn is_link_name(name: &[u8]) -> bool {
    let bad = |b: &u8| matches!(b, b'/' | b':' | b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r' | 0 | 0xa0);
    !name.is_empty() && name.len() <= MAX_NAME && name != b"." && name != b".." && !name.iter().any(bad)
}

/// A range of IPv4 addresses, with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    first: u32,
    last: u32,
    prefix: u8,
}

impl Pool {
    /// `A.B.C.D/N`, or `A.B.C.D-E.F.G.H/N` with both ends included.
    fn parse(text: &str) -> Option<Self> {
        let (range, prefix) = text.split_once('/')?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let address = |text: &str| text.parse::<Ipv4Addr>().ok().map(u32::from);
        let (first, last, prefix) = (address(first)?, address(last)?, number(prefix.as_bytes())?);
        let prefix = u8::try_from(prefix).ok().filter(|bits| (1..=32).contains(bits))?;
        let shift = 32_u32.saturating_sub(u32::from(prefix));
        let network = |address: u32| address.checked_shr(shift).unwrap_or(0);
        (first <= last && network(first) == network(last)).then_some(Self { first, last, prefix })
    }

    /// The address for a NIC: the one that `hash` points at, or the next that is not in `taken`; with its prefix.
    /// `None`: all are taken.
    #[must_use]
    pub fn address(&self, hash: u64, taken: &BTreeSet<Vec<u8>>) -> Option<String> {
        let size = u64::from(self.last.saturating_sub(self.first)).saturating_add(1);
        let begin = hash.checked_rem(size)?;
        // No more tries than there are addresses, nor than there can be NICs in the way.
        let tries = size.min(u64::try_from(taken.len()).ok()?.saturating_add(1));
        (0..tries).find_map(|step| {
            let at = begin.saturating_add(step).checked_rem(size)?;
            let address = self.first.checked_add(u32::try_from(at).ok()?)?;
            let shown = format!("{}/{}", Ipv4Addr::from(address), self.prefix);
            (!taken.contains(shown.as_bytes())).then_some(shown)
        })
    }
}

/// The words after COUNT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The port exchanges nothing with other isolated ports.
    pub isolated: bool,
    /// The port takes frames from its own hardware address alone.
    pub locked: bool,
    /// Hardware addresses are derived from user, container and name.
    pub stable_mac: bool,
    /// VLAN of the port.
    pub vid: Option<u16>,
    /// MTU of both ends in bytes.
    pub mtu: Option<u32>,
    /// Addresses of which each NIC gets one, to be reported.
    pub pool: Option<Pool>,
}

/// To whom a line grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A user, by name.
    User(Vec<u8>),
    /// The members of a group, by its name.
    Group(Vec<u8>),
}

/// A line with four fields, of type `veth`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, from 1.
    pub number: u64,
    /// The first field: the pot that NICs are charged to.
    pub pot: Vec<u8>,
    /// The first field, read.
    pub who: Who,
    /// The third field.
    pub bridge: Vec<u8>,
    /// How many NICs, and how they are made; or why the line grants nothing.
    pub grant: Result<(u32, Options), String>,
}

/// Reads one line. `None` for an empty line, a comment, and a line for another type than `veth`.
///
/// # Errors
/// Why the line is ignored, whoever it is meant for.
pub fn parse_line(number: u64, line: &[u8]) -> Result<Option<Line>, String> {
    if line.trim_ascii().is_empty() || line.first() == Some(&b'#') {
        return Ok(None);
    }
    if line.first().is_some_and(u8::is_ascii_whitespace) {
        return Err("it begins with a blank: remove it".to_owned());
    }
    let (pot, rest) = field(line);
    let (kind, rest) = field(rest);
    let (bridge, rest) = field(rest);
    if [pot, kind, bridge].iter().any(|field| field.len() > MAX_FIELD) {
        return Err(format!("a field is longer than {MAX_FIELD} bytes"));
    }
    if rest.trim_ascii().is_empty() || rest.trim_ascii().first() == Some(&b'#') {
        return Err("it has fewer than four fields: NAME|@GROUP veth BRIDGE COUNT".to_owned());
    }
    if kind != b"veth" {
        return Ok(None);
    }
    let who = match pot.split_first() {
        Some((b'@', group)) => Who::Group(group.to_vec()),
        _ => Who::User(pot.to_vec()),
    };
    let grant = parse_grant(rest);
    Ok(Some(Line { number, pot: pot.to_vec(), who, bridge: bridge.to_vec(), grant }))
}

/// The bytes up to the next blank or tab, and what follows the white space after them, as scanf(3) splits them.
fn field(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| matches!(b, b' ' | b'\t')).unwrap_or(text.len());
    let (field, rest) = text.split_at_checked(end).unwrap_or((text, &[]));
    (field, rest.trim_ascii_start())
}

fn parse_grant(text: &[u8]) -> Result<(u32, Options), String> {
    let text = text.split(|b| *b == b'#').next().unwrap_or_default();
    let mut words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let count = words.next().unwrap_or_default();
    let (negative, digits) = match count.split_first() {
        Some((b'+', digits)) => (false, digits),
        Some((b'-', digits)) => (true, digits),
        _ => (false, count),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(format!("the count \"{}\" is no number", shown(count)));
    }
    if negative {
        return Err(format!("the count {} is negative", shown(count)));
    }
    // All digits, so what does not fit is too large.
    let count = number(digits).unwrap_or(MAX_COUNT).min(MAX_COUNT);
    let mut options = Options::default();
    for word in words {
        parse_option(word, &mut options)?;
    }
    if count == 0 { Err("its count is 0".to_owned()) } else { Ok((count, options)) }
}

fn parse_option(word: &[u8], options: &mut Options) -> Result<(), String> {
    let text = core::str::from_utf8(word).unwrap_or_default();
    let bad = |what: &str| Err(format!("option \"{}\": {what}", shown(word)));
    match text.split_once('=').unwrap_or((text, "")) {
        ("isolated", "") if text == "isolated" => options.isolated = true,
        ("locked", "") if text == "locked" => options.locked = true,
        ("mac", "stable") => options.stable_mac = true,
        ("vid", value) => match number(value.as_bytes()).and_then(|n| u16::try_from(n).ok()) {
            Some(vid) if (1..=4094).contains(&vid) => options.vid = Some(vid),
            _ => return bad("a VLAN is a number from 1 to 4094"),
        },
        ("mtu", value) => match number(value.as_bytes()) {
            Some(mtu) if (68..=65535).contains(&mtu) => options.mtu = Some(mtu),
            _ => return bad("an MTU is a number from 68 to 65535"),
        },
        ("addr", value) => match Pool::parse(value) {
            Some(pool) => options.pool = Some(pool),
            None => return bad("addresses are A.B.C.D/N or A.B.C.D-E.F.G.H/N, all in one network"),
        },
        _ => return bad("there is no such option (isolated, locked, mac=stable, vid=N, mtu=N, addr=...)"),
    }
    Ok(())
}

/// Decimal digits as a number.
fn number(digits: &[u8]) -> Option<u32> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    core::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

fn shown(word: &[u8]) -> String {
    String::from_utf8_lossy(word).chars().take(40).collect()
}

/// The NICs that are charged on one bridge.
#[derive(Clone, Debug, Default)]
pub struct Charges {
    /// For each pot the host names of its NICs.
    pub pots: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
    /// NICs of the caller that no record says the pot of.
    pub strays: BTreeSet<Vec<u8>>,
}

/// Where the next NIC goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The line with room that the NIC is charged to; `None`: every pot is full.
    pub line: Option<&'a Line>,
    /// How many NICs its pot has without this one.
    pub used: usize,
    /// The pots that the strays were charged to.
    pub strays: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Charges {
    /// Adds a NIC to a pot.
    pub fn add(&mut self, pot: &[u8], nic: &[u8]) {
        self.pots.entry(pot.to_vec()).or_default().insert(nic.to_vec());
    }

    /// How many NICs a pot has.
    #[must_use]
    pub fn used(&self, pot: &[u8]) -> usize {
        self.pots.get(pot).map_or(0, BTreeSet::len)
    }

    /// Whether the pot of a line has fewer NICs than the line's count.
    #[must_use]
    pub fn has_room(&self, line: &Line) -> bool {
        let count = line.grant.as_ref().map_or(0, |(count, _)| *count);
        self.used(&line.pot) < usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// The charging rule: lines are tried from top to bottom, each is a pot named by its first field, and a NIC is
    /// charged to the first whose pot has fewer NICs than that line's count. A NIC without a record is charged by the
    /// same rule before the new one.
    #[must_use]
    pub fn choose<'a>(&self, lines: &'a [Line]) -> Choice<'a> {
        let mut charges = self.clone();
        let mut strays = Vec::new();
        for nic in &self.strays {
            if let Some(line) = lines.iter().find(|line| charges.has_room(line)) {
                charges.add(&line.pot, nic);
                strays.push((line.pot.clone(), nic.clone()));
            }
        }
        let line = lines.iter().find(|line| charges.has_room(line));
        Choice { line, used: line.map_or(0, |line| charges.used(&line.pot)), strays }
    }
}

/// A number that is always the same for the same NIC: 64-bit FNV-1a over uid, container and name, then mixed so that
/// every bit depends on every byte (the finalizer of MurmurHash3).
#[must_use]
pub fn stable_hash(uid: u32, container: &[u8], nic: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let parts: [&[u8]; 5] = [&uid.to_le_bytes(), container, b"\0", nic, b"\0"];
    for byte in parts.into_iter().flatten() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ hash.wrapping_shr(33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash.wrapping_shr(33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash.wrapping_shr(33)
}

/// A hardware address of the container: locally administered, unicast.
#[must_use]
pub const fn peer_mac(hash: u64) -> Mac {
    let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
    // The host end's begin with fe, so this one's do not.
    let first = (a & 0x7c) | 0x02;
    [first, b, c, d, e, f]
}

/// A hardware address of a host end: it begins with `fe`, so that a bridge without an address of its own does not
/// take it over as the lowest of its ports'.
#[must_use]
pub const fn host_mac(hash: u64) -> Mac {
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [0xfe, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(text: &str) -> Line {
        parse_line(1, text.as_bytes()).unwrap().unwrap()
    }

    fn lines(text: &str) -> Vec<Line> {
        let each = |(at, line): (usize, &str)| parse_line(at as u64 + 1, line.as_bytes()).unwrap();
        text.lines().enumerate().filter_map(each).collect()
    }

    #[test]
    fn the_grammar_of_the_original_is_read() {
        for (text, count) in [
            ("alice veth br0 10", 10),
            ("alice\tveth \t br0\t10\r", 10),
            ("alice veth br0 +1", 1),
            ("alice veth br0 007", 7),
            ("alice veth br0 2147483648", MAX_COUNT),
            ("alice veth br0 99999999999999999999", MAX_COUNT),
            ("alice veth br0 3 # three", 3),
            ("alice veth br0 3#three", 3),
        ] {
            assert_eq!(line(text).grant.unwrap().0, count, "{text}");
        }
        assert_eq!(line("@users veth br0 1").who, Who::Group(b"users".to_vec()));
        assert_eq!(line("*  veth  br0,br1 1").bridge, b"br0,br1");
    }

    #[test]
    fn these_lines_grant_nothing_and_say_why() {
        for text in [
            "0",
            "-1",
            "0x2",
            "10abc",
            "1.5",
            "+",
            "-",
            "1 isolatd",
            "1 vid=0",
            "1 vid=4095",
            "1 mtu=67",
            "1 mac=stabel",
            "1 isolated=",
            "1 locked=",
            "1 addr=10.0.0.9-10.0.0.1/24",
            "1 addr=10.0.0.1",
            "1 addr=10.0.0.1-10.0.1.1/24",
            "1 locked=yes",
            "1 vid=+1",
            "1 \u{fffd}",
        ] {
            assert!(line(&format!("alice veth br0 {text}")).grant.is_err(), "{text}");
        }
        let long = format!("{} veth br0 1", "a".repeat(100));
        for text in [" alice veth br0 1", "\talice veth br0 1", "alice veth br0", "alice", "alice veth br0 #1", &long] {
            assert!(parse_line(1, text.as_bytes()).is_err(), "{text}");
        }
        for text in ["", "  ", "\r", "#alice veth br0 1", "alice phys br0 1"] {
            assert_eq!(parse_line(1, text.as_bytes()), Ok(None), "{text}");
        }
    }

    #[test]
    fn options_are_words_in_any_order() {
        let (count, options) =
            line("a veth b 2 mtu=1400 isolated addr=10.0.3.100-10.0.3.101/24 mac=stable locked vid=7 #x")
                .grant
                .unwrap();
        assert_eq!(count, 2);
        assert!(options.isolated && options.locked && options.stable_mac);
        assert_eq!((options.vid, options.mtu), (Some(7), Some(1400)));
        let pool = options.pool.unwrap();
        let mut taken = BTreeSet::new();
        for _ in 0..2 {
            assert!(taken.insert(pool.address(77, &taken).unwrap().into_bytes()));
        }
        assert_eq!(pool.address(77, &taken), None);
        assert!(taken.contains(&b"10.0.3.100/24"[..]));
    }

    #[test]
    fn the_table_of_the_charging_rule() {
        for (file, expected) in [
            ("alice veth br0 1\n@alice veth br0 2", 3),
            ("@alice veth br0 2\nalice veth br0 1", 3),
            ("alice veth br0 1\nalice veth br0 2", 2),
            ("alice veth br0 2\nalice veth br0 2", 2),
            ("alice veth br0 2\nalice veth br0 -5", 2),
        ] {
            assert_eq!(fill(&lines(file), 0), expected, "{file}");
        }
    }

    /// How many NICs can be made when `strays` are there already.
    fn fill(lines: &[Line], strays: usize) -> usize {
        let strays = (0..strays).map(|n| format!("s{n}").into_bytes()).collect();
        let mut charges = Charges { strays, ..Charges::default() };
        let mut made = 0;
        while let Some(line) = charges.choose(lines).line {
            charges.add(&line.pot.clone(), format!("n{made}").as_bytes());
            made += 1;
            assert!(made < 1000);
        }
        made
    }

    #[test]
    fn derived_addresses_are_local_unicast_and_fixed() {
        let hash = stable_hash(1001, b"c1", b"eth0");
        // Written down: an address that an administrator has noted stays the same with every version.
        assert_eq!(hash, 0x0581_1399_48b8_b9ca);
        assert_ne!(hash, stable_hash(1001, b"c1e", b"th0"));
        assert_ne!(hash, stable_hash(1002, b"c1", b"eth0"));
        assert_eq!(host_mac(hash)[0], 0xfe);
        for hash in 0..300_u64 {
            assert_eq!(peer_mac(hash)[0] & 3, 2);
            assert_ne!(peer_mac(hash)[0], 0xfe);
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..160)) {
            let _ = parse_line(1, &line);
        }

        #[test]
        fn a_line_is_what_was_written(
            pot in "@?[a-z][a-z0-9-]{0,20}", bridge in "[a-z0-9.]{1,15}", count in 1..u32::MAX,
            blanks in proptest::collection::vec("[ \t]{1,3}", 3), end in "[ \t]{0,2}\r?",
        ) {
            let text = format!("{pot}{}veth{}{bridge}{}{count}{end}", blanks[0], blanks[1], blanks[2]);
            let line = line(&text);
            prop_assert_eq!(line.pot, pot.as_bytes());
            prop_assert_eq!(line.bridge, bridge.as_bytes());
            prop_assert_eq!(line.grant.unwrap(), (count.min(MAX_COUNT), Options::default()));
        }

        #[test]
        fn the_quota_is_the_sum_over_pots_of_the_largest_count(
            file in proptest::collection::vec((0..4_usize, -2..6_i32), 0..8), strays in 0..4_usize,
        ) {
            let pots = ["alice", "@a", "@b", "@c"];
            let text: String = file.iter().map(|(pot, count)| format!("{} veth br0 {count}\n", pots[*pot])).collect();
            let mut largest = BTreeMap::new();
            for (pot, count) in &file {
                let entry = largest.entry(*pot).or_insert(0);
                *entry = (*entry).max(*count);
            }
            let total: i32 = largest.values().sum();
            prop_assert_eq!(fill(&lines(&text), strays), usize::try_from(total).unwrap().saturating_sub(strays));
        }

        #[test]
        fn a_line_with_an_unknown_word_grants_nothing(word in "[a-z]{1,9}(=[a-z0-9]{0,4})?") {
            prop_assume!(word != "isolated" && word != "locked" && word != "mac=stable");
            prop_assume!(!word.starts_with("vid=") && !word.starts_with("mtu="));
            let text = format!("alice veth br0 5 {word}");
            prop_assert!(line(&text).grant.is_err());
        }
    }
}
