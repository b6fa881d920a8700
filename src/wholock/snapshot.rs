//! What is so at one moment: every job of the queue with its group's counters, and who uses the lock without a
//! ticket. All the reading is here; showing it is in [`super::view`].

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroup::controller::Controller;
use crate::cgroup::{Backend, JobGroup, Population, Usage, detect, legacy, subreaper, v1, v2};
use crate::clock;
use crate::job::JobId;
use crate::lock::decide::{Decision, Entry, Life, Target, decide};
use crate::lock::outsiders::{Outsider, outsiders};
use crate::lock::{Lock, LockError, Record, Seen, Version};
use crate::nested;
use crate::orphan;
use crate::procfs::Proc;

pub use super::job::{Elsewhere, Inner, Job, Living, State};

/// How many jobs inside a job are shown: somebody may make any number of groups with such names.
const INNER_SHOWN: usize = 32;

/// Readings nearer to each other give no rate.
const SHORTEST_SAMPLE: Duration = Duration::from_millis(1);

/// CPU use between two readings of one counter, in percent of one core. It is not known if the counter went back, and
/// readings next to each other tell nothing: the kernel counts in steps.
pub fn rate_percent(before: (Instant, u64), after: (Instant, u64)) -> Option<f64> {
    let elapsed = after.0.checked_duration_since(before.0).filter(|&elapsed| elapsed >= SHORTEST_SAMPLE)?;
    let used = Duration::from_micros(after.1.checked_sub(before.1)?);
    Some(100.0 * used.as_secs_f64() / elapsed.as_secs_f64())
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Who has the machine, orphans included.
    pub holders: Vec<Job>,
    /// Who waits, in order.
    pub waiters: Vec<Job>,
    /// Who uses the lock file without a ticket, and the number of the job that it waits for while it is a part of it.
    pub outsiders: Vec<(Outsider, Option<u64>)>,
}

/// What was found out about jobs before, for whoever looks again and again. It holds as long as their tickets stay as they are.
#[derive(Debug, Default)]
pub struct Memory(HashMap<Version, Known>);

/// What a ticket says, and what follows from it.
#[derive(Debug)]
struct Known {
    record: Record,
    /// Who logged in, once that was asked for.
    login_uid: Option<Option<u32>>,
    /// Its directory, once that was found to be a group of the ticket's owner.
    group: Option<PathBuf>,
}

impl Known {
    fn read(seen: &Seen) -> Option<Self> {
        Some(Self { record: seen.record()?, login_uid: None, group: None })
    }
}

/// How a job is found from one of its processes.
struct View<'a> {
    lock: &'a Lock,
    proc: &'a Proc,
    read: fn(&Path) -> Usage,
    mountinfo: String,
    boot: String,
    pid_namespace: Option<u64>,
    cgroup_namespace: Option<u64>,
}

impl Snapshot {
    /// Looks at the lock, twice `sample` apart; `read` reads the counters of a group.
    ///
    /// # Errors
    /// The queue directory could not be read.
    pub fn take(lock: &Lock, proc: &Proc, sample: Duration, read: fn(&Path) -> Usage) -> Result<Self, LockError> {
        let mut snapshot = Self::look(lock, proc, read, &mut Memory::default())?;
        snapshot.watch(sample);
        Ok(snapshot)
    }

