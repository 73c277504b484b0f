//! What must be true of the sources and of the shipped files, whatever a program does when it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Crates whose programs hold a privilege.
const PRIVILEGED: [&str; 3] = ["newuidmap-rs", "usernet", "cgdelegate"];

/// Modules of the library that newuidmap and newgidmap do not use.
const NOT_IN_NEWUIDMAP: [&str; 5] = ["allotment.rs", "handoff.rs", "handover.rs", "handover/sys.rs", "memory/sys.rs"];

/// Most lines (no tests, blanks, comments) that are read by who reads all of newuidmap: shared modules and its own.
const NEWUIDMAP_BUDGET: usize = 2000;

/// Most such lines in the files called sys.rs, where the unsafe code is.
const SYS_BUDGET: usize = 165;

type Check = Result<Completion, Failed>;

fn done() -> Check {
    Ok(Completion::Completed)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn members() -> Vec<PathBuf> {
    let mut members: Vec<PathBuf> = fs::read_dir(root())
        .expect("the workspace")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.join("Cargo.toml").exists() && path.join("src").is_dir())
        .collect();
    members.sort();
    assert!(members.len() >= 2, "the workspace has members");
    members
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a source directory") {
            let path = entry.expect("entry").path();
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    directories.push(path);
                }
            } else if name.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a file that are neither blank nor comment, up to its test module, which is the last thing in it.
fn code(path: &Path) -> Vec<String> {
    read(path)
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .map(str::to_owned)
        .collect()
}

fn cargo_tree(package: &str) -> BTreeSet<String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--locked", "-e", "normal", "--prefix", "none", "--format", "{p}", "-p", package])
        .current_dir(root())
        .output()
        .expect("cargo");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().filter_map(|line| line.split(' ').next()).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn dependencies() -> Check {
    let mut seen = 0;
    for package in PRIVILEGED {
        if !root().join(package).join("Cargo.toml").exists() {
            continue;
        }
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("dependencies").join(format!("{package}.txt"));
        let wanted: BTreeSet<String> =
            read(&list).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        let found = cargo_tree(package);
        assert_eq!(found, wanted, "crates in {package} (left) and in {} (right)", list.display());
        seen += 1;
    }
    assert!(seen > 0, "privileged packages were found");
    done()
}

fn unsafe_only_in_sys() -> Check {
    let mut blocks = 0;
    for member in members() {
        for path in sources(&member) {
            // Fuzz targets are a workspace of their own, and their macro writes the unsafe code.
            if path.starts_with(root().join("tests/fuzz")) || path.ends_with("trials/repository.rs") {
                continue;
            }
            for (number, line) in read(&path).lines().enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                let is_unsafe =
                    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == "unsafe");
                if is_unsafe {
                    blocks += 1;
                    assert_eq!(
                        path.file_name().expect("name"),
                        "sys.rs",
                        "{}:{}: unsafe code outside sys.rs",
                        path.display(),
                        number + 1
                    );
                }
            }
        }
    }
    assert!(blocks > 0, "the search finds unsafe code");
    done()
}

fn budget() -> Check {
    let source = root().join("newuidmap-rs/src");
    let mut total = 0;
    let mut sys = 0;
    for path in sources(&source) {
        let name = path.strip_prefix(&source).expect("below").to_string_lossy().into_owned();
        if NOT_IN_NEWUIDMAP.contains(&name.as_str()) || (name.starts_with("bin/") && name != "bin/newuidmap.rs") {
            continue;
        }
        let lines = code(&path).len();
        total += lines;
        if path.ends_with("sys.rs") {
            sys += lines;
        }
    }
    assert!(total > 300 && sys > 20, "the sources were found: {total} lines, {sys} of sys.rs");
    assert!(total <= NEWUIDMAP_BUDGET, "newuidmap has {total} lines, its budget is {NEWUIDMAP_BUDGET}");
    assert!(sys <= SYS_BUDGET, "sys.rs has {sys} lines, its budget is {SYS_BUDGET}");
    done()
}

