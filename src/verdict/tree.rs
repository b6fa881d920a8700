//! The counters of the groups of a mounted v2 hierarchy, each read by one open, one read and one close.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

use crate::cgroup::usage::keyed;

/// The mounted part of a hierarchy; groups are named by their path in it.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The file that is asked for: what is read of a thousand groups is not to be allocated a thousand times.
    file: Vec<u8>,
}

impl Tree {
    pub(super) fn open(mount: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(mount, flags, Mode::empty())?, file: Vec::new() })
    }

    /// Whether its root is an ordinary group, as in a cgroup namespace: the hierarchy's own root has no such file.
    pub(super) fn is_a_part(&mut self) -> bool {
        self.name(Path::new(""), "cgroup.events");
        statat(&self.root, &*self.file, AtFlags::empty()).is_ok()
    }

    /// The CPU time of a group and all below it, those that were removed included. `None`: it is gone.
    pub(super) fn usage_usec(&mut self, group: &Path) -> io::Result<Option<u64>> {
        let mut text = [0; 512];
        let length = match self.read(group, "cpu.stat", &mut text) {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other?,
        };
        let usage = std::str::from_utf8(&text[..length]).ok().and_then(|text| keyed(text, "usage_usec"));
        usage.map(Some).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// The groups directly below; none if it is gone.
    pub(super) fn children(&mut self, group: &Path) -> io::Result<Vec<PathBuf>> {
        match self.list(group) {
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            other => other,
        }
    }

    /// How many groups are directly below, which is known without listing them.
    pub(super) fn count_children(&mut self, group: &Path) -> usize {
        self.name(group, ".");
        let links = statat(&self.root, &*self.file, AtFlags::empty()).map_or(2, |stat| stat.st_nlink);
        // kernfs counts a directory's links: its own two, and one for each directory in it.
        usize::try_from(links.saturating_sub(2)).unwrap_or(usize::MAX)
    }

    fn list(&mut self, group: &Path) -> io::Result<Vec<PathBuf>> {
        // To read the names of a group's many files takes longest, and most have no group below them.
        if self.count_children(group) == 0 {
            return Ok(Vec::new());
        }
        self.name(group, ".");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = Dir::new(openat(&self.root, &*self.file, flags, Mode::empty())?)?;
        let mut below = Vec::new();
        for entry in directory {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
                below.push(group.join(OsStr::from_bytes(name)));
            }
        }
        Ok(below)
    }

    /// The inode number of a group: one that was made later has a higher one.
    pub(super) fn inode(&mut self, group: &Path) -> Option<u64> {
        self.name(group, ".");
        Some(statat(&self.root, &*self.file, AtFlags::empty()).ok()?.st_ino)
    }

    /// The numbers of the processes that are in the root itself; 0 stands for one of another pid namespace.
    pub(super) fn processes_of_the_root(&mut self) -> io::Result<Vec<i32>> {
        self.name(Path::new(""), "cgroup.procs");
        let file = openat(&self.root, &*self.file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = Vec::new();
        io::Read::read_to_end(&mut std::fs::File::from(file), &mut text)?;
        Ok(String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse().ok()).collect())
    }

    fn read(&mut self, group: &Path, name: &str, into: &mut [u8]) -> io::Result<usize> {
        self.name(group, name);
        let file = openat(&self.root, &*self.file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::io::pread(&file, into, 0)?)
    }

    fn name(&mut self, group: &Path, name: &str) {
        self.file.clear();
        let group = group.as_os_str().as_bytes();
        self.file.extend_from_slice(group);
        if !group.is_empty() {
            self.file.push(b'/');
        }
        self.file.extend_from_slice(name.as_bytes());
    }
}

/// A group that was removed, before its file was opened or after.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn groups_are_read_and_what_is_odd_is_no_number() {
        let root = tempfile::tempdir().unwrap();
        let stat = |group: &str, text: &str| {
            fs::create_dir_all(root.path().join(group)).unwrap();
            fs::write(root.path().join(group).join("cpu.stat"), text).unwrap();
        };
        stat("a", "usage_usec 18446744073709551615\nuser_usec 1\n");
        stat("a/b\n\u{1b}", "usage_usec 7\n");
        stat("big", "usage_usec 18446744073709551616\n");
        stat("odd", "\0\u{ff}usage_usec x\n");
        stat("none", "");
        fs::create_dir(root.path().join("empty")).unwrap();
        fs::write(root.path().join("cgroup.procs"), "1\n0\n77\nx\n").unwrap();
        let mut tree = Tree::open(root.path()).unwrap();
        assert_eq!(tree.usage_usec(Path::new("a")).unwrap(), Some(u64::MAX));
        assert_eq!(tree.usage_usec(Path::new("a/b\n\u{1b}")).unwrap(), Some(7));
        for odd in ["big", "odd", "none"] {
            assert_eq!(tree.usage_usec(Path::new(odd)).unwrap_err().kind(), io::ErrorKind::InvalidData, "{odd}");
        }
        for gone in ["empty", "gone"] {
            assert_eq!(tree.usage_usec(Path::new(gone)).unwrap(), None, "{gone}");
        }
        let mut groups = tree.children(Path::new("")).unwrap();
        groups.sort();
        assert_eq!(groups, ["a", "big", "empty", "none", "odd"].map(PathBuf::from));
        assert_eq!(tree.children(Path::new("a")).unwrap(), [PathBuf::from("a/b\n\u{1b}")]);
        assert_eq!(tree.children(Path::new("gone")).unwrap(), [] as [PathBuf; 0]);
        assert_eq!(tree.processes_of_the_root().unwrap(), [1, 0, 77]);
        assert!(!tree.is_a_part());
        fs::write(root.path().join("cgroup.events"), "").unwrap();
        assert!(tree.is_a_part());
    }
}
