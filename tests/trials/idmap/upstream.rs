//! What shadow's own tests assert (tests/newuidmap, tests/newgidmap, tests/subids of its source).

use tests::{Answer, Does, Kind, Target, Trial, User, World};

const FOO: User = User { name: "foo", uid: 1000, gid: 1000 };
const OTHER_GROUP: u32 = 1200;

fn fixture(world: &World, lines: &str) {
    world.append("/etc/passwd", "foo:x:1000:1000::/home/foo:/bin/sh\n");
    world.append("/etc/group", "foo:x:1000:\nother:x:1200:foo\n");
    for kind in Kind::BOTH {
        world.write(kind.file(), lines);
    }
}

fn ask(world: &mut World, kind: Kind, gid: u32, triples: &str) -> Answer {
    let target = Target::with_gid(FOO, gid, &[]);
    let call = world.helper(kind).as_is().as_root(move || FOO.become_with_gid(gid, &[]));
    let call = call.arg(target.pid().to_string()).words(triples);
    world.answer(kind, target, call)
}

const MAP: &str = "0 1000 1 1 1000000 1000";

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("upstream newuidmap/01 and newgidmap/01: self and a granted range land in the map", |world| {
            fixture(world, "foo:1000000:10000\n");
            for kind in Kind::BOTH {
                ask(world, kind, FOO.gid, MAP).granted(MAP, "primary group");
                let answer = ask(world, kind, OTHER_GROUP, MAP);
                answer.refused("another group");
                answer.says(&["is owned by a different user: uid:1000 pw_uid:1000 st_uid:1000, gid:1200 pw_gid:1000 st_gid:1200"], "another group");
            }
        }),
        Trial::new("upstream newuidmap/02 and newgidmap/02: the relaxed gid check lets another group in", |world| {
            fixture(world, "foo:1000000:10000\n");
            world.write("/etc/login.defs", "GRANT_AUX_GROUP_SUBIDS yes\n");
            ask(world, Kind::Uid, OTHER_GROUP, MAP).granted(MAP, "uid");
            let gids = "0 1200 1 1 1000000 1000";
            ask(world, Kind::Gid, OTHER_GROUP, gids).granted(gids, "gid");
            ask(world, Kind::Gid, OTHER_GROUP, MAP).refused("the primary gid is not the real gid");
        }),
        Trial::new("upstream subids/67 to 70: bad lines grant nothing and do not hide a good one", |world| {
            for bad in [
                "foo::5000",
                "foo:100000:",
                ":100000:10000",
                "foo:100000a:10000",
                "foo:100000:10000a",
                "foo",
                "foo:",
                "::",
            ] {
                for kind in Kind::BOTH {
                    fixture(world, &format!("{bad}\nfoo:1000000:10000\n"));
                    ask(world, kind, FOO.gid, "0 100000 1").did(Does::Refuses, "", bad);
                    ask(world, kind, FOO.gid, "0 1000000 10000").did(Does::Grants, "0 1000000 10000", bad);
                }
            }
        }),
    ]
}
