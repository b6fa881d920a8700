//! Order, whatever becomes of those who wait: cancelled, killed, late, stopped.

use crate::harness::{Cmd, World, alive, pid_in, threads_of, wait_until};
use crate::needs;
use crate::outsiders::{end_flock, flock_holder};
use crate::queue::{appends, sleeps};
use crate::terminal::{leave, shell};

#[test]
fn whoever_leaves_a_queue_the_rest_start_in_order() {
    needs!(V2);
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        // Behind the holder, in the middle, at the end.
        for gone in [2, 4, 6] {
            let world = World::new();
            let holder = world.holder("perflock");
            let mut waiters: Vec<_> = (2..7)
                .map(|number| {
                    let cmd = appends(&world, "perflock", &number.to_string());
                    (number, world.waiter(&format!("{number}.x"), cmd))
                })
                .collect();
            let index = waiters.iter().position(|(number, _)| *number == gone).unwrap();
            let (_, waiter) = waiters.remove(index);
            waiter.signal(signal);
            waiter.wait().dies_of(signal).prints("");
            assert_eq!(world.read("order"), "", "{signal}, {gone}: somebody started beside the holder");
            holder.signal(libc::SIGTERM);
            holder.wait().dies_of(libc::SIGTERM);
            for (_, waiter) in waiters {
                waiter.wait().exits(0);
            }
            let expected: String =
                (2..7).filter(|&number| number != gone).map(|number| format!("{number}\n")).collect();
            assert_eq!(world.read("order"), expected, "{signal}, {gone}");
            // A newcomer cleans what a killed one left.
            world.cmd("perflock true").run().exits(0).says("");
            world.assert_clean();
        }
    }
}

/// Two shared jobs, each of which ends only when both run.
fn pair(world: &World, number: u32) -> Cmd {
    let script = "touch in.$0; until [ -e in.3 ] && [ -e in.4 ]; do sleep 0.01; done";
    world.cmd("pls sh -c").arg(script).arg(number.to_string())
}

#[test]
fn when_the_one_that_two_shared_jobs_wait_for_is_gone_both_start_together() {
    needs!(V2);
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let world = World::new();
        let holder = world.holder("pls");
        let exclusive = world.waiter("2.x", world.cmd("perflock touch ran"));
        let pair = [3, 4].map(|number| world.waiter(&format!("{number}.s"), pair(&world, number)));
        assert!(!world.path("in.3").exists() && !world.path("in.4").exists());
        exclusive.signal(signal);
        exclusive.wait().dies_of(signal);
        // Beside the holder, which is shared as well.
        for shared in pair {
            shared.wait().exits(0).mentions("pls: got lock after ");
        }
        holder.signal(libc::SIGTERM);
        holder.wait().dies_of(libc::SIGTERM);
        assert!(!world.path("ran").exists());
        world.cmd("perflock true").run().exits(0).says("");
        world.assert_clean();
    }
}

