//! The queue directory: reading it, joining, and removing what the dead left.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::fs::{AtFlags, FlockOperation, Mode as FileMode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::LockError;
use super::decide::Entry;
use super::file::CAREFULLY;
use super::ofd::whole_file;
use super::record::{Joined, Record, append};
use super::ticket::{MAX_NUMBER, Seen, Ticket, by_descriptor, file_name, parse_file_name, path_of};
use super::wait::{self, Call, Slept};
use crate::error::FileError;
use crate::job::{JobId, Mode};
use crate::mask::BlockedSignals;
use crate::step::Step;

/// How many bytes of names are read from the directory in one call.
const READ_AT_ONCE: usize = 32 * 1024;

/// How many tickets a newcomer looks at to clean up. Looking at all would make joining a long queue slow.
const CLEANED_BY_A_NEWCOMER: usize = 8;

/// The tickets that a newcomer looks at to clean up: half of them the oldest, since dead ones (their supervisor and guard
/// were both killed) become the oldest in time; half from anywhere, since the oldest may be ones that cannot be removed.
fn to_clean(entries: &[Entry], anywhere: u64) -> Vec<Entry> {
    if entries.len() <= CLEANED_BY_A_NEWCOMER {
        return entries.to_vec();
    }
    let half = CLEANED_BY_A_NEWCOMER / 2;
    let (oldest, rest) = entries.split_at(half);
    let start = usize::try_from(anywhere % rest.len() as u64).unwrap_or(0);
    oldest.iter().chain(rest.iter().cycle().skip(start).take(half)).copied().collect()
}

/// The opened queue directory.
#[derive(Debug)]
pub struct Queue {
    directory: File,
    path: PathBuf,
}

impl Queue {
    /// Opens the queue directory.
    ///
    /// # Errors
    /// It is missing, not permitted, or not a directory.
    pub fn open(path: &Path) -> Result<Self, LockError> {
        let wrong = |kind| LockError::WrongKind { path: path.to_owned(), kind, expected: "a directory" };
        match rustix::fs::open(path, CAREFULLY | OFlags::DIRECTORY, FileMode::empty()) {
            Ok(fd) => Ok(Self { directory: fd.into(), path: path.to_owned() }),
            Err(Errno::NOENT) => Err(LockError::Missing(path.to_owned())),
            Err(Errno::NOTDIR) => Err(wrong("not a directory")),
            Err(Errno::LOOP) => Err(wrong("a symbolic link")),
            Err(errno) => Err(FileError::on("open the queue directory", path)(errno).into()),
        }
    }

    /// Where the queue is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every ticket's place and mode, earliest first, from one reading of the directory; nothing is opened.
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn entries(&self) -> Result<Vec<Entry>, LockError> {
        let read = || -> rustix::io::Result<Vec<Entry>> {
            let mut entries = Vec::new();
            rustix::fs::seek(&self.directory, SeekFrom::Start(0))?;
            // At a hand-over everybody waits for this: a thousand names take one call, and no more memory is touched than
            // they need.
            let mut buffer = Vec::with_capacity(READ_AT_ONCE);
            let mut files = RawDir::new(&self.directory, buffer.spare_capacity_mut());
            while let Some(file) = files.next() {
                entries.extend(parse_file_name(file?.file_name().to_bytes()));
            }
            Ok(entries)
        };
        let mut entries = read().map_err(|errno| self.failed("read the queue directory", errno))?;
        entries.sort_unstable();
        Ok(entries)
    }

    /// Looks at one ticket. `None` if it is gone, no ticket, or cannot be looked at.
    pub fn see(&self, entry: Entry) -> Option<Seen> {
        self.try_see(entry).ok()?
    }

    /// Looks at one ticket. `None` if it is gone or no ticket.
    ///
    /// # Errors
    /// We, or the machine, have no descriptor or memory left.
    pub fn try_see(&self, entry: Entry) -> Result<Option<Seen>, LockError> {
        let failed = |errno| FileError::on("open the ticket", &path_of(&self.path, entry))(errno).into();
        Seen::open(self.directory.as_fd(), entry).map_err(failed)
    }

