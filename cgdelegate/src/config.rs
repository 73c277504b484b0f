//! `/etc/cgdelegate.conf`: who may have how many cgroups, with which controllers and under which ceilings.
//!
//! Pure: bytes come in, entries or the first malformed line come out. `cgdelegate.conf(5)` is the contract.

#![forbid(unsafe_code)]

use core::fmt;

/// The file.
pub const PATH: &str = "/etc/cgdelegate.conf";

/// Longest line in bytes, without its newline.
pub const MAX_LINE: usize = 1024;

/// Largest file in bytes.
pub const MAX_FILE: usize = 1 << 20;

/// Most cgroups that one user can be granted at a time. Users times descendants have to stay well under the 65535
/// memory cgroups of a kernel.
pub const MAX_NODES: u32 = 1000;

/// `cgroup.max.descendants` of a user who has none in the file.
pub const DEFAULT_DESCENDANTS: u64 = 1000;

/// `cgroup.max.depth` of a user who has none in the file. A container with systemd needs about 6.
pub const DEFAULT_DEPTH: u64 = 16;

/// Controllers of cgroup2, as in `cgroup.controllers`.
const UNIFIED: [&str; 9] = ["cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "pids", "rdma"];

/// Controllers of v1 hierarchies that can be handed over. `memory` is not among them, see [`controller`].
const LEGACY: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// Whom a line is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A user name of /etc/passwd.
    Name(String),
    /// A uid.
    Uid(u32),
    /// `@NAME`: the members of a group of /etc/group.
    Group(String),
    /// `@GID`.
    Gid(u32),
}

/// Something that can be granted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// `memory`: a controller of cgroup2.
    Unified(String),
    /// `v1:freezer`: a v1 hierarchy by a controller that it carries.
    Legacy(String),
    /// `name=systemd`: a named v1 hierarchy, made when the host has none.
    Named(String),
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unified(name) => f.write_str(name),
            Self::Legacy(name) => write!(f, "v1:{name}"),
            Self::Named(name) => write!(f, "name={name}"),
        }
    }
}

/// What is limited: the file of cgroup2 that takes the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `pids.max`, processes and threads.
    PidsMax,
    /// `memory.max`, bytes.
    MemoryMax,
    /// `memory.high`, bytes.
    MemoryHigh,
    /// `memory.swap.max`, bytes.
    MemorySwapMax,
    /// `cpu.max`, microseconds of every period.
    CpuMax,
    /// `cpu.weight`, 1 to 10000.
    CpuWeight,
    /// `io.weight`, 1 to 10000.
    IoWeight,
    /// `cgroup.max.descendants`, cgroups.
    MaxDescendants,
    /// `cgroup.max.depth`, levels.
    MaxDepth,
}

impl Key {
    /// Every key.
    pub const ALL: [Self; 9] = [
        Self::PidsMax,
        Self::MemoryMax,
        Self::MemoryHigh,
        Self::MemorySwapMax,
        Self::CpuMax,
        Self::CpuWeight,
        Self::IoWeight,
        Self::MaxDescendants,
        Self::MaxDepth,
    ];

    /// The word in the file and on the command line, which is the name of cgroup2's file.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::PidsMax => "pids.max",
            Self::MemoryMax => "memory.max",
            Self::MemoryHigh => "memory.high",
            Self::MemorySwapMax => "memory.swap.max",
            Self::CpuMax => "cpu.max",
            Self::CpuWeight => "cpu.weight",
            Self::IoWeight => "io.weight",
            Self::MaxDescendants => "cgroup.max.descendants",
            Self::MaxDepth => "cgroup.max.depth",
        }
    }

    /// What can carry the limit: a controller of cgroup2, or a v1 hierarchy with an equal. Empty: cgroup2 itself.
    #[must_use]
    pub fn carriers(self) -> Vec<Controller> {
        let unified = |name: &str| Controller::Unified(name.to_owned());
        let legacy = |name: &str| Controller::Legacy(name.to_owned());
        match self {
            Self::PidsMax => vec![unified("pids"), legacy("pids")],
            Self::MemoryMax | Self::MemoryHigh | Self::MemorySwapMax => vec![unified("memory")],
            Self::CpuMax => vec![unified("cpu"), legacy("cpu")],
            Self::CpuWeight => vec![unified("cpu")],
            Self::IoWeight => vec![unified("io")],
            Self::MaxDescendants | Self::MaxDepth => Vec::new(),
        }
    }
}

