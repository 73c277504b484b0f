//! Network cards: the words of `--net` and the keys of `lxc.net.N`, and what the child does with a card that usernet(1) has put into its network
//! namespace.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::net::IpAddr;

use crate::config::Net;
use crate::failure::{Failure, Outcome};
use crate::netlink::{Mac, Netlink, Request};
use crate::report::{Step, Try, at};

/// Cards at most.
pub const MAX_CARDS: usize = 16;
/// Addresses of one card at most.
const MAX_ADDRESSES: usize = 16;

/// `--net BRIDGE[,name=NAME][,mac=MAC][,mtu=BYTES][,ip=ADDRESS/PREFIX][,gw=ADDRESS]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Card {
    /// The bridge of the host, or `none`.
    pub bridge: String,
    /// The card's name inside.
    pub name: String,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// What the child asks of the kernel, in this order; the card's index first.
    requests: Vec<Asked>,
}

/// A request with what is said when it fails.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    step: Step,
    object: CString,
    request: Request,
}

/// One `--net` as words.
#[derive(Debug, Default)]
struct Words {
    bridge: String,
    name: Option<String>,
    mac: Option<Mac>,
    mtu: Option<u32>,
    addresses: Vec<(IpAddr, u8)>,
    gateways: Vec<IpAddr>,
    /// It is not brought up.
    down: bool,
}

/// The cards of all `--net` together. One without a name gets the first of eth0, eth1... that no other has.
///
/// # Errors
/// With the word that is wrong.
pub fn cards(options: &[OsString]) -> Outcome<Vec<Card>> {
    if options.len() > MAX_CARDS {
        return Err(Failure::own(format!("more than {MAX_CARDS} times --net")));
    }
    together(options.iter().map(|option| words(option)).collect::<Outcome<_>>()?)
}

/// The cards of a configuration, in the order of their numbers.
///
/// # Errors
/// With the place of the card whose keys make no card.
pub fn of_config(nets: &BTreeMap<u32, Net>) -> Outcome<Vec<Card>> {
    let mut all = Vec::new();
    for (number, net) in nets.iter().filter(|(_, net)| net.kind == "veth") {
        let origin = net.origin.as_ref().map_or_else(String::new, |origin| format!("{origin}: "));
        let wrong = |failure: Failure| Failure::own(format!("{origin}lxc.net.{number}: {}", failure.text));
        let mut option = net.link.clone().unwrap_or_else(|| "none".to_owned());
        for (key, value) in [("name", &net.name), ("mac", &net.mac.as_deref().map(filled).transpose()?)] {
            option.extend(value.iter().flat_map(|value| [",", key, "=", value]));
        }
        option.extend(net.mtu.map(|mtu| format!(",mtu={mtu}")));
        option.extend(net.addresses.iter().map(|address| format!(",ip={address}")));
        option.extend(net.gateways.iter().map(|gateway| format!(",gw={gateway}")));
        let mut card = words(OsStr::new(&option)).map_err(wrong)?;
        card.down = !net.up;
        if card.down && !card.gateways.is_empty() {
            return Err(wrong(Failure::own("a gateway needs a card that is up: lxc.net.N.flags = up")));
        }
        all.push(card);
    }
    if all.len() > MAX_CARDS {
        return Err(Failure::own(format!("more than {MAX_CARDS} lxc.net.N")));
    }
    together(all)
}

/// A hardware address in which every x has become a random digit.
fn filled(template: &str) -> Outcome<String> {
    let places = template.matches(['x', 'X']).count();
    if places == 0 {
        return Ok(template.to_owned());
    }
    let mut random = [0_u8; 12];
    let file =
        std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random));
    file.map_err(|error| Failure::own(format!("cannot read /dev/urandom: {error}")))?;
    let mut digits = random.iter().map(|byte| char::from_digit(u32::from(byte & 0xf), 16).unwrap_or('0'));
    let fill = |c: char| if c == 'x' || c == 'X' { digits.next().unwrap_or('0') } else { c };
    Ok(template.chars().map(fill).collect())
}

fn together(all: Vec<Words>) -> Outcome<Vec<Card>> {
    let mut names: Vec<String> = all.iter().filter_map(|card| card.name.clone()).collect();
    for (at, name) in names.iter().enumerate() {
        if names.iter().skip(at + 1).any(|other| other == name) {
            return Err(Failure::own(format!("--net: two cards are called {name}")));
        }
    }
    for is_family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let gateways: Vec<&IpAddr> = all.iter().flat_map(|card| &card.gateways).filter(|gw| is_family(gw)).collect();
        if let [first, second, ..] = gateways[..] {
            return Err(Failure::own(format!("--net: gw={first} and gw={second}: there is one default route")));
        }
    }
    let mut cards = Vec::with_capacity(all.len());
    for card in all {
        let name = match &card.name {
            Some(name) => name.clone(),
            None => {
                let free = (0..=MAX_CARDS).map(|n| format!("eth{n}")).find(|name| !names.contains(name));
                let free = free.unwrap_or_default();
                names.push(free.clone());
                free
            }
        };
        cards.push(card.named(name)?);
    }
    Ok(cards)
}

