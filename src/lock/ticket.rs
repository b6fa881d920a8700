//! Tickets: a job's place in the queue and the record of what became of it.
//!
//! A ticket is a file of whole JSON lines. The first is written before the ticket has a name; what changes later is
//! appended by its owner. A reader takes complete lines only. The file's owner is the user: what the file *says*
//! is another user's text, shown escaped and never acted on without a check.
//!
//! A ticket is live while somebody holds an OFD **write** lock on it. Only its owner (or root) can open it for
//! writing, so nobody else can forge or prolong its life; with flock(2) any reader could. The kernel drops the lock
//! with the last descriptor of the open file description, however supervisor and guard die.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{AtFlags, Mode as FileMode, OFlags};
use rustix::io::Errno;

use super::LockError;
use super::decide::{Entry, Life};
use super::file::CAREFULLY;
use super::ofd::{asking, whole_file};
use super::record::{self, Change, FORMAT, MAX_SIZE, Record, append};
use super::wait::{self, Call, Slept};
use crate::error::FileError;
use crate::job::{JobId, Mode};
use crate::procfs::{Proc, Stat};

/// The highest number a ticket may have. A file with a higher one is not a ticket.
pub(super) const MAX_NUMBER: u64 = 1 << 62;

/// How long others may look at a ticket that is to be locked again: they hold it for microseconds.
const RELOCKED_WITHIN: Duration = Duration::from_millis(20);

/// The file name of a ticket.
pub(crate) fn file_name(entry: Entry) -> String {
    let letter = match entry.mode {
        Mode::Exclusive => 'x',
        Mode::Shared => 's',
    };
    format!("{}.{letter}", entry.number)
}

/// The ticket that a file name stands for; `None` for every name that perflock would not have made.
pub(crate) fn parse_file_name(name: &[u8]) -> Option<Entry> {
    let (number, mode) = match name {
        [number @ .., b'.', b'x'] => (number, Mode::Exclusive),
        [number @ .., b'.', b's'] => (number, Mode::Shared),
        _ => return None,
    };
    // One spelling: digits only, and no leading zeros.
    let plain = number.iter().all(u8::is_ascii_digit) && (number[..] == *b"0" || !number.starts_with(b"0"));
    let number = std::str::from_utf8(number).ok().filter(|_| plain)?.parse().ok()?;
    (number <= MAX_NUMBER).then_some(Entry { number, mode })
}

/// Our own place in the queue.
#[derive(Debug)]
pub struct Ticket {
    file: File,
    /// Its place.
    pub entry: Entry,
    /// Its job.
    pub id: JobId,
    path: PathBuf,
}

impl Ticket {
    pub(super) fn new(file: File, entry: Entry, id: JobId, path: PathBuf) -> Self {
        Self { file, entry, id, path }
    }

    /// Records what changed.
    ///
    /// # Errors
    /// The filesystem is full or failed.
    pub fn record(&self, change: &Change) -> Result<(), LockError> {
        Ok(append(&self.file, change).map_err(FileError::on("write to the ticket", &self.path))?)
    }

    /// Locks the ticket again. Whoever slept on it may have it for a moment, to see that it was free.
    pub(super) fn relock(&self) -> bool {
        let end = Instant::now() + RELOCKED_WITHIN;
        loop {
            match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
                Ok(_) => return true,
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_micros(200)),
                Err(_) => return false,
            }
        }
    }

    /// Tells who waits for it that this job asks for no cores any more.
    pub(super) fn served(&self) {
        let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&asking(libc::F_UNLCK)));
    }

    /// Takes the ticket out of the queue. It is unlinked while it is still locked, or the directory is: nobody else
    /// removes a live ticket, so the name cannot have come to mean another job.
    pub fn retire(&self) {
        // Somebody with a right to the directory may have removed it already; then there is nothing to do.
        if self.still_named() {
            let _ = std::fs::remove_file(&self.path);
        }
        // Who sleeps on it need not wait until a guard that shares it is gone.
        let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
    }

    /// Who cancelled the job, if somebody did.
    pub fn cancelled_by(&self) -> Option<u32> {
        record::read(&self.file)?.cancelled_by
    }

    /// Whether the directory still has this ticket under its name.
    pub fn still_named(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|named| named.ino() == self.id.inode)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl AsFd for Ticket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Somebody's ticket, opened for reading.
#[derive(Debug)]
pub struct Seen {
    file: File,
    /// Its place.
    pub entry: Entry,
    /// The ticket's owner: the user whose job it is.
    pub uid: u32,
    pub(super) device: u64,
    pub(super) inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// Which file a ticket is, whose, and when it was last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(Entry, u32, u64, u64, u64, (i64, i64));

impl Seen {
    /// Opens the ticket `entry` of the queue directory. `None` where there is none (any more), or where the file is
    /// not one that perflock could have made: such a file is not in the queue. An error only for want of resources.
    pub(super) fn open(directory: BorrowedFd<'_>, entry: Entry) -> rustix::io::Result<Option<Self>> {
        let file = match rustix::fs::openat(directory, file_name(entry), CAREFULLY, FileMode::empty()) {
            Ok(fd) => File::from(fd),
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(errno),
            Err(_) => return Ok(None),
        };
        let Ok(metadata) = file.metadata() else { return Ok(None) };
        let plausible = metadata.is_file() && metadata.len() <= MAX_SIZE;
        let (uid, device, inode, size) = (metadata.uid(), metadata.dev(), metadata.ino(), metadata.len());
        // Not the time of writing, which its owner can set back.
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Ok(plausible.then(|| Self { file, entry, uid, device, inode, size, changed }))
    }

