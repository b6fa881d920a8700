//! Setting a machine up: the lock file and the queue directory, once, by root.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode as FileMode, OFlags, Uid};
use rustix::io::Errno;

use super::file::{CAREFULLY, LockFile};
use super::queue::Queue;
use super::{LockError, queue_directory};
use crate::error::FileError;

/// Who may use the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// Everybody.
    All,
    /// One group. Without read permission on the lock file others cannot lock it: flock(2) needs no write
    /// permission, so a 0644 file could be locked exclusively by anybody.
    Group(u32),
    /// Only the user who makes it: `--private`.
    Own,
}

impl Users {
    fn modes(self) -> (u32, u32) {
        match self {
            Self::All => (0o666, 0o1777),
            // Set-group-ID: tickets belong to the group too, whatever their maker's primary group.
            Self::Group(_) => (0o660, 0o3775),
            Self::Own => (0o600, 0o700),
        }
    }

    /// The mode of the directory of histories. What a group's jobs were, only the group sees.
    fn histories_mode(self) -> u32 {
        match self {
            Self::All => 0o1777,
            Self::Group(_) => 0o1770,
            Self::Own => 0o700,
        }
    }
}

/// A file or directory that is made, or whose permissions are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    path: PathBuf,
    made: bool,
    users: Users,
    mode: u32,
}

impl Change {
    /// What the directory of histories needs, for these users; `None` if it is as it should be.
    ///
    /// # Errors
    /// It could not be looked at.
    pub fn of_histories(directory: &Path, users: Users) -> Result<Option<Self>, FileError> {
        Self::needed(directory, users, users.histories_mode())
    }

    /// What a file or directory needs.
    fn needed(path: &Path, users: Users, mode: u32) -> Result<Option<Self>, FileError> {
        let made = match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) => return Err(FileError::on("look at", path)(error)),
            Ok(metadata) if is_right(&metadata, users, mode) => return Ok(None),
            Ok(_) => false,
        };
        Ok(Some(Self { path: path.to_owned(), made, users, mode }))
    }

    /// Makes the directory, or sets its permissions.
    ///
    /// # Errors
    /// Not permitted, or something else stands there.
    pub fn make_directory(&self) -> Result<(), FileError> {
        match rustix::fs::mkdir(&self.path, FileMode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(FileError::on("create", &self.path)(errno)),
        }
        permit(&self.path, self.users, self.mode, OFlags::DIRECTORY).map(|_| ())
    }

    /// Which file or directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was done.
    pub fn done(&self) -> String {
        self.said("created", "set the permissions of")
    }

    /// What `--dry-run` says of it.
    pub fn planned(&self) -> String {
        self.said("would create", "would set the permissions of")
    }

    fn said(&self, make: &str, set: &str) -> String {
        let Self { path, made, users, mode } = self;
        let group = match users {
            Users::All | Users::Own => String::new(),
            Users::Group(gid) => format!("group {gid}, "),
        };
        format!("{} {} ({group}mode {mode:04o})", if *made { make } else { set }, path.display())
    }
}

/// What [`set_up`] would do, with `repair`. Nothing is changed, and nothing has to be permitted.
///
/// # Errors
/// Something else stands in the place of the file or the directory.
pub fn would_set_up(lock: &Path, users: Users) -> Result<Vec<Change>, LockError> {
    let directory = queue_directory(lock);
    let (file_mode, directory_mode) = users.modes();
    let mut changes = Vec::new();
    for (path, mode) in [(&*directory, directory_mode), (lock, file_mode)] {
        changes.extend(Change::needed(path, users, mode)?);
    }
    Ok(changes)
}