/// A limit's value. `Max` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number in the unit of its key.
    Number(u64),
    /// `QUOTA/PERIOD`, both in microseconds.
    Share {
        /// Microseconds of processor time in each period.
        quota: u64,
        /// Length of a period in microseconds, 1000 to 1000000.
        period: u64,
    },
    /// `max`.
    Max,
}

impl Value {
    /// Whether this is at most `ceiling`. Shares are compared as fractions.
    #[must_use]
    pub fn within(self, ceiling: Self) -> bool {
        match (self, ceiling) {
            (_, Self::Max) => true,
            (Self::Max, _) => false,
            (Self::Number(mine), Self::Number(most)) => mine <= most,
            (Self::Share { quota, period }, Self::Share { quota: most, period: of }) => {
                u128::from(quota).saturating_mul(u128::from(of)) <= u128::from(most).saturating_mul(u128::from(period))
            }
            _ => false,
        }
    }

    /// The bytes for cgroup2's file.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Share { quota, period } => format!("{quota} {period}"),
            Self::Max => "max".to_owned(),
        }
    }
}

/// As it stands in the file, without suffix.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Share { quota, period } => write!(f, "{quota}/{period}"),
            Self::Max => f.write_str("max"),
        }
    }
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What.
    pub key: Key,
    /// How much.
    pub value: Value,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key.word(), self.value)
    }
}

/// One line that grants or refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number, from 1.
    pub line: u64,
    /// Whom it is about.
    pub who: Who,
    /// What may be asked for.
    pub controllers: Vec<Controller>,
    /// How many cgroups at a time, 0 to [`MAX_NODES`]; 0 refuses.
    pub max: u32,
    /// Ceilings on the user's total.
    pub limits: Vec<Limit>,
}

impl Entry {
    /// The value of a limit, when the line has it.
    #[must_use]
    pub fn limit(&self, key: Key) -> Option<Value> {
        self.limits.iter().find(|limit| limit.key == key).map(|limit| limit.value)
    }
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `base PATH`: the components of the cgroup, in every hierarchy, below which the users' cgroups are.
    pub base: Option<Vec<String>>,
    /// The entries in file order.
    pub entries: Vec<Entry>,
}

/// A malformed line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong and what would be right.
    pub why: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PATH}:{}: {}", self.line, self.why)
    }
}

/// Reads the file. Nothing is skipped in silence: one malformed line makes the whole file void.
///
/// # Errors
/// The first [`Malformed`] line.
pub fn parse(bytes: &[u8]) -> Result<Config, Malformed> {
    let mut config = Config::default();
    let mut number = 0_u64;
    for line in bytes.strip_suffix(b"\n").unwrap_or(bytes).split(|b| *b == b'\n') {
        number = number.saturating_add(1);
        let malformed = |why: String| Malformed { line: number, why };
        match parse_line(number, line).map_err(malformed)? {
            Line::Nothing => {}
            Line::Entry(entry) => config.entries.push(entry),
            Line::Base(base) if config.base.is_none() => config.base = Some(base),
            Line::Base(_) => return Err(malformed("a second base: there is one for all users".to_owned())),
        }
    }
    Ok(config)
}

enum Line {
    Nothing,
    Entry(Entry),
    Base(Vec<String>),
}

fn parse_line(number: u64, line: &[u8]) -> Result<Line, String> {
    if line.len() > MAX_LINE {
        return Err(format!("the line is {} bytes long, {MAX_LINE} are allowed", line.len()));
    }
    if let Some(byte) = line.iter().find(|b| !matches!(b, b'\t' | b' '..=b'~')) {
        return Err(format!("byte 0x{byte:02x}: only printable ASCII, blanks and tabs are allowed"));
    }
    let text = core::str::from_utf8(line).map_err(|_| "not ASCII".to_owned())?;
    let words: Vec<&str> =
        text.split([' ', '\t']).filter(|word| !word.is_empty()).take_while(|word| !word.starts_with('#')).collect();
    match words.as_slice() {
        [] => Ok(Line::Nothing),
        ["base", base] => parse_base(base).map(Line::Base),
        [who, controllers, max, limits @ ..] => {
            let controllers = parse_controllers(controllers)?;
            let max = parse_max(max)?;
            let limits = parse_limits(limits, &controllers)?;
            Ok(Line::Entry(Entry { line: number, who: parse_who(who)?, controllers, max, limits }))
        }
        _ => {
            Err("a line has at least three fields: WHO CONTROLLERS MAX [LIMIT=VALUE...], or is \"base PATH\""
                .to_owned())
        }
    }
}

