//! The full report for a person: pure functions from a [`Report`] to lines.

use std::time::Duration;

use super::document::{End, Neighbour, Reason, Report};
use super::escapes;
use super::facts::{self, Fact, UNKNOWN};
use super::{forks_refused, some, why_killed};
use crate::child::WaitedFor;
use crate::job::Mode;
use crate::machine::Machine;
use crate::pin::{Partition, Strength};
use crate::text;
use crate::verdict::{Verdict, Word};

/// Only processes that were waited for were counted.
const AT_LEAST: &str = "at least ";

/// How many neighbours are named in a line.
const NAMED: usize = 3;

/// How much of another job's command line stands in a line.
const COMMAND_COLUMNS: usize = 40;

/// The report, several lines.
pub fn text(report: &Report) -> String {
    let number = report.number.map(|number| format!(" {number}")).unwrap_or_default();
    let title = format!("report of job{number}: {}\n", text::command_line(&report.command));
    let lines = lines(report);
    let partly = lines.iter().any(|(_, value)| value.starts_with(AT_LEAST)).then(|| {
        (
            "note",
            "at least: counted are processes that were waited for, since the job's group keeps no such count here"
                .to_owned(),
        )
    });
    let (unknown, known): (Vec<Fact>, Vec<Fact>) = lines.into_iter().partition(|(_, value)| value == UNKNOWN);
    let unknown: Vec<&str> = unknown.iter().map(|&(name, _)| name).collect();
    let unknown = (!unknown.is_empty()).then(|| ("not counted", unknown.join(", ")));
    let notes = report.notes.iter().map(|note| ("note", note.clone()));
    // Whatever it says, it is no value of ours.
    let message = report.message.iter().map(|message| ("message", text::escape(message)));
    let lines: Vec<Fact> = message
        .filter(|(_, text)| !text.trim().is_empty())
        .chain(known)
        .chain(unknown)
        .chain(notes)
        .chain(partly)
        .collect();
    title + facts::block(&lines, 2).trim_end()
}

fn lines(report: &Report) -> Vec<Fact> {
    let usage = &report.usage;
    let mut lines = vec![
        ("ended", ended(&report.exit, &why_killed(&report.usage, report.limits.limits()))),
        ("took", facts::known(facts::time(report.wall_usec))),
        ("held", facts::known(report.held_usec.map(|usec| held(report, usec)))),
        ("waited", waited(report)),
    ];
    lines.extend(report.verdict.iter().flat_map(quiet));
    let waited_for = report.waited_for.as_ref();
    let mut cpu = facts::cpu(usage);
    if let Some(percent) = report.cpu_average_percent {
        cpu[0].1.push_str(&format!(": {percent:.0}% of a core"));
    }
    let [time, awaited @ ..] = &mut cpu[..] else { return lines };
    lines.push(or_at_least(time.clone(), waited_for.and_then(|used| facts::time(Some(used.cpu_usec())))));
    lines.extend_from_slice(awaited);
    lines.extend(memory(report));
    lines.extend(facts::limits(report.limits.limits()));
    let faults = |faults, major| facts::with_parts(facts::number(faults), &[("from disk", facts::number(major))]);
    lines.push(or_at_least(
        ("page faults", faults(usage.faults, usage.major_faults)),
        waited_for.map(|used| faults(Some(used.faults), Some(used.major_faults))),
    ));
    let switches =
        |used: &WaitedFor| format!("{} voluntary, {} involuntary", used.voluntary_switches, used.involuntary_switches);
    // No group counts them.
    lines.push(or_at_least(("context switches", UNKNOWN.to_owned()), waited_for.map(switches)));
    lines.push(("processes", facts::known(usage.tasks_peak.map(|peak| format!("{peak} at most, threads included")))));
    let moved = [waited_for.map(|used| used.read_bytes), waited_for.map(|used| used.written_bytes), None];
    let disk = facts::disk(usage).into_iter().zip(moved);
    lines.extend(disk.map(|(fact, bytes)| or_at_least(fact, facts::bytes(bytes))));
    lines.push(("leftovers", facts::known(report.leftovers.as_ref().map(|left| many(left.count, &left.named)))));
    let seen = |listed: String| if listed.is_empty() { "none seen".to_owned() } else { listed };
    lines.push(("escaped", facts::known(report.escaped.as_deref().map(escapes::escaped).map(seen))));
    lines.push(("possibly escaped", facts::known(report.possible_escapes.as_deref().map(escapes::possible).map(seen))));
    lines.push(("pins", pins(report)));
    lines.push(("group", facts::known(report.tracking.map(tracking))));
    lines.push(("machine", machine(&report.machine)));
    lines
}

