//! usernet and lxc-user-nic from entry to exit.

#![forbid(unsafe_code)]

use crate::apply::{Nic, Plan, delete, detach, undo};
use crate::grants::Grants;
use crate::request::{Attach, Request, parse, parse_drop_in};
use crate::{netns, status};
use caps::Capability;
use helper::caller::Caller;
use helper::enter::enter_with_root;
use helper::handoff::{EXIT_PASSED_ON, Record};
use helper::report::{Failure, Message, Program, print};
use helper::sys::exit_now;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor, umask};

/// usernet.
pub static USERNET: Program = Program { name: c"usernet", panic_status: 70 };

/// lxc-user-nic.
pub static LXC_USER_NIC: Program = Program { name: c"lxc-user-nic", panic_status: 1 };

/// Who calls, and what he is told by whom.
struct Call {
    program: &'static Program,
    caller: Caller,
    /// Supplementary groups.
    groups: Vec<u32>,
}

/// The whole program: enter, parse, decide, apply.
pub fn run(program: &'static Program) -> ! {
    let drop_in = core::ptr::eq(program, &LXC_USER_NIC);
    let result = enter_with_root(program, &[Capability::CAP_NET_ADMIN]).and_then(|(caller, groups)| {
        // What is made under /run is made with the modes that are asked for.
        umask(Mode::from_bits_truncate(0o022));
        let words = std::env::args_os().skip(1);
        let request = if drop_in { parse_drop_in(words) } else { parse(words) };
        let call = Call { program, caller, groups };
        match request.map_err(|why| usage(drop_in, &why))? {
            Request::Attach(attach, check) => call.attach(&attach, check),
            Request::Delete(request) => {
                let netns = netns::at_path(&call.caller, &request.netns)?;
                let result = delete(&call.caller, &request, &netns);
                call.log_delete(&request.bridge, request.nic.as_deref().unwrap_or(b"-"), result)
            }
            Request::Detach(nic) => call.log_delete(b"-", &nic, detach(&call.caller, &nic)),
            Request::List(json) => crate::list::list(&call.caller, &call.groups, json),
            Request::Prune => crate::list::prune(&call.caller, &call.groups),
            Request::CheckFile => crate::list::check_file(&call.caller, &call.groups),
            Request::Help => print(if drop_in { DROP_IN_HELP } else { HELP }),
            Request::Version => print(&format!("{} (userns-helpers) {}\n", program.name(), env!("CARGO_PKG_VERSION"))),
        }
    });
    let result = result.map_err(|failure| if drop_in { failure.status(1) } else { failure });
    let code = result.as_ref().map_or_else(|failure| failure.status, |()| 0);
    let _ = program.finish(result);
    exit_now(code)
}

impl Call {
    fn attach(&self, request: &Attach, check: bool) -> Result<(), Failure> {
        if request.pid.is_none() && !check {
            return self.stage(request);
        }
        let pid = request.pid.ok_or_else(|| usage(false, "attach --check needs --pid"))?;
        if !check {
            output_is_open()?;
        }
        let nic = self.make(request, pid, None, check)?;
        nic.map_or(Ok(()), |nic| self.report(&nic, &[nic.report(), b"\n".to_vec()].concat()))
    }

    /// A stage of a container start; userns-handoff(7) is the contract. Of the record only pid and start are believed,
    /// and only as far as the kernel bears them out; its name is a label, as any word of the caller's.
    fn stage(&self, request: &Attach) -> Result<(), Failure> {
        output_is_open()?;
        let mut record = Record::read_from(&mut std::io::stdin())
            .map_err(|error| Failure::new(error.to_string()).status(status::DATA))?;
        if record.failed().is_some() {
            print(&format!("{record}\n"))?;
            return Err(Failure::new("").status(EXIT_PASSED_ON));
        }
        let mut request = request.clone();
        if request.container.is_empty() {
            request.container = record.get("name").unwrap_or_default().as_bytes().to_vec();
        }
        match self.make(&request, record.pid(), Some(record.start()), false) {
            Ok(nic) => nic.map_or(Ok(()), |nic| {
                let word = String::from_utf8_lossy(&nic.report()).into_owned();
                let all = [record.get("nic"), Some(&word)].into_iter().flatten().collect::<Vec<_>>().join(",");
                let addr = String::from_utf8_lossy(&nic.label.addr).into_owned();
                let added = record.set("nic", &all).and_then(|()| match addr.as_str() {
                    "" => Ok(()),
                    addr => record.set("addr", addr),
                });
                if let Err(error) = added {
                    undo(&self.caller, &nic);
                    return self.pass_on_failed(record, Failure::new(error.to_string()).status(status::DATA));
                }
                self.report(&nic, format!("{record}\n").as_bytes())
            }),
            Err(failure) => self.pass_on_failed(record, failure),
        }
    }

