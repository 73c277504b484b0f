//! `rootfs adapt`: the configuration files that CentOS and its kin need changed in a container of an ordinary user, and
//! no more. Nothing of the guest is run; services stay as they are; every change is recorded and can be undone.

#![forbid(unsafe_code)]

use super::container::{Container, User};
use super::digest;
use super::edit;
use super::error::{Error, Result, at, io_at, shown};
use super::guest::{self, Guest, Init, LONGEST_TEXT};
use super::namespace::{self, Ids};
use super::root::{Root, kind};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

const UDEV_BLOCK: &str = "\
# userns-helpers begin: the spawner supplies /dev
if tr '\\0' '\\n' </proc/1/environ 2>/dev/null | grep -q '^container='; then exit 0; fi
# userns-helpers end
";
const CONSOLE_BLOCK: &str = "\
# userns-helpers begin: one getty, on the console
ACTIVE_CONSOLES=/dev/console
PROMPT=no
# userns-helpers end
";
const TTY_OVERRIDE: &str = "\
# userns-helpers: vhangup(2) fails in a user namespace
exec /sbin/mingetty --nohangup $TTY
";
const POWER_JOB: &str = "\
# userns-helpers: SIGPWR means halt
start on power-status-changed
exec /sbin/shutdown -h now \"SIGPWR received\"
";
const NEVER_JOB: &str = "\
# userns-helpers: not in a container
start on never-in-a-container
";
const FSTAB: &str = "/dev/root / rootfs defaults 0 0\n";
const DHCP: &str = "DEVICE=eth0\nBOOTPROTO=dhcp\nONBOOT=yes\n";

/// Jobs of EL 6 that make no sense in a container.
const IDLE_JOBS: [&str; 6] =
    ["plymouth-shutdown", "quit-plymouth", "splash-manager", "prefdm", "serial", "kexec-disable"];

/// Units of EL 7 that fail in a user namespace.
const IDLE_UNITS_7: [&str; 2] = ["dev-hugepages.mount", "sys-fs-fuse-connections.mount"];

/// Units of EL 8 and newer that fail in a user namespace, where they are installed.
const IDLE_UNITS_8: [&str; 3] = ["auditd.service", "kdump.service", "rngd.service"];

/// What a change makes of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Made {
    /// This text is put behind what is there.
    Block(String),
    /// The whole file.
    File(Vec<u8>),
    /// No file.
    Nothing,
    /// A symbolic link with this text.
    Link(String),
    /// A directory.
    Directory,
}

/// One change of one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The path inside the rootfs, without a leading slash.
    pub path: String,
    /// Why, in a few words.
    pub why: String,
    /// What was there; `None`: nothing.
    pub before: Option<Vec<u8>>,
    /// What shall be there.
    pub made: Made,
}

impl Change {
    /// The whole content after the change; `None`: no file, or no regular one.
    fn after(&self) -> Option<Vec<u8>> {
        match &self.made {
            Made::Block(block) => Some(with_block(self.before.as_deref().unwrap_or_default(), block)),
            Made::File(content) => Some(content.clone()),
            Made::Nothing | Made::Link(_) | Made::Directory => None,
        }
    }
}

/// The record of what was done, outside of the rootfs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    version: u32,
    changes: Vec<Change>,
}

/// What an adaptation came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Adapted {
    /// What the rootfs is.
    pub guest: Guest,
    /// The changes made, or that would be made.
    pub changes: Vec<Change>,
    /// What was left as it is, and why.
    pub notes: Vec<String>,
}

fn with_block(before: &[u8], block: &str) -> Vec<u8> {
    let mut text = before.to_vec();
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(block.as_bytes());
    text
}

