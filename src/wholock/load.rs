//! CPU time that is used outside of jobs: by users who burn it without holding anything.
//!
//! # Theory of operation
//!
//! Two looks at every process, [`Ticks`], and what changed between them: [`crate::ticks`]. Only for processes that used CPU is
//! asked whose they are and whether a job has them: most of a big machine's processes sleep, and one small file is read of
//! each.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::snapshot::Snapshot;
use crate::cgroup::subreaper;
use crate::clock;
use crate::job::{GROUP_PREFIX, JobId};
use crate::lock::record::Joined;
use crate::nested;
use crate::procfs::Proc;
use crate::ticks::{self, Ticks, Used};

/// Who uses no more than this is not shown, in percent of one core. The clock ticks every 10 ms, and user and system time
/// are rounded each for itself: in 200 ms, two ticks are no more than a rounding.
const LEAST_PERCENT: f64 = 10.0;

/// How many processes of each user are named.
const NAMED: usize = 3;

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
    let mut users: BTreeMap<u32, Vec<Busy>> = BTreeMap::new();
    for Used { stat, own_ticks, ended_children_ticks, elapsed } in
        ticks::between(before, after, ticks_per_second, in_job)
    {
        let Some(uid) = uid_of(stat.pid) else { continue };
        let percent = |ticks: u64| 100.0 * ticks as f64 / (ticks_per_second as f64 * elapsed.as_secs_f64());
        users.entry(uid).or_default().push(Busy {
            pid: stat.pid,
            comm: stat.comm.clone(),
            command: Vec::new(),
            percent: percent(own_ticks.saturating_add(ended_children_ticks)),
            ended_children_percent: percent(ended_children_ticks),
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

#[cfg(test)]
mod tests;
