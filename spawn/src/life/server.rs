//! The supervisor's socket: what its owner may ask. One packet is one request or one answer (SOCK_SEQPACKET):
//!
//! ```text
//! spawn/1 status         ok RECORD (JSON)
//! spawn/1 pidfd          ok, with a pidfd of process 1
//! spawn/1 console        ok, with the console's pty; its output is asked for with `follow`
//! spawn/1 log            the console's last output in packets, then the end of the connection
//! spawn/1 follow         the same, and what comes; `follow new` what comes alone
//! spawn/1 wait           `ended CODE` when the container has ended for good; the connection ends too when it starts again
//! spawn/1 stop           ok; the container is not started again when it ends
//! spawn/1 restart        ok; it is started again when it ends, and then `started`, or `failed REASON`; error for one of
//!                        `spawn hold`
//! ```
//!
//! Nothing here waits for a client: sockets are nonblocking, requests are one packet of at most 256 bytes, and a client
//! that reads its log too slowly loses what the ring has lost by then. Too many clients push out the oldest.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{SockFlag, accept4, getsockopt, sockopt};

use super::ring::Ring;
use crate::state::Record;
use crate::sys;

/// What every request begins with.
pub const VERSION: &str = "spawn/1 ";

/// Clients at once at most.
const MAX_CLIENTS: usize = 64;

/// Longest request in bytes.
const MAX_REQUEST: usize = 256;

/// Bytes of the log that `follow tail` begins with at most.
const TAIL: u64 = 2048;

/// Bytes of the log in one packet.
const CHUNK: usize = 2048;

/// What the answers are made of.
pub struct View<'a> {
    /// The record.
    pub record: &'a Record,
    /// Process 1.
    pub pidfd: BorrowedFd<'a>,
    /// The console, where this supervisor has it for others.
    pub console: Option<(BorrowedFd<'a>, &'a Ring)>,
    /// Whether it can be started again.
    pub repeats: bool,
}

/// What a client wants of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To be started again when it has ended.
    Restart,
    /// Not to be.
    Stop,
}

/// Who is to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The listening socket.
    Listener,
    /// A client, by its place.
    Client(usize),
}

#[derive(Debug)]
enum Waits {
    /// For nothing that we know of.
    Asks,
    /// For output from this offset on.
    Log { from: u64, follow: bool },
    /// For the end.
    End,
    /// To be told of the next start.
    Start,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    waits: Waits,
    gone: bool,
}

/// The listening socket and its clients.
#[derive(Debug)]
pub struct Server {
    listener: OwnedFd,
    clients: Vec<Client>,
}

impl Server {
    /// Serves `listener`, which is nonblocking.
    #[must_use]
    pub fn new(listener: OwnedFd) -> Self {
        Self { listener, clients: Vec::new() }
    }

    /// Its number, for a program that is executed in this process's place.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.listener.as_raw_fd()
    }

    /// Gives back the listening socket and the client that waits for the next start; the others are let go.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Option<OwnedFd>) {
        let waiting = self.clients.into_iter().find(|client| matches!(client.waits, Waits::Start));
        (self.listener, waiting.map(|client| client.socket))
    }

    /// What to poll for now. `written`: the ring's total.
    #[must_use]
    pub fn interests(&self, written: u64) -> Vec<(End, BorrowedFd<'_>, PollFlags)> {
        let mut list = vec![(End::Listener, self.listener.as_fd(), PollFlags::POLLIN)];
        list.extend(self.clients.iter().enumerate().map(|(at, client)| {
            let output = matches!(client.waits, Waits::Log { from, follow } if from < written || !follow);
            let events = if output { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
            (End::Client(at), client.socket.as_fd(), events)
        }));
        list
    }

    /// Serves an end that poll(2) found ready. Places stay what they are until [`Server::sweep`].
    pub fn ready(&mut self, end: End, events: PollFlags, view: &View<'_>) -> Option<Wish> {
        match end {
            End::Listener => {
                self.accept();
                None
            }
            End::Client(at) => {
                let client = self.clients.get_mut(at)?;
                if events.contains(PollFlags::POLLOUT) {
                    client.pour(view);
                }
                if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                    return client.hear(view);
                }
                None
            }
        }
    }

    /// Lets go of the clients that are gone. After every round.
    pub fn sweep(&mut self) {
        self.clients.retain(|client| !client.gone);
        if self.clients.len() > MAX_CLIENTS {
            let more = self.clients.len() - MAX_CLIENTS;
            // Those who wait for the end cost nothing and are the last to go.
            self.clients.sort_by_key(|client| matches!(client.waits, Waits::End));
            self.clients.drain(..more);
        }
    }

    fn accept(&mut self) {
        for _ in 0..16 {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) else { return };
            let Some(socket) = sys::own(fd) else { return };
            let own = getsockopt(&socket, sockopt::PeerCredentials)
                .is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw());
            if own {
                self.clients.push(Client { socket, waits: Waits::Asks, gone: false });
            }
        }
    }

    /// The container has ended for good with `code`: whoever waits is told, and the last output is given out.
    pub fn finish(&mut self, code: u8, view: &View<'_>) {
        for client in &mut self.clients {
            match client.waits {
                Waits::End => client.say(&format!("ended {code}"), &[]),
                Waits::Log { .. } => client.pour(view),
                Waits::Asks | Waits::Start => {}
            }
        }
        // The connections end with this process, when the name is free again.
    }
}

