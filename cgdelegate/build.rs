//! Tells the linker where the program begins: `handover_start` of the library `helper`, which sees which of descriptors 0, 1
//! and 2 are closed before the C library opens them.

#![allow(clippy::disallowed_methods)] // This program runs at build time.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,-e,handover_start");
    }
}
