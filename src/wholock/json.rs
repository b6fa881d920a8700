//! A snapshot as JSON, for programs. Its shape is `config/wholock.schema.json`; a field may be added, but the version changes
//! when one goes or comes to mean something else. Text of other users stands as they wrote it: JSON escapes control characters,
//! and whoever prints it to a terminal must do the same.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::cores::{CoreMap, Part};
use super::full;
use super::load::{Busy, Load, UserLoad};
use super::snapshot::{Inner, Job, Snapshot, State};
use super::tree::{self, Process};
use crate::cgroup::Usage;
use crate::job::Mode;
use crate::limit::Limits;
use crate::lock::outsiders::Outsider;
use crate::pin::{CpuList, Partition, Strength};
use crate::procfs::Proc;
use crate::report::document::{Person, in_usec, sources};

/// The version of the format.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    lock: String,
    /// Nobody has the machine or waits for it.
    free: bool,
    holders: Vec<JobFields<'a>>,
    waiters: Vec<JobFields<'a>>,
    outsiders: Vec<OutsiderFields<'a>>,
    /// Who uses the CPU outside of jobs; `null` where nobody watched.
    load_outside: Option<LoadFields<'a>>,
    /// Which job is on which processors; `null` where no job was told to run anywhere in particular.
    cores: Option<CoresFields>,
    /// Which file of a job's group each counter is from, and which key in it.
    sources: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct JobFields<'a> {
    number: u64,
    id: String,
    user: Person,
    /// Who logged in and became that user, where that is known.
    login_user: Option<Person>,
    mode: Mode,
    state: &'static str,
    /// The number of the job that it waits for; `null` where it waits for the lock file, or does not wait.
    waits_for: Option<u64>,
    /// When it may start; `null` where it does not wait, or nobody can guess.
    expected_start: Option<StartFields>,
    /// Since it got the machine, or since it joined.
    age_usec: u64,
    command: &'a [String],
    message: Option<&'a str>,
    /// Its process numbers are those of another pid namespace.
    in_another_container: bool,
    group: Option<String>,
    processes: Option<usize>,
    cpu_now_percent: Option<f64>,
    cpu_average_percent: Option<f64>,
    usage: &'a Usage,
    context_switches: Option<SwitchesFields>,
    /// Where it runs, and cores that it asked for; `null` where it did neither.
    pin: Option<PinFields<'a>>,
    /// What it may have at most; `null` as long as it waits, or where it has no limit of its own.
    limits: Option<LimitFields>,
    inner: Vec<InnerFields<'a>>,
    /// How many more jobs there are inside it.
    inner_more: usize,
    /// `--tree`.
    process_list: Option<Vec<ProcessFields>>,
}

/// A guess.
#[derive(Serialize)]
struct StartFields {
    after_usec: u64,
    runs: usize,
    spread_usec: u64,
}

#[derive(Serialize)]
struct PinFields<'a> {
    /// Where it runs; `null` as long as it waits.
    cpus: Option<&'a CpuList>,
    memory_nodes: Option<&'a CpuList>,
    strength: Option<Strength>,
    partition: Option<Partition>,
    /// How many cores of its own it asked for.
    cores_asked: Option<usize>,
    /// Those that it got, with every thread.
    reserved: Option<&'a CpuList>,
}

#[derive(Serialize)]
struct LimitFields {
    /// Memory and swap together.
    memory_bytes: Option<u64>,
    /// Processes and threads.
    processes: Option<u64>,
}

#[derive(Serialize)]
struct CoresFields {
    nodes: Vec<NodeFields>,
    /// Processors that no job was told to run on.
    free: CpuList,
}

#[derive(Serialize)]
struct NodeFields {
    node: u32,
    parts: Vec<PartFields>,
}

#[derive(Serialize)]
struct PartFields {
    cpus: CpuList,
    jobs: Vec<u64>,
}

#[derive(Serialize)]
struct SwitchesFields {
    /// What they are the sum over.
    of: &'static str,
    voluntary: u64,
    involuntary: u64,
}

#[derive(Serialize)]
struct ProcessFields {
    pid: i32,
    parent_pid: i32,
    user: Option<Person>,
    state: char,
    /// Of the process itself, without its children.
    cpu_usec: u64,
    memory_bytes: u64,
    name: String,
    command: Vec<String>,
}

#[derive(Serialize)]
struct LoadFields<'a> {
    elapsed_usec: u64,
    /// Processes of others are hidden.
    own_only: bool,
    users: Vec<UserLoadFields<'a>>,
}

#[derive(Serialize)]
struct UserLoadFields<'a> {
    user: Person,
    cpu_percent: f64,
    busy_processes: usize,
    busiest: Vec<BusyFields<'a>>,
}

#[derive(Serialize)]
struct BusyFields<'a> {
    pid: i32,
    name: &'a str,
    command: &'a [String],
    cpu_percent: f64,
    ended_children_cpu_percent: f64,
}

#[derive(Serialize)]
struct InnerFields<'a> {
    supervisor_pid: i32,
    user: Option<Person>,
    age_usec: Option<u64>,
    command: &'a [String],
    processes: Option<usize>,
    usage: &'a Usage,
}

#[derive(Serialize)]
struct OutsiderFields<'a> {
    pid: i32,
    user: Option<Person>,
    mode: Mode,
    waiting: bool,
    /// The number of the job that it is a part of, and waits for.
    own_job: Option<u64>,
    command: &'a [String],
}