fn words(option: &OsStr) -> Outcome<Words> {
    let shown = option.display().to_string();
    let wrong = |why: String| Failure::own(format!("--net {shown}: {why}"));
    let text = option.to_str().ok_or_else(|| wrong("holds a byte that is no ASCII".to_owned()))?;
    let mut parts = text.split(',');
    let bridge = parts.next().unwrap_or_default();
    if !is_link_name(bridge) || bridge.contains('=') {
        return Err(wrong("must begin with the name of a bridge, as in br0,ip=10.0.3.5/24,gw=10.0.3.1".to_owned()));
    }
    let mut card = Words { bridge: bridge.to_owned(), ..Words::default() };
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let twice = match key {
            "name" => {
                if !is_link_name(value) || value.contains('%') || value == "lo" {
                    return Err(wrong(format!("\"{value}\" is no name of a card: 1 to 15 letters and digits, not lo")));
                }
                card.name.replace(value.to_owned()).is_some()
            }
            "mac" => card.mac.replace(mac(value).map_err(&wrong)?).is_some(),
            "mtu" => {
                let mtu = value.parse().ok().filter(|mtu| (68..=65_535).contains(mtu) && !value.starts_with('+'));
                let mtu = mtu.ok_or_else(|| wrong(format!("mtu={value} is no number from 68 to 65535")))?;
                card.mtu.replace(mtu).is_some()
            }
            "ip" => {
                card.addresses.push(address(value).map_err(&wrong)?);
                card.addresses.len() > MAX_ADDRESSES
            }
            "gw" => {
                let gateway = value.parse().map_err(|_| wrong(format!("gw={value} is no address")))?;
                card.gateways.push(gateway);
                card.gateways.iter().filter(|gw| gw.is_ipv4() == gateway.is_ipv4()).count() > 1
            }
            _ => return Err(wrong(format!("\"{part}\" is none of name=, mac=, mtu=, ip= and gw="))),
        };
        if twice {
            return Err(wrong(format!("{key}= stands too often")));
        }
    }
    for gateway in &card.gateways {
        card.check_gateway(*gateway).map_err(&wrong)?;
    }
    Ok(card)
}

impl Words {
    /// The kernel takes a gateway only if it can be reached without one.
    fn check_gateway(&self, gateway: IpAddr) -> Result<(), String> {
        let link_local = matches!(gateway, IpAddr::V6(address) if address.is_unicast_link_local());
        let own = self.addresses.iter().any(|(address, _)| *address == gateway);
        let near =
            self.addresses.iter().any(|(address, prefix)| network(*address, *prefix) == network(gateway, *prefix));
        match (own, near || link_local) {
            (true, _) => Err(format!("gw={gateway} is the card's own address")),
            (false, true) => Ok(()),
            (false, false) => Err(format!("gw={gateway} is in the network of no ip= of this card")),
        }
    }

    fn named(self, name: String) -> Outcome<Card> {
        let mut requests = Vec::new();
        let mut ask = |step, object: String, request| {
            let object = CString::new(object).map_err(|error| Failure::own(format!("--net: {error}")))?;
            requests.push(Asked { step, object, request });
            Ok::<(), Failure>(())
        };
        ask(Step::Card, format!("{name} on {}", self.bridge), Request::find(name.as_bytes()))?;
        if let Some(mac) = self.mac {
            ask(Step::CardMac, name.clone(), Request::set_mac(mac))?;
        }
        if let Some(mtu) = self.mtu {
            ask(Step::CardMtu, name.clone(), Request::set_mtu(mtu))?;
        }
        if !self.down {
            ask(Step::CardUp, name.clone(), Request::bring_up())?;
        }
        for (address, prefix) in &self.addresses {
            ask(Step::Address, format!("{address}/{prefix} on {name}"), Request::add_address(*address, *prefix))?;
        }
        for gateway in &self.gateways {
            ask(Step::Route, format!("{gateway} on {name}"), Request::add_default_route(*gateway))?;
        }
        Ok(Card { bridge: self.bridge, name, mac: self.mac, requests })
    }
}

