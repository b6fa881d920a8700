//! Outsiders: plain flock(1) and the older perflock script exclude us and are excluded.

use crate::harness::{ALICE, BOB, Cmd, Running, World, me, wait_until};
use crate::needs;
use crate::queue::appends;

/// `flock` on the world's lock with these options, running until it gets a signal.
pub(crate) fn flock(world: &World, options: &[&str]) -> Cmd {
    world.cmd("flock").args(options).arg(world.lock())
}

#[track_caller]
pub(crate) fn flock_holder(world: &World, options: &[&str]) -> Running {
    let holder = flock(world, options).args(["sh", "-c", "echo running; exec sleep 600"]).spawn();
    holder.wait_stdout("running\n");
    holder
}

/// Ends `flock COMMAND` with its command; flock(1) itself does not pass signals on.
pub(crate) fn end_flock(world: &World, holder: Running) {
    let children = format!("/proc/{0}/task/{0}/children", holder.pid());
    let child = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    assert!(world.processes().contains(&child));
    crate::harness::signal(child, libc::SIGTERM);
    holder.wait().exits(128 + libc::SIGTERM);
}

#[test]
fn an_exclusive_flock_keeps_every_job_out() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let holder = flock_holder(&world, &[]);
    world.cmd("perflock -n true").run().exits(75);
    let done = world.cmd("pls -n true").run().exits(75).prints("");
    let who = format!("(exclusive, by flock, process {})\n", holder.pid());
    assert!(done.stderr.starts_with(&format!("pls: not waiting for lock; {} runs flock ", me())), "{}", done.stderr);
    assert!(done.stderr.ends_with(&who), "{}", done.stderr);
    let waiter = world.waiter("1.x", world.cmd("perflock echo after"));
    waiter.wait_stderr(&format!("perflock: waiting for lock; {} runs flock ", me()));
    waiter.wait_stderr(&who);
    assert_eq!(waiter.stdout(), "");
    end_flock(&world, holder);
    waiter.wait().exits(0).prints("after\n").mentions("perflock: got lock after ");
    world.assert_clean();
}

#[test]
fn a_shared_flock_keeps_only_exclusive_jobs_out() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let holder = flock_holder(&world, &["-s"]);
    world.cmd("pls echo beside").run().exits(0).prints("beside\n").says("");
    world.cmd("perflock -n true").run().exits(75).mentions("(shared, by flock, process ");
    let waiter = world.waiter("1.x", world.cmd("perflock true"));
    end_flock(&world, holder);
    waiter.wait().exits(0);
    world.assert_clean();
}

#[test]
fn an_exclusive_job_keeps_flock_out() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let holder = world.holder("perflock");
    flock(&world, &["-n"]).arg("true").run().exits(1);
    flock(&world, &["-n", "-s"]).arg("true").run().exits(1);
    let waiter = flock(&world, &[]).args(["sh", "-c", "ls lock.d; echo done"]).spawn();
    wait_until("flock waits", || waits_for_lock(waiter.pid()));
    assert_eq!(waiter.stdout(), "");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    let done = waiter.wait().exits(0);
    assert!(done.stdout.ends_with("done\n"), "{}", done.stdout);
    world.assert_clean();
}

#[test]
fn a_shared_job_keeps_only_exclusive_flock_out() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let holder = world.holder("pls");
    flock(&world, &["-n", "-s"]).arg("true").run().exits(0);
    flock(&world, &["-n"]).arg("true").run().exits(1);
    let waiter = flock(&world, &[]).args(["echo", "alone"]).spawn();
    wait_until("flock waits", || waits_for_lock(waiter.pid()));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0).prints("alone\n");
    world.assert_clean();
}

/// Whether the kernel lists the process as waiting for a lock: `N: -> FLOCK …`.
pub(crate) fn waits_for_lock(pid: i32) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("->") && line.split_whitespace().any(|word| word == pid.to_string()))
}

/// Whether a use of the lock, by name and options, is for one alone.
fn is_exclusive(line: &str) -> bool {
    matches!(line, "flock" | "perflock")
}

/// A command that uses the lock as `line` says: by a job of ours, or by flock(1).
fn uses(world: &World, line: &str) -> Cmd {
    let cmd = world.cmd(line);
    if line.starts_with("flock") { cmd.arg(world.lock()) } else { cmd }
}

