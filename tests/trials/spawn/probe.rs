//! What a hostile container does that no shell can: this test program itself, run inside as `--probe NAME`.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use crate::case::Case;
use crate::sys;

/// The hidden argument.
pub const FLAG: &str = "--probe";

/// Where the program lies inside.
pub const INSIDE: &str = "/tmp/probe";

/// A copy of this test program on the host that anybody may execute, for `--bind` into a container of `host`, whose
/// dynamic linker and libraries it needs.
pub fn copy(case: &Case<'_>) -> String {
    let path = "/home/probe";
    if !Path::new(path).exists() {
        fs::copy("/proc/self/exe", path).expect("this program");
        case.world.mode(path, 0o755);
    }
    format!("{path}:{INSIDE}")
}

/// Runs inside.
#[allow(clippy::print_stdout)]
pub fn main(words: &[String]) -> ExitCode {
    match words.first().map(String::as_str) {
        Some("type") => {
            for fd in 0..3 {
                println!("{fd}: TIOCSTI {:?}", sys::type_into(fd, b'!').is_ok());
                println!("{fd}: TIOCLINUX {:?}", sys::paste_selection(fd).is_ok());
            }
            if let Ok(tty) = fs::File::options().read(true).write(true).open("/dev/tty") {
                use std::os::fd::AsRawFd;
                println!("tty: TIOCSTI {:?}", sys::type_into(tty.as_raw_fd(), b'!').is_ok());
            }
            println!("typed");
        }
        Some("keyring") => println!("{}", sys::session_keyring()),
        Some("overwrite") => {
            // Whatever process is to be seen, from the first instant on.
            for _ in 0..200 {
                for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
                    let exe = entry.path().join("exe");
                    if entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit)
                        && let Ok(link) = fs::read_link(&exe)
                    {
                        let opened = fs::File::options().write(true).open(&exe).is_ok();
                        println!("{} {opened}", link.display());
                    }
                }
            }
        }
        Some("forbidden") => {
            // The errno of each call that no container may make; without a filter some would be EFAULT or EBADF.
            for (name, number, arguments) in [
                ("open_by_handle_at", libc::SYS_open_by_handle_at, [0; 4]),
                ("init_module", libc::SYS_init_module, [0; 4]),
                ("finit_module", libc::SYS_finit_module, [u64::MAX, 0, 0, 0]),
                ("delete_module", libc::SYS_delete_module, [0; 4]),
                ("kexec_load", libc::SYS_kexec_load, [0; 4]),
                ("umount2", libc::SYS_umount2, [0, 1, 0, 0]),
                ("ioctl", libc::SYS_ioctl, [u64::MAX, libc::TIOCSTI, 0, 0]),
                ("ioctl, more bits", libc::SYS_ioctl, [u64::MAX, libc::TIOCSTI | 1 << 40, 0, 0]),
                ("ioctl, another", libc::SYS_ioctl, [u64::MAX, libc::TIOCGWINSZ, 0, 0]),
            ] {
                println!("{name}: {}", sys::raw(number, arguments));
            }
        }
        Some("writable") => {
            for path in words.iter().skip(1) {
                let name = std::ffi::CString::new(path.as_str()).expect("no NUL");
                for (way, errno) in sys::make_writable(&name) {
                    println!("{path}: {way}: {errno}");
                }
                let written = fs::write(format!("{path}/probe-was-here"), "").is_ok();
                println!("{path}: written {written}");
            }
        }
        other => panic!("no probe is called {other:?}"),
    }
    ExitCode::SUCCESS
}
