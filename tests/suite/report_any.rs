//! Any report, also one that only a broken kernel or a liar would cause.

use std::path::Path;
use std::time::{Duration, SystemTime};

use perflock::cgroup::Usage;
use perflock::child::{Exit, WaitedFor};
use perflock::escape::{Escaped, Possible};
use perflock::job::Mode;
use perflock::report::document::{End, Leftovers, Neighbour, Person, Process, Reason, Report, Waited};
use perflock::report::full;
use perflock::verdict::apart::{Figures, Range};
use perflock::verdict::{Culprit, Kind, Program, Verdict, Word};
use proptest::prelude::*;

/// What people write, often as short as it gets and of what looks like nothing or like one of our own signs.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[-:;,\"'\\\\ \n\t\u{a0}\u{85}\u{2028}\u{200e}\u{3000}]{0,2}"]
}

fn person() -> impl Strategy<Value = Option<Person>> {
    proptest::option::of((any::<u32>(), words()).prop_map(|(uid, name)| Person { uid, name }))
}

fn neighbours() -> impl Strategy<Value = Vec<Neighbour>> {
    let mode = prop_oneof![Just(Mode::Exclusive), Just(Mode::Shared)];
    let parts = (any::<Option<u64>>(), any::<i32>(), person(), mode, proptest::collection::vec(words(), 0..4));
    let one = parts.prop_map(|(number, pid, user, mode, command)| Neighbour { number, pid, user, mode, command });
    proptest::collection::vec(one, 0..6)
}

fn escaped() -> impl Strategy<Value = Option<Vec<Escaped>>> {
    let one = (
        any::<i32>(),
        words(),
        proptest::collection::vec(words(), 0..3),
        proptest::option::of(words()),
        proptest::option::of(words()),
    );
    let one = one.prop_map(|(pid, name, command, unit, group)| Escaped { pid, name, command, unit, group });
    proptest::option::of(proptest::collection::vec(one, 0..7))
}

fn possible() -> impl Strategy<Value = Option<Vec<Possible>>> {
    let one = (
        words(),
        proptest::option::of(words()),
        any::<bool>(),
        1usize..,
        any::<i32>(),
        proptest::collection::vec(words(), 0..3),
        counter(),
    );
    let one = one.prop_map(|(group, unit, container, processes, pid, command, cpu_usec)| Possible {
        group,
        unit,
        container,
        processes,
        pid,
        command,
        cpu_usec,
    });
    proptest::option::of(proptest::collection::vec(one, 0..7))
}

fn processes() -> impl Strategy<Value = Vec<Process>> {
    let one = (any::<i32>(), words()).prop_map(|(pid, name)| Process { pid, name });
    proptest::collection::vec(one, 0..7)
}

/// Counters that are not known, nothing, plausible, and what only a broken kernel would say.
fn counter() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        Just(None),
        Just(Some(0)),
        (0..10_000_000_u64).prop_map(Some),
        any::<u64>().prop_map(Some),
        Just(Some(u64::MAX))
    ]
}

fn usage() -> impl Strategy<Value = Usage> {
    proptest::array::uniform12(counter()).prop_map(|n| Usage {
        cpu_usec: n[0],
        user_usec: n[1],
        throttled_usec: n[2],
        cpu_stall_usec: n[3],
        memory_peak_bytes: n[4],
        memory_file_bytes: n[5],
        swap_bytes: n[6],
        oom_kills: n[7],
        tasks_peak: n[8],
        read_bytes: n[9],
        faults: n[10],
        io_stall_usec: n[11],
        ..Usage::default()
    })
}

fn waited_for() -> impl Strategy<Value = Option<WaitedFor>> {
    let numbers = proptest::array::uniform4(counter());
    proptest::option::of(numbers.prop_map(|n| WaitedFor {
        user_usec: n[0].unwrap_or(0),
        system_usec: n[1].unwrap_or(0),
        largest_process_bytes: n[2].unwrap_or(0),
        faults: n[3].unwrap_or(0),
        ..WaitedFor::default()
    }))
}

fn end_of_a_run() -> impl Strategy<Value = End> {
    let reason = proptest::sample::select(vec![
        Reason::Exited,
        Reason::Signal,
        Reason::TimeLimit,
        Reason::OutOfMemory,
        Reason::Cancelled,
        Reason::Killed,
        Reason::Stopped,
        Reason::SupervisorLost,
        Reason::LockNotObtained,
        Reason::Failed,
    ]);
    let parts = (reason, any::<Option<i32>>(), any::<Option<i32>>(), person(), proptest::option::of(words()));
    parts.prop_map(|(reason, code, signal, cancelled_by, error)| match reason {
        Reason::Exited => End::by_itself(Exit::Code(code.unwrap_or(0))),
        Reason::Signal => End::by_itself(Exit::Signal(signal.unwrap_or(0))),
        reason => End { reason, code, signal, cancelled_by, error },
    })
}

