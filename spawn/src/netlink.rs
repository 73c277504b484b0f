//! Requests of rtnetlink(7) that set up a network card: written before the clone, sent by the child from its own
//! network namespace, where it is root. Numbers in a message are in the host's byte order, addresses in the network's.

#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// A hardware address.
pub type Mac = [u8; 6];

const REQUEST: u16 = 1; // NLM_F_REQUEST
const ACK: u16 = 4; // NLM_F_ACK
const CREATE: u16 = 0x600; // NLM_F_CREATE | NLM_F_EXCL
const ERROR: u16 = 2; // NLMSG_ERROR
const SKIP_STATS: u32 = 8; // RTEXT_FILTER_SKIP_STATS
const UP: u32 = 1; // IFF_UP

/// Bytes that a request may have; the child copies it to its stack.
const MAX_REQUEST: usize = 96;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    bytes: Vec<u8>,
    /// Where the index of the card has to be put in: 4 bytes.
    index_at: Option<usize>,
}

impl Request {
    /// The index of the card called `name` (RTM_GETLINK).
    #[must_use]
    pub fn find(name: &[u8]) -> Self {
        Self::of_link(libc::RTM_GETLINK, REQUEST, 0)
            .attribute(libc::IFLA_IFNAME, &[name, b"\0"].concat())
            .attribute(libc::IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes())
    }

    /// Gives the card a hardware address (RTM_SETLINK).
    #[must_use]
    pub fn set_mac(mac: Mac) -> Self {
        Self::of_link(libc::RTM_SETLINK, REQUEST | ACK, 0).index_at(20).attribute(libc::IFLA_ADDRESS, &mac)
    }

    /// Gives the card an MTU in bytes (RTM_SETLINK).
    #[must_use]
    pub fn set_mtu(mtu: u32) -> Self {
        Self::of_link(libc::RTM_SETLINK, REQUEST | ACK, 0).index_at(20).attribute(libc::IFLA_MTU, &mtu.to_ne_bytes())
    }

    /// Brings the card up (RTM_SETLINK).
    #[must_use]
    pub fn bring_up() -> Self {
        Self::of_link(libc::RTM_SETLINK, REQUEST | ACK, UP).index_at(20)
    }

    /// Gives the card an address with a prefix of so many bits (RTM_NEWADDR): one of IPv4 with the broadcast address
    /// of its network, one of IPv6 without duplicate address detection, so that it can be used at once.
    #[must_use]
    pub fn add_address(address: IpAddr, prefix: u8) -> Self {
        const NO_DETECTION: u8 = 2; // IFA_F_NODAD
        let flags = if address.is_ipv6() { NO_DETECTION } else { 0 };
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let mut request = Self::new(libc::RTM_NEWADDR, REQUEST | ACK | CREATE)
            .header(&[family(address), prefix, flags, 0])
            .header(&[0; 4])
            .index_at(20)
            .attribute(libc::IFA_LOCAL, &octets(address))
            .attribute(libc::IFA_ADDRESS, &octets(address));
        if let IpAddr::V4(address) = address
            && prefix < 31
        {
            let broadcast = address.to_bits() | u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            request = request.attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
        }
        request
    }

    /// Makes the default route over the card to `gateway` (RTM_NEWROUTE).
    #[must_use]
    pub fn add_default_route(gateway: IpAddr) -> Self {
        // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
        Self::new(libc::RTM_NEWROUTE, REQUEST | ACK | CREATE)
            .header(&[family(gateway), 0, 0, 0])
            .header(&[libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST])
            .header(&[0; 4])
            .index_at(32)
            .attribute(libc::RTA_OIF, &[0; 4])
            .attribute(libc::RTA_GATEWAY, &octets(gateway))
    }

