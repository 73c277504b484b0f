//! The container's console: a pty whose master stays here, copied from and to the caller's terminal.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::termios::{self, OutputFlags, SetArg, Termios};

use crate::life::log::Log;
use crate::sys;

/// Bytes copied at once, either way.
const CHUNK: usize = 16384;

/// ^D, the end of file of a terminal in its usual mode.
const END_OF_TRANSMISSION: u8 = 4;

/// How long the last output of the command is waited for, in milliseconds.
const DRAIN: u16 = 200;

/// The terminal that is in raw mode, and what it was before. Global, so that the panic hook reaches it too.
static RAW: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Puts the terminal back as it was, if it was changed. For the panic hook as well: it never panics and never blocks.
pub fn restore_terminal() {
    if let Ok(mut raw) = RAW.try_lock()
        && let Some((fd, saved)) = raw.take()
    {
        let _ = termios::tcsetattr(&fd, SetArg::TCSADRAIN, &saved);
    }
}

/// Notes how `terminal` is set, so that [`restore_terminal`] can bring that back after another process, the holder,
/// has put it into raw mode and died.
pub fn remember_terminal(terminal: &OwnedFd) {
    if let (Ok(saved), Ok(copy), Ok(mut slot)) = (termios::tcgetattr(terminal), terminal.try_clone(), RAW.lock()) {
        *slot = Some((copy, saved));
    }
}

/// The standard descriptors that the command gets.
#[derive(Debug)]
pub struct Stdio {
    /// Input, output, error.
    pub fds: [OwnedFd; 3],
    /// Which of them are terminals.
    pub terminals: [bool; 3],
}

impl Stdio {
    /// Finds out which of the three are terminals.
    #[must_use]
    pub fn new(fds: [OwnedFd; 3]) -> Self {
        let terminals = [0, 1, 2].map(|n: usize| fds.get(n).is_some_and(|fd| nix::unistd::isatty(fd).unwrap_or(false)));
        Self { fds, terminals }
    }

    /// Copies of this process's own three.
    ///
    /// # Errors
    /// The errno of fcntl(2).
    pub fn own() -> std::io::Result<Self> {
        Ok(Self::new([sys::take(0)?, sys::take(1)?, sys::take(2)?]))
    }

    /// None of the caller's: all three are the console.
    ///
    /// # Errors
    /// The errno of open(2).
    pub fn console() -> std::io::Result<Self> {
        let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        Ok(Self { fds: [null()?, null()?, null()?], terminals: [true; 3] })
    }

    /// Bit N is set when descriptor N of the command is the console: a terminal of the host is never handed in, for
    /// whoever has it could type into it (TIOCSTI, CVE-2016-10124).
    #[must_use]
    pub fn console_mask(&self) -> u8 {
        self.terminals.iter().rev().fold(0, |mask, terminal| (mask << 1) | u8::from(*terminal))
    }

    /// Whether somebody types: the console becomes the command's controlling terminal then.
    #[must_use]
    pub fn interactive(&self) -> bool {
        self.terminals[0]
    }
}

/// Bytes on their way, and how many of them are left.
struct Pending {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Pending {
    fn new() -> Self {
        Self { bytes: vec![0; CHUNK].into_boxed_slice(), from: 0, to: 0 }
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    fn fill(&mut self, fd: BorrowedFd<'_>) -> sys::Call<usize> {
        (self.from, self.to) = (0, 0);
        self.to = sys::read(fd.as_raw_fd(), &mut self.bytes)?;
        Ok(self.to)
    }

    fn set(&mut self, byte: u8) {
        if let Some(first) = self.bytes.first_mut() {
            *first = byte;
            (self.from, self.to) = (0, 1);
        }
    }

    fn left(&self) -> &[u8] {
        self.bytes.get(self.from..self.to).unwrap_or_default()
    }

    fn flush(&mut self, fd: BorrowedFd<'_>) -> sys::Call<()> {
        match nix::unistd::write(fd, self.left()) {
            Ok(count) => self.from = self.from.saturating_add(count),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => {
                self.from = self.to;
                return Err(errno);
            }
        }
        Ok(())
    }
}

/// What the console wants to be polled for, and who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The pty.
    Master,
    /// The caller's terminal, for reading.
    Input,
    /// The caller's terminal, for writing.
    Output,
}

/// What the user did on the terminal that concerns the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Nothing special.
    Text,
    /// A character that the console turns into this signal for its foreground processes.
    Signal(i32),
    /// The terminal is gone.
    Hangup,
}

/// Both ends of the pty and the terminal.
pub struct Console {
    master: OwnedFd,
    /// Held open, so that the master does not report a hangup while no process inside has the console open.
    slave: Option<OwnedFd>,
    input: Option<OwnedFd>,
    output: OwnedFd,
    inward: Pending,
    outward: Pending,
    log: Option<Log>,
}

impl Console {
    /// Connects the pty with the terminal among `stdio` and puts that into raw mode. Without one, what is written to
    /// the console goes to standard error.
    ///
    /// # Errors
    /// When a descriptor cannot be copied.
    pub fn new(master: OwnedFd, slave: OwnedFd, stdio: &Stdio) -> std::io::Result<Self> {
        let [stdin, stdout, stderr] = &stdio.fds;
        let output = if stdio.terminals[1] {
            stdout
        } else if stdio.terminals[2] {
            stderr
        } else if stdio.terminals[0] && writable(stdin) {
            stdin
        } else {
            stderr
        };
        let input = if stdio.terminals[0] { Some(stdin.try_clone()?) } else { None };
        if let Some(terminal) = &input {
            let _ = sys::copy_window_size(terminal.as_fd(), master.as_fd());
            make_raw(terminal, stdio.terminals[1]);
        }
        Ok(Self {
            master,
            slave: Some(slave),
            input,
            output: output.try_clone()?,
            inward: Pending::new(),
            outward: Pending::new(),
            log: None,
        })
    }

