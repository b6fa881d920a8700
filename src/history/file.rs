//! Writing a user's own file: one line, whole, at its end.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock, fstat};
use rustix::io::Errno;

use super::line::Line;
use super::{Keeping, Size, file_of, full};
use crate::error::{FileError, reason};
use crate::text;

/// Without O_CREAT: in a sticky directory that is refused for another user's file (`fs.protected_regular`), and what stands there is
/// to be looked at. Without waiting: a FIFO or a lease must not hang us.
const APPEND: OFlags = OFlags::WRONLY
    .union(OFlags::APPEND)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// The modes of the user's file in everybody's directory, and in the user's own.
const FOR_ALL: u32 = 0o644;
const FOR_ONESELF: u32 = 0o600;

/// Writes a line to the history of the user who runs this: where others see it, or else, if it is not `is_for_all`, where nobody
/// does. False if that user has no place for one.
///
/// # Errors
/// It could not be written, or the file is not the user's own.
pub fn append(keeping: &Keeping, is_for_all: bool, line: &Line) -> Result<bool, FileError> {
    let Size::Bytes(limit) = keeping.size else { return Ok(false) };
    if is_for_all {
        let path = file_of(&keeping.directory, rustix::process::geteuid().as_raw());
        match open(&path, FOR_ALL) {
            // No directory, or none for this user.
            Err(Errno::NOENT | Errno::ACCESS | Errno::NOTDIR) => {}
            opened => return write(&path, FOR_ALL, opened, limit, line).map(|()| true),
        }
    }
    match &keeping.own_file {
        Some(path) => append_to_own(path, limit, line),
        None => Ok(false),
    }
}

/// The same to the user's own file. Under sudo(8) that may be another's, who would not get at what root made there: it is no place
/// for a line then.
fn append_to_own(path: &Path, limit: u64, line: &Line) -> Result<bool, FileError> {
    let is_useless = |errno| matches!(errno, Errno::NOENT | Errno::ACCESS | Errno::NOTDIR | Errno::PERM | Errno::ROFS);
    // What another user's directory has for one, a link to somewhere else say, is not followed either.
    let own = rustix::process::geteuid().as_raw();
    if path.parent().and_then(|directory| rustix::fs::lstat(directory).ok()).is_some_and(|found| found.st_uid != own) {
        return Ok(false);
    }
    let opened = match rustix::fs::lstat(path) {
        Ok(found) if found.st_uid != own => return Ok(false),
        Ok(_) => open(path, FOR_ONESELF),
        Err(_) => make_directory(path).and_then(|()| open(path, FOR_ONESELF)),
    };
    match opened {
        Err(errno) if is_useless(errno) => Ok(false),
        opened => write(path, FOR_ONESELF, opened, limit, line).map(|()| true),
    }
}

/// Makes the directory that the user's own file is in, inside of one of the user's.
fn make_directory(path: &Path) -> Result<(), Errno> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let above = directory.ancestors().find_map(|above| rustix::fs::stat(above).ok()).ok_or(Errno::NOENT)?;
    if above.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::PERM);
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Opens the file, which is made where it is missing.
fn open(path: &Path, mode: u32) -> Result<File, Errno> {
    loop {
        let missing = match rustix::fs::open(path, APPEND, Mode::empty()) {
            Ok(fd) => return Ok(fd.into()),
            // Also where the directory is not ours to look into, or another user's file stands here.
            Err(errno @ (Errno::NOENT | Errno::ACCESS)) => errno,
            Err(errno) => return Err(errno),
        };
        match rustix::fs::open(path, APPEND | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(mode)) {
            Ok(fd) => {
                // Whatever the umask is.
                rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
                return Ok(fd.into());
            }
            // Another job of ours made it just now.
            Err(Errno::EXIST) if missing == Errno::NOENT => {}
            Err(Errno::EXIST) => return Err(Errno::PERM),
            Err(errno) => return Err(errno),
        }
    }
}

fn write(path: &Path, mode: u32, opened: Result<File, Errno>, limit: u64, line: &Line) -> Result<(), FileError> {
    let text = line.to_text();
    let opened = opened.map_err(|errno| match errno {
        Errno::PERM => io::Error::other(NOT_YOURS),
        errno => errno.into(),
    });
    let written = opened.and_then(|file| {
        let length = length_of_our_own(&file)?;
        if length > 0 && length + text.len() as u64 > limit {
            return begin_anew(path, mode, file, length / 2 < limit)?.write_all(&text);
        }
        (&file).write_all(&text)
    });
    written.map_err(FileError::on("write history to", path))
}