    /// struct nlmsghdr: length, type, flags, sequence number, port.
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 16];
        bytes.splice(4..8, [kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        Self { bytes, index_at: None }.header(&[])
    }

    /// struct ifinfomsg: family, type, index, flags, and which flags are meant.
    fn of_link(kind: u16, flags: u16, link_flags: u32) -> Self {
        let word = link_flags.to_ne_bytes();
        Self::new(kind, flags).header(&[0; 8]).header(&word).header(&word)
    }

    fn header(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.splice(0..4, length.to_ne_bytes());
        self
    }

    fn index_at(self, at: usize) -> Self {
        Self { index_at: Some(at), ..self }
    }

    /// All values here are short; the end of a request is padded like that of each attribute.
    fn attribute(self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        let padding = value.len().next_multiple_of(4).saturating_sub(value.len());
        self.header(&[&length.to_ne_bytes(), &kind.to_ne_bytes(), value, &[0; 4][..padding]].concat())
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A socket of the child's own network namespace. Neither making nor using it allocates.
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// The errno of socket(2).
    pub fn open() -> Result<Self, Errno> {
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute).map(Self)
    }

    /// Sends a request about the card with the index `index`; the answer is the index of the card that was looked for,
    /// else 0.
    ///
    /// # Errors
    /// The kernel's answer, or the errno of send(2) or recv(2); EPROTO when it makes no sense.
    pub fn ask(&self, request: &Request, index: u32) -> Result<u32, Errno> {
        let mut message = [0_u8; MAX_REQUEST];
        let message = message.get_mut(..request.bytes.len()).ok_or(Errno::EMSGSIZE)?;
        message.copy_from_slice(&request.bytes);
        if let Some(place) = request.index_at.and_then(|at| message.get_mut(at..at.checked_add(4)?)) {
            place.copy_from_slice(&index.to_ne_bytes());
        }
        send(self.0.as_raw_fd(), message, MsgFlags::empty())?;
        // The head of the answer is enough; the kernel drops what does not fit.
        let mut answer = [0_u8; 512];
        let length = loop {
            match recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        read_answer(answer.get(..length).unwrap_or_default())
    }
}

fn read_answer(answer: &[u8]) -> Result<u32, Errno> {
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let kind = answer.get(4..6).and_then(|half| Some(u16::from_ne_bytes(half.try_into().ok()?)));
    match (kind, word(16), word(20)) {
        (Some(ERROR), Some(0), _) => Ok(0),
        (Some(ERROR), Some(code), _) => Err(Errno::from_raw(code.cast_signed().saturating_neg())),
        (Some(libc::RTM_NEWLINK), _, Some(index)) => Ok(index),
        _ => Err(Errno::EPROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage as Message;
    use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags};
    use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags};
    use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteProtocol, RouteScope, RouteType};
    use std::net::{Ipv4Addr, Ipv6Addr};

    /// The request about the card 7 as another program reads it: its flags and what it says.
    fn decode(request: &Request) -> (u16, Message) {
        let mut bytes = request.bytes.clone();
        assert!(bytes.len() <= MAX_REQUEST, "{}", bytes.len());
        if let Some(at) = request.index_at {
            assert_eq!(bytes[at..at + 4], [0; 4]);
            bytes[at..at + 4].copy_from_slice(&7_u32.to_ne_bytes());
        }
        let message = NetlinkMessage::<Message>::deserialize(&bytes).unwrap();
        assert_eq!(message.header.length as usize, bytes.len());
        let NetlinkPayload::InnerMessage(inner) = message.payload else { panic!("no route message") };
        (message.header.flags, inner)
    }

    #[test]
    fn requests_about_the_link_say_what_was_asked() {
        let (flags, message) = decode(&Request::find(b"a-name-of-15-by"));
        let Message::GetLink(link) = message else { panic!("{message:?}") };
        let name = LinkAttribute::IfName("a-name-of-15-by".to_owned());
        assert_eq!((flags, link.header.index), (1, 0));
        assert_eq!(link.attributes, [name, LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])]);

        let (flags, message) = decode(&Request::set_mac([2, 0, 0x5e, 0x10, 0, 1]));
        let Message::SetLink(link) = message else { panic!("{message:?}") };
        assert_eq!((flags, link.header.index, link.header.flags), (5, 7, LinkFlags::empty()));
        assert_eq!(link.attributes, [LinkAttribute::Address(vec![2, 0, 0x5e, 0x10, 0, 1])]);

        let (flags, message) = decode(&Request::bring_up());
        let Message::SetLink(link) = message else { panic!("{message:?}") };
        assert_eq!((flags, link.header.index), (5, 7));
        assert_eq!((link.header.flags, link.header.change_mask), (LinkFlags::Up, LinkFlags::Up));
        assert!(link.attributes.is_empty());
    }

    #[test]
    fn requests_for_addresses_say_what_was_asked() {
        let v4 = Ipv4Addr::new(10, 0, 3, 5);
        for (prefix, broadcast) in [(24, Some([10, 0, 3, 255])), (30, Some([10, 0, 3, 7])), (31, None), (32, None)] {
            let (flags, message) = decode(&Request::add_address(v4.into(), prefix));
            let Message::NewAddress(address) = message else { panic!("{message:?}") };
            assert_eq!((flags, address.header.index, address.header.prefix_len), (0x605, 7, prefix));
            let mut expected = vec![AddressAttribute::Local(v4.into()), AddressAttribute::Address(v4.into())];
            expected.extend(broadcast.map(|bytes| AddressAttribute::Broadcast(bytes.into())));
            assert_eq!(address.attributes, expected);
            assert!(address.header.flags.is_empty());
        }
        let v6: Ipv6Addr = "fd00:3::5".parse().unwrap();
        let (_, message) = decode(&Request::add_address(v6.into(), 64));
        let Message::NewAddress(address) = message else { panic!("{message:?}") };
        assert_eq!((address.header.prefix_len, address.header.flags), (64, AddressHeaderFlags::Nodad));
        assert_eq!(address.attributes, [AddressAttribute::Local(v6.into()), AddressAttribute::Address(v6.into())]);
    }

    #[test]
    fn requests_for_routes_say_what_was_asked() {
        let (v4, v6) = (Ipv4Addr::new(10, 0, 3, 1), "fe80::1".parse::<Ipv6Addr>().unwrap());
        for (gateway, expected) in [(IpAddr::V4(v4), RouteAddress::Inet(v4)), (IpAddr::V6(v6), RouteAddress::Inet6(v6))]
        {
            let (flags, message) = decode(&Request::add_default_route(gateway));
            let Message::NewRoute(route) = message else { panic!("{message:?}") };
            assert_eq!(flags, 0x605);
            assert_eq!((route.header.destination_prefix_length, route.header.table), (0, 254));
            assert_eq!((route.header.protocol, route.header.kind), (RouteProtocol::Static, RouteType::Unicast));
            assert_eq!(route.header.scope, RouteScope::Universe);
            assert_eq!(route.attributes, [RouteAttribute::Oif(7), RouteAttribute::Gateway(expected)]);
        }
    }

    #[test]
    fn an_answer_is_an_index_an_acknowledgement_or_an_errno() {
        let answer = |kind: u16, words: &[i32]| {
            let mut bytes = vec![0; 16];
            bytes.splice(4..6, kind.to_ne_bytes());
            bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            read_answer(&bytes)
        };
        assert_eq!(answer(2, &[0]), Ok(0));
        assert_eq!(answer(2, &[-17]), Err(Errno::EEXIST));
        assert_eq!(answer(libc::RTM_NEWLINK, &[0, 9]), Ok(9));
        assert_eq!(answer(2, &[]), Err(Errno::EPROTO));
        assert_eq!(answer(3, &[0]), Err(Errno::EPROTO));
        assert_eq!(read_answer(b""), Err(Errno::EPROTO));
    }
}