/// The modules that are left out of the budget are not used by newuidmap.
fn left_out_of_the_budget() -> Check {
    let source = root().join("newuidmap-rs/src");
    for path in sources(&source) {
        let name = path.strip_prefix(&source).expect("below").to_string_lossy().into_owned();
        if NOT_IN_NEWUIDMAP.contains(&name.as_str())
            || ["lib.rs", "bin/idmap.rs", "bin/getsubids.rs"].contains(&name.as_str())
        {
            continue;
        }
        for line in code(&path) {
            for module in NOT_IN_NEWUIDMAP {
                let module = module.trim_end_matches(".rs");
                assert!(
                    !line.contains(&format!("{module}::")),
                    "{name} uses {module}, which is not in the budget: {line}"
                );
            }
        }
    }
    done()
}

/// The privileged programs as they are shipped; `None` where HELPERS_DIR does not say where they are.
fn shipped() -> Option<Vec<(String, Vec<u8>)>> {
    let directory = PathBuf::from(env::var_os("HELPERS_DIR").filter(|value| !value.is_empty())?);
    let must = ["newuidmap", "newgidmap", "idmap", "getsubids"];
    let may = ["usernet", "lxc-user-nic", "cgdelegate"];
    let found = |name: &str| fs::read(directory.join(name)).map(|bytes| (name.to_owned(), bytes));
    let mut programs: Vec<_> =
        must.iter().map(|name| found(name).unwrap_or_else(|error| panic!("{name} in HELPERS_DIR: {error}"))).collect();
    programs.extend(may.iter().filter_map(|name| found(name).ok()));
    Some(programs)
}

fn no_shipped() -> Check {
    Ok(Completion::ignored_with("needs the shipped programs: HELPERS_DIR is not set"))
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn static_pie() -> Check {
    let Some(mut programs) = shipped() else { return no_shipped() };
    // Those without privilege too: no file of the suite needs a C library of the host, be it CentOS 7's.
    let directory = tests::world::helpers_dir();
    for name in ["spawn", "rootfs"] {
        programs.push((name.to_owned(), fs::read(directory.join(name)).expect(name)));
    }
    for (name, bytes) in programs {
        assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "{name}: 64-bit little-endian ELF");
        assert_eq!(number(&bytes, 16, 2), 3, "{name}: ET_DYN, or its addresses are the same in every process");
        let (start, size, count) = (number(&bytes, 32, 8), number(&bytes, 54, 2), number(&bytes, 56, 2));
        let types: Vec<u64> =
            (0..count).map(|index| number(&bytes, usize::try_from(start + index * size).expect("fits"), 4)).collect();
        assert!(types.contains(&1), "{name}: no PT_LOAD: the headers were not read");
        assert!(!types.contains(&3), "{name}: PT_INTERP: a dynamic loader would run first");
    }
    done()
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

fn no_nss() -> Check {
    let Some(programs) = shipped() else { return no_shipped() };
    for (name, bytes) in programs {
        // A static glibc program that reaches getpw*, getgr* or getaddrinfo carries the loader of NSS modules, stripped or
        // not: these are its format strings. musl has none of them.
        for word in [&b"libnss_"[..], b"_nss_%s", b"nscd/socket", b"getpwuid_r", b"initgroups"] {
            assert!(
                !contains(&bytes, word),
                "{name} contains {}: the C library's name service is linked in",
                String::from_utf8_lossy(word)
            );
        }
    }
    done()
}

/// Options that a word list names: `-g`, `--check`.
fn options_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| c.is_whitespace() || "[]|,=".contains(c))
        .filter(|word| {
            let name = word.trim_start_matches('-');
            let dashes = word.len() - name.len();
            (dashes == 2 || (dashes == 1 && name.len() == 1)) && name.starts_with(|c: char| c.is_ascii_lowercase())
        })
        .map(str::to_owned)
        .collect()
}

