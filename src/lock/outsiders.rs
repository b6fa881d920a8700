//! Outsiders: who uses the lock file by plain flock(2), without a ticket.

use super::{LockError, LockFile, Queue};
use crate::error::FileError;
use crate::job::Mode;
use crate::procfs::{Flock, Proc};

/// Somebody who holds the lock file or waits for it without a ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outsider {
    /// The process that took the lock. It may have ended and left the lock to a child.
    pub pid: i32,
    /// Its user, if it still lives.
    pub uid: Option<u32>,
    /// Its command; empty if it ended.
    pub command: Vec<String>,
    /// The kind of lock.
    pub mode: Mode,
    /// It does not have the lock yet.
    pub waiting: bool,
}

/// Every outsider. `/proc/locks` names processes only, so the supervisors of our own jobs are given in `ours`.
///
/// # Errors
/// `/proc/locks` could not be read.
pub fn outsiders(proc: &Proc, file: &LockFile, ours: &[i32]) -> Result<Vec<Outsider>, LockError> {
    let (dev, inode) = file.dev_ino()?;
    let locks = proc.flocks(dev, inode).map_err(FileError::on("read", "/proc/locks".as_ref()))?;
    Ok(locks.into_iter().filter(|lock| !ours.contains(&lock.pid)).map(|lock| describe(proc, lock)).collect())
}

/// Who has locked the queue directory, if that can be seen.
pub fn holder(proc: &Proc, queue: &Queue) -> Option<Outsider> {
    let directory = rustix::fs::fstat(queue).ok()?;
    let locks = proc.flocks(directory.st_dev, directory.st_ino).ok()?;
    locks.into_iter().find(|lock| !lock.waiting).map(|lock| describe(proc, lock))
}

fn describe(proc: &Proc, lock: Flock) -> Outsider {
    Outsider {
        pid: lock.pid,
        uid: proc.uid(lock.pid).ok(),
        command: proc.cmdline(lock.pid).unwrap_or_default(),
        mode: if lock.exclusive { Mode::Exclusive } else { Mode::Shared },
        waiting: lock.waiting,
    }
}