/// On the heap: the stack of a test is small for all that a report is made of.
fn verdict() -> BoxedStrategy<Option<Verdict>> {
    let program = (words(), any::<u64>(), any::<bool>());
    let program = program.prop_map(|(name, cpu_usec, at_most)| Program { name, cpu_usec, at_most });
    let kind = proptest::sample::select(vec![Kind::User, Kind::Service, Kind::Container]);
    let programs = proptest::collection::vec(program, 0..4);
    let culprit = (words(), kind, any::<Option<u32>>(), proptest::option::of(words()), any::<u64>(), programs);
    let culprit = culprit.prop_map(|(name, kind, uid, group, cpu_usec, programs)| Culprit {
        name,
        kind,
        uid,
        group,
        cpu_usec,
        programs,
    });
    let figures = proptest::array::uniform6(counter()).prop_map(|n| Figures {
        kernel_threads_usec: n[0],
        steal_usec: n[1],
        interrupts_usec: n[2],
        throttled: n[3],
        swapped_in_pages: n[4],
        swapped_out_pages: n[5],
        frequency_khz: n[0].map(|least| Range { least, most: n[1].unwrap_or(0) }),
    });
    let word = proptest::sample::select(vec![Word::Quiet, Word::Disturbed, Word::Unknown]);
    let by = proptest::collection::vec(culprit, 0..4);
    let parts = (word, proptest::option::of(words()), counter(), by, proptest::option::of(figures));
    let one = parts.prop_map(|(word, why, elsewhere_usec, by, apart)| Verdict { word, why, elsewhere_usec, by, apart });
    proptest::option::of(one).boxed()
}

fn any_report() -> impl Strategy<Value = Report> {
    let words = (
        proptest::collection::vec(words(), 0..4),
        proptest::option::of(words()),
        proptest::option::of(words()),
        any::<bool>(),
    );
    let times = (
        counter(),
        counter(),
        any::<u64>(),
        any::<usize>(),
        proptest::option::of(prop_oneof![0.0..1e9, Just(f64::NAN)]),
    );
    let others = (neighbours(), neighbours(), processes(), escaped(), any::<usize>(), possible());
    (words, times, others, (usage(), verdict()), waited_for(), end_of_a_run()).prop_map(
        |(words, times, others, (usage, verdict), waited_for, exit)| {
            let mode = if words.3 { Mode::Shared } else { Mode::Exclusive };
            let mut report = Report::new(words.0, mode, Path::new("/lock").to_owned(), SystemTime::UNIX_EPOCH);
            (report.message, report.inside) = (words.1, words.2);
            (report.held_usec, report.wall_usec, report.cpu_average_percent) = (times.0, times.1, times.4);
            report.waited = Waited { time: Duration::from_micros(times.2), ahead: times.3, behind: others.0 };
            report.shared_with = others.1;
            report.leftovers = Some(Leftovers { count: others.4, named: others.2 });
            report.possible_escapes = others.5;
            report.verdict = verdict;
            (report.escaped, report.usage, report.waited_for, report.exit) = (others.3, usage, waited_for, exit);
            report.notes = full::notes(&report);
            report
        },
    )
}

#[test]
fn any_report_is_a_harmless_block_and_a_document_of_its_schema() {
    let schema = serde_json::from_str(&crate::harness::source("config/report.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) };
    proptest!(config, |(report in any_report())| {
        let text = full::text(&report);
        let mut lines = text.split('\n');
        prop_assert!(lines.next().unwrap().starts_with("report of job: "));
        for line in lines {
            prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            let (name, value) = line.strip_prefix("  ").unwrap().split_at_checked(18).unwrap();
            prop_assert!(name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.ends_with(' '), "{line:?}");
            // A message is not ours, and may well be `-`; a value that is not known has no line.
            prop_assert!(!value.trim().is_empty() && (value != "-" || name.trim() == "message"), "{line:?}");
        }
        let json = report.json();
        let one_line = json.lines().count() == 1 && json.ends_with('\n');
        prop_assert!(one_line);
        let document = serde_json::from_str(&json).unwrap();
        let mut errors = validator.iter_errors(&document).map(|error| error.to_string());
        prop_assert_eq!(errors.next(), None);
    });
}
