//! What `tests/vm/run` makes of what tests print in its machines, without one: rows, second tries, and when a run is red.

use crate::harness::{World, source};
use crate::needs;

/// What a test executable prints.
const OUTPUT: &str = "
running 6 tests
test order::first ... ok
test order::slow has been running for over 60 seconds
test queue::late ... FAILED
test queue::left_out ... ignored, takes a minute
test order::slow ... ok
test report::broken ... FAILED
test queue::gone ... FAILED

failures:

---- queue::late stdout ----
thread 'queue::late' (17306) panicked at tests/suite/queue.rs:116:5:
assertion failed: waited > 200

failures:
    queue::late
    report::broken
    queue::gone

test result: FAILED. 2 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.20s

status 101
";

/// A test executable in which one test fails when others run beside it, one always does, and one does not exist: as for libtest,
/// that is no failure. What it is given is in `asked`.
const EXECUTABLE: &str = r#"echo "$*" >>asked
case $2 in
    queue::gone) printf '\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed\n' ;;
    report::broken) printf '\nrunning 1 test\ntest report::broken ... FAILED\n'; exit 101 ;;
    *) printf '\nrunning 1 test\ntest %s ... ok\n' "$2" ;;
esac
"#;

/// A world with the shell's part of it, and a script that does what guest/main does with a run's output.
fn world() -> World {
    let world = World::new();
    world.write("libtest.bash", &source("tests/vm/guest/libtest.bash"));
    world.write("output", OUTPUT);
    world.write("executable", EXECUTABLE);
    let script = ". ./libtest.bash; rows_of root lib:: failed <output; echo =====; \
                  second_tries root lib:: failed $1 bash ./executable";
    world.write("main", script);
    world
}

#[test]
fn a_test_that_failed_is_tried_once_more_alone_and_by_its_own_name() {
    needs!(Program("bash"));
    let world = world();
    let done = world.cmd("bash -u main 3").run().exits(0).says("");
    let (first, second) = done.stdout.split_once("=====\n").unwrap();
    // Why it failed is kept, and nothing is said of it yet.
    let people: Vec<&str> = first.lines().filter(|line| !line.starts_with("ROW ")).collect();
    let told = [
        "---- queue::late stdout ----",
        "thread 'queue::late' (17306) panicked at tests/suite/queue.rs:116:5:",
        "assertion failed: waited > 200",
    ];
    assert!(told.iter().all(|line| people.contains(line)), "{first}");
    let rows: Vec<&str> = first.lines().filter(|line| line.starts_with("ROW ")).collect();
    assert_eq!(
        rows,
        [
            "ROW root lib::order::first ok",
            "ROW root lib::queue::left_out skipped ignored, takes a minute",
            "ROW root lib::order::slow ok",
        ]
    );
    assert_eq!(world.read("asked"), "--exact queue::late\n--exact report::broken\n--exact queue::gone\n");
    assert_eq!(
        second,
        "ROW root lib::queue::late ok again\n\
         second try of report::broken:\n\nrunning 1 test\ntest report::broken ... FAILED\n\
         ROW root lib::report::broken FAILED\n\
         second try of queue::gone:\n\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed\n\
         ROW root lib::queue::gone FAILED\n"
    );
}

#[test]
fn when_more_failed_than_may_none_is_tried_again() {
    needs!(Program("bash"));
    let world = world();
    let done = world.cmd("bash -u main 2").run().exits(0).says("");
    let (_, second) = done.stdout.split_once("=====\n").unwrap();
    let rows = ["queue::late", "report::broken", "queue::gone"].map(|name| format!("ROW root lib::{name} FAILED\n"));
    assert_eq!(second, format!("3 tests failed: none is tried again\n{}", rows.concat()));
    assert_eq!(world.read("asked"), "");
}

/// What is printed of a machine with so many tests that passed at once, at their second try, and not at all; and whether the run is
/// red for it.
fn table(at_once: usize, again: usize, failed: usize) -> (String, bool) {
    let world = World::new();
    world.write("table.awk", &source("tests/vm/table.awk"));
    let results: String = [("a", "ok", at_once), ("b", "ok again", again), ("c", "FAILED", failed)]
        .iter()
        .flat_map(|&(name, result, count)| {
            (0..count).map(move |n| format!("EXPECT root {name}::{n}\nROW root {name}::{n} {result}\n"))
        })
        .collect();
    world.write("results", &results);
    let line = "awk -v machine=m -v permitted=/dev/null -v features=/dev/null -v whole= -v second_tries=6 -f table.awk results";
    let done = world.cmd(line).run().says("");
    (done.stdout.clone(), done.status.code() != Some(0))
}

#[test]
fn second_tries_are_named_counted_and_too_many_make_a_run_red() {
    needs!(Program("awk"));
    let (text, red) = table(3, 0, 0);
    assert!(!red && text.ends_with("m: 3 passed, 0 failed, 0 skipped\n"), "{text}");
    assert!(!text.contains("SECOND"), "{text}");
    let (text, red) = table(3, 2, 0);
    assert!(!red, "{text}");
    let end = "NEEDED A SECOND TRY: m root b::0\nNEEDED A SECOND TRY: m root b::1\n\
               m: 5 passed, of them second tries: 2, 0 failed, 0 skipped\n";
    assert!(text.ends_with(end), "{text}");
    let (text, red) = table(1, 6, 0);
    assert!(!red && text.ends_with("m: 7 passed, of them second tries: 6, 0 failed, 0 skipped\n"), "{text}");
    let (text, red) = table(1, 7, 0);
    assert!(red && text.contains("WRONG m 7 tests needed a second try, and at most 6 may\n"), "{text}");
    // One that fails again is a failure, however few they are.
    let (text, red) = table(3, 1, 1);
    assert!(red && text.contains("WRONG m failed: root c::0\n"), "{text}");
    assert!(text.ends_with("m: 4 passed, of them second tries: 1, 1 failed, 0 skipped\n"), "{text}");
}
