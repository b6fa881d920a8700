//! Jobs that disturb nobody but themselves: each makes the kernel do much that is hard to tell from somebody else's doing.

use std::path::{Path, PathBuf};

use crate::{Failure, top};

/// What a job does; see the program `studyload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    /// It sleeps.
    Idle,
    /// One short process after the other.
    Forks,
    /// Two processes that wake each other.
    PingPong,
    /// It writes, and waits for the disk.
    Fsync,
    /// It talks to itself by TCP.
    Loopback,
}

/// All of them.
pub(super) const ALL: [Workload; 5] =
    [Workload::Idle, Workload::Forks, Workload::PingPong, Workload::Fsync, Workload::Loopback];

impl Workload {
    /// As the command line and `studyload` know it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Forks => "forks",
            Self::PingPong => "pingpong",
            Self::Fsync => "fsync",
            Self::Loopback => "loopback",
        }
    }
}

/// A file that a workload writes to, on a disk, where it needs one. Removed when dropped.
pub(super) struct File(Option<tempfile::TempPath>);

impl File {
    /// The file is where cargo builds: the study's own directory is in memory, where there is no disk to wait for.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn for_load(workload: Workload) -> Result<Self, Failure> {
        if workload != Workload::Fsync {
            return Ok(Self(None));
        }
        let directory = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), PathBuf::from);
        let file = tempfile::NamedTempFile::new_in(&directory);
        let file = file.map_err(|error| format!("cannot make a file in {}: {error}", directory.display()))?;
        Ok(Self(Some(file.into_temp_path())))
    }

    /// Its path, if there is one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.0.as_deref()
    }
}
