//! Links the unwinder statically, so that the dynamic loader has one library less to load at every start: about 0.1 ms of
//! `perflock true`, a good part of it libgcc_s's constructor, whose cpuid instructions are slow in virtual machines.
//!
//! The standard library asks for `-lgcc_s` whatever the panic strategy. A linker script of that name, found first, says
//! that the static archive which the same compiler ships serves as well.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() != Ok("gnu") {
        return;
    }
    let directory = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let script = std::path::Path::new(&directory).join("libgcc_s.so");
    std::fs::write(&script, "INPUT(libgcc_eh.a)\n").expect("OUT_DIR is writable");
    println!("cargo::rustc-link-arg-bins=-L{directory}");
}
