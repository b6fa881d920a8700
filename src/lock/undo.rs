//! Taking a machine's lock away: the opposite of [`super::setup`].

use std::fs;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::ticket::file_name;
use super::{Lock, LockError, Record, Seen};
use crate::error::FileError;
use crate::job::Mode;

/// What became of it.
#[derive(Debug)]
pub enum Undone {
    /// Both are gone, or would be: the directory, then the lock file.
    Gone([PathBuf; 2]),
    /// Somebody has the machine or waits for it, or something of a dead job is left: these tickets; none where an outsider has
    /// the lock, or somebody is just joining. Nothing was changed.
    Busy(Vec<Seen>),
}

impl Lock {
    /// Removes the queue and the lock file, if nobody uses them: both are locked first, so that nobody comes in between. Who has
    /// opened them before finds that they are gone, as after any removal. `spent` is asked whether nothing is left of a dead job.
    /// With `dry_run` all of that but the removal.
    ///
    /// # Errors
    /// Not permitted, or the directory has files in it that are not perflock's.
    pub fn take_away(&self, dry_run: bool, spent: &mut dyn FnMut(&Seen, &Record) -> bool) -> Result<Undone, LockError> {
        let directory = self.queue.path();
        match rustix::fs::flock(&self.queue, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Undone::Busy(Vec::new())),
            Err(errno) => return Err(FileError::on("lock", directory)(errno).into()),
        }
        let free = self.file.try_lock(Mode::Exclusive)?;
        let entries = self.queue.entries()?;
        let mut uses = |seen: &Seen| seen.is_live() || seen.record().is_some_and(|record| !spent(seen, &record));
        let users: Vec<Seen> =
            entries.iter().filter_map(|&entry| self.queue.see(entry)).filter(|seen| uses(seen)).collect();
        if !free || !users.is_empty() {
            return Ok(Undone::Busy(users));
        }
        let file = self.file.path();
        if !dry_run {
            for entry in entries {
                let path = directory.join(file_name(entry));
                fs::remove_file(&path).map_err(FileError::on("remove", &path))?;
            }
            fs::remove_dir(directory).map_err(FileError::on("remove", directory))?;
            fs::remove_file(file).map_err(FileError::on("remove", file))?;
        }
        Ok(Undone::Gone([directory.to_owned(), file.to_owned()]))
    }
}
