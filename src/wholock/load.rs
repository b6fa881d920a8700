//! CPU time that is used outside of jobs: by users who burn it without holding anything.
//!
//! # Theory of operation
//!
//! Two looks at `/proc/PID/stat` of every process, [`Ticks`], and what changed between them, [`between`]. Only for processes
//! that used CPU is asked whose they are and whether a job has them: most of a big machine's processes sleep, and one
//! small file is read of each.
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

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::time::Duration;

use super::snapshot::Snapshot;
use crate::cgroup::subreaper;
use crate::clock;
use crate::job::{GROUP_PREFIX, JobId};
use crate::lock::record::Joined;
use crate::nested;
use crate::procfs::{Proc, Stat};

/// Who uses no more than this is not shown, in percent of one core. The clock ticks every 10 ms, and user and system time
/// are rounded each for itself: in 200 ms, two ticks are no more than a rounding.
const LEAST_PERCENT: f64 = 10.0;

/// How many processes of each user are named.
const NAMED: usize = 3;

/// No chain of parents is followed further: read at different moments, it may be a circle.
const ANCESTORS: usize = 256;

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

/// What is used outside of jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// How far the two looks were apart.
    pub elapsed: Duration,
    /// Other users' processes are hidden from us: of theirs nothing is known.
    pub own_only: bool,
    /// Who uses a part of a core that is worth a line, the busiest first.
    pub users: Vec<UserLoad>,
}

/// What one user's processes use outside of jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct UserLoad {
    /// Who.
    pub uid: u32,
    /// Of one core.
    pub percent: f64,
    /// How many processes used any CPU time.
    pub busy: usize,
    /// The busiest few, the busiest first.
    pub busiest: Vec<Busy>,
}

/// A process that uses CPU time outside of jobs.
#[derive(Clone, Debug, PartialEq)]
pub struct Busy {
    /// Which.
    pub pid: i32,
    /// Its name, chosen by itself: hostile text.
    pub comm: String,
    /// Its arguments, cut as in a ticket; empty where they are not known.
    pub command: Vec<String>,
    /// Of one core, ended children included.
    pub percent: f64,
    /// The part of it that was used by children that ended meanwhile.
    pub ended_children_percent: f64,
}

impl Ticks {
    /// Reads the `stat` of every process that we see.
    ///
    /// # Errors
    /// `/proc` could not be listed.
    pub fn read(proc: &Proc) -> io::Result<Self> {
        // Before the list: whatever began since and is not in it began later than this.
        let taken_usec = clock::boottime_usec();
        let stats = proc.pids()?.into_iter().filter_map(|pid| proc.stat(pid).ok());
        let users_own = stats.filter(|stat| !stat.kernel_thread);
        let seen = users_own.map(|stat| (stat.pid, Seen { at_usec: clock::boottime_usec(), stat }));
        let processes: HashMap<i32, Seen> = seen.collect();
        // There always is one, and hidepid hides it with all others' (proc(5)) unless we are privileged.
        let own_only = !processes.contains_key(&1);
        Ok(Self { taken_usec, own_only, processes })
    }

    /// A process that is in both: the same, not one that got its number.
    fn same(&self, stat: &Stat) -> Option<&Seen> {
        self.processes.get(&stat.pid).filter(|other| other.stat.start_ticks == stat.start_ticks)
    }

    fn stats(&self) -> impl Iterator<Item = &Stat> {
        self.processes.values().map(|seen| &seen.stat)
    }

    /// The parent, its parent, and so on, as far as they are known.
    fn ancestors(&self, of: &Stat) -> impl Iterator<Item = &Stat> {
        let parent = |stat: &Stat| self.processes.get(&stat.ppid).map(|seen| &seen.stat);
        std::iter::successors(parent(of), move |stat| parent(stat)).take(ANCESTORS)
    }
}

/// What was used outside of jobs between two looks. `snapshots` say which jobs there were: the more moments between the
/// looks they are from, the fewer jobs are missed.
pub fn outside(before: &Ticks, after: &Ticks, snapshots: &[&Snapshot], proc: &Proc) -> Load {
    let elapsed = Duration::from_micros(after.taken_usec.saturating_sub(before.taken_usec));
    let jobs = Jobs::of(before, after, snapshots, proc);
    let own = std::process::id().cast_signed();
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let in_job = |pid: i32| pid == own || jobs.have(pid);
    let mut users = between(before, after, ticks_per_second, in_job, |pid| proc.uid(pid).ok());
    for busy in users.iter_mut().flat_map(|user| &mut user.busiest) {
        busy.command = Joined::fit_command(&proc.cmdline(busy.pid).unwrap_or_default());
    }
    Load { elapsed, own_only: before.own_only || after.own_only, users }
}

/// Which processes belong to jobs.
struct Jobs<'a> {
    before: &'a Ticks,
    after: &'a Ticks,
    snapshots: &'a [&'a Snapshot],
    proc: &'a Proc,
    /// Members, supervisors and guards.
    listed: HashSet<i32>,
    /// Supervisors and guards of jobs without a group.
    roots: HashSet<i32>,
}

