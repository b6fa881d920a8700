//! A job's groups in hierarchies of cgroup v1, beside the group that tracks it: for a controller that is there, as on a hybrid
//! machine. The command writes itself into each one's `tasks` before it executes, alone and by "0", which takes no
//! kernel-wide lock. Whoever finds the job's group empty removes them all.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::controller::Controller;
use super::detect::unescape;
use super::v2::{self, Location};
use crate::error::FileError;

/// How long a group may be busy after its last process was seen to have ended.
const SETTLES: Duration = Duration::from_millis(20);

/// Controllers that a job may have groups for: where two of them have one hierarchy, its group there is the first one's.
const OURS: [Controller; 3] = [Controller::Cpuset, Controller::Memory, Controller::Pids];

/// Where the group with this path in the v1 hierarchy of a controller can be found. Not where an earlier one of [`OURS`] has the
/// same hierarchy: the job has one group there, or none.
pub(crate) fn locate(mountinfo: &str, path: &Path, controller: Controller) -> Option<Location> {
    locate_where(mountinfo, path, |options| {
        OURS.into_iter().find(|ours| options.split(',').any(|option| option == ours.name())) == Some(controller)
    })
}

/// The same in the hierarchy that has the controller of this name, unless one of [`OURS`] is there as well: the job may have a
/// group of that name for it.
pub(super) fn locate_beside_ours(mountinfo: &str, path: &Path, controller: &str) -> Option<Location> {
    locate_where(mountinfo, path, |options| {
        let has = |name: &str| options.split(',').any(|option| option == name);
        has(controller) && !OURS.into_iter().any(|ours| has(ours.name()))
    })
}

/// The same in the hierarchy that has the controller of this name, whoever else has it.
pub(crate) fn locate_by_name(mountinfo: &str, path: &Path, controller: &str) -> Option<Location> {
    locate_where(mountinfo, path, |options| options.split(',').any(|option| option == controller))
}

fn locate_where(mountinfo: &str, path: &Path, is_it: impl Fn(&str) -> bool) -> Option<Location> {
    let mounts = mountinfo.lines().filter_map(|line| parse_mount(line, &is_it));
    let mut found = mounts.filter_map(|(root, mount)| {
        let relative = path.strip_prefix(root).ok()?.to_owned();
        Some(Location { mount, relative, path: path.to_owned() })
    });
    found.find(Location::is_plain)
}

/// Root and mount point, if the line is a mount of a v1 hierarchy with such options: proc_pid_mountinfo(5).
fn parse_mount(line: &str, is_it: impl Fn(&str) -> bool) -> Option<(PathBuf, PathBuf)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut kind = filesystem.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    if name != "cgroup" || !is_it(options) {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    Some((unescape(fields.next()?), unescape(fields.next()?)))
}

/// A job's group in a v1 hierarchy.
#[derive(Debug)]
pub struct Group {
    location: Location,
    tasks: File,
}

