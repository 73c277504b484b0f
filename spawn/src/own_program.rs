//! This program's own file, out of reach of a container that runs with its owner's id.
//!
//! A file inside may name /proc/self/exe, as the interpreter of a script or as the target of a link, and until the exec
//! that is `spawn` (CVE-2019-5736). With a map of subordinate ids nobody inside may write it. With `--map self` the
//! caller's own id is inside, and if the file is his, it may: so it is then run from a sealed copy in memory.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use helper::start::sys::words;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::ambient;
use crate::failure::{self, Failure, Outcome};

const SELF: &str = "/proc/self/exe";

/// Executes this program again from a sealed copy, if its file belongs to the caller and it is none yet.
///
/// # Errors
/// When the copy cannot be made: the start is refused then.
pub fn seal() -> Outcome<()> {
    let fail =
        |what: &str, cause: String| Failure::own(format!("cannot {what} of this program for --map self: {cause}"));
    let link = std::fs::read_link(SELF).map_err(|error| fail("find the file", error.to_string()))?;
    if link.as_os_str().as_bytes().starts_with(b"/memfd:") {
        // An exec by descriptor has left a number as this process's name.
        let _ = nix::sys::prctl::set_name(c"spawn");
        return Ok(());
    }
    let mut file = std::fs::File::open(SELF).map_err(|error| fail("read the file", error.to_string()))?;
    let data = file.metadata().map_err(|error| fail("read the file", error.to_string()))?;
    if data.uid() != nix::unistd::geteuid().as_raw() || data.uid() == 0 {
        return Ok(());
    }
    let copy = memfd_create(c"spawn", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(|errno| fail("make a copy in memory", failure::words(errno)))?;
    let mut copy = std::fs::File::from(copy);
    std::io::copy(&mut file, &mut copy)
        .and_then(|_| copy.seek(SeekFrom::Start(0)))
        .map_err(|error| fail("make a copy in memory", error.to_string()))?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))
        .map_err(|errno| fail("seal the copy in memory", failure::words(errno)))?;
    let arguments: Vec<CString> = words().iter().filter_map(|word| CString::new(word.as_bytes()).ok()).collect();
    let Err(errno) = nix::unistd::fexecve(copy.as_fd(), &arguments, &ambient::all());
    Err(fail("execute the copy in memory", failure::words(errno)))
}
