//! A job group where there is no v2 hierarchy, as on a machine that was booted with cgroup v1 only. Kernel side:
//! Documentation/admin-guide/cgroup-v1/cgroups.rst, freezer-subsystem.rst and cpuacct.rst.
//!
//! A hierarchy tells who is a member: the freezer's, else systemd's own (`name=systemd`), else another that changes nothing of
//! what a job gets. The job has one group there, and one of the same name in cpuacct, where that is ours. A plain user has
//! none but in `name=systemd`: below the own group if that was delegated, else below the group of the user's service
//! manager, which systemd gave to that user. v1 has no rule of a common ancestor: whoever may write to `tasks` is in. So the
//! supervisor makes the command itself, and nobody has to be asked.
//!
//! *Joining.* v1 has no birth into a group. The command writes "0" to each `tasks` before it executes, and if it cannot, since the
//! group is gone say, does not execute. If the supervisor is killed before that, its guard waits for the command's exec or end, as
//! it does where members are told by a marker. If both are, lock and ticket stay locked: the command has them open until it
//! executes, and by then it is a member of the group that the ticket names.
//!
//! *Empty* is a group in which every `tasks`, those of all groups below included, is empty in two passes in a row, and could be
//! read: nothing counts members as v2 does. *Changes* nobody is told of. So the end of one member is slept on, and then the
//! group is looked at again.
//!
//! *Killing*: nothing kills a group. Where there is a freezer, it is frozen, so that nobody is born meanwhile, each member is
//! sent SIGKILL, which it takes when it is thawed, and it is thawed, with the groups below that the job froze itself. Elsewhere
//! members are stopped until a look finds nobody new, and then killed. Both are done again until the group is empty.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags};
use rustix::process::Signal;

use super::detect::{Machine, Refusal};
use super::v2::{self, Location};
use super::{Backend, GroupError, JobGroup, Maker, Place, Population, Usage, open_pidfd, signal_members, stop_all, v1};
use crate::error::FileError;
use crate::fork;
use crate::procfs::{self, Proc};

/// Hierarchies that a job may be tracked in, the best first. Those of other controllers would change what it gets.
const TRACKING: [&str; 6] = [FREEZER, SYSTEMD, CPUACCT, "perf_event", "net_cls", "devices"];
const FREEZER: &str = "freezer";
const SYSTEMD: &str = "name=systemd";
const CPUACCT: &str = "cpuacct";

/// How long a freezer may take until every member is frozen: one that waits in the kernel may never be.
const FREEZES_WITHIN: Duration = Duration::from_millis(500);

/// First and longest pause between two looks whether it is.
const LOOKS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

/// A group in the hierarchy that tells who is a member, and the one in cpuacct that counts beside it: those of a job, or those
/// below which they are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// One of [`TRACKING`].
    hierarchy: &'static str,
    tracking: Location,
    /// The same as `tracking` where both are in one hierarchy.
    cpuacct: Option<Location>,
}

