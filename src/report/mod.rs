//! What happened, in words: pure functions from values to lines. What is said while a run goes on, and its last line, are here;
//! [`document`] is the full report as a value and as JSON, [`full`] the same for a person.

pub mod document;
pub mod escapes;
pub mod facts;
pub mod full;

use std::path::PathBuf;
use std::time::Duration;

use crate::cgroup::Usage;
use crate::child::Exit;
use crate::limit::Limits;
use crate::lock::outsiders::Outsider;
use crate::lock::{Ahead, Other, Record};
use crate::supervisor::step::{News, Policy};
use crate::supervisor::stuck::{Stuck, Why};
use crate::supervisor::{Ended, Outcome};
use crate::text;

/// How much of another job's command line stands in a message.
const COMMAND_COLUMNS: usize = 60;

/// Waiting less than this is not worth a word at the end.
const NOTABLE_WAIT: Duration = Duration::from_millis(100);

/// Who is in the way: ` behind 2 jobs; USER runs make bench (exclusive, 12m)`, to follow `waiting for lock`.
/// `login_uid` tells who became the user that a job runs as.
pub fn in_the_way(
    ahead: &Ahead,
    login_uid: &dyn Fn(&Record) -> Option<u32>,
    outsiders: &dyn Fn() -> Vec<Outsider>,
) -> String {
    let mut line = String::new();
    if ahead.jobs > 0 {
        let about = if ahead.exact { "" } else { "about " };
        line.push_str(&format!(" behind {about}{}", text::count(ahead.jobs, "job")));
    }
    if let Some(Other { uid, mode, record, .. }) = ahead.holders.first() {
        let since = record.granted_usec.map(crate::clock::since).unwrap_or_default();
        let user = text::escape(&crate::user::label(*uid, login_uid(record)));
        let command = text::cut(&text::command_line(&record.joined.command), COMMAND_COLUMNS);
        line.push_str(&format!("; {user} runs {command} ({mode}, {})", text::duration(since)));
    } else if let Some(other) = outsiders().iter().find(|other| !other.waiting) {
        let user = other.uid.map_or_else(|| "somebody".to_owned(), |uid| text::escape(&crate::user::name(uid)));
        let command = text::cut(&text::command_line(&other.command), COMMAND_COLUMNS);
        if command.is_empty() {
            line.push_str(&format!(
                "; it is held by flock ({}), taken by process {}, which ended",
                other.mode, other.pid
            ));
        } else {
            line.push_str(&format!("; {user} runs {command} ({}, by flock, process {})", other.mode, other.pid));
        }
    }
    line
}

/// What goes on while a job gives the machine back.
pub fn news(news: News, living: &[Ended], count: usize, policy: &Policy) -> String {
    let who = named(living, count);
    let processes = text::count(count, "process");
    match news {
        News::TimeLimit => {
            let limit = text::exact_duration(policy.time_limit.unwrap_or_default());
            format!("time limit of {limit} reached: ending the command")
        }
        News::Releasing => "giving the machine back".to_owned(),
        News::KillsIn(left) => {
            format!("waiting for {processes} to end: {who}; killed in {} (^C kills now)", text::duration(left))
        }
        News::Lingering => {
            format!("holding the machine for {processes} that the command left: {who} (^C kills now)")
        }
    }
}

/// Who was killed and lives on, what has to happen for them to end, and who can make that happen.
pub fn stuck(stuck: &[Stuck], count: usize) -> String {
    let why = |why: &Why| match why {
        Why::Frozen(group) => format!("frozen by {}", text::path(group)),
        Why::InKernel => {
            "in state D: waits in the kernel, for a disk or a file system say, and cannot be interrupted".to_owned()
        }
        Why::Not(uid) => format!("runs as {}, and is not yours to kill", text::escape(&crate::user::name(*uid))),
        Why::State(state) => format!("in state {state}"),
    };
    let mut who: Vec<String> = stuck
        .iter()
        .map(|process| format!("{} ({}), {}", text::escape(&process.name), process.pid, why(&process.why)))
        .collect();
    let more = count.saturating_sub(who.len());
    if more > 0 {
        who.push(format!("and {more} more"));
    }
    let (were, they, them) =
        if count == 1 { ("was killed and does", "it does", "it") } else { ("were killed and do", "they do", "them") };
    let mut groups: Vec<&PathBuf> = stuck
        .iter()
        .filter_map(|process| if let Why::Frozen(group) = &process.why { Some(group) } else { None })
        .collect();
    groups.sort();
    groups.dedup();
    let cures: Vec<String> = groups
        .iter()
        .map(|group| {
            format!(
                "echo THAWED > {}",
                text::command_line(&[group.join("freezer.state").to_string_lossy().into_owned()])
            )
        })
        .collect();
    let cure = if cures.is_empty() { String::new() } else { format!("; to let {them} end: {}", cures.join("; ")) };
    format!(
        "{} {were} not end: {}; the machine is held until {they}{cure}",
        text::count(count, "process"),
        who.join("; ")
    )
}

