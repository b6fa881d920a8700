//! `perflock --diff`: what differed between two runs, by the reports that they left.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use serde_json::{Value, json};

use crate::harness::{ALICE, Done, World, source};
use crate::needs;

/// The JSON that was printed, once it was found to be as its schema says.
#[track_caller]
fn document(done: &Done) -> Value {
    let document = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {:?}", done.stdout));
    let schema = serde_json::from_str(&source("config/diff.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}\n{document:#}");
    document
}

/// A copy of a report with some of its values changed.
fn changed(world: &World, from: &str, to: &str, changes: &[(&str, Value)]) {
    let mut report: Value = serde_json::from_str(&world.read(from)).unwrap();
    for (pointer, value) in changes {
        *report.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone();
    }
    world.write(to, &report.to_string());
}

/// The row of the table about this condition, its words by one space.
#[track_caller]
fn row(done: &Done, what: &str) -> String {
    let rows = done.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let mut found = rows.filter(|row| format!(" {row} ").contains(&format!(" {what} ")));
    found.next().unwrap_or_else(|| panic!("no {what}: {}", done.stdout))
}

#[test]
fn two_runs_under_other_conditions_differ_in_these() {
    needs!(V2);
    let world = World::new();
    world.cmd("perflock -q --report-file monday sh -c").arg("exit 3").run().exits(3);
    let beside = world.holder("pls -q");
    world.cmd("pls -q --cpus 0 --report-file today sh -c").arg("exit 4").run().exits(4);
    beside.signal(libc::SIGTERM);
    beside.wait().dies_of(libc::SIGTERM);
    let done = world.cmd("perflock --diff monday today").run().exits(1).says("");
    let lines: Vec<&str> = done.stdout.lines().collect();
    for (line, name) in lines.iter().zip(["wall  ", "CPU time  ", "waited  ", "held  ", "memory peak  ", "exit  "]) {
        assert!(line.starts_with(name) && line.contains(" -> "), "{}", done.stdout);
    }
    assert_eq!(&lines[5..7], ["exit         code 3 -> code 4", ""]);
    assert_eq!(row(&done, "WHAT"), "WHAT monday today");
    assert_eq!(row(&done, "command"), "run command sh -c 'exit 3' sh -c 'exit 4'");
    assert!(row(&done, "pinned by").starts_with("pins pinned by nothing "));
    assert!(row(&done, "mode").ends_with("mode exclusive shared"));
    assert!(row(&done, "shared with").contains("shared with nobody "), "{}", done.stdout);
    assert!(row(&done, "shared with").ends_with("sh -c 'echo running; exec sleep 600' (shared)"), "{}", done.stdout);
    // The other way round, and as JSON.
    let back = world.cmd("pls --diff today monday --json").run().exits(1).says("");
    let back = document(&back);
    assert_eq!((&back["files"], &back["same"]), (&json!(["today", "monday"]), &json!(false)));
    assert_eq!(back["outcomes"][5], json!({"what": "exit", "first": "code 4", "second": "code 3", "percent": null}));
    let mode = json!({"area": "lock", "what": "mode", "first": "shared", "second": "exclusive"});
    assert!(back["differences"].as_array().unwrap().contains(&mode), "{back:#}");
    world.assert_clean();
}

#[test]
fn a_run_does_not_differ_from_itself() {
    needs!(V2);
    let world = World::new();
    world.cmd("perflock -q --report-file r true").run().exits(0);
    let done = world.cmd("perflock --diff r r").run().exits(0).says("");
    assert!(done.stdout.contains("\n\nnothing else differs that the reports tell of\n"), "{}", done.stdout);
    assert!(done.stdout.starts_with("wall         0."), "{}", done.stdout);
    // Quietly, from a pipe, by stdin.
    world.cmd("perflock -q --diff r r").run().exits(0).prints("").says("");
    world.cmd("bash -c").arg("perflock -q --diff <(cat r) - <r").run().exits(0).prints("").says("");
    let document = document(&world.cmd("perflock --json --diff r r").run().exits(0).says(""));
    assert_eq!((&document["same"], &document["differences"]), (&json!(true), &json!([])));
}

#[test]
fn what_explains_most_comes_first() {
    needs!(V2);
    let world = World::new();
    world.cmd("perflock -q --report-file monday true").run().exits(0);
    changed(
        &world,
        "monday",
        "today",
        &[
            ("/tracking", json!("other")),
            ("/pins/cpus", json!("900")),
            ("/machine/governor", json!("frugal")),
            ("/machine/kernel", json!("Linux \u{1b}[2J7\n")),
            ("/mode", json!("shared")),
            ("/wall_usec", json!(3_600_000_000_u64)),
        ],
    );
    let mut today: Value = serde_json::from_str(&world.read("today")).unwrap();
    let by = json!([{"name": "eve\r", "kind": "user", "uid": 7, "group": null, "cpu_usec": 3_100_000, "programs": []}]);
    today["verdict"] = json!({"word": "disturbed", "why": null, "elsewhere_usec": 3_200_000, "by": by, "apart": null});
    today["added later"] = json!([1]);
    world.write("today", &today.to_string());
    let done = world.cmd("perflock --diff monday today").run().exits(1).says("");
    let rows = ["verdict", "kernel", "governor", "CPUs", "mode", "tracking"].map(|what| row(&done, what));
    assert!(
        rows[0].starts_with("others verdict ") && rows[0].ends_with(r" disturbed by eve\r 3.100s"),
        "{}",
        done.stdout
    );
    assert!(rows[1].ends_with(r" Linux \u{1b}[2J7\n"), "{}", done.stdout);
    let at = rows.map(|row| {
        let row: Vec<&str> = row.split(' ').collect();
        done.stdout.lines().position(|line| line.split_whitespace().collect::<Vec<_>>() == row).unwrap()
    });
    assert!(at.is_sorted(), "{at:?} {}", done.stdout);
    assert!(done.stdout.lines().next().unwrap().contains(" -> 1h 0m 0s (+"), "{}", done.stdout);
    // On a terminal nothing that another wrote is acted upon, and all of it is there.
    let mut terminal = world.cmd("perflock -q --diff monday today").on_terminal_of((60, 40));
    terminal.wait_screen("tracking");
    assert_eq!(terminal.wait().code(), Some(1));
    let screen = terminal.screen();
    assert!(screen.contains("frugal") && screen.contains(r"\u{1b}[2J7\n"), "{screen}");
}

#[test]
fn what_cannot_be_compared_is_named_with_the_reason() {
    needs!(Root);
    let world = World::new();
    let report = json!({"version": 1, "command": ["true"]}).to_string();
    world.write("r", &report);
    for (file, text) in [
        ("empty", String::new()),
        ("text", "wall 3\n".to_owned()),
        ("other", json!({"version": 1, "jobs": []}).to_string()),
        ("newer", json!({"version": 9, "command": ["true"]}).to_string()),
        ("two", format!("{report}\n{report}\n")),
        ("deep", "[".repeat(100_000)),
        ("large", format!("{report}{}", " ".repeat(1 << 20))),
        ("secret", report.clone()),
        ("a\x1b[2J", "{".to_owned()),
    ] {
        world.write(file, &text);
    }
    fs::set_permissions(world.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("/dev/zero", world.path("endless")).unwrap();
    symlink("loop", world.path("loop")).unwrap();
    for (file, said) in [
        ("empty", "cannot compare empty: it is empty: its job runs, or ended in a way that nobody could report"),
        ("text", "cannot compare text: it is not JSON: expected value at line 1 column 1"),
        ("other", "cannot compare other: it is JSON, but not what --report-file writes"),
        (
            "newer",
            "cannot compare newer: it is a report of version 9, and this perflock knows up to 1; compare with the one that wrote it",
        ),
        ("two", "cannot compare two: it is not JSON: trailing characters at line 2 column 1"),
        ("deep", "cannot compare deep: it is not JSON: recursion limit exceeded at line 1 column 128"),
        ("large", "cannot compare large: it is larger than 1M, which no report is"),
        ("secret", "cannot open secret: Permission denied"),
        ("a\x1b[2J", r"cannot compare a\u{1b}[2J: it is not JSON: EOF while parsing an object at line 1 column 1"),
        ("endless", "cannot compare endless: it is neither a file nor a pipe"),
        ("loop", "cannot open loop: Too many levels of symbolic links"),
        ("missing", "cannot open missing: No such file or directory"),
        (".", "cannot compare .: it is a directory"),
    ] {
        let said = format!("perflock: {said}\n");
        for files in [["r", file], [file, "r"]] {
            world.cmd("perflock --diff").args(files).uid(ALICE).run().exits(125).prints("").says(&said);
        }
    }
    let said = "perflock: cannot compare stdin: it is not JSON: expected value at line 1 column 1\n";
    world.cmd("perflock --diff r -").stdin("x").run().exits(125).prints("").says(said);
    // What is no trouble: a report with next to nothing in it, and a reader that has had enough.
    world.cmd("perflock -q --diff r -").stdin(&report).run().exits(0).prints("").says("");
    world
        .sh("perflock --diff r r >/dev/full")
        .run()
        .exits(125)
        .says("perflock: cannot write: No space left on device\n");
}

#[test]
fn a_comparison_is_asked_for_alone() {
    let world = World::new();
    world
        .cmd("perflock --diff - -")
        .run()
        .exits(125)
        .prints("")
        .mentions("one of the two reports from stdin, not both");
    world.cmd("perflock --diff a b true").run().exits(125).prints("").mentions("cannot be used with");
    world.cmd("perflock --diff a").run().exits(125).prints("").mentions("2 values required");
    // It needs neither a lock nor a configuration.
    let report = json!({"version": 1, "command": ["true"]}).to_string();
    world.write("r", &report);
    world.write("broken", "nonsense");
    let cmd = world.cmd("perflock -q --diff r r").env("PERFLOCK_LOCK", "/nowhere").env("PERFLOCK_CONFIG", "broken");
    cmd.run().exits(0).prints("").says("");
}