#[test]
fn every_pair_of_jobs_and_outsiders_excludes_the_other_unless_both_are_shared() {
    needs!(V2, Program("flock"));
    let kinds = ["flock", "flock -s", "perflock", "pls"];
    for first in kinds {
        for second in kinds {
            let world = World::new();
            let job = "echo running; until [ -e stop ]; do sleep 0.01; done";
            let holder = uses(&world, first).args(["sh", "-c", job]).spawn();
            holder.wait_stdout("running\n");
            let other = uses(&world, second).args(["echo", "ran"]).spawn();
            if is_exclusive(first) || is_exclusive(second) {
                wait_until(&format!("{second} waits behind {first}"), || waits_for_lock(other.pid()));
                assert_eq!(other.stdout(), "", "{first}, {second}");
                world.write("stop", "");
                other.wait().exits(0).prints("ran\n");
                holder.wait().exits(0);
            } else {
                other.wait().exits(0).prints("ran\n").says("");
                world.write("stop", "");
                holder.wait().exits(0);
            }
            world.assert_clean();
        }
    }
}

#[test]
fn an_outsider_that_waits_is_served_before_a_job_that_came_later() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let holder = world.holder("perflock");
    let outsider = flock(&world, &[]).args(["sh", "-c", "echo outsider >> order"]).spawn();
    wait_until("flock waits", || waits_for_lock(outsider.pid()));
    let later = world.waiter("2.x", appends(&world, "perflock", "later"));
    wait_until("the later job waits for the lock file", || waits_for_lock(later.pid()));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    outsider.wait().exits(0);
    later.wait().exits(0);
    assert_eq!(world.read("order"), "outsider\nlater\n");
    world.assert_clean();
}

#[test]
fn a_wait_for_an_outsider_ends_by_its_limit_and_by_a_signal() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let holder = flock_holder(&world, &[]);
    for line in ["perflock -w 0.1", "pls -w 0.1"] {
        let done = world.cmd(line).args(["touch", "ran"]).run().exits(75).prints("");
        assert!(done.stderr.contains(": gave up after waiting "), "{}", done.stderr);
        assert_eq!(world.tickets(), Vec::<String>::new());
    }
    for (program, ticket) in [("perflock", "1.x"), ("pls", "1.s")] {
        let waiter = world.waiter(ticket, world.cmd(program).args(["touch", "ran"]));
        waiter.signal(libc::SIGINT);
        waiter.wait().dies_of(libc::SIGINT);
        assert_eq!(world.tickets(), Vec::<String>::new());
        assert!(!waits_in_the_queue(&world), "its place before the lock file is left");
    }
    flock(&world, &["-n"]).arg("true").run().exits(1);
    end_flock(&world, holder);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

/// Whether anybody waits for the world's lock file.
fn waits_in_the_queue(world: &World) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{} ", std::fs::metadata(world.lock()).unwrap().ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
}

