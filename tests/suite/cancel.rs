//! `--cancel`: whom it ends, how, what it says to both sides, and whom it leaves alone.

use std::time::{Duration, Instant};

use crate::harness::{ALICE, BOB, World, alive, me, pid_in, state_of, wait_until};
use crate::hostile::{hold, joined_by, put};
use crate::needs;

/// Cancels a job, and what was said of that.
#[track_caller]
fn cancelled(world: &World, options: &str, job: &str) -> String {
    world.cmd("perflock").args(options.split_whitespace()).args(["--cancel", job]).run().exits(0).prints("").stderr
}

/// When a process started, as its ticket would say.
fn start_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap().parse().unwrap()
}

#[test]
fn a_waiter_leaves_the_queue_and_the_others_keep_their_order() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let job = |word: &str| world.cmd("perflock sh -c").arg(format!("echo {word} >> order"));
    let waiters: Vec<_> = (2..7).map(|n| world.waiter(&format!("{n}.x"), job(&n.to_string()))).collect();
    for (job, which) in ["2", "4", "6"].into_iter().zip([0, 2, 4]) {
        let said = cancelled(&world, "", job);
        let command = format!("sh -c 'echo {job} >> order'");
        assert_eq!(said, format!("perflock: cancelled job {job} ({command} of {})\n", me()));
        waiters[which].wait_stderr(&format!("perflock: cancelled by {}\n", me()));
        assert!(!world.tickets().contains(&format!("{job}.x")), "{:?}", world.tickets());
    }
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for (index, waiter) in waiters.into_iter().enumerate() {
        let done = waiter.wait();
        if index % 2 == 0 {
            done.dies_of(libc::SIGTERM)
        } else {
            done.exits(0)
        };
    }
    assert_eq!(world.read("order"), "3\n5\n");
    world.assert_clean();
}

#[test]
fn a_job_gets_term_and_time_to_end_well() {
    needs!(V2);
    for line in ["perflock", "pls", "perflock --cgroup none"] {
        let world = World::new();
        let script = "trap 'echo saved; exit 3' TERM; echo running; while :; do sleep 0.01; done";
        let job = world.cmd(line).args(["-q", "sh", "-c", script]).spawn();
        job.wait_stdout("running\n");
        cancelled(&world, "--grace 60", "1");
        let done = job.wait().exits(3).prints("running\nsaved\n");
        assert_eq!(done.stderr, format!("{}: cancelled by {}\n", &line[..line.find(' ').unwrap_or(line.len())], me()));
        world.assert_clean();
    }
}

#[test]
fn a_job_that_ignores_term_is_killed_after_the_grace_period_and_no_sooner() {
    needs!(V2);
    for line in ["perflock -q", "perflock -q --cgroup none"] {
        let world = World::new();
        let script = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; while :; do sleep 0.01; done' &) ; echo running; \
                      while :; do sleep 0.01; done";
        let job = world.cmd(line).args(["sh", "-c", script]).spawn();
        job.wait_stdout("running\n");
        let start = Instant::now();
        let said = cancelled(&world, "--grace 1.2", "1");
        assert!(start.elapsed() >= Duration::from_millis(1200), "{:?}", start.elapsed());
        assert!(said.contains("perflock: waiting for ") && said.contains(" to end; killed in "), "{said}");
        job.wait().dies_of(libc::SIGKILL);
        world.assert_clean();
    }
}

#[test]
fn a_stopped_job_is_ended_too() {
    needs!(V2);
    for line in ["perflock -q", "perflock -q --cgroup none"] {
        let world = World::new();
        let job = world.cmd(line).args(["sh", "-c", "echo $$ > main; echo running; exec sleep 600"]).spawn();
        job.wait_stdout("running\n");
        let main = pid_in(&world.path("main"));
        crate::harness::signal(main, libc::SIGSTOP);
        job.signal(libc::SIGSTOP);
        wait_until("both are stopped", || state_of(main) == 'T' && state_of(job.pid()) == 'T');
        cancelled(&world, "--grace 60", "1");
        job.wait().dies_of(libc::SIGTERM);
        world.assert_clean();
    }
}

#[test]
fn a_stopped_waiter_leaves_too() {
    needs!(V2);
    for stop in [libc::SIGTSTP, libc::SIGSTOP] {
        let world = World::new();
        let holder = world.holder("perflock");
        let waiter = world.waiter("2.x", world.cmd("perflock true"));
        waiter.signal(stop);
        wait_until("the waiter is stopped", || state_of(waiter.pid()) == 'T');
        cancelled(&world, "", "2");
        waiter.wait().dies_of(libc::SIGTERM).mentions(&format!("cancelled by {}", me()));
        assert_eq!(world.tickets(), ["1.x"]);
        holder.signal(libc::SIGTERM);
        holder.wait().dies_of(libc::SIGTERM);
        world.assert_clean();
    }
}

