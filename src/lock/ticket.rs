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
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{AtFlags, Mode as FileMode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::LockError;
use super::decide::{Entry, Life};
use super::file::CAREFULLY;
use super::ofd::whole_file;
use crate::error::FileError;
use crate::job::{JobId, Mode};
use crate::procfs::{Proc, Stat};

/// The highest number a ticket may have. A file with a higher one is not a ticket.
pub(super) const MAX_NUMBER: u64 = 1 << 62;

/// The file name of a ticket.
pub(super) fn file_name(entry: Entry) -> String {
    let letter = match entry.mode {
        Mode::Exclusive => 'x',
        Mode::Shared => 's',
    };
    format!("{}.{letter}", entry.number)
}

/// The ticket that a file name stands for; `None` for every name that perflock would not have made.
pub(super) fn parse_file_name(name: &[u8]) -> Option<Entry> {
    let (number, letter) = std::str::from_utf8(name).ok()?.split_once('.')?;
    let mode = match letter {
        "x" => Mode::Exclusive,
        "s" => Mode::Shared,
        _ => return None,
    };
    let entry = Entry { number: number.parse().ok()?, mode };
    let one_spelling = file_name(entry).as_bytes() == name;
    (one_spelling && entry.number <= MAX_NUMBER).then_some(entry)
}

/// The version of the record's format. A live ticket of a newer one is waited for, whatever it says.
pub const FORMAT: u32 = 1;

/// No ticket is larger; a larger file is not one.
const MAX_SIZE: u64 = 64 * 1024;

/// How much of the command line a ticket keeps. In JSON a control character takes six bytes.
const MAX_COMMAND: usize = 4096;

/// How much of a message a ticket keeps.
const MAX_MESSAGE: usize = 1024;

/// The first line of a ticket: who joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// [`FORMAT`].
    pub format: u32,
    /// The boot id: a ticket of an earlier boot is dead, whatever else it names.
    pub boot: String,
    /// When, on `CLOCK_BOOTTIME`.
    pub joined_usec: u64,
    /// The supervisor, in the pid namespace below.
    pub pid: i32,
    /// The supervisor's start in clock ticks since boot.
    pub start_ticks: u64,
    /// Inode number of the supervisor's pid namespace.
    pub pid_namespace: u64,
    /// Inode number of the supervisor's cgroup namespace.
    pub cgroup_namespace: u64,
    /// What the job asks for.
    pub mode: Mode,
    /// The command, cut to 4 KiB.
    pub command: Vec<String>,
    /// `--message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Joined {
    /// The supervisor, if it is a process still: its number, in our pid namespace and this boot, may have come to mean
    /// another.
    pub fn supervisor(&self, proc: &Proc) -> Option<Stat> {
        proc.stat(self.pid).ok().filter(|stat| stat.start_ticks == self.start_ticks)
    }

    /// The command line as far as it fits into a record.
    pub fn fit_command(argv: &[String]) -> Vec<String> {
        let mut left = MAX_COMMAND;
        let mut kept = Vec::new();
        for word in argv {
            if word.len() >= left {
                kept.push(fit(word, left));
                break;
            }
            left -= word.len() + 1;
            kept.push(word.clone());
        }
        kept
    }

    /// A message as far as it fits into a record.
    pub fn fit_message(message: &str) -> String {
        fit(message, MAX_MESSAGE)
    }
}

fn fit(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = (0..=bytes).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// A later line of a ticket: what changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Change {
    /// The job has the lock file.
    Granted {
        /// When, on `CLOCK_BOOTTIME`.
        at_usec: u64,
    },
    /// The job group, written before the command is born: a group that no ticket names would be invisible.
    Group {
        /// How it is made: see [`crate::cgroup::Backend`].
        backend: String,
        /// Its path in the v2 hierarchy, where it has one.
        path: Option<PathBuf>,
    },
    /// The guard.
    Guard {
        /// Its pid.
        pid: i32,
    },
    /// The command ended; members that outlived it are being ended.
    Releasing,
    /// A waiter was stopped and let its ticket go; it keeps its place until somebody overtakes it.
    Stopped,
    /// A stopped waiter went on, in its old place.
    Resumed,
    /// A line of a newer version.
    #[serde(other)]
    Unknown,
}

/// What a ticket says, all lines taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who joined.
    pub joined: Joined,
    /// When the lock was got.
    pub granted_usec: Option<u64>,
    /// Backend and group.
    pub group: Option<(String, Option<PathBuf>)>,
    /// The guard's pid.
    pub guard_pid: Option<i32>,
    /// The command ended.
    pub releasing: bool,
    /// The waiter is stopped.
    pub stopped: bool,
}