#[test]
fn when_a_waiter_is_gone_the_shared_jobs_behind_it_still_wait_for_the_holder() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let exclusive = world.waiter("2.x", world.cmd("perflock touch ran"));
    let pair = [3, 4].map(|number| world.waiter(&format!("{number}.s"), pair(&world, number)));
    exclusive.signal(libc::SIGTERM);
    exclusive.wait().dies_of(libc::SIGTERM);
    for shared in &pair {
        // It has looked again when it says so.
        shared.wait_stderr("pls: waiting for lock behind 1 job; ");
    }
    assert!(!world.path("in.3").exists() && !world.path("in.4").exists());
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for shared in pair {
        shared.wait().exits(0);
    }
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn a_wait_ends_in_time_also_while_the_job_ahead_gives_the_machine_back() {
    needs!(V2);
    let world = World::new();
    let leftover = "(trap '' TERM; echo > trapped; while :; do sleep 0.01; done) & echo $! > pid";
    let job = format!("{leftover}; until [ -e trapped ]; do sleep 0.01; done; exit 5");
    let holder = world.cmd("perflock --grace 1h sh -c").arg(job).spawn();
    wait_until("the machine is being given back", || {
        world.ticket("1.x").last().is_some_and(|line| line["event"] == "releasing")
    });
    let member = pid_in(&world.path("pid"));
    let gives_up = |line: &str| {
        let done = world.cmd(line).arg("touch").arg("ran").run().exits(75).prints("");
        let name = line.split(' ').next().unwrap();
        assert!(done.stderr.contains(&format!("{name}: gave up after waiting ")), "{}", done.stderr);
        assert!(alive(member) && !world.lock_is_free());
    };
    // Nobody between: these sleep on the lock file.
    gives_up("perflock -w 0.2");
    gives_up("pls -w 0.2");
    let patient_one = world.waiter("2.x", appends(&world, "perflock -w 1h", "patient"));
    // These on a ticket.
    gives_up("perflock -w 0.2");
    gives_up("pls -w 0.2");
    let last = world.waiter("3.x", appends(&world, "perflock", "last"));
    assert_eq!(world.tickets(), ["1.x", "2.x", "3.x"]);
    // Ends the grace.
    holder.signal(libc::SIGTERM);
    let done = holder.wait().exits(5);
    assert!(done.stderr.contains("perflock: killed "), "{}", done.stderr);
    patient_one.wait().exits(0);
    last.wait().exits(0);
    assert_eq!(world.read("order"), "patient\nlast\n");
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn nonblock_does_not_pass_a_waiter_when_no_job_has_the_machine() {
    needs!(V2, Program("flock"));
    let world = World::new();
    // The lock file would let a shared job in.
    let outsider = flock_holder(&world, &["-s"]);
    let waiter = world.waiter("1.x", appends(&world, "perflock", "waiter"));
    for line in ["pls -n", "perflock -n", "pls -w 0"] {
        let done = world.cmd(line).arg("touch").arg("ran").run().exits(75).prints("");
        let name = line.split(' ').next().unwrap();
        assert!(done.stderr.starts_with(&format!("{name}: not waiting for lock behind 1 job")), "{}", done.stderr);
        assert_eq!(world.tickets(), ["1.x"], "{line}");
    }
    waiter.signal(libc::SIGTERM);
    waiter.wait().dies_of(libc::SIGTERM);
    world.cmd("pls -n echo beside").run().exits(0).prints("beside\n").says("");
    end_flock(&world, outsider);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn a_waiter_sent_to_the_background_at_once_keeps_its_place() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let holder = world.holder("perflock");
    let mut terminal = shell(&world);
    terminal.type_in("perflock sh -c 'echo first >> order'\n");
    terminal.wait_screen("perflock: waiting for lock behind 1 job");
    let waiter = terminal.foreground();
    let behind = world.waiter("3.x", appends(&world, "perflock", "second"));
    let last = world.waiter("4.s", appends(&world, "pls", "third"));
    let resumed = || world.ticket("2.x").iter().filter(|line| line["event"] == "resumed").count();
    for round in 1..=3 {
        terminal.type_in("\x1a");
        wait_until("the shell has the terminal", || terminal.foreground() == terminal.pid());
        terminal.type_in("bg\n");
        wait_until("it waits again", || resumed() == round && threads_of(waiter).len() == 2);
        assert_eq!(world.tickets(), ["1.x", "2.x", "3.x", "4.s"]);
        if round < 3 {
            terminal.type_in("fg\n");
            wait_until("the waiter has the terminal", || terminal.foreground() == waiter);
        }
    }
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    behind.wait().exits(0);
    last.wait().exits(0);
    assert_eq!(world.read("order"), "first\nsecond\nthird\n");
    terminal.type_in("wait; echo co''de=$?\n");
    terminal.wait_screen("code=0");
    leave(&world, terminal);
}

#[test]
fn a_shared_job_never_passes_an_exclusive_one_that_came_before_it() {
    needs!(V2);
    let world = World::new();
    let first = world.holder("pls");
    let exclusive = world.waiter("2.x", appends(&world, "perflock", "2"));
    let shared = world.waiter("3.s", appends(&world, "pls", "3"));
    let exclusive_too = world.waiter("4.x", appends(&world, "perflock", "4"));
    let last = world.waiter("5.s", appends(&world, "pls", "5"));
    // The first exclusive one gives up: what is behind the second still waits for that.
    exclusive.signal(libc::SIGINT);
    exclusive.wait().dies_of(libc::SIGINT);
    shared.wait().exits(0);
    assert_eq!(world.read("order"), "3\n");
    assert_eq!(world.tickets(), ["1.s", "4.x", "5.s"]);
    for waiter in [&exclusive_too, &last] {
        wait_until("it has looked again, and sleeps", || threads_of(waiter.pid()).len() == 2 && sleeps(waiter.pid()));
    }
    assert_eq!(world.read("order"), "3\n");
    first.signal(libc::SIGTERM);
    first.wait().dies_of(libc::SIGTERM);
    exclusive_too.wait().exits(0);
    last.wait().exits(0);
    assert_eq!(world.read("order"), "3\n4\n5\n");
    world.assert_clean();
}
