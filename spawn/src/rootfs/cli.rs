//! The command line of `rootfs`.

#![forbid(unsafe_code)]

use super::container::{Container, User};
use super::digest::Digest;
use super::error::{Error, Result, USAGE};
use super::image::Selection;
use super::map::Map;
use super::{adapt, check, export, import, manage, shift};
use clap::{Args, Parser, Subcommand};
use helper::report::{Failure, Printable, Program, print};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The program's name and its status after a panic.
pub static ROOTFS: Program = Program { name: c"rootfs", panic_status: 70 };

/// Makes containers of images, and keeps them. No privilege: it works in a user namespace of your subordinate ids.
#[derive(Debug, Parser)]
#[command(name = "rootfs", version = concat!("(userns-helpers) ", env!("CARGO_PKG_VERSION")), max_term_width = 100)]
#[command(after_help = "\
A CONTAINER is a name (in $XDG_DATA_HOME/spawn, usually ~/.local/share/spawn) or a path with a slash.

Examples:
  rootfs import centos6.tar.xz centos6
  curl -L https://example.org/rootfs.tar.gz | rootfs import - build1 --digest sha256:...
  podman save --format oci-archive alpine | rootfs import - alpine
  rootfs check centos6 && rootfs adapt centos6 && spawn run centos6
  rootfs export centos6 | zstd > centos6.tar.zst

Exit status: 0 done, 64 usage, 65 bad image or tree, 69 something is missing here, 71 a system call failed,
75 in use, 77 not permitted. Manual: rootfs(1).")]
struct Cli {
    /// Work for this user (root only)
    #[arg(long, global = true, value_name = "NAME")]
    user: Option<String>,
    /// No progress bar, no summary on standard error
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a container of an image, an archive or a tree
    Import(ImportArgs),
    /// Write a container as a tar or OCI layout, with the ids it has inside
    Export {
        /// Container
        container: String,
        /// File or directory to write; - for standard output
        #[arg(default_value = "-")]
        output: PathBuf,
        /// tar, or oci: a directory in OCI's image layout
        #[arg(long, value_parser = ["tar", "oci"], default_value = "tar")]
        format: String,
        /// none, gzip or zstd (an OCI layout: gzip unless told)
        #[arg(long, value_parser = ["none", "gzip", "zstd"])]
        compress: Option<String>,
    },
    /// Change the owners of a tree to the ids of your map; an interrupted shift goes on where it was
    Shift {
        /// Container or rootfs
        container: String,
        /// The map that the tree has now (u|g|b:INSIDE:OUTSIDE:COUNT, self; default: told by its owner)
        #[arg(long, value_name = "MAP")]
        from: Vec<String>,
        /// The map that it shall have (identity: the host's own ids; default: the container's)
        #[arg(long, value_name = "MAP")]
        to: Vec<String>,
        /// Count, change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Change the configuration files that CentOS and its kin need changed in a container, and show what
    Adapt {
        /// Container
        container: String,
        /// Show, change nothing
        #[arg(long)]
        dry_run: bool,
        /// Bring back what was there before
        #[arg(long)]
        undo: bool,
        /// Also write ifcfg-eth0 with DHCP (CentOS 6)
        #[arg(long, conflicts_with = "undo")]
        dhcp: bool,
    },
    /// Look for everything that would stop a start: of this host and, when one is named, of a container
    Check(CheckArgs),
    /// List the containers
    Ls {
        /// One JSON list
        #[arg(long)]
        json: bool,
    },
    /// Remove containers with all their files
    Rm {
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Remove what interrupted imports and removals have left
    Prune,
}

/// The words of `rootfs check` and `spawn check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Container or rootfs
    container: Option<String>,
    /// One JSON list
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// Archive, image, directory, or - for standard input
    source: PathBuf,
    /// Name or path of the container to make
    container: String,
    /// Image of several: its name or tag
    #[arg(long = "ref", value_name = "NAME")]
    reference: Option<String>,
    /// OS/ARCHITECTURE[/VARIANT] instead of this host's
    #[arg(long)]
    platform: Option<String>,
    /// Refuse a source with another digest
    #[arg(long, value_name = "sha256:HEX")]
    digest: Option<String>,
    /// SHA256SUMS file that lists the source (one beside it is taken by itself)
    #[arg(long, value_name = "FILE")]
    sums: Option<PathBuf>,
    /// LXC's metadata archive that belongs to the source
    #[arg(long, value_name = "FILE")]
    meta: Option<PathBuf>,
    /// auto, self, or u|g|b:INSIDE:OUTSIDE:COUNT (repeatable): the container's id map
    #[arg(long)]
    map: Vec<String>,
    /// Keep POSIX ACLs
    #[arg(long)]
    acls: bool,
    /// Refuse more content than this
    #[arg(long, value_name = "BYTES")]
    max_size: Option<u64>,
    /// Take the place of a container that exists
    #[arg(long)]
    replace: bool,
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = helper::start::sys::words().to_vec();
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let status = if error.use_stderr() { USAGE } else { 0 };
            let word = helper::start::sys::words().get(1).and_then(|word| word.to_str());
            match word.and_then(|word| Some((word, elsewhere(word)?))) {
                Some((word, there)) if error.kind() == clap::error::ErrorKind::InvalidSubcommand => {
                    ROOTFS.say(&format!("there is no command {word}: {there}"));
                }
                _ => drop(error.print()),
            }
            return ExitCode::from(status);
        }
    };
    ROOTFS.finish(run(cli).map_err(Failure::from))
}

