//! The two looks at what others use: when a job's command was started, and when its group is empty.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::apart::{Counters, Figures};
use super::judge::{self, OfProcess};
use super::name;
use super::tree::Tree;
use crate::cgroup::v2::Location;
use crate::clock;
use crate::procfs::Proc;
use crate::text;
use crate::ticks::{self, Ticks};

/// So many groups are read at the first look so that they can be named, half a millisecond's worth on a virtual machine. Those
/// directly below the root are read in any case.
pub const NAMEABLE: usize = 64;

/// No look takes more CPU time: during the first the job's signals wait, and during the second whoever wants the machine next. It is
/// enough for some thousands of processes.
const LONGEST: Duration = Duration::from_millis(200);

/// So many files are read before it is asked whether the command still runs.
const BATCH: usize = 16;

/// What is looked at: the machine, and where the job is in it.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Processes.
    pub proc: &'a Proc,
    /// `/`, but in tests.
    pub root: &'a Path,
    /// The job's group, where it has one in the v2 hierarchy.
    pub job: Option<&'a Location>,
    /// That group's inode number: of groups that are made later it is higher.
    pub job_inode: Option<u64>,
    /// What is shown apart is wanted.
    pub apart: bool,
    /// Clock ticks per second, by which the kernel counts what processes use.
    pub ticks_per_second: u64,
    /// What this process has used, which is in some group.
    pub ours: fn() -> Duration,
}

/// Why there is no look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The command ended meanwhile.
    Ended,
    /// A sentence fragment.
    Why(String),
}

impl Missing {
    fn of_processes(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Interrupted => Self::Ended,
            _ => Self::Why(format!("processes cannot be looked at: {}", crate::error::reason(error))),
        }
    }

    /// What was given up since there was no more time for it, and not since the command ended.
    fn for_want_of_time(self) -> Self {
        match self {
            Self::Ended => Self::Why(TOO_MANY.to_owned()),
            other => other,
        }
    }
}

/// What was used when the command was started.
#[derive(Debug)]
pub struct First {
    taken: Instant,
    /// The same on the clock of processes.
    taken_usec: u64,
    groups: Option<Groups>,
    /// Every process, where some of them are in no group that counts. Empty where none were.
    processes: Ticks,
    /// The job's own processes and ours.
    own: HashSet<i32>,
    /// What this process had used.
    ours: Duration,
    apart: Option<Counters>,
}

/// What groups had used.
#[derive(Debug)]
struct Groups {
    tree: Tree,
    /// The root, where it is a group like others.
    root_usec: Option<u64>,
    /// The job itself.
    job_usec: u64,
    /// What it used since.
    job_used_usec: u64,
    /// By path.
    usage_usec: HashMap<PathBuf, u64>,
    /// Why not all of those directly below the root were read: a sentence fragment.
    unreadable: Option<String>,
}

/// What was used between the looks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How far the looks were apart.
    pub elapsed: Duration,
    /// The first of them, on the clock of processes.
    pub since_usec: u64,
    /// CPU time elsewhere, all together.
    pub elsewhere_usec: u64,
    /// In which groups, by path in the mounted part of the hierarchy; looked up only where there was more than allowed.
    pub groups: Vec<Share>,
    /// By which processes that are in no group.
    pub processes: Vec<OfProcess>,
    /// What else there may be, which cannot be seen: a sentence fragment.
    pub unseen: Option<String>,
    /// What is shown apart.
    pub apart: Option<Figures>,
}

/// What a group used, without such groups below it as have a share of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its path.
    pub group: PathBuf,
    /// CPU time.
    pub usec: u64,
}

impl First {
    /// Looks for the first time, as long as `goes_on` says that the command runs. `own` lists the job's processes and ours.
    ///
    /// # Errors
    /// See [`Missing`].
    pub fn look(scene: &Scene<'_>, own: impl Fn() -> Vec<i32>, goes_on: &dyn Fn() -> bool) -> Result<Self, Missing> {
        let in_time = clock::within(LONGEST, scene.ours);
        Self::look_while(scene, own, &|| in_time() && goes_on())
            .map_err(|missing| if in_time() { missing } else { missing.for_want_of_time() })
    }

