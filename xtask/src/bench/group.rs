//! The cgroup that the bench makes for itself. Other people's processes live in the same hierarchy, so nothing here
//! touches a group whose name is not the bench's.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Failure;

/// How the names of groups begin that may be killed: the bench's own, and job groups that perflock made below it.
const KILLABLE: [&str; 2] = [PREFIX, "perflock-"];

/// How the name of the bench's own group begins.
pub(super) const PREFIX: &str = "plbench-";

/// How long members may take to die.
const DEATHS: Duration = Duration::from_secs(30);

/// A group of the bench, removed when dropped with everything in it.
#[derive(Debug)]
pub(super) struct Group {
    /// Its directory.
    directory: PathBuf,
}

impl Group {
    /// Makes the group `plbench-PID` below the own one.
    ///
    /// # Errors
    /// There is no cgroup v2 hierarchy, or it is not ours to write to.
    pub(super) fn create() -> Result<Self, Failure> {
        let parent = own_directory()?;
        let directory = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&directory).map_err(|error| {
            format!(
                "cannot make a group in {}: {error}; the bench needs a cgroup that it can write to: run it as root, or \
                 with systemd-run --user --scope --property Delegate=yes",
                parent.display()
            )
        })?;
        Ok(Self { directory })
    }

    /// Its directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file that a process writes "0" to in order to become a member.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn members_file(&self) -> Result<File, Failure> {
        open_for_writing(&self.directory.join("cgroup.procs"))
    }

    /// The file that kills every member when "1" is written to it.
    ///
    /// # Errors
    /// The group is not one of the bench, or the kernel is older than 5.14.
    pub(super) fn kill_file(&self) -> Result<File, Failure> {
        let name = self.directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !KILLABLE.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(format!("refusing to kill {}: it is not the bench's", self.directory.display()));
        }
        open_for_writing(&self.directory.join("cgroup.kill"))
    }

    /// Kills every member and waits until none is left.
    fn end(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + DEATHS;
        while !fs::read_to_string(self.directory.join("cgroup.events")).is_ok_and(|text| text.contains("populated 0")) {
            if Instant::now() > deadline {
                return Err(format!("processes in {} do not die", self.directory.display()));
            }
            // Again and again: before Linux 6.14 a fork in flight can survive one write.
            std::io::Write::write_all(&mut &self.kill_file()?, b"1")
                .map_err(|error| format!("cannot kill {}: {error}", self.directory.display()))?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let removed = self.end().and_then(|()| {
            remove_tree(&self.directory).map_err(|error| format!("cannot remove {}: {error}", self.directory.display()))
        });
        if let Err(message) = removed {
            eprintln!("xtask: {message}");
        }
    }
}

/// Removes a group and those below it.
fn remove_tree(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// Opens a file of a group, never making it.
fn open_for_writing(path: &Path) -> Result<File, Failure> {
    OpenOptions::new().write(true).open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))
}

/// The directory of the group in the v2 hierarchy that this process is in.
fn own_directory() -> Result<PathBuf, Failure> {
    let read = |path| fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
    locate(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)
        .ok_or_else(|| "no cgroup v2 hierarchy is mounted here".to_owned())
}

/// Joins the mount point of the v2 hierarchy and a process's path in it.
fn locate(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        let below = Path::new("/").join(path).strip_prefix(root).ok()?.to_owned();
        filesystem.starts_with("cgroup2 ").then(|| Path::new(mount).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_below_the_mount() {
        let mountinfo = "21 20 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            22 20 0:22 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(locate(mountinfo, "1:cpu:/\n0::/a\n"), Some("/sys/fs/cgroup/unified/a".into()));
        assert_eq!(locate("", "0::/a\n"), None);
    }

    #[test]
    fn a_group_of_another_name_is_never_killed() {
        for name in ["/", "/sys/fs/cgroup/system.slice", "/plbench-1/other"] {
            let group = std::mem::ManuallyDrop::new(Group { directory: name.into() });
            assert!(group.kill_file().unwrap_err().contains("refusing"), "{name}");
        }
    }
}