/// What the group counted; where it has no count, what is known of processes that were waited for.
fn or_at_least(fact: Fact, value: Option<String>) -> Fact {
    match (&*fact.1, value) {
        (UNKNOWN, Some(value)) => (fact.0, format!("{AT_LEAST}{value}")),
        _ => fact,
    }
}

/// `exited with code 0`, `ended by the time limit; died of signal 15 (SIGTERM)`.
fn ended(end: &End, why_killed: &str) -> String {
    let how = match (end.code, end.signal) {
        (Some(code), _) => format!("exited with code {code}"),
        (_, Some(signal)) => format!("died of {}", signal_name(signal)),
        _ => String::new(),
    };
    let why = match end.reason {
        Reason::Exited | Reason::Signal => None,
        Reason::TimeLimit => Some("ended by the time limit".to_owned()),
        Reason::OutOfMemory => Some(match &end.error {
            Some(error) => format!("not run: {}", text::escape(error)),
            None => format!("out of memory: the kernel killed a process of it, {why_killed}"),
        }),
        Reason::Cancelled => Some(match &end.cancelled_by {
            Some(by) => format!("cancelled by {}", text::escape(&by.name)),
            None => "cancelled".to_owned(),
        }),
        Reason::Killed => Some("killed by a second TERM to perflock".to_owned()),
        Reason::Stopped => Some("stopped by systemd".to_owned()),
        Reason::SupervisorLost => Some("perflock was killed; its guard ended the job".to_owned()),
        Reason::LockNotObtained => Some("it never got the machine".to_owned()),
        Reason::Failed => Some(match &end.error {
            Some(error) => format!("not run: {}", text::escape(error)),
            None => "not run".to_owned(),
        }),
    };
    let parts: Vec<String> = why.into_iter().chain(Some(how).filter(|how| !how.is_empty())).collect();
    parts.join("; ")
}

/// `signal 9 (SIGKILL)`; a real-time signal has no name.
pub fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(named) => format!("signal {signal} ({})", named.as_str()),
        Err(_) => format!("signal {signal}"),
    }
}

fn held(report: &Report, usec: u64) -> String {
    let with = match (report.mode, report.shared_with.is_empty()) {
        _ if report.inside.is_some() => inside(report),
        (Mode::Exclusive, _) => "alone".to_owned(),
        (Mode::Shared, true) => "no other job was seen beside it".to_owned(),
        (Mode::Shared, false) => format!("beside {}", neighbours(&report.shared_with)),
    };
    format!("{} {}, {with}", text::measured(Duration::from_micros(usec)), report.mode)
}

/// Whether the machine was quiet, and what is shown apart.
fn quiet(verdict: &Verdict) -> Vec<Fact> {
    let elsewhere = facts::time(verdict.elsewhere_usec).filter(|_| verdict.word == Word::Quiet);
    let elsewhere = elsewhere.map(|time| format!("{time} of CPU time elsewhere"));
    let was = facts::with_parts(Some(verdict.told()), &[("but for", elsewhere)]);
    let apart = verdict.apart.as_ref().map(|apart| {
        let pages = |pages: Option<u64>| pages.map(|pages| some(pages, "page"));
        let ghz = |khz: u64| format!("{:.2}", khz as f64 / 1e6);
        let parts = [
            ("kernel threads", facts::time(apart.kernel_threads_usec)),
            ("interrupts", facts::time(apart.interrupts_usec)),
            ("taken by the host", facts::time(apart.steal_usec)),
            ("too hot", apart.throttled.map(|count| some(count, "time"))),
            ("swapped in", pages(apart.swapped_in_pages)),
            ("swapped out", pages(apart.swapped_out_pages)),
            ("at the end", apart.frequency_khz.map(|it| format!("{} to {} GHz", ghz(it.least), ghz(it.most)))),
        ];
        let told = parts.iter().filter_map(|(name, value)| value.as_ref().map(|value| format!("{name} {value}")));
        ("beside it", told.collect::<Vec<_>>().join(", "))
    });
    [("machine was", was)].into_iter().chain(apart.filter(|(_, told)| !told.is_empty())).collect()
}

/// The job's number begins its identity.
fn inside(report: &Report) -> String {
    let outer = report.inside.as_deref().unwrap_or_default();
    let number = outer.split('-').next().unwrap_or_default();
    format!("inside job {}, which had the machine", text::escape(number))
}

