//! An exclusive job that comes while shared ones overlap without end: it is served when those before it have ended. With
//! flock(1) it is not served at all.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::area::Inside;
use super::super::stats::{Line, Sample};
use super::super::tools::{Running, now_nsec};
use super::{Held, with_lock};
use crate::Failure;

/// How long a job of the stream takes, in seconds, as sleep(1) understands it.
const JOB: &str = "0.2";

/// How often a new one comes.
const EVERY: Duration = Duration::from_millis(50);

/// How long the stream flows before the exclusive job comes, and how long it gets.
const BEFORE: Duration = Duration::from_millis(500);
/// See [`BEFORE`].
const PATIENCE: Duration = Duration::from_secs(5);

/// How long perflock may wait.
const MOST_MSEC: f64 = 400.0;

/// Measures perflock in `rounds` streams, and flock(1) in one.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, rounds: usize) -> Result<Vec<Line>, Failure> {
    let mut own = Sample::default();
    for _ in 0..rounds {
        let waited_msec = served_msec(place, &|lock, mode| {
            let program = if mode == Mode::Shared { "pls" } else { "perflock" };
            with_lock(place, program, &lock.path)
        })?;
        // One that was not served waited at least for that long.
        own.push(waited_msec.unwrap_or(PATIENCE.as_secs_f64() * 1000.0));
    }
    let flock = served_msec(place, &|lock, mode| {
        let mut command = place.silent("flock")?;
        command.arg(if mode == Mode::Shared { "-s" } else { "-x" }).arg(&lock.path);
        Ok(command)
    })?;
    let other = match flock {
        Some(waited_msec) => format!("`flock -x` among `flock -s`: {waited_msec:.0} ms"),
        None => format!("`flock -x` among `flock -s`: starved, not served within {} s", PATIENCE.as_secs()),
    };
    Ok(vec![Line {
        what: format!(
            "exclusive job among endless `pls sleep {JOB}`, one each {} ms: start to exec",
            EVERY.as_millis()
        ),
        own: own.show_msec(),
        other,
        difference: String::new(),
        target: Some(("≤ 0.4 s", own.median() <= MOST_MSEC)),
    }])
}

/// What a job asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

/// Makes a program that takes the lock; the command is still to be added.
type WithLock<'a> = dyn Fn(&Held, Mode) -> Result<Command, Failure> + Sync + 'a;

/// How long an exclusive job waited in a stream of shared ones; `None` if it was not served.
fn served_msec(place: &Inside, with_lock: &WithLock<'_>) -> Result<Option<f64>, Failure> {
    let lock = Held::new(place, "stream")?;
    lock.let_go()?;
    let slots = place.file("slots");
    std::fs::write(&slots, [0; 16]).map_err(|error| format!("cannot write the slots: {error}"))?;
    let over = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        let stream = scope.spawn(|| flow(&|| with_lock(&lock, Mode::Shared), &over));
        thread::sleep(BEFORE);
        let run = || {
            let mut command = with_lock(&lock, Mode::Exclusive)?;
            command.arg(place.binary("stamp")).arg(&slots).arg("0");
            let start_nsec = now_nsec();
            let mut exclusive = Running::start(&mut command)?;
            let ended = exclusive.ended_within(PATIENCE)?;
            over.store(true, Ordering::Relaxed);
            if !ended {
                exclusive.terminate()?;
                return Ok(None);
            }
            let bytes = std::fs::read(&slots).unwrap_or_default();
            let exec_nsec = bytes.first_chunk().map_or(0, |number| i64::from_ne_bytes(*number));
            if exec_nsec == 0 {
                return Err(place.failed("an exclusive job did not say when it started"));
            }
            Ok(Some((exec_nsec - start_nsec) as f64 / 1e6))
        };
        let result = run();
        over.store(true, Ordering::Relaxed);
        stream.join().map_err(|_| "the stream's thread failed".to_owned())??;
        result
    })?;
    lock.end()?;
    Ok(result)
}

/// Starts one job after the other until told to stop, and waits for their ends.
fn flow(shared: &dyn Fn() -> Result<Command, Failure>, over: &AtomicBool) -> Result<(), Failure> {
    let mut jobs = Vec::new();
    let mut next = Instant::now();
    while !over.load(Ordering::Relaxed) {
        jobs.push(Running::start(shared()?.args(["sleep", JOB]))?);
        // At its hour, however long the start took.
        next += EVERY;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    jobs.into_iter().try_for_each(|mut job| job.wait().map(drop))
}
