//! The child's side: from clone3 to exec.
//!
//! Everything it needs stands in the [`Plan`]; it allocates nothing on the way to a plain exec (a `--user`, a failing
//! exec and a kernel without openat2 excepted: this program has one thread, so allocating there is sound). It closes
//! nothing either: every descriptor is close-on-exec.
//!
//! The order of the namespaces is not free: user and pid (by clone3), then mount, uts and ipc while the maps are being
//! written, network only after the map (else its sysfs belongs to nobody for ever), cgroup last.

#![forbid(unsafe_code)]

use core::ffi::{CStr, c_char};
use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::card;
use crate::config::Auto;
use crate::devices;
use crate::explain;
use crate::identity::{self, Identity};
use crate::layers;
use crate::mounting;
use crate::plan::{self, HostEntry, Overlay, Plan, Root, Shown};
use crate::report::{self, Step, Try, at};
use crate::resolve::open_in_root;
use crate::supervise::ignored_signals;
use crate::sys;

/// Flags of every file system that holds no programs and no devices of its own.
pub const PLAIN: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
const PLAIN_ATTRIBUTES: u32 = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC;

/// The parent's GO: which standard descriptors are the console, whether it is the controlling terminal, the size of its
/// window (zero: none is known), and the descriptors that came with it.
pub struct Go {
    console: u8,
    controlling: bool,
    size: [u8; 4],
    fds: [RawFd; 3],
}

impl Go {
    /// The descriptors that came with it, -1 where there is none.
    pub const fn descriptors(&self) -> [RawFd; 3] {
        self.fds
    }
}

/// Runs in the child, never returns. `channel` is its end of the socket pair of [`report`].
pub fn run(plan: &Plan, argv: &[*const c_char], environment: &mut [*const c_char], channel: RawFd) -> ! {
    if let Err(stop) = set_up(plan, argv, environment, channel) {
        report::send(channel, &stop);
    }
    sys::exit_now(125)
}

fn set_up<'a>(plan: &'a Plan, argv: &[*const c_char], environment: &mut [*const c_char], channel: RawFd) -> Try<'a> {
    sys::die_with_parent().map_err(at(Step::Guard, c""))?;
    if plan.held {
        let null = sys::open_at(libc::AT_FDCWD, c"/dev/null", libc::O_RDWR).map_err(at(Step::Stdio, c"/dev/null"))?;
        for fd in 0..3 {
            sys::duplicate_to(null, fd).map_err(at(Step::Stdio, c"/dev/null"))?;
        }
    }
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC).map_err(at(Step::Namespaces, c""))?;
    sys::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None).map_err(at(Step::Private, c"/"))?;
    // Still the caller: whatever he can reach, a directory below a 0700 home too, is opened now.
    let mut trees = [-1; plan::MAX_LAYERS];
    for (slot, path) in trees.iter_mut().zip(plan.root.trees()) {
        // A layer of an overlay is one mount.
        let recursive = matches!(plan.root, Root::Directory(_));
        *slot = sys::clone_mounts(libc::AT_FDCWD, path, recursive).map_err(at(Step::OpenRoot, path))?;
    }
    let mut sources = [-1; plan::MAX_MOUNTS];
    for (slot, mounting) in sources.iter_mut().zip(&plan.mounts) {
        *slot = mounting::open_source(mounting)?;
    }
    sys::set_hostname(&plan.hostname).map_err(at(Step::Hostname, &plan.hostname))?;
    let ignored = ignored_signals();

    let go = if plan.held {
        wait_for(channel, report::MAPPED)?;
        make_network()?;
        sys::send_message(channel, &[report::NETWORK], &[]).map_err(at(Step::Channel, c""))?;
        // With the caller's ids still, which the other stages want to see before they do something to this process; the
        // change of ids would also close /proc/PID/ns to usernet, which acts as the caller.
        let go = wait_for(channel, report::GO)?;
        become_root(plan)?;
        go
    } else {
        let go = wait_for(channel, report::GO)?;
        become_root(plan)?;
        make_network()?;
        go
    };
    card::set_up(&plan.cards)?;
    sys::set_umask(0o022);
    plan.own_cgroup.enter();
    sys::unshare(libc::CLONE_NEWCGROUP).map_err(at(Step::Cgroup, c""))?;

    let root = match &plan.root {
        Root::Directory(path) => attach_directory(plan, trees[0], path)?,
        Root::Layered(layered) => {
            let root = layers::build(layered, &trees)?;
            protect_layers(plan, root)?;
            root
        }
        Root::Host(entries) => build_host_tree(plan, entries)?,
    };
    let proc = mount_proc(plan, root)?;
    mount_sys(plan, root)?;
    let (master, slave) = devices::mount_dev(plan, root, proc, channel)?;
    sys::send_message(channel, &[report::CONSOLE], &[master, slave]).map_err(at(Step::Channel, c""))?;
    mount_run(root)?;
    for (mounting, source) in plan.mounts.iter().zip(sources) {
        mounting::attach(root, mounting, source)?;
    }
    if matches!(plan.root, Root::Host(_)) && plan.read_only {
        remount(root, sys::MOUNT_ATTR_RDONLY).map_err(at(Step::ReadOnly, c"/"))?;
    }
    sys::change_directory_to(root).map_err(at(Step::Pivot, c"/"))?;
    sys::pivot_root_here().map_err(at(Step::Pivot, c"/"))?;
    if !matches!(plan.root, Root::Directory(_)) {
        // The scratch tmpfs still lies over the old root, which is what `.` means next.
        sys::detach(c".").map_err(at(Step::Pivot, c"/"))?;
    }
    sys::detach(c".").map_err(at(Step::Pivot, c"/"))?;
    sys::change_directory(c"/").map_err(at(Step::Pivot, c"/"))?;
    start_command(plan, argv, environment, channel, slave, &go, ignored)
}

