//! Leaving the queue in odd ways: cancelled, killed, stopped, with the ticket or the lock file pulled away.

use std::collections::BTreeMap;
use std::fs;

use crate::harness::{World, alive, me, pid_in, signal, state_of, threads_of, wait_until};
use crate::needs;
use crate::queue::{LOGS, appends, check_log};

#[test]
fn cancelled_waiters_leave_at_once_and_the_others_keep_their_order() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let mut waiters: BTreeMap<i32, _> = (2..8)
        .map(|number| (number, world.waiter(&format!("{number}.x"), appends(&world, "perflock", &number.to_string()))))
        .collect();
    // The first, one in the middle, and the last.
    for (number, signal) in [(2, libc::SIGINT), (4, libc::SIGTERM), (7, libc::SIGHUP)] {
        let waiter = waiters.remove(&number).unwrap();
        waiter.signal(signal);
        waiter.wait().dies_of(signal).prints("");
        assert!(!world.tickets().contains(&format!("{number}.x")));
    }
    assert_eq!(world.tickets(), ["1.x", "3.x", "5.x", "6.x"]);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for (_, waiter) in waiters {
        waiter.wait().exits(0);
    }
    assert_eq!(world.read("order"), "3\n5\n6\n");
    world.assert_clean();
}

#[test]
fn a_waiter_killed_outright_holds_nobody_up_and_its_ticket_is_cleaned() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let killed = world.waiter("2.x", world.cmd("perflock true"));
    let behind = world.waiter("3.x", appends(&world, "perflock", "behind"));
    killed.signal(libc::SIGKILL);
    killed.wait().dies_of(libc::SIGKILL);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    behind.wait().exits(0);
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn a_waiter_whose_ticket_was_deleted_still_runs_alone() {
    needs!(V2);
    let world = World::new();
    let script = "mkdir alone && sleep 0.05 && rmdir alone && echo ok";
    let holder = world.holder("perflock");
    let deleted = world.waiter("2.x", world.cmd("perflock sh -c").arg(script));
    fs::remove_file(world.queue().join("2.x")).unwrap();
    // The number is given again; neither may remove the other's ticket.
    let heir = world.waiter("2.x", world.cmd("perflock sh -c").arg(script));
    let third = world.waiter("3.x", world.cmd("perflock sh -c").arg(script));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for job in [deleted, heir, third] {
        job.wait().exits(0).prints("ok\n");
    }
    world.assert_clean();
}

#[test]
fn a_holder_whose_ticket_was_deleted_still_keeps_others_out() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    fs::remove_file(world.queue().join("1.x")).unwrap();
    world.cmd("pls -n true").run().exits(75);
    let waiter = world.waiter("1.x", world.cmd("perflock true"));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0);
    world.assert_clean();
}

#[test]
fn a_job_whose_keepers_were_both_killed_is_ended_by_the_next_before_it_starts() {
    needs!(V2);
    let world = World::new();
    let holder = world.cmd("perflock sh -c").arg("echo $$ > pid; exec sleep 600").spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(holder, "1.x");
    assert!(alive(member));
    let next = format!("grep 'State:.[^ZX]' /proc/{member}/status 2>/dev/null; echo done");
    let done = world.cmd("perflock sh -c").arg(next).run().exits(0).prints("done\n");
    assert!(
        done.stderr.contains(&format!(
            "perflock: ending the job sh -c 'echo $$ > pid; exec sleep 600' of {}, whose supervisor was killed, before starting\n",
            me()
        )),
        "{}",
        done.stderr
    );
    // The ticket of the orphan named its group until it was empty; now both can go.
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn the_ticket_of_a_crashed_job_with_nothing_left_is_cleaned_silently() {
    needs!(V2);
    let world = World::new();
    let holder = world.cmd("perflock sh -c").arg("echo $$ > pid; exec sleep 600").spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(holder, "1.x");
    signal(member, libc::SIGKILL);
    wait_until("the member is dead", || !alive(member));
    assert_eq!(world.tickets(), ["1.x"]);
    world.cmd("pls true").run().exits(0).prints("").says("");
    world.assert_clean();
}

#[test]
fn a_stopped_waiter_lets_others_pass_and_goes_on_later() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let stopped = world.waiter("2.x", appends(&world, "perflock", "stopped"));
    let behind = world.waiter("3.x", appends(&world, "perflock", "behind"));
    stopped.signal(libc::SIGTSTP);
    wait_until("the waiter is stopped", || state_of(stopped.pid()) == 'T');
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    behind.wait().exits(0);
    stopped.signal(libc::SIGCONT);
    stopped.wait().exits(0);
    assert_eq!(world.read("order"), "behind\nstopped\n");
    world.assert_clean();
}

