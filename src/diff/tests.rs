//! Reports with one thing after the other changed in them, and any JSON at all.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::fields::FIELDS;
use super::{Comparison, compare, read, view};

/// A report as perflock writes it, of a run of 12.34 s, with everything told.
fn report() -> Value {
    serde_json::from_str(REPORT).unwrap()
}

const REPORT: &str = r#"{
    "version": 1, "perflock": "0.1.0", "command": ["make", "bench"], "message": "nightly",
    "user": {"uid": 7, "name": "ann"}, "mode": "exclusive", "lock": "/run/perflock", "number": 4, "job": "4-1-2",
    "inside": null, "started": "2026-11-23T08:12:07.000Z", "waited_usec": 0, "jobs_ahead": 0, "waited_behind": [],
    "held_usec": 12400000, "wall_usec": 12340000, "lingered_usec": 0,
    "exit": {"reason": "exited", "code": 0, "signal": null, "cancelled_by": null, "error": null},
    "usage": {
        "cpu_usec": 88100000, "memory_peak_bytes": 3221225472, "throttled_usec": 0, "cpu_stall_usec": 40000,
        "memory_stall_usec": 0, "io_stall_usec": 0, "read_bytes": 0, "major_faults": 0, "oom_kills": 0,
        "forks_refused": 0
    },
    "waited_for": {"user_usec": 80000000, "system_usec": 8000000, "largest_process_bytes": 1073741824},
    "tracking": "v2", "leftovers": {"count": 0, "named": []}, "escaped": [], "possible_escapes": [],
    "pins": {
        "by": null, "strength": null, "cpus": "0-7", "memory_nodes": "0", "reserved": null, "partition": null,
        "moved_to": null, "offline": null
    },
    "limits": {"memory_bytes": null, "processes": null, "not_in_force": null},
    "shared_with": [],
    "machine": {
        "host": "atlas", "kernel": "Linux 6.1.0", "cpu_model": "EPYC", "cpus_online": "0-7",
        "governor": "performance", "turbo": false, "smt": true, "transparent_huge_pages": "madvise", "aslr": 2,
        "memory_bytes": 68719476736, "swap_bytes": 0, "swap_used_bytes": 0
    },
    "verdict": {
        "word": "quiet", "why": null, "elsewhere_usec": 20000, "by": [],
        "apart": {
            "kernel_threads_usec": 10000, "steal_usec": 0, "interrupts_usec": 5000, "throttled": 0,
            "swapped_in_pages": 0, "swapped_out_pages": 0, "frequency_khz": {"least": 2900000, "most": 3000000}
        }
    },
    "notes": [], "sources": {}
}"#;

/// The report with other values at some places.
fn with(changes: &[(&str, Value)]) -> Value {
    let mut report = report();
    for (pointer, value) in changes {
        *report.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone();
    }
    report
}

/// What differs, as `what: first -> second`.
fn differing(comparison: &Comparison) -> Vec<String> {
    let told = |told: &Option<String>| told.clone().unwrap_or_else(|| "?".to_owned());
    let one = |difference: &super::Difference| {
        format!("{}: {} -> {}", difference.what, told(&difference.first), told(&difference.second))
    };
    comparison.differences.iter().map(one).collect()
}

const FILES: [&str; 2] = ["monday.json", "today.json"];

fn shown(comparison: &Comparison, width: Option<u16>) -> String {
    view::text(&FILES.map(str::to_owned), comparison, width)
}

fn culprit(name: &str, cpu_usec: u64, program: &str) -> Value {
    json!({
        "name": name, "kind": "user", "uid": 1000, "group": null, "cpu_usec": cpu_usec,
        "programs": [{"name": program, "cpu_usec": cpu_usec, "at_most": false}]
    })
}

fn neighbour(name: &str, pid: u32, command: &str) -> Value {
    json!({"number": 3, "pid": pid, "user": {"uid": 7, "name": name}, "mode": "shared", "command": [command]})
}