/// Options in an mdoc page's SYNOPSIS and option list.
fn options_of_page(page: &str) -> BTreeSet<String> {
    let mut options = BTreeSet::new();
    let mut synopsis = false;
    for line in page.lines() {
        if let Some(section) = line.strip_prefix(".Sh ") {
            synopsis = section == "SYNOPSIS";
        }
        if !(line.starts_with(".It Fl ") || (synopsis && line.starts_with('.'))) {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut flags = false;
        for word in words {
            match word {
                "Fl" | ".Fl" => flags = true,
                "|" | "Op" | ".Op" | "," | "Ns" => {}
                "Ar" | "Cm" | ".Nm" | "Nm" | ".Ar" => flags = false,
                _ if flags => {
                    options.insert(format!("-{}", word.replace("\\-", "-")));
                    flags = false;
                }
                _ => {}
            }
        }
    }
    options
}

/// Options in the usage and the option list of `--help`, which are the lines that begin with one.
fn options_of_help(help: &str) -> BTreeSet<String> {
    let mut options = BTreeSet::new();
    let mut usage = true;
    for line in help.lines() {
        usage &= !line.trim().is_empty();
        let text = line.trim_start();
        if usage {
            options.extend(options_in(text.trim_start_matches("usage:")));
        } else if text.starts_with('-') {
            // Up to the two blanks before the explanation.
            options.extend(options_in(text.split("  ").next().unwrap_or_default()));
        }
    }
    options
}

fn pages() -> Check {
    let directory = tests::world::helpers_dir();
    let mut compared = BTreeMap::new();
    for name in ["newuidmap", "newgidmap", "idmap", "getsubids"] {
        let page = root().join("man").join(format!("{name}.1"));
        if !page.exists() {
            continue;
        }
        let program = directory.join(name);
        let output = Command::new(&program)
            .arg("--help")
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut help = options_of_help(&String::from_utf8_lossy(&output.stdout));
        // Every program has these two, and not every usage line repeats them.
        help.extend(["--help".to_owned(), "--version".to_owned()]);
        let page = options_of_page(&read(&page));
        assert_eq!(page, help, "{name}: options of the manual page (left) and of --help (right)");
        compared.insert(name, page.len());
    }
    assert!(compared.len() == 4 && compared.values().all(|options| *options >= 3), "compared: {compared:?}");
    done()
}

/// What a program prints for `words` and `--help`.
fn help(name: &str, words: &[&str]) -> String {
    let program = tests::world::helpers_dir().join(name);
    let output = Command::new(&program)
        .args(words)
        .arg("--help")
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "{name} {words:?} --help: {}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Commands in the list that clap prints.
fn commands_of_help(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty()))
        .filter(|word| *word != "help")
        .map(str::to_owned)
        .collect()
}

/// The long options of a command.
fn long_options(help: &str) -> BTreeSet<String> {
    let options = options_of_help(help).into_iter().filter(|option| option.starts_with("--"));
    options.map(|option| option.trim_end_matches(':').to_owned()).collect()
}

/// Long options that an mdoc page defines: in its synopsis, and in the heads of its lists.
fn long_options_of_page(page: &str) -> BTreeSet<String> {
    let mut options = BTreeSet::new();
    let mut synopsis = false;
    for line in page.lines() {
        if let Some(section) = line.strip_prefix(".Sh ") {
            synopsis = section == "SYNOPSIS";
        }
        if line.starts_with(".It ") || (synopsis && line.starts_with('.')) {
            let words = line.split_whitespace().map(|word| word.replace("\\-", "-"));
            options.extend(
                words
                    .filter(|word| word.len() > 2 && word.starts_with('-') && word.as_bytes()[1].is_ascii_lowercase())
                    .map(|word| format!("-{word}")),
            );
        }
    }
    options
}

/// The programs with commands: each long option of each command is in the page, and no other.
fn pages_of_commands() -> Check {
    for name in ["usernet", "lxc-user-nic", "cgdelegate", "spawn", "rootfs"] {
        let whole = help(name, &[]);
        let mut found = long_options(&whole);
        for command in commands_of_help(&whole) {
            let text = help(name, &[&command]);
            found.extend(long_options(&text));
            for nested in commands_of_help(&text) {
                found.extend(long_options(&help(name, &[&command, &nested])));
            }
        }
        let mut page = long_options_of_page(&read(&root().join("man").join(format!("{name}.1"))));
        for common in ["--help", "--version"] {
            found.remove(common);
            page.remove(common);
        }
        assert_eq!(page, found, "{name}: long options of the manual page (left) and of --help (right)");
        assert!(!found.is_empty(), "{name}: options were found");
    }
    done()
}

