//! A job that ends and leaves 5,000 sleeping processes: from its end to the lock being free, against the least that it
//! takes the kernel to kill them.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::area::Inside;
use super::stats::{Line, Sample};
use super::tools::{MANY, Running, now_nsec, wait_until_few_processes};
use crate::Failure;

/// Measures `pairs` pairs.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, pairs: usize) -> Result<Vec<Line>, Failure> {
    wait_until_few_processes()?;
    let (mut own, mut floor) = (Sample::default(), Sample::default());
    for round in 0..pairs {
        // Each goes first equally often.
        let turns = if round % 2 == 0 { [true, false] } else { [false, true] };
        for perflock in turns {
            wait_until_few_processes()?;
            if perflock {
                own.push(perflock_msec(place)?);
            } else {
                floor.push(floor_msec(place)?);
            }
        }
    }
    wait_until_few_processes()?;
    let ratio = own.pairs(&floor, |own, other| own / other);
    Ok(vec![Line {
        what: format!("{MANY} sleeping processes left: job's end to lock free"),
        own: own.show_msec(),
        other: format!("`cgroup.kill` to `populated 0`: {}", floor.show_msec()),
        difference: format!("× {}", ratio.show(2)),
        target: Some(("≤ 1.3 ×", ratio.median() <= 1.3)),
    }])
}

/// From the end of the job's main process to the lock being obtained by somebody who waited for it.
fn perflock_msec(place: &Inside) -> Result<f64, Failure> {
    let (ready, stamp) = files(place)?;
    let mut command = place.perflock()?;
    command.arg(place.binary("spawner")).arg(MANY.to_string()).arg(&ready).arg(&stamp);
    let mut running = Running::start(&mut command)?;
    running.wait_for_file(place, &ready)?;
    let lock = File::open(place.lock()).map_err(|error| format!("cannot open the lock: {error}"))?;
    // SAFETY: flock(2) on an open descriptor touches no memory.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } == -1 {
        return Err(format!("cannot wait for the lock: {}", std::io::Error::last_os_error()));
    }
    let free_nsec = now_nsec();
    drop(lock);
    running.wait()?;
    let stamp = std::fs::read_to_string(&stamp).ok().and_then(|text| text.parse::<i64>().ok());
    let ended_nsec = stamp.ok_or_else(|| place.failed("the job did not say when it ended"))?;
    Ok((free_nsec - ended_nsec) as f64 / 1e6)
}

/// The same processes in a group that is just killed.
fn floor_msec(place: &Inside) -> Result<f64, Failure> {
    let (ready, stamp) = files(place)?;
    let report = place.file("report");
    let mut command = place.program("floor")?;
    command.arg(place.group()).arg(&report);
    command.arg(place.binary("spawner")).arg(MANY.to_string()).arg(&ready).arg(&stamp);
    let status = Running::start(&mut command)?.wait()?;
    if !status.success() {
        return Err(place.failed(&format!("the floor failed ({status})")));
    }
    let bytes = std::fs::read(&report).ok().and_then(|bytes| bytes.try_into().ok());
    Ok(i64::from_ne_bytes(bytes.ok_or("the floor reported nothing")?) as f64 / 1e6)
}

/// The files that tell that the processes exist, and when the main process ended.
fn files(place: &Inside) -> Result<(std::path::PathBuf, std::path::PathBuf), Failure> {
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
