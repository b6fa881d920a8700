//! Where a soak happens: a directory with the lock, the log and the programs, and a cgroup for each user, all of its own.
//! Other people's processes live in the same hierarchy, so nothing here touches a group whose name is not the soak's.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use perflock::pin::CpuList;
use rustix::fs::{FlockOperation, XattrFlags, flock};

use crate::Failure;
use crate::v1::{self, children, remove_tree};

/// The users whose jobs share the machine. They need no entry in /etc/passwd. Root comes last: it ends what is left of
/// anybody's job.
pub(super) const USERS: [u32; 5] = [61_001, 61_002, 61_003, 61_004, 0];

/// How the names of the soak's groups begin. To perflock each is a unit that systemd delegated.
const PREFIX: &str = "pltest-soak-";

/// How the names of the groups begin that perflock makes.
const JOB_PREFIX: &str = "perflock-";

/// How long killed processes may take to be gone.
const DEATHS: Duration = Duration::from_secs(20);

/// Why a soak is not possible here, and by which word `PERFLOCK_MUST_RUN` demands it all the same.
pub(crate) struct Missing {
    /// `root` or `v2`.
    pub(crate) need: &'static str,
    /// What is missing.
    pub(crate) why: String,
}

/// Looks for what a soak needs.
pub(crate) fn missing() -> Option<Missing> {
    if !rustix::process::geteuid().is_root() {
        return Some(Missing { need: "root", why: "only root can start jobs of several users".to_owned() });
    }
    let killable = Group::create("probe", 0).and_then(|group| {
        let killable = group.directory.join("cgroup.kill").exists();
        if killable { Ok(()) } else { Err("the kernel has no cgroup.kill (Linux 5.14)".to_owned()) }
    });
    killable.err().map(|why| Missing { need: "v2", why })
}

/// A user's group, removed when dropped with everything in it.
struct Group {
    directory: PathBuf,
    handle: File,
}

impl Group {
    /// Makes a group below the own one that belongs to `uid`.
    fn create(name: &str, uid: u32) -> Result<Self, Failure> {
        let parent = own_directory()?;
        let directory = parent.join(format!("{PREFIX}{}-{name}.scope", std::process::id()));
        let failed = |error| format!("cannot make a group in {}: {error}", parent.display());
        fs::create_dir(&directory).map_err(failed)?;
        let group = Self { handle: File::open(&directory).map_err(failed)?, directory };
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(group.directory.join(file), Some(uid), None).map_err(failed)?;
        }
        for mark in ["user.delegate", "trusted.delegate"] {
            // One of them is enough, and kernels differ in which they allow.
            let _ = rustix::fs::setxattr(&group.directory, mark, b"1", XattrFlags::empty());
        }
        Ok(group)
    }

    /// Whether a process is left in it or below it.
    fn is_populated(&self) -> bool {
        fs::read_to_string(self.directory.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
    }

    /// Kills every member; false if that was not possible in time.
    fn kill(&self) -> bool {
        let ours = self.directory.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        let end = Instant::now() + DEATHS;
        while ours && self.is_populated() && Instant::now() < end {
            // Again and again: before Linux 6.14 a fork in flight can survive one write.
            let _ = fs::write(self.directory.join("cgroup.kill"), "1");
            std::thread::sleep(Duration::from_millis(5));
        }
        !self.is_populated()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.kill() || remove_tree(&self.directory).is_err() {
            eprintln!("xtask: {} cannot be removed", self.directory.display());
        }
    }
}

/// The directory of the group in the v2 hierarchy that this process is in.
fn own_directory() -> Result<PathBuf, Failure> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
    let cgroup = read("/proc/self/cgroup")?;
    let own =
        cgroup.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("the kernel has no cgroup v2 hierarchy")?;
    let mountinfo = read("/proc/self/mountinfo")?;
    let mounts = mountinfo.lines().filter(|line| line.contains(" - cgroup2 "));
    // Another mount may hide the one that is listed.
    let mut directories = mounts.filter_map(|line| line.split(' ').nth(4)).map(|mount| Path::new(mount).join(own));
    directories
        .find(|path| path.join("cgroup.procs").exists())
        .ok_or_else(|| "no cgroup v2 hierarchy is mounted".into())
}

