//! The full report of one run as a value, and as JSON for programs. Its shape is `config/report.schema.json`; a field may be added,
//! but the version changes when one goes or comes to mean something else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, Serializer};

use crate::cgroup::Backend;
use crate::cgroup::Usage;
use crate::cgroup::usage::{SOURCES, V1_CPU_SOURCES, V1_MEMORY_SOURCES};
use crate::child::{Exit, WaitedFor};
use crate::escape::{Escaped, Possible};
use crate::job::Mode;
use crate::limit::{Kind, Limits};
use crate::lock::record::Pinned;
use crate::machine::Machine;
use crate::pin::{CpuList, Partition, Strength};
use crate::user;
use crate::verdict::Verdict;

/// The version of the format.
pub const VERSION: u32 = 1;

/// Everything that is known of one run when it is over.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of this format.
    pub version: u32,
    /// The version of perflock.
    pub perflock: &'static str,
    /// What was run.
    pub command: Vec<String>,
    /// Its note.
    pub message: Option<String>,
    /// Whose it was.
    pub user: Person,
    /// How it held, or wanted, the machine.
    pub mode: Mode,
    /// The lock file.
    #[serde(serialize_with = "lossy")]
    pub lock: PathBuf,
    /// Its place in the queue; `null` where it had none.
    pub number: Option<u64>,
    /// Its identity, which is not used again.
    pub job: Option<String>,
    /// The job that it ran inside of, which held the machine for it.
    pub inside: Option<String>,
    /// When perflock was started.
    #[serde(serialize_with = "rfc3339")]
    pub started: SystemTime,
    /// How it waited.
    #[serde(flatten)]
    pub waited: Waited,
    /// How long it had the machine.
    pub held_usec: Option<u64>,
    /// From the command's start to its end; leftovers may have taken longer.
    pub wall_usec: Option<u64>,
    /// From the command's end until the machine was given back.
    pub lingered_usec: Option<u64>,
    /// How it ended.
    pub exit: End,
    /// Whether anybody else used the machine meanwhile; `null` where nothing ran, or nobody looked.
    pub verdict: Option<Verdict>,
    /// CPU time by the time until no member was left, in percent of one core.
    pub cpu_average_percent: Option<f64>,
    /// What the whole job used, processes included that nobody waited for.
    pub usage: Usage,
    /// What those processes used that were waited for: what time(1) would say.
    pub waited_for: Option<WaitedFor>,
    /// How its processes were kept together: see [`crate::cgroup::Backend`].
    pub tracking: Option<&'static str>,
    /// Members that outlived the command and were ended.
    pub leftovers: Option<Leftovers>,
    /// Processes that the job started and that were not in its group when that was empty. `null` where nobody looked.
    pub escaped: Option<Vec<Escaped>>,
    /// Groups that appeared while the job ran and may be its doing. `null` where nobody looked.
    pub possible_escapes: Option<Vec<Possible>>,
    /// Where it was allowed to run.
    pub pins: Pins,
    /// What it was allowed at most.
    pub limits: Allowed,
    /// Other jobs that had the machine when it started or ended. Some may have come and gone in between.
    pub shared_with: Vec<Neighbour>,
    /// What it ran on.
    pub machine: Machine,
    /// What surprises in the numbers, and why it is so.
    pub notes: Vec<String>,
    /// Which file of the job's group each counter of `usage` is from, and which key in it.
    pub sources: BTreeMap<&'static str, String>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Person {
    /// By number.
    pub uid: u32,
    /// By name.
    pub name: String,
}

impl Person {
    /// The user of this number.
    pub fn of(uid: u32) -> Self {
        Self { uid, name: user::name(uid) }
    }

    /// The same where there is no time to look the name up: [`Report::name_users`] does.
    pub fn unnamed(uid: u32) -> Self {
        Self { uid, name: String::new() }
    }
}

/// A wait for the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waited {
    /// How long.
    #[serde(rename = "waited_usec", serialize_with = "usec")]
    pub time: Duration,
    /// How many jobs were in the way when it began.
    #[serde(rename = "jobs_ahead")]
    pub ahead: usize,
    /// Who was in the way, as far as was seen: a waiter looks when it joins and when what it waits for changes.
    #[serde(rename = "waited_behind")]
    pub behind: Vec<Neighbour>,
}

/// Somebody else's job, or a user of plain flock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbour {
    /// A job's place in the queue; `null` for a user of plain flock.
    pub number: Option<u64>,
    /// The process that holds the machine for it: a supervisor, or whoever took the lock.
    pub pid: i32,
    /// Whose.
    pub user: Option<Person>,
    /// How it held the machine.
    pub mode: Mode,
    /// What it ran, by its own account.
    pub command: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct End {
    /// Why.
    pub reason: Reason,
    /// What the command exited with.
    pub code: Option<i32>,
    /// The signal that the command died of.
    pub signal: Option<i32>,
    /// Who cancelled it.
    pub cancelled_by: Option<Person>,
    /// What went wrong, where it is not the command.
    pub error: Option<String>,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The command exited.
    Exited,
    /// The command died of a signal.
    Signal,
    /// `--time-limit` ended it.
    TimeLimit,
    /// It was killed when its group, or the machine, had no memory left: the kernel counts both as one.
    OutOfMemory,
    /// Its owner or root cancelled it.
    Cancelled,
    /// A second TERM to perflock killed it.
    Killed,
    /// systemd stopped the scope that was made for it.
    Stopped,
    /// perflock was killed; the guard ended the job.
    SupervisorLost,
    /// It never got the machine.
    LockNotObtained,
    /// perflock could not run it.
    Failed,
}

