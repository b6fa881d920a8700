//! The lock file: exclusion among everybody, plain `flock(1)` users included.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode as FileMode, OFlags};
use rustix::io::Errno;

use super::LockError;
use crate::error::FileError;
use crate::job::Mode;

/// Flags for opening a file or directory that others may have put there: never created (`fs.protected_regular`
/// refuses that in sticky directories), never through a link, never blocking (a FIFO, or a lease held by its owner).
pub(super) const CAREFULLY: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// The opened lock file.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Opens the lock file. Read access is enough for either kind of flock(2).
    ///
    /// # Errors
    /// It is missing, not permitted, or not a regular file.
    pub fn open(path: &Path) -> Result<Self, LockError> {
        let fd = match rustix::fs::open(path, CAREFULLY, FileMode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(LockError::Missing(path.to_owned())),
            Err(Errno::LOOP) => return Err(LockError::kind(path, "a symbolic link")),
            Err(Errno::NXIO) => return Err(LockError::kind(path, "a socket or device")),
            Err(errno) => return Err(FileError::on("open the lock file", path)(errno).into()),
        };
        let file = File::from(fd);
        let metadata = file.metadata().map_err(FileError::on("look at", path))?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() { "a directory" } else { "not a regular file" };
            return Err(LockError::kind(path, kind));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock if that needs no waiting.
    ///
    /// # Errors
    /// Anything but "somebody else has it".
    pub fn try_lock(&self, mode: Mode) -> Result<bool, LockError> {
        let operation = match mode {
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Mode::Shared => FlockOperation::NonBlockingLockShared,
        };
        match rustix::io::retry_on_intr(|| rustix::fs::flock(&self.file, operation)) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(FileError::on("lock", &self.path)(errno).into()),
        }
    }

    /// Lets the lock go, also for a guard that shares it: closing alone would leave it with the guard.
    pub fn unlock(&self) {
        // Cannot fail on a descriptor that is open; if it did, the exit of guard and supervisor frees the lock.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }

    /// Whether the path still names the file that we have open. If not, somebody replaced it, and a lock on our
    /// inode excludes nobody who comes later.
    pub fn still_named(&self) -> bool {
        let (Ok(ours), Ok(named)) = (self.file.metadata(), std::fs::symlink_metadata(&self.path)) else {
            return false;
        };
        (ours.dev(), ours.ino()) == (named.dev(), named.ino())
    }

    /// Device and inode, as `/proc/locks` names the file.
    ///
    /// # Errors
    /// The file's filesystem failed.
    pub fn dev_ino(&self) -> Result<(u64, u64), LockError> {
        let metadata = self.file.metadata().map_err(FileError::on("look at", &self.path))?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
