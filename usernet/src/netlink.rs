//! Links by rtnetlink(7): messages written and read by hand over a plain socket, no `unsafe`.
//!
//! A [`Batch`] holds several requests that are sent at once and done by the kernel one after the other within that
//! one system call. Every number in a message is in host byte order.

#![forbid(unsafe_code)]

use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

// linux/rtnetlink.h, linux/if_link.h, linux/if_bridge.h, linux/neighbour.h, linux/net_namespace.h.
const ACK: u16 = 5; // NLM_F_REQUEST | NLM_F_ACK
const GET: u16 = 1; // NLM_F_REQUEST: what is asked for, or an error, is the answer
const CREATE: u16 = 0x600; // NLM_F_CREATE | NLM_F_EXCL
const DUMP: u16 = 0x301; // NLM_F_REQUEST | NLM_F_DUMP
const DUMP_INTERRUPTED: u16 = 0x10;
const TYPE_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;
const PEER: u16 = 1; // VETH_INFO_PEER
const ADDR_GEN_MODE: u16 = 8; // IFLA_INET6_ADDR_GEN_MODE
const LEARNING: u16 = 8; // IFLA_BRPORT_LEARNING
const ISOLATED: u16 = 33; // IFLA_BRPORT_ISOLATED
const LOCKED: u16 = 39; // IFLA_BRPORT_LOCKED
const VLAN_FILTERING: u16 = 7; // IFLA_BR_VLAN_FILTERING
const DEFAULT_PVID: u16 = 39; // IFLA_BR_VLAN_DEFAULT_PVID
const BRIDGE_VLAN_INFO: u16 = 2; // IFLA_BRIDGE_VLAN_INFO
const VLAN_ACCESS: u16 = 2 | 4; // BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED
const STATIC_ENTRY: u16 = 0x42; // NUD_NOARP | NUD_REACHABLE
const VIA_MASTER: u8 = 4; // NTF_MASTER
const LLADDR: u16 = 2; // NDA_LLADDR
const NSID: u16 = 1; // NETNSA_NSID
const NSID_OF_FD: u16 = 3; // NETNSA_FD
const UP: u32 = libc::IFF_UP as u32;

/// Bytes that one answer may have: the kernel fills at most 32 KiB of a dump into one datagram.
const ANSWER: usize = 64 * 1024;

/// A hardware address.
pub type Mac = [u8; 6];

/// What is known about a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index in its own network namespace.
    pub index: u32,
    /// Its name.
    pub name: Vec<u8>,
    /// Its alias (IFLA_IFALIAS), empty when it has none.
    pub alias: Vec<u8>,
    /// Its kind: `bridge`, `veth`...
    pub kind: Vec<u8>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// Index of the bridge that it is a port of; 0: none.
    pub master: u32,
    /// Index of the other end of a veth pair, in that end's network namespace; 0: unknown.
    pub peer: u32,
    /// This namespace's number for the network namespace of the other end; -1: it has none any more. `None`: the other
    /// end is here.
    pub peer_nsid: Option<i32>,
    /// Of a bridge: whether it filters VLANs, and which VLAN a port gets at first.
    pub vlan_filtering: Option<(bool, u16)>,
    /// Of a bridge port: whether it is isolated, and whether it is locked.
    pub port: (bool, bool),
}

/// A veth pair to be made: the host end here and down, the peer in another network namespace.
#[derive(Debug)]
pub struct Pair<'a> {
    /// Name of the host end.
    pub host: &'a [u8],
    /// Hardware address of the host end.
    pub host_mac: Mac,
    /// MTU of both ends in bytes; `None`: the kernel's default.
    pub mtu: Option<u32>,
    /// Index of the bridge.
    pub master: Option<u32>,
    /// Name of the peer; may hold one `%d`.
    pub peer: &'a [u8],
    /// Hardware address of the peer; `None`: random.
    pub peer_mac: Option<Mac>,
    /// The peer's network namespace.
    pub netns: BorrowedFd<'a>,
}