#[test]
fn a_slower_day_reads_like_this() {
    let today = with(&[
        ("/wall_usec", json!(13_080_000)),
        ("/waited_usec", json!(90_000_000)),
        ("/exit", json!({"reason": "time-limit", "code": null, "signal": 15})),
        ("/verdict/word", json!("disturbed")),
        ("/verdict/by", json!([culprit("bob", 3_100_000, "cc1plus")])),
        ("/verdict/elsewhere_usec", json!(3_300_000)),
        ("/machine/governor", json!("powersave")),
        ("/machine/turbo", json!(true)),
        ("/pins/cpus", json!("0-3")),
        ("/machine/aslr", Value::Null),
    ]);
    let comparison = compare(&with(&[("/machine/aslr", Value::Null)]), &today);
    let expected = "\
wall         12.34s -> 13.08s (+6.0%)
CPU time     1m 28.1s -> 1m 28.1s (+0.0%)
waited       0.000s -> 1m 30.0s
held         12.40s -> 12.40s (+0.0%)
memory peak  3.0G -> 3.0G (+0.0%)
exit         code 0 -> time-limit, signal 15 (SIGTERM)

         WHAT           monday.json  today.json
others   verdict        quiet        disturbed by bob 3.100s (cc1plus)
         CPU elsewhere  0.020s       3.300s
machine  governor       performance  powersave
         turbo          off          on
pins     CPUs           0-7          0-3
not known of either: ASLR (machine)
";
    assert_eq!(shown(&comparison, None), expected);
}

#[test]
fn runs_under_the_same_conditions_say_so_however_long_they_took() {
    let other = with(&[
        ("/wall_usec", json!(24_000_000)),
        ("/usage/cpu_usec", json!(90_000_000)),
        ("/started", json!("2026-11-24T08:12:07.000Z")),
        ("/number", json!(9)),
        ("/message", Value::Null),
        // Too little to be felt.
        ("/usage/cpu_stall_usec", json!(140_000)),
        ("/verdict/apart/frequency_khz/least", json!(800_000)),
        ("/machine/swap_used_bytes", json!(60 << 20)),
    ]);
    let comparison = compare(&report(), &other);
    assert_eq!(differing(&comparison), [] as [&str; 0]);
    let text = shown(&comparison, None);
    assert!(text.ends_with("\n\nnothing else differs that the reports tell of\n"), "{text}");
    assert_eq!(view::differences(&FILES.map(str::to_owned), &comparison, None), "");
}

#[test]
fn each_condition_is_told_where_it_differs_and_nothing_else_is() {
    let cases: [(&str, Value, &str); 37] = [
        ("/command/1", json!("test one"), "command: make bench -> make 'test one'"),
        ("/user/name", json!("bob"), "user: ann -> bob"),
        ("/verdict/elsewhere_usec", json!(150_000), "CPU elsewhere: 0.020s -> 0.150s"),
        ("/machine/host", json!("titan"), "host: atlas -> titan"),
        ("/machine/cpu_model", json!("Xeon"), "CPU model: EPYC -> Xeon"),
        ("/machine/kernel", json!("Linux 6.2"), "kernel: Linux 6.1.0 -> Linux 6.2"),
        ("/machine/governor", json!("powersave"), "governor: performance -> powersave"),
        ("/machine/turbo", json!(true), "turbo: off -> on"),
        ("/machine/smt", json!(false), "SMT: on -> off"),
        ("/machine/cpus_online", json!("0-6"), "CPUs online: 0-7 -> 0-6"),
        ("/machine/transparent_huge_pages", json!("never"), "huge pages: madvise -> never"),
        ("/machine/aslr", json!(0), "ASLR: 2 -> 0"),
        ("/machine/memory_bytes", json!(32_u64 << 30), "memory: 64.0G -> 32.0G"),
        ("/machine/swap_bytes", json!(1 << 30), "swap: 0B -> 1.0G"),
        ("/machine/swap_used_bytes", json!(1 << 30), "swap in use: 0B -> 1.0G"),
        ("/pins/by", json!("cpuset"), "pinned by: nothing -> cpuset"),
        ("/pins/strength", json!("soft"), "pin: none -> soft"),
        ("/pins/cpus", json!("1"), "CPUs: 0-7 -> 1"),
        ("/pins/memory_nodes", json!("0-1"), "memory nodes: 0 -> 0-1"),
        ("/pins/reserved", json!("1,5"), "cores of its own: none -> 1,5"),
        ("/pins/partition", json!("isolated"), "partition: none -> isolated"),
        ("/pins/moved_to", json!("2-3"), "left its pin for: none -> 2-3"),
        ("/pins/offline", json!("7"), "pinned but offline: none -> 7"),
        ("/mode", json!("shared"), "mode: exclusive -> shared"),
        ("/inside", json!("1-2-3"), "inside a job: no -> yes"),
        ("/lock", json!("/tmp/l"), "file: /run/perflock -> /tmp/l"),
        ("/limits/memory_bytes", json!(1 << 30), "memory: none -> 1G"),
        ("/limits/processes", json!(50), "processes: none -> 50"),
        ("/limits/not_in_force", json!("no group"), "not in force: none -> no group"),
        ("/usage/throttled_usec", json!(500_000), "held back: 0.000s -> 0.500s"),
        ("/verdict/apart/throttled", json!(1), "throttled: 0 -> 1"),
        ("/verdict/apart/steal_usec", json!(200_000), "stolen by the host: 0.000s -> 0.200s"),
        ("/verdict/apart/swapped_in_pages", json!(5000), "pages swapped in: 0 -> 5000"),
        ("/usage/io_stall_usec", json!(1_000_000), "disk awaited: 0.000s -> 1.000s"),
        ("/usage/read_bytes", json!(1 << 30), "read from disk: 0B -> 1.0G"),
        ("/usage/oom_kills", json!(1), "out of memory: 0 -> 1"),
        ("/tracking", json!("subreaper"), "tracking: v2 -> subreaper"),
    ];
    for (pointer, value, expected) in cases {
        assert_eq!(differing(&compare(&report(), &with(&[(pointer, value)]))), [expected], "{pointer}");
    }
}