    fn look_while(scene: &Scene<'_>, own: impl Fn() -> Vec<i32>, goes_on: &dyn Fn() -> bool) -> Result<Self, Missing> {
        let taken = Instant::now();
        let mut first = Self {
            taken,
            taken_usec: clock::boottime_usec(),
            groups: None,
            processes: Ticks::default(),
            own: HashSet::new(),
            ours: (scene.ours)(),
            apart: None,
        };
        first.processes.taken_usec = first.taken_usec;
        let processes = match scene.job {
            None => Some(Processes::all(scene.proc)),
            Some(job) => {
                let groups = first.groups.insert(Groups::read(job, goes_on)?);
                match groups.root_usec {
                    Some(_) => None,
                    None => Some(Processes::of_the_root(&mut groups.tree, scene.proc)?).filter(Processes::is_any),
                }
            }
        };
        if let Some(processes) = processes {
            first.own.extend(own());
            first.processes = processes.read(scene.proc, goes_on)?;
        }
        if scene.apart {
            first.apart = Some(Counters::read(scene.root, scene.proc, goes_on).ok_or(Missing::Ended)?);
        }
        if goes_on() { Ok(first) } else { Err(Missing::Ended) }
    }

    /// Looks for the second time. `unwaited` says what the job, having used this, used in processes that its supervisor did not
    /// wait for; `most_usec` what may be used elsewhere: who it was is looked up only if it was more.
    ///
    /// # Errors
    /// See [`Missing`].
    pub fn second(
        mut self,
        scene: &Scene<'_>,
        unwaited: impl Fn(Option<u64>) -> u64,
        most_usec: impl Fn(Duration) -> u64,
    ) -> Result<Seen, Missing> {
        let elapsed = self.taken.elapsed();
        let in_time = clock::within(LONGEST, scene.ours);
        let mut seen = Seen { elapsed, since_usec: self.taken_usec, ..Seen::default() };
        if !scene.proc.sees_every_pid_namespace() {
            seen.unseen = Some(OUTSIDE.to_owned());
        }
        let Grouped { tops, processes } = match (&mut self.groups, scene.job) {
            (Some(groups), Some(job)) => groups.grouped(job, scene.proc, (scene.ours)().saturating_sub(self.ours))?,
            _ => Grouped { tops: Vec::new(), processes: Some(Processes::all(scene.proc)) },
        };
        seen.elsewhere_usec = total(tops.iter().map(|share| share.usec));
        let job_usec = self.groups.as_ref().map(|groups| groups.job_usec.saturating_add(groups.job_used_usec));
        match processes {
            None => seen.unseen = Some(OUTSIDE.to_owned()),
            Some(processes) if !processes.is_any() => {}
            Some(processes) => {
                let after = processes.read(scene.proc, &in_time).map_err(Missing::for_want_of_time)?;
                if after.own_only {
                    seen.unseen = Some(HIDDEN.to_owned());
                }
                // Not who has a number of ours by now.
                let is_own = |pid: i32| self.own.contains(&pid) && !after.is_another(&self.processes, pid);
                let used = ticks::between(&self.processes, &after, scene.ticks_per_second, is_own).into_iter();
                let used = used.filter(|used| processes.count(used.stat.pid));
                // Children that were waited for may have been in groups, or in the job's.
                let counted_usec = seen.elsewhere_usec.saturating_add(unwaited(job_usec));
                seen.processes = judge::processes(used, scene.ticks_per_second, counted_usec);
                let loose_usec = total(seen.processes.iter().map(|process| process.usec));
                seen.elsewhere_usec = seen.elsewhere_usec.saturating_add(loose_usec);
            }
        }
        if let Some(before) = &self.apart
            && let Some(after) = Counters::read(scene.root, scene.proc, &in_time)
        {
            seen.apart = Some(after.since(before, scene.ticks_per_second));
        }
        if let Some(groups) = &mut self.groups {
            seen.unseen = seen.unseen.or(groups.unreadable.take());
        }
        if seen.elsewhere_usec > most_usec(elapsed) {
            // Whoever ends now has no user any more.
            seen.processes.iter_mut().for_each(|process| process.uid = scene.proc.uid(process.pid).ok());
            if let (Some(groups), Some(job)) = (&mut self.groups, scene.job) {
                tops.into_iter().for_each(|share| groups.divide(share, job, scene.job_inode, &mut seen.groups));
            }
        }
        Ok(seen)
    }
}

