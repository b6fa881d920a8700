//! One job in full: everything that is known of it, a line each, and its processes.

use std::time::Duration;

use super::snapshot::Job;
use super::view;
use crate::procfs::{self, ContextSwitches, Proc};
use crate::text;

/// Where the values begin.
const VALUES_AT: usize = 18;

/// What context switches are the sum over: the kernel counts none for a group, and forgets those of what ended.
pub const SWITCHES_OF: &str = "living threads";

/// The job, with its processes read from `proc`.
pub fn text(job: &Job, width: Option<u16>, proc: &Proc) -> String {
    let mut lines: Vec<String> =
        facts(job, proc).iter().map(|(name, value)| format!("{name:VALUES_AT$}{value}\n")).collect();
    if !job.members.is_empty() {
        lines.push("\n".to_owned());
        lines.push(view::processes_table(job, width, proc));
    }
    lines.concat()
}

fn facts(job: &Job, proc: &Proc) -> Vec<(&'static str, String)> {
    let usage = &job.usage;
    let mut facts = vec![
        ("job", format!("{} ({})", job.number, job.id)),
        ("command", text::command_line(&job.command)),
        ("user", text::escape(&crate::user::label(job.uid, job.login_uid))),
        ("mode", job.mode.to_string()),
        ("state", format!("{}, {}", view::state(job), text::duration(job.age))),
    ];
    facts.extend(job.message.as_ref().map(|message| ("message", text::escape(message))));
    let of_cpu = |percent: Option<f64>| percent.map(|percent| format!("{percent:.0}% of a core"));
    facts.extend([
        ("CPU now", view::known(of_cpu(job.cpu_now_percent))),
        ("CPU on average", view::known(of_cpu(job.cpu_average_percent()))),
        (
            "CPU time",
            with_parts(time(usage.cpu_usec), &[("user", time(usage.user_usec)), ("system", time(usage.system_usec))]),
        ),
        ("CPU held back", view::known(time(usage.throttled_usec))),
        ("CPU awaited", view::known(time(usage.cpu_stall_usec))),
        (
            "memory",
            with_parts(
                bytes(usage.memory_bytes),
                &[
                    ("at most", bytes(usage.memory_peak_bytes)),
                    ("its own", bytes(usage.memory_anon_bytes)),
                    ("page cache", bytes(usage.memory_file_bytes)),
                    ("swap", bytes(usage.swap_bytes)),
                ],
            ),
        ),
        ("memory awaited", view::known(time(usage.memory_stall_usec))),
        ("page faults", with_parts(number(usage.faults), &[("from disk", number(usage.major_faults))])),
        ("out of memory", with_parts(number(usage.oom_kills), &[])),
        (
            "processes",
            with_parts(
                job.processes.map(|processes| processes.to_string()),
                &[("with threads", number(usage.tasks)), ("at most", number(usage.tasks_peak))],
            ),
        ),
        ("context switches", switches(context_switches(job, proc))),
        ("read", with_parts(bytes(usage.read_bytes), &[("reads", number(usage.reads))])),
        ("written", with_parts(bytes(usage.written_bytes), &[("writes", number(usage.writes))])),
        ("disk awaited", view::known(time(usage.io_stall_usec))),
        ("group", view::known(job.group.as_ref().map(|group| text::escape(&group.display().to_string())))),
    ]);
    facts
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
    let Some(ContextSwitches { voluntary, involuntary }) = switches else { return view::known(None) };
    let all = voluntary.saturating_add(involuntary);
    format!("{all} of {SWITCHES_OF} (voluntary {voluntary}, involuntary {involuntary})")
}

/// `12.3s (user 10s, system 2.3s)`; parts that the kernel does not tell are left out.
fn with_parts(whole: Option<String>, parts: &[(&str, Option<String>)]) -> String {
    let known: Vec<String> =
        parts.iter().filter_map(|(name, part)| part.as_ref().map(|part| format!("{name} {part}"))).collect();
    let whole = view::known(whole);
    if known.is_empty() { whole } else { format!("{whole} ({})", known.join(", ")) }
}

fn time(usec: Option<u64>) -> Option<String> {
    usec.map(|usec| text::duration(Duration::from_micros(usec)))
}

fn bytes(bytes: Option<u64>) -> Option<String> {
    bytes.map(text::bytes)
}

fn number(number: Option<u64>) -> Option<String> {
    number.map(|number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_not_known_are_left_out() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(with_parts(some("3s"), &[("user", some("2s")), ("system", None)]), "3s (user 2s)");
        assert_eq!(with_parts(None, &[("at most", None)]), "-");
    }
}
