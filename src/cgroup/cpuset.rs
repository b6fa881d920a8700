//! Cpusets: what keeps a job on its processors and memory nodes whatever it asks for. Kernel side: cgroup-v2.rst ("Cpuset"),
//! Documentation/admin-guide/cgroup-v1/cpusets.rst.
//!
//! Where the controller is in the v1 hierarchy, as on a hybrid machine, the job gets a group of its own there, beside the group
//! that tracks it: the command writes itself into its `tasks` before it executes, alone and by "0", which takes no kernel-wide
//! lock. Whoever finds the job's group empty removes both.
//!
//! Where it is in v2, the job's scope is told where it may run (`AllowedCPUs`), or, at the root of the hierarchy, the job's
//! group. Nowhere else: enabling a controller below a group that has processes, as ours has us, makes a job group impossible.
//!
//! If the last processor of a v1 cpuset goes offline, the kernel moves its processes to the group above.
//!
//! The kernel of v2 takes any list and quietly leaves out what the groups above do not have: so what became of it is read.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags};

use super::detect::{self, Place};
use super::v1;
use super::v2::{self, Location};
use crate::error::FileError;
use crate::pin::{CpuList, Partition, Pin};
use crate::procfs::Proc;

/// What the kernel calls it.
const CONTROLLER: &str = "cpuset";

/// How a job can be kept on its processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a group below this one in the v1 hierarchy.
    V1(Location),
    /// By its systemd scope.
    Scope,
    /// By the job's group itself, below the root of the v2 hierarchy.
    V2,
    /// By what it inherits alone.
    Affinity {
        /// Why not better, as a sentence fragment.
        why: String,
        /// What mends it, if that is known.
        cure: Option<String>,
    },
}

/// Why a job is not kept where it was to be.
#[derive(Debug, thiserror::Error)]
pub enum CpusetError {
    /// A system call on a file of the cpuset failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel allows less than it was told to.
    #[error("the job's cpuset has only {what} {given} of {wanted}, since one above it ({}) is narrower", crate::text::path(.path))]
    Narrower {
        /// `cpus` or `memory nodes`.
        what: &'static str,
        /// What it has.
        given: CpuList,
        /// What it was to have.
        wanted: CpuList,
        /// Its directory.
        path: PathBuf,
    },
    /// No partition can be made.
    #[error("cpus {cpus} cannot be isolated: {why}")]
    NoPartition {
        /// The processors.
        cpus: CpuList,
        /// The kernel's reason.
        why: String,
    },
}

/// How long a group may be busy after its last process was seen to have ended.
const SETTLES: Duration = Duration::from_millis(20);

/// What root is told to do for plain users.
const DELEGATE: &str = "as root: mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' \
     >/etc/systemd/system/user@.service.d/perflock.conf && systemctl daemon-reload, and then log in again";

/// What the v1 cpuset hierarchy offers: our own group, `None` where there is no such hierarchy, or why there is nothing to be had,
/// as a sentence fragment.
pub type V1Offer = Result<Option<Location>, String>;

/// How a job in a group that is made at `place` can be kept on its processors.
pub fn way(place: &Place, v1: &V1Offer, mountinfo: &str, uid: u32) -> Way {
    let v1 = match v1 {
        Ok(Some(parent)) => return Way::V1(parent.clone()),
        Ok(None) => None,
        Err(why) => Some(why.clone()),
    };
    let in_v2 = match place {
        Place::Scope(manager) => {
            let group = if manager.is_system() {
                PathBuf::from("/")
            } else {
                PathBuf::from(format!("/user.slice/user-{uid}.slice/user@{uid}.service"))
            };
            let found = detect::locate(mountinfo, &group).is_ok_and(|location| has_cpuset(&location.directory()));
            let why = "your service manager has no cpuset to give".to_owned();
            found.then_some(Way::Scope).ok_or((why, DELEGATE.to_owned()))
        }
        // The root of the hierarchy alone has no type, and may have both processes and controllers.
        Place::V2(own) if !own.directory().join("cgroup.type").exists() && has_cpuset(&own.directory()) => Ok(Way::V2),
        Place::V2(own) => {
            let why = format!("no cpuset can be made below {}, which has processes", own.directory().display());
            Err((why, "run perflock where systemd gives its jobs a scope".to_owned()))
        }
        Place::Subreaper => Err(("the job has no group of its own".to_owned(), "see --cgroup".to_owned())),
    };
    in_v2.unwrap_or_else(|(why, cure)| {
        let as_root = || (uid != 0).then(|| "run perflock as root".to_owned());
        let (why, cure) = v1.map_or((why, Some(cure)), |why| (why, as_root()));
        Way::Affinity { why, cure }
    })
}

fn has_cpuset(group: &Path) -> bool {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_ascii_whitespace().any(|name| name == "cpuset")
}