#[test]
fn lists_of_others_and_of_processes_differ_by_what_is_in_them() {
    let differ = |pointer: &str, first: Value, second: Value| {
        differing(&compare(&with(&[(pointer, first)]), &with(&[(pointer, second)])))
    };
    let same = [] as [&str; 0];
    // Neither pids nor the order in which they came.
    let shared = |first, second| differ("/shared_with", first, second);
    let (ann, bob) = (neighbour("ann", 1, "make"), neighbour("bob", 2, "x y"));
    assert_eq!(shared(json!([ann, bob]), json!([bob, neighbour("ann", 9, "make")])), same);
    assert_eq!(
        shared(json!([]), json!([ann, bob])),
        ["shared with: nobody -> ann's make (shared), bob's 'x y' (shared)"]
    );
    let left = |count, pid| json!({"count": count, "named": [{"pid": pid, "name": "sleep"}]});
    assert_eq!(differ("/leftovers", left(1, 7), left(1, 8)), same);
    assert_eq!(differ("/leftovers", left(1, 7), left(2, 7)), ["leftovers: 1: sleep -> 2: sleep"]);
    let escape = |pid| json!([{"pid": pid, "name": "sshd", "command": [], "unit": null, "group": null}]);
    assert_eq!(differ("/escaped", escape(1), escape(2)), same);
    assert_eq!(differ("/escaped", json!([]), escape(2)), ["escaped: none -> sshd"]);
    let appeared = |name: &str| json!([{"group": name, "container": true}]);
    assert_eq!(differ("/possible_escapes", appeared("/docker-1"), appeared("/docker-2")), same);
    assert_eq!(
        differ("/possible_escapes", json!([]), appeared("/docker-2")),
        ["possibly escaped: none -> 1 group (1 container)"]
    );
}

#[test]
fn a_verdict_differs_by_who_disturbed_and_not_by_how_much() {
    let verdict = |word: &str, why: Value, by: Value| {
        with(&[("/verdict/word", json!(word)), ("/verdict/why", why), ("/verdict/by", by)])
    };
    let disturbed = |by| verdict("disturbed", Value::Null, by);
    let (bob, more, cron) =
        (culprit("bob", 3_000_000, "cc1"), culprit("bob", 3_900_000, "ld"), culprit("cron.service", 9, "x"));
    assert_eq!(differing(&compare(&disturbed(json!([bob, cron])), &disturbed(json!([cron, more])))), [] as [&str; 0]);
    assert_eq!(
        differing(&compare(&disturbed(json!([bob])), &disturbed(json!([cron])))),
        ["verdict: disturbed by bob 3.000s (cc1) -> disturbed by cron.service 0.000s (x)"]
    );
    // Not by anybody.
    let hot = verdict("disturbed", json!("a processor was throttled"), json!([]));
    assert_eq!(differing(&compare(&report(), &hot)), ["verdict: quiet -> disturbed; a processor was throttled"]);
    // One that is not known is told with the reason, but two are nothing to compare.
    let unknown = verdict("unknown", json!("too short"), json!([]));
    assert_eq!(differing(&compare(&report(), &unknown)), ["verdict: quiet -> unknown: too short"]);
    let comparison = compare(&unknown, &unknown);
    assert_eq!(differing(&comparison), [] as [&str; 0]);
    assert!(shown(&comparison, None).contains("not known of either: verdict\n"));
}