/// Looks what a rootfs needs.
#[must_use]
pub fn plan(root: &Root, guest: &Guest, host_name: &str, dhcp: bool) -> (Vec<Change>, Vec<String>) {
    let mut plan = Plan { root, changes: Vec::new(), notes: Vec::new() };
    match (&guest.init, guest.el) {
        (Init::Upstart, Some(6) | None) if plan.exists("etc/rc.d/rc.sysinit") => plan.el6(host_name, dhcp),
        (Init::Systemd(_), Some(7)) => plan.el7(),
        (Init::Systemd(_), Some(8..)) => plan.el8(),
        (Init::None, _) => plan.notes.push("there is no init: nothing to adapt (rootfs check tells more)".to_owned()),
        (_, Some(5)) => {
            plan.notes.push("EL 5 is recognised, and no change of its files is known to be needed".to_owned())
        }
        _ => plan.notes.push("no change is known to be needed for this system".to_owned()),
    }
    (plan.changes, plan.notes)
}

struct Plan<'a> {
    root: &'a Root,
    changes: Vec<Change>,
    notes: Vec<String>,
}

impl Plan<'_> {
    fn exists(&self, path: &str) -> bool {
        self.root.lstat(path.as_bytes()).is_ok()
    }

    fn text(&self, path: &str) -> Option<Vec<u8>> {
        self.root.read(path.as_bytes(), LONGEST_TEXT).ok()
    }

    fn add(&mut self, path: &str, why: &str, before: Option<Vec<u8>>, made: Made) {
        let change = Change { path: path.to_owned(), why: why.to_owned(), before, made };
        if change.after().is_none() || change.after() != change.before {
            self.changes.push(change);
        }
    }

    /// A file of ours where there is none. One that is there and not ours stays, and is mentioned.
    fn new_file(&mut self, path: &str, why: &str, content: &str) {
        match self.text(path) {
            Some(there) if there == content.as_bytes() => {}
            Some(_) => self.notes.push(format!("/{path} is there already and stays as it is")),
            None if self.exists(path) => self.notes.push(format!("/{path} is there already and stays as it is")),
            None => self.add(path, why, None, Made::File(content.as_bytes().to_vec())),
        }
    }

    fn block(&mut self, path: &str, why: &str, block: &str) {
        let marker = block.lines().next().unwrap_or_default();
        if let Some(before) = self.text(path)
            && !guest::contains(&before, marker.as_bytes())
        {
            self.add(path, why, Some(before), Made::Block(block.to_owned()));
        }
    }

    fn el6(&mut self, host_name: &str, dhcp: bool) {
        self.block(UDEV, "start_udev would wait for the host's events, possibly for ever", UDEV_BLOCK);
        self.getty();
        self.block("etc/sysconfig/init", "one getty on the console", CONSOLE_BLOCK);
        if self.exists("etc/init") && !self.exists("etc/init/power-status-changed.conf") {
            self.new_file("etc/init/power-status-changed.conf", "SIGPWR halts", POWER_JOB);
        }
        self.loginuid();
        self.fstab(FSTAB);
        if !self.exists("etc/sysconfig/network") {
            let text = format!("NETWORKING=yes\nHOSTNAME={host_name}\n");
            self.new_file("etc/sysconfig/network", "the network scripts want it", &text);
        }
        if dhcp {
            self.new_file("etc/sysconfig/network-scripts/ifcfg-eth0", "address by DHCP", DHCP);
        }
        if self.exists("var/run") && !self.exists("var/run/netreport") {
            self.add("var/run/netreport", "the network scripts want it", None, Made::Directory);
        }
        for job in IDLE_JOBS {
            if self.exists(&format!("etc/init/{job}.conf")) {
                self.new_file(&format!("etc/init/{job}.override"), "not in a container", NEVER_JOB);
            }
        }
        if self.exists("etc/init/lxc-sysinit.conf") {
            // It runs `telinit 3` beside rc.sysinit, which kills rcS half way.
            self.new_file("etc/init/lxc-sysinit.override", "the job of LXC's template kills rcS half way", NEVER_JOB);
        }
    }

    fn getty(&mut self) {
        let Some(job) = self.text("etc/init/tty.conf") else { return };
        if guest::contains(&job, b"--nohangup") {
            return;
        }
        let why = "mingetty without --nohangup fails in vhangup(2)";
        let knows_override =
            self.root.read(b"sbin/init", 32 << 20).is_ok_and(|init| guest::contains(&init, b".override"));
        if knows_override {
            self.new_file("etc/init/tty.override", why, TTY_OVERRIDE);
            return;
        }
        let text = String::from_utf8_lossy(&job).into_owned();
        let edited: String = text
            .split_inclusive('\n')
            .map(|line| match line.strip_prefix("exec /sbin/mingetty ") {
                Some(rest) => format!("exec /sbin/mingetty --nohangup {rest}"),
                None => line.to_owned(),
            })
            .collect();
        self.add("etc/init/tty.conf", why, Some(job), Made::File(edited.into_bytes()));
    }

    /// pam_loginuid: writing the login uid anew needs CAP_AUDIT_CONTROL on the host.
    fn loginuid(&mut self) {
        for name in edit::list(self.root, b"etc/pam.d") {
            let Ok(name) = String::from_utf8(name) else { continue };
            let path = format!("etc/pam.d/{name}");
            // A link there names another file of the directory.
            if !self.root.lstat(path.as_bytes()).is_ok_and(|stat| kind(&stat) == SFlag::S_IFREG) {
                continue;
            }
            let Some(before) = self.text(&path) else { continue };
            if let Some(after) = with_optional_loginuid(&before) {
                self.add(&path, "login works where the login uid is set", Some(before), Made::File(after));
            }
        }
    }

    fn fstab(&mut self, wanted: &str) {
        let before = self.text("etc/fstab");
        let why = "the devices of another machine are not here";
        match (before, wanted) {
            (None, "") => {}
            (Some(before), "") => self.add("etc/fstab", why, Some(before), Made::Nothing),
            (before, wanted) => self.add("etc/fstab", why, before, Made::File(wanted.as_bytes().to_vec())),
        }
    }

    fn mask(&mut self, unit: &str) {
        let path = format!("etc/systemd/system/{unit}");
        if !self.exists(&path) {
            self.add(&path, "the unit fails in a user namespace", None, Made::Link("/dev/null".to_owned()));
        }
    }

    fn el7(&mut self) {
        for unit in IDLE_UNITS_7 {
            self.mask(unit);
        }
        self.loginuid();
        self.fstab("");
    }

    fn el8(&mut self) {
        for unit in IDLE_UNITS_8 {
            if self.exists(&format!("usr/lib/systemd/system/{unit}")) {
                self.mask(unit);
            }
        }
        self.fstab("");
    }
}