    /// What is written to the console goes to `log` too.
    #[must_use]
    pub fn with_log(mut self, log: Option<Log>) -> Self {
        self.log = log;
        self
    }

    /// Takes what has been written to the console.
    fn take_output(&mut self) -> sys::Call<usize> {
        let length = self.outward.fill(self.master.as_fd())?;
        if let Some(log) = &mut self.log {
            log.write(self.outward.left());
        }
        Ok(length)
    }

    /// What to poll for now.
    #[must_use]
    pub fn interests(&self) -> Vec<(End, BorrowedFd<'_>, PollFlags)> {
        let mut list = Vec::with_capacity(3);
        let mut master = PollFlags::empty();
        master.set(PollFlags::POLLIN, self.outward.is_empty());
        master.set(PollFlags::POLLOUT, !self.inward.is_empty());
        list.push((End::Master, self.master.as_fd(), master));
        if let Some(input) = &self.input
            && self.inward.is_empty()
        {
            list.push((End::Input, input.as_fd(), PollFlags::POLLIN));
        }
        if !self.outward.is_empty() {
            list.push((End::Output, self.output.as_fd(), PollFlags::POLLOUT));
        }
        list
    }

    /// Moves bytes at an end that poll(2) found ready.
    pub fn ready(&mut self, end: End, events: PollFlags) -> Typed {
        match end {
            End::Master => {
                if events.contains(PollFlags::POLLOUT) {
                    let _ = self.inward.flush(self.master.as_fd());
                }
                if events.intersects(PollFlags::POLLIN) && self.outward.is_empty() {
                    let _ = self.take_output();
                }
            }
            End::Input => {
                let Some(input) = &self.input else { return Typed::Text };
                match self.inward.fill(input.as_fd()) {
                    // A pipe that was made a terminal of has ended: what a person types then.
                    Ok(0) if !nix::unistd::isatty(input).unwrap_or(false) => {
                        self.input = None;
                        self.inward.set(END_OF_TRANSMISSION);
                    }
                    Ok(0) | Err(Errno::EIO | Errno::ENXIO) => {
                        self.input = None;
                        return Typed::Hangup;
                    }
                    Ok(_) => return self.typed(),
                    Err(_) => {}
                }
            }
            End::Output => {
                // A terminal that is gone: the rest is for nobody.
                let _ = self.outward.flush(self.output.as_fd());
            }
        }
        Typed::Text
    }

    /// Looks for the characters that make signals, as the container's own settings of its console have them.
    fn typed(&self) -> Typed {
        use termios::{LocalFlags, SpecialCharacterIndices as Index};
        let bytes = self.inward.left();
        // Cheap first: none of these settings is worth a system call for plain text.
        if !bytes.iter().any(u8::is_ascii_control) {
            return Typed::Text;
        }
        let Ok(settings) = termios::tcgetattr(&self.master) else { return Typed::Text };
        if !settings.local_flags.contains(LocalFlags::ISIG) {
            return Typed::Text;
        }
        let signals = [(Index::VINTR, libc::SIGINT), (Index::VQUIT, libc::SIGQUIT)];
        let hit = signals.into_iter().find(|(index, _)| {
            settings.control_chars.get(*index as usize).is_some_and(|char| *char != 0 && bytes.contains(char))
        });
        hit.map_or(Typed::Text, |(_, signal)| Typed::Signal(signal))
    }

    /// The process group in the foreground of the console, as a number here; 0 when it is none of ours.
    #[must_use]
    pub fn foreground(&self) -> i32 {
        sys::foreground_group(self.master.as_fd()).unwrap_or(0)
    }

    /// Gives the console the size that the terminal has now.
    pub fn resize(&self) {
        if let Some(terminal) = &self.input {
            let _ = sys::copy_window_size(terminal.as_fd(), self.master.as_fd());
        }
    }

    /// After the end of the container: what was written last is shown, then the terminal is what it was.
    pub fn finish(mut self) {
        self.slave = None;
        loop {
            while !self.outward.is_empty() {
                if self.outward.flush(self.output.as_fd()).is_err() {
                    break;
                }
            }
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, DRAIN) {
                Err(Errno::EINTR) => continue,
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            // EIO: every slave is closed and the last byte has been read.
            if !matches!(self.take_output(), Ok(1..)) {
                break;
            }
        }
        restore_terminal();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        restore_terminal();
    }
}

fn writable(fd: &OwnedFd) -> bool {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_GETFL).is_ok_and(|flags| flags & OFlag::O_ACCMODE.bits() != OFlag::O_RDONLY.bits())
}

/// Raw mode: the container's console does all that a terminal does. Where the command's output goes elsewhere, into a
/// pipe whose reader may write to the terminal, the output side stays as it is.
pub fn make_raw(terminal: &OwnedFd, whole: bool) {
    let Ok(saved) = termios::tcgetattr(terminal) else { return };
    let Ok(copy) = terminal.try_clone() else { return };
    let mut raw = saved.clone();
    termios::cfmakeraw(&mut raw);
    if !whole {
        raw.output_flags = saved.output_flags;
        raw.output_flags.set(OutputFlags::OPOST, true);
    }
    if let Ok(mut slot) = RAW.lock() {
        *slot = Some((copy, saved));
    }
    let _ = termios::tcsetattr(terminal, SetArg::TCSADRAIN, &raw);
}
