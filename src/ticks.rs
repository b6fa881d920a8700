//! CPU time of processes: two looks at `/proc/PID/stat` of each, [`Ticks`], and what changed between them, [`between`].
//!
//! # Theory of operation
//!
//! The CPU time of a process that began and ended between the looks shows only in its parent, which waited for it: in
//! [`Stat::ended_children_ticks`]. That grows by all that the child and its own children ever used, so what those that are
//! gone had at the first look is taken off again, from the nearest ancestor that is left, and what it does not cover
//! from the next: a child whose parent died too was waited for by an ancestor. All errors are towards too little.
//!
//! # What is known not to hold
//!
//! - Nobody knows whose the children were that pid 1 waited for, those of jobs included: they are not counted.
//! - If a job was below a process at either look, the children that this one waited for are not counted: the job's time may
//!   be in theirs. A loop of jobs so short that none runs at either look counts as its shell's.
//! - Children that nobody waits for (`SIGCHLD` ignored) and that live between the looks only are seen by nobody.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use crate::clock;
use crate::procfs::{Proc, Stat};

/// No chain of parents is followed further: read at different moments, it may be a circle.
const ANCESTORS: usize = 256;

/// So many are read before it is asked whether to go on: 50 microseconds' worth.
const BATCH: usize = 4;

/// CPU time of every process at one moment.
#[derive(Clone, Debug, Default)]
pub struct Ticks {
    /// When reading began, on `CLOCK_BOOTTIME`.
    pub taken_usec: u64,
    /// Other users' processes are hidden from us.
    pub own_only: bool,
    /// By pid, without kernel threads.
    pub processes: HashMap<i32, Seen>,
}

/// A process, and when it was looked at: on a busy machine the last is long after the first.
#[derive(Clone, Debug)]
pub struct Seen {
    /// On `CLOCK_BOOTTIME`.
    pub at_usec: u64,
    /// What the kernel said of it.
    pub stat: Stat,
}

impl Ticks {
    /// Reads the `stat` of every process that we see.
    ///
    /// # Errors
    /// `/proc` could not be listed.
    pub fn read(proc: &Proc) -> io::Result<Self> {
        Self::read_while(proc, &HashSet::new(), &|| true)
    }

    /// The same without those that are known to be the kernel's own threads, as long as `goes_on` says so, which is asked now and
    /// then.
    ///
    /// # Errors
    /// `/proc` could not be listed, or it does not go on: `Interrupted`.
    pub fn read_while(proc: &Proc, of_the_kernel: &HashSet<i32>, goes_on: &dyn Fn() -> bool) -> io::Result<Self> {
        // Before the list: whatever began since and is not in it began later than this.
        let taken_usec = clock::boottime_usec();
        let mut processes = HashMap::new();
        let pids = proc.pids()?.into_iter().filter(|pid| !of_the_kernel.contains(pid));
        for (index, pid) in pids.enumerate() {
            if index % BATCH == 0 && !goes_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if let Some(stat) = proc.stat(pid).ok().filter(|stat| !stat.kernel_thread) {
                processes.insert(pid, Seen { at_usec: clock::boottime_usec(), stat });
            }
        }
        // There always is one, and hidepid hides it with all others' (proc(5)) unless we are privileged.
        let own_only = !processes.contains_key(&1);
        Ok(Self { taken_usec, own_only, processes })
    }

    /// A process that is in both: the same, not one that got its number.
    fn same(&self, stat: &Stat) -> Option<&Seen> {
        self.processes.get(&stat.pid).filter(|other| other.stat.start_ticks == stat.start_ticks)
    }

    /// Whether the process of this number is another one than it was `before`.
    pub fn is_another(&self, before: &Self, pid: i32) -> bool {
        let start = |ticks: &Self| ticks.processes.get(&pid).map(|seen| seen.stat.start_ticks);
        start(before).zip(start(self)).is_some_and(|(before, now)| before != now)
    }

    fn stats(&self) -> impl Iterator<Item = &Stat> {
        self.processes.values().map(|seen| &seen.stat)
    }