/// What other programs call something that has another name here.
fn elsewhere(command: &str) -> Option<&'static str> {
    Some(match command {
        "create" | "load" | "unpack" | "extract" => "`rootfs import IMAGE NAME` makes a container of an image",
        "pull" | "copy" => "`skopeo copy docker://IMAGE oci-archive:FILE`, then `rootfs import FILE NAME`",
        "save" | "pack" | "tar" => "`rootfs export NAME FILE`",
        "remove" | "delete" | "destroy" => "`rootfs rm NAME`",
        "list" => "`rootfs ls`",
        "chown" => "`rootfs shift NAME`",
        "run" | "start" | "exec" | "stop" => "`spawn --help` has it",
        _ => return None,
    })
}

fn say(quiet: bool, text: &str) {
    if !quiet {
        ROOTFS.say(text);
    }
}

fn out(text: &str) -> Result<()> {
    print(text).map_err(|failure| Error::new(super::error::SYSTEM, failure.text))
}

fn json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::new(70, error.to_string()))?;
    out(&format!("{text}\n"))
}

/// `--map` words as a map; `None`: every subordinate id.
fn map_of(words: &[String], user: &User) -> Result<Option<Map>> {
    match words {
        [] => Ok(None),
        [one] if one == "auto" => Ok(None),
        [one] if one == "self" => Ok(Some(Map::single(user.owner.uid(), user.gid))),
        several => {
            let mut map = Map::default();
            for word in several {
                map.add(word)?;
            }
            map.root()?;
            Ok(Some(map))
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let user = User::of(cli.user.as_deref())?;
    let quiet = cli.quiet;
    match cli.command {
        Command::Import(args) => {
            let mut selection = Selection::host(args.reference);
            if let Some(platform) = args.platform {
                selection = selection.with_platform(&platform)?;
            }
            let request = import::Request {
                source: args.source,
                metadata: args.meta,
                map: map_of(&args.map, &user)?,
                digest: args.digest.as_deref().map(Digest::parse_option).transpose()?,
                sums: args.sums,
                selection,
                acls: args.acls,
                most_bytes: args.max_size,
                replace: args.replace,
                quiet,
            };
            let (container, imported) = import::import(&user, &args.container, &request)?;
            for note in &imported.notes {
                say(quiet, note);
            }
            if let Some(message) = &imported.message {
                for line in message.lines() {
                    say(quiet, line);
                }
            }
            say(quiet, &import::told(&container, &imported));
            Ok(())
        }
        Command::Export { container, output, format, compress } => {
            let container = Container::find(&user, &container)?;
            let format = if format == "oci" { export::Format::Oci } else { export::Format::Tar };
            let pressed = match (compress.as_deref(), format) {
                (Some("zstd"), _) => export::Pressed::Zstd,
                (Some("gzip"), _) | (None, export::Format::Oci) => export::Pressed::Gzip,
                _ => export::Pressed::None,
            };
            let packed = export::export(&user, &container, &output, format, pressed, quiet)?;
            if packed.left_out > 0 {
                say(quiet, &format!("{} device nodes and sockets left out", packed.left_out));
            }
            Ok(())
        }
        Command::Shift { container, from, to, dry_run } => {
            let container = Container::find(&user, &container)?;
            let to = match to.as_slice() {
                [one] if one == "identity" => Some(Map::run(0, 0, 65536)),
                words => map_of(words, &user)?,
            };
            let done = shift::shift(&user, &container, map_of(&from, &user)?, to, dry_run, quiet)?;
            let verb = if dry_run { "would be shifted" } else { "shifted" };
            say(quiet, &format!("{} files {verb}, {} were right already", done.changed, done.already));
            Ok(())
        }
        Command::Adapt { container, dry_run, undo: true, .. } => {
            let container = Container::find(&user, &container)?;
            let (undone, refused) = adapt::undo(&user, &container, dry_run)?;
            for path in &undone {
                out(&format!("undone {}\n", Printable(path)))?;
            }
            match refused.as_slice() {
                [] => Ok(()),
                several => {
                    several.iter().for_each(|text| ROOTFS.say(text));
                    Err(Error::data(format!("{} changes were not undone", several.len())))
                }
            }
        }
        Command::Adapt { container, dry_run, dhcp, .. } => {
            let container = Container::find(&user, &container)?;
            let adapted = adapt::adapt(&user, &container, dhcp, dry_run)?;
            for change in &adapted.changes {
                out(&adapt::diff(change))?;
            }
            for note in &adapted.notes {
                say(quiet, note);
            }
            if adapted.changes.is_empty() {
                say(quiet, "nothing to change");
            }
            Ok(())
        }
        Command::Check(words) => {
            if check_of(&user, &words)? {
                return Err(Error::new(CHECK_FAILED, ""));
            }
            Ok(())
        }
        Command::Ls { json: as_json } => {
            let all = manage::list(&user)?;
            if as_json {
                return json(&all);
            }
            let mut rows = vec![["NAME", "MAP", "OWNED", "ADAPTED", "INIT", "SYSTEM"].map(str::to_owned)];
            for container in &all {
                let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
                let guest = container.guest.as_ref();
                rows.push([
                    Printable(&container.name).to_string(),
                    if container.map.is_empty() { "-".to_owned() } else { container.map.clone() },
                    word(container.owned),
                    word(container.adapted),
                    guest.map_or_else(|| "-".to_owned(), |guest| guest.init.name()),
                    guest.map_or_else(|| "-".to_owned(), |guest| Printable(&guest.name).to_string()),
                ]);
            }
            out(&table(&rows))
        }
        Command::Rm { containers } => {
            for word in containers {
                manage::remove(&user, &Container::find(&user, &word)?)?;
            }
            Ok(())
        }
        Command::Prune => {
            let gone = manage::prune(&user)?;
            gone.iter().try_for_each(|name| out(&format!("removed {}\n", Printable(name))))
        }
    }
}

/// Exit status when something was found that stops a start (EX_CONFIG).
pub const CHECK_FAILED: u8 = 78;

/// Prints the findings about this host and, if the words name one, a container. Whether one of them stops a start.
fn check_of(user: &User, words: &CheckArgs) -> Result<bool> {
    let container = words.container.as_deref().map(|word| Container::find(user, word)).transpose()?;
    let found = check::all(user, container.as_ref())?;
    if words.json {
        json(&found)?;
    } else {
        found.iter().try_for_each(|finding| out(&line_of(finding)))?;
    }
    Ok(found.iter().any(|finding| finding.severity == check::Severity::Error))
}

/// `spawn check`: the same for the caller. Gives the exit status.
///
/// # Errors
/// As [`check::all`], or there is no such container.
pub fn spawn_check(words: &CheckArgs) -> Result<u8> {
    // `host` is the host's own tree: there is no container to look at.
    let host = words.container.as_deref() == Some("host");
    let words = CheckArgs { container: words.container.clone().filter(|_| !host), json: words.json };
    Ok(if check_of(&User::of(None)?, &words)? { CHECK_FAILED } else { 0 })
}

/// A finding in one line.
fn line_of(finding: &check::Finding) -> String {
    let severity = match finding.severity {
        check::Severity::Error => "error",
        check::Severity::Warning => "warning",
        check::Severity::Note => "note",
    };
    let text = format!("{severity}: {}: {}; cure: {}", finding.name, finding.cause, finding.cure);
    format!("{}\n", Printable(&text))
}

/// Columns as wide as their widest cell, two blanks between them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