/// What a bridge port is set to before it is brought up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// It exchanges nothing with other isolated ports.
    pub isolated: bool,
    /// It takes frames from this hardware address only.
    pub locked_to: Option<Mac>,
    /// It is an untagged access port of this VLAN; the second number is the VLAN that the bridge gave it.
    pub vid: Option<(u16, u16)>,
}

/// Requests to be sent at once.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    requests: usize,
}

impl Batch {
    /// The bytes, for tests.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Makes a veth pair in one message (RTM_NEWLINK).
    pub fn create(&mut self, pair: &Pair<'_>) {
        self.message(libc::RTM_NEWLINK, ACK | CREATE, |m| {
            m.link_header(0, 0, 0);
            m.name(pair.host);
            m.attribute(libc::IFLA_ADDRESS, &pair.host_mac);
            if let Some(mtu) = pair.mtu {
                m.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
            }
            if let Some(master) = pair.master {
                m.attribute(libc::IFLA_MASTER, &master.to_ne_bytes());
            }
            m.one_queue();
            m.nested(libc::IFLA_LINKINFO, |m| {
                m.attribute(libc::IFLA_INFO_KIND, b"veth");
                m.nested(libc::IFLA_INFO_DATA, |m| {
                    m.nested(PEER, |m| {
                        m.link_header(0, 0, 0);
                        m.name(pair.peer);
                        if let Some(mac) = pair.peer_mac {
                            m.attribute(libc::IFLA_ADDRESS, &mac);
                        }
                        if let Some(mtu) = pair.mtu {
                            m.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
                        }
                        m.one_queue();
                        m.attribute(libc::IFLA_NET_NS_FD, &pair.netns.as_raw_fd().to_ne_bytes());
                    });
                });
            });
        });
    }

    /// Asks for the link with this name, here or in the network namespace that has the number `nsid` here (Linux
    /// 4.16). By netlink and never by ioctl, which lets a missing name load a module.
    pub fn get_by_name(&mut self, name: &[u8], nsid: Option<i32>) {
        self.message(libc::RTM_GETLINK, GET, |m| {
            m.link_header(0, 0, 0);
            m.in_namespace(nsid);
            m.name(name);
            m.without_statistics();
        });
    }

    /// Asks for the link with this index in the network namespace that has the number `nsid` here (Linux 4.16).
    pub fn get_by_index(&mut self, index: u32, nsid: Option<i32>) {
        self.message(libc::RTM_GETLINK, GET, |m| {
            m.link_header(0, index, 0);
            m.in_namespace(nsid);
            m.without_statistics();
        });
    }

    /// Gives no IPv6 link-local address to the link (IN6_ADDR_GEN_MODE_NONE). EAFNOSUPPORT without IPv6.
    pub fn no_link_local_address(&mut self, index: u32) {
        self.message(libc::RTM_SETLINK, ACK, |m| {
            m.link_header(0, index, 0);
            m.nested(libc::IFLA_AF_SPEC, |m| {
                m.nested(libc::AF_INET6 as u16, |m| m.attribute(ADDR_GEN_MODE, &[1]));
            });
        });
    }

    /// Sets the properties of a bridge port.
    pub fn set_port(&mut self, index: u32, port: Port) {
        if port.isolated || port.locked_to.is_some() {
            self.message(libc::RTM_NEWLINK, ACK, |m| {
                m.link_header(0, index, 0);
                m.nested(libc::IFLA_LINKINFO, |m| {
                    m.attribute(libc::IFLA_INFO_SLAVE_KIND, b"bridge");
                    m.nested(libc::IFLA_INFO_SLAVE_DATA, |m| {
                        if port.isolated {
                            m.attribute(ISOLATED, &[1]);
                        }
                        if port.locked_to.is_some() {
                            m.attribute(LEARNING, &[0]);
                            m.attribute(LOCKED, &[1]);
                        }
                    });
                });
            });
        }
        if let Some((vid, default)) = port.vid {
            self.vlan(libc::RTM_SETLINK, index, VLAN_ACCESS, vid);
            if default != vid && default != 0 {
                self.vlan(libc::RTM_DELLINK, index, 0, default);
            }
        }
        if let Some(mac) = port.locked_to {
            self.message(libc::RTM_NEWNEIGH, ACK | CREATE, |m| {
                // struct ndmsg: family, padding, interface, state, flags, type.
                m.bytes.extend_from_slice(&[libc::AF_BRIDGE as u8, 0, 0, 0]);
                m.bytes.extend_from_slice(&index.to_ne_bytes());
                m.bytes.extend_from_slice(&STATIC_ENTRY.to_ne_bytes());
                m.bytes.extend_from_slice(&[VIA_MASTER, 0]);
                m.attribute(LLADDR, &mac);
            });
        }
    }