/// The document, on one line; what is known of single processes is read from `proc`, and listed with `tree`.
pub fn document(
    snapshot: &Snapshot,
    outside: Option<&Load>,
    cores: Option<&CoreMap>,
    lock: &Path,
    proc: &Proc,
    tree: bool,
) -> String {
    let document = Document {
        version: VERSION,
        lock: lock.display().to_string(),
        free: snapshot.free(),
        holders: snapshot.holders.iter().map(|holder| job(holder, proc, tree)).collect(),
        waiters: snapshot.waiters.iter().map(|waiter| job(waiter, proc, tree)).collect(),
        outsiders: snapshot.outsiders.iter().map(|(found, own_job)| outsider(found, *own_job)).collect(),
        load_outside: outside.map(load),
        cores: cores.map(core_map),
        sources: sources(),
    };
    // Maps of strings and numbers: nothing in it can fail.
    serde_json::to_string(&document).unwrap_or_default() + "\n"
}

fn job<'a>(job: &'a Job, proc: &Proc, tree: bool) -> JobFields<'a> {
    let (state, waits_for) = match job.state {
        State::Running => ("running", None),
        State::Stopped => ("stopped", None),
        State::Releasing => ("releasing", None),
        State::Guarded => ("supervisor-lost", None),
        State::WaitingFor(number) => ("waiting", Some(number)),
        State::Waiting => ("waiting", None),
        State::WaitingForCores => ("waiting-for-cores", None),
        State::StoppedWaiter => ("stopped-waiter", None),
        State::Orphan => ("orphan", None),
        State::MaybeOrphan => ("maybe-orphan", None),
    };
    JobFields {
        number: job.number,
        id: job.id.to_string(),
        user: Person::of(job.uid),
        login_user: job.login_uid.map(Person::of),
        mode: job.mode,
        state,
        waits_for,
        expected_start: job.expected_start.map(|start| StartFields {
            after_usec: in_usec(start.after),
            runs: start.runs,
            spread_usec: in_usec(start.spread),
        }),
        age_usec: in_usec(job.age),
        command: &job.command,
        message: job.message.as_deref(),
        in_another_container: job.elsewhere.is_some(),
        group: job.group.as_ref().map(|group| group.display().to_string()),
        processes: job.processes,
        cpu_now_percent: job.cpu_now_percent,
        cpu_average_percent: job.cpu_average_percent(),
        usage: &job.usage,
        context_switches: full::context_switches(job, proc).map(|switches| SwitchesFields {
            of: full::SWITCHES_OF,
            voluntary: switches.voluntary,
            involuntary: switches.involuntary,
        }),
        pin: pin(job),
        limits: limits(job.limits),
        inner: job.inner.iter().map(inner).collect(),
        inner_more: job.inner_more,
        process_list: tree.then(|| tree::read(proc, &job.members).into_iter().map(process).collect()),
    }
}

fn pin(job: &Job) -> Option<PinFields<'_>> {
    let pinned = job.pinned.as_ref();
    let asked = pinned.is_some() || job.cores_asked.is_some() || job.reserved.is_some();
    asked.then(|| PinFields {
        cpus: pinned.map(|pinned| &pinned.cpus),
        memory_nodes: pinned.map(|pinned| &pinned.memory_nodes),
        strength: pinned.map(|pinned| pinned.strength),
        partition: pinned.and_then(|pinned| pinned.partition),
        cores_asked: job.cores_asked,
        reserved: job.reserved.as_ref(),
    })
}

fn limits(limits: Limits) -> Option<LimitFields> {
    let Limits { memory_bytes, processes } = limits;
    (!limits.is_empty()).then_some(LimitFields { memory_bytes, processes })
}

fn core_map(map: &CoreMap) -> CoresFields {
    let part = |part: &Part| PartFields { cpus: part.cpus.clone(), jobs: part.jobs.clone() };
    let node = |(node, parts): &(u32, Vec<Part>)| NodeFields { node: *node, parts: parts.iter().map(part).collect() };
    CoresFields { nodes: map.nodes.iter().map(node).collect(), free: map.free() }
}

fn process(process: Process) -> ProcessFields {
    ProcessFields {
        pid: process.stat.pid,
        parent_pid: process.stat.ppid,
        user: process.uid.map(Person::of),
        state: process.stat.state,
        cpu_usec: in_usec(process.cpu()),
        memory_bytes: process.memory_bytes(),
        name: process.stat.comm,
        command: process.command,
    }
}

fn load(load: &Load) -> LoadFields<'_> {
    LoadFields {
        elapsed_usec: in_usec(load.elapsed),
        own_only: load.own_only,
        users: load.users.iter().map(user_load).collect(),
    }
}

fn user_load(load: &UserLoad) -> UserLoadFields<'_> {
    UserLoadFields {
        user: Person::of(load.uid),
        cpu_percent: load.percent,
        busy_processes: load.busy,
        busiest: load.busiest.iter().map(busy).collect(),
    }
}

fn busy(busy: &Busy) -> BusyFields<'_> {
    BusyFields {
        pid: busy.pid,
        name: &busy.comm,
        command: &busy.command,
        cpu_percent: busy.percent,
        ended_children_cpu_percent: busy.ended_children_percent,
    }
}

fn inner(inner: &Inner) -> InnerFields<'_> {
    InnerFields {
        supervisor_pid: inner.pid,
        user: inner.uid.map(Person::of),
        age_usec: inner.age.map(in_usec),
        command: &inner.command,
        processes: inner.processes,
        usage: &inner.usage,
    }
}

fn outsider(outsider: &Outsider, own_job: Option<u64>) -> OutsiderFields<'_> {
    OutsiderFields {
        pid: outsider.pid,
        user: outsider.uid.map(Person::of),
        mode: outsider.mode,
        waiting: outsider.waiting,
        own_job,
        command: &outsider.command,
    }
}
