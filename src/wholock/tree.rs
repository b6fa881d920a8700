//! The processes of a job as a tree, each under its parent as far as that is a member too.

use std::time::Duration;

use crate::procfs::{Proc, Stat};

/// A process of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// How many of its ancestors are members.
    pub depth: usize,
    /// What the kernel says of it.
    pub stat: Stat,
    /// Whose.
    pub uid: Option<u32>,
    /// Its arguments; empty for a zombie.
    pub command: Vec<String>,
}

impl Process {
    /// CPU time of the process itself: not of its children, be they reaped or not.
    pub fn cpu(&self) -> Duration {
        Duration::from_secs_f64(self.stat.cpu_ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Its memory that is not swapped out, parts shared with others included.
    pub fn memory_bytes(&self) -> u64 {
        self.stat.resident_pages.saturating_mul(rustix::param::page_size() as u64)
    }
}

/// Those of `pids` that are processes still, in the order of the tree. A process that is hidden from us is left out.
pub fn read(proc: &Proc, pids: &[i32]) -> Vec<Process> {
    let stats = pids.iter().filter_map(|&pid| proc.stat(pid).ok()).collect();
    let process = |(depth, stat): (usize, Stat)| {
        let (uid, command) = (proc.uid(stat.pid).ok(), proc.cmdline(stat.pid).unwrap_or_default());
        Process { depth, stat, uid, command }
    };
    in_order(stats).into_iter().map(process).collect()
}

/// Parents before their children, those in the order of their pids; with how deep each stands.
fn in_order(mut stats: Vec<Stat>) -> Vec<(usize, Stat)> {
    // Popped from the end, so the lowest pid last. Listed twice is one that moved between two groups meanwhile.
    stats.sort_unstable_by_key(|stat| std::cmp::Reverse(stat.pid));
    stats.dedup_by_key(|stat| stat.pid);
    let pids: Vec<i32> = stats.iter().map(|stat| stat.pid).collect();
    let is_member = |pid: i32| pids.binary_search_by(|other| pid.cmp(other)).is_ok();
    let (children, mut open): (Vec<Stat>, Vec<Stat>) = stats.into_iter().partition(|stat| is_member(stat.ppid));
    let mut children: Vec<Option<Stat>> = children.into_iter().map(Some).collect();
    let mut open: Vec<(usize, Stat)> = open.drain(..).map(|stat| (0, stat)).collect();
    let mut ordered = Vec::new();
    while let Some((depth, stat)) = open.pop() {
        let of_it = children.iter_mut().filter(|child| child.as_ref().is_some_and(|child| child.ppid == stat.pid));
        open.extend(of_it.filter_map(Option::take).map(|child| (depth + 1, child)));
        ordered.push((depth, stat));
    }
    // Read at different moments, two may each be the other's parent: none is to be missing for that.
    ordered.extend(children.into_iter().flatten().rev().map(|stat| (0, stat)));
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stat(pid: i32, ppid: i32) -> Stat {
        Stat { pid, ppid, state: 'S', start_ticks: 1, ..Stat::default() }
    }

    #[test]
    fn children_stand_below_their_parents() {
        let stats = [(9, 2), (2, 1), (5, 2), (7, 5), (3, 1)].map(|(pid, ppid)| stat(pid, ppid)).to_vec();
        let order: Vec<(usize, i32)> = in_order(stats).iter().map(|(depth, stat)| (*depth, stat.pid)).collect();
        assert_eq!(order, [(0, 2), (1, 5), (2, 7), (1, 9), (0, 3)]);
    }

    proptest! {
        #[test]
        fn every_process_is_there_once(parents in proptest::collection::vec(0..20_i32, 0..20)) {
            let stats: Vec<Stat> = (1..).zip(&parents).map(|(pid, &ppid)| stat(pid, ppid)).collect();
            let ordered = in_order(stats.clone());
            let mut pids: Vec<i32> = ordered.iter().map(|(_, stat)| stat.pid).collect();
            pids.sort_unstable();
            prop_assert_eq!(pids, (1..=i32::try_from(parents.len()).unwrap()).collect::<Vec<_>>());
            for (at, (depth, stat)) in ordered.iter().enumerate().filter(|(_, (depth, _))| *depth > 0) {
                let parent = ordered[..at].iter().rfind(|(above, _)| above + 1 == *depth);
                prop_assert_eq!(parent.map(|(_, parent)| parent.pid), Some(stat.ppid));
            }
        }
    }
}
