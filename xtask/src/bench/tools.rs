//! What the measurements share.

use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::area::Inside;
use crate::Failure;

/// How many processes a large job has.
pub(super) const MANY: usize = 5000;

/// How long anything may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Milliseconds from the start of a program to its end, which must be a good one.
pub(crate) fn time_msec(place: &Inside, command: &mut Command) -> Result<f64, Failure> {
    let start = Instant::now();
    let status = command.status();
    let took = start.elapsed();
    match status {
        Ok(status) if status.success() => Ok(took.as_secs_f64() * 1000.0),
        Ok(status) => Err(place.failed(&format!("{command:?} failed ({status})"))),
        Err(error) => Err(format!("cannot start {command:?}: {error}")),
    }
}

/// A child that is killed when dropped.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Starts a program.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(command: &mut Command) -> Result<Self, Failure> {
        command.spawn().map(Self).map_err(|error| format!("cannot start {command:?}: {error}"))
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The kernel refused; or it takes too long.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus, Failure> {
        let mut ended = Ok(None);
        wait_until("a program under test has ended", || {
            ended = self.0.try_wait();
            !matches!(ended, Ok(None))
        })?;
        match ended {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("a program under test did not end".to_owned()),
            Err(error) => Err(format!("cannot wait for a program under test: {error}")),
        }
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// As [`Running::wait`].
    pub(super) fn terminate(mut self) -> Result<(), Failure> {
        self.ask_to_end();
        self.wait().map(drop)
    }

    /// Asks it to end.
    pub(super) fn ask_to_end(&self) {
        // SAFETY: a child that was not waited for, so that the number is still its own.
        unsafe { libc::kill(self.0.id().cast_signed(), libc::SIGTERM) };
    }

    /// Whether it ends within this time.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn ended_within(&mut self, time: Duration) -> Result<bool, Failure> {
        let deadline = Instant::now() + time;
        loop {
            match self.0.try_wait() {
                Ok(Some(_)) => return Ok(true),
                Ok(None) if Instant::now() > deadline => return Ok(false),
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(format!("cannot wait for a program under test: {error}")),
            }
        }
    }

    /// Waits for a file that it makes.
    ///
    /// # Errors
    /// It ended without making it, or takes too long.
    pub(super) fn wait_for_file(&mut self, place: &Inside, path: &Path) -> Result<(), Failure> {
        let mut ended = false;
        wait_until("a large job has started", || {
            ended = matches!(self.0.try_wait(), Ok(Some(_)));
            ended || path.exists()
        })?;
        if ended && !path.exists() { Err(place.failed("a job ended too early")) } else { Ok(()) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both refuse if it was waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a condition, looking now and then.
///
/// # Errors
/// It takes too long.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return Err(format!("waited in vain until {what}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Waits until the dead of a large job were reaped by whoever inherited them: until there are about as many processes
/// on the machine as when this was called first.
///
/// # Errors
/// It takes too long.
pub(super) fn wait_until_few_processes() -> Result<(), Failure> {
    static AT_FIRST: OnceLock<usize> = OnceLock::new();
    let count = || {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit)).count()
    };
    let at_first = *AT_FIRST.get_or_init(count);
    wait_until("the processes of the last job are gone", || count() < at_first + MANY / 5)
}

/// `CLOCK_MONOTONIC`, as the spawner writes it.
pub(super) fn now_nsec() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