/// Waits for one word of the parent. Anything else, end of file above all, means abort.
///
/// # Errors
/// When it is to be aborted.
pub fn wait_for<'a>(channel: RawFd, word: u8) -> Try<'a, Go> {
    let mut message = [0_u8; 8];
    let mut fds = [-1; 3];
    let length = sys::receive_message(channel, &mut message, &mut fds).map_err(at(Step::Channel, c""))?;
    if length == 0 || message[0] != word {
        return Err(at(Step::Channel, c"")(Errno::ECANCELED));
    }
    let [_, console, controlling, a, b, c, d, _] = message;
    Ok(Go { console, controlling: controlling != 0, size: [a, b, c, d], fds })
}

/// Takes the mapped ids 0. From here on this process is not dumpable.
fn become_root<'a>(plan: &Plan) -> Try<'a> {
    if !plan.single_id {
        sys::set_groups(&[]).map_err(at(Step::Ids, c""))?;
    }
    sys::become_ids(0, 0).map_err(at(Step::Ids, c""))?;
    // The change of ids has cleared it. If the parent died in between, the next word to it fails.
    sys::die_with_parent().map_err(at(Step::Guard, c""))
}

/// Makes the network namespace. Only after the map is written does it, with its sysfs, belong to the ids 0 inside.
fn make_network<'a>() -> Try<'a> {
    sys::unshare(libc::CLONE_NEWNET).map_err(at(Step::Network, c""))?;
    sys::loopback_up().map_err(at(Step::Loopback, c"lo"))
}

fn attach_directory<'a>(plan: &Plan, tree: RawFd, path: &'a CStr) -> Try<'a, RawFd> {
    // Before it is attached, with all that is mounted below it; nothing is written in it, no mount point either.
    let attributes = root_attributes(plan);
    let late = attributes != 0 && !change_attributes(tree, attributes, true).map_err(at(Step::ReadOnly, path))?;
    // `/` always exists. What hangs on it is seen by nobody: lookups of `/` start below it.
    sys::attach_at(tree, libc::AT_FDCWD, c"/").map_err(at(Step::AttachRoot, path))?;
    if late {
        remount(tree, attributes).map_err(at(Step::ReadOnly, path))?;
    }
    Ok(tree)
}

fn root_attributes(plan: &Plan) -> u32 {
    plan.root_attributes | if plan.read_only { sys::MOUNT_ATTR_RDONLY } else { 0 }
}