/// Everything that a soak uses. Gone when dropped: the groups first, then the files.
pub(super) struct Area {
    groups: Vec<Group>,
    /// Where the cpusets of pinned jobs are made, on machines with that hierarchy of v1.
    cpuset: Option<v1::Group>,
    directory: tempfile::TempDir,
}

impl Area {
    /// Makes it, with copies of `programs` that every user can run, for jobs that may be pinned to `cpus`.
    ///
    /// # Errors
    /// Something cannot be made or copied.
    pub(super) fn create(programs: &[PathBuf], cpus: &CpuList) -> Result<Self, Failure> {
        let failed = |error| format!("cannot make a place for the soak: {error}");
        let directory = tempfile::Builder::new().prefix("pltest-soak-").tempdir().map_err(failed)?;
        let mut area = Self { groups: Vec::new(), cpuset: None, directory };
        let permit = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed);
        permit(area.directory.path(), 0o755)?;
        fs::create_dir(area.queue()).map_err(failed)?;
        permit(&area.queue(), 0o1777)?;
        let of_cpus = cpus.iter().map(|cpu| area.path(&format!("presence.{cpu}")));
        for path in [area.lock(), area.log(), area.presence()].into_iter().chain(of_cpus) {
            File::create(&path).map_err(failed)?;
            permit(&path, 0o666)?;
        }
        for program in programs {
            let copy = area.path(&program.file_name().unwrap_or_default().to_string_lossy());
            fs::copy(program, &copy).map_err(|error| format!("cannot copy {}: {error}", program.display()))?;
            permit(&copy, 0o755)?;
        }
        for uid in USERS {
            area.groups.push(Group::create(&uid.to_string(), uid)?);
        }
        area.cpuset = v1::Group::create("cpuset", &format!("{PREFIX}{}", std::process::id()));
        if let Some(group) = &mut area.cpuset {
            // Theirs and root's jobs are kept by cpusets then, those of the others by their affinity alone.
            chown(group.directory(), Some(USERS[0]), None).map_err(failed)?;
            group.enter().map_err(failed)?;
        }
        Ok(area)
    }

    /// A file in the directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The lock file.
    pub(super) fn lock(&self) -> PathBuf {
        self.path("lock")
    }

    /// The queue directory.
    pub(super) fn queue(&self) -> PathBuf {
        self.path("lock.d")
    }

    /// The log.
    pub(super) fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// The file that whoever runs has locked. Of each processor there is one more, with its number behind a dot, for whoever
    /// has that alone.
    pub(super) fn presence(&self) -> PathBuf {
        self.path("presence")
    }

    /// The group of a user, to be born in it.
    pub(super) fn group(&self, user: usize) -> BorrowedFd<'_> {
        self.groups[user].handle.as_fd()
    }

    /// Whether a process is in one of the groups or below it.
    pub(super) fn contains(&self, pid: i32) -> bool {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        let ours = |group: &Group| {
            group
                .directory
                .file_name()
                .is_some_and(|name| Path::new(path).components().any(|part| part.as_os_str() == name))
        };
        self.groups.iter().any(ours)
    }

    /// What is left although every job has ended. Only processes that are dying are given a moment.
    pub(super) fn left(&self) -> Vec<String> {
        let end = Instant::now() + DEATHS;
        while self.groups.iter().any(Group::is_populated) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut left = Vec::new();
        for group in &self.groups {
            if group.is_populated() {
                left.push(format!("a process in {}", group.directory.display()));
            }
            let jobs = children(&group.directory).into_iter();
            let jobs =
                jobs.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(JOB_PREFIX)));
            left.extend(jobs.map(|job| format!("the job group {}", job.display())));
        }
        let cpusets = self.cpuset.iter().flat_map(|group| children(group.directory()));
        left.extend(cpusets.map(|cpuset| format!("the cpuset {}", cpuset.display())));
        let tickets = fs::read_dir(self.queue()).into_iter().flatten().flatten();
        left.extend(tickets.map(|ticket| {
            let text = fs::read_to_string(ticket.path()).unwrap_or_default();
            format!("the ticket {}: {}", ticket.file_name().display(), text.trim_end().replace('\n', " "))
        }));
        let free =
            File::open(self.lock()).is_ok_and(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if !free {
            left.push("the lock is held".to_owned());
        }
        left
    }
}
