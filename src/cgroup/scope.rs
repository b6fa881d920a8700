//! A job group in a systemd scope: for a plain user, who owns no group but what the own service manager gives, and for
//! root on a machine whose groups are systemd's.
//!
//! ```text
//! …/perflock-ID.scope                transient, delegated to us, gone when it is empty
//! …/perflock-ID.scope/guard          the guard
//! …/perflock-ID.scope/perflock-ID    the job group: a v2 group like any other
//! ```
//!
//! systemd moves one process of ours into the scope, the launcher; what it makes is born in the sub-groups, or joins them. The
//! scope itself must have no process when controllers are passed on to the sub-groups (cgroups(7), "no internal
//! processes"): they are enabled when the launcher is gone, and before the command executes.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cpuset::CpusetError;
use super::door::Door;
use super::systemd::{Manager, Missing, NoAnswer, Restriction};
use super::v2::{self, Location};
use super::{Entry, GroupError, JobGroup, Maker, Population, Usage, cpuset, detect};
use crate::error::FileError;
use crate::helper::Interrupt;
use crate::job::GROUP_PREFIX;
use crate::pin::Pin;
use crate::procfs::Proc;

/// The sub-group of the guard.
const GUARD: &str = "guard";

/// How long a process may take to appear in its scope once systemd says that it is there, and the last process of a
/// group to be out of it once it was reaped.
const SETTLE: Duration = Duration::from_secs(1);

/// A job group inside a scope.
#[derive(Debug)]
pub struct Group {
    job: v2::Group,
    guard: Door,
    scope: Location,
    unit: String,
}

impl Group {
    /// Lets systemd put the process `launcher` into a scope, restricted if that is asked for, and makes the group `name` and
    /// the guard's in it.
    ///
    /// # Errors
    /// There is none; or the wait for it was ended.
    pub(crate) fn create(
        manager: &Manager,
        name: &str,
        restriction: Option<Restriction<'_>>,
        launcher: i32,
        mountinfo: &str,
        interrupt: &Interrupt<'_>,
    ) -> Result<Self, NoAnswer> {
        manager.start_scope(name, restriction, launcher, interrupt, &|| around(launcher, name).is_some())?;
        let (scope, unit) = located(launcher, name, mountinfo).map_err(Missing::because)?;
        let inside = || -> Result<Self, GroupError> {
            let guard = scope.child(GUARD).directory();
            fs::create_dir(&guard).map_err(FileError::on("create the group", &guard))?;
            let job = v2::Group::create(&scope, name)?;
            Self::of(job, scope, unit)
        };
        inside().map_err(|error| Missing::because(error.to_string()).into())
    }

    /// Opens the group `name` of the scope that this process is in: the launcher's way to it.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn open_around_us(name: &str, mountinfo: &str) -> io::Result<Self> {
        let scope = detect::own_location(&Proc::default(), mountinfo).map_err(io::Error::other)?;
        let unit = scope.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let job = v2::Group::adopt(scope.child(name), rustix::process::geteuid().as_raw());
        let job = job.map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?;
        Self::of(job, scope, unit).map_err(io::Error::other)
    }

    fn of(job: v2::Group, scope: Location, unit: String) -> Result<Self, GroupError> {
        let path = scope.child(GUARD).directory();
        let guard = Door::of(&path)?;
        Ok(Self { job, guard, scope, unit })
    }

    /// Where the job group is in the hierarchy.
    pub fn path(&self) -> &Path {
        self.job.path()
    }

    /// The job group.
    pub fn job(&self) -> &v2::Group {
        &self.job
    }

    /// The scope's directory.
    pub fn scope_directory(&self) -> PathBuf {
        self.scope.directory()
    }

    /// Whether the job group has the processors and memory nodes that its scope was given. Without a cpuset of its own it has
    /// the scope's.
    ///
    /// # Errors
    /// It has less, or there is no cpuset.
    pub fn check_cpuset(&self, pin: &Pin) -> Result<(), CpusetError> {
        let own = self.job.location().directory();
        let group = if own.join("cpuset.cpus.effective").exists() { own } else { self.scope.directory() };
        cpuset::check(&group, pin)
    }

    /// The way into the guard's group.
    pub(crate) fn guard_entry(&self) -> Entry<'_> {
        self.guard.entry()
    }

    /// The way into the job group.
    pub(crate) fn job_entry(&self) -> Entry<'_> {
        self.job.entry()
    }

    /// Passes every controller that systemd delegated on to the job group, as far as the kernel lets us: memory, pids,
    /// cpu and io are counted without, but not all of it for the job alone. Called when the launcher was reaped.
    pub fn enable_controllers(&self) {
        let directory = self.scope.directory();
        let all = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        let file = directory.join("cgroup.subtree_control");
        let names: Vec<String> = all.split_ascii_whitespace().map(|name| format!("+{name}")).collect();
        if names.is_empty() {
            return;
        }
        let end = Instant::now() + SETTLE;
        let mut pause = Duration::from_micros(50);
        loop {
            match fs::write(&file, names.join(" ")) {
                // Since Linux 6.19 a reaped process is in its group until it was scheduled for the last time.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                Err(_) => {
                    // One that cannot be had must not cost the others.
                    for name in &names {
                        let _ = fs::write(&file, name);
                    }
                    return;
                }
                Ok(()) => return,
            }
        }
    }
}