impl<'a> Jobs<'a> {
    fn of(before: &'a Ticks, after: &'a Ticks, snapshots: &'a [&'a Snapshot], proc: &'a Proc) -> Self {
        let jobs = || snapshots.iter().flat_map(|snapshot| snapshot.jobs());
        let holders = snapshots.iter().flat_map(|snapshot| &snapshot.holders);
        Self {
            before,
            after,
            snapshots,
            proc,
            listed: jobs().flat_map(|job| job.members.iter().chain(&job.keepers)).copied().collect(),
            roots: holders.filter(|job| job.group.is_none()).flat_map(|job| &job.keepers).copied().collect(),
        }
    }

    /// What is in memory is asked first.
    fn have(&self, pid: i32) -> bool {
        self.listed.contains(&pid)
            || self.is_below_a_root(pid)
            || self.snapshots.iter().any(|snapshot| snapshot.job_of(pid, self.proc).is_some())
            || self.is_of_a_new_job(pid)
    }

    /// Of a job without a group, the marker of another user's process cannot be read. But all are below the supervisor.
    fn is_below_a_root(&self, pid: i32) -> bool {
        let below = |ticks: &Ticks| {
            let seen = ticks.processes.get(&pid);
            seen.is_some_and(|seen| ticks.ancestors(&seen.stat).any(|above| self.roots.contains(&above.pid)))
        };
        !self.roots.is_empty() && (below(self.after) || below(self.before))
    }

    /// A job that joined since the first look may be in no snapshot. Which lock it is of does not show, so it gets the benefit
    /// of the doubt.
    fn is_of_a_new_job(&self, pid: i32) -> bool {
        let is_new = |id: &JobId| (self.before.taken_usec..=clock::boottime_usec()).contains(&id.joined_usec);
        let groups = self.proc.cgroups(pid).unwrap_or_default();
        if groups.iter().flat_map(|path| JobId::in_group_path(path)).any(|id| is_new(&id)) {
            return true;
        }
        let environ = self.proc.environ(pid).unwrap_or_default();
        let words = environ.words(subreaper::MARKER).chain(environ.words(nested::VARIABLE));
        let id = |word: &[u8]| {
            let word = std::str::from_utf8(word).ok()?;
            word.strip_prefix(GROUP_PREFIX).unwrap_or(word).parse::<JobId>().ok()
        };
        words.filter_map(id).any(|id| is_new(&id))
    }
}

/// What was used outside of jobs between two looks, by user. `in_job` and `uid_of` are asked about processes that used CPU time
/// only; `in_job` also about such as ended. Who is gone before its user is known is left out.
pub fn between(
    before: &Ticks,
    after: &Ticks,
    ticks_per_second: u64,
    in_job: impl Fn(i32) -> bool,
    uid_of: impl Fn(i32) -> Option<u32>,
) -> Vec<UserLoad> {
    let ended = ended_children(before, after, &in_job);
    let taken_ticks = u128::from(before.taken_usec) * u128::from(ticks_per_second) / 1_000_000;
    // Since when, what it used itself, and what its children did.
    let used = |stat: &Stat| match before.same(stat) {
        Some(first) => {
            let of_children = ended.get(&stat.pid).copied().unwrap_or(0);
            (first.at_usec, stat.cpu_ticks.saturating_sub(first.stat.cpu_ticks), of_children)
        }
        None if u128::from(stat.start_ticks) >= taken_ticks => {
            (before.taken_usec, stat.cpu_ticks, stat.ended_children_ticks)
        }
        // It was there and hidden: what it had at the first look is not known.
        None => (before.taken_usec, 0, 0),
    };
    let mut users: BTreeMap<u32, Vec<Busy>> = BTreeMap::new();
    for Seen { at_usec, stat } in after.processes.values() {
        let (since_usec, own, of_children) = used(stat);
        let all = own.saturating_add(of_children);
        let elapsed = Duration::from_micros(at_usec.saturating_sub(since_usec)).as_secs_f64();
        if all == 0 || elapsed == 0.0 || in_job(stat.pid) {
            continue;
        }
        let Some(uid) = uid_of(stat.pid) else { continue };
        let percent = |ticks: u64| 100.0 * ticks as f64 / (ticks_per_second as f64 * elapsed);
        users.entry(uid).or_default().push(Busy {
            pid: stat.pid,
            comm: stat.comm.clone(),
            command: Vec::new(),
            percent: percent(all),
            ended_children_percent: percent(of_children),
        });
    }
    let mut loads: Vec<UserLoad> = users.into_iter().map(|(uid, busy)| user_load(uid, busy)).collect();
    loads.retain(|load| load.percent > LEAST_PERCENT);
    loads.sort_by(|one, other| other.percent.total_cmp(&one.percent));
    loads
}

fn user_load(uid: u32, mut busy: Vec<Busy>) -> UserLoad {
    busy.sort_by(|one, other| other.percent.total_cmp(&one.percent).then(one.pid.cmp(&other.pid)));
    let percent = busy.iter().map(|busy| busy.percent).sum();
    let count = busy.len();
    busy.truncate(NAMED);
    UserLoad { uid, percent, busy: count, busiest: busy }
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

#[cfg(test)]
mod tests;
