//! Job groups: one interface over what machines offer for keeping a whole process tree together.
//!
//! # Theory of operation
//!
//! A job's command is **born** in a group of its own, by `clone3(CLONE_INTO_CGROUP)`. A process is never moved by
//! writing `cgroup.procs`: that takes a kernel-wide lock and stalls every fork of the machine, the guarded benchmark's
//! included. (Where that call is not to be had there is no other way: [`Entry::Joins`].) Children are in the group without
//! doing anything, however often they fork, daemonise or change session.
//!
//! **Empty means `populated 0`** in `cgroup.events`. An empty `cgroup.procs` means nothing (it does not list
//! sub-groups, and newer kernels hide processes in their last exit), nor does a successful rmdir. A group that is
//! gone is empty.
//!
//! **Killing** is `cgroup.kill`, at the job group and nowhere below, written again until the group is empty: before
//! Linux 6.14 a fork in flight can survive one write. Before every write the group's name must be one that perflock
//! makes and the group must not contain ourselves. Where there is no such file, [`freeze`] does it. Single signals go by
//! pidfd, opened between two readings of the member list: a number that is in both, and whose pidfd still takes the signal,
//! meant one process throughout.
//!
//! Not everything dies of it: a process whose main thread has ended is not reached by `cgroup.kill`, and one that a v1 freezer
//! holds does not take the signal. [`kill_survivors`] deals with these, a while after the first kill.
//!
//! On a machine that systemd runs, groups are systemd's to give: [`scope`] asks it for one that is delegated to us. Below a
//! group that is ours already a job group is made directly, [`v2`].
//!
//! [`cpuset`] keeps a job on its processors, where that is ours to do; [`controller`] tells where, and [`v1`] has the job's
//! groups of such controllers as are in hierarchies of their own.
//!
//! Where there is no v2 hierarchy, [`legacy`] makes do with v1, which tells no changes and kills nobody.
//!
//! Where no group can be had, [`subreaper`] keeps a weaker promise; [`mod@detect`] says why.

pub(crate) mod bus;
pub mod controller;
pub mod cpuset;
pub mod detect;
mod door;
pub mod freeze;
mod freezer;
pub mod legacy;
pub mod limits;
pub mod scope;
pub mod subreaper;
pub mod systemd;
mod unified;
pub mod usage;
pub mod v1;
pub mod v2;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use detect::{Detected, Place, Refusal, detect};
pub use freezer::Frozen;
pub use usage::Usage;

use crate::error::FileError;
use crate::procfs::Proc;
use crate::text;

/// Whether a job gets a group of its own: `--cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The strongest this machine offers; the fallback is announced.
    Auto,
    /// A real group or nothing.
    Required,
    /// The fallback.
    None,
}

impl Choice {
    /// Reads `auto`, `required` or `none`.
    ///
    /// # Errors
    /// A sentence fragment with the words that are allowed.
    pub fn parse(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "required" => Ok(Self::Required),
            "none" => Ok(Self::None),
            _ => Err(r#"the job's cgroup is "auto", "required" or "none""#.to_owned()),
        }
    }
}

/// What a job may have that is run with this `--cgroup`.
pub fn choose(choice: Choice, proc: &Proc, machine: &detect::Machine<'_>) -> Detected {
    match choice {
        Choice::None => Detected { places: vec![Place::Subreaper], refused: Vec::new() },
        Choice::Auto => detect(proc, machine),
        Choice::Required => {
            let mut detected = detect(proc, machine);
            detected.places.retain(|place| *place != Place::Subreaper);
            detected
        }
    }
}

impl Detected {
    /// Leaves what a job inside another may have: never a scope beside that one, from where it would outlive the outer job and
    /// its hold on the machine.
    pub fn within_a_job(&mut self) {
        self.places.retain(|place| !matches!(place, Place::Scope(_)));
        if self.places.is_empty() {
            let why = "it would be outside of the job that this is a part of".to_owned();
            self.refused.insert(0, Refusal { backend: Backend::Scope, why, cure: None });
        }
    }
}

/// How a job group is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A cgroup v2 group in a systemd scope.
    Scope,
    /// A cgroup v2 group directly below our own.
    V2,
    /// Groups in hierarchies of cgroup v1.
    V1,
    /// No group: descendants, and a marker in the environment.
    Subreaper,
}