/// Lets systemd move `pid`, a guard of `group` that was forked outside of the scope, in where the first one was.
/// Whether that was done.
pub(crate) fn take_in_guard(manager: &Manager, group: &dyn JobGroup, pid: i32) -> bool {
    group.unit().is_some_and(|unit| manager.attach(unit, GUARD, pid).is_ok())
}

/// Whether systemd has moved this process into a scope that was made for it.
pub(crate) fn is_around_us() -> bool {
    around(std::process::id().cast_signed(), GROUP_PREFIX).is_some()
}

/// The scope, of a name that begins with `prefix`, that the process `pid` is in. Its path is systemd's to choose.
fn around(pid: i32, prefix: &str) -> Option<(PathBuf, String)> {
    let path = Proc::default().cgroup_v2(pid).ok()?;
    let unit = path.file_name()?.to_str()?.to_owned();
    (unit.starts_with(prefix) && unit.ends_with(".scope")).then_some((path, unit))
}

/// The place of the scope that is made for `pid`, and its name. In most tries a process was not there yet when
/// systemd had answered.
fn located(pid: i32, name: &str, mountinfo: &str) -> Result<(Location, String), String> {
    let end = Instant::now() + SETTLE;
    let mut pause = Duration::from_micros(50);
    loop {
        match around(pid, name) {
            // A mount may show it all the same, but with `nsdelegate`, systemd's choice, nobody here may be born in it.
            Some((path, _)) if path.starts_with("/..") => {
                return Err("systemd's scopes are outside of our cgroup namespace".to_owned());
            }
            Some((path, unit)) => return Ok((detect::locate(mountinfo, &path)?, unit)),
            None if Instant::now() >= end => return Err("systemd made a scope, but did not move us into it".to_owned()),
            None => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(2));
    }
}

impl JobGroup for Group {
    fn maker(&self) -> Maker<'_> {
        self.job.maker()
    }

    fn exclude(&mut self, pid: i32) {
        self.job.exclude(pid);
    }

    fn population(&self) -> Population {
        self.job.population()
    }

    fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.job.changes()
    }

    fn members(&self) -> Vec<i32> {
        self.job.members()
    }

    fn contains(&self, pid: i32) -> bool {
        self.job.contains(pid)
    }

    fn kill(&self) -> Result<(), GroupError> {
        self.job.kill()
    }

    fn usage(&self, read: fn(&Path) -> Usage) -> Usage {
        self.job.usage(read)
    }

    fn remove(&self) -> Result<(), GroupError> {
        // systemd removes the scope, with the guard's group, when the guard has left it.
        self.job.remove()
    }

    fn inode(&self) -> Option<u64> {
        self.job.inode()
    }

    fn v2_location(&self) -> Option<&Location> {
        Some(self.job.location())
    }

    fn kills_by_signals(&self) -> bool {
        self.job.kills_by_signals()
    }

    fn ways(&self) -> String {
        self.job.ways()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.job.descriptors()
    }

    fn unit(&self) -> Option<&str> {
        Some(&self.unit)
    }
}