fn protect_layers<'a>(plan: &Plan, root: RawFd) -> Try<'a> {
    let attributes = root_attributes(plan);
    if attributes != 0 && !change_attributes(root, attributes, false).map_err(at(Step::ReadOnly, c"/"))? {
        remount(root, attributes).map_err(at(Step::ReadOnly, c"/"))?;
    }
    Ok(())
}

/// A tmpfs that holds the upper directories, and in it the new root: one overlay, bind or link for each entry of the
/// host's `/`. One overlay over the whole of `/` is refused by the kernel, because it would uncover what lies below
/// the mounts that the caller's namespace has locked.
fn build_host_tree<'a>(plan: &Plan, entries: &'a [HostEntry]) -> Try<'a, RawFd> {
    let tree = |object| at(Step::HostTree, object);
    let scratch =
        sys::new_file_system(c"tmpfs", &[(c"mode", c"0755")], sys::MOUNT_ATTR_NODEV).map_err(tree(c"tmpfs"))?;
    sys::attach_at(scratch, libc::AT_FDCWD, c"/").map_err(tree(c"tmpfs"))?;
    sys::change_directory_to(scratch).map_err(tree(c"tmpfs"))?;
    for name in [c"root", c"upper", c"work"] {
        sys::make_directory(scratch, name, 0o755).map_err(tree(name))?;
    }
    let root = sys::clone_tree(libc::AT_FDCWD, c"root").map_err(tree(c"/"))?;
    sys::attach_at(root, libc::AT_FDCWD, c"root").map_err(tree(c"/"))?;
    for name in [c"proc", c"sys", c"dev", c"run"] {
        sys::make_directory(root, name, 0o755).map_err(tree(name))?;
    }
    for entry in entries {
        let stop = || at(Step::HostTree, &entry.path);
        match &entry.shown {
            Shown::Link(content) => sys::make_link(content, root, &entry.name).map_err(stop())?,
            Shown::Empty => sys::make_directory(root, &entry.name, entry.mode).map_err(stop())?,
            Shown::Bind { directory: true } => {
                sys::make_directory(root, &entry.name, entry.mode).map_err(stop())?;
                bind_read_only(root, entry).map_err(stop())?;
            }
            Shown::Bind { directory: false } => {
                sys::make_file(root, &entry.name, 0o644).map_err(stop())?;
                bind_read_only(root, entry).map_err(stop())?;
            }
            Shown::Overlay(overlay) => show_overlay(root, scratch, entry, overlay).map_err(stop())?,
        }
    }
    if plan.read_only {
        let options = Some(c"mode=1777");
        sys::mount(Some(c"tmpfs"), c"root/tmp", Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NODEV, options)
            .map_err(tree(c"/tmp"))?;
    }
    Ok(root)
}

fn show_overlay(root: RawFd, scratch: RawFd, entry: &HostEntry, overlay: &Overlay) -> sys::Call<()> {
    sys::make_directory(root, &entry.name, 0o755)?;
    for (directory, mode) in [(&overlay.upper, entry.mode), (&overlay.work, 0o755)] {
        sys::make_directory(scratch, directory, mode)?;
    }
    if entry.mode & 0o022 != 0 {
        sys::change_mode(scratch, &overlay.upper, entry.mode)?;
    }
    let mount =
        |options| sys::mount(Some(c"overlay"), &overlay.target, Some(c"overlay"), libc::MS_NODEV, Some(options));
    match mount(&overlay.options) {
        Err(Errno::EINVAL) => match mount(&overlay.plain_options) {
            Err(_) => show_without_overlay(root, entry, overlay),
            done => done,
        },
        // EPERM: a kernel before 5.11. ENODEV: one without overlayfs.
        Err(Errno::EPERM | Errno::ENODEV | Errno::ENOSYS) => show_without_overlay(root, entry, overlay),
        done => done,
    }
}