/// What a shell completes at the end of `line`.
fn completed(shell: &str, line: &str, data: &Path) -> BTreeSet<String> {
    let completions = root().join("packaging/completions");
    let (script, file) = match shell {
        "bash" => (
            r#"source "$1"; read -ra COMP_WORDS <<<"$2"; [[ $2 != *' ' ]] || COMP_WORDS+=('')
               COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _userns_helpers; printf '%s\n' "${COMPREPLY[@]}""#,
            "spawn.bash",
        ),
        "zsh" => (
            r#"compadd() { shift; print -rl -- "$@" }; _files() { }; words=(${(z)2}); [[ $2 != *' ' ]] || words+=('')
               CURRENT=$#words; file=$1; set --; source $file"#,
            "_spawn",
        ),
        _ => ("source $argv[2]; complete -C $argv[3]", "spawn.fish"),
    };
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", tests::world::helpers_dir().display());
    let mut command = Command::new(shell);
    if shell == "zsh" {
        command.arg("-f");
    }
    let output = command
        .args(["-c", script, "sh"])
        .arg(completions.join(file))
        .arg(line)
        .current_dir(data)
        .env("XDG_DATA_HOME", data)
        .env("HOME", data)
        .env("PATH", path)
        .output()
        .unwrap_or_else(|error| panic!("{shell}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.stderr.is_empty(), "{shell}: \"{line}\": {}", String::from_utf8_lossy(&output.stderr));
    let words = text.lines().filter_map(|line| line.split('\t').next());
    words.map(|word| word.trim_end_matches('/').to_owned()).filter(|word| !word.is_empty()).collect()
}

/// bash, zsh and fish complete what `--help` names, and the names of containers.
fn completions() -> Check {
    let shells = ["bash", "zsh", "fish"];
    for shell in shells {
        if Command::new(shell).args(["-c", "true"]).output().is_err() {
            return Ok(Completion::ignored_with(format!("needs {shell}")));
        }
    }
    let data = env::temp_dir().join(format!("completions.{}", std::process::id()));
    fs::create_dir_all(data.join("spawn/c7")).expect("a container");
    fs::create_dir_all(data.join("spawn/web-1")).expect("a container");
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    for shell in shells {
        let at = |line: &str| completed(shell, line, &data);
        for name in ["spawn", "rootfs"] {
            let commands = commands_of_help(&help(name, &[]));
            assert!(commands.len() >= 3, "{name}: {commands:?}");
            let mut found = at(&format!("{name} "));
            found.remove("help");
            assert_eq!(found, commands.iter().cloned().collect(), "{shell}: the commands of {name}");
            for command in &commands {
                let wanted = long_options(&help(name, &[command]));
                assert_eq!(at(&format!("{name} {command} --")), wanted, "{shell}: the options of {name} {command}");
                let nested = commands_of_help(&help(name, &[command]));
                for nested in &nested {
                    let wanted = long_options(&help(name, &[command, nested]));
                    let line = format!("{name} {command} {nested} --");
                    assert_eq!(at(&line), wanted, "{shell}: the options of {name} {command} {nested}");
                }
                if !nested.is_empty() {
                    let mut found = at(&format!("{name} {command} "));
                    found.remove("help");
                    assert_eq!(found, nested.into_iter().collect(), "{shell}: the commands of {name} {command}");
                }
            }
        }
        for (name, command) in [("usernet", "list"), ("cgdelegate", "run"), ("idmap", "plan")] {
            let wanted = long_options(&help(name, &[]));
            assert_eq!(at(&format!("{name} {command} --")), wanted, "{shell}: the options of {name}");
        }
        assert_eq!(at("usernet "), words("attach detach list prune"), "{shell}: the commands of usernet");
        assert_eq!(at("idmap "), words("plan write"), "{shell}: the commands of idmap");
        let commands = words("attach check create delete list prune run");
        assert_eq!(at("cgdelegate "), commands, "{shell}: the commands of cgdelegate");
        let found = at("spawn run ");
        assert!(found.is_superset(&words("c7 web-1 host")), "{shell}: containers: {found:?}");
        let found = at("spawn autostart enable ");
        assert!(found.is_superset(&words("c7 web-1")), "{shell}: containers: {found:?}");
        let found = at("rootfs check ");
        assert!(found.is_superset(&words("c7 web-1")) && !found.contains("host"), "{shell}: containers: {found:?}");
    }
    fs::remove_dir_all(data).expect("the containers");
    done()
}

/// Every quoted trial in SECURITY exists, so that its table cannot promise a test that is gone.
fn security_table() -> Check {
    let Some(security) =
        ["SECURITY.md", "SECURITY"].map(|name| root().join(name)).into_iter().find(|path| path.exists())
    else {
        return Ok(Completion::ignored_with("there is no SECURITY.md yet"));
    };
    let trials: String =
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("trials")).iter().map(|path| read(path)).collect();
    let text = read(&security);
    let mut names = 0;
    for quoted in text.split('`').skip(1).step_by(2) {
        if ["CVE-", "shadow "].iter().any(|start| quoted.starts_with(start)) && quoted.contains(": ") {
            assert!(trials.contains(quoted), "{}: no trial is called \"{quoted}\"", security.display());
            names += 1;
        }
    }
    assert!(names >= 3, "the table names trials: {names} found");
    done()
}

