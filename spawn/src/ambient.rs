//! The caller's environment variables. `spawn` holds no privilege, so it may believe them; the privileged programs of
//! this workspace may not, hence one place that says so.

#![forbid(unsafe_code)]

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The variable `key`, if it is set.
#[expect(clippy::disallowed_methods, reason = "no privilege is held")]
#[must_use]
pub fn variable(key: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(key)
}

/// The variable `key`, if it is an absolute path.
#[must_use]
pub fn directory(key: &str) -> Option<PathBuf> {
    variable(key).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// All of it as KEY=VALUE, to be handed on unchanged.
#[expect(clippy::disallowed_methods, reason = "no privilege is held")]
#[must_use]
pub fn all() -> Vec<CString> {
    let pairs = std::env::vars_os();
    pairs.filter_map(|(key, value)| CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()).collect()
}