/// The kernel lets us mount no overlay there: the directory read-only, `/tmp` empty and writable.
fn show_without_overlay(root: RawFd, entry: &HostEntry, overlay: &Overlay) -> sys::Call<()> {
    if entry.mode == 0o1777 {
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        return sys::mount(Some(c"tmpfs"), &overlay.target, Some(c"tmpfs"), flags, Some(c"mode=1777"));
    }
    bind_read_only(root, entry)
}

fn bind_read_only(root: RawFd, entry: &HostEntry) -> sys::Call<()> {
    let tree = sys::clone_tree(libc::AT_FDCWD, &entry.path)?;
    let done = change_attributes(tree, sys::MOUNT_ATTR_RDONLY, true)?;
    sys::attach_at(tree, root, &entry.name)?;
    if done { Ok(()) } else { remount(tree, sys::MOUNT_ATTR_RDONLY) }
}

/// Gives a mount MOUNT_ATTR_ bits more, with all that is mounted below it if `recursive`. `false` where the kernel has no
/// mount_setattr(2) (before 5.12): then [`remount`] has to follow once the tree is attached, and what is mounted below
/// keeps its own flags.
///
/// # Errors
/// The errno of mount_setattr(2).
pub fn change_attributes(tree: RawFd, attributes: u32, recursive: bool) -> sys::Call<bool> {
    match sys::set_mount_attributes(tree, attributes, recursive) {
        Err(Errno::ENOSYS) => Ok(false),
        result => result.map(|()| true),
    }
}

/// mount(2) with MS_REMOUNT and MS_BIND on the mount itself: the flags that it has, and those of the MOUNT_ATTR_ bits.
/// Flags that the host's namespace has locked must be named again, or it is EPERM.
///
/// # Errors
/// The errno of mount(2).
pub fn remount(tree: RawFd, attributes: u32) -> sys::Call<()> {
    const KEPT: u64 = libc::ST_NOSUID | libc::ST_NODEV | libc::ST_NOEXEC | libc::ST_NOATIME | libc::ST_NODIRATIME;
    // The four lowest bits have the same values as MS_RDONLY, MS_NOSUID, MS_NODEV and MS_NOEXEC.
    let mut flags = libc::MS_REMOUNT | libc::MS_BIND | u64::from(attributes & 0xf);
    for (attribute, flag) in [
        (sys::MOUNT_ATTR_NOATIME, libc::MS_NOATIME),
        (sys::MOUNT_ATTR_NODIRATIME, libc::MS_NODIRATIME),
        (sys::MOUNT_ATTR_STRICTATIME, libc::MS_STRICTATIME),
    ] {
        flags |= if attributes & attribute != 0 { flag } else { 0 };
    }
    // ST_ and MS_ bits have the same values for these five; ST_RELATIME is 4096, MS_RELATIME 1 << 21 and the default.
    flags |= sys::mount_flags(tree)? & KEPT;
    // By descriptor; it allocates, which is sound here (see resolve::walk) and happens on old kernels alone.
    let path = std::ffi::CString::new(format!("/proc/self/fd/{tree}")).map_err(|_| Errno::EINVAL)?;
    sys::mount(None, &path, None, flags, None)
}

/// The directory `path` of the rootfs as a mount point, made when it is missing. A link at its end is followed below
/// the root and never out of it.
pub fn mount_point<'a>(root: RawFd, path: &'a CStr) -> Try<'a, RawFd> {
    let open = || open_in_root(root, path, libc::O_DIRECTORY);
    match open() {
        Err(Errno::ENOENT) => {
            sys::make_directory(root, path, 0o755).map_err(at(Step::MountPoint, path))?;
            open().map_err(at(Step::MountPoint, path))
        }
        result => result.map_err(at(Step::MountPoint, path)),
    }
}