    /// Locks the directory, for the few microseconds that numbering or cleaning takes. `None` if interrupted or late.
    pub(super) fn lock_directory(
        &self,
        interrupt: BorrowedFd<'_>,
        deadline: Option<Instant>,
    ) -> Result<Option<DirectoryLock<'_>>, LockError> {
        // ^Z while we have it would stop everybody who wants to join.
        let stops: SigSet = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().collect();
        let mask = stops.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(|e| LockError::Wait(e.into()))?;
        let lock = DirectoryLock { directory: &self.directory, mask };
        match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) if deadline.is_some_and(|at| at <= Instant::now()) => return Ok(None),
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(FileError::on("lock", &self.path)(errno).into()),
        }
        let call = Call::Flock(self.directory.as_fd(), Mode::Exclusive);
        let slept = wait::sleep_on(call, interrupt, deadline).map_err(LockError::Wait)?;
        Ok((slept == Slept::Done).then_some(lock))
    }

    /// Writes a ticket that has no name yet.
    pub(super) fn draft(&self, joined: &Joined) -> Result<Draft<'_>, LockError> {
        let path = &self.path;
        let open = |name: &str, flags: OFlags| {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::APPEND | flags;
            rustix::fs::openat(&self.directory, name, flags, FileMode::RUSR | FileMode::WUSR)
        };
        let (fd, scratch) = match open(".", OFlags::TMPFILE) {
            Ok(fd) => (Ok(fd), None),
            // A filesystem without O_TMPFILE (overlayfs before Linux 6.1): a name that is not a ticket's.
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                let name = format!("new-{}-{:x}", joined.pid, joined.joined_usec);
                (open(&name, OFlags::CREATE | OFlags::EXCL), Some(name))
            }
            Err(errno) => (Err(errno), None),
        };
        let file = File::from(fd.map_err(|errno| self.failed("make a ticket in", errno))?);
        let scratch = scratch.map(|name| Scratch { name, directory: &self.directory });
        let draft = Draft { file, _scratch: scratch };
        append(&draft.file, joined).map_err(FileError::on("write a ticket in", path))?;
        // Others must be able to wait on it whatever our umask is.
        let readable = FileMode::from_raw_mode(0o644);
        rustix::fs::fchmod(&draft.file, readable).map_err(FileError::on("make a ticket readable in", path))?;
        fcntl(&draft.file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK)))
            .map_err(FileError::on("lock a ticket in", path))?;
        Ok(draft)
    }

    /// Removes dead tickets, and gives a drafted one the next number and its name. `spent` is asked whether anything is
    /// left of a dead job that its ticket must go on naming: a populated group, or a stopped waiter's place. Returns what
    /// is before it, too.
    pub(super) fn publish(
        &self,
        draft: Draft<'_>,
        joined: &Joined,
        lock: &DirectoryLock<'_>,
        spent: &mut dyn FnMut(&Seen, &Record) -> bool,
    ) -> Result<(Ticket, Vec<Entry>), LockError> {
        let inode = draft.file.metadata().map_err(FileError::on("look at a ticket in", &self.path))?.ino();
        let mut entries = self.entries()?;
        let oldest = to_clean(&entries, inode);
        let mut removed = |&entry: &Entry| self.see(entry).is_some_and(|seen| self.remove_dead(lock, &seen, spent));
        let gone: Vec<Entry> = oldest.into_iter().filter(|entry| removed(entry)).collect();
        entries.retain(|entry| !gone.contains(entry));
        let highest = entries.last().copied();
        let mut entry = Entry { number: highest.map_or(0, |last| last.number), mode: joined.mode };
        loop {
            if entry.number >= MAX_NUMBER {
                return Err(self.no_number_left(highest));
            }
            entry.number += 1;
            match self.link(&draft.file, &file_name(entry)) {
                Ok(()) => break,
                // A name that `entries` passed over, or a plain user's prank between the two calls.
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.failed("put a ticket into", errno)),
            }
        }
        Step::TicketPublished.reached();
        let boot = super::short_boot(&joined.boot);
        let id = JobId { number: entry.number, inode, boot, joined_usec: joined.joined_usec };
        Ok((Ticket::new(draft.file, entry, id, path_of(&self.path, entry)), entries))
    }

    /// Why the queue cannot be used. A directory that was removed since it was opened takes no ticket: the lock file that was
    /// beside it would exclude nobody.
    fn failed(&self, verb: &'static str, errno: Errno) -> LockError {
        let is_removed = rustix::fs::fstat(&self.directory).is_ok_and(|directory| directory.st_nlink == 0);
        if is_removed { LockError::Replaced(self.path.clone()) } else { FileError::on(verb, &self.path)(errno).into() }
    }

    fn link(&self, file: &File, name: &str) -> rustix::io::Result<()> {
        let follow = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, by_descriptor(file), &self.directory, name, follow)
    }

    /// Tries whether a ticket can be made: drafts one, and gives it for a moment a name that is no ticket's. It takes no lock
    /// that somebody waits for and has no place in the queue.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn try_ticket(&self, joined: &Joined) -> Result<(), LockError> {
        let name = format!("check-{}-{:x}", joined.pid, joined.joined_usec);
        // Whoever ends us between the two would leave the name behind.
        let _blocked = BlockedSignals::all().map_err(LockError::Wait)?;
        let draft = self.draft(joined)?;
        self.link(&draft.file, &name).map_err(FileError::on("put a ticket into", &self.path))?;
        let removed = rustix::fs::unlinkat(&self.directory, name.as_str(), AtFlags::empty());
        Ok(removed.map_err(FileError::on("remove a ticket from", &self.path))?)
    }

    fn no_number_left(&self, highest: Option<Entry>) -> LockError {
        let entry = highest.unwrap_or(Entry { number: MAX_NUMBER, mode: Mode::Exclusive });
        let found = rustix::fs::statat(&self.directory, file_name(entry), AtFlags::SYMLINK_NOFOLLOW);
        let owner = found.map_or_else(|_| "unknown".to_owned(), |found| crate::user::name(found.st_uid));
        LockError::NoNumberLeft { path: path_of(&self.path, entry), owner }
    }

    /// True if the ticket was dead, and is removed.
    pub(super) fn remove_dead(
        &self,
        _: &DirectoryLock<'_>,
        seen: &Seen,
        spent: &mut dyn FnMut(&Seen, &Record) -> bool,
    ) -> bool {
        if !seen.is_ours() || seen.is_live() {
            return false;
        }
        // A dead ticket without a first line was never published whole: nothing hangs on it.
        let removable = seen.record().is_none_or(|record| spent(seen, &record));
        removable
            && seen.still_named(self.directory.as_fd())
            && rustix::fs::unlinkat(&self.directory, file_name(seen.entry), AtFlags::empty()).is_ok()
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The directory's flock, let go when dropped.
pub(super) struct DirectoryLock<'a> {
    directory: &'a File,
    /// The signal mask from before.
    mask: SigSet,
}

