//! The fallback where no group can be had: the supervisor becomes a child subreaper (prctl(2)), so that every orphaned
//! descendant comes back to it, and the command carries a marker in its environment by which the guard, or the next
//! perflock, finds members when the supervisor is dead.
//!
//! The promise is weaker, and announced: a member that empties its environment and outlives the supervisor is lost,
//! and killing is a race against forks that is won by stopping every process first.

use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::process::{Signal, pidfd_send_signal};

use super::{GroupError, JobGroup, Maker, Population, Usage, open_pidfd, signal_members, stop_all};
use crate::child::{self, Children};
use crate::error::FileError;
use crate::procfs::{Proc, Stat};

/// The environment variable that marks a member.
pub const MARKER: &str = "PERFLOCK_MEMBER";

/// How often new processes are looked for while there are some that have the marker.
const CHASES: usize = 1000;

/// The descendants of one supervisor.
#[derive(Debug)]
pub struct Group {
    proc: Proc,
    /// The job's name: one word of the marker.
    name: String,
    /// The marker's value: inside another job without a group, that job's name too, which must find ours as its own.
    marker: String,
    /// `None` for a job whose supervisor is dead: only the marker tells its members.
    supervisor: Option<i32>,
    /// Children that we had before the job began (`sleep & exec perflock`): nobody's job.
    inherited: Vec<i32>,
    /// Guards of ours.
    excluded: Vec<i32>,
}

impl Group {
    /// Makes this process the subreaper of the job `name`.
    ///
    /// # Errors
    /// The kernel refused, or `/proc` cannot be read.
    pub fn create(name: &str) -> Result<Self, GroupError> {
        let proc = Proc::default();
        let own = std::process::id().cast_signed();
        let inherited = match child::children() {
            Children::None => Vec::new(),
            Children::Some => children_of(&snapshot(&proc), own),
        };
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(FileError::on("become the subreaper of", Path::new("the job")))?;
        let outer = std::env::var(MARKER).map(|outer| format!("{outer} ")).unwrap_or_default();
        let (name, marker) = (name.to_owned(), format!("{outer}{name}"));
        Ok(Self { proc, name, marker, supervisor: Some(own), inherited, excluded: Vec::new() })
    }

    /// The members of the job `name` whose supervisor is dead.
    pub fn adopt(name: &str) -> Self {
        Self {
            proc: Proc::default(),
            name: name.to_owned(),
            marker: String::new(),
            supervisor: None,
            inherited: Vec::new(),
            excluded: Vec::new(),
        }
    }

    /// Stops our own children at once. A chain of processes that fork and exit is faster than a walk through `/proc`, but
    /// whichever lives has come home to us. We alone reap our children, so their numbers are their own.
    fn stop_children(&self) {
        let own = std::process::id().cast_signed();
        if self.supervisor != Some(own) {
            return;
        }
        for pid in self.proc.children(own).unwrap_or_default() {
            if !self.excluded.contains(&pid)
                && !self.inherited.contains(&pid)
                && let Ok(pidfd) = open_pidfd(pid)
            {
                let _ = pidfd_send_signal(pidfd, Signal::STOP);
            }
        }
    }

    /// Stops members that have the marker as soon as each is found: where they do not come home to us, a walk through all of
    /// `/proc` comes too late for a chain of processes that fork and exit.
    fn stop_marked(&self) {
        let not_ours = [std::process::id().cast_signed()].into_iter().chain(self.excluded.iter().copied());
        let mut looked_at: HashSet<i32> = not_ours.chain(self.inherited.iter().copied()).collect();
        let mut in_vain = 0;
        for _ in 0..CHASES {
            let mut found = false;
            for pid in self.proc.pids().unwrap_or_default() {
                // Opened before its marker is read: whatever takes the signal is what had the marker.
                if looked_at.insert(pid)
                    && let Ok(pidfd) = open_pidfd(pid)
                    && self.proc.environ_has(pid, MARKER, &self.name).unwrap_or(false)
                {
                    found = true;
                    let _ = pidfd_send_signal(pidfd, Signal::STOP);
                }
            }
            in_vain = if found { 0 } else { in_vain + 1 };
            if in_vain == 2 {
                break;
            }
        }
    }

    fn signal(&self, signal: Signal) -> usize {
        signal_members(self, &self.members(), signal)
    }

    fn living_members(&self) -> Vec<Stat> {
        let mut members = self.all_members();
        members.retain(|stat| !stat.is_dead());
        members
    }