impl Site {
    /// Where a job's groups can be made; `None` if there is no hierarchy that could track it.
    ///
    /// # Errors
    /// A sentence fragment: there are such hierarchies, and none is ours to use.
    pub fn find(proc: &Proc, mountinfo: &str, uid: u32) -> Result<Option<Self>, String> {
        let mut refused = None;
        for hierarchy in TRACKING {
            let Some(own) = own_group(proc, mountinfo, hierarchy) else { continue };
            let usable = match check_writable(&own.directory()) {
                Ok(()) => Some(own),
                Err(why) => {
                    refused.get_or_insert(why);
                    let manager_s =
                        if hierarchy == SYSTEMD { manager_s_group(mountinfo, &own.path, uid) } else { None };
                    manager_s.filter(|group| check_writable(&group.directory()).is_ok())
                }
            };
            if let Some(tracking) = usable {
                let cpuacct = own_group(proc, mountinfo, CPUACCT);
                let cpuacct = cpuacct.filter(|group| check_writable(&group.directory()).is_ok());
                return Ok(Some(Self { hierarchy, tracking, cpuacct }));
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// The groups that a ticket names, where they can be seen from here.
    pub fn locate(mountinfo: &str, hierarchy: &str, path: &Path, cpuacct: Option<&Path>) -> Option<Self> {
        let hierarchy = TRACKING.into_iter().find(|&known| known == hierarchy)?;
        let tracking = v1::locate_beside_ours(mountinfo, path, hierarchy)?;
        let cpuacct = cpuacct.and_then(|path| v1::locate_beside_ours(mountinfo, path, CPUACCT));
        Some(Self { hierarchy, tracking, cpuacct })
    }

    /// The groups of the job `name` directly below.
    pub fn child(&self, name: &str) -> Self {
        let cpuacct = self.cpuacct.as_ref().map(|group| group.child(name));
        Self { hierarchy: self.hierarchy, tracking: self.tracking.child(name), cpuacct }
    }

    /// The hierarchy, by its controller or its name.
    pub fn hierarchy(&self) -> &'static str {
        self.hierarchy
    }

    /// Whether members can be frozen there.
    pub fn freezes(&self) -> bool {
        self.hierarchy == FREEZER
    }

    /// The path of the group that tells who is a member.
    pub fn path(&self) -> &Path {
        &self.tracking.path
    }

    /// The path of the group that counts CPU time.
    pub fn cpuacct_path(&self) -> Option<&Path> {
        self.cpuacct.as_ref().map(|group| &*group.path)
    }

    /// The directory of the group that tells who is a member.
    pub fn directory(&self) -> PathBuf {
        self.tracking.directory()
    }

    /// The directory of the group that counts CPU time.
    pub fn cpuacct_directory(&self) -> Option<PathBuf> {
        self.cpuacct.as_ref().map(Location::directory)
    }
}

/// Looks for a [`Place`]. `None` where there is no hierarchy of v1: what is missing then is v2.
pub(super) fn candidate(proc: &Proc, machine: &Machine<'_>) -> Option<Result<Place, Refusal>> {
    let site = Site::find(proc, machine.mountinfo, machine.uid).transpose()?;
    Some(site.map(Place::V1).map_err(|why| Refusal::new(Backend::V1, why)))
}

/// Our own group in a hierarchy, if that is mounted here.
fn own_group(proc: &Proc, mountinfo: &str, hierarchy: &str) -> Option<Location> {
    let path = proc.own_cgroup_v1(hierarchy).ok().flatten()?;
    v1::locate_beside_ours(mountinfo, &path, hierarchy)
}

/// The group of the user's service manager, which is the user's own: beside one of ours or of those above it, as a session is, or
/// where systemd has it.
fn manager_s_group(mountinfo: &str, own: &Path, uid: u32) -> Option<Location> {
    let unit = format!("user@{uid}.service");
    let slice = Path::new("/user.slice").join(format!("user-{uid}.slice"));
    let beside = own.ancestors().chain([&*slice]).map(|above| above.join(&unit));
    let mut groups = beside.filter_map(|path| v1::locate_beside_ours(mountinfo, &path, SYSTEMD));
    groups.find(|group| fs::symlink_metadata(group.directory()).is_ok_and(|it| it.is_dir() && it.uid() == uid))
}

fn check_writable(directory: &Path) -> Result<(), String> {
    let access = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(rustix::fs::CWD, directory, access, AtFlags::EACCESS)
        .map_err(|errno| format!("no write access to {}: {}", directory.display(), crate::error::reason(&errno.into())))
}

/// A job group.
#[derive(Debug)]
pub struct Group {
    site: Site,
    /// For the command to join by; none in a group of a dead job.
    tasks: [Option<File>; 2],
}

impl Group {
    /// Makes the groups of the job `name` below those of `parent`. Where its CPU time cannot be counted, this process becomes
    /// the one that orphans come home to, so that at least what they used is known when they are reaped.
    ///
    /// # Errors
    /// The name is not one of ours, or the kernel refused.
    pub fn create(parent: &Site, name: &str) -> Result<Self, GroupError> {
        let mut site = parent.child(name);
        v2::check_name(&site.tracking.path)?;
        let path = site.tracking.directory();
        fs::create_dir(&path).map_err(FileError::on("create the group", &path))?;
        let opened = check_hierarchy(&path).and_then(|()| open_tasks(&path));
        let tracking = opened.inspect_err(|_| {
            let _ = fs::remove_dir(&path);
        })?;
        let beside = site.cpuacct.as_ref().map(Location::directory).filter(|counting| *counting != path);
        let counting = beside.as_deref().map(make_counting).transpose();
        if counting.is_err() {
            site.cpuacct = None;
        }
        if site.cpuacct.is_none() {
            // If the kernel refuses, less is known.
            let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        }
        Ok(Self { site, tasks: [Some(tracking), counting.ok().flatten()] })
    }

    /// Takes the groups that a dead job left, to look at them or to kill what is in them. `owner` is the user whose ticket named
    /// them: a forged ticket must not make root kill somebody else's group. `None` if the group is gone.
    ///
    /// # Errors
    /// The group is not that user's, or not one of ours.
    pub fn adopt(mut site: Site, owner: u32) -> Result<Option<Self>, GroupError> {
        v2::check_name(&site.tracking.path)?;
        let path = site.tracking.directory();
        if !site.tracking.is_plain() {
            return Err(GroupError::Refused { path, why: "its path is not a plain one" });
        }
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if v2::is_no_place(&error) => return Ok(None),
            Err(error) => return Err(FileError::on("look at the group", &path)(error).into()),
        };
        if metadata.uid() != owner || !metadata.is_dir() {
            return Err(GroupError::Refused { path, why: "it belongs to another user than the ticket that names it" });
        }
        match check_hierarchy(&path) {
            Ok(()) => {}
            Err(GroupError::File(error)) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let name = site.tracking.path.file_name();
        let its_own = |group: &Location| {
            let same_name = group.is_plain() && group.path.file_name() == name;
            same_name && fs::symlink_metadata(group.directory()).is_ok_and(|it| it.is_dir() && it.uid() == owner)
        };
        site.cpuacct = site.cpuacct.take().filter(its_own);
        Ok(Some(Self { site, tasks: [None, None] }))
    }

    /// Where it is.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Refuses to touch a group that contains ourselves. Its name was checked when it was made or taken.
    fn check_not_ours(&self) -> Result<(), GroupError> {
        let refused = |why| GroupError::Refused { path: self.site.directory(), why };
        match Proc::default().own_cgroup_v1(self.site.hierarchy) {
            Ok(Some(own)) if own.starts_with(self.site.path()) => Err(refused("this process is a member of it")),
            Ok(Some(_)) => Ok(()),
            _ => Err(refused("it cannot be told whether this process is a member of it")),
        }
    }

    /// Freezes the group, and waits a while until all of it is.
    fn freeze(&self) -> io::Result<()> {
        let file = self.site.directory().join("freezer.state");
        let freeze = || fs::write(&file, "FROZEN");
        freeze().or_else(|_| {
            v2::open_up(&self.site.directory());
            freeze()
        })?;
        let end = Instant::now() + FREEZES_WITHIN;
        let mut pause = LOOKS.0;
        while fs::read_to_string(&file)?.trim() != "FROZEN" && Instant::now() < end {
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOKS.1);
        }
        Ok(())
    }

    /// Thaws the group, and those below that the job froze.
    fn thaw(&self) -> Result<(), GroupError> {
        let thaw = |group: PathBuf| {
            let file = group.join("freezer.state");
            fs::write(&file, "THAWED").err().filter(|error| !is_gone(error)).map(FileError::on("write to", &file))
        };
        let groups = v2::tree(&self.site.directory());
        // All of them, whatever becomes of one.
        let failed: Vec<FileError> = groups.into_iter().filter_map(thaw).collect();
        failed.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
    }

    fn signal(&self, signal: Signal) -> usize {
        signal_members(self, &self.members(), signal)
    }

    /// Whether the group and those below are empty, by one pass over them.
    ///
    /// # Errors
    /// Not all of it could be seen.
    fn pass(&self) -> io::Result<bool> {
        let top = self.site.directory();
        let mut pending = vec![top.clone()];
        while let Some(group) = pending.pop() {
            match procfs::read(&group.join("tasks")) {
                Ok(tasks) if tasks.is_empty() => {}
                Ok(_) => return Ok(false),
                // Nobody can be in it, nor come in. One below may have gone after its members had moved to where we were before.
                Err(error) if group == top && is_gone(&error) => return Ok(true),
                Err(error) => return Err(error),
            }
            // See `v2::tree`: without links of others there is nothing below.
            if fs::metadata(&group)?.nlink() != 2 {
                pending.extend(v2::subgroups(&group)?);
            }
        }
        Ok(true)
    }
}

/// Makes the group that counts CPU time.
fn make_counting(path: &Path) -> Result<File, GroupError> {
    fs::create_dir(path).map_err(FileError::on("create the group", path))?;
    let made = refuses_real_time(path).and_then(|()| open_tasks(path));
    made.inspect_err(|_| {
        let _ = fs::remove_dir(path);
    })
}

/// Where cpuacct shares its hierarchy with cpu, a new group of it may have no time for real-time threads: a job that has some
/// could not join. Kernel side: Documentation/scheduler/sched-rt-group.rst.
fn refuses_real_time(group: &Path) -> Result<(), GroupError> {
    let runtime = fs::read_to_string(group.join("cpu.rt_runtime_us")).unwrap_or_default();
    match runtime.trim() {
        "0" => {
            Err(GroupError::Refused { path: group.to_owned(), why: "it would keep the job from real-time scheduling" })
        }
        _ => Ok(()),
    }
}

fn open_tasks(group: &Path) -> Result<File, GroupError> {
    let file = group.join("tasks");
    Ok(OpenOptions::new().write(true).open(&file).map_err(FileError::on("open", &file))?)
}

/// What is listed and killed must be members of a cgroup.
fn check_hierarchy(directory: &Path) -> Result<(), GroupError> {
    let magic = rustix::fs::statfs(directory).map_err(FileError::on("look at", directory))?.f_type;
    if magic == libc::CGROUP_SUPER_MAGIC {
        Ok(())
    } else {
        Err(GroupError::Refused { path: directory.to_owned(), why: "it is not in a cgroup v1 hierarchy" })
    }
}

/// Whether a file's group is gone: by its path, or of an open file.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

impl JobGroup for Group {
    fn maker(&self) -> Maker<'_> {
        Maker::Joining(self.tasks.each_ref().map(|tasks| tasks.as_ref().map(|tasks| tasks.as_fd())))
    }

