//! How a group is ended in the v1 hierarchy of the freezer, where there is no `cgroup.kill`: it is frozen, so that nobody is
//! born, each process is sent KILL, and it is thawed, so that they die; until nobody is left.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::area::Inside;
use super::release::files;
use super::tools::Running;
use crate::{Failure, v1};

/// The first and the longest pause between two looks at something that is not done yet: those of `floor.rs`.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

/// How long freezing, or dying, may take in one round.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the group is frozen and killed before the bench gives up.
const ROUNDS: usize = 5;

/// From the end of a job's main process to the removal of its group, which is made below `parent`.
///
/// # Errors
/// A program cannot be run, or the kernel refused.
pub(super) fn end_msec(place: &Inside, parent: &Path, count: usize) -> Result<f64, Failure> {
    let group = Group::create(parent)?;
    let (ready, stamp) = files(place)?;
    let mut command = place.program("spawner")?;
    command.arg(count.to_string()).arg(&ready).arg(&stamp);
    let directory = group.0.clone();
    // SAFETY: no other thread of this process can hold a lock that the closure takes: there is none.
    unsafe { command.pre_exec(move || v1::enter(&directory)) };
    let status = Running::start(&mut command)?.wait()?;
    if !status.success() {
        return Err(place.failed(&format!("the spawner failed ({status})")));
    }
    let start = Instant::now();
    group.end()?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

/// A group below the bench's own in the freezer's hierarchy.
struct Group(PathBuf);

impl Group {
    fn create(parent: &Path) -> Result<Self, Failure> {
        let directory = parent.join("loop");
        fs::create_dir(&directory).map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
        Ok(Self(directory))
    }

    /// Ends every member, and removes the group.
    fn end(self) -> Result<(), Failure> {
        for _ in 0..ROUNDS {
            self.write_state("FROZEN")?;
            if !poll(|| Ok(self.read("freezer.state")?.trim() == "FROZEN"))? {
                return Err(format!("{} does not freeze", self.0.display()));
            }
            for pid in self.members()? {
                // SAFETY: a signal to a process that is frozen in our own group, so that the number is its own.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            self.write_state("THAWED")?;
            // An empty list would not do: those in their last exit are not in it. Asking this is cheaper, too.
            if poll(|| self.is_removed())? {
                return Ok(());
            }
        }
        Err(format!("the processes in {} do not die", self.0.display()))
    }

    /// Removes the group if it is empty.
    fn is_removed(&self) -> Result<bool, Failure> {
        match fs::remove_dir(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(error) => Err(format!("cannot remove {}: {error}", self.0.display())),
        }
    }

    fn members(&self) -> Result<Vec<i32>, Failure> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 1).collect())
    }

    fn read(&self, file: &str) -> Result<String, Failure> {
        let path = self.0.join(file);
        fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    }

    fn write_state(&self, state: &str) -> Result<(), Failure> {
        let path = self.0.join("freezer.state");
        fs::write(&path, state).map_err(|error| format!("cannot write {}: {error}", path.display()))
    }
}

/// Looks again and again until something is so. False if that takes too long.
fn poll(mut is_so: impl FnMut() -> Result<bool, Failure>) -> Result<bool, Failure> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = PAUSES.0;
    while !is_so()? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
    Ok(true)
}