    /// The parent, its parent, and so on, as far as they are known.
    pub fn ancestors(&self, of: &Stat) -> impl Iterator<Item = &Stat> {
        let parent = |stat: &Stat| self.processes.get(&stat.ppid).map(|seen| &seen.stat);
        std::iter::successors(parent(of), move |stat| parent(stat)).take(ANCESTORS)
    }
}

/// What a process used between two looks.
#[derive(Clone, Copy, Debug)]
pub struct Used<'a> {
    /// The process, as it was at the second look.
    pub stat: &'a Stat,
    /// Itself.
    pub own_ticks: u64,
    /// Its children that ended and that it waited for.
    pub ended_children_ticks: u64,
    /// In how long: since the first look at it, or the first of all.
    pub elapsed: Duration,
}

/// What each process that is there at the second look used since the first, if that is anything. `in_job` is asked about
/// processes that used CPU time only, also about such as ended; those of jobs are left out.
pub fn between<'a>(
    before: &Ticks,
    after: &'a Ticks,
    ticks_per_second: u64,
    in_job: impl Fn(i32) -> bool,
) -> Vec<Used<'a>> {
    let ended = ended_children(before, after, &in_job);
    let taken_ticks = clock::to_ticks(before.taken_usec, ticks_per_second);
    // Since when, what it used itself, and what its children did.
    let used = |stat: &Stat| match before.same(stat) {
        Some(first) => {
            let of_children = ended.get(&stat.pid).copied().unwrap_or(0);
            (first.at_usec, stat.cpu_ticks.saturating_sub(first.stat.cpu_ticks), of_children)
        }
        None if stat.start_ticks >= taken_ticks => (before.taken_usec, stat.cpu_ticks, stat.ended_children_ticks),
        // It was there and hidden: what it had at the first look is not known.
        None => (before.taken_usec, 0, 0),
    };
    let one = |Seen { at_usec, stat }: &'a Seen| {
        let (since_usec, own_ticks, ended_children_ticks) = used(stat);
        let elapsed = Duration::from_micros(at_usec.saturating_sub(since_usec));
        let nothing = own_ticks.saturating_add(ended_children_ticks) == 0 || elapsed.is_zero();
        (!nothing && !in_job(stat.pid)).then_some(Used { stat, own_ticks, ended_children_ticks, elapsed })
    };
    after.processes.values().filter_map(one).collect()
}

/// For each process that was there at both looks, the ticks that children which it waited for used between them.
fn ended_children(before: &Ticks, after: &Ticks, in_job: impl Fn(i32) -> bool) -> HashMap<i32, u64> {
    let grown = |stat: &Stat| {
        let more = stat.ended_children_ticks.saturating_sub(before.same(stat)?.stat.ended_children_ticks);
        (stat.pid != 1 && more > 0).then_some((stat.pid, more))
    };
    let mut ended: HashMap<i32, u64> = after.stats().filter_map(grown).collect();
    if ended.is_empty() {
        return ended;
    }
    let gone: Vec<&Stat> = before.stats().filter(|stat| after.same(stat).is_none()).collect();
    let new = after.stats().filter(|stat| before.same(stat).is_none());
    // The nearest process that was there at both looks: who waited for what is gone, and will for what is new.
    let kept_above = |ticks: &Ticks, other: &Ticks, stat: &Stat| {
        ticks.ancestors(stat).find(|above| other.same(above).is_some()).map(|above| above.pid)
    };
    let above_gone = gone.iter().map(|stat| (stat.pid, kept_above(before, after, stat)));
    let above_new = new.map(|stat| (stat.pid, kept_above(after, before, stat)));
    let mut of_jobs = HashSet::new();
    for (pid, above) in above_gone.chain(above_new) {
        if let Some(above) = above
            && ended.contains_key(&above)
            && in_job(pid)
        {
            of_jobs.insert(above);
        }
    }
    ended.retain(|pid, _| !of_jobs.contains(pid));
    for stat in gone {
        let mut used_before = stat.cpu_ticks.saturating_add(stat.ended_children_ticks);
        for above in before.ancestors(stat) {
            if used_before == 0 || of_jobs.contains(&above.pid) {
                break;
            }
            if let Some(ticks) = ended.get_mut(&above.pid) {
                let taken_off = used_before.min(*ticks);
                *ticks -= taken_off;
                used_before -= taken_off;
            }
        }
    }
    ended
}