/// Looks what the v1 cpuset hierarchy offers.
///
/// # Errors
/// See [`V1Offer`].
pub fn v1_offer(proc: &Proc, mountinfo: &str) -> V1Offer {
    let Some(path) = proc.own_cgroup_v1(CONTROLLER).ok().flatten() else { return Ok(None) };
    let Some(own) = v1::locate(mountinfo, CONTROLLER, &path) else {
        return Err("the cpuset hierarchy that this process is in is not mounted here".to_owned());
    };
    let directory = own.directory();
    rustix::fs::accessat(rustix::fs::CWD, &directory, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(
        |errno| format!("no write access to {}: {}", directory.display(), crate::error::reason(&errno.into())),
    )?;
    Ok(Some(own))
}

/// A job's group in the v1 cpuset hierarchy.
#[derive(Debug)]
pub struct V1 {
    location: Location,
    tasks: File,
}

impl V1 {
    /// Makes the group at `location`, whose name is the job group's, for jobs that are pinned so.
    ///
    /// # Errors
    /// The kernel refused; nothing is left of it.
    pub fn create(location: Location, pin: &Pin) -> Result<Self, CpusetError> {
        let path = location.directory();
        fs::create_dir(&path).map_err(FileError::on("create the cpuset", &path))?;
        // Both, whatever was copied from the group above (cgroup.clone_children): a task can join only where there is some of
        // each.
        let write = |name: &str, list: &CpuList| {
            let file = path.join(name);
            fs::write(&file, list.to_string()).map_err(FileError::on("write to", &file))
        };
        let made =
            write("cpuset.mems", &pin.memory_nodes).and_then(|()| write("cpuset.cpus", &pin.cpus)).and_then(|()| {
                let file = path.join("tasks");
                OpenOptions::new().write(true).open(&file).map_err(FileError::on("open", &file))
            });
        match made {
            Ok(tasks) => Ok(Self { location, tasks }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error.into())
            }
        }
    }

    /// A process that writes "0" to it is in the group.
    pub fn tasks(&self) -> BorrowedFd<'_> {
        self.tasks.as_fd()
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }
}

/// Removes a job's group in the v1 cpuset hierarchy, with those that the job made in it. One that is gone is no error.
///
/// # Errors
/// A process is in it, or the kernel refused.
pub fn remove_v1(location: &Location) -> Result<(), FileError> {
    let end = Instant::now() + SETTLES;
    for group in v2::tree(&location.directory()).into_iter().rev() {
        loop {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                // The last process to go leaves one hierarchy after the other.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                done => break done.map_err(FileError::on("remove the cpuset", &group))?,
            }
        }
    }
    Ok(())
}

/// Removes the cpuset that the ticket of a dead job names: a group called `name` of the user `owner`. The path is that user's
/// text, and may lead anywhere.
pub fn remove_named(path: &Path, name: &str, owner: u32, mountinfo: &str) {
    let Some(location) = v1::locate(mountinfo, CONTROLLER, path) else { return };
    let its_own = fs::symlink_metadata(location.directory()).is_ok_and(|it| it.is_dir() && it.uid() == owner);
    if path.file_name() == Some(OsStr::new(name)) && its_own {
        // What cannot be removed is empty, or somebody else's affair.
        let _ = remove_v1(&location);
    }
}

/// Restricts a v2 group whose parent has the controller enabled.
///
/// # Errors
/// The kernel refused, or allows less.
pub fn restrict(group: &Path, pin: &Pin) -> Result<(), CpusetError> {
    let write = |name: &str, list: &CpuList| {
        let file = group.join(name);
        fs::write(&file, list.to_string()).map_err(FileError::on("write to", &file))
    };
    write("cpuset.cpus", &pin.cpus)?;
    if pin.memory_is_bound {
        write("cpuset.mems", &pin.memory_nodes)?;
    }
    check(group, pin)
}

/// Whether the v2 group has what it was given.
///
/// # Errors
/// It has less, or cannot be read.
pub fn check(group: &Path, pin: &Pin) -> Result<(), CpusetError> {
    let memory = pin.memory_is_bound.then_some(("memory nodes", "cpuset.mems.effective", &pin.memory_nodes));
    for (what, name, wanted) in [("cpus", "cpuset.cpus.effective", &pin.cpus)].into_iter().chain(memory) {
        let file = group.join(name);
        let text = fs::read_to_string(&file).map_err(FileError::on("read", &file))?;
        let given: CpuList = text.parse().unwrap_or_default();
        if given != *wanted {
            let (wanted, path) = (wanted.clone(), group.to_owned());
            return Err(CpusetError::Narrower { what, given, wanted, path });
        }
    }
    Ok(())
}