#[test]
fn a_report_from_before_there_were_verdicts_can_be_compared() {
    for old in [json!(null), json!("gone")] {
        let old = with(&[("/verdict", old)]);
        let comparison = compare(&old, &report());
        // Its parts are not told one by one.
        assert_eq!(differing(&comparison), ["verdict: ? -> quiet"]);
        assert_eq!(comparison.unknown, []);
        assert!(shown(&comparison, None).contains("\nothers  verdict  not known    quiet\n"));
        assert!(shown(&compare(&old, &old), None).contains("\nnot known of either: verdict\n"));
    }
}

/// What can be felt is a part of the shorter run, whichever that is.
#[test]
fn a_long_run_does_not_hide_what_a_short_one_felt() {
    let short = with(&[("/wall_usec", json!(100_000))]);
    let long = with(&[("/wall_usec", json!(100_000_000)), ("/usage/io_stall_usec", json!(60_000))]);
    assert_eq!(differing(&compare(&short, &long)), ["disk awaited: 0.000s -> 0.060s"]);
    assert_eq!(differing(&compare(&long, &short)), ["disk awaited: 0.060s -> 0.000s"]);
}

#[test]
fn what_one_alone_tells_counts_as_different() {
    assert_eq!(differing(&compare(&with(&[("/machine/host", Value::Null)]), &report())), ["host: ? -> atlas"]);
}

#[test]
fn a_figure_that_one_alone_has_is_no_difference_but_is_told_to_be_missing() {
    let without = with(&[("/usage/io_stall_usec", Value::Null), ("/usage/oom_kills", Value::Null)]);
    let comparison = compare(&without, &report());
    assert_eq!(differing(&comparison), [] as [&str; 0]);
    let text = shown(&comparison, None);
    assert!(text.ends_with("\nnot known of monday.json: disk awaited, out of memory\n"), "{text}");
}

#[test]
fn where_one_group_kept_no_count_both_are_compared_by_what_was_waited_for() {
    let without = with(&[("/usage/cpu_usec", Value::Null), ("/usage/memory_peak_bytes", Value::Null)]);
    let text = shown(&compare(&without, &report()), None);
    assert!(text.contains("CPU time     1m 28.0s -> 1m 28.0s (+0.0%)\n"), "{text}");
    assert!(text.contains("memory peak  1.0G -> 1.0G (+0.0%)\n"), "{text}");
    let nothing = with(&[("/usage", Value::Null), ("/waited_for", Value::Null)]);
    let text = shown(&compare(&nothing, &report()), None);
    assert!(text.contains("CPU time     not known -> 1m 28.1s\n"), "{text}");
}

#[test]
fn what_differs_late_in_a_long_text_is_seen() {
    let command = |end: &str| with(&[("/command", json!(["x", "y".repeat(4000), end]))]);
    let text = shown(&compare(&command("-O2"), &command("-O3")), None);
    assert!(text.contains("-O2") && text.contains("-O3"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() < 500), "{text}");
}

#[test]
fn in_a_narrow_terminal_nothing_is_lost() {
    let text = shown(&compare(&report(), &with(&[("/command/1", json!("a b c d e f g h i j".repeat(5)))])), Some(60));
    let table: Vec<&str> = text.lines().skip_while(|line| !line.contains("WHAT")).collect();
    assert!(table.iter().all(|line| line.chars().count() <= 60), "{text}");
    assert_eq!(text.matches('j').count(), 5 + usize::from(text.contains("monday.json")) * 2, "{text}");
}

#[test]
fn hostile_text_does_not_reach_the_terminal() {
    let hostile = with(&[
        ("/machine/host", json!("a\x1b[2Jb\nc")),
        ("/exit/reason", json!("x\ry")),
        ("/shared_with", json!([neighbour("eve\x07", 1, "\u{202e}x")])),
    ]);
    let text = shown(&compare(&report(), &hostile), None);
    assert!(text.contains(r"a\u{1b}[2Jb\nc") && text.contains(r"x\ry, code 0") && text.contains(r"eve\u{7}"), "{text}");
    assert!(!text.contains('\u{202e}') && !text.replace('\n', "").contains(char::is_control), "{text}");
}