/// The text with `optional` for `required` where pam_loginuid.so is a session's; `None` when there is no such line.
#[must_use]
pub fn with_optional_loginuid(text: &[u8]) -> Option<Vec<u8>> {
    let mut changed = false;
    let mut out = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let words: Vec<&[u8]> = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
        let matches = matches!(words.as_slice(), [b"session" | b"-session", b"required", module, ..]
            if module.rsplit(|byte| *byte == b'/').next() == Some(b"pam_loginuid.so"));
        let at = line.windows(8).position(|window| window == b"required");
        match at.filter(|_| matches) {
            Some(at) => {
                out.extend_from_slice(line.get(..at).unwrap_or_default());
                out.extend_from_slice(b"optional");
                out.extend_from_slice(line.get(at.saturating_add(8)..).unwrap_or_default());
                changed = true;
            }
            None => out.extend_from_slice(line),
        }
    }
    changed.then_some(out)
}

/// The file that ends start_udev.
const UDEV: &str = "etc/sysconfig/udev";

/// Whether a boot would hang without an adaptation: EL 6 with a start_udev that nothing ends. `recorded`: what to take
/// for true when the file that would end it may not be read.
#[must_use]
pub fn would_hang(root: &Root, recorded: impl FnOnce() -> bool) -> bool {
    let read = |path: &str| root.read(path.as_bytes(), LONGEST_TEXT);
    let starts = || read("etc/rc.d/rc.sysinit").is_ok_and(|text| guest::contains(&text, b"start_udev"));
    let ended = || match read(UDEV) {
        Ok(text) => guest::contains(&text, b"# userns-helpers begin"),
        Err(_) => root.lstat(UDEV.as_bytes()).is_ok() && recorded(),
    };
    root.lstat(b"sbin/start_udev").is_ok() && starts() && !ended()
}