/// What anybody may put into everybody's directory.
const NOT_YOURS: &str = "it is not a file of your own; root can remove it";

/// How long the file is, if it is one that nobody else put here: another's, or a second name of something that is ours.
fn length_of_our_own(file: &File) -> io::Result<u64> {
    let found = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    match found.is_file() && found.uid() == own && found.nlink() == 1 {
        true => Ok(found.len()),
        false => Err(io::Error::other(NOT_YOURS)),
    }
}

/// Renames the file, which is full, over the one before it, and begins another. Two jobs that end at once do that once: with a lock
/// that takes the right to write, so that others can keep it from us only by one for reading. Then the file grows on if it may.
fn begin_anew(path: &Path, mode: u32, file: File, may_grow: bool) -> io::Result<File> {
    if fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err() && may_grow {
        return Ok(file);
    }
    let ours = fstat(&file)?;
    // Else somebody has renamed it meanwhile.
    if rustix::fs::lstat(path).is_ok_and(|named| (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)) {
        match rustix::fs::rename(path, full(path)) {
            // Another user's file stands there.
            Err(_) if may_grow => return Ok(file),
            Err(errno) => {
                let target = text::path(&full(path));
                return Err(io::Error::other(format!("it cannot be renamed to {target}: {}", reason(&errno.into()))));
            }
            Ok(()) => {}
        }
    }
    let new: File = open(path, mode)?;
    length_of_our_own(&new)?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::line::tests::line;
    use crate::history::{LEAST_SIZE, read};
    use std::fs;
    use std::os::unix::fs::symlink;

    fn keeping(root: &Path) -> Keeping {
        let (directory, own_file) = (root.join("all"), Some(root.join("a/b/own.jsonl")));
        Keeping { directory, own_file, size: Size::Bytes(LEAST_SIZE), ..Keeping::default() }
    }

    fn numbers(keeping: &Keeping) -> Vec<u64> {
        let mut numbers = Vec::new();
        for source in read::of_everybody(keeping).0 {
            assert_eq!(source.read(None, &mut |line| numbers.push(line.number)).unwrap(), 0);
        }
        numbers
    }

    #[test]
    fn a_line_goes_to_the_directory_or_else_to_the_user_s_own_file() {
        let root = tempfile::tempdir().unwrap();
        let keeping = keeping(root.path());
        let write = |number| append(&keeping, true, &Line { number, ..line() }).unwrap();
        assert!(write(1));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&root.path().join("a/b")), mode(&root.path().join("a/b/own.jsonl"))), (0o700, 0o600));
        fs::create_dir(&keeping.directory).unwrap();
        assert!(write(2));
        assert_eq!(mode(&file_of(&keeping.directory, rustix::process::geteuid().as_raw())), 0o644);
        assert_eq!(numbers(&keeping), [1, 2]);
        // Nowhere to go, and nothing wrong with that.
        let nowhere = Keeping { directory: "/nowhere".into(), own_file: None, ..keeping.clone() };
        assert!(!append(&nowhere, true, &line()).unwrap());
        let nowhere = Keeping { own_file: Some("/dev/null/x/y".into()), ..nowhere };
        assert!(!append(&nowhere, true, &line()).unwrap());
        // Another user's home, as under sudo: what is there is that user's.
        if rustix::process::geteuid().is_root() {
            let home = root.path().join("home");
            fs::create_dir(&home).unwrap();
            let other = Keeping { own_file: Some(home.join("state/history.jsonl")), ..nowhere };
            std::os::unix::fs::chown(&home, Some(41_001), None).unwrap();
            assert!(!append(&other, true, &line()).unwrap() && !home.join("state").exists());
            let theirs = home.join("history.jsonl");
            fs::write(&theirs, "").unwrap();
            std::os::unix::fs::chown(&theirs, Some(41_001), None).unwrap();
            let other = Keeping { own_file: Some(theirs.clone()), ..other };
            assert!(!append(&other, true, &line()).unwrap() && fs::read(&theirs).unwrap().is_empty());
        }
    }

    #[test]
    fn a_file_that_is_full_is_renamed_over_the_one_before() {
        let root = tempfile::tempdir().unwrap();
        let keeping = keeping(root.path());
        fs::create_dir(&keeping.directory).unwrap();
        for number in 0..200 {
            assert!(append(&keeping, true, &Line { number, ..line() }).unwrap());
        }
        let sizes: Vec<u64> =
            fs::read_dir(&keeping.directory).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).collect();
        assert!(sizes.len() == 2 && sizes.iter().all(|&size| size <= LEAST_SIZE), "{sizes:?}");
        let numbers = numbers(&keeping);
        assert_eq!(numbers, (numbers[0]..200).collect::<Vec<_>>());
        assert!(numbers.len() as u64 > LEAST_SIZE / 500, "{numbers:?}");
    }

    /// In a sticky directory anybody may put one there first.
    #[test]
    fn a_file_that_cannot_be_renamed_grows_but_not_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let keeping = keeping(root.path());
        fs::create_dir(&keeping.directory).unwrap();
        let path = file_of(&keeping.directory, rustix::process::geteuid().as_raw());
        fs::create_dir(full(&path)).unwrap();
        let failed = (0..400).find_map(|number| append(&keeping, true, &Line { number, ..line() }).err());
        let error = failed.unwrap().to_string();
        let why = format!("it cannot be renamed to {}: Is a directory", full(&path).display());
        assert!(error.ends_with(&why), "{error}");
        assert!((LEAST_SIZE..2 * LEAST_SIZE + 4096).contains(&fs::metadata(&path).unwrap().len()));
    }

    #[test]
    fn what_is_not_for_all_is_nobody_else_s_to_see() {
        let root = tempfile::tempdir().unwrap();
        let keeping = keeping(root.path());
        fs::create_dir(&keeping.directory).unwrap();
        assert!(append(&keeping, false, &line()).unwrap());
        assert_eq!(fs::read_dir(&keeping.directory).unwrap().count(), 0);
        assert_eq!(numbers(&keeping), [line().number]);
    }

    /// Another that renames at the same time keeps its lock on the file: it is appended to, until it is twice too large.
    #[test]
    fn while_another_renames_the_file_grows_but_not_for_ever() {
        let root = tempfile::tempdir().unwrap();
        let keeping = keeping(root.path());
        fs::create_dir(&keeping.directory).unwrap();
        let path = file_of(&keeping.directory, rustix::process::geteuid().as_raw());
        append(&keeping, true, &line()).unwrap();
        // One of an open file, not of this process: that would not be in its own way.
        let other = File::open(&path).unwrap();
        let reading = libc::flock {
            l_type: libc::F_RDLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        nix::fcntl::fcntl(&other, nix::fcntl::FcntlArg::F_OFD_SETLK(&reading)).unwrap();
        let mut largest = 0;
        for number in 0..400 {
            append(&keeping, true, &Line { number, ..line() }).unwrap();
            largest = largest.max(fs::metadata(&path).unwrap().len());
            if full(&path).exists() {
                break;
            }
        }
        assert!(full(&path).exists() && (LEAST_SIZE..2 * LEAST_SIZE + 4096).contains(&largest), "{largest}");
    }

    #[test]
    fn lines_that_are_written_at_once_do_not_mix() {
        let root = tempfile::tempdir().unwrap();
        let keeping = Keeping { size: Size::Bytes(1 << 30), ..keeping(root.path()) };
        fs::create_dir(&keeping.directory).unwrap();
        std::thread::scope(|scope| {
            for first in [0, 1000, 2000, 3000] {
                let keeping = &keeping;
                scope.spawn(move || {
                    (first..first + 300).for_each(|number| {
                        append(keeping, true, &Line { number, ..line() }).unwrap();
                    });
                });
            }
        });
        let mut numbers = numbers(&keeping);
        numbers.sort_unstable();
        let all: Vec<u64> = [0, 1000, 2000, 3000].into_iter().flat_map(|first| first..first + 300).collect();
        assert_eq!(numbers, all);
    }

    #[test]
    fn what_others_put_there_is_not_written_to() {
        let root = tempfile::tempdir().unwrap();
        let keeping = keeping(root.path());
        fs::create_dir(&keeping.directory).unwrap();
        let (path, target) = (file_of(&keeping.directory, rustix::process::geteuid().as_raw()), root.path().join("t"));
        fs::write(&target, "").unwrap();
        let refused = |why: &str| {
            let error = append(&keeping, true, &line()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot write history to {}: ", path.display())), "{error}");
            assert!(error.contains(why), "{error}");
            assert_eq!(fs::read(&target).unwrap(), b"");
            fs::remove_file(&path).unwrap();
        };
        symlink(&target, &path).unwrap();
        refused("symbolic links");
        fs::hard_link(&target, &path).unwrap();
        refused("it is not a file of your own");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        refused("No such device");
    }
}
