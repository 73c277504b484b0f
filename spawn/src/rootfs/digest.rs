//! sha256 and sha512 digests, in OCI's form `sha256:HEX` and in that of a SHA256SUMS file.

#![forbid(unsafe_code)]

use super::error::{Error, Result, USAGE, shown};
use core::fmt;
use sha2::{Digest as _, Sha256, Sha512};

/// A digest that is expected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Digest {
    /// Reads `sha256:HEX` or `sha512:HEX`, small letters.
    ///
    /// # Errors
    /// The text is neither (65).
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::data(format!("digest \"{}\": {why}", shown(text.as_bytes())));
        let (name, hex) = text.split_once(':').ok_or_else(|| bad("not ALGORITHM:HEX"))?;
        let (algorithm, length) = match name {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(bad("only sha256 and sha512 are known")),
        };
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != length || !hex.bytes().all(is_hex) {
            return Err(bad(&format!("not {length} hexadecimal digits")));
        }
        Ok(Self { algorithm, hex: hex.to_owned() })
    }

    /// The same, as an option's value.
    ///
    /// # Errors
    /// As [`Digest::parse`], with status 64.
    pub fn parse_option(text: &str) -> Result<Self> {
        Self::parse(text).map_err(|error| Error::new(USAGE, error.text))
    }

    /// `sha256` or `sha512`.
    #[must_use]
    pub const fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Starts to compute a digest of this algorithm.
    #[must_use]
    pub fn start(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex)
    }
}

/// A digest that is being computed.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// SHA-256.
    #[must_use]
    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => sha2::digest::Update::update(state, bytes),
            Self::Sha512(state) => sha2::digest::Update::update(state, bytes),
        }
    }

    /// The digest of all bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(state) => Digest { algorithm: Algorithm::Sha256, hex: hex(&state.finalize()) },
            Self::Sha512(state) => Digest { algorithm: Algorithm::Sha512, hex: hex(&state.finalize()) },
        }
    }
}

/// The digest of bytes in memory.
#[must_use]
pub fn of(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// The digest of `name` in the text of a SHA256SUMS file (sha256sum(1)): `HEX  NAME` or `HEX *NAME`, also `./NAME`.
#[must_use]
pub fn in_sums(text: &str, name: &str) -> Option<Digest> {
    text.lines().find_map(|line| {
        let (hex, rest) = line.split_once(' ')?;
        let file = rest.strip_prefix([' ', '*']).unwrap_or(rest);
        let file = file.strip_prefix("./").unwrap_or(file);
        (file == name).then(|| Digest::parse(&format!("sha256:{}", hex.to_ascii_lowercase())).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_and_computed() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of(b"").to_string(), empty);
        assert_eq!(Digest::parse(empty).unwrap(), of(b""));
        let long = Hasher::Sha512(Sha512::new()).finish();
        assert_eq!(Digest::parse(&long.to_string()).unwrap(), long);
        for bad in ["", "sha256:", "sha256:E3", "md5:00", "sha256:../../etc/passwd", "sha256"] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sums_are_found_by_name() {
        let hex = of(b"").hex().to_owned();
        let text = format!("{hex}  meta.tar.xz\n{hex} *rootfs.tar.xz\nbroken\n{hex}  ./x y\n");
        assert!(in_sums(&text, "meta.tar.xz").is_some() && in_sums(&text, "rootfs.tar.xz").is_some());
        assert!(in_sums(&text, "x y").is_some() && in_sums(&text, "other").is_none());
    }
}