fn waited(report: &Report) -> String {
    let waited = &report.waited;
    // Joining may have taken its time, with the queue locked by somebody.
    if waited.behind.is_empty() && waited.ahead == 0 && waited.time < super::NOTABLE_WAIT {
        return "not at all".to_owned();
    }
    let mut line = text::measured(waited.time);
    if waited.ahead > 0 {
        line.push_str(&format!(" behind {}", text::count(waited.ahead, "job")));
    }
    if !waited.behind.is_empty() {
        line.push_str(&format!("; {}", neighbours(&waited.behind)));
    }
    line
}

/// `ann's make check (exclusive), bob's ./run (shared) and 2 more`.
fn neighbours(neighbours: &[Neighbour]) -> String {
    let one = |neighbour: &Neighbour| {
        let user = neighbour.user.as_ref().map_or_else(|| "somebody".to_owned(), |user| text::escape(&user.name));
        let command = text::cut(&text::command_line(&neighbour.command), COMMAND_COLUMNS);
        let how = if neighbour.number.is_some() { "" } else { ", by flock" };
        if command.is_empty() {
            return format!("process {}, which ended ({}{how})", neighbour.pid, neighbour.mode);
        }
        format!("{user}'s {command} ({}{how})", neighbour.mode)
    };
    text::listed(neighbours, NAMED, one)
}

fn memory(report: &Report) -> Vec<Fact> {
    let usage = &report.usage;
    let largest = report.waited_for.and_then(|used| facts::bytes(Some(used.largest_process_bytes)));
    let parts =
        [("page cache at the end", facts::bytes(usage.memory_file_bytes)), ("largest process", largest.clone())];
    let memory = match (usage.memory_peak_bytes, largest) {
        (None, Some(largest)) => format!("largest process {largest}"),
        (peak, _) => facts::with_parts(peak.map(|peak| format!("{} at most", text::bytes(peak))), &parts),
    };
    vec![
        ("memory", memory),
        ("memory awaited", facts::known(facts::time(usage.memory_stall_usec))),
        ("out of memory", facts::known(usage.oom_kills.map(|kills| some(kills, "process")))),
    ]
}

fn many(count: usize, named: &[super::document::Process]) -> String {
    if count == 0 {
        return "none".to_owned();
    }
    let shown: Vec<String> =
        named.iter().map(|process| format!("{} ({})", text::escape(&process.name), process.pid)).collect();
    let names = if shown.is_empty() { "gone before it could be named".to_owned() } else { shown.join(", ") };
    let more = count.saturating_sub(shown.len().max(1));
    if more == 0 { format!("{count}: {names}") } else { format!("{count}: {names} and {more} more") }
}

fn pins(report: &Report) -> String {
    let pins = &report.pins;
    let who = match pins.strength {
        None => "none by perflock",
        Some(Strength::Hard) => "hard, by a cpuset",
        Some(Strength::Soft) => "soft, by affinity, which it could change",
    };
    let cpus = pins.cpus.as_ref().map(|cpus| format!("; cpus {cpus}"));
    let nodes = pins.memory_nodes.as_ref().map(|nodes| format!(", memory nodes {nodes}"));
    let reserved = pins.reserved.as_ref().map(|cpus| format!("; cores of its own: cpus {cpus}"));
    let partition = pins.partition.map(|partition| match partition {
        Partition::Isolated => "; isolated".to_owned(),
        Partition::Root => "; nobody else on them".to_owned(),
    });
    let moved = pins.moved_to.as_ref().map(|cpus| {
        let how = if pins.strength == Some(Strength::Hard) { "others changed" } else { "it changed" };
        format!("; {how} that, and it could run on cpus {cpus} too")
    });
    [Some(who.to_owned()), cpus, nodes, reserved, partition, moved].into_iter().flatten().collect()
}

fn tracking(backend: &'static str) -> String {
    match backend {
        "scope" => "a cgroup in a systemd scope".to_owned(),
        "v2" => "a cgroup of its own".to_owned(),
        "v1" => "a cgroup of its own in cgroup v1".to_owned(),
        _ => "none: found by descent and a marker, so some processes may have been missed".to_owned(),
    }
}

fn machine(machine: &Machine) -> String {
    let switch = |name: &str, on: Option<bool>| on.map(|on| format!("{name} {}", if on { "on" } else { "off" }));
    let named = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {value}"));
    let swap = machine.swap_bytes.map(|total| match machine.swap_used_bytes {
        _ if total == 0 => "no swap".to_owned(),
        Some(used) => format!("swap {} of {} used", text::bytes(used), text::bytes(total)),
        None => format!("swap {}", text::bytes(total)),
    });
    let parts = [
        machine.host.clone(),
        machine.kernel.clone(),
        machine.cpu_model.clone(),
        named("cpus", &machine.cpus_online),
        machine.memory_bytes.map(text::bytes),
        named("governor", &machine.governor),
        switch("turbo", machine.turbo),
        switch("SMT", machine.smt),
        named("THP", &machine.transparent_huge_pages),
        machine.aslr.map(|aslr| format!("ASLR {aslr}")),
        swap,
    ];
    let known: Vec<String> = parts.into_iter().flatten().map(|part| text::escape(&part)).collect();
    if known.is_empty() { UNKNOWN.to_owned() } else { known.join(", ") }
}