    fn vlan(&mut self, kind: u16, index: u32, flags: u16, vid: u16) {
        self.message(kind, ACK, |m| {
            m.link_header(libc::AF_BRIDGE as u8, index, 0);
            m.nested(libc::IFLA_AF_SPEC, |m| {
                let [f, g, v, w] = [flags.to_ne_bytes(), vid.to_ne_bytes()].concat().try_into().unwrap_or([0; 4]);
                m.attribute(BRIDGE_VLAN_INFO, &[f, g, v, w]);
            });
        });
    }

    /// Sets the alias of the link and brings it up.
    pub fn set_alias_and_up(&mut self, index: u32, alias: &[u8]) {
        self.message(libc::RTM_SETLINK, ACK, |m| {
            m.link_header(0, index, UP);
            m.attribute(libc::IFLA_IFALIAS, alias);
        });
    }

    /// Deletes a link.
    pub fn delete(&mut self, index: u32) {
        self.message(libc::RTM_DELLINK, ACK, |m| m.link_header(0, index, 0));
    }

    /// Asks for this namespace's number of a network namespace.
    pub fn get_nsid(&mut self, netns: BorrowedFd<'_>) {
        self.message(libc::RTM_GETNSID, GET, |m| {
            m.bytes.extend_from_slice(&[0; 4]); // struct rtgenmsg
            m.attribute(NSID_OF_FD, &netns.as_raw_fd().to_ne_bytes());
        });
    }

    /// Gives a network namespace a number here, if it has none.
    pub fn assign_nsid(&mut self, netns: BorrowedFd<'_>) {
        self.message(libc::RTM_NEWNSID, ACK, |m| {
            m.bytes.extend_from_slice(&[0; 4]);
            m.attribute(NSID, &(-1_i32).to_ne_bytes());
            m.attribute(NSID_OF_FD, &netns.as_raw_fd().to_ne_bytes());
        });
    }

    fn dump(&mut self, master: Option<u32>) {
        self.message(libc::RTM_GETLINK, DUMP, |m| {
            m.link_header(0, 0, 0);
            if let Some(master) = master {
                m.attribute(libc::IFLA_MASTER, &master.to_ne_bytes());
            }
            m.nested(libc::IFLA_LINKINFO, |m| m.attribute(libc::IFLA_INFO_KIND, b"veth"));
            m.without_statistics();
        });
    }