/// What to tell before an init is booted from the rootfs at `path`, which a command line names as `word`: the cause and
/// the command, when the boot might hang without an adaptation. Looks as the caller; what he may not read is passed over.
#[must_use]
pub fn offer(path: &Path, word: &str) -> Option<String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = Root::new(nix::fcntl::open(path, flags, Mode::empty()).ok()?).ok()?;
    // The record stands beside the rootfs, as Container::record has it.
    let recorded = || {
        let above = path.parent().unwrap_or(path);
        let bare = format!(".{}.adapted.json", path.file_name().unwrap_or_default().to_string_lossy());
        [above.join("adapted.json"), above.join(bare)]
            .iter()
            .filter_map(|record| read_record(record).ok())
            .any(|record| record.changes.iter().any(|change| change.path == UDEV))
    };
    would_hang(&root, recorded).then(|| {
        format!(
            "{} is not adapted: after \"Welcome to CentOS\" its start_udev waits for events of the host, possibly for ever; to cure it, stop it and type: rootfs adapt {}",
            path.display(),
            shown(word.as_bytes())
        )
    })
}

fn open_tree(container: &Container) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(&container.rootfs, flags, Mode::empty()).map_err(at("open", container.rootfs.display()))
}

fn read_record(path: &Path) -> Result<Record> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Record { version: 1, changes: Vec::new() }),
        other => {
            let text = other.map_err(io_at("read", path.display()))?;
            serde_json::from_slice(&text).map_err(|error| Error::data(format!("{}: {error}", path.display())))
        }
    }
}

fn write_record(path: &Path, record: &Record) -> Result<()> {
    if record.changes.is_empty() {
        return match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_at("remove", path.display())(error)),
            _ => Ok(()),
        };
    }
    let partial = path.with_extension("json.partial");
    let text = serde_json::to_vec(record).map_err(|error| Error::new(70, error.to_string()))?;
    let mut file = File::create(&partial).map_err(io_at("create", partial.display()))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(io_at("write", partial.display()))?;
    std::fs::rename(&partial, path).map_err(io_at("rename to", path.display()))
}

/// Adapts a container.
///
/// # Errors
/// Files cannot be read or changed. What was changed until then is in the record.
pub fn adapt(user: &User, container: &Container, dhcp: bool, dry_run: bool) -> Result<Adapted> {
    let ids = Ids::of(&container.map(user)?)?;
    // By the caller: inside, the way to it may be closed to the container's root.
    let tree = open_tree(container)?;
    let host_name = container.name.clone();
    let adapted: Adapted = namespace::run(&ids, || {
        let root = Root::new(tree.try_clone().map_err(io_at("duplicate", "a descriptor"))?)
            .map_err(at("stat", container.rootfs.display()))?;
        let guest = guest::look(&root);
        let (changes, notes) = plan(&root, &guest, &host_name, dhcp);
        Ok(Adapted { guest, changes, notes })
    })?;
    if dry_run || adapted.changes.is_empty() {
        return Ok(adapted);
    }
    let path = container.record("adapted");
    let mut record = read_record(&path)?;
    for change in &adapted.changes {
        match record.changes.iter_mut().find(|old| old.path == change.path) {
            // What was there before the first of our changes is what undo brings back.
            Some(old) => {
                old.made = match (&old.made, &change.made) {
                    (Made::Block(first), Made::Block(_)) => Made::Block(first.clone()),
                    (_, new) => new.clone(),
                }
            }
            None => record.changes.push(change.clone()),
        }
    }
    write_record(&path, &record)?;
    let changes = adapted.changes.clone();
    namespace::run(&ids, || {
        let root = Root::new(tree.try_clone().map_err(io_at("duplicate", "a descriptor"))?)
            .map_err(at("stat", container.rootfs.display()))?;
        changes.iter().try_for_each(|change| apply(&root, change))
    })?;
    Ok(adapted)
}

