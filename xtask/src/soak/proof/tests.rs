//! Planted logs, each with one thing wrong.

use super::*;

/// What is wrong with a log of these lines, given without their ends, and where a job is not pinned without saying so. A line
/// with a `|` is fed as it is.
fn problems(lines: &str) -> Vec<String> {
    let mut proof = Proof::default();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        match (line.strip_prefix('|'), &words[..]) {
            (Some(raw), _) => proof.feed(raw),
            (None, [_, "spawn", _, _]) => proof.feed(&format!("{line} free .")),
            (None, [_, "start", _, _]) => proof.feed(&format!("{line} - .")),
            (None, _) => proof.feed(&format!("{line} .")),
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
const LEASED: &str = "patient shared leased";

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

#[test]
fn jobs_with_different_cores_and_others_run_together() {
    let ended = "1 stop\n1 exit code 0\n2 stop\n2 exit code 0";
    assert_eq!(two(LEASED, LEASED, &format!("1 start a - 0,2\n2 start b - 1,3\n{ended}")), [""; 0]);
    // Who was told where to run has nothing alone, nor has who was told nothing.
    let (pinned, start) = ("patient shared pinned", "1 start a - 0-3");
    assert_eq!(two(LEASED, pinned, &format!("{start}\n2 start b - 0\n{ended}")), [""; 0]);
    assert_eq!(two(LEASED, S, &format!("{start}\n2 start b -\n{ended}")), [""; 0]);
    assert_eq!(two(pinned, pinned, &format!("{start}\n2 start b - 0\n{ended}")), [""; 0]);
}

#[test]
fn a_core_with_two_owners_is_found() {
    let found = two(LEASED, LEASED, "1 start a - 0-2\n2 start b - 2-3\n1 stop\n1 exit code 0\n2 stop\n2 exit code 0");
    assert!(found[0].contains("job 2 started before job 1 stopped"), "{found:?}");
    assert!(found[1].contains("job 2 started while job 1 had a living member"), "{found:?}");
    let one_after_the_other = "1 start a - 0-2\n1 stop\n1 exit code 0\n2 start b - 2-3\n2 stop\n2 exit code 0";
    assert_eq!(two(LEASED, LEASED, one_after_the_other), [""; 0]);
}

#[test]
fn what_is_left_of_a_dead_job_keeps_its_cores() {
    let killed = "1 start a - 0\n1 disturb kill-both\n1 exit signal 9";
    let next = "2 start b - 0\n2 stop\n2 exit code 0";
    assert_eq!(two(LEASED, LEASED, &format!("{killed}\n{next}")), [""; 0]);
    let late = two(LEASED, LEASED, &format!("{killed}\n{next}\n1 leftover-stop"));
    assert_one(&late, "job 2 started while job 1 had a living member");
    let elsewhere = next.replace("- 0", "- 1");
    assert_eq!(two(LEASED, LEASED, &format!("{killed}\n{elsewhere}\n1 leftover-stop")), [""; 0]);
    // Its worker's first line may come after its supervisor's end, but not after that of the next with its cores.
    let early = format!("1 disturb kill-supervisor\n1 exit signal 9\n{next}\n1 start a - 0");
    assert_one(&two(LEASED, LEASED, &early), "job 2 started while job 1 had a living member");
}

#[test]
fn a_presence_lock_of_a_processor_that_was_not_free_is_found_orphan_or_not() {
    let taken = "2 taken 1\n2 exit code 97";
    let met = "job 2 was given cpu 1, where it met living members of a job that has it alone, one of [1]";
    assert_one(&two(LEASED, LEASED, &format!("1 start a - 0-1\n{taken}\n1 stop\n1 exit code 0")), met);
    let orphan = "1 start a - 0-1\n1 disturb kill-both\n1 exit signal 9";
    assert_one(&two(LEASED, LEASED, &format!("{orphan}\n{taken}")), met);
    assert_one(&two(LEASED, LEASED, &format!("1 start a - 0\n{taken}\n1 stop\n1 exit code 0")), "one of []");
    assert_one(&two(S, LEASED, "1 start a -\n1 stop\n1 exit code 0\n2 exit code 97"), "ended with code 97");
}

#[test]
fn a_job_must_run_where_it_was_told_and_be_told_so_if_it_asked() {
    assert_one(&problems("1 spawn patient shared pinned\n1 strayed 0-1,not-1\n1 exit code 97"), "0-1,not-1");
    let runs = |spawned: &str, cpus: &str| {
        problems(&format!("1 spawn patient {spawned}\n1 start a - {cpus}\n1 stop\n1 exit code 0"))
    };
    assert_eq!(runs("exclusive pinned", "0-1"), [""; 0]);
    assert_one(&runs("exclusive pinned", "-"), "job 1 is pinned and was given None");
    assert_one(&runs("shared leased", "-"), "job 1 is leased and was given None");
    assert_one(&runs("shared free", "1"), "job 1 is free and was given");
}
