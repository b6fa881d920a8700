//! The history: a line for every job that ended, by which users see who had the machine, for how long, and after which wait.
//!
//! # Theory of operation
//!
//! Every user has a file of their own, `UID.jsonl`, in a directory that all may write to and where nobody can remove another's
//! files (mode 1777, made by `perflock --setup`). Where there is none, or none for this user, the file is in the user's state
//! directory, and nobody else sees it. There is no daemon and no file that users share, so there is nobody to lie about others: what a
//! line says of its user is not read, the owner of the file is ([`mod@read`]).
//!
//! A line ([`line`]) is written whole, by one write(2) to a file that is appended to ([`file`]): two jobs that end at once do not
//! mix. It is written when the machine was given back, by the guard if the supervisor was killed. A file that has grown to its size
//! is renamed, over the one that was renamed before, and another is begun.
//!
//! What cannot be written is lost, with one warning: the job and its exit code are what they are without a history. A line that
//! was torn, by a full disk say, is passed over by who reads, and does not take the next one with it.
//!
//! How long a command took before ([`runs`]) says when those behind it may start ([`expect`]): a guess, and shown as one.
//!
//! Arguments hold secrets, and others read the file. So a line has the program and two more words, without what is a secret by its
//! looks, unless `history.command` is `full`. Jobs of a lock that others may not use, `--private` say, are in the user's own file.

pub mod expect;
pub mod file;
pub mod line;
pub mod read;
pub mod runs;

use std::path::{Path, PathBuf};

use crate::text;

/// Where the users' files are.
pub const DIRECTORY: &str = "/var/lib/perflock";

/// A smaller file would be renamed all the time.
pub const LEAST_SIZE: u64 = 16 << 10;

/// Of a file no more is read.
pub const MOST_SIZE: u64 = 16 << 20;

/// What is kept of jobs that ended, and where: the keys `history.…` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// The directory of all users' files.
    pub directory: PathBuf,
    /// The user's own file, where that directory cannot be written to; `None` where the user has no directory.
    pub own_file: Option<PathBuf>,
    /// When a file is full.
    pub size: Size,
    /// What is kept of command lines.
    pub commands: Commands,
}

impl Default for Keeping {
    fn default() -> Self {
        Self { directory: DIRECTORY.into(), own_file: None, size: Size::Bytes(1 << 20), commands: Commands::Short }
    }
}

/// How large a file grows before another is begun. Of each user there are two at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// There is no history.
    Nothing,
    /// So large.
    Bytes(u64),
}

impl Size {
    /// Reads `history.size`.
    ///
    /// # Errors
    /// A sentence fragment that says what it may be.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Nothing);
        }
        match text::parse_size(text) {
            Some(bytes) if bytes < LEAST_SIZE => {
                Err(format!("a history of less than {} is none: say none", text::exact_bytes(LEAST_SIZE)))
            }
            Some(bytes) if bytes > MOST_SIZE => {
                Err(format!("a history of more than {} is not read", text::exact_bytes(MOST_SIZE)))
            }
            Some(bytes) => Ok(Self::Bytes(bytes)),
            None => Err("a size is in bytes (1048576) or has a unit (512K, 1M), or is none".to_owned()),
        }
    }
}

/// What is kept of a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commands {
    /// The program and the first two words, without the values of options and variables.
    Short,
    /// All of it, as far as a line holds it.
    Full,
}

impl Commands {
    /// Reads `history.command`.
    ///
    /// # Errors
    /// A sentence fragment that says what it may be.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "short" => Ok(Self::Short),
            "full" => Ok(Self::Full),
            _ => Err("short (program and two words) or full is expected".to_owned()),
        }
    }
}

/// A user's file in the directory.
fn file_of(directory: &Path, uid: u32) -> PathBuf {
    directory.join(format!("{uid}.jsonl"))
}

/// Where a file that is full goes.
fn full(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
