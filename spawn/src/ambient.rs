//! The caller's environment variables. `spawn` holds no privilege, so it may believe them; the privileged programs of
//! this workspace may not, hence one place that says so.

#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// The variable `key`, if it is set.
#[allow(clippy::disallowed_methods, reason = "the one place; see above")]
#[must_use]
pub fn variable(key: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(key)
}

/// The variable `key`, if it is an absolute path.
#[must_use]
pub fn directory(key: &str) -> Option<PathBuf> {
    variable(key).map(PathBuf::from).filter(|path| path.is_absolute())
}
