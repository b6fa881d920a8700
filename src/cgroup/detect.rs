//! Which backend this machine offers to this process.
//!
//! The candidates are tried from the strongest down; each one that is refused says why. Places in the order are kept
//! for transient systemd scopes (before v2, since systemd may clean what it does not know) and for cgroup v1 (after
//! v2): a candidate is a function from the machine to a [`Place`] or a [`Refusal`].

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags};

use super::Backend;
use super::v2::Location;
use crate::procfs::{self, Proc};

/// Where a job group will be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Directly below this group.
    V2(Location),
    /// Nowhere: the fallback.
    Subreaper,
}

impl Place {
    /// The backend that makes it.
    pub fn backend(&self) -> Backend {
        match self {
            Self::V2(_) => Backend::V2,
            Self::Subreaper => Backend::Subreaper,
        }
    }
}

/// A backend that cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which.
    pub backend: Backend,
    /// Why, as a sentence fragment.
    pub why: String,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The strongest place there is.
    pub place: Place,
    /// The stronger ones, and why not.
    pub refused: Vec<Refusal>,
}

impl Detected {
    /// Why not stronger, in one line.
    pub fn reasons(&self) -> String {
        let reasons = self.refused.iter().map(|refusal| format!("{}: {}", refusal.backend, refusal.why));
        reasons.collect::<Vec<_>>().join("; ")
    }
}

/// Looks for the strongest backend.
pub fn detect(proc: &Proc, mountinfo: &str) -> Detected {
    match v2_candidate(proc, mountinfo) {
        Ok(place) => Detected { place, refused: Vec::new() },
        Err(why) => Detected { place: Place::Subreaper, refused: vec![Refusal { backend: Backend::V2, why }] },
    }
}

/// `/proc/self/mountinfo`; empty where it cannot be read, which finds nothing.
pub fn own_mountinfo() -> String {
    String::from_utf8_lossy(&procfs::read(Path::new("/proc/self/mountinfo")).unwrap_or_default()).into_owned()
}

/// A group of ours can be made, and a child born into it, when our own group's directory and its `cgroup.procs` are
/// writable: cgroups(7), and for `CLONE_INTO_CGROUP` the common ancestor rule of cgroup-v2.rst.
fn v2_candidate(proc: &Proc, mountinfo: &str) -> Result<Place, String> {
    let own = own_location(proc, mountinfo)?;
    // The root group has no such file, on any kernel.
    let is_root = own.path == Path::new("/");
    let kernel = rustix::system::uname();
    let killable = if is_root {
        has_cgroup_kill(&kernel.release().to_string_lossy())
    } else {
        own.directory().join("cgroup.kill").exists()
    };
    if !killable {
        return Err("the kernel has no cgroup.kill (Linux 5.14)".to_owned());
    }
    if !has_clone3() {
        return Err("clone3(2) is refused, by a container's filter or an old kernel".to_owned());
    }
    let directory = own.directory();
    for (file, needed) in
        [(directory.clone(), Access::WRITE_OK | Access::EXEC_OK), (directory.join("cgroup.procs"), Access::WRITE_OK)]
    {
        rustix::fs::accessat(rustix::fs::CWD, &file, needed, AtFlags::EACCESS).map_err(|errno| {
            format!("no write access to {}: {}", file.display(), crate::error::reason(&errno.into()))
        })?;
    }
    let kind = fs::read_to_string(directory.join("cgroup.type")).unwrap_or_default();
    match kind.trim() {
        "" | "domain" => Ok(Place::V2(own)),
        other => Err(format!("{} is a {other} group, which cannot hold a job group", directory.display())),
    }
}

/// Whether a kernel of this release has `cgroup.kill`.
fn has_cgroup_kill(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 14)
}

/// Whether clone3(2) is there. With arguments of no size it does nothing but say that they are wrong.
fn has_clone3() -> bool {
    // SAFETY: no memory is given, and a size of zero is refused before anything is done.
    let answer = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::clone_args>(), 0) };
    answer != -1 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Our own group in the v2 hierarchy.
///
/// # Errors
/// A sentence fragment: no hierarchy, or our group cannot be seen in it.
pub fn own_location(proc: &Proc, mountinfo: &str) -> Result<Location, String> {
    let path = proc.own_cgroup_v2().map_err(|_| "the kernel has no cgroup v2 hierarchy".to_owned())?;
    locate(mountinfo, &path)
}