/// Why more may have run than is seen.
const OUTSIDE: &str = "what runs outside of this container cannot be seen";
const HIDDEN: &str = "other users' processes are hidden (hidepid)";

/// Why there is none of the two looks.
const TOO_MANY: &str = "there are too many groups and processes to look at";

/// What groups used between the looks.
struct Grouped {
    /// Those directly below the root.
    tops: Vec<Share>,
    /// Those that are in the root, where that counts nothing.
    processes: Option<Processes>,
}

/// Processes that are looked at themselves.
struct Processes {
    /// `None`: all of them.
    counted: Option<HashSet<i32>>,
    /// The kernel's own, of which nothing has to be read.
    of_the_kernel: HashSet<i32>,
}

impl Processes {
    fn all(proc: &Proc) -> Self {
        Self { counted: None, of_the_kernel: proc.kernel_threads().unwrap_or_default().into_iter().collect() }
    }

    /// Those in the root of the hierarchy, which counts nothing, without the kernel's own threads.
    fn of_the_root(tree: &mut Tree, proc: &Proc) -> Result<Self, Missing> {
        let listed = tree.processes_of_the_root().map_err(|error| unreadable(Path::new("/"), &error))?;
        let known = proc.kernel_threads();
        let hidden = known.is_err();
        // Others' processes are hidden. Where the first of all is in a group, so is whatever it started.
        let all_count = !hidden || listed.contains(&1);
        let of_the_kernel: HashSet<i32> = known.unwrap_or_default().into_iter().collect();
        let counts = |pid: &i32| {
            *pid > 0 && !of_the_kernel.contains(pid) && (all_count || proc.stat(*pid).is_ok_and(|it| !it.kernel_thread))
        };
        let counted = Some(listed.into_iter().filter(counts).collect());
        Ok(Self { counted, of_the_kernel })
    }

    fn is_any(&self) -> bool {
        self.counted.as_ref().is_none_or(|counted| !counted.is_empty())
    }

    fn count(&self, pid: i32) -> bool {
        self.counted.as_ref().is_none_or(|counted| counted.contains(&pid))
    }

    /// All processes: children of those that count may be elsewhere.
    fn read(&self, proc: &Proc, goes_on: &dyn Fn() -> bool) -> Result<Ticks, Missing> {
        Ticks::read_while(proc, &self.of_the_kernel, goes_on).map_err(|error| Missing::of_processes(&error))
    }
}

fn total(parts: impl Iterator<Item = u64>) -> u64 {
    parts.fold(0, u64::saturating_add)
}

impl Groups {
    fn read(job: &Location, goes_on: &dyn Fn() -> bool) -> Result<Self, Missing> {
        let mut tree = Tree::open(&job.mount).map_err(|error| unreadable(&job.mount, &error))?;
        // The job first: what it uses from here on is not taken for others'.
        let job_usec = read(&mut tree, &job.relative)?.ok_or(Missing::Ended)?;
        let root_usec = if tree.is_a_part() { read(&mut tree, Path::new(""))? } else { None };
        let mut groups =
            Self { tree, root_usec, job_usec, job_used_usec: 0, usage_usec: HashMap::new(), unreadable: None };
        // By how many groups are below: users before services, of which there are more. The root comes first, with all of them.
        let mut pending = BinaryHeap::from([Reverse((0, PathBuf::new()))]);
        while let Some(Reverse((count, above))) = pending.pop() {
            if !goes_on() {
                return Err(Missing::Ended);
            }
            if count > 0 && groups.usage_usec.len() + count > NAMEABLE {
                break;
            }
            let is_root = above.as_os_str().is_empty();
            // What others keep from being read below that is told as the group above it.
            let below = if is_root { groups.children(&above)? } else { groups.children(&above).unwrap_or_default() };
            for group in below {
                if groups.usage_usec.len() % BATCH == BATCH - 1 && !goes_on() {
                    return Err(Missing::Ended);
                }
                let usec = if is_root { groups.top(&group) } else { groups.tree.usage_usec(&group).ok().flatten() };
                if let Some(usec) = usec {
                    if name::is_opened(&group, &job.relative) {
                        let below = groups.tree.count_children(&group);
                        if below > 0 {
                            pending.push(Reverse((below, group.clone())));
                        }
                    }
                    groups.usage_usec.insert(group, usec);
                }
            }
        }
        Ok(groups)
    }