    fn pass_on_failed(&self, mut record: Record, failure: Failure) -> Result<(), Failure> {
        let word = format!("usernet:{}", failure.status);
        if record.set("failed", &word).is_err() {
            record = Record::new(record.pid(), record.start());
            let _ = record.set("failed", &word);
        }
        // Before the record goes on: the stages after it then speak after this line.
        self.program.say(&failure.text);
        let _ = print(&format!("{record}\n"));
        Err(Failure::new("").status(failure.status))
    }

    fn make(&self, request: &Attach, pid: i32, start: Option<u64>, check: bool) -> Result<Option<Nic>, Failure> {
        let decided = netns::of_process(&self.caller, pid, start)
            .and_then(|netns| Ok((netns, Grants::read(&self.caller, &self.groups, false)?)));
        let result = decided.and_then(|(netns, grants)| {
            let plan = Plan::new(&self.caller, &grants, request, &netns)?;
            if check {
                return print(&format!("{}\n", plan.check()?)).map(|()| None);
            }
            plan.attach().map(Some)
        });
        if !check {
            self.log_attach(request, pid, result.as_ref());
        }
        result
    }

    /// Prints the result in one write, or takes the NIC away again.
    fn report(&self, nic: &Nic, line: &[u8]) -> Result<(), Failure> {
        let written = loop {
            match nix::unistd::write(std::io::stdout(), line) {
                Err(Errno::EINTR) => {}
                other => break other,
            }
        };
        let why = match written {
            Ok(written) if written == line.len() => return Ok(()),
            Ok(written) => format!("only {written} bytes were taken"),
            Err(error) => error.desc().to_owned(),
        };
        undo(&self.caller, nic);
        let text = format!("cannot write to standard output: {why}: the veth is deleted again");
        Err(Failure::new(text).status(status::SYSTEM))
    }

    fn message(&self, event: &str, granted: bool) -> Message {
        Message::default()
            .field("event", event.as_bytes())
            .field("result", if granted { b"granted" } else { b"refused" })
            .field("uid", self.caller.uid.to_string().as_bytes())
            .field("user", self.caller.account.names.first().map_or(&b"-"[..], Vec::as_slice))
    }

    fn log_attach(&self, request: &Attach, pid: i32, result: Result<&Option<Nic>, &Failure>) {
        let mut message = self
            .message("nic_create", result.is_ok())
            .field("pid", pid.to_string().as_bytes())
            .field("bridge", &request.bridge);
        match result {
            Ok(Some(nic)) => {
                message = message
                    .field("nic", &nic.report())
                    .field("pot", &nic.label.pot)
                    .field("line", nic.line.to_string().as_bytes());
            }
            Ok(None) => {}
            Err(failure) => message = message.field("reason", failure.text.as_bytes()),
        }
        self.program.log(result.is_ok(), &message);
    }

    fn log_delete(&self, bridge: &[u8], nic: &[u8], result: Result<(), Failure>) -> Result<(), Failure> {
        let mut message = self.message("nic_delete", result.is_ok()).field("bridge", bridge).field("nic", nic);
        if let Err(failure) = &result {
            message = message.field("reason", failure.text.as_bytes());
        }
        self.program.log(result.is_ok(), &message);
        result
    }
}

