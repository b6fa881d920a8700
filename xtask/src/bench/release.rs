//! A job that ends and leaves thousands of sleeping processes: from its end to the lock being free, against the least that it
//! takes the kernel to kill them. Beside it, what that takes where there is no `cgroup.kill`.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use super::area::Inside;
use super::stats::{Line, Sample};
use super::tools::{MANY, Running, now_nsec, wait_until_few_processes};
use super::{freezer, machine};
use crate::Failure;

/// How many processes a job leaves, where the command line does not say.
const SIZES: [usize; 2] = [MANY, 20_000];

/// Process numbers that must be free besides those of the job.
const SPARE: usize = 4000;

/// What is there for comparison takes part in one round of so many.
const BESIDE: usize = 4;

/// Measures `pairs` rounds of all ways to end a job, with so many processes.
///
/// # Errors
/// A program cannot be run, or the machine does not take so many processes.
pub(super) fn measure(
    place: &Inside,
    pairs: usize,
    processes: Option<usize>,
    print: &mut dyn FnMut(Vec<Line>),
) -> Result<(), Failure> {
    let sizes = processes.map_or(SIZES.to_vec(), |count| vec![count]);
    sizes.into_iter().try_for_each(|count| measure_size(place, pairs, count).map(&mut *print))
}

/// Measures one size.
fn measure_size(place: &Inside, pairs: usize, count: usize) -> Result<Vec<Line>, Failure> {
    machine::check_room(count + SPARE)?;
    let mut ways = vec![Way::Perflock, Way::Fallback];
    ways.extend(place.v1_group("freezer").map(Way::Freezer));
    let mut measured = vec![(Sample::default(), Sample::default()); ways.len()];
    for round in 0..pairs {
        let some = if round % BESIDE == 0 { ways.len() } else { 1 };
        let mut floor = 0.0;
        let mut own = vec![0.0; some];
        // The floor is one more; each goes first equally often.
        for turn in 0..=some {
            wait_until_few_processes()?;
            match (round + turn) % (some + 1) {
                0 => floor = floor_msec(place, count)?,
                number => own[number - 1] = ways[number - 1].end_msec(place, count)?,
            }
        }
        for (own, (samples, floors)) in own.into_iter().zip(&mut measured) {
            samples.push(own);
            floors.push(floor);
        }
    }
    wait_until_few_processes()?;
    let lines = ways.iter().zip(&measured).map(|(way, (own, floor))| {
        let ratio = own.pairs(floor, |own, other| own / other);
        Line {
            what: format!("{count} sleeping processes left: {way}"),
            own: own.show_msec(),
            other: format!("`cgroup.kill` to `populated 0`: {}", floor.show_msec()),
            difference: format!("× {}", ratio.show(2)),
            target: matches!(way, Way::Perflock).then_some(("≤ 1.3 ×", ratio.median() <= 1.3)),
        }
    });
    Ok(lines.collect())
}

/// A way to end what a job left.
#[derive(Debug)]
enum Way {
    /// A job group of cgroup v2.
    Perflock,
    /// perflock without a group.
    Fallback,
    /// A group in the v1 hierarchy of the freezer, below this one.
    Freezer(PathBuf),
}

impl Way {
    /// Ends so many processes in this way.
    fn end_msec(&self, place: &Inside, count: usize) -> Result<f64, Failure> {
        match self {
            Self::Perflock => perflock_msec(place, count, &[]),
            Self::Fallback => perflock_msec(place, count, &["--cgroup", "none"]),
            Self::Freezer(parent) => freezer::end_msec(place, parent, count),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Perflock => "job's end to lock free",
            Self::Fallback => "the same with `--cgroup none`",
            Self::Freezer(_) => "no perflock; v1 freezer: freeze, KILL each, thaw, until the group is empty",
        })
    }
}

/// From the end of the job's main process to the lock being obtained by somebody who waited for it.
fn perflock_msec(place: &Inside, count: usize, options: &[&str]) -> Result<f64, Failure> {
    let (ready, stamp) = files(place)?;
    let mut command = place.perflock()?;
    command.args(options).arg(place.binary("spawner")).arg(count.to_string()).arg(&ready).arg(&stamp);
    let mut running = Running::start(&mut command)?;
    running.wait_for_file(place, &ready)?;
    let free_nsec = wait_for_lock(place)?;
    running.wait()?;
    let stamp = std::fs::read_to_string(&stamp).ok().and_then(|text| text.parse::<i64>().ok());
    let ended_nsec = stamp.ok_or_else(|| place.failed("the job did not say when it ended"))?;
    Ok((free_nsec - ended_nsec) as f64 / 1e6)
}

/// Waits for the lock as flock(1) does. When it was obtained; it is given back at once.
///
/// # Errors
/// The kernel refused.
pub(super) fn wait_for_lock(place: &Inside) -> Result<i64, Failure> {
    let lock = File::open(place.lock()).map_err(|error| format!("cannot open the lock: {error}"))?;
    // SAFETY: flock(2) on an open descriptor touches no memory.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } == -1 {
        return Err(format!("cannot wait for the lock: {}", std::io::Error::last_os_error()));
    }
    Ok(now_nsec())
}

/// The same processes in a group that is just killed.
fn floor_msec(place: &Inside, count: usize) -> Result<f64, Failure> {
    let (ready, stamp) = files(place)?;
    let report = place.file("report");
    let mut command = place.program("floor")?;
    command.arg(place.group()).arg(&report);
    command.arg(place.binary("spawner")).arg(count.to_string()).arg(&ready).arg(&stamp);
    let status = Running::start(&mut command)?.wait()?;
    if !status.success() {
        return Err(place.failed(&format!("the floor failed ({status})")));
    }
    let bytes = std::fs::read(&report).ok().and_then(|bytes| bytes.try_into().ok());
    Ok(i64::from_ne_bytes(bytes.ok_or("the floor reported nothing")?) as f64 / 1e6)
}

/// The files that tell that the processes exist, and when the main process ended. Neither exists yet.
///
/// # Errors
/// One that an earlier run left cannot be removed.
pub(super) fn files(place: &Inside) -> Result<(PathBuf, PathBuf), Failure> {
    let files = (place.file("ready"), place.file("stamp"));
    for file in [&files.0, &files.1] {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", file.display()));
            }
            _ => {}
        }
    }
    Ok(files)
}
