//! A fork bomb of a bounded size, for `cargo xtask bench bomb`.
//!
//! `bomb COUNT PAUSE_MSEC dies|ignores STAMP` writes the time (`CLOCK_MONOTONIC`, in nanoseconds) to the file STAMP, and forks.
//! So does every child, on and on: whenever one has died, another takes its place. No more than COUNT live at a time, as the
//! kernel counts the processes of one user (RLIMIT_NPROC); started by root, it is a user of its own before the first fork.
//! Whoever may not fork tries again after PAUSE_MSEC: 1000 is what a shell does, with 0 all of them want a processor all the
//! time. With `ignores` nobody dies of TERM.
// A helper of the bench: its messages go to the bench's log.
#![allow(clippy::print_stderr)]

use std::fs;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

/// A user that nobody is.
const USER: libc::uid_t = 64_123;

fn main() -> ExitCode {
    let Err(message) = explode();
    eprintln!("bomb: {message}");
    ExitCode::FAILURE
}

/// Does what the arguments say.
fn explode() -> Result<std::convert::Infallible, String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [count, pause_msec, term, stamp] = &arguments[..] else {
        return Err("usage: bomb COUNT PAUSE_MSEC dies|ignores STAMP".to_owned());
    };
    let number = |text: &String| text.parse().map_err(|_| format!("{text} is not a number"));
    let count = number(count)?;
    let pause = Duration::from_millis(number(pause_msec)?);
    fs::write(stamp, now_nsec().to_string()).map_err(|error| format!("cannot write {stamp}: {error}"))?;
    let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
    // SAFETY: a valid limit.
    check("limit the number of processes", unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) })?;
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        // Root is not limited.
        // SAFETY: this process has one thread.
        check("become another user", unsafe { libc::setuid(USER) })?;
    }
    // The dead are gone at once, and make room.
    // SAFETY: sets a signal to be ignored.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if term == "ignores" {
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    }
    loop {
        // SAFETY: this process has one thread, and does nothing but this.
        if unsafe { libc::fork() } == -1 && !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

/// The error of a call, if there was one.
fn check(what: &str, result: libc::c_int) -> Result<(), String> {
    if result == -1 { Err(format!("cannot {what}: {}", io::Error::last_os_error())) } else { Ok(()) }
}

/// `CLOCK_MONOTONIC`.
fn now_nsec() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
