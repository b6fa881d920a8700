//! The lock and the queue.
//!
//! # Theory of operation
//!
//! Exclusion among everybody is flock(2) on one **lock file**: exclusive for `perflock`, shared for `pls`. So plain
//! `flock FILE cmd` excludes us and is excluded. But flock alone is no queue: overlapping shared holders keep an
//! exclusive waiter out for as long as their stream goes on, and exclusive waiters are not served in order.
//!
//! The order comes from **tickets** (`ticket.rs`) in the queue directory `FILE.d`: `N.x` for an exclusive job, `N.s`
//! for a shared one. [`decide`](decide::decide) says from the tickets alone who may start, and the one thing to sleep
//! on otherwise; [`waiting`] is the machine around it: whoever wakes looks again. Nothing polls, and the end of one job wakes
//! only those who slept on it.
//!
//! Shared jobs may also ask for **cores** of their own, which no other such job has ([`cores`]): once nobody who came earlier is
//! in the way, and before the lock file. They are given under the directory's flock, are written into the ticket, and last as
//! long as it, or as anything that is left of the job. Whoever asks and has none yet holds one more part of the ticket's lock,
//! which is let go alone: that wakes the next in the line of those who ask, and only that one.
//!
//! A long queue costs no more than a short one at a hand-over. The directory is read when a job joins, under the lock under
//! which numbers are given: names before ours may go from then on, but none can come. Tickets are asked whether they live
//! from the nearest down, to the first that waits. Whoever wakes reads the directory once more, and what it read then serves
//! the search for orphans. (To believe the job right before us that nobody else is left would spare that reading as well; but
//! that job may have been interrupted before it searched, may see less than we do, or may lie.)
//!
//! What makes it safe against crashes and races:
//! - Choosing a number, linking the ticket, and every unlink of somebody else's dead ticket happen under the
//!   directory's flock, and before an unlink device and inode are compared with the file that was found dead.
//!   Otherwise: one cleaner finds 5 dead, another unlinks it, a newcomer is given 5, the first unlinks a live job.
//! - A ticket is locked before it has a name, so nobody ever sees a new one dead.
//! - Our own ticket is unlinked while it is locked, after the lock file was let go: until then it still holds our
//!   place, and afterwards nothing is left to clean.
//! - The lock file alone excludes. A ticket that lies, or that cannot be read, can change the order, never that.

pub mod cores;
pub mod decide;
pub mod file;
mod ofd;
pub mod outsiders;
pub mod place;
pub mod queue;
pub mod record;
pub mod setup;
pub mod ticket;
pub mod undo;
mod wait;
pub mod waiting;

use std::path::{Path, PathBuf};

pub use cores::{Claim, Cores};
pub use decide::{Decision, Entry, Life, Target};
pub use file::LockFile;
pub use place::{Ahead, Ask, Hold, Lock, Other, Place, Woken};
pub use queue::Queue;
pub use record::{Change, Joined, Record};
pub use ticket::{Seen, Ticket, Version};

use crate::error::FileError;

/// Why the lock or the queue could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock file or the queue directory does not exist: the machine is not set up.
    #[error("{} is missing", .0.display())]
    Missing(PathBuf),
    /// Something else stands in its place.
    #[error("{} is {kind}; it must be {expected}", .path.display())]
    WrongKind {
        /// Where.
        path: PathBuf,
        /// What is there.
        kind: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// A system call failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody made a ticket with the highest number there is.
    #[error("the queue has no number left: remove {} (made by {owner})", .path.display())]
    NoNumberLeft {
        /// The ticket in the way.
        path: PathBuf,
        /// Its owner.
        owner: String,
    },
    /// The lock file, or the queue, was replaced or removed while we waited for it.
    #[error("{} was replaced while this job waited; run it again", .0.display())]
    Replaced(PathBuf),
    /// The wait could not be started.
    #[error("cannot wait for the lock: {}", crate::error::reason(.0))]
    Wait(#[source] std::io::Error),
}

impl LockError {
    fn kind(path: &Path, kind: &'static str) -> Self {
        let expected = "a regular file";
        Self::WrongKind { path: path.to_owned(), kind, expected }
    }
}

/// The queue directory of the lock file `lock`: the same path with `.d` appended.
pub fn queue_directory(lock: &Path) -> PathBuf {
    let mut path = lock.as_os_str().to_owned();
    path.push(".d");
    path.into()
}

/// The part of a boot id that goes into a job's identity.
pub fn short_boot(boot_id: &str) -> u32 {
    boot_id.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0)
}
