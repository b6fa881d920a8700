//! Ways into groups of cgroup v2, kept open.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::Entry;
use crate::error::FileError;
use crate::kernel;

/// The way into a group.
#[derive(Debug)]
pub(super) struct Door {
    directory: File,
    /// Open where a child cannot be born in the group, and has to join it.
    procs: Option<File>,
}

impl Door {
    /// Of the group at `path`. Whoever may not make processes in it can look at it all the same.
    ///
    /// # Errors
    /// The group is not there.
    pub(super) fn of(path: &Path) -> Result<Self, FileError> {
        let directory = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let joins = !kernel::gives_birth_in_groups();
        let procs = joins.then(|| open(&path.join("cgroup.procs"), OFlags::WRONLY | OFlags::NONBLOCK).ok()).flatten();
        Ok(Self { directory, procs })
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    pub(super) fn entry(&self) -> Entry<'_> {
        match &self.procs {
            Some(procs) => Entry::Joins(procs.as_fd()),
            None => Entry::Born(self.directory.as_fd()),
        }
    }
}

/// Opens a file that is there.
///
/// # Errors
/// The kernel refused.
pub(super) fn open(file: &Path, flags: OFlags) -> Result<File, FileError> {
    let flags = flags | OFlags::CLOEXEC;
    rustix::fs::open(file, flags, Mode::empty()).map_err(FileError::on("open", file)).map(File::from)
}