/// A name that the kernel takes for a link (dev_valid_name() of net/core/dev.c) and that is no option and no list.
fn is_link_name(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_graphic() && !b"/:,".contains(&b));
    plain && !name.is_empty() && name.len() <= 15 && !name.starts_with('-') && name != "." && name != ".."
}

fn mac(text: &str) -> Result<Mac, String> {
    let octet = |word: &str| {
        let plain = word.len() == 2 && word.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| u8::from_str_radix(word, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(octet).collect();
    let mac: Option<Mac> = bytes.and_then(|bytes| bytes.try_into().ok());
    mac.filter(|mac| *mac != [0; 6] && mac[0] & 1 == 0)
        .ok_or_else(|| format!("mac={text} is no hardware address of one card (as 02:00:5e:10:00:01)"))
}

fn address(text: &str) -> Result<(IpAddr, u8), String> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().map_err(|_| format!("ip={text} is no address"))?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let plain = !prefix.is_empty() && prefix.len() <= 3 && prefix.bytes().all(|b| b.is_ascii_digit());
    let prefix: Option<u8> = plain.then(|| prefix.parse().ok()).flatten().filter(|n| (1..=bits).contains(n));
    let prefix =
        prefix.ok_or_else(|| format!("ip={text} needs the length of its network's prefix, as in {address}/24"))?;
    let last = match address {
        IpAddr::V4(v4) => prefix < 31 && (v4.to_bits() << prefix == 0 || !v4.to_bits() << prefix == 0),
        IpAddr::V6(_) => false,
    };
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || last {
        return Err(format!("ip={text} is no address of one card"));
    }
    Ok((address, prefix))
}

/// The bits of an address that its network's prefix has; families never equal each other.
fn network(address: IpAddr, prefix: u8) -> (bool, u128) {
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32_u32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    (address.is_ipv4(), bits.checked_shr(width.saturating_sub(u32::from(prefix))).unwrap_or(0))
}

/// Sets the cards up. In the child, which allocates nothing here.
///
/// # Errors
/// At the first thing that the kernel refuses.
pub fn set_up(cards: &[Card]) -> Try<'_> {
    if cards.is_empty() {
        return Ok(());
    }
    let netlink = Netlink::open().map_err(at(Step::Card, c"netlink"))?;
    for card in cards {
        let mut index = 0;
        for asked in &card.requests {
            let found = netlink.ask(&asked.request, index).map_err(at(asked.step, &asked.object))?;
            if asked.step == Step::Card {
                index = found;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Outcome<Vec<Card>> {
        cards(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_card_without_a_name_gets_the_first_free_one() {
        let found = parse(&["br0", "br1,name=eth0", "br0,name=wan0", "none"]).unwrap();
        let names: Vec<(&str, &str)> = found.iter().map(|card| (card.bridge.as_str(), card.name.as_str())).collect();
        assert_eq!(names, [("br0", "eth1"), ("br1", "eth0"), ("br0", "wan0"), ("none", "eth2")]);
        assert!(parse(&[]).unwrap().is_empty());
        assert_eq!(parse(&["br0"; MAX_CARDS]).unwrap().last().unwrap().name, "eth15");
        assert!(parse(&["br0"; MAX_CARDS + 1]).is_err());
    }

    #[test]
    fn what_is_asked_of_the_kernel_stands_in_the_order_in_which_it_can_be_done() {
        let whole = "br0,gw=10.0.3.1,ip=10.0.3.5/24,ip=fd00:3::5/64,gw=fe80::1,mac=02:00:5E:10:00:01,name=x";
        let card = parse(&[whole]).unwrap().pop().unwrap();
        assert_eq!(card.mac, Some([2, 0, 0x5e, 0x10, 0, 1]));
        let found: Vec<(Step, &str)> =
            card.requests.iter().map(|asked| (asked.step, asked.object.to_str().unwrap())).collect();
        assert_eq!(
            found,
            [
                (Step::Card, "x on br0"),
                (Step::CardMac, "x"),
                (Step::CardUp, "x"),
                (Step::Address, "10.0.3.5/24 on x"),
                (Step::Address, "fd00:3::5/64 on x"),
                (Step::Route, "10.0.3.1 on x"),
                (Step::Route, "fe80::1 on x"),
            ]
        );
    }

    #[test]
    fn a_card_of_a_configuration_is_set_up_as_its_keys_say() {
        let net = |kind: &str| Net { kind: kind.to_owned(), link: Some("br0".to_owned()), ..Net::default() };
        let with = |net: Net| of_config(&BTreeMap::from([(0, net)]));
        assert!(with(net("empty")).unwrap().is_empty());
        let card =
            with(Net { mac: Some("00:16:3e:xx:xX:01".to_owned()), mtu: Some(1400), ..net("veth") }).unwrap().remove(0);
        let mac = card.mac.unwrap();
        assert_eq!((mac[..3].to_vec(), mac[5]), (vec![0, 0x16, 0x3e], 1));
        let steps: Vec<Step> = card.requests.iter().map(|asked| asked.step).collect();
        assert_eq!(steps, [Step::Card, Step::CardMac, Step::CardMtu], "without flags = up it stays down");
        let unlinked = with(Net { link: None, up: true, ..net("veth") }).unwrap().remove(0);
        assert_eq!(unlinked.bridge, "none");
        let routed =
            Net { gateways: vec!["10.0.3.1".to_owned()], addresses: vec!["10.0.3.5/24".to_owned()], ..net("veth") };
        assert!(with(routed.clone()).unwrap_err().text.contains("flags = up"));
        assert_eq!(with(Net { up: true, ..routed }).unwrap().len(), 1);
        assert!(
            with(Net { addresses: vec!["10.0.3.5".to_owned()], ..net("veth") }).unwrap_err().text.contains("lxc.net.0")
        );
    }

    #[test]
    fn a_wrong_word_is_refused_and_named() {
        for (wrong, said) in [
            ("", "begin with the name of a bridge"),
            ("ip=10.0.3.5/24", "begin with the name of a bridge"),
            ("-x", "begin with the name of a bridge"),
            ("a/b", "begin with the name of a bridge"),
            ("a-bridge-of-16-b", "begin with the name of a bridge"),
            ("br0,", "\"\" is none of"),
            ("br0,eth0", "\"eth0\" is none of"),
            ("br0,ipv4=10.0.3.5/24", "\"ipv4=10.0.3.5/24\" is none of"),
            ("br0,name=", "no name"),
            ("br0,name=lo", "no name"),
            ("br0,name=eth%d", "no name"),
            ("br0,name=a:b", "no name"),
            ("br0,name=a,name=b", "name= stands too often"),
            ("br0,mac=01:00:00:00:00:00", "no hardware address"),
            ("br0,mac=00:00:00:00:00:00", "no hardware address"),
            ("br0,mac=2:0:0:0:0:1", "no hardware address"),
            ("br0,mac=02:00:00:00:00:01:02", "no hardware address"),
            ("br0,mtu=67", "no number from 68"),
            ("br0,mtu=+1500", "no number from 68"),
            ("br0,mtu=1500,mtu=1400", "mtu= stands too often"),
            ("br0,ip=10.0.3.5", "prefix"),
            ("br0,ip=10.0.3.5/33", "prefix"),
            ("br0,ip=10.0.3.5/0", "prefix"),
            ("br0,ip=10.0.3.5/+24", "prefix"),
            ("br0,ip=10.0.3/24", "no address"),
            ("br0,ip=010.0.3.5/24", "no address"),
            ("br0,ip=10.0.3.0/24", "no address of one card"),
            ("br0,ip=10.0.3.255/24", "no address of one card"),
            ("br0,ip=0.0.0.0/8", "no address of one card"),
            ("br0,ip=127.0.0.1/8", "no address of one card"),
            ("br0,ip=ff02::1/64", "no address of one card"),
            ("br0,gw=10.0.3.1", "in the network of no ip="),
            ("br0,ip=10.0.3.5/24,gw=10.0.4.1", "in the network of no ip="),
            ("br0,ip=10.0.3.5/24,gw=fd00::1", "in the network of no ip="),
            ("br0,ip=10.0.3.5/24,gw=10.0.3.5", "own address"),
            ("br0,ip=10.0.3.5/24,gw=10.0.3.1,gw=10.0.3.2", "gw= stands too often"),
            ("br0,ip=10.0.3.5/24,gw=x", "no address"),
        ] {
            let error = parse(&[wrong]).unwrap_err();
            assert!(error.text.contains(said) && error.text.contains("--net"), "{wrong}: {error}");
        }
        for right in ["br0,ip=10.0.3.5/31,gw=10.0.3.4", "br0,ip=10.0.3.5/32", "br0,gw=fe80::1", "br0,ip=fd00::/64"] {
            parse(&[right]).unwrap();
        }
        assert!(parse(&["br0,name=a", "br1,name=a"]).unwrap_err().text.contains("two cards"));
        let twice = ["br0,ip=10.0.3.5/24,gw=10.0.3.1", "br1,ip=10.0.4.5/24,gw=10.0.4.1"];
        assert!(parse(&twice).unwrap_err().text.contains("one default route"));
    }
}
