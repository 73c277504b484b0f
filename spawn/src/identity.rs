//! The user of the command, as the rootfs's own /etc/passwd and /etc/group know him. Runs inside, after pivot_root.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use crate::plan::User;

/// Longest /etc/passwd or /etc/group that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// Supplementary groups at most, as many as Linux had before 2.6.4 and as NFS still has twice over.
const MAX_GROUPS: usize = 64;

/// Whom the command becomes.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Supplementary group ids inside.
    pub groups: Vec<u32>,
    /// `HOME=` and the home directory.
    pub home: CString,
}

/// `None` for root, who needs no change.
///
/// # Errors
/// The reason in words: the name is not in /etc/passwd, or that file cannot be read.
pub fn find(user: &User) -> Result<Option<Identity>, String> {
    match user {
        User::Root => Ok(None),
        User::Id(uid, gid) => {
            let passwd = read("/etc/passwd").unwrap_or_default();
            Ok(Some(by_id(*uid, *gid, &passwd)))
        }
        User::Name(name) => {
            let passwd = read("/etc/passwd").map_err(|error| format!("/etc/passwd of the rootfs: {error}"))?;
            let group = read("/etc/group").unwrap_or_default();
            by_name(name, &passwd, &group)
                .map(Some)
                .ok_or_else(|| format!("user {name} is not in the rootfs's /etc/passwd: give UID[:GID] instead"))
        }
    }
}

fn read(path: &str) -> std::io::Result<String> {
    // O_NONBLOCK: a FIFO there must not hold us up.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A number: the group is the one given, else that of the number's entry, else the same number.
fn by_id(uid: u32, gid: Option<u32>, passwd: &str) -> Identity {
    let entry = passwd.lines().filter_map(parse).find(|entry| entry.uid == uid);
    let gid = gid.unwrap_or(entry.as_ref().map_or(uid, |entry| entry.gid));
    Identity { uid, gid, groups: Vec::new(), home: home(entry.map_or("/", |entry| entry.home)) }
}

/// The entry of `name`, with the groups that name him a member.
pub fn by_name(name: &str, passwd: &str, group: &str) -> Option<Identity> {
    let entry = passwd.lines().filter_map(parse).find(|entry| entry.name == name)?;
    let groups = group.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid = id(fields.next()?)?;
        fields.next()?.split(',').any(|member| member == name).then_some(gid)
    });
    Some(Identity { uid: entry.uid, gid: entry.gid, groups: groups.take(MAX_GROUPS).collect(), home: home(entry.home) })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn parse(line: &str) -> Option<Entry<'_>> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
    Some(Entry { name, uid: id(uid)?, gid: id(gid)?, home })
}

/// Digits and nothing else. 4294967295 is (uid_t)-1, by which setresuid(2) changes nothing: its user would stay root.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

fn home(directory: &str) -> CString {
    let directory = if directory.is_empty() { "/" } else { directory };
    CString::new(format!("HOME={directory}")).unwrap_or_else(|_| c"HOME=/".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nada:x:1000:100:Ada:/home/ada:/bin/sh\nb:x:5:x::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,ada\nusers:x:100:\ntape:x:33:adam,ada\n";

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let ada = by_name("ada", PASSWD, GROUP).unwrap();
        assert_eq!((ada.uid, ada.gid, ada.groups), (1000, 100, vec![10, 33]));
        assert_eq!(ada.home.as_c_str(), c"HOME=/home/ada");
        assert_eq!(by_name("b", PASSWD, GROUP), None);
        assert_eq!(by_name("", PASSWD, GROUP), None);
        for wrong in ["4294967295", "-1", "+0", " 0", ""] {
            assert_eq!(by_name("x", &format!("x:x:{wrong}:0::/:\n"), GROUP), None, "{wrong:?}");
            assert_eq!(by_name("x", &format!("x:x:5:{wrong}::/:\n"), GROUP), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_number_needs_no_entry() {
        let known = by_id(1000, None, PASSWD);
        assert_eq!((known.uid, known.gid, known.home.as_c_str()), (1000, 100, c"HOME=/home/ada"));
        let given = by_id(1000, Some(7), PASSWD);
        assert_eq!((given.uid, given.gid), (1000, 7));
        let unknown = by_id(4242, None, PASSWD);
        assert_eq!((unknown.uid, unknown.gid, unknown.home.as_c_str()), (4242, 4242, c"HOME=/"));
    }
}