    fn is_marked(&self, stat: &Stat) -> bool {
        let has = |pid: i32| self.proc.environ_has(pid, MARKER, &self.name).unwrap_or(false);
        // What a thread has ended with is gone for it alone.
        has(stat.pid) || stat.is_headless() && self.proc.threads(stat.pid).unwrap_or_default().into_iter().any(has)
    }

    /// Those that ended and were not reaped included.
    fn all_members(&self) -> Vec<Stat> {
        let all = snapshot(&self.proc);
        let own = std::process::id().cast_signed();
        // In the guard, the supervisor is dead when this is asked: its number may have come to mean another process.
        let mut roots = if self.supervisor == Some(own) { children_of(&all, own) } else { Vec::new() };
        let not_ours = |pid: &i32| self.excluded.contains(pid) || self.inherited.contains(pid);
        roots.retain(|pid| !not_ours(pid));
        roots.extend(all.iter().filter(|stat| self.is_marked(stat)).map(|stat| stat.pid));
        let foreign = |pid: i32| pid == own || not_ours(&pid);
        let members = descendants(&all, roots, foreign);
        all.into_iter().filter(|stat| members.contains(&stat.pid)).collect()
    }
}

fn snapshot(proc: &Proc) -> Vec<Stat> {
    let pids = proc.pids().unwrap_or_default();
    pids.into_iter().filter_map(|pid| proc.stat(pid).ok()).collect()
}

fn children_of(all: &[Stat], parent: i32) -> Vec<i32> {
    all.iter().filter(|stat| stat.ppid == parent).map(|stat| stat.pid).collect()
}

/// `roots` and all their descendants, leaving out `foreign` processes with what hangs below them.
fn descendants(all: &[Stat], roots: Vec<i32>, foreign: impl Fn(i32) -> bool) -> HashSet<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for stat in all {
        children.entry(stat.ppid).or_default().push(stat.pid);
    }
    let mut found = HashSet::new();
    let mut pending = roots;
    while let Some(pid) = pending.pop() {
        if !foreign(pid) && found.insert(pid) {
            pending.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

impl JobGroup for Group {
    fn maker(&self) -> Maker<'_> {
        Maker::Marked(MARKER, &self.marker)
    }

    fn exclude(&mut self, pid: i32) {
        self.excluded.push(pid);
    }

    fn population(&self) -> Population {
        if self.supervisor == Some(std::process::id().cast_signed()) && self.inherited.is_empty() {
            // Every descendant's line of parents ends at a child of ours, at every moment.
            return match child::children() {
                Children::None => Population::Empty,
                Children::Some => Population::Populated,
            };
        }
        // A chain of short processes can slip through one walk.
        let none = || self.living_members().is_empty();
        if none() && none() { Population::Empty } else { Population::Populated }
    }

    fn changes(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn members(&self) -> Vec<i32> {
        self.living_members().into_iter().map(|stat| stat.pid).collect()
    }

    fn contains(&self, pid: i32) -> bool {
        self.all_members().iter().any(|stat| stat.pid == pid)
    }

    fn kill(&self) -> Result<(), GroupError> {
        if self.supervisor != Some(std::process::id().cast_signed()) {
            self.stop_marked();
        }
        stop_all(|| {
            self.stop_children();
            self.signal(Signal::STOP)
        });
        self.signal(Signal::KILL);
        Ok(())
    }

    fn usage(&self, _read: fn(&Path) -> Usage) -> Usage {
        // The dead leave no trace in /proc; a sum over the living would look like the whole.
        Usage::default()
    }

    fn remove(&self) -> Result<(), GroupError> {
        Ok(())
    }

    fn kills_by_signals(&self) -> bool {
        true
    }

    fn ways(&self) -> String {
        "none; the command's descendants are followed, and killed by signals".to_owned()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, ppid: i32) -> Stat {
        Stat { pid, ppid, state: 'S', start_ticks: 1, ..Stat::default() }
    }

    #[test]
    fn the_whole_tree_is_found_but_not_what_hangs_below_the_guard() {
        let all = [process(10, 1), process(11, 10), process(12, 11), process(20, 10), process(21, 20), process(30, 1)];
        let mut found: Vec<i32> = descendants(&all, vec![11, 20, 30], |pid| pid == 20).into_iter().collect();
        found.sort_unstable();
        assert_eq!(found, [11, 12, 30]);
    }

    #[test]
    fn a_cycle_of_reused_numbers_ends() {
        let all = [process(11, 12), process(12, 11)];
        assert_eq!(descendants(&all, vec![11], |_| false).len(), 2);
    }
}
