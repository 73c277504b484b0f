//! `spawn`: see spawn(1).

fn main() -> std::process::ExitCode {
    spawn::main()
}
