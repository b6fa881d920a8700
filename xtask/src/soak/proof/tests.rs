//! Planted logs, each with one thing wrong.

use super::*;

/// What is wrong with a log of these lines, given without their ends. A line with a `|` is fed as it is.
fn problems(lines: &str) -> Vec<String> {
    let mut proof = Proof::default();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.strip_prefix('|') {
            Some(raw) => proof.feed(raw),
            None => proof.feed(&format!("{line} .")),
        }
    }
    proof.finish();
    proof.problems.into_iter().map(|problem| problem.what).collect()
}

/// Two jobs, 1 and 2, and what happens to them.
fn two(first: &str, second: &str, lines: &str) -> Vec<String> {
    problems(&format!("1 spawn {first}\n2 spawn {second}\n{lines}"))
}

const X: &str = "patient exclusive";
const S: &str = "patient shared";

#[track_caller]
fn assert_one(problems: &[String], part: &str) {
    assert!(problems.len() == 1 && problems[0].contains(part), "{problems:?}");
}

#[test]
fn jobs_one_after_the_other_and_shared_ones_together_are_right() {
    let after = "1 start a -\n1 stop\n1 exit code 0\n2 start b -\n2 stop\n2 exit code 0";
    assert_eq!(two(X, X, after), [""; 0]);
    let together = "1 start a -\n2 start b -\n1 stop\n1 exit code 0\n2 stop\n2 exit code 0";
    assert_eq!(two(S, S, together), [""; 0]);
}

#[test]
fn two_exclusive_jobs_at_once_are_found() {
    let nested = "1 start a -\n2 start b -\n2 stop\n2 exit code 0\n1 stop\n1 exit code 0";
    let found = two(X, X, nested);
    assert!(found[0].contains("job 2 started before job 1 stopped"), "{found:?}");
    assert!(found[1].contains("job 2 started while job 1 had a living member"), "{found:?}");
}

#[test]
fn a_shared_job_inside_an_exclusive_one_is_found_either_way() {
    let inside = "1 start a -\n2 start b -\n2 stop\n2 exit code 0\n1 stop\n1 exit code 0";
    assert!(!two(X, S, inside).is_empty());
    assert!(!two(S, X, inside).is_empty());
}

#[test]
fn a_job_that_was_killed_must_not_write_after_the_next_one_started() {
    let killed = "1 start a -\n1 disturb kill-both\n1 exit signal 9\n2 start b -\n2 stop\n2 exit code 0";
    assert_eq!(two(X, X, killed), [""; 0]);
    assert_one(&two(X, X, &format!("{killed}\n1 stop")), "started while job 1 had a living member");
    assert_one(&two(X, X, &format!("{killed}\n1 leftover-stop")), "started while job 1 had a living member");
    // Not even if it had not begun when its supervisor was killed.
    let early = "1 disturb kill-supervisor\n1 exit signal 9\n2 start b -\n2 stop\n2 exit code 0\n1 start a -";
    assert_one(&two(X, X, early), "started while job 1 had a living member");
    assert_eq!(two(S, S, early), [""; 0]);
}

#[test]
fn a_presence_lock_that_was_not_free_is_an_overlap() {
    let met = "1 start a -\n1 disturb kill-both\n1 exit signal 9\n2 overlap\n2 exit code 97";
    assert_one(&two(X, X, met), "job 2 met living members of a job that it conflicts with, one of [1]");
}