impl Client {
    fn say(&mut self, text: &str, fds: &[i32]) {
        if sys::send_message(self.socket.as_raw_fd(), text.as_bytes(), fds).is_err() {
            self.gone = true;
        }
    }

    /// As much of the log as the socket takes now, and no more than the ring holds: the others have their turn.
    fn pour(&mut self, view: &View<'_>) {
        let (Waits::Log { from, follow }, Some((_, ring))) = (&mut self.waits, view.console) else { return };
        let mut buffer = [0_u8; CHUNK];
        for _ in 0..64 {
            let (length, next) = ring.read(*from, &mut buffer);
            if length == 0 {
                self.gone |= !*follow;
                return;
            }
            match sys::send_message(self.socket.as_raw_fd(), buffer.get(..length).unwrap_or_default(), &[]) {
                Ok(()) => *from = next,
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    fn hear(&mut self, view: &View<'_>) -> Option<Wish> {
        let (mut bytes, mut fds) = ([0_u8; MAX_REQUEST], [-1; 3]);
        let length = match sys::receive_message(self.socket.as_raw_fd(), &mut bytes, &mut fds) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return None,
            Err(_) => 0,
        };
        // Nobody is asked for descriptors.
        drop(fds.map(sys::own));
        if length == 0 {
            self.gone = true;
            return None;
        }
        let text = core::str::from_utf8(bytes.get(..length).unwrap_or_default()).unwrap_or_default();
        let Some(request) = text.strip_prefix(VERSION) else {
            self.say("error this supervisor speaks spawn/1", &[]);
            return None;
        };
        let (console, ring) = view.console.unzip();
        match request {
            "status" => match serde_json::to_string(view.record) {
                Ok(text) => self.say(&format!("ok {text}"), &[]),
                Err(_) => self.say("error the record cannot be written", &[]),
            },
            "pidfd" => self.say("ok", &[view.pidfd.as_raw_fd()]),
            "console" => match console {
                Some(console) => self.say("ok", &[console.as_raw_fd()]),
                None => self.say(
                    "error it runs in the foreground: its console is the terminal of its `spawn run` or `spawn go`",
                    &[],
                ),
            },
            "log" | "follow" | "follow tail" => match ring {
                Some(ring) => {
                    let tail = if request == "follow tail" { ring.total().saturating_sub(TAIL) } else { 0 };
                    self.pour_from(tail.max(ring.oldest()), request != "log");
                }
                None => self.say(
                    "error it runs in the foreground: its output is on the terminal of its `spawn run` or `spawn go`",
                    &[],
                ),
            },
            "wait" => self.waits = Waits::End,
            "restart" if !view.repeats => {
                self.say("error it was started through `spawn hold` and cannot be restarted: stop it, and run the pipeline again", &[]);
            }
            "restart" => {
                self.say("ok", &[]);
                self.waits = Waits::Start;
                return Some(Wish::Restart);
            }
            "stop" => {
                self.say("ok", &[]);
                return Some(Wish::Stop);
            }
            other => {
                let offset = other.strip_prefix("follow at ").and_then(|offset| offset.parse::<u64>().ok());
                match (offset, ring) {
                    (Some(offset), Some(ring)) => self.pour_from(offset.clamp(ring.oldest(), ring.total()), true),
                    _ => self.say("error unknown request", &[]),
                }
            }
        }
        None
    }

    fn pour_from(&mut self, from: u64, follow: bool) {
        self.say(&format!("ok {from}"), &[]);
        self.waits = Waits::Log { from, follow };
    }
}