/// Mounts /proc and returns its descriptor.
fn mount_proc(plan: &Plan, root: RawFd) -> Try<'_, RawFd> {
    let protect = |object| at(Step::Protect, object);
    let target = mount_point(root, c"proc")?;
    let proc = sys::new_file_system(c"proc", &[], PLAIN_ATTRIBUTES).map_err(at(Step::Mount, c"/proc"))?;
    sys::attach(proc, target).map_err(at(Step::Mount, c"/proc"))?;
    // From here on relative to the procfs that was made above: whatever becomes of the rootfs meanwhile, these paths
    // lead into it and into nothing else.
    sys::change_directory_to(proc).map_err(protect(c"/proc"))?;
    write_settings(plan, proc)?;
    let read_only = if plan.proc == Auto::Writable { &[][..] } else { &plan::PROC_READ_ONLY[..] };
    for path in read_only {
        match sys::mount(Some(path), path, None, libc::MS_BIND, None) {
            Err(Errno::ENOENT) => continue, // not every kernel has each of them
            result => result.map_err(protect(path))?,
        }
        let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | PLAIN;
        sys::mount(None, path, None, flags, None).map_err(protect(path))?;
    }
    if !read_only.is_empty() {
        keep_writable(plan::PROC_WRITABLE)?;
    }
    for path in plan::PROC_MASKED_FILES {
        match sys::mount(Some(c"/dev/null"), path, None, libc::MS_BIND, None) {
            Err(Errno::ENOENT) => {}
            result => result.map_err(protect(path))?,
        }
    }
    Ok(proc)
}

/// `lxc.sysctl.*` and `lxc.proc.*`, below the procfs that was just made and that nobody else can mount on: a false /proc
/// in the rootfs gets nothing (CVE-2019-19921). No link is followed at the end.
fn write_settings(plan: &Plan, proc: RawFd) -> Try<'_> {
    if plan.written.is_empty() {
        return Ok(());
    }
    // Files of a process that is not dumpable belong to the host's root.
    sys::set_dumpable(true).map_err(at(Step::Guard, c""))?;
    for written in &plan.written {
        let write = || {
            let file = sys::open_at(proc, &written.file, libc::O_WRONLY | libc::O_NOFOLLOW)?;
            sys::write_once(file, written.value.as_bytes())
        };
        write().map_err(at(Step::Write, &written.key))?;
    }
    sys::set_dumpable(false).map_err(at(Step::Guard, c""))
}

fn keep_writable<'a>(path: &'a CStr) -> Try<'a> {
    match sys::mount(Some(path), path, None, libc::MS_BIND, None) {
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(at(Step::Protect, path)(errno)),
        Ok(()) => sys::mount(None, path, None, libc::MS_REMOUNT | libc::MS_BIND | PLAIN, None)
            .map_err(at(Step::Protect, path)),
    }
}

fn mount_sys(plan: &Plan, root: RawFd) -> Try<'_> {
    let target = mount_point(root, c"sys")?;
    let writable = plan.sys == Auto::Writable;
    let attributes = PLAIN_ATTRIBUTES | if writable { 0 } else { sys::MOUNT_ATTR_RDONLY };
    let sysfs = sys::new_file_system(c"sysfs", &[], attributes).map_err(at(Step::Mount, c"/sys"))?;
    sys::attach(sysfs, target).map_err(at(Step::Mount, c"/sys"))?;
    sys::change_directory_to(sysfs).map_err(at(Step::Protect, c"/sys"))?;
    if plan.sys == Auto::Mixed {
        keep_writable(plan::SYS_WRITABLE)?;
    }
    for path in plan::SYS_MASKED_DIRECTORIES {
        match sys::mount(Some(c"tmpfs"), path, Some(c"tmpfs"), libc::MS_RDONLY | PLAIN, Some(c"size=4k,mode=0555")) {
            Err(Errno::ENOENT) => {}
            result => result.map_err(at(Step::Protect, path))?,
        }
    }
    if plan.cgroup2 {
        let stop = || at(Step::Mount, c"/sys/fs/cgroup");
        let cgroup = sys::new_file_system(c"cgroup2", &[], PLAIN_ATTRIBUTES).map_err(stop())?;
        sys::attach_at(cgroup, sysfs, c"fs/cgroup").map_err(stop())?;
    }
    Ok(())
}

fn mount_run<'a>(root: RawFd) -> Try<'a> {
    let target = mount_point(root, c"run")?;
    sys::change_directory_to(target).map_err(at(Step::Mount, c"/run"))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(Some(c"tmpfs"), c".", Some(c"tmpfs"), flags, Some(c"mode=0755")).map_err(at(Step::Mount, c"/run"))
}

