//! A job that leaves many processes, for `cargo xtask bench`.
//!
//! `spawner COUNT READY [STAMP]` forks COUNT children that sleep until a signal ends them, and creates the file READY.
//! Without STAMP it sleeps as well. With it, it waits until the machine is quiet again, writes the time
//! (`CLOCK_MONOTONIC`, in nanoseconds) to the file STAMP, and exits at once.
// A helper of the bench: its messages go to the bench's log.
#![allow(clippy::print_stderr)]

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

/// How long the machine gets to settle after so many forks.
const SETTLE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    match spawn() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("spawner: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn spawn() -> Result<(), String> {
    let mut arguments = std::env::args_os().skip(1);
    let count = arguments.next().and_then(|count| count.to_str()?.parse::<u32>().ok());
    let (Some(count), Some(ready)) = (count, arguments.next()) else {
        return Err("usage: spawner COUNT READY [STAMP]".to_owned());
    };
    for _ in 0..count {
        // SAFETY: this process has one thread, and the child only sleeps.
        match unsafe { libc::fork() } {
            -1 => return Err(format!("cannot fork: {}", std::io::Error::last_os_error())),
            0 => sleep_for_ever(),
            _ => {}
        }
    }
    fs::write(&ready, "").map_err(|error| format!("cannot write {}: {error}", ready.display()))?;
    let Some(stamp) = arguments.next() else { sleep_for_ever() };
    std::thread::sleep(SETTLE);
    let stamp_failed = |error| format!("cannot write {}: {error}", stamp.display());
    let file = fs::File::create(&stamp).map_err(stamp_failed)?;
    std::io::Write::write_all(&mut &file, now_nsec().to_string().as_bytes()).map_err(stamp_failed)
}

/// Sleeps until a signal ends the process.
fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: sleeps.
        unsafe { libc::pause() };
    }
}

/// `CLOCK_MONOTONIC`.
fn now_nsec() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
