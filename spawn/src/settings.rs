//! What the command line and the configuration together make of a start: the [`Plan`]. What both say, the command line
//! decides.

#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use helper::range::Extent;

use crate::boot;
use crate::card;
use crate::cgroup::Own;
use crate::cli::{Environment, MapOption, Options, bind, environment, is_name, text, user};
use crate::config::text::Origin;
use crate::config::value::{self, Mount};
use crate::config::{self, Auto, Config};
use crate::confine::Confinement;
use crate::container::{self, Found, Place};
use crate::failure::{Failure, Outcome};
use crate::layers::WORK;
use crate::plan::{self, Create, Layer, Layered, Mounting, Plan, Root, Source, User};
use crate::rootfs::guest::Init;
use crate::{complain, sys};

/// Makes the plan. `held`: the start is done step by step in any case.
///
/// # Errors
/// When an option or a key of the configuration cannot be understood or honoured, or the rootfs is not there.
pub fn plan(options: &Options, held: bool) -> Outcome<Plan> {
    let Found { place, config: file, name } = container::find(&options.rootfs, options.lxcpath.as_deref())?;
    let mut config = Config::load(file.as_deref(), &options.set)?;
    config.warnings.iter().for_each(|warning| complain(warning));
    let name = match &options.name {
        Some(name) if is_name(name) => name.clone(),
        Some(name) => {
            return Err(Failure::own(format!(
                "--name {name}: letters, digits and ._- only, at most 64, no leading dot or -"
            )));
        }
        None => name,
    };
    let hostname = options.hostname.clone().or_else(|| config.hostname.clone());
    let hostname = hostname.unwrap_or_else(|| container::hostname_of(&name));
    if hostname.is_empty() || hostname.len() > 64 || hostname.contains(char::is_control) {
        let key = if options.hostname.is_some() { "--hostname" } else { "lxc.uts.name" };
        return Err(Failure::own(format!("{key}: \"{}\" is empty or longer than 64 bytes", hostname.escape_default())));
    }
    let read_only = options.read_only || config.read_only;
    let root = root(options, &config, place, read_only)?;
    let base = root.base().map(|path| PathBuf::from(OsStr::from_bytes(path.to_bytes())));
    let Environment { mut list, home, path } =
        environment(config.environment.iter().map(OsStr::new).chain(options.env.iter().map(OsString::as_os_str)))?;
    let Started { argv, candidates, init } = command(options, &config, base.as_deref(), &path)?;
    if init == Some(Init::Busybox) {
        // Its own signals, where the configuration has none.
        config.signals.halt.get_or_insert(libc::SIGUSR1);
        config.signals.reboot.get_or_insert(libc::SIGTERM);
    }
    let mounts = mounts(options, &config, base.as_deref())?;
    let cards = if options.net.is_empty() { card::of_config(&config.nets)? } else { card::cards(&options.net)? };
    let ttys = config.ttys.unwrap_or(0);
    if ttys > 0 {
        // The console has taken the first pty; systemd starts a getty on each of the others that is named here.
        let names: Vec<String> = (1..=ttys).map(|number| format!("pts/{number}")).collect();
        list.push(text(OsStr::new(&format!("container_ttys={}", names.join(" "))))?);
    }
    let keeps_read_only = read_only || mounts.iter().any(|mounting| mounting.attributes & sys::MOUNT_ATTR_RDONLY != 0);
    let single_id = options.map == Some(MapOption::Own);
    Ok(Plan {
        confinement: Confinement::new(&config, init.is_some(), keeps_read_only)?,
        cgroup2: init.as_ref().is_some_and(boot::wants_cgroup2),
        held: held || !cards.is_empty() || config.hooks(config::HookKind::StartHost).next().is_some(),
        name,
        root,
        read_only,
        root_attributes: config.root_attributes,
        cards,
        mounts,
        proc: config.proc.unwrap_or(Auto::Mixed),
        sys: config.sys.unwrap_or(Auto::Mixed),
        written: written(&config)?,
        systemd: matches!(init, Some(Init::Systemd(_))),
        own_cgroup: Own::default(),
        limits: limits(&config)?,
        ttys,
        devpts: devpts(&config, single_id)?,
        hostname: text(OsStr::new(&hostname))?,
        workdir: match (&options.workdir, &config.init.directory) {
            (Some(path), _) | (None, Some(path)) => text(path.as_os_str())?,
            (None, None) => c"/".to_owned(),
        },
        user: match (options.user.as_deref(), config.init.uid, config.init.gid) {
            (Some(word), ..) => user(word)?,
            (None, None | Some(0), None | Some(0)) => User::Root,
            (None, uid, gid) => User::Id(uid.unwrap_or(0), gid),
        },
        argv,
        candidates,
        init: init.is_some(),
        environment: list,
        home,
        single_id,
        config,
        config_file: file,
    })
}

