//! A snapshot as JSON, for programs. Its shape is `config/wholock.schema.json`; a field may be added, but the version changes
//! when one goes or comes to mean something else. Text of other users stands as they wrote it: JSON escapes control characters,
//! and whoever prints it to a terminal must do the same.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::snapshot::{Inner, Job, Snapshot, State};
use crate::cgroup::Usage;
use crate::job::Mode;
use crate::lock::outsiders::Outsider;
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
    /// Since it got the machine, or since it joined.
    age_usec: u64,
    command: &'a [String],
    message: Option<&'a str>,
    group: Option<String>,
    processes: Option<usize>,
    cpu_now_percent: Option<f64>,
    cpu_average_percent: Option<f64>,
    usage: &'a Usage,
    inner: Vec<InnerFields<'a>>,
    /// How many more jobs there are inside it.
    inner_more: usize,
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

/// The document, on one line.
pub fn document(snapshot: &Snapshot, lock: &Path) -> String {
    let document = Document {
        version: VERSION,
        lock: lock.display().to_string(),
        free: snapshot.free(),
        holders: snapshot.holders.iter().map(job).collect(),
        waiters: snapshot.waiters.iter().map(job).collect(),
        outsiders: snapshot.outsiders.iter().map(|(found, own_job)| outsider(found, *own_job)).collect(),
        sources: sources(),
    };
    // Maps of strings and numbers: nothing in it can fail.
    serde_json::to_string(&document).unwrap_or_default() + "\n"
}

fn job(job: &Job) -> JobFields<'_> {
    let (state, waits_for) = match job.state {
        State::Running => ("running", None),
        State::Stopped => ("stopped", None),
        State::Releasing => ("releasing", None),
        State::Guarded => ("supervisor-lost", None),
        State::WaitingFor(number) => ("waiting", Some(number)),
        State::Waiting => ("waiting", None),
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
        age_usec: in_usec(job.age),
        command: &job.command,
        message: job.message.as_deref(),
        group: job.group.as_ref().map(|group| group.display().to_string()),
        processes: job.processes,
        cpu_now_percent: job.cpu_now_percent,
        cpu_average_percent: job.cpu_average_percent(),
        usage: &job.usage,
        inner: job.inner.iter().map(inner).collect(),
        inner_more: job.inner_more,
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