/// Where the group with this path in the hierarchy can be found.
///
/// # Errors
/// A sentence fragment: no mount shows it.
pub fn locate(mountinfo: &str, path: &Path) -> Result<Location, String> {
    let mounts: Vec<(PathBuf, PathBuf)> = mountinfo.lines().filter_map(parse_cgroup2_mount).collect();
    if mounts.is_empty() {
        return Err("no cgroup v2 hierarchy is mounted".to_owned());
    }
    let found = mounts.into_iter().find_map(|(root, mount)| {
        let relative = path.strip_prefix(root).ok()?.to_owned();
        Some(Location { mount, relative, path: path.to_owned() })
    });
    found.filter(|found| !found.relative.starts_with("..")).ok_or_else(|| {
        format!("the group {} is not in the part of the cgroup v2 hierarchy that is mounted here", path.display())
    })
}

/// Root and mount point, if the line is a cgroup2 mount: proc_pid_mountinfo(5).
fn parse_cgroup2_mount(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    if filesystem.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    Some((unescape(fields.next()?), unescape(fields.next()?)))
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID: &str = "20 1 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        21 20 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        22 20 0:22 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_hybrid_mount_is_found() {
        let found = locate(HYBRID, Path::new("/a/b")).unwrap();
        assert_eq!(found.directory(), Path::new("/sys/fs/cgroup/unified/a/b"));
        assert_eq!(found.path, Path::new("/a/b"));
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_stripped() {
        let line = r"22 20 0:22 /docker/7 /my\040cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(locate(line, Path::new("/docker/7/x")).unwrap().directory(), Path::new("/my cgroup/x"));
        assert!(locate(line, Path::new("/elsewhere")).unwrap_err().contains("not in the part"));
    }

    #[test]
    fn a_group_outside_our_namespace_is_refused() {
        assert!(locate(HYBRID, Path::new("/../other")).is_err());
        assert_eq!(locate("", Path::new("/")).unwrap_err(), "no cgroup v2 hierarchy is mounted");
    }

    /// A captured `/proc` and cgroup tree: our group is `/ci`, mounted at the returned path.
    fn captured(kind: &str) -> (tempfile::TempDir, Proc, String) {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("cgroup/ci");
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::create_dir_all(&group).unwrap();
        fs::write(root.path().join("proc/self/cgroup"), "1:cpu:/\n0::/ci\n").unwrap();
        fs::write(group.join("cgroup.procs"), "").unwrap();
        fs::write(group.join("cgroup.type"), kind).unwrap();
        fs::write(group.join("cgroup.kill"), "").unwrap();
        let mountinfo = format!("22 20 0:22 / {}/cgroup rw - cgroup2 cgroup2 rw\n", root.path().display());
        let proc = Proc::at(root.path().join("proc"));
        (root, proc, mountinfo)
    }

    #[test]
    fn a_writable_group_is_chosen() {
        let (root, proc, mountinfo) = captured("domain\n");
        let found = detect(&proc, &mountinfo);
        assert!(
            matches!(&found.place, Place::V2(own) if own.directory() == root.path().join("cgroup/ci")),
            "{found:?}"
        );
        assert_eq!(found.refused, []);
    }

    #[test]
    fn a_threaded_group_is_refused_with_its_reason() {
        let (_root, proc, mountinfo) = captured("threaded\n");
        let found = detect(&proc, &mountinfo);
        assert_eq!(found.place, Place::Subreaper);
        assert!(found.refused[0].why.contains("is a threaded group"), "{found:?}");
    }

    #[test]
    fn a_missing_hierarchy_is_refused_with_its_reason() {
        let (_root, proc, _) = captured("domain\n");
        let found = detect(&proc, "");
        assert_eq!(found.place, Place::Subreaper);
        assert_eq!(found.refused[0].why, "no cgroup v2 hierarchy is mounted");
    }

    #[test]
    fn a_kernel_that_cannot_kill_a_group_is_refused() {
        let (root, proc, mountinfo) = captured("domain\n");
        fs::remove_file(root.path().join("cgroup/ci/cgroup.kill")).unwrap();
        assert_eq!(detect(&proc, &mountinfo).refused[0].why, "the kernel has no cgroup.kill (Linux 5.14)");
        for (release, has) in
            [("6.18.44-x", true), ("5.14.0", true), ("5.10.0-28-amd64", false), ("4.19", false), ("", false)]
        {
            assert_eq!(has_cgroup_kill(release), has, "{release}");
        }
    }

    proptest! {
        #[test]
        fn any_mountinfo_is_read_without_panic(text: String) {
            let _ = locate(&text, Path::new("/"));
            let _ = unescape(&text);
        }
    }
}
