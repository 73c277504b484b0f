//! One connection to the holder's control socket: the lines of userns-handoff(7).

#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;

use crate::failure::one_line;
use crate::sys;

/// Longest line in bytes, the newline included.
const MAX_LINE: usize = 4096;

/// What a client wants.
#[derive(Debug)]
pub enum Request {
    /// The maps are written.
    Mapped,
    /// Go, with the command's three standard descriptors if they came.
    Go(Option<[OwnedFd; 3]>),
    /// Give up.
    Abort,
    /// Pass this signal on.
    Signal(i32),
    /// Something else.
    Unknown,
    /// No whole line has come yet.
    Nothing,
    /// The connection has ended.
    End,
}

/// A connection and what has come of the next line.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Client {
    /// Takes a connection if it comes from this process's own user; anybody else's is closed without a word.
    #[must_use]
    pub fn accept(stream: UnixStream) -> Option<Self> {
        let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
        (peer.uid() == nix::unistd::geteuid().as_raw()).then_some(())?;
        stream.set_nonblocking(true).ok()?;
        Some(Self { stream, buffer: Vec::new(), fds: Vec::new() })
    }

    /// The next request, never waiting for one.
    pub fn next(&mut self) -> Request {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return self.request(&line);
            }
            if self.buffer.len() >= MAX_LINE {
                return Request::End;
            }
            let (mut bytes, mut fds) = ([0_u8; 512], [-1; 3]);
            match sys::receive_message(self.stream.as_raw_fd(), &mut bytes, &mut fds) {
                Ok(length) => {
                    let came: Vec<OwnedFd> = fds.into_iter().filter_map(sys::own).collect();
                    if !came.is_empty() {
                        self.fds = came;
                    }
                    if length == 0 {
                        return Request::End;
                    }
                    self.buffer.extend_from_slice(bytes.get(..length).unwrap_or_default());
                }
                Err(Errno::EAGAIN) => return Request::Nothing,
                Err(_) => return Request::End,
            }
        }
    }

    fn request(&mut self, line: &[u8]) -> Request {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        match line.strip_suffix(b"\r").unwrap_or(line) {
            b"mapped" => Request::Mapped,
            b"go" => Request::Go(std::mem::take(&mut self.fds).try_into().ok()),
            b"abort" => Request::Abort,
            other => other
                .strip_prefix(b"signal ")
                .and_then(|number| core::str::from_utf8(number).ok())
                .and_then(|number| number.parse().ok())
                .filter(|number| (1..=64).contains(number))
                .map_or(Request::Unknown, Request::Signal),
        }
    }

    /// Answers with one line. A client that does not listen any more is noticed at its next request.
    pub fn say(&mut self, line: &str) {
        let mut line = one_line(line);
        while line.len() >= MAX_LINE {
            line.pop();
        }
        line.push('\n');
        let _ = self.stream.write_all(line.as_bytes());
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> (UnixStream, Client) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        (theirs, Client::accept(ours).unwrap())
    }

    #[test]
    fn requests_are_lines_however_they_arrive() {
        let (mut theirs, mut client) = client();
        theirs.write_all(b"map").unwrap();
        assert!(matches!(client.next(), Request::Nothing));
        theirs.write_all(b"ped\nsignal 15\nsignal 65\nmapped \nabort\n").unwrap();
        assert!(matches!(client.next(), Request::Mapped));
        assert!(matches!(client.next(), Request::Signal(15)));
        assert!(matches!(client.next(), Request::Unknown));
        assert!(matches!(client.next(), Request::Unknown));
        assert!(matches!(client.next(), Request::Abort));
        drop(theirs);
        assert!(matches!(client.next(), Request::End));
    }

    #[test]
    fn go_comes_with_three_descriptors_or_none() {
        let (mut theirs, mut client) = client();
        sys::send_message(theirs.as_raw_fd(), b"go\n", &[0, 1, 2]).unwrap();
        assert!(matches!(client.next(), Request::Go(Some(_))));
        sys::send_message(theirs.as_raw_fd(), b"go\n", &[0]).unwrap();
        assert!(matches!(client.next(), Request::Go(None)));
        theirs.write_all(b"go\n").unwrap();
        assert!(matches!(client.next(), Request::Go(None)));
    }

    #[test]
    fn a_line_without_end_ends_the_connection() {
        let (mut theirs, mut client) = client();
        theirs.write_all(&[b'x'; MAX_LINE]).unwrap();
        assert!(matches!(client.next(), Request::End));
    }
}