/// Creates what is missing, and with `repair` also sets owner group and modes of what exists. Returns what was changed; none if
/// there was nothing to do.
///
/// # Errors
/// Not permitted, or something else stands in the place of the file or the directory.
pub fn set_up(lock: &Path, users: Users, repair: bool) -> Result<Vec<Change>, LockError> {
    let directory = queue_directory(lock);
    let users = if repair { users } else { users_of(lock).unwrap_or(users) };
    let (file_mode, directory_mode) = users.modes();
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made_file = match rustix::fs::open(lock, create, FileMode::from_raw_mode(0o600)) {
        Ok(_) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(FileError::on("create", lock)(errno).into()),
    };
    let made_directory = match rustix::fs::mkdir(&directory, FileMode::from_raw_mode(0o700)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(FileError::on("create", &directory)(errno).into()),
    };
    // Opened with every care, so that a link that somebody put here is refused, not followed.
    LockFile::open(lock)?;
    Queue::open(&directory)?;
    let mut changes = Vec::new();
    // The directory first: a lock file that others may use means that the queue is there.
    let all = [
        (&*directory, made_directory, directory_mode, OFlags::DIRECTORY),
        (lock, made_file, file_mode, OFlags::empty()),
    ];
    for (path, made, mode, flags) in all {
        let changed = (made || repair) && permit(path, users, mode, flags)?;
        if made || changed {
            changes.push(Change { path: path.to_owned(), made, users, mode });
        }
    }
    Ok(changes)
}

/// Who may use a lock file that is there already, as an older set-up leaves it: its queue is for the same.
pub fn users_of(lock: &Path) -> Option<Users> {
    let metadata = std::fs::symlink_metadata(lock).ok()?;
    let for_a_group = metadata.is_file() && metadata.mode() & 0o007 == 0 && metadata.mode() & 0o040 != 0;
    for_a_group.then_some(Users::Group(metadata.gid()))
}

/// Owner and group that a file is to have: whoever owns it could change its mode, so where root sets up it is root's.
fn owners(metadata: &std::fs::Metadata, users: Users) -> (u32, u32) {
    let gid = match users {
        Users::All | Users::Own => metadata.gid(),
        Users::Group(gid) => gid,
    };
    (if rustix::process::geteuid().is_root() { 0 } else { metadata.uid() }, gid)
}

fn is_right(metadata: &std::fs::Metadata, users: Users, mode: u32) -> bool {
    (metadata.mode() & 0o7777, (metadata.uid(), metadata.gid())) == (mode, owners(metadata, users))
}

/// Sets owner, group and mode; false if they were right.
fn permit(path: &Path, users: Users, mode: u32, flags: OFlags) -> Result<bool, FileError> {
    let fd = rustix::fs::open(path, CAREFULLY | flags, FileMode::empty()).map_err(FileError::on("open", path))?;
    let file = std::fs::File::from(fd);
    let metadata = file.metadata().map_err(FileError::on("look at", path))?;
    let right = is_right(&metadata, users, mode);
    if !right {
        let (uid, gid) = owners(&metadata, users);
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&file, "", owner, group, AtFlags::EMPTY_PATH)
            .map_err(FileError::on("set the owner of", path))?;
        rustix::fs::fchmod(&file, FileMode::from_raw_mode(mode)).map_err(FileError::on("set the mode of", path))?;
    }
    Ok(!right)
}

/// The lock file of `--private`: in a directory of the user's own in `/tmp`. Not in `/run/user/UID`, which comes and goes
/// with the user's sessions: two jobs of one user would then have two locks.
pub fn private_path() -> PathBuf {
    PathBuf::from(format!("/tmp/perflock-{}/perflock", rustix::process::geteuid().as_raw()))
}

/// Sets [`private_path`] up. A directory there that somebody else made, or that others can use, is refused.
///
/// # Errors
/// See [`set_up`].
pub fn private_lock() -> Result<PathBuf, LockError> {
    let lock = private_path();
    let directory = lock.parent().unwrap_or(Path::new("/")).to_owned();
    match rustix::fs::mkdir(&directory, FileMode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(FileError::on("create", &directory)(errno).into()),
    }
    let own = rustix::process::geteuid().as_raw();
    let metadata = std::fs::symlink_metadata(&directory).map_err(FileError::on("look at", &directory))?;
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        let kind = "not a directory that only you can use";
        return Err(LockError::WrongKind { path: directory, kind, expected: "one" });
    }
    set_up(&lock, Users::Own, false)?;
    Ok(lock)
}