/// What is executed.
struct Started {
    argv: Vec<CString>,
    candidates: Vec<CString>,
    /// The rootfs's init, if that is what is executed.
    init: Option<Init>,
}

/// The command of the command line, else that of the configuration, else the rootfs's init, else a shell.
fn command(options: &Options, config: &Config, base: Option<&Path>, path: &str) -> Outcome<Started> {
    let words: Vec<CString> = match &config.init.command {
        Some(words) if options.command.is_empty() => {
            words.iter().map(|word| text(OsStr::new(word))).collect::<Outcome<_>>()?
        }
        _ => options.command.iter().map(|word| text(word)).collect::<Outcome<_>>()?,
    };
    if let Some(name) = words.first() {
        // By its name: an init on the command line is one as well.
        let init = plan::is_init(name).then(|| base.map_or(Init::Other, boot::init_of));
        return Ok(Started { candidates: plan::candidates(name, path), argv: words, init });
    }
    match base.map_or(Init::None, boot::init_of) {
        Init::None => {
            let argv = vec![c"/bin/sh".to_owned(), c"-l".to_owned()];
            Ok(Started { candidates: vec![c"/bin/sh".to_owned()], argv, init: None })
        }
        init => Ok(Started { argv: vec![c"/sbin/init".to_owned()], candidates: boot::candidates(), init: Some(init) }),
    }
}

/// The root, as the configuration names it or else where it was found.
fn root(options: &Options, config: &Config, place: Place, read_only: bool) -> Outcome<Root> {
    let ephemeral = options.ephemeral || config.ephemeral;
    let layers = |paths: &[&Path]| -> Outcome<Vec<Layer>> {
        let name = |number: usize| CString::new(format!("l{number}")).map_err(|error| Failure::own(error.to_string()));
        let each = paths.iter().enumerate();
        each.map(|(number, path)| Ok(Layer { path: text(path.as_os_str())?, name: name(number)? })).collect()
    };
    let layered = |lower: &[&Path], upper: Option<(Layer, &OsStr)>| -> Outcome<Root> {
        if lower.len().saturating_add(1) > plan::MAX_LAYERS {
            return Err(Failure::own(format!("an overlay of more than {} layers", plan::MAX_LAYERS.saturating_sub(1))));
        }
        let lower = layers(lower)?;
        let mut names: Vec<String> = lower.iter().map(|layer| layer.name.to_string_lossy().into_owned()).collect();
        let written = match &upper {
            None => ",upperdir=upper,workdir=work".to_owned(),
            Some((_, name)) => {
                let name = name.to_str().filter(|name| !name.contains([',', ':', '\\']));
                let name = name.ok_or_else(|| {
                    Failure::own("the name of the upper directory of an overlay may hold none of , : \\")
                })?;
                if read_only {
                    // Without an upper directory nothing can ever be written, whatever root inside mounts again.
                    names.insert(0, format!("u/{name}"));
                    String::new()
                } else {
                    format!(",upperdir=u/{name},workdir=u/{}", WORK.to_string_lossy())
                }
            }
        };
        let options = format!("lowerdir={}{written}", names.join(":"));
        Ok(Root::Layered(Layered {
            options: text(OsStr::new(&format!("{options},userxattr")))?,
            plain_options: text(OsStr::new(&options))?,
            upper: upper.map(|(layer, _)| layer),
            lower,
        }))
    };
    match (&config.root, place) {
        (Some(config::Root::Overlay { lower, upper }), _) => {
            let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
            if ephemeral {
                let all: Vec<&Path> = core::iter::once(upper.as_path()).chain(lower).collect();
                return layered(&all, None);
            }
            let (Some(above), Some(name)) = (upper.parent(), upper.file_name()) else {
                return Err(Failure::own("the upper directory of an overlay cannot be /"));
            };
            let above = Layer { path: text(above.as_os_str())?, name: c"u".to_owned() };
            layered(&lower, Some((above, name)))
        }
        (Some(config::Root::Directory(path)), _) if ephemeral => layered(&[path], None),
        (Some(config::Root::Directory(path)), _) => Ok(Root::Directory(text(path.as_os_str())?)),
        (None, Place::Directory(path)) if ephemeral => layered(&[&path], None),
        (None, Place::Directory(path)) => Ok(Root::Directory(text(path.as_os_str())?)),
        (None, Place::Host) => Ok(Root::Host(container::host_entries(read_only)?)),
    }
}

