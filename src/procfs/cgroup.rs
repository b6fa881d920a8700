//! The cgroups of a process: `/proc/PID/cgroup`, cgroups(7).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Proc, read};

impl Proc {
    /// The process's cgroup in the v2 hierarchy, as seen from our cgroup namespace: the `0::` line of `/proc/PID/cgroup`.
    ///
    /// # Errors
    /// The process is gone or hidden, or the kernel has no v2 hierarchy.
    pub fn cgroup_v2(&self, pid: i32) -> io::Result<PathBuf> {
        parse_cgroup_v2(&read(&self.file(pid, "cgroup"))?).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// Our own cgroup in the v2 hierarchy.
    ///
    /// # Errors
    /// The kernel has no v2 hierarchy, or `/proc` is not mounted.
    pub fn own_cgroup_v2(&self) -> io::Result<PathBuf> {
        let path = self.root.join("self/cgroup");
        parse_cgroup_v2(&read(&path)?).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// The process's cgroups in every hierarchy, that of v2 first: a job's own may be in any.
    ///
    /// # Errors
    /// The process is gone or hidden.
    pub fn cgroups(&self, pid: i32) -> io::Result<Vec<PathBuf>> {
        Ok(parse_cgroups(&read(&self.file(pid, "cgroup"))?))
    }

    /// Our own cgroups in every hierarchy.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn own_cgroups(&self) -> io::Result<Vec<PathBuf>> {
        Ok(parse_cgroups(&read(&self.root.join("self/cgroup"))?))
    }

    /// The cgroup of a process, or of a thread, in the v1 hierarchy that has this controller; `None` if there is none.
    ///
    /// # Errors
    /// The process is gone or hidden.
    pub fn cgroup_v1(&self, pid: i32, controller: &str) -> io::Result<Option<PathBuf>> {
        Ok(parse_cgroup_v1(&read(&self.file(pid, "cgroup"))?, controller))
    }

    /// Our own cgroup in the v1 hierarchy that has this controller; `None` if there is none.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn own_cgroup_v1(&self, controller: &str) -> io::Result<Option<PathBuf>> {
        Ok(parse_cgroup_v1(&read(&self.root.join("self/cgroup"))?, controller))
    }
}

pub(crate) fn parse_cgroup_v2(file: &[u8]) -> Option<PathBuf> {
    let path = file.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    // The kernel appends this when the process's group was removed under it.
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    Some(Path::new(OsStr::from_bytes(path)).to_owned())
}

/// Every path, those that are the same once.
pub(crate) fn parse_cgroups(file: &[u8]) -> Vec<PathBuf> {
    let v1 = file.split(|&b| b == b'\n').filter_map(|line| {
        let (number, path) = (line.first()?, line.splitn(3, |&b| b == b':').nth(2)?);
        (*number != b'0').then(|| Path::new(OsStr::from_bytes(path)).to_owned())
    });
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in parse_cgroup_v2(file).into_iter().chain(v1) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// The path in the v1 hierarchy that has this controller: a line `3:cpu,cpuset:/path`.
pub(crate) fn parse_cgroup_v1(file: &[u8], controller: &str) -> Option<PathBuf> {
    let path = file.split(|&b| b == b'\n').find_map(|line| {
        let mut parts = line.splitn(3, |&b| b == b':').skip(1);
        let controllers = parts.next()?;
        controllers.split(|&b| b == b',').any(|name| name == controller.as_bytes()).then(|| parts.next())?
    })?;
    Some(Path::new(OsStr::from_bytes(path)).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_line_is_found_among_v1_lines() {
        let file = b"9:name=systemd:/\n4:memory:/x\n0::/user.slice/a (deleted)\n";
        assert_eq!(parse_cgroup_v2(file), Some(PathBuf::from("/user.slice/a")));
        assert_eq!(parse_cgroup_v2(b"4:memory:/x\n"), None);
    }

    #[test]
    fn every_group_is_found_that_of_v2_first() {
        let file = b"10:name=systemd:/s:t\n4:memory:/x\n3:cpu,cpuacct:/x\n0::/user.slice\n";
        assert_eq!(parse_cgroups(file), ["/user.slice", "/s:t", "/x"].map(PathBuf::from));
        assert_eq!(parse_cgroups(b"4:freezer:/a\n\n::\n4:\n"), ["/a", ""].map(PathBuf::from));
    }

    #[test]
    fn a_controller_s_line_is_found() {
        let file = b"9:name=systemd:/s\n4:cpu,cpuset:/x:y\n0::/user.slice\n";
        assert_eq!(parse_cgroup_v1(file, "cpuset"), Some(PathBuf::from("/x:y")));
        assert_eq!(parse_cgroup_v1(file, "cpu"), Some(PathBuf::from("/x:y")));
        for other in ["memory", "", "pu", "name=system"] {
            assert_eq!(
                parse_cgroup_v1(file, other),
                (other.is_empty()).then(|| PathBuf::from("/user.slice")),
                "{other}"
            );
        }
    }
}