#[test]
fn what_is_no_report_is_told_from_one() {
    let why = |text: &str| read::parse(text.as_bytes()).unwrap_err();
    assert_eq!(why(""), "it is empty: its job runs, or ended in a way that nobody could report");
    assert!(why("{").starts_with("it is not JSON: "));
    assert!(why(&"[".repeat(100_000)).starts_with("it is not JSON: "));
    assert!(why("{}\n{}").starts_with("it is not JSON: trailing"));
    for other in
        ["{}", "[]", "7", r#"{"version": 1}"#, r#"{"version": 0, "command": []}"#, r#"{"version": "1", "exit": {}}"#]
    {
        assert_eq!(why(other), "it is JSON, but not what --report-file writes", "{other}");
    }
    assert!(why(r#"{"version": 2, "command": []}"#).contains("of version 2, and this perflock knows up to 1"));
    assert!(why(&" ".repeat(1 << 21)).starts_with("it is larger than 1M"));
    assert!(read::parse(report().to_string().as_bytes()).is_ok());
    // As little as that.
    assert!(read::parse(br#"{"version": 1, "command": [], "new": 7}"#).is_ok());
}

/// Any JSON, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z_]{0,8}", inner, 0..4)
                .prop_map(|map| Value::from(map.into_iter().collect::<serde_json::Map<_, _>>())),
        ]
    })
}

/// A report with anything at some of the places that are looked at.
fn any_report() -> impl Strategy<Value = Value> {
    let places = [
        "/command",
        "/user",
        "/mode",
        "/lock",
        "/inside",
        "/wall_usec",
        "/waited_usec",
        "/held_usec",
        "/exit",
        "/exit/code",
        "/exit/signal",
        "/usage",
        "/usage/cpu_usec",
        "/usage/read_bytes",
        "/waited_for",
        "/waited_for/user_usec",
        "/tracking",
        "/leftovers",
        "/leftovers/count",
        "/leftovers/named",
        "/escaped",
        "/possible_escapes",
        "/pins",
        "/pins/cpus",
        "/limits",
        "/shared_with",
        "/machine",
        "/machine/turbo",
        "/machine/host",
        "/verdict",
        "/verdict/word",
        "/verdict/why",
        "/verdict/by",
        "/verdict/apart",
        "/verdict/apart/frequency_khz",
    ];
    proptest::collection::vec((prop::sample::select(places.to_vec()), any_json()), 0..6).prop_map(|changes| {
        let mut report = report();
        for (pointer, value) in changes {
            if let Some(place) = report.pointer_mut(pointer) {
                *place = value;
            }
        }
        report
    })
}

proptest! {
    #[test]
    fn any_two_are_compared_and_their_mirror_image_is_the_same(
        first in prop_oneof![any_json(), any_report()],
        second in prop_oneof![any_json(), any_report()],
        width in prop::option::of(1_u16..300),
    ) {
        let (there, back) = (compare(&first, &second), compare(&second, &first));
        let mut mirrored = back.clone();
        for change in &mut mirrored.changes {
            std::mem::swap(&mut change.first, &mut change.second);
        }
        for difference in &mut mirrored.differences {
            std::mem::swap(&mut difference.first, &mut difference.second);
        }
        for gap in &mut mirrored.unknown {
            std::mem::swap(&mut gap.first, &mut gap.second);
        }
        prop_assert_eq!(&there, &mirrored);
        let text = shown(&there, width);
        prop_assert!(!text.replace('\n', "").contains(char::is_control), "{:?}", text);
        let json: Value = serde_json::from_str(&view::json(&FILES.map(str::to_owned), &there)).unwrap();
        prop_assert_eq!(&json["same"], &Value::from(there.differences.is_empty()));
    }

    #[test]
    fn none_differs_from_itself(report in prop_oneof![any_json(), any_report()]) {
        let comparison = compare(&report, &report);
        prop_assert_eq!(&comparison.differences, &[]);
        prop_assert!(comparison.unknown.iter().all(|gap| gap.first && gap.second));
        prop_assert!(comparison.changes.iter().all(|change| change.first == change.second));
    }

    #[test]
    fn any_bytes_are_a_report_or_are_told_not_to_be(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(why) = read::parse(&bytes) {
            prop_assert!(!crate::text::escape(&why).contains(char::is_control));
        }
    }
}

#[test]
fn every_condition_is_at_a_place_that_a_report_has() {
    let report = report();
    let missing: Vec<&str> =
        FIELDS.iter().filter(|field| field.told(&report).is_none()).map(|field| field.what).collect();
    assert_eq!(missing, [] as [&str; 0]);
}
