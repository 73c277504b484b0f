//! A tar writer that writes what it is told, however wrong.

/// A member under construction.
#[derive(Clone)]
pub struct Member {
    pub name: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    /// Size in the header; without, that of the data.
    pub size: Option<u64>,
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    pub pax: Vec<(String, Vec<u8>)>,
}

fn new(name: impl AsRef<[u8]>, kind: u8) -> Member {
    Member {
        name: name.as_ref().to_vec(),
        kind,
        mode: if kind == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: 1_000_000_000,
        size: None,
        link: Vec::new(),
        data: Vec::new(),
        pax: Vec::new(),
    }
}

/// A regular file.
pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Member {
    Member { data: data.as_ref().to_vec(), ..new(name, b'0') }
}

/// A directory.
pub fn dir(name: impl AsRef<[u8]>) -> Member {
    new(name, b'5')
}

/// A symbolic link.
pub fn link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    Member { link: target.as_ref().to_vec(), ..new(name, b'2') }
}

/// A hard link.
pub fn hard(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    Member { link: target.as_ref().to_vec(), ..new(name, b'1') }
}

/// A member of any type.
pub fn other(name: impl AsRef<[u8]>, kind: u8) -> Member {
    new(name, kind)
}

impl Member {
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        self
    }

    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    fn header(&self, kind: u8, name: &[u8], size: u64) -> Vec<u8> {
        let mut header = vec![0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{:07o}", self.mode).as_bytes());
        for (at, id) in [(108, self.uid), (116, self.gid)] {
            if id < 0o10_000_000 {
                put(at, format!("{id:07o}").as_bytes());
            } else {
                put(at, &[0x80]);
                put(at + 1, &id.to_be_bytes()[1..]);
            }
        }
        if size < 0o100_000_000_000 {
            put(124, format!("{size:011o}").as_bytes());
        } else {
            put(124, &[0x80, 0, 0, 0]);
            put(128, &size.to_be_bytes());
        }
        put(136, format!("{:011o}", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut pax = self.pax.clone();
        if self.name.len() > 100 && !pax.iter().any(|(key, _)| key == "path") {
            pax.push(("path".into(), self.name.clone()));
        }
        if self.link.len() > 100 {
            pax.push(("linkpath".into(), self.link.clone()));
        }
        if !pax.is_empty() {
            let text = records(&pax);
            out.extend(self.header(b'x', b"pax", text.len() as u64));
            out.extend(&text);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.extend(self.header(self.kind, &self.name, self.size.unwrap_or(self.data.len() as u64)));
        out.extend(&self.data);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

/// Records of an extended header.
pub fn records(list: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, value) in list {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        text.extend(format!("{length} {key}=").as_bytes());
        text.extend(value);
        text.push(b'\n');
    }
    text
}

/// A whole archive.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let mut out: Vec<u8> = members.iter().flat_map(Member::bytes).collect();
    out.resize(out.len() + 1024, 0);
    out
}
