//! Waiting for the machine: how fast it goes from one job to the next, what joining a long queue costs, what a waiter
//! weighs, and whether an exclusive job gets through a stream of shared ones.

mod handover;
mod join;
mod stream;
mod waiters;

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::area::Inside;
use super::stats::Line;
use super::tools::{Running, wait_until};
use crate::Failure;

/// A long queue.
const LONG: usize = 1000;

/// A short one.
const SHORT: usize = 10;

/// Measures everything, with this many rounds.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, rounds: usize, print: &mut dyn FnMut(Vec<Line>)) -> Result<(), Failure> {
    print(handover::measure(place, rounds)?);
    print(join::measure(place, rounds)?);
    print(waiters::measure(place)?);
    print(stream::measure(place, rounds)?);
    Ok(())
}

/// A lock of its own that the bench holds, and those who wait for it.
#[derive(Debug)]
struct Held {
    /// The lock file.
    path: PathBuf,
    /// The same, opened, and locked until [`Held::let_go`].
    lock: File,
    /// In the order in which they were started.
    waiters: Vec<Running>,
}

impl Held {
    /// Makes lock and queue and takes the lock.
    fn new(place: &Inside, name: &str) -> Result<Self, Failure> {
        let path = place.file(name);
        let make = || {
            File::create(&path)?;
            fs::create_dir(queue(&path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
            fs::set_permissions(queue(&path), fs::Permissions::from_mode(0o1777))?;
            let lock = File::open(&path)?;
            lock.lock()?;
            Ok(lock)
        };
        let lock = make().map_err(|error: std::io::Error| format!("cannot make {}: {error}", path.display()))?;
        Ok(Self { path, lock, waiters: Vec::new() })
    }

    /// Starts a waiter.
    fn start(&mut self, command: &mut Command) -> Result<(), Failure> {
        self.waiters.push(Running::start(command)?);
        Ok(())
    }

    /// Waits until every waiter sleeps in a lock call for the lock file or for a ticket.
    fn wait_until_asleep(&self, place: &Inside) -> Result<(), Failure> {
        let asleep = wait_until("everybody waits for the lock", || self.asleep() >= self.waiters.len());
        asleep.map_err(|message| place.failed(&message))
    }

    /// How many sleep.
    fn asleep(&self) -> usize {
        let mut inodes: HashSet<u64> = self.lock.metadata().map(|lock| lock.ino()).into_iter().collect();
        inodes.extend(fs::read_dir(queue(&self.path)).into_iter().flatten().flatten().map(|entry| entry.ino()));
        count_blocked(&fs::read_to_string("/proc/locks").unwrap_or_default(), &inodes)
    }

    /// Lets the first waiter have the lock.
    fn let_go(&self) -> Result<(), Failure> {
        self.lock.unlock().map_err(|error| format!("cannot unlock {}: {error}", self.path.display()))
    }

    /// Ends the waiters from this one on: the last first, so that none of them finds itself at the head.
    fn end_from(&mut self, first: usize) -> Result<(), Failure> {
        let ended = self.waiters.split_off(first);
        for waiter in ended.iter().rev() {
            waiter.ask_to_end();
        }
        ended.into_iter().try_for_each(Running::terminate)
    }

    /// Waits for everybody, and removes lock and queue.
    fn finish(mut self, place: &Inside) -> Result<(), Failure> {
        for waiter in &mut self.waiters {
            let status = waiter.wait()?;
            if !status.success() {
                return Err(place.failed(&format!("a job in the queue failed ({status})")));
            }
        }
        self.remove()
    }

    /// Ends everybody, and removes lock and queue.
    fn end(mut self) -> Result<(), Failure> {
        self.end_from(0)?;
        self.remove()
    }

    /// Removes lock and queue.
    fn remove(self) -> Result<(), Failure> {
        let removed = fs::remove_dir_all(queue(&self.path)).and_then(|()| fs::remove_file(&self.path));
        removed.map_err(|error| format!("cannot remove {}: {error}", self.path.display()))
    }
}

/// `perflock`, `pls` or their like with this lock file; the command and its arguments are still to be added.
fn with_lock(place: &Inside, program: &str, lock: &Path) -> Result<Command, Failure> {
    let mut command = place.program(program)?;
    command.arg("--lock").arg(lock);
    Ok(command)
}

/// The queue directory of a lock file.
fn queue(lock: &Path) -> PathBuf {
    let mut path = lock.as_os_str().to_owned();
    path.push(".d");
    path.into()
}

/// How many lines of `/proc/locks` tell of a sleeper on one of these files.
fn count_blocked(locks: &str, inodes: &HashSet<u64>) -> usize {
    let blocked = locks.lines().filter_map(|line| line.split_once(" -> ")).map(|(_, rest)| rest);
    let inode = |rest: &str| rest.split_whitespace().nth(4)?.rsplit(':').next()?.parse().ok();
    blocked.filter_map(inode).filter(|inode| inodes.contains(inode)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sleepers_on_our_files_are_counted() {
        let locks = "\
            1: FLOCK  ADVISORY  WRITE 700 00:18:43 0 EOF\n\
            1: -> FLOCK  ADVISORY  WRITE 701 00:18:43 0 EOF\n\
            2: OFDLCK ADVISORY  WRITE -1 00:18:44 0 EOF\n\
            2: -> OFDLCK ADVISORY  READ  -1 00:18:44 0 EOF\n\
            3: -> FLOCK  ADVISORY  READ  703 00:18:99 0 EOF\n";
        assert_eq!(count_blocked(locks, &HashSet::from([43, 44])), 2);
        assert_eq!(count_blocked(locks, &HashSet::new()), 0);
    }
}
