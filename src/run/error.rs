//! Why a run ends without its command's own end: each module's error, and the exit code that says so.

use std::io;

use crate::cgroup::GroupError;
use crate::cgroup::cpuset::CpusetError;
use crate::cgroup::limits::LimitError;
use crate::exit;
use crate::lock::LockError;
use crate::pin::PinError;
use crate::supervisor::command::CommandError;
use crate::supervisor::spawn::SpawnError;

/// Why nothing was run, or why what ran could not be seen to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    File(#[from] crate::error::FileError),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Cpuset(#[from] CpusetError),
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Kernel(#[from] crate::kernel::Unfit),
    #[error("out of memory: {name} cannot be started within the job's limit of {limit} (--memory)")]
    TooLittleMemory { name: String, limit: String },
    #[error("{0}")]
    NotSetUp(String),
    #[error("{0}")]
    Refused(String),
    /// Not an error, but an end without the machine: a signal came before the command was started.
    #[error("died of signal {0}")]
    Signalled(i32),
    #[error("cannot {what}: {}", crate::error::reason(.source))]
    System { what: &'static str, source: io::Error },
}

impl Error {
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Command(CommandError::NotFound { .. }) => exit::NOT_FOUND,
            Self::Command(CommandError::NotExecutable { .. }) => exit::NOT_EXECUTABLE,
            Self::Spawn(SpawnError::Exec { source, .. }) if source.kind() == io::ErrorKind::NotFound => exit::NOT_FOUND,
            Self::Spawn(SpawnError::Exec { .. }) | Self::TooLittleMemory { .. } => exit::NOT_EXECUTABLE,
            _ => exit::OURS,
        }
    }
}