impl End {
    /// For this reason, with nothing else known.
    pub fn because(reason: Reason) -> Self {
        Self { reason, code: None, signal: None, cancelled_by: None, error: None }
    }

    /// A command that ended like this, if nothing but itself was the reason.
    pub fn by_itself(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Self { code: Some(code), ..Self::because(Reason::Exited) },
            Exit::Signal(signal) => Self { signal: Some(signal), ..Self::because(Reason::Signal) },
        }
    }
}

/// Members that outlived the command and were ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// How many.
    pub count: usize,
    /// The first few.
    pub named: Vec<Process>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its name, chosen by itself.
    pub name: String,
}

/// Where a job was allowed to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pins {
    /// What made it so: `cpuset` or `affinity`; `null` where perflock did not, and the job had what perflock was started with.
    pub by: Option<&'static str>,
    /// Whether it could leave.
    pub strength: Option<Strength>,
    /// Processors.
    pub cpus: Option<String>,
    /// Memory nodes.
    pub memory_nodes: Option<String>,
    /// Cores that it had to itself among those who ask for cores, with every thread.
    pub reserved: Option<CpuList>,
    /// The processors were nobody else's at all.
    pub partition: Option<Partition>,
    /// Where else its main process could run when it ended: it changed its affinity. `null` where it did not, or nobody saw.
    pub moved_to: Option<CpuList>,
    /// Processors of it that were offline at its end.
    pub offline: Option<CpuList>,
}

/// What a job was allowed at most; `null` where it had no limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// Memory and swap together.
    pub memory_bytes: Option<u64>,
    /// Processes and threads at a time.
    pub processes: Option<u64>,
    /// Why limits of the configuration were not in force.
    pub not_in_force: Option<String>,
}

impl Allowed {
    /// The limits that were in force.
    pub fn limits(&self) -> Limits {
        Limits { memory_bytes: self.memory_bytes, processes: self.processes }
    }
}

impl Pins {
    /// A job that was pinned.
    pub fn by_perflock(pinned: &Pinned, reserved: Option<&CpuList>) -> Self {
        Self {
            by: Some(match pinned.strength {
                Strength::Hard => "cpuset",
                Strength::Soft => "affinity",
            }),
            strength: Some(pinned.strength),
            cpus: Some(pinned.cpus.to_string()),
            memory_nodes: Some(pinned.memory_nodes.to_string()),
            reserved: reserved.cloned(),
            partition: pinned.partition,
            ..Self::default()
        }
    }
}

impl Report {
    /// A report of a run that has not got anywhere yet.
    pub fn new(command: Vec<String>, mode: Mode, lock: PathBuf, started: SystemTime) -> Self {
        Self {
            version: VERSION,
            perflock: env!("CARGO_PKG_VERSION"),
            command,
            message: None,
            user: Person::of(rustix::process::geteuid().as_raw()),
            mode,
            lock,
            number: None,
            job: None,
            inside: None,
            started,
            waited: Waited::default(),
            held_usec: None,
            wall_usec: None,
            lingered_usec: None,
            exit: End::because(Reason::Failed),
            verdict: None,
            cpu_average_percent: None,
            usage: Usage::default(),
            waited_for: None,
            tracking: None,
            leftovers: None,
            escaped: None,
            possible_escapes: None,
            pins: Pins::default(),
            limits: Allowed::default(),
            shared_with: Vec::new(),
            machine: Machine::default(),
            notes: Vec::new(),
            sources: sources(),
        }
    }

    /// Its processes were kept together like that.
    pub fn tracked_by(&mut self, backend: Backend) {
        self.tracking = Some(backend.name());
        if backend == Backend::V1 {
            self.sources.extend(by_field(&V1_CPU_SOURCES));
        }
    }

    /// These limits were in force, by groups in v1 hierarchies where they are of these `kinds`: their counters are the job's.
    pub fn limited(&mut self, limits: Limits, kinds: impl Iterator<Item = Kind>, not_in_force: Option<&str>) {
        let Limits { memory_bytes, processes } = limits;
        self.limits = Allowed { memory_bytes, processes, not_in_force: not_in_force.map(str::to_owned) };
        // Those of processes are called the same.
        if kinds.into_iter().any(|kind| kind == Kind::Memory) {
            self.sources.extend(by_field(&V1_MEMORY_SOURCES));
        }
    }

    /// Looks up who the others are. That may take long (a directory service that does not answer), so not while the machine is
    /// held or waited for.
    pub fn name_users(&mut self) {
        let others = self.waited.behind.iter_mut().chain(&mut self.shared_with).filter_map(|other| other.user.as_mut());
        let unnamed = others.chain(&mut self.exit.cancelled_by).filter(|person| person.name.is_empty());
        unnamed.for_each(|person| *person = Person::of(person.uid));
    }

    /// The document, on one line.
    pub fn json(&self) -> String {
        // Maps of strings and numbers: nothing in it can fail.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

/// Where each counter of a group is from: `cpu.stat usage_usec`.
pub fn sources() -> BTreeMap<&'static str, String> {
    by_field(&SOURCES).collect()
}

fn by_field(sources: &[(&'static str, &str, &str)]) -> impl Iterator<Item = (&'static str, String)> {
    sources.iter().map(|&(field, file, key)| (field, format!("{file} {key}").trim_end().to_owned()))
}

/// Any bytes can be a path's name, but not a text of JSON.
fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

/// A time as JSON has it.
pub(crate) fn rfc3339<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn usec<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(in_usec(*duration))
}

/// A duration as JSON has it.
pub fn in_usec(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