    /// One request; its sequence number is its place in the batch, from 1 on.
    fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Self)) {
        self.requests = self.requests.saturating_add(1);
        let at = self.bytes.len();
        let sequence = u32::try_from(self.requests).unwrap_or(u32::MAX);
        for half in [[0, 0], [0, 0], kind.to_ne_bytes(), flags.to_ne_bytes()] {
            self.bytes.extend_from_slice(&half);
        }
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        let length = u32::try_from(self.bytes.len().saturating_sub(at)).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(at..at.saturating_add(4)) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// struct ifinfomsg: family, type, index, flags, and which flags are meant.
    fn link_header(&mut self, family: u8, index: u32, flags: u32) {
        self.bytes.extend_from_slice(&[family, 0, 0, 0]);
        for word in [index, flags, flags] {
            self.bytes.extend_from_slice(&word.to_ne_bytes());
        }
    }

    fn name(&mut self, name: &[u8]) {
        self.attribute(libc::IFLA_IFNAME, &[name, b"\0"].concat());
    }

    /// One queue in each direction. Without this the kernel makes as many as there are CPUs, and then all but one idle
    /// again (veth_init_queues() of drivers/net/veth.c), for which it interrupts every CPU.
    fn one_queue(&mut self) {
        self.attribute(libc::IFLA_NUM_TX_QUEUES, &1_u32.to_ne_bytes());
        self.attribute(libc::IFLA_NUM_RX_QUEUES, &1_u32.to_ne_bytes());
    }

    fn in_namespace(&mut self, nsid: Option<i32>) {
        if let Some(nsid) = nsid {
            self.attribute(libc::IFLA_TARGET_NETNSID, &nsid.to_ne_bytes());
        }
    }

    fn without_statistics(&mut self) {
        self.attribute(libc::IFLA_EXT_MASK, &8_u32.to_ne_bytes()); // RTEXT_FILTER_SKIP_STATS
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested_as(kind, |m| m.bytes.extend_from_slice(value));
    }

    fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.nested_as(kind | NESTED, body);
    }

    fn nested_as(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len().saturating_sub(at)).unwrap_or(u16::MAX);
        if let Some(place) = self.bytes.get_mut(at..at.saturating_add(2)) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What the kernel said to one request: the link or number asked for, or its error.
pub type Answer = Result<Reply, Errno>;

/// What a request brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    #[default]
    Done,
    /// The link.
    Link(Box<Link>),
    /// The number of a network namespace; -1: none.
    Nsid(i32),
}

impl Reply {
    /// The link, when it is one.
    #[must_use]
    pub fn link(self) -> Option<Link> {
        match self {
            Self::Link(link) => Some(*link),
            _ => None,
        }
    }
}

