//! The article's two failures of LXC on v1 cpusets, replayed and cured; and what LXC leaves behind.

use super::fixture::{Cgroups, alice, call, cgdelegate, start_sleep};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use tests::{ALICE, Call, ROOT, Trial, World};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::once(
            "\"No space left on device\": an uninitialised cpuset has it, one of cgdelegate's has not",
            no_space,
        ),
        Trial::once("\"File exists\": what a failed start left is removed, and the start works", file_exists),
        Trial::once("prune DIRECTORY removes what is stale and leaves what is alive, in all hierarchies", alive),
        Trial::once("prune DIRECTORY has the caller's rights alone", rights),
        Trial::once("prune DIRECTORY of no cgroup is a usage error", no_cgroup),
    ]
}

/// LXC's way of making its cgroups: mkdir that must not find the last component, then entering.
fn lxc_starts(base: &Path) -> std::io::Result<()> {
    for part in ["lxc.monitor", "lxc.payload"] {
        let _ = fs::create_dir(base.join(part));
        fs::create_dir(base.join(part).join("c1"))?;
    }
    let target = tests::Target::without_user_namespace(ALICE);
    fs::write(base.join("lxc.monitor/c1/cgroup.procs"), target.pid().to_string()).map(|()| drop(target))
}

fn no_space(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice v1:cpuset 1");
    let plain = cgroups.need("cpuset").join(&cgroups.base).join("plain");
    fs::create_dir_all(&plain).expect("mkdir");
    let error = lxc_starts(&plain).expect_err("the failure of the article");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    let _running = start_sleep(world, ALICE, "x");
    lxc_starts(&cgroups.node("cpuset", ALICE, "x")).expect("cured");
}

fn file_exists(world: &mut World) {
    let cgroups = Cgroups::new(world, "alice v1:cpuset 1");
    let plain = cgroups.need("cpuset").join(&cgroups.base).join("plain");
    fs::create_dir_all(&plain).expect("mkdir");
    assert_eq!(lxc_starts(&plain).expect_err("first").raw_os_error(), Some(libc::ENOSPC));
    fs::create_dir(plain.join("lxc.pivot")).expect("mkdir");
    assert_eq!(
        lxc_starts(&plain).expect_err("second").raw_os_error(),
        Some(libc::EEXIST),
        "the failure of the article"
    );
    // The cpuset gets its lists, but the leftovers are still in the way.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        for (from, to) in [
            (cgroups.need("cpuset"), plain.parent().expect("base").to_owned()),
            (plain.parent().expect("base").to_owned(), plain.clone()),
        ] {
            fs::write(to.join(file), fs::read(from.join(file)).expect(file)).expect(file);
        }
    }
    fs::write(plain.join("cgroup.clone_children"), "1").expect("flag");
    assert_eq!(lxc_starts(&plain).expect_err("third").raw_os_error(), Some(libc::EEXIST));
    let listed = prune(world, ROOT_USER, "--dry-run", std::slice::from_ref(&plain));
    assert_eq!(listed.len(), 5, "{listed:?}");
    assert!(plain.join("lxc.pivot").exists(), "a dry run removes nothing");
    assert_eq!(prune(world, ROOT_USER, "", std::slice::from_ref(&plain)), listed);
    lxc_starts(&plain).expect("cured");
}

const ROOT_USER: tests::User = ROOT;

fn prune(world: &mut World, user: tests::User, option: &str, paths: &[PathBuf]) -> Vec<String> {
    let outcome = call(world, user, &format!("prune {option}")).args(paths).run(world);
    outcome.assert_code(0, "prune");
    outcome.out().lines().map(str::to_owned).collect()
}

fn alive(world: &mut World) {
    let cgroups = Cgroups::new(world, "");
    let places: Vec<PathBuf> =
        ["name=systemd", "pids", "v2"].iter().map(|word| cgroups.need(word).join(&cgroups.base).join("u")).collect();
    for place in &places {
        for name in [
            "lxc.monitor.dead",
            "lxc.payload.dead/init.scope",
            "lxc.monitor.live",
            "lxc.payload.live/a/b",
            "lxc.payload.other",
            "lxc.pivot",
            "mine/empty",
            "lxc/old",
            "lxc/new",
        ] {
            fs::create_dir_all(place.join(name)).expect("mkdir");
        }
    }
    let target = tests::Target::without_user_namespace(ALICE);
    // In one hierarchy only, and only the monitor; the whole set stays.
    fs::write(places[1].join("lxc.monitor.live/cgroup.procs"), target.pid().to_string()).expect("enter");
    fs::write(places[0].join("lxc/new/cgroup.procs"), target.pid().to_string()).expect("enter");
    let removed = prune(world, ROOT, "", &places);
    assert_eq!(removed.len(), 15, "{removed:?}");
    for place in &places {
        for (name, there) in [
            ("lxc.monitor.dead", false),
            ("lxc.payload.dead", false),
            ("lxc.payload.other", false),
            ("lxc.pivot", false),
            ("lxc/old", false),
            ("lxc/new", true),
            ("lxc.monitor.live", true),
            ("lxc.payload.live/a/b", true),
            ("mine/empty", true),
        ] {
            assert_eq!(place.join(name).exists(), there, "{}", place.join(name).display());
        }
    }
    drop(target);
}

fn rights(world: &mut World) {
    let cgroups = Cgroups::new(world, "");
    let place = cgroups.need("name=systemd").join(&cgroups.base).join("u");
    fs::create_dir_all(place.join("lxc.payload.c/a")).expect("mkdir");
    let outcome = call(world, ALICE, "prune").arg(&place).run(world);
    outcome.assert_code(77, "root's");
    assert!(place.join("lxc.payload.c/a").exists());
    for path in [place.clone(), place.join("lxc.payload.c"), place.join("lxc.payload.c/a")] {
        chown(path, Some(ALICE.uid), None).expect("chown");
    }
    assert_eq!(prune(world, ALICE, "", std::slice::from_ref(&place)).len(), 1);
    assert!(!place.join("lxc.payload.c").exists());
}

fn no_cgroup(world: &mut World) {
    let _cgroups = Cgroups::new(world, "");
    for path in ["/tmp", "/nosuch", "/etc/passwd", "/proc"] {
        cgdelegate(world, ROOT, &format!("prune {path}")).assert_code(64, path);
    }
    alice(world, "prune --kill").assert_code(64, "prune never kills");
    let _ = Call::new("/bin/true");
}
