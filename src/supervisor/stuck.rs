//! Members that were killed and live on: which, and what has to happen for them to end.

use std::path::PathBuf;

use super::NAMED;
use crate::cgroup::{Frozen, JobGroup};
use crate::procfs::Proc;

/// A member that was killed and lives on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Its pid.
    pub pid: i32,
    /// Its name, chosen by itself: hostile text.
    pub name: String,
    /// Why it does not end.
    pub why: Why,
}

/// Why a process that was killed does not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is frozen by this group of a v1 freezer, which is not ours to thaw.
    Frozen(PathBuf),
    /// It waits in the kernel for something, and no signal ends that wait.
    InKernel,
    /// It runs as this user, and only that one or root can kill it.
    Not(u32),
    /// It may just take long. Its state, a letter as in ps(1).
    State(char),
}

/// The first few of the members that live on, and how many there are. `frozen` are those that were found frozen.
pub fn look(group: &dyn JobGroup, frozen: &[Frozen]) -> (Vec<Stuck>, usize) {
    let members = group.members();
    // The kernel kills a whole group without asking whose its processes are, a single process not.
    let asks = group.kills_by_signals();
    let stuck = members.iter().filter_map(|&pid| look_at(&Proc::default(), pid, frozen, asks)).take(NAMED).collect();
    (stuck, members.len())
}

fn look_at(proc: &Proc, pid: i32, frozen: &[Frozen], asks: bool) -> Option<Stuck> {
    let stat = proc.stat(pid).ok()?;
    // Its main thread may have ended, and another hold it up.
    let threads = if stat.is_headless() { proc.threads(pid).unwrap_or_default() } else { Vec::new() };
    let states = threads.into_iter().filter_map(|thread| Some(proc.stat(thread).ok()?.state));
    let state = states.chain([stat.state]).find(|&state| state != 'Z').unwrap_or(stat.state);
    let own = rustix::process::geteuid();
    let other = proc.uid(pid).ok().filter(|&uid| asks && !own.is_root() && uid != own.as_raw());
    let why = match (frozen.iter().find(|frozen| frozen.pid == pid), state, other) {
        (Some(frozen), ..) => Why::Frozen(frozen.group.clone()),
        (None, 'D', _) => Why::InKernel,
        (None, _, Some(uid)) => Why::Not(uid),
        (None, state, None) => Why::State(state),
    };
    Some(Stuck { pid, name: stat.comm, why })
}