#[test]
fn an_orphan_is_ended() {
    needs!(V2);
    let world = World::new();
    let script = "trap '' TERM; echo $$ > main; echo running; while :; do sleep 0.01; done";
    let job = world.cmd("perflock sh -c").arg(script).spawn();
    job.wait_stdout("running\n");
    let main = pid_in(&world.path("main"));
    world.kill_both(job, "1.x");
    assert!(alive(main));
    let said = cancelled(&world, "", "1");
    assert!(said.starts_with("perflock: cancelled job 1 ("), "{said}");
    assert!(!alive(main));
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn only_its_owner_and_root_cancel_a_job() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let job = world.holder("perflock");
    let done = world.cmd("perflock --cancel 1").uid(BOB).run().exits(125).prints("");
    assert_eq!(
        done.stderr,
        "perflock: job 1 (sh -c 'echo running; exec sleep 600' of 41001) is not yours; only 41001 or root can cancel it\n"
    );
    assert!(alive(job.pid()));
    assert!(!std::fs::read_to_string(world.queue().join("1.x")).unwrap().contains("cancelled"));
    world.cmd("pls --cancel 1").uid(0).run().exits(0).mentions("pls: cancelled job 1 (");
    job.wait().dies_of(libc::SIGTERM).mentions("perflock: cancelled by root\n");
    world.assert_clean();
}

#[test]
fn a_ticket_that_names_somebody_else_s_process_does_not_make_root_end_it() {
    needs!(Root, V2, OwnGroup);
    let world = World::new();
    let canary = world.cmd("sleep 600").uid(BOB).spawn();
    for granted in ["", "{\"event\":\"granted\",\"at_usec\":1}\n"] {
        // Of the user who wrote it, and live.
        let mut line: serde_json::Value =
            serde_json::from_str(&joined_by(canary.pid().cast_unsigned(), "make", "")).unwrap();
        line["start_ticks"] = start_ticks(canary.pid()).into();
        let ticket = put(&world, "1.x", format!("{line}\n{granted}"));
        let held = hold(&ticket);
        let done = world.cmd("perflock --cancel 1").run().exits(125).prints("");
        assert!(
            done.stderr.contains("job 1 (make of 41001) does not end: its ticket is held, but not by"),
            "{}",
            done.stderr
        );
        assert!(alive(canary.pid()));
        drop(held);
        std::fs::remove_file(ticket).unwrap();
    }
    canary.signal(libc::SIGTERM);
    canary.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn what_is_no_job_is_an_error_that_says_where_to_look() {
    needs!(V2);
    let world = World::new();
    let none = "perflock: there is no job 7 here; wholock shows the jobs with their numbers\n";
    world.cmd("perflock --cancel 7").run().exits(125).prints("").says(none);
    world
        .cmd("perflock --cancel make")
        .run()
        .exits(125)
        .says("perflock: make is not a job's number; wholock shows them\n");
    let job = world.holder("perflock");
    world.cmd("perflock --cancel 1-2-00000003-4").run().exits(125).mentions("there is no job 1-2-00000003-4 here");
    job.signal(libc::SIGTERM);
    job.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn a_job_does_not_cancel_the_job_that_it_is_a_part_of() {
    needs!(V2);
    let world = World::new();
    let done = world.cmd("perflock sh -c").arg("perflock --cancel 1; echo $?").run().exits(0).prints("125\n");
    assert!(done.stderr.contains("this runs inside job 1 ("), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn the_whole_identity_of_a_job_names_it_as_well() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock -q sh -c").arg("echo $PERFLOCK_JOB; exec sleep 600").spawn();
    job.wait_stdout("\n");
    cancelled(&world, "", job.stdout().trim());
    job.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn a_job_whose_group_cannot_be_seen_has_its_time_all_the_same() {
    needs!(Root, V2, OwnGroup, Program("unshare"));
    let world = World::new();
    // Longer than what has nothing left to do is given.
    let script = "trap 'sleep 6; echo saved; exit 3' TERM; echo running; while :; do sleep 0.01; done";
    let job = world.cmd("perflock -q sh -c").arg(script).spawn();
    job.wait_stdout("running\n");
    world.cmd("unshare --cgroup perflock --grace 60 --cancel 1").run().exits(0).mentions("perflock: cancelled job 1 (");
    job.wait().exits(3).prints("running\nsaved\n");
    world.assert_clean();
}

#[test]
fn a_number_that_means_two_jobs_cancels_neither() {
    needs!(Root, V2);
    let world = World::new();
    let job = world.cmd("perflock -q sh -c").arg("echo $PERFLOCK_JOB; exec sleep 600").spawn();
    job.wait_stdout("\n");
    let made = put(&world, "1.s", joined_by(2, "make", ""));
    let held = hold(&made);
    let id = job.stdout().trim().to_owned();
    let done = world.cmd("perflock --cancel 1").run().exits(125).prints("");
    assert!(done.stderr.starts_with("perflock: 1 means more than one job; name one of: "), "{}", done.stderr);
    assert!(done.stderr.contains(&id) && alive(job.pid()), "{}", done.stderr);
    cancelled(&world, "", &id);
    job.wait().dies_of(libc::SIGTERM);
    drop(held);
    std::fs::remove_file(made).unwrap();
    world.assert_clean();
}