/// Who keeps a command that ended from being seen to its end.
pub fn traced(tracer: &Ended) -> String {
    format!(
        "the command has ended, but {} ({}), which traces it, has not let it go; the machine is held until it does or ends",
        text::escape(&tracer.name),
        tracer.pid
    )
}

/// Why the job ended, where it is not the command's own doing.
pub fn stopped(outcome: &Outcome) -> Option<String> {
    let unit = outcome.stopped.as_ref()?;
    Some(format!("systemd stopped the job's scope ({unit}): every process of the job was ended"))
}

/// Who cancelled a job or a waiter.
pub fn cancelled(by_uid: u32) -> String {
    format!("cancelled by {}", text::escape(&crate::user::name(by_uid)))
}

/// Why a job that was to end may still be there.
pub fn still_there(members: usize) -> String {
    if members == 0 {
        return "its ticket is held, but not by the process that it names".to_owned();
    }
    format!(
        "{} still there (stuck in the kernel, or not yours to kill, as after sudo?); the machine is held until they end",
        text::count(members, "process")
    )
}

/// Who was ended when the machine was given back. `name` is what was typed.
pub fn ended(outcome: &Outcome, name: &str) -> Option<String> {
    let count = outcome.leftover_count;
    let who = named(&outcome.leftovers, count);
    match (count, outcome.timed_out, outcome.cut_short) {
        (0, ..) => None,
        (_, true, _) => Some(format!("killed {} after the time limit: {who}", text::count(count, "process"))),
        (_, _, true) => Some(format!("killed {} of the job: {who}", text::count(count, "process"))),
        (_, false, false) => Some(format!(
            "killed {}: {who}; start it before {name} to keep it, or use --leftovers wait to hold the machine until it ends",
            text::count(count, "leftover process"),
        )),
    }
}

/// What a job came to grief at: its own limits.
pub fn limits_reached(outcome: &Outcome, limits: Limits) -> Vec<String> {
    let usage = &outcome.usage;
    let kills = usage.oom_kills.filter(|&kills| kills > 0 && limits.memory_bytes.is_some());
    let killed = kills.map(|kills| {
        format!("out of memory: the kernel killed {} of the job, {}", some(kills, "process"), why_killed(usage, limits))
    });
    let refused = usage.forks_refused.unwrap_or(0);
    let refused = limits.processes_reached(refused, usage.tasks_peak).map(|_| {
        let refused = forks_refused(refused, "the job's", usage, limits);
        format!("warning: {refused}; --pids N allows more, --pids none any number")
    });
    killed.into_iter().chain(refused).collect()
}

/// Why the kernel killed processes of a job, to follow who they were.
pub(super) fn why_killed(usage: &Usage, limits: Limits) -> String {
    match (limits.memory_reached(usage.memory_peak_bytes), limits.memory_bytes) {
        (Some(limit), _) => format!("since that had reached its limit of {} (--memory)", text::exact_bytes(limit)),
        (None, Some(limit)) => format!(
            "since the machine, or a group above the job's, had no memory left: it had not reached its limit of {}",
            text::exact_bytes(limit)
        ),
        (None, None) => "since its group or the machine had none left".to_owned(),
    }
}