/// Enables the controller below the root of the v2 hierarchy, unless it is. It stays so.
///
/// # Errors
/// The kernel refused.
pub fn enable_below(root: &Path) -> Result<(), FileError> {
    let file = root.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).unwrap_or_default();
    if enabled.split_ascii_whitespace().any(|name| name == "cpuset") {
        return Ok(());
    }
    fs::write(&file, "+cpuset").map_err(FileError::on("write to", &file))
}

/// Takes the processors of a restricted group from everybody else. What a kernel that cannot isolate offers is taken.
///
/// # Errors
/// The kernel refused: `cpuset.cpus.partition` says why.
pub fn isolate(group: &Path, pin: &Pin) -> Result<Partition, CpusetError> {
    let file = group.join("cpuset.cpus.partition");
    let set = |word: &str| {
        fs::write(&file, word)?;
        fs::read_to_string(&file)
    };
    become_partition(set).map_err(|why| CpusetError::NoPartition { cpus: pin.cpus.clone(), why })
}

/// Tries every kind, the best first. `set` writes a word to the file and reads what it says then: a word that was taken may
/// still be `invalid`, with the reason behind it.
fn become_partition(mut set: impl FnMut(&str) -> io::Result<String>) -> Result<Partition, String> {
    let mut why = String::new();
    for partition in [Partition::Isolated, Partition::Root] {
        match set(partition.name()) {
            Ok(said) if said.trim() == partition.name() => return Ok(partition),
            Ok(said) => why = format!("the kernel says: {}", crate::text::escape(said.trim())),
            Err(error) => why = crate::error::reason(&error),
        }
    }
    // Not one that is none.
    let _ = set("member");
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(cpus: &str, memory_nodes: &str) -> Pin {
        let list = |text: &str| text.parse().unwrap();
        Pin {
            cpus: list(cpus),
            memory_nodes: list(memory_nodes),
            memory_is_bound: true,
            memory_is_asked_for: false,
            reserved: None,
        }
    }

    #[test]
    fn what_a_group_above_does_not_have_is_told() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        write("cpuset.cpus.effective", "0-3\n");
        write("cpuset.mems.effective", "0\n");
        assert!(check(group.path(), &pin("0-3", "0")).is_ok());
        let narrower = check(group.path(), &pin("0-4", "0")).unwrap_err().to_string();
        assert!(narrower.starts_with("the job's cpuset has only cpus 0-3 of 0-4, since"), "{narrower}");
        let narrower = check(group.path(), &pin("0-3", "0-1")).unwrap_err().to_string();
        assert!(narrower.starts_with("the job's cpuset has only memory nodes 0 of 0-1, since"), "{narrower}");
        fs::remove_file(group.path().join("cpuset.cpus.effective")).unwrap();
        assert!(matches!(check(group.path(), &pin("0-3", "0")), Err(CpusetError::File(_))));
    }

    #[test]
    fn the_best_partition_that_the_kernel_makes_is_taken() {
        let tried = |answer: &dyn Fn(&str) -> io::Result<String>| {
            let mut words = Vec::new();
            let made = become_partition(|word| {
                words.push(word.to_owned());
                answer(word)
            });
            (made, words.join(" "))
        };
        let says = |word: &str| Ok(format!("{word}\n"));
        assert_eq!(tried(&says), (Ok(Partition::Isolated), "isolated".to_owned()));
        // Before Linux 6.1 there is one kind.
        let refused = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        let old = |word: &str| if word == "isolated" { refused() } else { says(word) };
        assert_eq!(tried(&old), (Ok(Partition::Root), "isolated root".to_owned()));
        let invalid = |word: &str| Ok(format!("{word} invalid (Parent is not a partition root)\n"));
        let why = "the kernel says: root invalid (Parent is not a partition root)".to_owned();
        assert_eq!(tried(&invalid), (Err(why), "isolated root member".to_owned()));
        assert_eq!(tried(&|_| refused()).0, Err("Invalid argument".to_owned()));
    }

    #[test]
    fn only_a_group_of_the_job_and_its_owner_is_removed() {
        let mount = tempfile::tempdir().unwrap();
        let mountinfo = format!("22 20 0:22 / {} rw - cgroup cgroup rw,cpuset\n", mount.path().display());
        let group = mount.path().join("perflock-7");
        fs::create_dir_all(group.join("inner")).unwrap();
        let own = rustix::process::geteuid().as_raw();
        for (path, name, owner) in [
            ("/perflock-7", "perflock-8", own),
            ("/perflock-7", "perflock-7", own + 1),
            ("/x/../perflock-7", "perflock-7", own),
            ("/perflock-9", "perflock-9", own),
        ] {
            remove_named(Path::new(path), name, owner, &mountinfo);
            assert!(group.join("inner").exists(), "{path} {name} {owner}");
        }
        remove_named(Path::new("/perflock-7"), "perflock-7", own, &mountinfo);
        assert!(!group.exists() && mount.path().exists());
    }
}
