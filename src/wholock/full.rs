//! One job in full: everything that is known of it, a line each, and its processes.

use super::snapshot::Job;
use super::view;
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
    lines.push(("group", facts::known(job.group.as_deref().map(text::path))));
    lines
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