/// Why forks failed in a job, that is `its` or `the job's`.
pub(super) fn forks_refused(refused: u64, its: &str, usage: &Usage, limits: Limits) -> String {
    let were = if refused == 1 { "was" } else { "were" };
    let forks = format!("{} {were} refused by", some(refused, "fork"));
    match limits.processes_reached(refused, usage.tasks_peak) {
        Some(limit) => {
            format!("{forks} {its} limit of {}, threads included", some(limit, "process"))
        }
        None => format!("{forks} a limit of processes above {its} group"),
    }
}

fn some(number: u64, thing: &str) -> String {
    text::count(usize::try_from(number).unwrap_or(usize::MAX), thing)
}

/// `took 12.34s, used 1m 28.1s of CPU time (714% of a core; user 1m 20.0s, system 8.100s), 1.4G of memory at most`.
pub fn usage(outcome: &Outcome, waited: Duration) -> String {
    let usage = &outcome.usage;
    let wall = text::measured(outcome.wall);
    let mut line = match outcome.exit {
        Exit::Code(0) => format!("took {wall}"),
        Exit::Code(code) => format!("exited with code {code} after {wall}"),
        Exit::Signal(signal) => format!("died of {} after {wall}", full::signal_name(signal)),
    };
    let time = |usec: u64| text::measured(Duration::from_micros(usec));
    match usage.cpu_usec {
        Some(cpu_usec) => {
            // What lived on went on counting.
            let share = 100.0 * cpu_usec as f64 / outcome.lasted.as_micros().max(1) as f64;
            line.push_str(&format!(", used {} of CPU time ({share:.0}% of a core", time(cpu_usec)));
            if let (Some(user), Some(system)) = (usage.user_usec, usage.system_usec) {
                line.push_str(&format!("; user {}, system {}", time(user), time(system)));
            }
            line.push(')');
        }
        None => {
            let seen = time(outcome.waited_for.cpu_usec());
            line.push_str(&format!(", used at least {seen} of CPU time (no job group to count it all)"));
        }
    }
    match usage.memory_peak_bytes {
        Some(peak) => line.push_str(&format!(", {} of memory at most", text::bytes(peak))),
        // What time(1) calls maxresident.
        None => line.push_str(&format!(", largest process {}", text::bytes(outcome.waited_for.largest_process_bytes))),
    }
    for (what, bytes) in [("read", usage.read_bytes), ("wrote", usage.written_bytes)] {
        if let Some(bytes) = bytes.filter(|&bytes| bytes > 0) {
            line.push_str(&format!(", {what} {}", text::bytes(bytes)));
        }
    }
    if waited >= NOTABLE_WAIT {
        line.push_str(&format!(", after waiting {}", text::duration(waited)));
    }
    line
}