#[test]
fn a_stopped_waiter_that_nobody_passed_keeps_its_place() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let stopped = world.waiter("2.x", appends(&world, "perflock", "stopped"));
    let behind = world.waiter("3.x", appends(&world, "perflock", "behind"));
    stopped.signal(libc::SIGTSTP);
    wait_until("the waiter is stopped", || state_of(stopped.pid()) == 'T');
    stopped.signal(libc::SIGCONT);
    wait_until("the waiter goes on", || {
        world.ticket("2.x").last().is_some_and(|line| line["event"] == "resumed")
            && threads_of(stopped.pid()).len() == 2
    });
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    stopped.wait().exits(0);
    behind.wait().exits(0);
    assert_eq!(world.read("order"), "stopped\nbehind\n");
    world.assert_clean();
}

#[test]
fn a_lock_file_that_was_replaced_while_a_job_waited_is_an_error() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let waiter = world.waiter("2.x", world.cmd("perflock touch ran"));
    fs::remove_file(world.lock()).unwrap();
    fs::write(world.lock(), "").unwrap();
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    let said = format!("perflock: {} was replaced while this job waited; run it again\n", world.lock().display());
    waiter.wait().exits(125).prints("").mentions(&said);
    assert!(!world.path("ran").exists());
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn a_neighbour_who_locks_the_queue_directory_keeps_nobody_who_does_not_want_to_wait() {
    needs!(V2);
    let world = World::new();
    // Anybody who can read it can flock(2) it.
    let directory = fs::File::open(world.queue()).unwrap();
    directory.lock().unwrap();
    world.cmd("perflock -n touch ran").run().exits(75).prints("");
    world.cmd("pls -w 0.1 touch ran").run().exits(75).prints("");
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n");
    let waiter = world.cmd("perflock touch ran").spawn();
    wait_until("it waits", || threads_of(waiter.pid()).len() == 2);
    waiter.signal(libc::SIGINT);
    waiter.wait().dies_of(libc::SIGINT);
    let waiter = world.cmd("perflock echo ran").spawn();
    wait_until("it waits", || threads_of(waiter.pid()).len() == 2);
    drop(directory);
    waiter.wait().exits(0).prints("ran\n");
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn a_newcomer_leaves_a_stopped_waiter_s_ticket_alone_but_not_a_dead_one_s() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let stopped = world.waiter("2.x", world.cmd("perflock echo went on"));
    let killed = world.waiter("3.x", world.cmd("perflock true"));
    for waiter in [&stopped, &killed] {
        waiter.signal(libc::SIGTSTP);
        wait_until("the waiter is stopped", || state_of(waiter.pid()) == 'T');
    }
    killed.signal(libc::SIGKILL);
    killed.wait().dies_of(libc::SIGKILL);
    world.cmd("perflock -n true").run().exits(75);
    assert_eq!(world.tickets(), ["1.x", "2.x"]);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    // It had the machine while the waiter was stopped, so the waiter has to queue anew, and still runs.
    world.cmd("perflock true").run().exits(0).says("");
    stopped.signal(libc::SIGCONT);
    stopped.wait().exits(0).prints("went on\n");
    world.assert_clean();
}

#[test]
fn a_stopped_waiter_dies_of_what_it_is_sent() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let stopped = world.waiter("2.x", world.cmd("perflock true"));
    stopped.signal(libc::SIGTSTP);
    wait_until("the waiter is stopped", || state_of(stopped.pid()) == 'T');
    stopped.signal(libc::SIGTERM);
    stopped.signal(libc::SIGCONT);
    stopped.wait().dies_of(libc::SIGTERM);
    assert_eq!(world.tickets(), ["1.x"]);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn waiters_that_leave_stop_and_go_on_as_they_like_never_make_two_jobs_overlap() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let jobs: Vec<_> = (0..30)
        .map(|index: usize| {
            let program = if index.is_multiple_of(3) { "perflock -q" } else { "pls -q" };
            world.cmd(program).args(["sh", "-c", LOGS, "0.01"]).spawn()
        })
        .collect();
    wait_until("all sleep", || jobs.iter().all(|job| threads_of(job.pid()).len() == 2));
    // Every fifth is cancelled, every seventh killed, every fourth stopped.
    let ending = |index: usize| match index {
        _ if index % 5 == 1 => Some(libc::SIGINT),
        _ if index % 7 == 2 => Some(libc::SIGKILL),
        _ => None,
    };
    for (index, job) in jobs.iter().enumerate() {
        match ending(index) {
            Some(signal) => job.signal(signal),
            None if index % 4 == 3 => job.signal(libc::SIGTSTP),
            None => {}
        }
    }
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for (index, job) in jobs.iter().enumerate().filter(|(index, _)| index % 4 == 3 && ending(*index).is_none()) {
        wait_until(&format!("{index} is stopped"), || matches!(state_of(job.pid()), 'T' | 'Z' | '?'));
        job.signal(libc::SIGCONT);
    }
    for (index, job) in jobs.into_iter().enumerate() {
        match ending(index) {
            Some(signal) => job.wait().dies_of(signal),
            None => job.wait().exits(0).says(""),
        };
    }
    check_log(&world.read("log"));
    // A newcomer cleans what the killed ones left.
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}
