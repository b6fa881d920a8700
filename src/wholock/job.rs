//! A job as it is shown: a value.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cgroup::Usage;
use crate::history::expect::Guess;
use crate::job::{JobId, Mode};
use crate::limit::Limits;
use crate::lock::Seen;
use crate::lock::record::Pinned;
use crate::pin::CpuList;
use crate::procfs::Proc;

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has the machine.
    Running,
    /// It has the machine, and its supervisor is stopped.
    Stopped,
    /// Its command ended; leftovers are being ended.
    Releasing,
    /// Its supervisor is dead; the guard is ending it.
    Guarded,
    /// It waits for the job of this number.
    WaitingFor(u64),
    /// It waits for the lock file.
    Waiting,
    /// It waits for cores of its own.
    WaitingForCores,
    /// A waiter that was stopped: others may pass it.
    StoppedWaiter,
    /// Supervisor and guard are dead; members live.
    Orphan,
    /// Supervisor and guard are dead; whether members live only its owner and root can see.
    MaybeOrphan,
}

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its place in the queue.
    pub number: u64,
    /// Which.
    pub id: JobId,
    /// Whose.
    pub uid: u32,
    /// Who logged in and became that user.
    pub login_uid: Option<u32>,
    /// How it holds or wants the machine.
    pub mode: Mode,
    /// What it is doing.
    pub state: State,
    /// Since it got the machine, or since it joined.
    pub age: Duration,
    /// What its group has used.
    pub usage: Usage,
    /// When that was read.
    pub read_at: Instant,
    /// CPU use while it was watched, in percent of one core.
    pub cpu_now_percent: Option<f64>,
    /// Living processes.
    pub processes: Option<usize>,
    /// Their pids, jobs inside it included.
    pub members: Vec<i32>,
    /// When it may start, if it waits, and as far as anybody can guess.
    pub expected_start: Option<Guess>,
    /// Its command line.
    pub command: Vec<String>,
    /// Its note.
    pub message: Option<String>,
    /// Where it runs.
    pub pinned: Option<Pinned>,
    /// How many cores of its own it asked for.
    pub cores_asked: Option<usize>,
    /// Those that it has.
    pub reserved: Option<CpuList>,
    /// What it may have at most.
    pub limits: Limits,
    /// It is in a container that is not ours.
    pub elsewhere: Option<Elsewhere>,
    /// Its supervisor and guard.
    pub keepers: Vec<i32>,
    /// Its directory, where it has one.
    pub group: Option<PathBuf>,
    /// The directory of its group in the v1 cpuacct hierarchy, where its CPU time is counted there.
    pub cpuacct: Option<PathBuf>,
    /// Where nothing counts for the group as a whole.
    pub living: Option<Living>,
    /// Jobs inside it, the first few.
    pub inner: Vec<Inner>,
    /// How many more there are.
    pub inner_more: usize,
}

/// What the living processes of a job use, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Living {
    /// CPU time, with that of children that ended and were waited for: less than what the job used.
    pub cpu_usec: u64,
    /// Memory that is not swapped out. What several have in common is in it several times.
    pub memory_bytes: u64,
}

impl Living {
    /// Of these processes, as far as they can be seen.
    pub fn of(proc: &Proc, pids: &[i32]) -> Self {
        let (per_second, page) = (rustix::param::clock_ticks_per_second(), rustix::param::page_size() as u64);
        let stats = pids.iter().filter_map(|&pid| proc.stat(pid).ok());
        stats.fold(Self::default(), |sum, stat| {
            let ticks = stat.cpu_ticks.saturating_add(stat.ended_children_ticks);
            Self {
                cpu_usec: sum.cpu_usec.saturating_add(ticks.saturating_mul(1_000_000) / per_second),
                memory_bytes: sum.memory_bytes.saturating_add(stat.resident_pages.saturating_mul(page)),
            }
        })
    }
}

/// Where process numbers are others than here, as in a container: nobody here is meant by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Inode number of the pid namespace.
    pub pid_namespace: u64,
    /// Supervisor and guard, by their numbers there.
    pub keepers: Vec<i32>,
}

impl Elsewhere {
    /// Whether a process that we see is one of the keepers. It must be one of the ticket's owner, whom no ticket can hide others for.
    pub fn is_keeper(&self, pid: i32, owner: u32, proc: &Proc) -> bool {
        proc.namespace(pid, "pid").is_ok_and(|its| its == self.pid_namespace)
            && proc.innermost_pid(pid).is_some_and(|pid| self.keepers.contains(&pid))
            && proc.uid(pid).is_ok_and(|uid| uid == owner)
    }
}

/// A job inside another one, which holds the machine for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inner {
    /// Its supervisor.
    pub pid: i32,
    /// Whose.
    pub uid: Option<u32>,
    /// Since it started, where that is known.
    pub age: Option<Duration>,
    /// What its group has used.
    pub usage: Usage,
    /// Living processes, where it has a group.
    pub processes: Option<usize>,
    /// How it was started; empty if its supervisor is gone, or in another pid namespace.
    pub command: Vec<String>,
}

impl Job {
    /// CPU use on the average, in percent of one core.
    pub fn cpu_average_percent(&self) -> Option<f64> {
        let cpu = Duration::from_micros(self.usage.cpu_usec?);
        let age = self.age.as_secs_f64();
        (age > 0.0).then(|| 100.0 * cpu.as_secs_f64() / age)
    }

    /// The one behind a live ticket that does not say what it is.
    pub fn unreadable(seen: &Seen) -> Self {
        Self {
            number: seen.entry.number,
            id: seen.nameless_id(),
            uid: seen.uid,
            login_uid: None,
            mode: seen.entry.mode,
            state: State::Waiting,
            age: Duration::ZERO,
            usage: Usage::default(),
            read_at: Instant::now(),
            cpu_now_percent: None,
            expected_start: None,
            processes: None,
            members: Vec::new(),
            command: Vec::new(),
            pinned: None,
            cores_asked: None,
            reserved: None,
            limits: Limits::default(),
            message: Some("its ticket cannot be read: a newer version's?".to_owned()),
            elsewhere: None,
            keepers: Vec::new(),
            group: None,
            cpuacct: None,
            living: None,
            inner: Vec::new(),
            inner_more: 0,
        }
    }
}