    fn children(&mut self, above: &Path) -> Result<Vec<PathBuf>, Missing> {
        self.tree.children(above).map_err(|error| unreadable(above, &error))
    }

    /// What a group directly below the root has used. One that cannot be read is told of, and others still can disturb.
    fn top(&mut self, group: &Path) -> Option<u64> {
        match read(&mut self.tree, group) {
            Ok(usec) => usec,
            Err(Missing::Why(why)) => {
                self.unreadable.get_or_insert(why);
                None
            }
            Err(Missing::Ended) => None,
        }
    }

    /// What groups used, without the job, and without what we did ourselves.
    fn grouped(&mut self, job: &Location, proc: &Proc, ours: Duration) -> Result<Grouped, Missing> {
        let job_usec = read(&mut self.tree, &job.relative)?
            .ok_or_else(|| Missing::Why("the job's group was removed before it was read".to_owned()))?;
        self.job_used_usec = job_usec.saturating_sub(self.job_usec);
        let mut tops = self.tops(job)?;
        let own = proc.own_cgroup_v2().ok().and_then(|path| job.relative_of(&path));
        let around_us = |share: &&mut Share| own.as_ref().is_some_and(|own| own.starts_with(&share.group));
        if let Some(share) = tops.iter_mut().find(around_us) {
            share.usec = share.usec.saturating_sub(u64::try_from(ours.as_micros()).unwrap_or(u64::MAX));
        }
        let processes = match self.root_usec {
            Some(_) => None,
            None => Some(Processes::of_the_root(&mut self.tree, proc)?),
        };
        Ok(Grouped { tops, processes })
    }

    /// What the groups directly below the root used elsewhere, or the root itself where that is a group.
    fn tops(&mut self, job: &Location) -> Result<Vec<Share>, Missing> {
        if let Some(before) = self.root_usec {
            let after = read(&mut self.tree, Path::new(""))?.unwrap_or(before);
            let usec = judge::elsewhere(Some(before), after, Some(self.job_used_usec));
            return Ok(vec![Share { group: PathBuf::new(), usec }]);
        }
        let mut shares = Vec::new();
        for group in self.children(Path::new(""))? {
            if let Some(after) = self.top(&group) {
                // Every group that was there at the first look was read, unless it could not be: this one was not there.
                let before = self.usage_usec.get(&group).copied().or(self.unreadable.is_none().then_some(0));
                let of_job = job.relative.starts_with(&group).then_some(self.job_used_usec);
                let usec = judge::elsewhere(before, after, of_job);
                if usec > 0 {
                    shares.push(Share { group, usec });
                }
            }
        }
        Ok(shares)
    }

    /// Divides what a group used among those below it, as far down as they have names of their own. What cannot be read
    /// any more stays with the group above.
    fn divide(&mut self, share: Share, job: &Location, job_inode: Option<u64>, into: &mut Vec<Share>) {
        let Share { group, mut usec } = share;
        if group.as_os_str().is_empty() || name::is_opened(&group, &job.relative) {
            for below in self.tree.children(&group).unwrap_or_default() {
                let Ok(Some(after)) = self.tree.usage_usec(&below) else { continue };
                let mut made_since = || job_inode.is_some_and(|inode| self.tree.inode(&below) > Some(inode));
                let before = self.usage_usec.get(&below).copied().or_else(|| made_since().then_some(0));
                let of_job = job.relative.starts_with(&below).then_some(self.job_used_usec);
                let part = judge::elsewhere(before, after, of_job).min(usec);
                if part > 0 {
                    usec -= part;
                    self.divide(Share { group: below, usec: part }, job, job_inode, into);
                }
            }
        }
        if usec > 0 {
            into.push(Share { group, usec });
        }
    }
}

fn read(tree: &mut Tree, group: &Path) -> Result<Option<u64>, Missing> {
    tree.usage_usec(group).map_err(|error| unreadable(group, &error))
}

fn unreadable(group: &Path, error: &io::Error) -> Missing {
    let what = match error.kind() {
        io::ErrorKind::InvalidData => "it has no counter of CPU time".to_owned(),
        _ => crate::error::reason(error),
    };
    let group = if group.is_absolute() { group.to_owned() } else { Path::new("/").join(group) };
    Missing::Why(format!("the group {} cannot be read: {what}", text::path(&group)))
}

#[cfg(test)]
mod tests;