fn parse_who(word: &str) -> Result<Who, String> {
    let (group, name) = word.strip_prefix('@').map_or((false, word), |name| (true, name));
    if name.is_empty() {
        return Err("@ without a group".to_owned());
    }
    if name.bytes().all(|b| b.is_ascii_digit()) {
        let id = name.parse().ok().filter(|id| *id != u32::MAX);
        let id = id.ok_or_else(|| format!("{name} is no id: at most 4294967294"))?;
        return Ok(if group { Who::Gid(id) } else { Who::Uid(id) });
    }
    if let Some(c) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !"_.-$@\\+".contains(*c)) {
        return Err(format!("'{c}' in the name \"{word}\": WHO is a user name, a uid, @GROUP or @GID"));
    }
    if name.starts_with('-') || name.starts_with('+') {
        return Err(format!("the name \"{word}\" begins with a sign"));
    }
    Ok(if group { Who::Group(name.to_owned()) } else { Who::Name(name.to_owned()) })
}

/// A comma list of controllers, `-` for none, as in the file and after `--controllers`.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_controllers(word: &str) -> Result<Vec<Controller>, String> {
    if word == "-" {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for name in word.split(',') {
        let controller = controller(name)?;
        if found.contains(&controller) {
            return Err(format!("{controller} stands twice"));
        }
        found.push(controller);
    }
    Ok(found)
}

/// One controller: `memory`, `v1:freezer`, `name=systemd`.
fn controller(word: &str) -> Result<Controller, String> {
    if let Some(name) = word.strip_prefix("name=") {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) {
            return Err(format!("\"{word}\": the name of a hierarchy is 1 to 32 of A-Za-z0-9_.-"));
        }
        return Ok(Controller::Named(name.to_owned()));
    }
    if word == "v1:memory" {
        return Err(
            "v1:memory is never delegated: it has no count limit, and one user's directories would take every memory \
             cgroup of the host; grant memory (cgroup2) and memory.max"
                .to_owned(),
        );
    }
    if let Some(name) = word.strip_prefix("v1:") {
        return if LEGACY.contains(&name) {
            Ok(Controller::Legacy(name.to_owned()))
        } else {
            Err(format!("\"{word}\": no v1 controller is called so; there are {}", LEGACY.join(", ")))
        };
    }
    if UNIFIED.contains(&word) {
        Ok(Controller::Unified(word.to_owned()))
    } else {
        Err(format!(
            "\"{word}\": no controller of cgroup2 is called so; there are {}; besides them v1:NAME, name=NAME, and - for none",
            UNIFIED.join(", ")
        ))
    }
}

fn parse_max(word: &str) -> Result<u32, String> {
    decimal(word)
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| *number <= MAX_NODES)
        .ok_or_else(|| format!("\"{word}\": the number of cgroups is 0 to {MAX_NODES}, in digits"))
}

fn parse_limits(words: &[&str], controllers: &[Controller]) -> Result<Vec<Limit>, String> {
    let mut limits: Vec<Limit> = Vec::new();
    for word in words {
        let limit = parse_limit(word)?;
        if limits.iter().any(|other| other.key == limit.key) {
            return Err(format!("{} stands twice", limit.key.word()));
        }
        let carriers = limit.key.carriers();
        if !carriers.is_empty() && !carriers.iter().any(|carrier| controllers.contains(carrier)) {
            let carriers: Vec<String> = carriers.iter().map(Controller::to_string).collect();
            return Err(format!(
                "{} needs the controller {} in the second field",
                limit.key.word(),
                carriers.join(" or ")
            ));
        }
        limits.push(limit);
    }
    Ok(limits)
}

/// One limit, `KEY=VALUE`, as in the file and after `--limit`.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_limit(word: &str) -> Result<Limit, String> {
    let (name, value) = word.split_once('=').ok_or_else(|| format!("\"{word}\": a limit is KEY=VALUE"))?;
    let key = Key::ALL.into_iter().find(|key| key.word() == name).ok_or_else(|| {
        let known: Vec<&str> = Key::ALL.iter().map(|key| key.word()).collect();
        format!("\"{name}\" is no limit; there are {}", known.join(", "))
    })?;
    parse_value(key, value).map(|value| Limit { key, value }).map_err(|why| format!("{name}={value}: {why}"))
}

