//! The alias of a host end: what the kernel itself remembers about a NIC, for as long as the NIC lives.
//!
//! `usernet/1 uid=1001 pot=alice bridge=br0 nic=eth0 addr=10.0.3.7/24 name=c1`. Only who may configure the host's
//! links can change it.

#![forbid(unsafe_code)]

use core::fmt::Write as _;

const VERSION: &str = "usernet/1";

/// Longest alias in bytes (IFALIASZ - 1 of linux/if.h).
pub const MAX_ALIAS: usize = 255;

/// What an alias says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Whose NIC it is.
    pub uid: u32,
    /// What it is charged to. Empty: it did not fit.
    pub pot: Vec<u8>,
    /// The bridge that was asked for, or `none`.
    pub bridge: Vec<u8>,
    /// Name of the peer when it was made.
    pub nic: Vec<u8>,
    /// The address reserved for it, with its prefix. Empty: none.
    pub addr: Vec<u8>,
    /// The container, in the words of its user.
    pub container: Vec<u8>,
}

impl Label {
    /// The alias. What does not fit is left out: a long container name is cut.
    #[must_use]
    pub fn alias(&self) -> String {
        let mut text = format!("{VERSION} uid={}", self.uid);
        let fields = [("pot", &self.pot), ("bridge", &self.bridge), ("nic", &self.nic), ("addr", &self.addr)];
        for (key, value) in fields {
            let word = format!(" {key}={}", escape(value));
            if !value.is_empty() && text.len().saturating_add(word.len()) <= MAX_ALIAS {
                text.push_str(&word);
            }
        }
        if !self.container.is_empty() && text.len().saturating_add(" name=x".len()) <= MAX_ALIAS {
            text.push_str(" name=");
            for byte in &self.container {
                let piece = escape(core::slice::from_ref(byte));
                if text.len().saturating_add(piece.len()) > MAX_ALIAS {
                    break;
                }
                text.push_str(&piece);
            }
        }
        text
    }

    /// Reads an alias. `None`: it is somebody else's.
    #[must_use]
    pub fn parse(alias: &[u8]) -> Option<Self> {
        let mut words = core::str::from_utf8(alias).ok()?.split(' ');
        words.next().filter(|version| *version == VERSION)?;
        let mut label = Self { uid: words.next()?.strip_prefix("uid=")?.parse().ok()?, ..Self::default() };
        for word in words {
            let (key, value) = word.split_once('=')?;
            let value = unescape(value)?;
            match key {
                "pot" => label.pot = value,
                "bridge" => label.bridge = value,
                "nic" => label.nic = value,
                "addr" => label.addr = value,
                "name" => label.container = value,
                _ => {}
            }
        }
        Some(label)
    }
}

fn escape(value: &[u8]) -> String {
    let mut text = String::new();
    for byte in value {
        if byte.is_ascii_graphic() && *byte != b'%' {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn unescape(value: &str) -> Option<Vec<u8>> {
    let mut bytes = value.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(core::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_alias_is_read_back(
            uid: u32, pot in "@?[a-z]{1,30}", nic in proptest::collection::vec(1..=255_u8, 1..16),
            container in proptest::collection::vec(1..=255_u8, 0..30), addr in "(10\\.0\\.3\\.7/24)?",
        ) {
            let label = Label {
                uid, pot: pot.into_bytes(), bridge: b"br0".to_vec(), nic, addr: addr.into_bytes(), container,
            };
            prop_assert_eq!(Label::parse(label.alias().as_bytes()), Some(label));
        }

        #[test]
        fn an_alias_fits_and_keeps_whose_it_is(
            pot in proptest::collection::vec(any::<u8>(), 0..120), container in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let alias = Label { uid: 7, pot, container, ..Label::default() }.alias();
            prop_assert!(alias.len() <= MAX_ALIAS);
            prop_assert_eq!(Label::parse(alias.as_bytes()).map(|label| label.uid), Some(7));
        }

        #[test]
        fn no_alias_panics(alias in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Label::parse(&alias);
            let _ = Label::parse(&[b"usernet/1 uid=1 ".as_slice(), &alias].concat());
        }
    }
}