/// What surprises in the numbers, and why it is so.
pub fn notes(report: &Report) -> Vec<String> {
    let usage = &report.usage;
    let wall_usec = report.wall_usec.unwrap_or(0);
    let cached = usage.memory_peak_bytes.zip(usage.memory_file_bytes).filter(|&(peak, file)| file > peak / 4);
    let unseen = usage.cpu_usec.zip(report.waited_for).map(|(cpu, waited)| (cpu, waited.cpu_usec()));
    let unseen = unseen.filter(|&(cpu, waited)| cpu > 10_000 && waited < cpu - cpu / 20);
    let lingered = report.lingered_usec.filter(|&usec| usec > 1_000_000);
    let prepared =
        report.held_usec.map(|held| held.saturating_sub(wall_usec.saturating_add(report.lingered_usec.unwrap_or(0))));
    let prepared = prepared.filter(|&usec| wall_usec > 0 && usec > 1_000_000);
    let queued = usage.cpu_stall_usec.filter(|&stall| wall_usec > 0 && stall > wall_usec / 10);
    let held_back = usage.throttled_usec.filter(|&usec| usec > 0);
    let killed = usage.oom_kills.filter(|&kills| kills > 0 && report.exit.reason != Reason::OutOfMemory);
    let time = |usec| text::measured(Duration::from_micros(usec));
    [
        cached.map(|(_, file)| {
            format!(
                "memory counts the page cache of files that it read and wrote ({} at the end); the kernel takes that back when \
                 others need it",
                text::bytes(file)
            )
        }),
        unseen.map(|(_, waited)| {
            format!(
                "time(1) would tell {} of CPU time: it does not see processes that nobody waited for",
                time(waited)
            )
        }),
        prepared.map(|usec| format!("it had the machine {} before the command ran: making the job's group took that long", time(usec))),
        lingered.map(|usec| {
            format!("it had the machine {} longer than the command ran, for what the command left", time(usec))
        }),
        queued.map(|stall| {
            format!("for {} some process of it waited for a CPU: it, or others beside it, had more to run at once than there are", time(stall))
        }),
        held_back.map(|usec| format!("a CPU limit on its group, or one above, held it back for {}", time(usec))),
        killed.map(|kills| {
            let count = some(kills, "process");
            match report.limits.memory_bytes {
                Some(_) => format!("{count} of it killed by the kernel, {}", why_killed(usage, report.limits.limits())),
                None => format!("{count} of it killed by the kernel, since the group or the machine had no memory left"),
            }
        }),
        usage.forks_refused.filter(|&refused| refused > 0).map(|refused| {
            forks_refused(refused, "its", usage, report.limits.limits())
        }),
        report.limits.not_in_force.as_ref().map(|why| format!("it was {}", text::escape(why))),
        report.pins.offline.as_ref().map(|cpus| format!("cpus {cpus} of its pin were offline at its end: it had fewer")),
        (usage.swap_bytes.unwrap_or(0) > 0).then(|| "some of its memory was swapped out".to_owned()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::document::{Leftovers, Person, Pins, Process, Waited};
    use super::*;
    use crate::lock::record::Pinned;
    use std::time::SystemTime;

    fn report() -> Report {
        let neighbour = |number, name: &str, command: &str| Neighbour {
            number,
            pid: 7,
            user: Some(Person { uid: 7, name: name.to_owned() }),
            mode: Mode::Exclusive,
            command: vec![command.to_owned()],
        };
        let behind = vec![neighbour(Some(3), "ann", "make"), neighbour(None, "b\x1b[2Jb", "x\ny")];
        let command = vec!["make".to_owned(), "bench".to_owned()];
        let mut report = Report::new(command, Mode::Exclusive, "/run/perflock".into(), SystemTime::UNIX_EPOCH);
        report.number = Some(4);
        report.waited = Waited { time: Duration::from_secs(90), ahead: 2, behind };
        report.held_usec = Some(15_000_000);
        report.wall_usec = Some(12_340_000);
        report.lingered_usec = Some(2_660_000);
        report.exit = End::by_itself(crate::child::Exit::Code(0));
        report.cpu_average_percent = Some(714.0);
        report.usage.cpu_usec = Some(88_100_000);
        report.usage.memory_peak_bytes = Some(3 << 30);
        report.usage.memory_file_bytes = Some(2 << 30);
        report.waited_for = Some(WaitedFor { user_usec: 60_000_000, faults: 7, ..WaitedFor::default() });
        report.tracking = Some("v2");
        report.leftovers = Some(Leftovers { count: 9, named: vec![Process { pid: 12, name: "a\tb".to_owned() }] });
        (report.escaped, report.possible_escapes) = (Some(Vec::new()), Some(Vec::new()));
        report.pins.cpus = Some("0-7".to_owned());
        report.machine.turbo = Some(true);
        report.notes = notes(&report);
        report
    }

    #[test]
    fn a_report_reads_like_this() {
        let expected = r"report of job 4: make bench
  ended             exited with code 0
  took              12.34s
  held              15.00s exclusive, alone
  waited            1m 30.0s behind 2 jobs; ann's make (exclusive), b\u{1b}[2Jb's 'x\ny' (exclusive, by flock)
  CPU time          1m 28.1s: 714% of a core
  memory            3.0G at most (page cache at the end 2.0G, largest process 0B)
  page faults       at least 7 (from disk 0)
  context switches  at least 0 voluntary, 0 involuntary
  read              at least 0B
  written           at least 0B
  leftovers         9: a\tb (12) and 8 more
  escaped           none seen
  possibly escaped  none seen
  pins              none by perflock; cpus 0-7
  group             a cgroup of its own
  machine           turbo on
  not counted       CPU held back, CPU awaited, memory awaited, out of memory, processes, disk awaited
  note              memory counts the page cache of files that it read and wrote (2.0G at the end); the kernel takes that back when others need it
  note              time(1) would tell 1m 0.0s of CPU time: it does not see processes that nobody waited for
  note              it had the machine 2.660s longer than the command ran, for what the command left
  note              at least: counted are processes that were waited for, since the job's group keeps no such count here";
        assert_eq!(text(&report()), expected);
    }

    #[test]
    fn a_pin_reads_like_this() {
        let list = |text: &str| text.parse().unwrap();
        let pin = |pinned: Pinned, reserved: Option<&str>| {
            let mut report = report();
            report.pins = Pins::by_perflock(&pinned, reserved.map(list).as_ref());
            report
        };
        let soft = Pinned { cpus: list("0-1"), memory_nodes: list("0"), strength: Strength::Soft, partition: None };
        let mut moved = pin(soft.clone(), None);
        (moved.pins.moved_to, moved.pins.offline) = (Some(list("2-7")), Some(list("1")));
        assert_eq!(
            pins(&moved),
            "soft, by affinity, which it could change; cpus 0-1, memory nodes 0; it changed that, and it could run on cpus 2-7 too"
        );
        assert_eq!(notes(&moved).last().unwrap(), "cpus 1 of its pin were offline at its end: it had fewer");
        let hard = Pinned { strength: Strength::Hard, partition: Some(Partition::Isolated), ..soft };
        assert_eq!(
            pins(&pin(hard, Some("0-1,4-5"))),
            "hard, by a cpuset; cpus 0-1, memory nodes 0; cores of its own: cpus 0-1,4-5; isolated"
        );
    }

    #[test]
    fn numbers_that_do_not_surprise_are_not_explained() {
        let mut plain = report();
        (plain.held_usec, plain.lingered_usec) = (plain.wall_usec, Some(0));
        plain.usage.memory_file_bytes = Some(1 << 20);
        plain.waited_for = Some(WaitedFor { user_usec: 88_000_000, ..WaitedFor::default() });
        assert_eq!(notes(&plain), [] as [String; 0]);
    }

    #[test]
    fn a_reason_and_how_the_command_ended_are_both_told() {
        let end = |reason, exit| ended(&End { reason, ..End::by_itself(exit) }, "");
        use crate::child::Exit;
        assert_eq!(end(Reason::TimeLimit, Exit::Signal(15)), "ended by the time limit; died of signal 15 (SIGTERM)");
        assert_eq!(end(Reason::Signal, Exit::Signal(34)), "died of signal 34");
        let failed = End { error: Some("no\nsuch".to_owned()), ..End::because(Reason::Failed) };
        assert_eq!(ended(&failed, ""), r"not run: no\nsuch");
        let cancelled =
            End { cancelled_by: Some(Person { uid: 7, name: "ann".to_owned() }), ..End::because(Reason::Cancelled) };
        assert_eq!(ended(&cancelled, ""), "cancelled by ann");
    }
}