fn parse_value(key: Key, word: &str) -> Result<Value, String> {
    let number = |from: u64, to: u64, what: &str| {
        decimal(word)
            .filter(|number| (from..=to).contains(number))
            .map(Value::Number)
            .ok_or_else(|| format!("{what}, {from} to {to}, in digits"))
    };
    if word == "max" {
        return match key {
            Key::MaxDescendants | Key::MaxDepth => Err("always limited: a number is needed".to_owned()),
            Key::CpuWeight | Key::IoWeight => Err("a weight is a number, 1 to 10000".to_owned()),
            _ => Ok(Value::Max),
        };
    }
    match key {
        Key::PidsMax => number(1, 4_194_304, "processes and threads"),
        Key::MemoryMax | Key::MemoryHigh | Key::MemorySwapMax => bytes(word)
            .map(Value::Number)
            .ok_or_else(|| "bytes, in digits, with K, M, G or T (1024) or without".to_owned()),
        Key::CpuMax => {
            let share = word.split_once('/').and_then(|(quota, period)| Some((decimal(quota)?, decimal(period)?)));
            match share {
                Some((quota, period)) if (1000..=1_000_000).contains(&period) && (1000..=1 << 40).contains(&quota) => {
                    Ok(Value::Share { quota, period })
                }
                _ => {
                    Err("QUOTA/PERIOD in microseconds, a quota of at least 1000, a period of 1000 to 1000000"
                        .to_owned())
                }
            }
        }
        Key::CpuWeight | Key::IoWeight => number(1, 10_000, "a weight"),
        Key::MaxDescendants => number(1, 30_000, "cgroups"),
        Key::MaxDepth => number(1, 200, "levels"),
    }
}

/// Digits, and nothing else, without a useless zero before them.
fn decimal(word: &str) -> Option<u64> {
    let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

fn bytes(word: &str) -> Option<u64> {
    let (digits, shift) = match word.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(digits) => (
            digits,
            match word.as_bytes().last() {
                Some(b'K') => 10,
                Some(b'M') => 20,
                Some(b'G') => 30,
                _ => 40,
            },
        ),
        None => (word, 0),
    };
    let number = decimal(digits)?.checked_mul(1_u64.checked_shl(shift)?)?;
    i64::try_from(number).is_ok().then_some(number)
}