impl Group {
    /// Makes the group at `location`, whose name is the job group's; `set_up` writes to the files in its directory before
    /// anybody can be in it.
    ///
    /// # Errors
    /// The kernel refused, or `set_up` did; nothing is left of it.
    pub fn create<E: From<FileError>>(
        location: Location,
        controller: Controller,
        set_up: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Self, E> {
        let path = location.directory();
        let verb = match controller {
            Controller::Cpuset => "create the cpuset",
            Controller::Memory | Controller::Pids => "create the group",
        };
        fs::create_dir(&path).map_err(FileError::on(verb, &path))?;
        let made = set_up(&path).and_then(|()| {
            let file = path.join("tasks");
            Ok(OpenOptions::new().write(true).open(&file).map_err(FileError::on("open", &file))?)
        });
        match made {
            Ok(tasks) => Ok(Self { location, tasks }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// A process that writes "0" to it is in the group.
    pub fn tasks(&self) -> BorrowedFd<'_> {
        self.tasks.as_fd()
    }

    /// Where it is.
    pub fn directory(&self) -> PathBuf {
        self.location.directory()
    }
}

/// Removes a job's group in a v1 hierarchy, with those that the job made in it. One that is gone is no error.
///
/// # Errors
/// A process is in it, or the kernel refused.
pub fn remove(location: &Location, controller: Controller) -> Result<(), FileError> {
    let verb = match controller {
        Controller::Cpuset => "remove the cpuset",
        Controller::Memory | Controller::Pids => "remove the group",
    };
    remove_tree(location, verb)
}

/// The same of any group; `verb` says what could not be done.
pub(super) fn remove_tree(location: &Location, verb: &'static str) -> Result<(), FileError> {
    let end = Instant::now() + SETTLES;
    for group in v2::tree(&location.directory()).into_iter().rev() {
        loop {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                // The last process to go leaves one hierarchy after the other.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                done => break done.map_err(FileError::on(verb, &group))?,
            }
        }
    }
    Ok(())
}

/// Removes the group that the ticket of a dead job names: one called `name` of the user `owner`. The path is that user's text,
/// and may lead anywhere.
pub fn remove_named(path: &Path, controller: Controller, name: &str, owner: u32, mountinfo: &str) {
    if let Some(location) = locate_named(path, controller, name, owner, mountinfo) {
        // What cannot be removed is empty, or somebody else's affair.
        let _ = remove(&location, controller);
    }
}

/// The directory of such a group.
pub fn directory_named(
    path: &Path,
    controller: Controller,
    name: &str,
    owner: u32,
    mountinfo: &str,
) -> Option<PathBuf> {
    locate_named(path, controller, name, owner, mountinfo).map(|location| location.directory())
}

fn locate_named(path: &Path, controller: Controller, name: &str, owner: u32, mountinfo: &str) -> Option<Location> {
    let location = locate(mountinfo, path, controller)?;
    let its_own = fs::symlink_metadata(location.directory()).is_ok_and(|it| it.is_dir() && it.uid() == owner);
    (path.file_name() == Some(OsStr::new(name)) && its_own).then_some(location)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HYBRID: &str = "20 1 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
        21 20 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        22 20 0:22 /a /sys/fs/cgroup/cpu\\040set rw,relatime shared:9 - cgroup cgroup rw,cpuset\n\
        24 20 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        23 20 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_controller_s_hierarchy_is_found_among_the_others() {
        use Controller::{Cpuset, Memory, Pids};
        let found = locate(HYBRID, Path::new("/a/b"), Cpuset).unwrap();
        assert_eq!(found.directory(), Path::new("/sys/fs/cgroup/cpu set/b"));
        assert_eq!(locate(HYBRID, Path::new("/b"), Memory).unwrap().directory(), Path::new("/sys/fs/cgroup/memory/b"));
        for (path, controller) in [("/b", Cpuset), ("/a/../b", Cpuset), ("/a/b", Pids)] {
            assert_eq!(locate(HYBRID, Path::new(path), controller), None, "{path}");
        }
        assert_eq!(locate("", Path::new("/"), Cpuset), None);
    }

    /// Two groups of one name cannot be made in it.
    #[test]
    fn a_hierarchy_of_several_controllers_is_the_first_one_s() {
        let line = "22 20 0:22 / /m rw - cgroup cgroup rw,cpuset,pids,memory\n";
        let whose = |line: &str| OURS.map(|controller| locate(line, Path::new("/"), controller).is_some());
        assert_eq!(whose(line), [true, false, false]);
        assert_eq!(whose(&line.replace("cpuset,", "")), [false, true, false]);
    }

    #[test]
    fn only_a_group_of_the_job_and_its_owner_is_removed() {
        for controller in OURS {
            let mount = tempfile::tempdir().unwrap();
            let mountinfo =
                format!("22 20 0:22 / {} rw - cgroup cgroup rw,{}\n", mount.path().display(), controller.name());
            let group = mount.path().join("perflock-7");
            fs::create_dir_all(group.join("inner")).unwrap();
            let own = rustix::process::geteuid().as_raw();
            for (path, name, owner) in [
                ("/perflock-7", "perflock-8", own),
                ("/perflock-7", "perflock-7", own + 1),
                ("/x/../perflock-7", "perflock-7", own),
                ("/perflock-9", "perflock-9", own),
            ] {
                remove_named(Path::new(path), controller, name, owner, &mountinfo);
                assert!(group.join("inner").exists(), "{path} {name} {owner}");
            }
            remove_named(Path::new("/perflock-7"), controller, "perflock-7", own, &mountinfo);
            assert!(!group.exists() && mount.path().exists());
        }
    }

    #[test]
    fn a_group_that_cannot_be_set_up_is_not_left() {
        let mount = tempfile::tempdir().unwrap();
        let location = Location { mount: mount.path().to_owned(), relative: "perflock-7".into(), path: "/".into() };
        let refuse = |group: &Path| Err(FileError::on("write to", group)(io::Error::from_raw_os_error(libc::EINVAL)));
        assert!(Group::create(location.clone(), Controller::Memory, refuse).is_err());
        assert!(!location.directory().exists());
        // It is in no hierarchy, and has no `tasks`.
        assert!(Group::create(location.clone(), Controller::Memory, |_| Ok::<_, FileError>(())).is_err());
        assert!(!location.directory().exists());
    }

    proptest! {
        #[test]
        fn any_mountinfo_is_read_without_panic(text: String, path in "(/|[.]{1,2}|a){0,6}") {
            let _ = locate(&text, Path::new(&path), Controller::Cpuset);
            let line = format!("22 20 0:22 / /m rw - cgroup cgroup rw,cpuset\n{text}");
            if let Some(found) = locate(&line, Path::new(&path), Controller::Cpuset) {
                prop_assert!(found.directory().starts_with("/m") && found.is_plain());
            }
        }
    }
}