impl Backend {
    /// The name in tickets.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scope => "scope",
            Self::V2 => "v2",
            Self::V1 => "v1",
            Self::Subreaper => "subreaper",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a job group could not be made or worked with.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// A system call on a file of the group failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a group that perflock may touch.
    #[error("refusing to touch {}: {why}", text::path(.path))]
    Refused {
        /// The group.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The group could not be killed.
    #[error("cannot kill the group {}: {why}", text::path(.path))]
    Kill {
        /// The group.
        path: PathBuf,
        /// cgroups-rs's reason.
        why: String,
    },
}

/// Whether a group has a living member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Population {
    /// None: every one is dead.
    Empty,
    /// At least one.
    Populated,
}

/// How a process gets into a group of cgroup v2.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    /// It is born there: `clone3(CLONE_INTO_CGROUP)` with the group's directory.
    Born(BorrowedFd<'a>),
    /// It joins, as the first thing that it does, by the group's `cgroup.procs`: see [`crate::kernel::gives_birth_in_groups`].
    Joins(BorrowedFd<'a>),
}

/// How the job's first process gets into the group, where the supervisor makes it. In a systemd scope a launcher does.
#[derive(Clone, Copy, Debug)]
pub enum Maker<'a> {
    /// The supervisor makes it, and this is its way in.
    Into(Entry<'a>),
    /// The supervisor makes it by a plain fork, and it writes itself into these `tasks` files, in their order, before it
    /// executes.
    Joining([Option<BorrowedFd<'a>>; 2]),
    /// The supervisor makes it by a plain fork, with this variable set to this value in its environment.
    Marked(&'a str, &'a str),
}

/// A job group of any backend.
pub trait JobGroup: fmt::Debug {
    /// How the first process gets in.
    fn maker(&self) -> Maker<'_>;
    /// A child of ours that is not a member.
    fn exclude(&mut self, pid: i32);
    /// Whether a member lives.
    fn population(&self) -> Population;
    /// A descriptor on which poll(2) reports `POLLPRI` when the population may have changed; the kernel limits that
    /// to one notice per 10 ms. `None`: changes come as SIGCHLD, or by [`JobGroup::next_end`].
    fn changes(&self) -> Option<BorrowedFd<'_>>;
    /// Where the kernel tells of no changes: a descriptor that becomes readable when some member has ended. To be asked for
    /// anew each time. `None` where there is no such member, or ends come as SIGCHLD.
    fn next_end(&self) -> Option<OwnedFd> {
        None
    }
    /// A descriptor that becomes readable when the group may have been removed, if the kernel can tell. The notices of
    /// [`JobGroup::changes`] are held back for up to 10 ms, and one that is held back is lost when the group is removed.
    fn removal(&self) -> Option<OwnedFd> {
        None
    }
    /// Every member that can be listed, sub-groups included.
    fn members(&self) -> Vec<i32>;
    /// Whether this process is a member; false where it cannot be known.
    fn contains(&self, pid: i32) -> bool;
    /// Kills every member once. Call it again until the group is empty. Without `cgroup.kill` it takes up to
    /// [`freeze::FREEZES_WITHIN`].
    ///
    /// # Errors
    /// The group is not one that may be killed, or the kernel refused.
    fn kill(&self) -> Result<(), GroupError>;
    /// What the job has used so far, by [`Usage::read`] or [`Usage::read_all`]. Read it before [`JobGroup::remove`].
    fn usage(&self, read: fn(&Path) -> Usage) -> Usage;
    /// Removes the empty group with its sub-groups.
    ///
    /// # Errors
    /// The kernel refused; the group stays, empty.
    fn remove(&self) -> Result<(), GroupError>;
    /// The inode number of the group's directory, if there is one: a group that is made later has a higher one.
    fn inode(&self) -> Option<u64> {
        None
    }
    /// Where its group is in the v2 hierarchy, if it is in that.
    fn v2_location(&self) -> Option<&v2::Location> {
        None
    }
    /// Whether members are killed one by one, by signals: those that another user's processes do not take.
    fn kills_by_signals(&self) -> bool;
    /// How processes get in and are killed, in a few words for `--verbose`.
    fn ways(&self) -> String;
    /// What the guard must keep open to do its work.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;
    /// The systemd unit that was made for the job. When systemd stops it, the job must end.
    fn unit(&self) -> Option<&str> {
        None
    }
}

/// How many pidfds are open at a time where the limit on descriptors cannot be raised: well below the usual soft limit
/// of 1024.
const BATCH: usize = 256;

/// Descriptors for everything else.
const RESERVE: usize = 64;

/// Members, each by a pidfd that was opened between two listings that name it: so it means that member.
#[derive(Debug, Default)]
pub struct OpenedMembers(Vec<(i32, OwnedFd)>);

impl OpenedMembers {
    /// Opens those of `pids` that are members, or as many of them as may be open at once.
    pub fn open(group: &dyn JobGroup, pids: &[i32]) -> Self {
        let fit = pids.len().min(descriptors_for(pids.len()));
        let open = |&pid: &i32| Some((pid, open_pidfd(pid).ok()?));
        let mut opened = Self(pids[..fit].iter().filter_map(open).collect());
        opened.retain_members(group);
        opened
    }

    /// Keeps those that are still listed.
    pub fn retain_members(&mut self, group: &dyn JobGroup) {
        let mut still = group.members();
        still.sort_unstable();
        self.0.retain(|(pid, _)| still.binary_search(pid).is_ok());
    }

    /// Their process numbers.
    pub fn pids(&self) -> Vec<i32> {
        self.0.iter().map(|&(pid, _)| pid).collect()
    }

    /// Sends a signal to each that still lives, and returns how many took it.
    pub fn send(&self, signal: Signal) -> usize {
        self.0.iter().filter(|(_, pidfd)| pidfd_send_signal(pidfd, signal).is_ok()).count()
    }
}

/// Sends a signal to those of `pids` that are members, and returns how many took it. Members that appear meanwhile are
/// missed; [`JobGroup::kill`] misses none.
pub fn signal_members(group: &dyn JobGroup, pids: &[i32], signal: Signal) -> usize {
    let batches = pids.chunks(descriptors_for(pids.len()));
    batches.map(|batch| OpenedMembers::open(group, batch).send(signal)).sum()
}

/// How often members are stopped before those that were found are killed.
const STOP_ROUNDS: usize = 8;

/// Stops members until nobody new is found; `stop` stops those that it finds, and returns how many they are. Stopped processes do
/// not fork: whoever is killed after that, none is missed.
fn stop_all(mut stop: impl FnMut() -> usize) {
    let mut stopped = 0;
    for _ in 0..STOP_ROUNDS {
        let found = stop();
        if found <= stopped {
            break;
        }
        stopped = found;
    }
}

/// Kills, by other means, members that have lived on for a while after [`JobGroup::kill`]. Returns those that are frozen by what
/// is not ours to thaw.
pub fn kill_survivors(group: &dyn JobGroup) -> Vec<Frozen> {
    // `cgroup.kill` signals main threads. Where that one has ended, nobody takes the signal; a signal to the process reaches the
    // others.
    let proc = Proc::default();
    let headless = |&pid: &i32| proc.stat(pid).is_ok_and(|stat| stat.is_headless());
    let headless: Vec<i32> = group.members().into_iter().filter(headless).collect();
    signal_members(group, &headless, Signal::KILL);
    freezer::thaw(group)
}

/// How many of `wanted` more descriptors may be open at once, after raising our own soft limit. The command has its own,
/// from before.
fn descriptors_for(wanted: usize) -> usize {
    if wanted <= BATCH {
        return BATCH;
    }
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return BATCH };
    let needed = (wanted + RESERVE) as u64;
    if soft < needed {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard);
    }
    let now = getrlimit(Resource::RLIMIT_NOFILE).map_or(soft, |(soft, _)| soft);
    usize::try_from(now).unwrap_or(usize::MAX).saturating_sub(RESERVE).clamp(1, wanted.max(1))
}

/// A pidfd for a process number from a file. 0 stands for a process of another pid namespace, and 1 is nobody's job.
fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let unusable = || io::Error::from(io::ErrorKind::NotFound);
    let pid = Pid::from_raw(pid).filter(|pid| !pid.is_init()).ok_or_else(unusable)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}
