//! What it takes to read what a job has used, for `cargo xtask bench usage`.
//!
//! `usagecost PARENT ROUNDS` makes a cgroup v2 group below PARENT, has /bin/true born in it, waits for its end, and reads
//! the group's usage through perflock's library. A round does this twice: once with what the default run of perflock
//! reads, once with what the full reports read. It prints a line for each: nanoseconds and known counters of the first,
//! and of the second. Only the first look at a group is timed, after an idle time: the second would find everything in
//! the caches.
// A helper of the bench: what it prints is read there.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::ptr;
use std::time::{Duration, Instant};

use perflock::cgroup::Usage;

/// `CLONE_INTO_CGROUP`, which libc has as a number that does not fit its type; Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Idle time before every start.
const IDLE: Duration = Duration::from_millis(5);

/// Pause between two looks at a group that is not empty yet.
const PAUSE: Duration = Duration::from_micros(50);

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("usagecost: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn measure() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [parent, rounds] = &arguments[..] else { return Err("usage: usagecost PARENT ROUNDS".to_owned()) };
    let rounds: usize = rounds.parse().map_err(|_| format!("{rounds} is not a number"))?;
    let group = Path::new(parent).join(format!("plbench-usage-{}", std::process::id()));
    let failed = |error: io::Error| format!("{}: {error}", group.display());
    for round in 0..rounds {
        let mut results = [(0, 0); 2];
        for turn in 0..2 {
            // Each goes first equally often.
            let index = (round + turn) % 2;
            let read = [Usage::read, Usage::read_all][index];
            results[index] = once(&group, read).map_err(failed)?;
        }
        let [(short_nsec, short), (full_nsec, full)] = results;
        println!("{short_nsec} {short} {full_nsec} {full}");
    }
    Ok(())
}

/// Makes the group, runs a job in it, and reads it: nanoseconds of the reading, and how many counters are known.
fn once(group: &Path, read: fn(&Path) -> Usage) -> io::Result<(u128, usize)> {
    std::thread::sleep(IDLE);
    fs::create_dir(group)?;
    run_in(group)?;
    let start = Instant::now();
    let usage = read(group);
    let took_nsec = start.elapsed().as_nanos();
    fs::remove_dir(group)?;
    let fields = serde_json::to_value(usage).map_err(io::Error::other)?;
    Ok((took_nsec, fields.as_object().map_or(0, |fields| fields.values().filter(|value| !value.is_null()).count())))
}

/// Runs /bin/true, born in the group, until the group is empty.
fn run_in(group: &Path) -> io::Result<()> {
    let (directory, events) = (File::open(group)?, File::open(group.join("cgroup.events"))?);
    let arguments = [c"/bin/true".as_ptr(), ptr::null()];
    // SAFETY: clone_args is plain integers; zero means "not used" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP | libc::CLONE_VFORK as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = directory.as_raw_fd() as u64;
    // SAFETY: a fork: this process has one thread, and the child only executes.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    let pid = check(pid)? as libc::pid_t;
    if pid == 0 {
        // SAFETY: two strings, and a list of them with a null pointer at its end.
        unsafe { libc::execv(arguments[0], arguments.as_ptr()) };
        // SAFETY: ends the process, at once.
        unsafe { libc::_exit(127) }
    }
    let mut status = 0;
    // SAFETY: a child of ours, and a valid place for its status.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
    if status != 0 {
        return Err(io::Error::other(format!("/bin/true ended with status {status:#x}")));
    }
    let mut text = [0; 128];
    while !events.read_at(&mut text, 0).map(|length| text[..length].starts_with(b"populated 0"))? {
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// The result of a call.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