fn apply(root: &Root, change: &Change) -> Result<()> {
    let path = change.path.as_bytes();
    match &change.made {
        Made::Block(_) | Made::File(_) => edit::replace(root, path, &change.after().unwrap_or_default()),
        Made::Nothing => edit::remove(root, path, false),
        Made::Link(target) => edit::link(root, path, target.as_bytes()),
        Made::Directory => edit::directory(root, path),
    }
}

/// Undoes what [`adapt`] has recorded. Gives the paths brought back, and those refused with the reason.
///
/// # Errors
/// There is no record (65), or a file cannot be changed.
pub fn undo(user: &User, container: &Container, dry_run: bool) -> Result<(Vec<String>, Vec<String>)> {
    let path = container.record("adapted");
    let record = read_record(&path)?;
    if record.changes.is_empty() {
        return Err(Error::data(format!("{} has not been adapted (no {})", container.name, path.display())));
    }
    let ids = Ids::of(&container.map(user)?)?;
    let tree = open_tree(container)?;
    let changes = record.changes.clone();
    let results: Vec<core::result::Result<String, String>> = namespace::run(&ids, || {
        let root = Root::new(tree).map_err(at("stat", container.rootfs.display()))?;
        changes.iter().rev().map(|change| undo_one(&root, change, dry_run)).collect()
    })?;
    let mut left = Vec::new();
    let (mut undone, mut refused) = (Vec::new(), Vec::new());
    for (change, result) in record.changes.iter().rev().zip(results) {
        match result {
            Ok(text) => undone.push(text),
            Err(text) => {
                refused.push(text);
                left.push(change.clone());
            }
        }
    }
    if !dry_run {
        left.reverse();
        write_record(&path, &Record { version: 1, changes: left })?;
    }
    Ok((undone, refused))
}

fn undo_one(root: &Root, change: &Change, dry_run: bool) -> Result<core::result::Result<String, String>> {
    let path = change.path.as_bytes();
    let name = format!("/{}", change.path);
    let now = root.read(path, LONGEST_TEXT).ok();
    let back = |content: &[u8]| if dry_run { Ok(()) } else { edit::replace(root, path, content) };
    let gone = |directory| if dry_run { Ok(()) } else { edit::remove(root, path, directory) };
    match &change.made {
        Made::Block(block) => {
            let Some(now) = now else { return Ok(Err(format!("{name} is gone: nothing to undo there"))) };
            if let (true, Some(before)) = (change.after().as_ref() == Some(&now), &change.before) {
                back(before)?;
            } else if let Some(cut) = without_block(&now, block) {
                // The file has grown since; only our block goes.
                back(&cut)?;
            } else if change.before.as_ref() != Some(&now) {
                return Ok(Err(format!("{name}: our block in it was edited: take it out by hand")));
            }
        }
        Made::File(content) => match (now, &change.before) {
            (Some(now), Some(before)) if now == *content => back(before)?,
            (Some(now), None) if now == *content => gone(false)?,
            (None, None) => {}
            (Some(now), Some(before)) if now == *before => {}
            _ => {
                let was = digest::of(content);
                return Ok(Err(format!("{name} was edited since (its digest was {was}): it stays as it is")));
            }
        },
        Made::Nothing => match (now, &change.before) {
            (None, Some(before)) => back(before)?,
            (Some(now), Some(before)) if now == *before => {}
            (None, None) => {}
            (Some(_), _) => return Ok(Err(format!("{name} was made anew since: it stays as it is"))),
        },
        Made::Link(target) => match root.read_link(path) {
            Ok(text) if text == target.as_bytes() => gone(false)?,
            Err(nix::errno::Errno::ENOENT) => {}
            _ => return Ok(Err(format!("{name} was replaced since: it stays as it is"))),
        },
        Made::Directory => gone(true)?,
    }
    Ok(Ok(name))
}

