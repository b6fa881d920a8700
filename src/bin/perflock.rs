//! `perflock CMD`: run a job with the machine to itself.
#![no_main]

/// C's entry point: see [`perflock::supervisor::inherit`] for why not Rust's.
// SAFETY: no other `main` is linked in, and the signature is C's.
#[unsafe(no_mangle)]
extern "C" fn main(argc: i32, argv: *const *const std::ffi::c_char) -> i32 {
    // SAFETY: the C runtime calls this once, with its arguments, before anything else of the program has run.
    unsafe { perflock::run::main(perflock::job::Mode::Exclusive, argc, argv) }
}