/// A path relative to the top of each hierarchy.
fn parse_base(word: &str) -> Result<Vec<String>, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-@:\\".contains(&b);
    let good = |part: &&str| {
        !part.is_empty()
            && part.len() <= 128
            && !part.starts_with('.')
            && !part.starts_with("cgd-")
            && part.bytes().all(plain)
    };
    let parts: Vec<&str> = word.split('/').collect();
    if parts.len() > 8 || !parts.iter().all(good) {
        return Err(format!(
            "base {word}: one to eight names of A-Za-z0-9_.-@: between slashes, none at the beginning or end, none that begins with a dot or cgd-"
        ));
    }
    Ok(parts.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Entry {
        let mut config = parse(line.as_bytes()).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(config.entries.len(), 1, "{line}");
        config.entries.remove(0)
    }

    #[test]
    fn the_example_of_the_manual_is_read() {
        let text = "# who controllers max limits\n\
                    alice       cpu,memory,pids,name=systemd  4    pids.max=512 memory.max=2G cpu.max=150000/100000\n\
                    @students\tmemory,pids,name=systemd      1    pids.max=256 cgroup.max.descendants=200 # few\n\
                    \n\
                    base a.slice/b.service\n\
                    \x20 1003         -                             0";
        let config = parse(text.as_bytes()).unwrap();
        assert_eq!(config.base, Some(vec!["a.slice".to_owned(), "b.service".to_owned()]));
        let [alice, students, bob] = config.entries.as_slice() else { panic!() };
        assert_eq!((alice.line, &alice.who, alice.max), (2, &Who::Name("alice".into()), 4));
        assert_eq!(alice.limit(Key::MemoryMax), Some(Value::Number(2 << 30)));
        assert_eq!(alice.limit(Key::CpuMax), Some(Value::Share { quota: 150_000, period: 100_000 }));
        assert_eq!(alice.limit(Key::CpuWeight), None);
        assert_eq!((&students.who, students.limits.len()), (&Who::Group("students".into()), 2));
        assert_eq!((&bob.who, bob.max, bob.controllers.len()), (&Who::Uid(1003), 0, 0));
    }

    #[test]
    fn a_malformed_line_voids_the_file_and_is_named() {
        for (line, word) in [
            ("alice", "three fields"),
            ("alice pids", "three fields"),
            ("base", "three fields"),
            ("alice pids 1001", "0 to 1000"),
            ("alice pids +1", "0 to 1000"),
            ("alice pids 01", "0 to 1000"),
            ("alice pids -1", "0 to 1000"),
            ("alice memmory 1", "no controller"),
            ("alice pids,pids 1", "twice"),
            ("alice pids, 1", "no controller"),
            ("alice v1:memory 1", "never delegated"),
            ("alice v1:mem 1", "no v1 controller"),
            ("alice name= 1", "name of a hierarchy"),
            ("alice name=a/b 1", "name of a hierarchy"),
            ("alice - 1 pids.max=5", "needs the controller pids or v1:pids"),
            ("alice pids 1 pids.max=0", "1 to 4194304"),
            ("alice pids 1 pids.max", "KEY=VALUE"),
            ("alice pids 1 pids.max=5 pids.max=6", "twice"),
            ("alice pids 1 pids.current=5", "no limit"),
            ("alice memory 1 memory.max=1g", "bytes"),
            ("alice memory 1 memory.max=99999999T", "bytes"),
            ("alice memory 1 memory.max=-1", "bytes"),
            ("alice cpu 1 cpu.max=1000", "QUOTA/PERIOD"),
            ("alice cpu 1 cpu.max=1000/0", "QUOTA/PERIOD"),
            ("alice - 1 cgroup.max.depth=max", "always limited"),
            ("alice - 1 cgroup.max.descendants=max", "always limited"),
            ("@ - 1", "without a group"),
            ("al:ice - 1", "in the name"),
            ("4294967295 - 1", "no id"),
            ("base ../x", "base ../x"),
            ("base /x", "base /x"),
            ("base x/", "base x/"),
            ("base cgd-1", "base cgd-1"),
            ("base a\nbase b", "second base"),
            ("alice - 1\r", "0x0d"),
            ("alic\u{e9} - 1", "0xc3"),
            (&"x".repeat(1025), "1025 bytes"),
        ] {
            let text = format!("bob - 1\n{line}\n");
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with("/etc/cgdelegate.conf:"), "{error}");
            assert!(error.line >= 2 && error.why.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn comments_blank_lines_and_a_missing_newline_are_fine() {
        assert_eq!(parse(b"").unwrap(), Config::default());
        assert_eq!(parse(b"\n\n  # x\n#").unwrap(), Config::default());
        assert_eq!(one("alice - 1 # pids.max=x").limits, []);
        assert!(parse(b"al#ice - 1").is_err());
    }

    #[test]
    fn bytes_have_suffixes_of_1024() {
        for (word, number) in [("0", 0), ("1", 1), ("1K", 1024), ("3M", 3 << 20), ("2G", 2 << 30), ("1T", 1 << 40)] {
            assert_eq!(bytes(word), Some(number), "{word}");
        }
        for word in ["", "K", "1k", "1KB", "1.5G", "08", "9223372036854775808", "8388608T"] {
            assert_eq!(bytes(word), None, "{word}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_every_byte_is_accounted_for(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if parse(&bytes).is_ok() {
                prop_assert!(bytes.iter().all(|b| matches!(b, b'\t' | b'\n' | b' '..=b'~')));
            }
        }

        #[test]
        fn no_text_of_the_grammars_words_panics(words in proptest::collection::vec(prop_oneof![
            Just("alice"), Just("@g"), Just("pids"), Just(","), Just("name=systemd"), Just(" "), Just("\n"), Just("#"),
            Just("4"), Just("pids.max="), Just("max"), Just("cpu.max=1000/1000"), Just("base"), Just("-"), Just("v1:")
        ], 0..30)) {
            let _ = parse(words.concat().as_bytes());
        }

        #[test]
        fn a_limit_is_printed_as_it_is_read(quota in 1000..1_u64 << 40, period in 1000..=1_000_000_u64, number in 1..=10_000_u64) {
            for key in Key::ALL {
                let value = match key { Key::CpuMax => Value::Share { quota, period }, Key::MaxDepth => Value::Number(number % 200 + 1), _ => Value::Number(number) };
                let limit = Limit { key, value };
                prop_assert_eq!(parse_limit(&limit.to_string()), Ok(limit));
            }
        }

        #[test]
        fn shares_compare_as_fractions(a in 1000..1_u64 << 30, b in 1000..=1_000_000_u64, c in 1000..1_u64 << 30, d in 1000..=1_000_000_u64) {
            let (one, other) = (Value::Share { quota: a, period: b }, Value::Share { quota: c, period: d });
            prop_assert_eq!(one.within(other), u128::from(a) * u128::from(d) <= u128::from(c) * u128::from(b));
            prop_assert!(one.within(one) && one.within(Value::Max) && !Value::Max.within(one));
        }
    }
}