/// The last part, inside the new root: session, terminal, user, working directory, exec. `ignored`: the signals that the
/// caller ignores, which are set to their default (see [`ignored_signals`]).
///
/// # Errors
/// At the first thing that the kernel refuses, the exec included.
pub fn start_command<'a>(
    plan: &'a Plan,
    argv: &[*const c_char],
    environment: &mut [*const c_char],
    channel: RawFd,
    slave: RawFd,
    go: &Go,
    ignored: u64,
) -> Try<'a> {
    let stdio = |object| at(Step::Stdio, object);
    sys::new_session().map_err(stdio(c"session"))?;
    if go.controlling && !plan.init {
        sys::take_terminal(slave).map_err(stdio(c"controlling terminal"))?;
    }
    if go.size != [0; 4] {
        let _ = sys::set_window_size(slave, go.size);
    }
    let mut passed = go.fds.into_iter().filter(|fd| *fd >= 0);
    for fd in 0..3 {
        if go.console & (1 << fd) != 0 {
            sys::duplicate_to(slave, fd).map_err(stdio(c"/dev/console"))?;
        } else if let Some(from) = passed.next() {
            sys::duplicate_to(from, fd).map_err(stdio(c"standard descriptors"))?;
        }
    }
    plan.confinement.apply()?;
    let identity = match identity::find(&plan.user) {
        Ok(identity) => identity,
        Err(more) => return Err(report::Stop { step: Step::User, errno: Errno::ENOENT, object: c"/etc/passwd", more }),
    };
    if let Some(identity) = &identity {
        become_user(plan, identity, slave)?;
    }
    let home = plan.home.as_deref().or(identity.as_ref().map(|i| &*i.home)).unwrap_or(c"HOME=/root");
    if let Some(slot) = environment.iter_mut().rev().nth(1) {
        *slot = home.as_ptr();
    }
    if plan.workdir.as_bytes() != b"/" {
        // Below the root, and through no link of procfs: /proc/self/fd/N would lead to a directory of the host.
        let enter = || {
            let top = sys::open_at(libc::AT_FDCWD, c"/", libc::O_PATH)?;
            sys::change_directory_to(open_in_root(top, &plan.workdir, libc::O_DIRECTORY)?)
        };
        enter().map_err(at(Step::Workdir, &plan.workdir))?;
    }
    for signal in (1..=64).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
        let _ = sys::default_signal(signal);
    }
    sys::unblock_signals().map_err(stdio(c"signal mask"))?;
    plan.confinement.seal()?;
    sys::send_message(channel, &[report::EXEC], &[]).map_err(at(Step::Channel, c""))?;
    let mut found = Errno::ENOENT;
    let mut tried = plan.candidates.first();
    for path in &plan.candidates {
        let errno = sys::exec(path, argv, environment);
        // As execvp(3): go on where there is nothing, remember what may not be executed.
        if !matches!(errno, Errno::ENOENT | Errno::ENOTDIR) || path_exists(path) {
            (found, tried) = (errno, Some(path));
            if errno != Errno::EACCES {
                break;
            }
        }
    }
    let name = plan.argv.first().map_or(c"", |name| name);
    let more = tried.map(|path| explain::exec_failure(path, found)).unwrap_or_default();
    Err(report::Stop { step: Step::Exec, errno: found, object: name, more })
}

fn path_exists(path: &CStr) -> bool {
    sys::open_at(libc::AT_FDCWD, path, libc::O_PATH).is_ok_and(|fd| {
        sys::close(fd);
        true
    })
}

fn become_user<'a>(plan: &Plan, identity: &Identity, slave: RawFd) -> Try<'a> {
    let user = || at(Step::User, c"");
    if !plan.single_id {
        sys::set_groups(&identity.groups).map_err(user())?;
    }
    // The user's own terminal, as login(1) does; its group (tty) stays.
    if slave >= 0 {
        sys::change_owner(slave, identity.uid).map_err(user())?;
    }
    sys::become_ids(identity.uid, identity.gid).map_err(user())?;
    sys::die_with_parent().map_err(at(Step::Guard, c""))
}