    /// Looks at the lock once: no rate is known. `memory` is of earlier looks.
    ///
    /// # Errors
    /// The queue directory could not be read.
    pub fn look(lock: &Lock, proc: &Proc, read: fn(&Path) -> Usage, memory: &mut Memory) -> Result<Self, LockError> {
        let view = View {
            lock,
            proc,
            read,
            mountinfo: detect::own_mountinfo(),
            boot: proc.boot_id().unwrap_or_default(),
            pid_namespace: proc.own_namespace("pid").ok(),
            cgroup_namespace: proc.own_namespace("cgroup").ok(),
        };
        let mut snapshot = view.jobs(memory)?;
        let ours: Vec<i32> = snapshot.jobs().flat_map(|job| job.keepers.clone()).collect();
        let mut outsiders = outsiders(proc, &lock.file, &ours).unwrap_or_default();
        let keeps = |pid, job: &Job| job.elsewhere.as_ref().is_some_and(|place| place.is_keeper(pid, job.uid, proc));
        outsiders.retain(|outsider| !snapshot.jobs().any(|job| keeps(outsider.pid, job)));
        let own_job = |outsider: &Outsider| {
            let job = snapshot.job_of(outsider.pid, proc).filter(|_| outsider.waiting)?;
            job.mode.conflicts_with(outsider.mode).then_some(job.number)
        };
        let outsiders = outsiders.into_iter().map(|outsider| {
            let job = own_job(&outsider);
            (outsider, job)
        });
        snapshot.outsiders = outsiders.collect();
        Ok(snapshot)
    }

    /// Nobody has the machine or waits for it.
    pub fn free(&self) -> bool {
        self.holders.is_empty() && self.waiters.is_empty() && self.outsiders.is_empty()
    }

    /// Every job, in the order in which they are shown.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.holders.iter().chain(&self.waiters)
    }

    /// The job of this number or identity.
    pub fn find(&self, which: &str) -> Option<&Job> {
        self.jobs().find(|job| job.number.to_string() == which || job.id.to_string() == which)
    }

    /// The job that a process is a member of, or supervises.
    pub fn job_of(&self, pid: i32, proc: &Proc) -> Option<&Job> {
        let groups = proc.cgroups(pid).unwrap_or_default();
        let by_group: Vec<JobId> = groups.iter().flat_map(|path| JobId::in_group_path(path)).collect();
        let environ = proc.environ(pid).unwrap_or_default();
        self.jobs().find(|job| {
            let name = job.id.group_name();
            by_group.contains(&job.id)
                || job.keepers.contains(&pid)
                || environ.has(subreaper::MARKER, &name)
                || environ.has(nested::VARIABLE, &job.id.to_string())
        })
    }

    /// Reads every group's CPU time again after `sample`.
    fn watch(&mut self, sample: Duration) {
        if sample.is_zero() {
            return;
        }
        std::thread::sleep(sample);
        for job in &mut self.holders {
            let (Some(group), Some(before)) = (&job.group, job.usage.cpu_usec) else { continue };
            // A group that went away meanwhile has no rate, rather than a rate of zero.
            let after = match &job.cpuacct {
                Some(cpuacct) => Usage::default().with_v1_cpu(cpuacct),
                None => Usage::read(group),
            };
            let after = after.cpu_usec;
            job.cpu_now_percent = after.and_then(|after| rate_percent((job.read_at, before), (Instant::now(), after)));
        }
    }

    /// Takes each job's rate from what an earlier look saw of the same job.
    pub fn rates_since(&mut self, earlier: &Self) {
        let counter = |job: &Job| Some((job.read_at, job.usage.cpu_usec?));
        let before: HashMap<JobId, (Instant, u64)> =
            earlier.jobs().filter_map(|job| Some((job.id, counter(job)?))).collect();
        for job in self.holders.iter_mut().chain(&mut self.waiters) {
            let pair = before.get(&job.id).copied().zip(counter(job));
            job.cpu_now_percent = pair.and_then(|(before, after)| rate_percent(before, after));
        }
    }
}