impl Record {
    /// Reads a ticket's text; `None` if its first line is not one of ours. A line that was not written to its end,
    /// or that is malformed, is passed over.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let complete = text.iter().rposition(|&b| b == b'\n').map_or(&[][..], |end| &text[..end]);
        let mut lines = complete.split(|&b| b == b'\n');
        let mut record = Self {
            joined: serde_json::from_slice(lines.next()?).ok()?,
            granted_usec: None,
            group: None,
            guard_pid: None,
            releasing: false,
            stopped: false,
        };
        for change in lines.filter_map(|line| serde_json::from_slice(line).ok()) {
            // Any later line of its owner shows that a stopped waiter went on.
            record.stopped = change == Change::Stopped;
            match change {
                Change::Granted { at_usec } => record.granted_usec = Some(at_usec),
                Change::Group { backend, path } => record.group = Some((backend, path)),
                Change::Guard { pid } => record.guard_pid = Some(pid),
                Change::Releasing => record.releasing = true,
                Change::Stopped | Change::Resumed | Change::Unknown => {}
            }
        }
        Some(record)
    }
}

/// Writes one line, whole.
pub(super) fn append(mut file: &File, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
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

    /// Removes the ticket from the queue. It is unlinked while it is still locked: nobody else removes a live
    /// ticket, so the name cannot have come to mean another job.
    pub fn unlink(&self) {
        // Somebody with a right to the directory may have removed it already; then there is nothing to do.
        if self.still_named() {
            let _ = std::fs::remove_file(&self.path);
        }
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
}

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
        Ok(plausible.then(|| Self { file, entry, uid: metadata.uid(), device: metadata.dev(), inode: metadata.ino() }))
    }

    /// Whether somebody holds the ticket's lock. Asking takes no lock.
    pub fn is_live(&self) -> bool {
        let mut probe = whole_file(libc::F_RDLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut probe)).is_ok() && i32::from(probe.l_type) != libc::F_UNLCK
    }

    /// What the ticket says.
    pub fn record(&self) -> Option<Record> {
        let mut text = vec![0; 1024];
        let mut length = 0;
        // By position, so that a ticket can be read again. It may grow meanwhile, to no more than its owner may write.
        loop {
            match self.file.read_at(&mut text[length..], length as u64).ok()? {
                0 => break,
                more => length += more,
            }
            if length as u64 >= MAX_SIZE {
                break;
            }
            if length == text.len() {
                text.resize(2 * length, 0);
            }
        }
        Record::parse(&text[..length])
    }

    /// Whether the job waits or has the machine. A live ticket that cannot be understood may be a newer version's:
    /// it counts as waiting, so that it is waited for until its owner is gone.
    pub fn life(&self) -> Life {
        if !self.is_live() {
            return Life::Dead;
        }
        match self.record() {
            Some(record) if record.granted_usec.is_some() => Life::Holding,
            _ => Life::Waiting,
        }
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

    /// Whether the directory still has this very file under its name.
    pub(super) fn still_named(&self, directory: BorrowedFd<'_>) -> bool {
        rustix::fs::statat(directory, file_name(self.entry), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|named| (named.st_dev, named.st_ino) == (self.device, self.inode))
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.file.into()
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

    fn joined() -> Joined {
        Joined {
            format: FORMAT,
            boot: "5f0c7c1e-0000".to_owned(),
            joined_usec: 7,
            pid: 42,
            start_ticks: 9,
            pid_namespace: 1,
            cgroup_namespace: 2,
            mode: Mode::Shared,
            command: vec!["make".to_owned(), "-j".to_owned()],
            message: None,
        }
    }

    fn text(lines: &[Change]) -> Vec<u8> {
        let mut text = serde_json::to_vec(&joined()).unwrap();
        text.push(b'\n');
        for line in lines {
            text.extend(serde_json::to_vec(line).unwrap());
            text.push(b'\n');
        }
        text
    }

    #[test]
    fn the_last_complete_line_wins() {
        let guard = |pid| Change::Guard { pid };
        let mut ticket = text(&[Change::Granted { at_usec: 8 }, guard(1), guard(2)]);
        ticket.extend(br#"{"event":"guard","pid":3"#);
        let record = Record::parse(&ticket).unwrap();
        assert_eq!(record.joined, joined());
        assert_eq!(record.granted_usec, Some(8));
        assert_eq!(record.guard_pid, Some(2));
    }

    #[test]
    fn a_stopped_waiter_that_wrote_again_went_on() {
        assert!(Record::parse(&text(&[Change::Stopped])).unwrap().stopped);
        assert!(!Record::parse(&text(&[Change::Stopped, Change::Resumed])).unwrap().stopped);
    }

    #[test]
    fn a_newer_version_s_lines_are_passed_over() {
        let mut ticket = text(&[]);
        ticket.extend(b"{\"event\":\"cores\",\"list\":[1]}\nnonsense\n{\"event\":\"releasing\"}\n");
        assert!(Record::parse(&ticket).unwrap().releasing);
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        let long = Joined::fit_command(&["x".into(), "é".repeat(9000), "z".into()]);
        assert_eq!(long.len(), 2);
        assert!(long[1].len() <= MAX_COMMAND + 4 && long[1].ends_with('…'));
    }

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
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, tail: String) {
            let _ = Record::parse(&bytes);
            let mut ticket = text(&[]);
            ticket.extend(tail.into_bytes());
            prop_assert!(Record::parse(&ticket).is_some());
        }
    }

    proptest! {
        #[test]
        fn any_file_name_is_read_without_panic(name: Vec<u8>) {
            let _ = parse_file_name(&name);
        }
    }
}