/// Whether standard output was open when the program was started. One that was closed has been opened by the C library
/// or by Rust's start: /dev/null, for reading (glibc) or for both (musl, std), so that no file gets its number.
fn output_is_open() -> Result<(), Failure> {
    let closed =
        |why: &str| Err(Failure::new(format!("standard output {why}: nothing was made")).status(status::SYSTEM));
    let out = std::io::stdout();
    let flags = fcntl(&out, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate).unwrap_or(OFlag::O_RDONLY);
    match flags & OFlag::O_ACCMODE {
        OFlag::O_WRONLY => Ok(()),
        OFlag::O_RDWR => {
            let null = fstat(&out).is_ok_and(|meta| {
                let device = (major(meta.st_rdev), minor(meta.st_rdev));
                SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR && device == (1, 3)
            });
            if null {
                return closed("is closed (or /dev/null, opened for reading too: use >/dev/null)");
            }
            Ok(())
        }
        _ => closed("is closed, or open for reading only"),
    }
}

fn usage(drop_in: bool, why: &str) -> Failure {
    let usage = if drop_in {
        "usage: lxc-user-nic [--check] create LXCPATH NAME PID veth BRIDGE [NICNAME] | delete LXCPATH NAME NETNSPATH veth BRIDGE [NICNAME]; see lxc-user-nic --help"
    } else {
        "see usernet --help"
    };
    Failure::new(if why.is_empty() { usage.to_owned() } else { format!("{why}; {usage}") }).status(status::USAGE)
}

const DROP_IN_HELP: &str = "\
usage: lxc-user-nic [--check] create LXCPATH NAME PID veth BRIDGE [NICNAME]
       lxc-user-nic delete LXCPATH NAME NETNSPATH veth BRIDGE [NICNAME]

Gives a network namespace of yours a veth whose other end is a port of BRIDGE, as /etc/lxc/lxc-usernet grants, or takes
it away. LXC and rootlesskit run this; usernet(1) does the same with words for people.

LXCPATH, NAME  of the container: a label
PID            a process in the network namespace
NETNSPATH      a path to it, as /proc/PID/ns/net
BRIDGE         a bridge, one of Open vSwitch, or none: a veth whose host end is a port of nothing
NICNAME        the card's name inside (default: the first free of eth0, eth1...)

--check        say whether it would be made and which line grants it; change nothing
--help         this text
--version      name and version

examples:
  unshare -Urn sleep 60 &
  lxc-user-nic create /dev/null c1 $! veth lxcbr0 eth0    prints eth0:2:veth1000_EmBq:10
  lxc-user-nic delete /dev/null c1 /proc/$!/ns/net veth lxcbr0

Exit status: 0 done, 1 anything else. Manual: lxc-user-nic(1), lxc-usernet(5).
";

const HELP: &str = "\
usage: usernet attach BRIDGE [--name NAME] [--pid PID] [--mac MAC] [--container NAME] [--check]
       usernet detach HOSTNIC
       usernet list [--json]
       usernet prune
       usernet --check

Gives a network namespace of yours a veth whose other end is a port of a bridge, as /etc/lxc/lxc-usernet grants.

attach       make one; without --pid as a stage of a container start: reads a handoff record, passes it on
detach       delete the one whose end on the host is HOSTNIC
list         yours, and how much of each quota is used; as root everybody's
prune        bring the ledger /run/lxc/nics up to date

--name NAME  the card's name inside (default: the first free of eth0, eth1...)
--pid PID    a process in the network namespace; prints NAME:INDEX:HOSTNIC:INDEX
--mac MAC    its hardware address
--container NAME
             a label, and what mac=stable and addr= derive from
--check      say whether it would be done and which line grants it; alone: what each line grants, or why nothing
--json       list as one JSON object
--help       this text
--version    name and version

examples:
  unshare -Urn sleep 60 &
  usernet attach lxcbr0 --pid $!            prints eth0:2:veth1000_EmBq:10
  usernet attach lxcbr0 --pid $! --check    which line grants it, or why it is refused
  usernet detach veth1000_EmBq
  spawn hold centos7 | idmap | usernet attach lxcbr0 | spawn go

Exit status: 0 done, 64 usage, 65 bad record, 69 the kernel lacks it, 71 a system call failed, 75 quota reached, a lock
was held, or an earlier stage had failed, 77 not permitted, 78 bad configuration. Manual: usernet(1), lxc-usernet(5).
";