#[test]
fn another_user_s_outsiders_are_named_and_shown() {
    needs!(Root, V2, OwnGroup, Program("flock"));
    let world = World::for_uid(ALICE);
    let job = ["sh", "-c", "echo running; exec sleep 600"];
    let holder = flock(&world, &["-s"]).args(job).uid(BOB).spawn();
    holder.wait_stdout("running\n");
    let waiter = flock(&world, &[]).arg("true").uid(BOB).spawn();
    wait_until("flock waits", || waits_for_lock(waiter.pid()));
    let command = format!("flock -s {} sh -c ", world.lock().display());
    let busy = world.cmd("perflock -n true").run().exits(75);
    let said = format!("perflock: not waiting for lock; 41002 runs {command}");
    assert!(busy.stderr.starts_with(&said), "{}", busy.stderr);
    assert!(busy.stderr.ends_with(&format!("(shared, by flock, process {})\n", holder.pid())), "{}", busy.stderr);
    for uid in [ALICE, 0] {
        let shown = world.cmd("wholock --sample 0").uid(uid).run().exits(0).says("").stdout;
        let row = |pid: i32| {
            let end = format!("  # process {pid}");
            let row = shown.lines().find(|line| line.ends_with(&end)).unwrap_or_else(|| panic!("no {end}:\n{shown}"));
            row.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert!(row(holder.pid()).starts_with("- 41002 shared flock - "), "{shown}");
        assert!(row(holder.pid()).contains(&command), "{shown}");
        assert!(row(waiter.pid()).starts_with("- 41002 exclusive waiting (flock) - "), "{shown}");
        assert_eq!(shown.lines().count(), 3, "{shown}");
    }
    end_flock(&world, holder);
    waiter.wait().exits(0);
    world.assert_clean();
}

/// The protocol of the older perflock script, on an inherited descriptor.
fn older_script(world: &World) {
    let text = format!(
        "#!/bin/bash\nexec 9<{}\nif ! flock -n -x 9; then\n  echo 'older: waiting for lock' >&2\n  flock -x 9\nfi\n\
         \"$@\" 9<&-\nstatus=$?\nexec 9<&-\nexit $status\n",
        world.lock().display()
    );
    world.script("older", &text);
}

#[test]
fn the_older_script_keeps_every_job_out() {
    needs!(V2, Program("flock"), Program("bash"));
    let world = World::new();
    older_script(&world);
    let holder = world.sh("bash older sh -c 'echo running; until [ -e go ]; do sleep 0.01; done; exit 7'").spawn();
    holder.wait_stdout("running\n");
    world.cmd("perflock -n true").run().exits(75);
    world.cmd("pls -n true").run().exits(75);
    let exclusive = world.waiter("1.x", world.cmd("perflock echo exclusive"));
    let shared = world.waiter("2.s", world.cmd("pls echo shared"));
    world.write("go", "");
    holder.wait().exits(7);
    exclusive.wait().exits(0).prints("exclusive\n");
    shared.wait().exits(0).prints("shared\n");
    world.assert_clean();
}

#[test]
fn every_job_keeps_the_older_script_out() {
    needs!(V2, Program("flock"), Program("bash"));
    for program in ["perflock", "pls"] {
        let world = World::new();
        older_script(&world);
        let holder = world.holder(program);
        let older = world.cmd("bash older sh -c").arg("ls lock.d; exit 7").spawn();
        older.wait_stderr("older: waiting for lock\n");
        assert_eq!(older.stdout(), "");
        holder.signal(libc::SIGTERM);
        holder.wait().dies_of(libc::SIGTERM);
        older.wait().exits(7);
        world.assert_clean();
    }
}

#[test]
fn wholock_shows_outsiders_that_hold_and_that_wait() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let holder = flock_holder(&world, &["-s"]);
    let waiter = flock(&world, &["-x"]).arg("true").spawn();
    wait_until("flock waits", || waits_for_lock(waiter.pid()));
    let done = world.cmd("wholock --sample 0").run().exits(0).says("");
    let row = |pid: i32| {
        let end = format!("# process {pid}");
        let row = done.stdout.lines().find(|line| line.ends_with(&end));
        row.unwrap_or_else(|| panic!("no {end}:\n{}", done.stdout)).split_whitespace().map(str::to_owned).collect()
    };
    let held: Vec<String> = row(holder.pid());
    assert_eq!(held[..4], ["-", &*me(), "shared", "flock"], "{}", done.stdout);
    assert!(held.join(" ").contains("flock -s "), "{}", done.stdout);
    let waits: Vec<String> = row(waiter.pid());
    assert_eq!(waits[..5], ["-", &*me(), "exclusive", "waiting", "(flock)"], "{}", done.stdout);
    assert_eq!(done.stdout.lines().count(), 3, "{}", done.stdout);
    world.cmd("wholock -q").run().exits(1).prints("").says("");
    end_flock(&world, holder);
    waiter.wait().exits(0);
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n").says("");
    world.assert_clean();
}

#[test]
fn a_lock_left_to_a_child_is_shown_with_the_process_that_took_it() {
    needs!(V2, Program("flock"), Program("bash"));
    let world = World::new();
    // The shell ends and leaves its descriptor, and so the lock, to the child.
    let script = "exec 9<lock; flock -x 9; sleep 600 >/dev/null 2>&1 & echo $! > child; echo $$";
    let ended = world.cmd("bash -c").arg(script).run().exits(0);
    let pid = ended.stdout.trim();
    let child = crate::harness::pid_in(&world.path("child"));
    let done = world.cmd("perflock -n true").run().exits(75);
    assert!(done.stderr.starts_with("perflock: not waiting for lock"), "{}", done.stderr);
    let shown = world.cmd("wholock --sample 0").run().exits(0).stdout;
    assert_eq!(shown.lines().count(), 2, "{shown}\nlock taken by {pid}");
    assert!(shown.contains("a process that ended"), "{shown}");
    crate::harness::signal(child, libc::SIGKILL);
    world.wait_clean();
}

#[test]
fn jobs_are_not_taken_for_outsiders() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("pls");
    let beside = world.holder("pls");
    let waiter = world.waiter("3.x", world.cmd("perflock true"));
    let shown = world.cmd("wholock --sample 0").run().exits(0).stdout;
    assert!(!shown.contains("flock)") && !shown.contains("# process"), "{shown}");
    assert_eq!(shown.lines().count(), 4, "{shown}");
    for job in [holder, beside] {
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM);
    }
    waiter.wait().exits(0);
    world.assert_clean();
}
