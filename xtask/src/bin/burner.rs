//! A job that knows what CPU time it used, for `cargo xtask bench usage`.
//!
//! `burner FILE REAPED UNREAPED` starts a worker and waits for it, as a shell does whose `time` is asked. The worker starts
//! REAPED children that it waits for, and UNREAPED that it does not: every other one of those has ended before the worker
//! does, and is still a zombie then; the rest sleeps until somebody ends it. Each child burns between 5 and 30 ms. Each
//! process stores what it used (`CLOCK_PROCESS_CPUTIME_ID`, in nanoseconds) in its slot of FILE as the last thing that it
//! does. The slots are native numbers: what getrusage(`RUSAGE_CHILDREN`) says to the first process, the first process, the
//! worker, and the children.
// A helper of the bench: its messages go to the bench's log.
#![allow(clippy::print_stderr)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The slot of what the first process waited for.
const WAITED_FOR: usize = 0;

/// The slot of the first process.
const FIRST: usize = 1;

/// The slot of the worker.
const WORKER: usize = 2;

/// The slot of the first child.
const CHILDREN: usize = 3;

/// The least that a child burns.
const LEAST_NSEC: i64 = 5_000_000;

/// How much more it is at most.
const RANGE_NSEC: i64 = 25_000_000;

/// How often the worker looks whether its last children are done.
const LOOK: Duration = Duration::from_millis(5);

/// What a child does when it has burnt its share.
#[derive(Clone, Copy)]
enum Then {
    /// It ends.
    End,
    /// It sleeps until a signal ends it.
    Stay,
}

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("burner: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say; never returns from a good end.
fn work() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &str| text.parse::<usize>().map_err(|_| format!("{text} is not a number"));
    let [file, reaped, unreaped] = &arguments[..] else {
        return Err("usage: burner FILE REAPED UNREAPED".to_owned());
    };
    let (reaped, unreaped) = (number(reaped)?, number(unreaped)?);
    let slots = map(Path::new(file), CHILDREN + reaped + unreaped).map_err(|error| format!("{file}: {error}"))?;
    let worker = fork().map_err(|error| format!("cannot fork: {error}"))?;
    if worker == 0 {
        let (to_reap, to_leave) = slots[CHILDREN..].split_at(reaped);
        reap_all(to_reap).and_then(|()| leave_all(to_leave)).map_err(|error| format!("the worker: {error}"))?;
        end(&slots[WORKER]);
    }
    wait(worker).map_err(|error| format!("cannot wait for the worker: {error}"))?;
    slots[WAITED_FOR].store(waited_for_nsec(), Ordering::Relaxed);
    end(&slots[FIRST]);
}

/// Starts a child for each slot, and waits for them.
fn reap_all(slots: &[AtomicI64]) -> io::Result<()> {
    let mut pids = Vec::with_capacity(slots.len());
    for (index, slot) in slots.iter().enumerate() {
        pids.push(start(slot, share_nsec(index), Then::End)?);
    }
    pids.into_iter().try_for_each(wait)
}

/// Starts a child for each slot, and waits for none of them: half are zombies afterwards, half sleep.
fn leave_all(slots: &[AtomicI64]) -> io::Result<()> {
    let mut zombies = Vec::with_capacity(slots.len());
    for (index, slot) in slots.iter().enumerate() {
        let then = if index % 2 == 0 { Then::End } else { Then::Stay };
        let pid = start(slot, share_nsec(index), then)?;
        if index % 2 == 0 {
            zombies.push(pid);
        }
    }
    for pid in zombies {
        // SAFETY: an all-zero siginfo is valid, and it is only written to.
        let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: a valid place for the answer; the child stays a zombie.
        let result = unsafe {
            libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut information, libc::WEXITED | libc::WNOWAIT)
        };
        check(result)?;
    }
    while slots.iter().any(|slot| slot.load(Ordering::Relaxed) == 0) {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// What the child with this number burns: different from its neighbours.
fn share_nsec(index: usize) -> i64 {
    LEAST_NSEC + RANGE_NSEC * (index as i64 * 37 % 101) / 100
}

/// Forks a child that burns its share, stores what it used, and does what it then does.
fn start(slot: &AtomicI64, nsec: i64, then: Then) -> io::Result<libc::pid_t> {
    let pid = fork()?;
    if pid != 0 {
        return Ok(pid);
    }
    while cpu_nsec() < nsec {
        for _ in 0..1000 {
            std::hint::spin_loop();
        }
    }
    match then {
        Then::End => end(slot),
        Then::Stay => {
            slot.store(cpu_nsec(), Ordering::Relaxed);
            loop {
                // SAFETY: sleeps.
                unsafe { libc::pause() };
            }
        }
    }
}

/// Stores what this process used, and ends it.
fn end(slot: &AtomicI64) -> ! {
    slot.store(cpu_nsec(), Ordering::Relaxed);
    // SAFETY: ends the process, at once.
    unsafe { libc::_exit(0) }
}

/// Makes a file of so many slots, each zero, and maps it for ever.
fn map(path: &Path, slots: usize) -> io::Result<&'static [AtomicI64]> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let bytes = slots * size_of::<AtomicI64>();
    file.set_len(bytes as u64)?;
    let (protection, file) = (libc::PROT_READ | libc::PROT_WRITE, std::os::fd::AsRawFd::as_raw_fd(&file));
    // SAFETY: a new mapping, anywhere.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is that long, aligned to a page, zero, and never unmapped; who else writes to it is a child of
    // ours, and does so through atomics.
    Ok(unsafe { slice::from_raw_parts(start.cast::<AtomicI64>(), slots) })
}

/// fork(2).
fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: this process has one thread.
    check(unsafe { libc::fork() })
}

/// Waits for the good end of a child.
fn wait(pid: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: a child of ours, and a valid place for its status.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
    if status == 0 { Ok(()) } else { Err(io::Error::other(format!("a child ended with status {status:#x}"))) }
}

/// What this process has used.
fn cpu_nsec() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// What the children of this process used that were waited for, and theirs.
fn waited_for_nsec() -> i64 {
    // SAFETY: an all-zero rusage is valid, and it is only written to.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place for the answer.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    let nsec = |time: libc::timeval| time.tv_sec * 1_000_000_000 + time.tv_usec * 1000;
    nsec(usage.ru_utime) + nsec(usage.ru_stime)
}

/// The result of a call.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