impl View<'_> {
    fn jobs(&self, memory: &mut Memory) -> Result<Snapshot, LockError> {
        let entries = self.lock.queue.entries()?;
        let mut before = std::mem::take(&mut memory.0);
        let mut with_known = |seen: Seen| {
            let known = before.remove(&seen.version()).or_else(|| Known::read(&seen));
            (seen, known)
        };
        let mut tickets: Vec<(Seen, Option<Known>)> = Vec::new();
        // A ticket may be linked under two names: it is one job's all the same.
        let mut files = HashSet::new();
        for &entry in &entries {
            // To leave out those that cannot be opened for want of descriptors would show jobs that are there as gone.
            let seen = self.lock.queue.try_see(entry)?.filter(|seen| files.insert(seen.file_identity()));
            tickets.extend(seen.map(&mut with_known));
        }
        let granted = |known: &Option<Known>| known.as_ref().is_some_and(|known| known.record.granted_usec.is_some());
        let life = |(seen, known): &(Seen, Option<Known>)| match seen.is_live() {
            false => (seen.entry, Life::Dead),
            true => (seen.entry, if granted(known) { Life::Holding } else { Life::Waiting }),
        };
        let lives: Vec<(Entry, Life)> = tickets.iter().map(life).collect();
        let life_of = |entry: Entry| {
            let index = lives.binary_search_by_key(&entry, |&(entry, _)| entry);
            index.map_or(Life::Dead, |index| lives[index].1)
        };
        let mut snapshot = Snapshot::default();
        for ((seen, known), &(entry, life)) in tickets.into_iter().zip(&lives) {
            let Some(mut known) = known else {
                // Whoever cannot read it waits for it: a newer version's, or garbage.
                if life != Life::Dead {
                    snapshot.waiters.push(Job::unreadable(&seen));
                }
                continue;
            };
            match life {
                Life::Holding => snapshot.holders.push(self.holder(&seen, &mut known)),
                Life::Waiting => {
                    let state = match decide(entry, &entries, life_of) {
                        Decision::Wait(Target::Ticket(other)) => State::WaitingFor(other.number),
                        _ if known.record.joined.cores.is_some() && known.record.cores.is_none() => {
                            State::WaitingForCores
                        }
                        _ => State::Waiting,
                    };
                    let supervised = self.supervisor_state(&seen, &known.record).is_some();
                    snapshot.waiters.push(self.job(&seen, &mut known, state, supervised));
                }
                Life::Dead => self.dead(&seen, &mut known, &mut snapshot),
            }
            memory.0.insert(seen.version(), known);
        }
        Ok(snapshot)
    }

    /// A ticket that nobody holds: of a stopped waiter, an orphan, or of nobody any more.
    fn dead(&self, seen: &Seen, known: &mut Known, snapshot: &mut Snapshot) {
        if known.record.stopped && self.supervisor_state(seen, &known.record).is_some() {
            snapshot.waiters.push(self.job(seen, known, State::StoppedWaiter, true));
        } else if !self.same_machine_view(&known.record) {
            // Its group would mean nothing to us.
        } else if orphan::is_hidden(seen, &known.record) {
            snapshot.holders.push(self.job(seen, known, State::MaybeOrphan, false));
        } else {
            let group = orphan::group_of(seen, &known.record, &self.mountinfo);
            let empty =
                |group: Option<Box<dyn JobGroup>>| group.is_none_or(|group| group.population() == Population::Empty);
            if !group.is_ok_and(empty) {
                snapshot.holders.push(self.with_usage(seen, known, State::Orphan, false));
            }
        }
    }

    /// The ticket's pids and group mean to us what they meant to its writer.
    fn same_machine_view(&self, record: &Record) -> bool {
        record.joined.boot == self.boot && Some(record.joined.cgroup_namespace) == self.cgroup_namespace
    }

    /// The supervisor's process state; `None` if it is dead or in another pid namespace.
    fn supervisor_state(&self, seen: &Seen, record: &Record) -> Option<char> {
        if Some(record.joined.pid_namespace) != self.pid_namespace || record.joined.boot != self.boot {
            return None;
        }
        let stat = seen.supervisor(record, self.proc)?;
        (stat.state != 'Z').then_some(stat.state)
    }

    fn holder(&self, seen: &Seen, known: &mut Known) -> Job {
        let record = &known.record;
        let foreign = Some(record.joined.pid_namespace) != self.pid_namespace;
        let supervisor = self.supervisor_state(seen, record);
        let state = match supervisor {
            Some('T' | 't') => State::Stopped,
            Some(_) if record.releasing => State::Releasing,
            Some(_) => State::Running,
            None if foreign => State::Running,
            None => State::Guarded,
        };
        self.with_usage(seen, known, state, supervisor.is_some())
    }

    /// `supervised`: its supervisor lives, in our pid namespace.
    fn job(&self, seen: &Seen, known: &mut Known, state: State, supervised: bool) -> Job {
        let record = &known.record;
        let same_pids = Some(record.joined.pid_namespace) == self.pid_namespace;
        // The kernel goes on naming a dead supervisor as who took the lock. But no ticket can hide another user's process.
        let ended_or_its_own = |pid: &i32| same_pids && self.proc.uid(*pid).map_or(true, |uid| uid == seen.uid);
        let named = [Some(record.joined.pid), record.guard_pid].into_iter().flatten();
        let elsewhere = || Elsewhere { pid_namespace: record.joined.pid_namespace, keepers: named.clone().collect() };
        let keepers = named.clone().filter(ended_or_its_own).collect();
        let login_uid =
            supervised.then(|| *known.login_uid.get_or_insert_with(|| self.proc.login_uid(record.joined.pid)));
        Job {
            number: seen.entry.number,
            id: seen.id(record),
            uid: seen.uid,
            login_uid: login_uid.flatten(),
            mode: seen.entry.mode,
            state,
            age: clock::since(record.granted_usec.unwrap_or(record.joined.joined_usec)),
            usage: Usage::default(),
            read_at: Instant::now(),
            cpu_now_percent: None,
            expected_start: None,
            processes: None,
            command: record.joined.command.clone(),
            message: record.joined.message.clone(),
            pinned: record.pinned.clone(),
            cores_asked: record.joined.cores,
            reserved: record.cores.clone(),
            limits: record.limits,
            elsewhere: (!same_pids).then(elsewhere),
            keepers,
            group: None,
            cpuacct: None,
            living: None,
            members: Vec::new(),
            inner: Vec::new(),
            inner_more: 0,
        }
    }

    fn with_usage(&self, seen: &Seen, known: &mut Known, state: State, supervised: bool) -> Job {
        let mut job = self.job(seen, known, state, supervised);
        if !self.same_machine_view(&known.record) {
            return job;
        }
        if let Some(directory) = &known.group {
            self.fill(&mut job, directory);
            if job.usage.cpu_usec.is_some() {
                return job;
            }
            // It is gone, or has no such counter: looked at as for the first time.
            (job.group, job.processes) = (None, None);
        }
        if let Some(site) = orphan::site_of(seen, &known.record, &self.mountinfo) {
            if let Ok(Some(group)) = legacy::Group::adopt(site, seen.uid) {
                self.fill_from_v1(&mut job, &group, seen, &known.record);
            }
            return job;
        }
        match (&known.record.group, orphan::location_of(seen, &known.record, &self.mountinfo)) {
            // Only what proves to be a group of the ticket's owner: its path may lead anywhere.
            (_, Some(location)) => {
                let directory = location.directory();
                known.group = None;
                if matches!(v2::Group::adopt(location, seen.uid), Ok(Some(_))) {
                    self.fill(&mut job, &directory);
                    known.group = Some(directory);
                }
            }
            (Some((backend, _)), None) if backend == Backend::Subreaper.name() => {
                let members = subreaper::Group::adopt(&job.id.group_name()).members();
                job.processes = Some(members.len());
                job.members.clone_from(&members);
                job.inner = members.into_iter().filter_map(|pid| self.inner(pid)).collect();
                job.inner_more = job.inner.len().saturating_sub(INNER_SHOWN);
                job.inner.truncate(INNER_SHOWN);
            }
            _ => {}
        }
        job
    }

    fn fill(&self, job: &mut Job, directory: &Path) {
        job.usage = (self.read)(directory);
        job.read_at = Instant::now();
        self.fill_members(job, directory);
    }

    /// The same from groups of v1: each counter is in a group of its own, if anywhere.
    fn fill_from_v1(&self, job: &mut Job, group: &legacy::Group, seen: &Seen, record: &Record) {
        job.usage = group.usage(self.read);
        job.read_at = Instant::now();
        let directory = |controller, path: &Option<PathBuf>| {
            v1::directory_named(path.as_ref()?, controller, &job.id.group_name(), seen.uid, &self.mountinfo)
        };
        if let Some(memory) = directory(Controller::Memory, &record.memory) {
            job.usage = job.usage.with_v1_memory(&memory);
        }
        if let Some(pids) = directory(Controller::Pids, &record.pids) {
            job.usage = job.usage.with_v1_pids(&pids);
        }
        job.cpuacct = group.site().cpuacct_directory();
        self.fill_members(job, &group.site().directory());
        if job.usage.cpu_usec.is_none() || job.usage.memory_bytes.is_none() {
            job.living = Some(Living::of(self.proc, &job.members));
        }
    }

    fn fill_members(&self, job: &mut Job, directory: &Path) {
        let (processes, groups) = v2::processes_and_groups_below(directory);
        job.processes = Some(processes.len());
        job.group = Some(directory.to_owned());
        let named = |group: &&PathBuf| group.file_name().and_then(OsStr::to_str).and_then(nested::parse_group_name);
        let inner: Vec<_> = groups.iter().filter_map(|group| Some((group, named(&group)?))).collect();
        job.inner_more = inner.len().saturating_sub(INNER_SHOWN);
        let shown = inner.into_iter().take(INNER_SHOWN);
        job.inner = shown.map(|(group, name)| self.inner_with_group(group, name, &processes)).collect();
        job.members = processes;
    }

    /// The job inside that a group is of; `processes` are those of the outer one.
    fn inner_with_group(&self, group: &Path, (pid, started_usec): (i32, u64), processes: &[i32]) -> Inner {
        // The name may say anything, and in another pid namespace the number means somebody else.
        let supervisor = Some(pid).filter(|pid| processes.contains(pid)).and_then(|pid| self.inner(pid));
        let supervisor = supervisor.unwrap_or(Inner { pid, ..Inner::default() });
        Inner {
            uid: std::fs::metadata(group).ok().map(|metadata| metadata.uid()),
            age: Some(clock::since(started_usec)),
            usage: (self.read)(group),
            processes: Some(v2::processes_and_groups_below(group).0.len()),
            ..supervisor
        }
    }

    /// The job inside that this process supervises, if it is a perflock. A guard has another name.
    fn inner(&self, pid: i32) -> Option<Inner> {
        let stat = self.proc.stat(pid).ok().filter(|stat| matches!(&*stat.comm, "perflock" | "pls"))?;
        let command = self.proc.cmdline(pid).unwrap_or_default();
        Some(Inner { pid: stat.pid, uid: self.proc.uid(pid).ok(), command, ..Inner::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_is_what_was_used_in_the_time() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(rate_percent((start, 1_000_000), (after(500), 2_000_000)), Some(200.0));
        assert_eq!(rate_percent((start, 7), (after(500), 7)), Some(0.0));
        // A counter that went back, and readings at the same moment or in the wrong order.
        assert_eq!(rate_percent((start, 8), (after(500), 7)), None);
        assert_eq!(rate_percent((start, 7), (start, 8)), None);
        assert_eq!(rate_percent((after(500), 7), (start, 8)), None);
    }

    proptest! {
        #[test]
        fn no_counter_makes_a_rate_that_is_no_number(before: u64, after: u64, usec in 0..u64::from(u32::MAX)) {
            let start = Instant::now();
            if let Some(rate) = rate_percent((start, before), (start + Duration::from_micros(usec), after)) {
                prop_assert!(rate.is_finite() && rate >= 0.0);
            }
        }
    }
}