    fn exclude(&mut self, _: i32) {}

    fn population(&self) -> Population {
        let empty = || match self.pass() {
            Err(error) if v2::is_denied(&error) => {
                // By the job, if it is its owner's. Of others we see what is left when it is gone.
                v2::open_up(&self.site.directory());
                self.pass()
            }
            seen => seen,
        };
        let is_empty = || empty().unwrap_or(false);
        if is_empty() && is_empty() { Population::Empty } else { Population::Populated }
    }

    fn changes(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn next_end(&self) -> Option<OwnedFd> {
        // The lowest number first, since children come and go. One that was not in the list any more means a look for nothing.
        let mut opened = self.members().into_iter().filter_map(|pid| open_pidfd(pid).ok());
        opened.find(|pidfd| !fork::has_ended(pidfd.as_fd()))
    }

    fn members(&self) -> Vec<i32> {
        let directory = self.site.directory();
        let mut found = v2::walk(&directory);
        if found.denied {
            v2::open_up(&directory);
            found = v2::walk(&directory);
        }
        // The threads of one may be in several groups.
        found.pids.sort_unstable();
        found.pids.dedup();
        found.pids
    }

    fn contains(&self, pid: i32) -> bool {
        let path = Proc::default().cgroup_v1(pid, self.site.hierarchy);
        path.is_ok_and(|path| path.is_some_and(|path| path.starts_with(self.site.path())))
    }

    fn kill(&self) -> Result<(), GroupError> {
        self.check_not_ours()?;
        if self.site.freezes() {
            let frozen = self.freeze();
            if frozen.is_ok() {
                self.signal(Signal::KILL);
            }
            let thawed = self.thaw();
            if frozen.is_ok() {
                return thawed;
            }
        }
        stop_all(|| self.signal(Signal::STOP));
        self.signal(Signal::KILL);
        Ok(())
    }

    fn usage(&self, _read: fn(&Path) -> Usage) -> Usage {
        match self.site.cpuacct_directory() {
            Some(directory) => Usage::default().with_v1_cpu(&directory),
            // The dead leave no trace in /proc; a sum over the living would look like the whole.
            None => Usage::default(),
        }
    }

    fn remove(&self) -> Result<(), GroupError> {
        let remove = |group: &Location| {
            let remove = || v1::remove_tree(group, "remove the group");
            remove().or_else(|_| {
                v2::open_up(&group.directory());
                remove()
            })
        };
        // By the one that tells who is a member the other is found again, if we get no further.
        let counting = self.site.cpuacct.as_ref().map_or(Ok(()), remove);
        remove(&self.site.tracking).and(counting).map_err(GroupError::from)
    }

    fn kills_by_signals(&self) -> bool {
        true
    }

    fn ways(&self) -> String {
        "in cgroup v1; the command joins it, and it is killed by signals".to_owned()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests;