    /// Whether somebody holds the ticket's lock. Asking takes no lock.
    pub fn is_live(&self) -> bool {
        let mut probe = whole_file(libc::F_RDLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut probe)).is_ok() && i32::from(probe.l_type) != libc::F_UNLCK
    }

    /// Whether its job still has the part of the lock that stands for asking for cores. What its text says of that is not
    /// enough: to sleep on a part that nobody has would be no sleep.
    pub(super) fn holds_asking(&self) -> bool {
        let mut probe = asking(libc::F_RDLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut probe)).is_ok() && i32::from(probe.l_type) != libc::F_UNLCK
    }

    /// What the ticket says.
    pub fn record(&self) -> Option<Record> {
        record::read(&self.file)
    }

    /// As of when it was opened. A ticket that says something else has another version.
    pub fn version(&self) -> Version {
        Version(self.entry, self.uid, self.device, self.inode, self.size, self.changed)
    }

    /// The supervisor, if it is a process of the ticket's owner still. What a ticket says of others is not believed.
    pub fn supervisor(&self, record: &Record, proc: &Proc) -> Option<Stat> {
        let stat = record.joined.supervisor(proc)?;
        proc.uid(stat.pid).is_ok_and(|uid| uid == self.uid).then_some(stat)
    }

    /// Adds a line. Only its owner and root can.
    ///
    /// # Errors
    /// It is somebody else's, or the filesystem is full or failed.
    pub fn append(&self, change: &Change) -> io::Result<()> {
        // The very file that was looked at, whatever its name means by now.
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(by_descriptor(&self.file), flags, FileMode::empty())?;
        append(&File::from(file), change)
    }

    /// Sleeps until nobody holds the ticket's lock. False if `deadline` passed first.
    ///
    /// # Errors
    /// The wait could not be started.
    pub fn wait_gone(&self, deadline: Instant) -> Result<bool, LockError> {
        let (never, _writer) = io::pipe().map_err(LockError::Wait)?;
        let slept = wait::sleep_on(Call::WriterGone(self.file.as_fd()), never.as_fd(), Some(deadline));
        Ok(slept.map_err(LockError::Wait)? == Slept::Done)
    }

    /// Whether the job waits or has the machine. A live ticket that is a newer version's, or cannot be understood and may
    /// be one, counts as waiting, so that it is waited for until its owner is gone: what it says of itself may mean
    /// something else there.
    pub fn life(&self) -> Life {
        if !self.is_live() {
            return Life::Dead;
        }
        match self.record() {
            Some(record) if record.granted_usec.is_some() && record.joined.format <= FORMAT => Life::Holding,
            _ => Life::Waiting,
        }
    }

    /// Whether we may end what is left of its job: our own, and root anybody's.
    pub fn is_ours(&self) -> bool {
        let own = rustix::process::geteuid();
        own.is_root() || own.as_raw() == self.uid
    }

    /// Which job it is, if the ticket can be read.
    pub fn id(&self, record: &Record) -> JobId {
        JobId {
            number: self.entry.number,
            inode: self.inode,
            boot: super::short_boot(&record.joined.boot),
            joined_usec: record.joined.joined_usec,
        }
    }

    /// The same where the ticket does not say: of no boot.
    pub fn nameless_id(&self) -> JobId {
        JobId { number: self.entry.number, inode: self.inode, boot: 0, joined_usec: 0 }
    }

    /// Device and inode: the same for every name that the file has.
    pub fn file_identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Whether the directory still has this very file under its name.
    pub(super) fn still_named(&self, directory: BorrowedFd<'_>) -> bool {
        rustix::fs::statat(directory, file_name(self.entry), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|named| (named.st_dev, named.st_ino) == (self.device, self.inode))
    }
}

/// A path that means the very file that is open: to open it again, or to link it. By descriptor alone (AT_EMPTY_PATH) the
/// latter needs a privilege; this is the way that open(2) documents.
pub(super) fn by_descriptor(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

impl AsFd for Seen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where the ticket `entry` of the queue directory `directory` is.
pub(super) fn path_of(directory: &Path, entry: Entry) -> PathBuf {
    directory.join(file_name(entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_names_of_our_own_spelling_are_tickets() {
        let entry = |number, mode| Some(Entry { number, mode });
        assert_eq!(parse_file_name(b"7.x"), entry(7, Mode::Exclusive));
        assert_eq!(parse_file_name(b"4611686018427387904.s"), entry(MAX_NUMBER, Mode::Shared));
        for name in ["", "x", ".x", "7", "7.", "7.y", "07.x", "+7.x", " 7.x", "7.x ", "18446744073709551615.x", "-1.s"]
        {
            assert_eq!(parse_file_name(name.as_bytes()), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_file_name_is_read_without_panic(name: Vec<u8>) {
            let _ = parse_file_name(&name);
        }

        /// Nothing is a ticket that would be looked for under another name.
        #[test]
        fn a_file_name_has_one_spelling(name in "[+ -]?[0-9]{0,21}[.]?[xsX]?[ .x]?", number: u64, exclusive: bool) {
            if let Some(entry) = parse_file_name(name.as_bytes()) {
                prop_assert!(entry.number <= MAX_NUMBER);
                prop_assert_eq!(file_name(entry), name);
            }
            let mode = if exclusive { Mode::Exclusive } else { Mode::Shared };
            let entry = Entry { number, mode };
            prop_assert_eq!(parse_file_name(file_name(entry).as_bytes()), (number <= MAX_NUMBER).then_some(entry));
        }
    }
}
