//! A job that counts what it gets done, and where, for `cargo xtask bench pins`.
//!
//! `spin FILE FROM TO [GROUP]` enters the v1 group GROUP, sleeps until FROM, and works until TO: times of `CLOCK_MONOTONIC` in
//! nanoseconds, so that two of them work at the same time. Then it writes to FILE: how many blocks of a fixed loop it did, the
//! CPU time that it used for them (`CLOCK_PROCESS_CPUTIME_ID`, in nanoseconds), how many of them ended on a processor of
//! PERFLOCK_CPUS, and PERFLOCK_CPUS or `-`. It refuses if it was born so late that half of the time was over.
// A helper of the bench: its messages go to the bench's log.
#![allow(clippy::print_stderr)]

use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;

use perflock::pin::CpuList;

/// Steps of a block, some tens of microseconds: of each one step needs the result of the one before.
const STEPS: u64 = 20_000;

fn main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("spin: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn work() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (file, from, to, group) = match &arguments[..] {
        [file, from, to] => (file, from, to, None),
        [file, from, to, group] => (file, from, to, Some(group)),
        _ => return Err("usage: spin FILE FROM TO [GROUP]".to_owned()),
    };
    let time = |text: &String| text.parse::<i64>().map_err(|_| format!("{text} is not a time"));
    let (from, to) = (time(from)?, time(to)?);
    let cpus = std::env::var("PERFLOCK_CPUS").ok();
    let own: CpuList = cpus.as_deref().unwrap_or("").parse().map_err(|error| format!("PERFLOCK_CPUS: {error}"))?;
    if let Some(group) = group {
        let tasks = Path::new(group).join("tasks");
        std::fs::write(&tasks, "0").map_err(|error| format!("{}: {error}", tasks.display()))?;
    }
    sleep_until(from);
    if now_nsec(libc::CLOCK_MONOTONIC) > i64::midpoint(from, to) {
        return Err("was started too late".to_owned());
    }
    let (mut blocks, mut at_home, mut value) = (0_u64, 0_u64, 1_u64);
    let start_nsec = now_nsec(libc::CLOCK_PROCESS_CPUTIME_ID);
    while now_nsec(libc::CLOCK_MONOTONIC) < to {
        for _ in 0..STEPS {
            value = black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        blocks += 1;
        // SAFETY: asks for a number.
        let cpu = unsafe { libc::sched_getcpu() };
        at_home += u64::from(u32::try_from(cpu).is_ok_and(|cpu| own.contains(cpu)));
    }
    let used_nsec = now_nsec(libc::CLOCK_PROCESS_CPUTIME_ID) - start_nsec;
    let line = format!("{blocks} {used_nsec} {at_home} {}\n", cpus.as_deref().unwrap_or("-"));
    std::fs::write(file, line).map_err(|error| format!("{file}: {error}"))
}

/// Sleeps until a time of `CLOCK_MONOTONIC`.
fn sleep_until(nsec: i64) {
    let at = libc::timespec { tv_sec: nsec / 1_000_000_000, tv_nsec: nsec % 1_000_000_000 };
    // SAFETY: a valid time; what is left of an interrupted sleep is not asked for, since the time is absolute.
    let sleep = || unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const at, std::ptr::null_mut())
    };
    while sleep() == libc::EINTR {}
}

/// The time of a clock.
fn now_nsec(clock: libc::clockid_t) -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the time.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
