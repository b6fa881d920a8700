//! One job in full: everything that is known of it, a line each, and its processes.

use super::snapshot::Job;
use super::view;
use crate::history::expect;
use crate::procfs::{self, ContextSwitches, Proc};
use crate::report::facts::{self, Fact};
use crate::text;

/// What context switches are the sum over: the kernel counts none for a group, and forgets those of what ended.
pub const SWITCHES_OF: &str = "living threads";

/// The job, with its processes read from `proc`.
pub fn text(job: &Job, width: Option<u16>, proc: &Proc) -> String {
    let mut text = facts::block(&lines(job, proc), 0);
    if !job.members.is_empty() {
        text.push('\n');
        text.push_str(&view::processes_table(job, width, proc));
    }
    text
}

fn lines(job: &Job, proc: &Proc) -> Vec<Fact> {
    let usage = &job.usage;
    let mut lines = vec![
        ("job", format!("{} ({})", job.number, job.id)),
        ("command", text::command_line(&job.command)),
        ("user", text::escape(&crate::user::label(job.uid, job.login_uid))),
        ("mode", job.mode.to_string()),
        ("state", format!("{}, {}", view::state(job), text::duration(job.age))),
    ];
    lines.extend(job.expected_start.map(|start| {
        let spread = text::duration(start.spread);
        ("expected start", format!("in {}, the middle half of which are {spread} apart", expect::shown(&start)))
    }));
    lines.extend(job.message.as_ref().map(|message| ("message", text::escape(message))));
    let of_cpu = |percent: Option<f64>| percent.map(|percent| format!("{percent:.0}% of a core"));
    lines.extend([
        ("CPU now", facts::known(of_cpu(job.cpu_now_percent))),
        ("CPU on average", facts::known(of_cpu(job.cpu_average_percent()))),
    ]);
    lines.extend(facts::cpu(usage));
    lines.extend(facts::memory(usage));
    let parts = [("with threads", facts::number(usage.tasks)), ("at most", facts::number(usage.tasks_peak))];
    lines.push(("processes", facts::with_parts(job.processes.map(|count| count.to_string()), &parts)));
    lines.push(("context switches", switches(context_switches(job, proc))));
    lines.extend(facts::disk(usage));
    lines.extend(pin(job).map(|pin| ("pins", pin)));
    lines.extend(facts::limits(job.limits));
    lines.push(("group", facts::known(job.group.as_deref().map(text::path))));
    lines
}

/// Where a job runs, and which cores it has to itself, if that was asked for.
fn pin(job: &Job) -> Option<String> {
    let pinned = job.pinned.as_ref().map(|pinned| {
        let partition = pinned.partition.map(|partition| format!(", {}", partition.name())).unwrap_or_default();
        let (cpus, nodes, strength) = (&pinned.cpus, &pinned.memory_nodes, pinned.strength.name());
        format!("cpus {cpus}, memory nodes {nodes} ({strength}{partition})")
    });
    let cores = match (job.cores_asked, &job.reserved) {
        (_, Some(cpus)) => Some(format!("cores of its own: cpus {cpus}")),
        (Some(count), None) => Some(format!("asks for {}", text::count(count, "core"))),
        (None, None) => None,
    };
    let parts: Vec<String> = pinned.into_iter().chain(cores).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The context switches of a job's living members; `None` where a member cannot be read, or none is known.
pub fn context_switches(job: &Job, proc: &Proc) -> Option<ContextSwitches> {
    // A process that ended meanwhile looks as one that is hidden from us does (hidepid), but pid 1 is always there.
    let hidden = proc.stat(1).is_err();
    let mut sum = ContextSwitches::default();
    for &pid in &job.members {
        match proc.context_switches(pid) {
            Ok(switches) => sum = sum.plus(switches),
            Err(error) if procfs::is_gone(&error) && !hidden => {}
            Err(_) => return None,
        }
    }
    job.processes.map(|_| sum)
}

fn switches(switches: Option<ContextSwitches>) -> String {
    let Some(ContextSwitches { voluntary, involuntary }) = switches else { return facts::known(None) };
    let all = voluntary.saturating_add(involuntary);
    format!("{all} of {SWITCHES_OF} (voluntary {voluntary}, involuntary {involuntary})")
}
