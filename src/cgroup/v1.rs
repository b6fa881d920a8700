//! Where the hierarchies of cgroup v1 are mounted: on a hybrid machine each has controllers of its own.

use std::path::{Path, PathBuf};

use super::detect::unescape;
use super::v2::Location;

/// Where the group with this path in the hierarchy that has `controller` can be found.
pub(crate) fn locate(mountinfo: &str, controller: &str, path: &Path) -> Option<Location> {
    let mounts = mountinfo.lines().filter_map(|line| parse_mount(line, controller));
    let mut found = mounts.filter_map(|(root, mount)| {
        let relative = path.strip_prefix(root).ok()?.to_owned();
        Some(Location { mount, relative, path: path.to_owned() })
    });
    found.find(Location::is_plain)
}

/// Root and mount point, if the line is a mount of the hierarchy that has `controller`: proc_pid_mountinfo(5).
fn parse_mount(line: &str, controller: &str) -> Option<(PathBuf, PathBuf)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut kind = filesystem.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    if name != "cgroup" || !options.split(',').any(|option| option == controller) {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    Some((unescape(fields.next()?), unescape(fields.next()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID: &str = "20 1 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        21 20 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        22 20 0:22 /a /sys/fs/cgroup/cpu\\040set rw,relatime shared:9 - cgroup cgroup rw,cpuset\n\
        23 20 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_controller_s_hierarchy_is_found_among_the_others() {
        let found = |path: &str| locate(HYBRID, "cpuset", Path::new(path));
        assert_eq!(found("/a/b").unwrap().directory(), Path::new("/sys/fs/cgroup/cpu set/b"));
        assert_eq!(found("/b"), None);
        assert_eq!(found("/a/../b"), None);
        let cpuacct = locate(HYBRID, "cpuacct", Path::new("/b")).unwrap();
        assert_eq!(cpuacct.directory(), Path::new("/sys/fs/cgroup/cpu/b"));
        for other in ["freezer", "cgroup", "rw,cpuset", ""] {
            assert_eq!(locate(HYBRID, other, Path::new("/a/b")), None, "{other}");
        }
        assert_eq!(locate("", "cpuset", Path::new("/")), None);
    }

    proptest! {
        #[test]
        fn any_mountinfo_is_read_without_panic(text: String, path in "(/|[.]{1,2}|a){0,6}") {
            let _ = locate(&text, "cpuset", Path::new(&path));
            let line = format!("22 20 0:22 / /m rw - cgroup cgroup rw,cpuset\n{text}");
            if let Some(found) = locate(&line, "cpuset", Path::new(&path)) {
                prop_assert!(found.directory().starts_with("/m") && found.is_plain());
            }
        }
    }
}