/// Every difference is asked for by a trial, every name in may-be-skipped.txt is one.
fn tables_are_in_use() -> Check {
    let trials: String =
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("trials")).iter().map(|path| read(path)).collect();
    for difference in tests::differences::DIFFERENCES {
        assert!(
            trials.contains(&format!("\"{}\"", difference.id)),
            "no trial asks for the difference \"{}\"",
            difference.id
        );
        assert_ne!(difference.theirs, difference.ours, "{}: no difference", difference.id);
        assert!(difference.reason.len() > 10, "{}: no reason", difference.id);
    }
    let skipped = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("may-be-skipped.txt"));
    for name in skipped.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let sentence = name
            .split_once(": ")
            .filter(|(install, _)| ["setuid", "fcaps"].contains(install))
            .map_or(name, |(_, rest)| rest);
        assert!(trials.contains(&format!("\"{sentence}\"")), "may-be-skipped.txt names no trial: {name}");
    }
    done()
}

/// The fuzz targets are a workspace of their own, which nothing but `make fuzz` builds, with `--locked`.
fn fuzz_lock() -> Check {
    let lock = fs::read_to_string(root().join("tests/fuzz/Cargo.lock")).expect("the lock file");
    let mut compared = 0;
    for member in members() {
        let manifest = fs::read_to_string(member.join("Cargo.toml")).expect("a manifest");
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = ")).expect("a name");
        let Some((_, package)) = lock.split_once(&format!("[[package]]\nname = {name}\n")) else { continue };
        let package = package.split("[[package]]").next().unwrap_or_default();
        let dependencies = manifest.split_once("\n[dependencies]\n").map_or("", |(_, rest)| rest);
        for line in dependencies.lines().take_while(|line| !line.starts_with('[')) {
            let Some((dependency, _)) = line.split_once(['.', ' ']) else { continue };
            let known = if dependency == "helper" { "newuidmap-rs" } else { dependency };
            assert!(
                package.contains(&format!("\"{known}\"")),
                "{name} depends on {known}: run `cargo metadata` in tests/fuzz and commit its Cargo.lock"
            );
            compared += 1;
        }
    }
    assert!(compared > 20, "the manifests were read");
    done()
}

fn main() -> ExitCode {
    let require = env::var_os("KERNEL_TESTS").is_some_and(|value| value == "require");
    let trial = |name: &'static str, run: fn() -> Check| {
        Trial::ignorable_test(name, move || {
            let result = std::panic::catch_unwind(run).map_err(|panic| {
                let text = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Failed::from(text.unwrap_or_else(|| "panicked".to_owned()))
            })?;
            match result {
                Ok(Completion::Ignored { reason }) if require => {
                    Err(format!("must run with KERNEL_TESTS=require: {}", reason.unwrap_or_default()).into())
                }
                other => other,
            }
        })
    };
    let tests = vec![
        trial("the crates in every privileged program are those of a checked-in list", dependencies),
        trial("unsafe code stands in files called sys.rs only", unsafe_only_in_sys),
        trial("newuidmap stays within its budget of lines", budget),
        trial("the modules left out of the budget are not used by newuidmap", left_out_of_the_budget),
        trial("the shipped programs are static position-independent executables", static_pie),
        trial("the shipped programs contain no name service of a C library", no_nss),
        trial("manual pages and --help name the same options", pages),
        trial("manual pages of programs with commands and their --help name the same long options", pages_of_commands),
        trial("bash, zsh and fish complete the commands, options and containers that there are", completions),
        trial("every trial that SECURITY names exists", security_table),
        trial("every row of the table of differences is in use", tables_are_in_use),
        trial("the lock file of the fuzz targets knows every dependency of the crates", fuzz_lock),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