impl Drop for DirectoryLock<'_> {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(self.directory, FlockOperation::Unlock);
        let _ = self.mask.thread_set_mask();
    }
}

/// A ticket before it is in the queue.
pub(super) struct Draft<'a> {
    file: File,
    /// Its name so far, where it had to have one; removed when dropped.
    _scratch: Option<Scratch<'a>>,
}

struct Scratch<'a> {
    name: String,
    directory: &'a File,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(self.directory, self.name.as_str(), AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ticket_of_a_long_queue_is_cleaned_by_some_newcomer() {
        let queue: Vec<Entry> = (1..=100).map(|number| Entry { number, mode: Mode::Exclusive }).collect();
        let mut looked_at: Vec<Entry> = (0..100).flat_map(|inode| to_clean(&queue, inode)).collect();
        looked_at.sort_unstable();
        looked_at.dedup();
        assert_eq!(looked_at, queue);
        assert_eq!(to_clean(&queue, 95).len(), CLEANED_BY_A_NEWCOMER);
        assert_eq!(to_clean(&queue[..3], 7), queue[..3]);
        assert_eq!(to_clean(&[], 7), []);
    }

    /// As after `--undo`, by whoever had opened it before.
    #[test]
    fn a_queue_that_was_removed_takes_no_ticket_and_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock.d");
        std::fs::create_dir(&path).unwrap();
        let queue = Queue::open(&path).unwrap();
        let joined = Joined {
            format: crate::lock::record::FORMAT,
            boot: String::new(),
            joined_usec: 1,
            pid: 1,
            start_ticks: 1,
            pid_namespace: 1,
            cgroup_namespace: 1,
            mode: Mode::Exclusive,
            command: Vec::new(),
            message: None,
            cores: None,
        };
        let (never, _writer) = std::io::pipe().unwrap();
        let join = |draft| {
            let lock = queue.lock_directory(never.as_fd(), None)?.unwrap();
            queue.publish(draft, &joined, &lock, &mut |_, _| true)
        };
        let early = queue.draft(&joined).unwrap();
        std::fs::remove_dir(&path).unwrap();
        for joined in [join(early), queue.draft(&joined).and_then(join)] {
            let said = joined.unwrap_err().to_string();
            assert_eq!(said, format!("{} was replaced while this job waited; run it again", path.display()));
        }
    }
}