/// An rtnetlink socket.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens one in the network namespace of this process.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        Ok(Self { socket, buffer: vec![0; ANSWER] })
    }

    /// Opens one that hears about every link that is deleted from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen() -> Result<Self, Errno> {
        let netlink = Self::open()?;
        // Far more than the default for a burst of events on a busy host; the kernel caps it.
        let _ = setsockopt(&netlink.socket, sockopt::RcvBuf, &(1 << 20));
        bind(netlink.socket.as_raw_fd(), &NetlinkAddr::new(0, libc::RTMGRP_LINK as u32))?;
        Ok(netlink)
    }

    /// Sends the requests and gives the answer to each, in order. The kernel goes on after one that it refuses.
    ///
    /// # Errors
    /// The socket's own.
    pub fn ask(&mut self, batch: &Batch) -> Result<Vec<Answer>, Errno> {
        let mut answers: Vec<Answer> = vec![Ok(Reply::Done); batch.requests];
        let mut left = batch.requests;
        send(self.socket.as_raw_fd(), &batch.bytes, MsgFlags::empty())?;
        while left > 0 {
            // The kernel has answered before send returns.
            let read = self.receive(MsgFlags::MSG_DONTWAIT)?;
            for message in messages(self.buffer.get(..read).unwrap_or_default()) {
                let at = usize::try_from(message.sequence).unwrap_or(0).wrapping_sub(1);
                let Some(answer) = answers.get_mut(at) else { continue };
                *answer = match message.kind {
                    ERROR => match signed(message.body, 0) {
                        Some(0) => Ok(Reply::Done),
                        code => Err(Errno::from_raw(code.unwrap_or(0).saturating_neg())),
                    },
                    libc::RTM_NEWLINK => Ok(Reply::Link(Box::new(parse_link(message.body)))),
                    libc::RTM_NEWNSID => {
                        let number = attributes(message.body, 4).find(|(kind, _)| *kind == NSID);
                        Ok(Reply::Nsid(number.and_then(|(_, value)| signed(value, 0)).unwrap_or(-1)))
                    }
                    _ => continue,
                };
                left = left.saturating_sub(1);
            }
        }
        Ok(answers)
    }

    /// The answer to a single request.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask_one(&mut self, request: impl FnOnce(&mut Batch)) -> Answer {
        let mut batch = Batch::default();
        request(&mut batch);
        self.ask(&batch)?.pop().unwrap_or(Err(Errno::EPROTO))
    }

    /// The link with this name; `None` when there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn find(&mut self, name: &[u8]) -> Result<Option<Link>, Errno> {
        match self.ask_one(|batch| batch.get_by_name(name, None)) {
            Ok(reply) => Ok(reply.link()),
            Err(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// This namespace's number of a network namespace; `None` when it has none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn nsid(&mut self, netns: BorrowedFd<'_>) -> Result<Option<i32>, Errno> {
        match self.ask_one(|batch| batch.get_nsid(netns))? {
            Reply::Nsid(number) if number >= 0 => Ok(Some(number)),
            _ => Ok(None),
        }
    }

    /// Those of the links that are there, for each of which `request` adds one request.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look_up<K: Copy>(&mut self, keys: &[K], request: impl Fn(&mut Batch, K)) -> Result<Vec<Link>, Errno> {
        let mut links = Vec::new();
        // So many answers fit into a socket's buffer.
        for keys in keys.chunks(32) {
            let mut batch = Batch::default();
            keys.iter().for_each(|key| request(&mut batch, *key));
            for answer in self.ask(&batch)? {
                match answer {
                    Ok(reply) => links.extend(reply.link()),
                    Err(Errno::ENODEV) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(links)
    }

    /// The veths among the ports of a bridge whose names are `wanted`.
    ///
    /// The kernel takes 3 to 7 microseconds to tell everything about a port, and a bridge may have a thousand. So only
    /// their names are asked for at first, by ioctl: of links that are there, for an ioctl on a name that is not makes
    /// the kernel look for a module. Where that fails it is a dump, of all names.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ports(&mut self, bridge: &Link, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<Link>, Errno> {
        let socket = self.socket.as_fd();
        let named = || -> Result<Vec<u32>, Errno> {
            let mut indexes = sys::bridge_ports(socket, &bridge.name)?;
            if text(&sys::link_name(socket, bridge.index)?) != bridge.name {
                return Err(Errno::ESTALE);
            }
            let mut result = Ok(());
            indexes.retain(|index| match sys::link_name(socket, *index) {
                Ok(name) => wanted(text(&name)),
                Err(Errno::ENODEV) => false,
                Err(error) => {
                    result = Err(error);
                    false
                }
            });
            result.map(|()| indexes)
        };
        let Ok(indexes) = named() else { return self.veths(Some(bridge.index)) };
        let mut links = self.look_up(&indexes, |batch, index| batch.get_by_index(index, None))?;
        links.retain(|link| link.kind == b"veth" && link.master == bridge.index);
        Ok(links)
    }

    /// Every veth here, or those that are ports of the bridge `master`.
    ///
    /// A dump that was disturbed by a change is taken again, and what an earlier one has seen is kept.
    ///
    /// # Errors
    /// The kernel's.
    pub fn veths(&mut self, master: Option<u32>) -> Result<Vec<Link>, Errno> {
        const TRIES: usize = 4;
        let mut links: Vec<Link> = Vec::new();
        for _ in 0..TRIES {
            let (mut done, mut disturbed) = (false, false);
            let mut batch = Batch::default();
            batch.dump(master);
            send(self.socket.as_raw_fd(), &batch.bytes, MsgFlags::empty())?;
            while !done {
                let read = self.receive(MsgFlags::MSG_DONTWAIT)?;
                for message in messages(self.buffer.get(..read).unwrap_or_default()) {
                    disturbed |= message.flags & DUMP_INTERRUPTED != 0;
                    match message.kind {
                        DONE => done = true,
                        ERROR => return Err(Errno::from_raw(signed(message.body, 0).unwrap_or(0).saturating_neg())),
                        libc::RTM_NEWLINK => {
                            let link = parse_link(message.body);
                            // Kernels that do not know a filter send all links.
                            if link.kind == b"veth" && master.is_none_or(|index| index == link.master) {
                                links.push(link);
                            }
                        }
                        _ => {}
                    }
                }
            }
            if !disturbed {
                break;
            }
        }
        links.sort_by_key(|link| link.index);
        links.dedup_by_key(|link| link.index);
        Ok(links)
    }

    /// Whether the network namespace of the other end of one of these links has no user left and is being taken apart:
    /// its number is still known, and yet it cannot be looked into (get_net_ns_by_id() of net/core/net_namespace.c).
    ///
    /// # Errors
    /// The kernel's.
    pub fn any_dying<'l>(&mut self, links: impl Iterator<Item = &'l Link>) -> Result<bool, Errno> {
        for link in links {
            let Some(nsid) = link.peer_nsid else { continue };
            if nsid < 0 || self.ask_one(|batch| batch.get_by_index(link.peer, Some(nsid))) == Err(Errno::EINVAL) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until a link whose name is in `names` is deleted, or `end`. On a socket of [`Netlink::listen`].
    pub fn wait_for_deletion(&mut self, names: &BTreeSet<Vec<u8>>, end: Instant) {
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(read) => {
                    let named =
                        |m: Message<'_>| m.kind == libc::RTM_DELLINK && names.contains(&parse_link(m.body).name);
                    if messages(self.buffer.get(..read).unwrap_or_default()).any(named) {
                        return;
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                // ENOBUFS: events were lost, so it is time to look again.
                Err(_) => return,
            }
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> Result<usize, Errno> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Err(Errno::EINTR) => {}
                other => return other,
            }
        }
    }
}

const ERROR: u16 = 2; // NLMSG_ERROR
const DONE: u16 = 3; // NLMSG_DONE

#[derive(Clone, Copy, Debug)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages in a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    core::iter::from_fn(move || {
        let length = usize::try_from(word(bytes, 0)?).ok()?;
        let body = bytes.get(16..length)?;
        let message = Message { kind: half(bytes, 4)?, flags: half(bytes, 6)?, sequence: word(bytes, 8)?, body };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes behind a header of `skip` bytes.
fn attributes(bytes: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut bytes = bytes.get(skip..).unwrap_or_default();
    core::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let attribute = (half(bytes, 2)? & TYPE_MASK, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

fn parse_link(body: &[u8]) -> Link {
    let mut link = Link { index: word(body, 4).unwrap_or(0), ..Link::default() };
    for (kind, value) in attributes(body, 16) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value).to_vec(),
            libc::IFLA_IFALIAS => link.alias = text(value).to_vec(),
            libc::IFLA_MTU => link.mtu = word(value, 0).unwrap_or(0),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
            libc::IFLA_MASTER => link.master = word(value, 0).unwrap_or(0),
            libc::IFLA_LINK => link.peer = word(value, 0).unwrap_or(0),
            libc::IFLA_LINK_NETNSID => link.peer_nsid = signed(value, 0),
            libc::IFLA_LINKINFO => parse_info(value, &mut link),
            _ => {}
        }
    }
    link
}