fn without_block(text: &[u8], block: &str) -> Option<Vec<u8>> {
    let at = text.windows(block.len()).position(|window| window == block.as_bytes())?;
    let (head, rest) = text.split_at(at);
    Some([head, rest.get(block.len()..).unwrap_or_default()].concat())
}

/// A change as a diff: what stands before and after the lines that differ is left out.
#[must_use]
pub fn diff(change: &Change) -> String {
    let name = shown(change.path.as_bytes());
    let mut text = String::new();
    let head = |from: bool, to: bool| {
        let side = |there: bool, letter: &str| if there { format!("{letter}/{name}") } else { "/dev/null".to_owned() };
        format!("--- {}\n+++ {}  ({})\n", side(from, "a"), side(to, "b"), change.why)
    };
    match &change.made {
        Made::Link(target) => return format!("{}+ -> {target}\n", head(false, true)),
        Made::Directory => return format!("{}+ (directory)\n", head(false, true)),
        Made::Block(_) | Made::File(_) | Made::Nothing => {}
    }
    let (before, after) = (change.before.clone().unwrap_or_default(), change.after().unwrap_or_default());
    let lines =
        |bytes: &[u8]| -> Vec<String> { bytes.split(|byte| *byte == b'\n').map(shown_line).collect::<Vec<_>>() };
    let (mut old, mut new) = (lines(&before), lines(&after));
    for list in [&mut old, &mut new] {
        if list.last().is_some_and(String::is_empty) {
            list.pop();
        }
    }
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let tail = old.iter().skip(same).rev().zip(new.iter().skip(same).rev()).take_while(|(a, b)| a == b).count();
    text.push_str(&head(change.before.is_some(), !matches!(change.made, Made::Nothing)));
    text.push_str(&format!("@@ line {} @@\n", same.saturating_add(1)));
    for (sign, list) in [('-', &old), ('+', &new)] {
        let until = list.len().saturating_sub(tail);
        for line in list.get(same..until).unwrap_or_default() {
            text.push_str(&format!("{sign}{line}\n"));
        }
    }
    text
}

fn shown_line(line: &[u8]) -> String {
    helper::report::Printable(&String::from_utf8_lossy(line).replace('\t', "        ")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loginuid_becomes_optional_and_blanks_stay() {
        let text = b"session    required     pam_loginuid.so\n-session\trequired pam_loginuid.so x\n#session required pam_loginuid.so\nauth required pam_loginuid.so\nsession required pam_other.so\n";
        let after = with_optional_loginuid(text).unwrap();
        let wanted = b"session    optional     pam_loginuid.so\n-session\toptional pam_loginuid.so x\n#session required pam_loginuid.so\nauth required pam_loginuid.so\nsession required pam_other.so\n";
        assert_eq!(after, wanted);
        assert_eq!(with_optional_loginuid(&after), None);
    }

    #[test]
    fn a_block_is_put_behind_and_cut_out() {
        let with = with_block(b"A=1", CONSOLE_BLOCK);
        assert!(with.starts_with(b"A=1\n# userns"));
        let grown = [&with[..], b"B=2\n"].concat();
        assert_eq!(without_block(&grown, CONSOLE_BLOCK).unwrap(), b"A=1\nB=2\n");
        assert_eq!(without_block(b"A=1\n", CONSOLE_BLOCK), None);
    }

    #[test]
    fn a_diff_shows_what_differs() {
        let change = Change {
            path: "etc/x".into(),
            why: "because".into(),
            before: Some(b"a\nb\nc\n".to_vec()),
            made: Made::File(b"a\nB\nc\n".to_vec()),
        };
        assert_eq!(diff(&change), "--- a/etc/x\n+++ b/etc/x  (because)\n@@ line 2 @@\n-b\n+B\n");
    }
}