/// The mounts of the configuration's fstab, those of its entries, and last those of the command line.
fn mounts(options: &Options, config: &Config, base: Option<&Path>) -> Outcome<Vec<Mounting>> {
    let mut list = Vec::new();
    if let Some((path, origin)) = &config.fstab {
        let wrong = |why: String| Failure::own(format!("{origin}: lxc.mount.fstab = {}: {why}", path.display()));
        let content = std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot read it: {error}")))?;
        for (line, number) in content.lines().zip(1_u32..) {
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            let mount = value::mount(line).map_err(|why| wrong(format!("line {number}: {why}")))?;
            list.push(mounting(&mount, base).map_err(|why| wrong(format!("line {number}: {why}")))?);
        }
    }
    for (mount, origin) in &config.mounts {
        let made = mounting(mount, base);
        list.push(made.map_err(|why| Failure::own(format!("{origin}: lxc.mount.entry: {why}")))?);
    }
    for word in &options.bind {
        list.push(bind(word)?);
    }
    if list.len() > plan::MAX_MOUNTS {
        return Err(Failure::own(format!("more than {} mounts", plan::MAX_MOUNTS)));
    }
    Ok(list)
}

fn mounting(mount: &Mount, base: Option<&Path>) -> Result<Mounting, String> {
    let c_string = |text: &str| CString::new(text).map_err(|error| error.to_string());
    // LXC takes a target below the rootfs as the host sees it for one below the root.
    let target = Path::new(&mount.target);
    let inside = base.and_then(|base| target.strip_prefix(base).ok()).unwrap_or(target);
    let target = plan::path_steps(inside).filter(|steps| !steps.is_empty());
    let target = target.ok_or_else(|| format!("the target \"{}\" must lie below the root", mount.target))?;
    let source = match &mount.kind {
        Some(kind) => {
            let mut all = vec![(c"source".to_owned(), Some(c_string(&mount.source)?))];
            for (key, value) in &mount.options {
                all.push((c_string(key)?, value.as_deref().map(c_string).transpose()?));
            }
            Source::FileSystem { kind: c_string(kind)?, options: all }
        }
        None if mount.relative => Source::Inside { path: c_string(&mount.source)?, recursive: mount.recursive },
        None => Source::Bind { path: c_string(&mount.source)?, recursive: mount.recursive },
    };
    let create = match mount.create {
        value::Create::No => Create::No,
        value::Create::Directory => Create::Directory,
        value::Create::File => Create::File,
    };
    let Mount { attributes, propagation, optional, .. } = *mount;
    Ok(Mounting { source, target, attributes, propagation, create, optional })
}

fn written(config: &Config) -> Outcome<Vec<plan::Written>> {
    let each = config
        .sysctls
        .iter()
        .map(|w| ("lxc.sysctl", "sys", w))
        .chain(config.procs.iter().map(|w| ("lxc.proc", "1", w)));
    each.map(|(family, directory, written)| {
        let origin: &Origin = &written.origin;
        Ok(plan::Written {
            file: text(OsStr::new(&format!("{directory}/{}", written.file)))?,
            value: text(OsStr::new(&written.value))?,
            key: text(OsStr::new(&format!("{family}: /proc/{directory}/{} ({origin})", written.file)))?,
        })
    })
    .collect()
}

/// The limits of the container's cgroup, which cgdelegate makes and whose keys are those of version 2.
fn limits(config: &Config) -> Outcome<Vec<String>> {
    let each = config.cgroup.iter().map(|setting| {
        let file = match (setting.unified, setting.file.as_str()) {
            (true, file) => file,
            (false, "memory.limit_in_bytes") => "memory.max",
            (false, "pids.max") => "pids.max",
            (false, file) => {
                return Err(Failure::own(format!(
                    "{}: lxc.cgroup.{file} cannot be honoured: cgdelegate sets limits by their names of version 2, lxc.cgroup2.*",
                    setting.origin
                )));
            }
        };
        Ok(format!("{file}={}", setting.value))
    });
    each.collect()
}

/// Options of /dev/pts; the terminals belong to group 5 (tty) where the map has one.
fn devpts(config: &Config, single_id: bool) -> Outcome<CString> {
    let has_tty = |extents: &[Extent]| {
        extents.iter().any(|e| e.inside <= 5 && 5_u32.checked_sub(e.inside).is_some_and(|n| n < e.count))
    };
    let group = !single_id && config.extents().is_none_or(|(_, gids)| has_tty(gids));
    let mut options = String::from(if group {
        "newinstance,ptmxmode=0666,mode=0620,gid=5"
    } else {
        "newinstance,ptmxmode=0666,mode=0600"
    });
    if let Some(max) = config.ptys.filter(|max| *max > 0) {
        options.push_str(&format!(",max={max}"));
    }
    text(OsStr::new(&options))
}