/// `redis-server (4312), sh (4313) and 3 more`.
fn named(processes: &[Ended], count: usize) -> String {
    let shown: Vec<String> =
        processes.iter().map(|process| format!("{} ({})", text::escape(&process.name), process.pid)).collect();
    match (shown.is_empty(), count.saturating_sub(shown.len())) {
        (true, _) => "gone before it could be named".to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::WaitedFor;

    fn outcome(leftover_count: usize, names: &[&str]) -> Outcome {
        let leftovers = (4312..).zip(names).map(|(pid, name)| Ended { pid, name: (*name).to_owned() }).collect();
        Outcome {
            exit: Exit::Code(0),
            wall: Duration::from_millis(12_340),
            lasted: Duration::from_millis(12_340),
            timed_out: false,
            cut_short: false,
            stopped: None,
            leftovers,
            leftover_count,
            usage: Usage {
                cpu_usec: Some(88_100_000),
                user_usec: Some(80_000_000),
                system_usec: Some(8_100_000),
                memory_peak_bytes: Some(3 << 30),
                read_bytes: Some(0),
                written_bytes: Some(20 << 20),
                ..Usage::default()
            },
            waited_for: WaitedFor::default(),
        }
    }

    #[test]
    fn leftovers_are_named_with_what_to_do_next_time() {
        let line = "killed 1 leftover process: redis-server (4312); start it before perflock to keep it, or use \
            --leftovers wait to hold the machine until it ends";
        assert_eq!(ended(&outcome(1, &["redis-server"]), "perflock"), Some(line.to_owned()));
        assert_eq!(ended(&outcome(0, &[]), "perflock"), None);
        let many = ended(&outcome(5000, &["a\x1b[2J", "b"]), "pls").unwrap();
        assert!(
            many.starts_with(
                "killed 5000 leftover processes: a\\u{1b}[2J (4312), b (4313) and 4998 more; start it before pls"
            ),
            "{many}"
        );
    }

    #[test]
    fn who_does_not_end_is_named_with_what_is_to_be_done() {
        let process = |pid, why| Stuck { pid, name: "dd\x1b".to_owned(), why };
        let line = "1 process was killed and does not end: dd\\u{1b} (7), in state D: waits in the kernel, for a disk or a \
            file system say, and cannot be interrupted; the machine is held until it does";
        assert_eq!(stuck(&[process(7, Why::InKernel)], 1), line);
        let frozen = |pid| process(pid, Why::Frozen("/f/a".into()));
        let line = "4 processes were killed and do not end: dd\\u{1b} (7), frozen by /f/a; dd\\u{1b} (8), frozen by /f/a; \
            dd\\u{1b} (9), in state R; and 1 more; the machine is held until they do; to let them end: echo THAWED > \
            /f/a/freezer.state";
        assert_eq!(stuck(&[frozen(7), frozen(8), process(9, Why::State('R'))], 4), line);
        let line = stuck(&[process(7, Why::Not(0))], 1);
        assert!(line.contains(" (7), runs as root, and is not yours to kill; the machine"), "{line}");
    }

    #[test]
    fn a_limit_is_blamed_for_what_it_did_alone() {
        let limits = Limits { memory_bytes: Some(512 << 20), processes: Some(200) };
        let said = |usage: Usage, limits| limits_reached(&Outcome { usage, ..outcome(0, &[]) }, limits);
        let at = Usage { memory_peak_bytes: Some(512 << 20), tasks_peak: Some(200), ..Usage::default() };
        let out_of_memory = |who: &str| {
            format!(
                "out of memory: the kernel killed {who} of the job, since that had reached its limit of 512M (--memory)"
            )
        };
        assert_eq!(said(Usage { oom_kills: Some(1), ..at }, limits), [out_of_memory("1 process")]);
        assert_eq!(said(Usage { oom_kills: Some(3), ..at }, limits), [out_of_memory("3 processes")]);
        let refused = "warning: 37 forks were refused by the job's limit of 200 processes, threads included; --pids N allows \
            more, --pids none any number";
        assert_eq!(said(Usage { forks_refused: Some(37), ..at }, limits), [refused]);
        let elsewhere = Usage {
            memory_peak_bytes: Some(1 << 20),
            tasks_peak: Some(3),
            oom_kills: Some(1),
            forks_refused: Some(1),
            ..at
        };
        let machine = "out of memory: the kernel killed 1 process of the job, since the machine, or a group above the job's, had no \
            memory left: it had not reached its limit of 512M";
        assert_eq!(said(elsewhere, limits), [machine]);
        assert_eq!(said(Usage { oom_kills: Some(0), forks_refused: Some(0), ..at }, limits), [] as [&str; 0]);
        assert_eq!(said(elsewhere, Limits::default()), [] as [&str; 0]);
    }

    #[test]
    fn the_last_line_tells_time_cpu_and_wait() {
        let line = usage(&outcome(0, &[]), Duration::from_secs(90));
        let expected = "took 12.34s, used 1m 28.1s of CPU time (714% of a core; user 1m 20.0s, system 8.100s), 3.0G of memory at \
            most, wrote 20.0M, after waiting 1m 30s";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_last_line_tells_what_went_wrong_and_what_is_not_known() {
        let waited_for = WaitedFor { user_usec: 2_000_000, largest_process_bytes: 300 << 20, ..WaitedFor::default() };
        let unknown = Outcome { usage: Usage::default(), exit: Exit::Signal(9), waited_for, ..outcome(0, &[]) };
        let expected = "died of signal 9 (SIGKILL) after 12.34s, used at least 2.000s of CPU time (no job group to count it all), \
            largest process 300M";
        assert_eq!(usage(&unknown, Duration::ZERO), expected);
        let failed = Outcome { exit: Exit::Code(3), ..outcome(0, &[]) };
        assert!(usage(&failed, Duration::ZERO).starts_with("exited with code 3 after 12.34s, used "));
    }
}
