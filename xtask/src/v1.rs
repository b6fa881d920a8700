//! Groups of our own in a hierarchy of cgroup v1, on machines that have one: perflock keeps pinned jobs in its cpusets, and
//! it counts what a group used of each processor. Nothing here touches a group that we did not make.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A group, removed when dropped with those below it. It is empty by then: its members were in a v2 group too.
#[derive(Debug)]
pub(crate) struct Group {
    directory: PathBuf,
    entered: bool,
}

impl Group {
    /// Makes a group below the own one. `None` where there is no such hierarchy, or none that we may change.
    pub(crate) fn create(controller: &str, name: &str) -> Option<Self> {
        let parent = own_directory(controller)?;
        let directory = parent.join(name);
        fs::create_dir(&directory).ok()?;
        let group = Self { directory, entered: false };
        // A cpuset is born empty, and then nobody can enter it.
        let copied = ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| controller == "cpuset").try_for_each(|file| {
            let list = fs::read_to_string(parent.join(file))?;
            fs::write(group.directory.join(file), list.trim())
        });
        copied.is_ok().then_some(group)
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Moves this process, of one thread, into it, and with that all that it starts.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn enter(&mut self) -> io::Result<()> {
        enter(&self.directory)?;
        self.entered = true;
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let left = match self.directory.parent() {
            Some(parent) if self.entered => enter(parent),
            _ => Ok(()),
        };
        if let Err(error) = left.and_then(|()| remove_tree(&self.directory)) {
            eprintln!("xtask: cannot remove {}: {error}", self.directory.display());
        }
    }
}

/// Moves this process, of one thread, into a group.
///
/// # Errors
/// The kernel refused.
pub(crate) fn enter(group: &Path) -> io::Result<()> {
    fs::write(group.join("tasks"), "0")
}

/// The groups directly below.
pub(crate) fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Removes a group and those below it.
pub(crate) fn remove_tree(group: &Path) -> io::Result<()> {
    children(group).iter().try_for_each(|child| remove_tree(child))?;
    fs::remove_dir(group)
}

/// Thaws a group of the freezer's hierarchy, and those below it; there is nothing to thaw in others.
pub(crate) fn thaw_tree(group: &Path) {
    // Never made by this: it is the kernel's file.
    let state = fs::OpenOptions::new().write(true).open(group.join("freezer.state"));
    let _ = state.and_then(|mut state| io::Write::write_all(&mut state, b"THAWED"));
    children(group).iter().for_each(|child| thaw_tree(child));
}

/// The directory of the group that this process is in.
pub(crate) fn own_directory(controller: &str) -> Option<PathBuf> {
    let read = |path| fs::read_to_string(path).ok();
    locate(controller, &read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)
}

/// Joins the mount point of a controller's hierarchy and a process's path in it.
fn locate(controller: &str, mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let has = |list: &str| list.split(',').any(|name| name == controller);
    let path = cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        fields.next().filter(|_| has(controllers))
    })?;
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        let below = Path::new(path).strip_prefix(root).ok()?;
        let mut kind = filesystem.split(' ');
        (kind.next() == Some("cgroup") && kind.nth(1).is_some_and(has)).then(|| Path::new(mount).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_the_hierarchy_of_a_controller() {
        let mountinfo = "21 20 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            22 20 0:22 /a /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
            23 20 0:23 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let cgroup = "4:cpu,cpuacct:/b:c\n3:cpuset:/a/b\n0::/d\n";
        assert_eq!(locate("cpuset", mountinfo, cgroup), Some("/sys/fs/cgroup/cpuset/b".into()));
        assert_eq!(locate("cpuacct", mountinfo, cgroup), Some("/sys/fs/cgroup/cpu/b:c".into()));
        assert_eq!(locate("memory", mountinfo, cgroup), None);
        assert_eq!(locate("cpuset", mountinfo, "0::/a\n"), None);
    }
}