fn parse_info(info: &[u8], link: &mut Link) {
    for (kind, value) in attributes(info, 0) {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = text(value).to_vec(),
            libc::IFLA_INFO_DATA if link.kind == b"bridge" => {
                let filtering = attributes(value, 0).find(|(kind, _)| *kind == VLAN_FILTERING);
                let pvid = attributes(value, 0).find(|(kind, _)| *kind == DEFAULT_PVID);
                link.vlan_filtering = filtering
                    .and_then(|(_, value)| value.first())
                    .map(|on| (*on != 0, pvid.and_then(|(_, value)| half(value, 0)).unwrap_or(0)));
            }
            libc::IFLA_INFO_SLAVE_DATA => {
                let on = |wanted| attributes(value, 0).any(|(kind, value)| kind == wanted && value.first() == Some(&1));
                link.port = (on(ISOLATED), on(LOCKED));
            }
            _ => {}
        }
    }
}

/// The bytes before the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn signed(bytes: &[u8], at: usize) -> Option<i32> {
    word(bytes, at).map(u32::cast_signed)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
        InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    };
    use proptest::prelude::*;

    fn decode(batch: &Batch) -> Vec<(u16, RouteNetlinkMessage)> {
        let mut bytes = batch.bytes();
        let mut decoded = Vec::new();
        while !bytes.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).unwrap();
            bytes = &bytes[usize::try_from(message.header.length).unwrap().next_multiple_of(4)..];
            assert_eq!(message.header.sequence_number as usize, decoded.len() + 1);
            let NetlinkPayload::InnerMessage(inner) = message.payload else { panic!("no route message") };
            decoded.push((message.header.flags, inner));
        }
        decoded
    }

    fn link(message: RouteNetlinkMessage) -> LinkMessage {
        match message {
            RouteNetlinkMessage::NewLink(link)
            | RouteNetlinkMessage::SetLink(link)
            | RouteNetlinkMessage::GetLink(link)
            | RouteNetlinkMessage::DelLink(link) => link,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn the_message_that_makes_a_pair_says_what_was_asked(
            host in "[a-zA-Z0-9_]{1,15}", peer in "[a-z]{1,12}(%d)?", host_mac: [u8; 6], peer_mac: Option<[u8; 6]>,
            mtu in proptest::option::of(68..65536_u32), master in proptest::option::of(1..9999_u32),
        ) {
            let netns = std::fs::File::open("/proc/self/ns/net").unwrap();
            let mut batch = Batch::default();
            batch.create(&Pair {
                host: host.as_bytes(), host_mac, mtu, master, peer: peer.as_bytes(), peer_mac, netns: netns.as_fd(),
            });
            let (flags, message) = decode(&batch).pop().unwrap();
            prop_assert_eq!(flags, 0x605);
            prop_assert!(matches!(message, RouteNetlinkMessage::NewLink(_)));
            let message = link(message);
            let mut inside = LinkMessage::default();
            inside.attributes.push(LinkAttribute::IfName(peer));
            inside.attributes.extend(peer_mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
            inside.attributes.extend(mtu.map(LinkAttribute::Mtu));
            let queues = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
            inside.attributes.extend(queues.clone());
            inside.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
            let mut expected = vec![LinkAttribute::IfName(host), LinkAttribute::Address(host_mac.to_vec())];
            expected.extend(mtu.map(LinkAttribute::Mtu));
            expected.extend(master.map(LinkAttribute::Controller));
            expected.extend(queues);
            expected.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(inside))),
            ]));
            prop_assert_eq!(message.header.flags, LinkFlags::empty());
            prop_assert_eq!(message.attributes, expected);
        }

        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                let _ = parse_link(message.body);
            }
            let _ = parse_link(&bytes);
        }
    }

    #[test]
    fn the_messages_that_set_it_up_say_what_was_asked() {
        let mut batch = Batch::default();
        batch.set_alias_and_up(7, b"usernet/1 uid=1");
        batch.no_link_local_address(7);
        batch.get_by_index(9, Some(3));
        batch.delete(7);
        batch.set_port(7, Port { isolated: true, locked_to: None, vid: None });
        let mut decoded: Vec<LinkMessage> = decode(&batch).into_iter().map(|(_, message)| link(message)).collect();
        assert_eq!(decoded.iter().map(|m| m.header.index).collect::<Vec<_>>(), [7, 7, 9, 7, 7]);
        assert_eq!(decoded[0].header.flags, LinkFlags::Up);
        assert_eq!(decoded[0].attributes, [LinkAttribute::IfAlias("usernet/1 uid=1".to_owned())]);
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        assert_eq!(decoded[1].attributes, [LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])]);
        assert_eq!(
            decoded[2].attributes,
            [LinkAttribute::IfNetnsId(3), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])]
        );
        assert!(decoded[3].attributes.is_empty());
        let port = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)])),
        ];
        assert_eq!(decoded.pop().unwrap().attributes, [LinkAttribute::LinkInfo(port)]);
    }
}