#[test]
fn only_an_outsider_may_meet_an_orphan_and_only_until_the_next_job() {
    let orphan = "1 start a -\n1 disturb kill-both\n1 exit signal 9";
    let met = "2 overlap\n2 exit code 97";
    assert_eq!(two(X, "outsider shared", &format!("{orphan}\n{met}")), [""; 0]);
    assert_eq!(
        two(
            X,
            "outsider exclusive",
            "1 disturb kill-both\n2 start - -\n1 overlap\n2 stop\n2 exit code 0\n1 exit signal 9"
        ),
        [""; 0]
    );
    assert_one(&two(S, "outsider shared", &format!("{orphan}\n{met}")), "met living members");
    let late = "1 disturb kill-both\n1 exit signal 9\n1 start a -";
    assert_eq!(two(X, "outsider shared", &format!("{late}\n{met}\n1 stop")), [""; 0]);
    let next = "3 spawn patient shared\n3 start c -\n3 stop\n3 exit code 0";
    assert_one(&two(X, "outsider shared", &format!("{orphan}\n{next}\n{met}")), "met living members");
    let guarded = orphan.replace("both", "supervisor");
    assert_one(&two(X, "outsider shared", &format!("{guarded}\n{met}")), "met living members");
}

#[test]
fn what_outlives_a_release_is_found() {
    let late = "1 start a -\n1 stop\n1 exit code 0\n1 leftover-stop\n2 start b -\n2 stop\n2 exit code 0";
    assert_one(&two(S, S, late), "job 1 has a living member after its end");
}

#[test]
fn an_overtaken_ticket_is_found() {
    assert_one(&problems("1 spawn patient exclusive\n1 start a 4.x\n1 stop\n1 exit code 0"), "overtook 4.x");
}

#[test]
fn a_job_must_not_run_twice_nor_under_a_ticket_that_was_used() {
    let twice = "1 spawn patient shared\n1 start a -\n1 stop\n1 start b -\n1 exit code 0";
    assert_one(&problems(twice), "job 1 started twice");
    let same = "1 start a -\n1 stop\n1 exit code 0\n2 start a -\n2 stop\n2 exit code 0";
    assert_one(&two(S, S, same), "the ticket a was used before");
    assert_one(&problems("1 spawn patient shared\n1 start - -\n1 stop\n1 exit code 0"), "has the ticket -");
}

#[test]
fn a_missing_stop_needs_a_kill() {
    assert_one(&problems("1 spawn patient shared\n1 start a -\n1 exit code 0"), "started and did not stop");
    let open = "1 start a -\n2 start b -\n2 stop\n2 exit code 0\n1 disturb cancel\n1 exit signal 15";
    assert_one(&two(X, X, open), "job 2 started before job 1 stopped, which nothing had ended");
}

#[test]
fn every_end_needs_its_reason() {
    let end = |kind: &str, lines: &str| problems(&format!("1 spawn {kind} shared\n{lines}"));
    for (disturbance, ending) in [("kill-supervisor", "signal 9"), ("kill-both", "signal 9"), ("cancel", "signal 15")] {
        assert_eq!(end("patient", &format!("1 disturb {disturbance}\n1 exit {ending}")), [""; 0]);
        assert_one(&end("patient", &format!("1 exit {ending}")), "never started; done to it: []");
        assert_one(&end("patient", &format!("1 disturb kill-guard\n1 exit {ending}")), "[kill-guard]");
    }
    assert_eq!(end("limited", "1 exit code 75"), [""; 0]);
    assert_one(&end("patient", "1 disturb suspend\n1 exit code 75"), "code 75, never started");
    assert_one(&end("limited", "1 start a -\n1 stop\n1 exit code 75"), "code 75, ran");
    assert_one(&end("patient", "1 exit code 0"), "never started");
    assert_one(&end("patient", "1 exit code 125"), "code 125");
    assert_one(&end("patient", "1 disturb cancel"), "job 1 never ended");
    assert_one(&end("patient", "1 exit signal 9\n1 exit signal 9").split_off(1), "ended twice");
}

#[test]
fn a_torn_line_is_found() {
    let log = "1 spawn patient shared\n|1 start a\n1 start a -\n1 stop\n1 exit code 0\n|1 st1 stop .";
    assert_eq!(problems(log).len(), 2);
    assert_one(&problems("7 stop"), "job 7 was never spawned");
}
