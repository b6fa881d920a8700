//! Jobs that make groups, close them, leave theirs, or make them such as cannot be killed by themselves.

use std::fs;
use std::path::Path;

use super::of_a_plain_user;
use crate::guard::{guard_of, kill_both};
use crate::harness::{Cmd, World, alive, groups, pid_in, signal, wait_until};
use crate::needs;

/// A shell line that knows the job's group as `own`.
const OWN: &str = "own=$MOUNT$(sed -n s/^0:://p /proc/self/cgroup)";

/// A job of a shell's.
fn job(world: &World, options: &str, script: &str) -> Cmd {
    let mount = groups::mount().unwrap();
    world.cmd(&format!("perflock {options} sh -c")).arg(format!("{OWN}; {script}")).env("MOUNT", mount)
}

/// A shell line that leaves a process in a group far below, whose pid is in `pid`, and closes every one of them.
const BURIED: &str = "deep=$own; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do deep=$deep/$i; done; mkdir -p $deep $own/a/b; \
    sh -c 'echo 0 > '$deep'/cgroup.procs; trap \"\" TERM; echo $$ > pid.new; mv pid.new pid; exec sleep 600' & \
    until grep -qs sleep /proc/$(cat pid 2>/dev/null)/comm; do sleep 0.005; done; \
    find $own -mindepth 2 -type f -exec chmod -f 000 {} +; find $own -mindepth 1 -depth -type d -exec chmod -f 000 {} +";

#[test]
fn closed_groups_far_below_are_emptied_and_removed() {
    needs!(V2);
    // Root is not kept out.
    for world in [of_a_plain_user(), World::new()] {
        let done = job(&world, "--grace 0.2", &format!("{BURIED}; exit 3")).run().exits(3);
        done.says(&crate::release::killed("sleep", pid_in(&world.path("pid"))));
        world.assert_clean();
    }
}

#[test]
fn a_job_that_closes_its_own_group_is_ended() {
    needs!(V2);
    let close = "chmod -f 000 $own/*; chmod -f 000 $own";
    let world = of_a_plain_user();
    let leftover = "trap '' TERM; sleep 600 & until grep -q sleep /proc/$!/comm; do :; done; echo $! > pid";
    let done = job(&world, "--grace 0.2", &format!("{leftover}; {close}; exit 3")).run().exits(3);
    done.says(&crate::release::killed("sleep", pid_in(&world.path("pid"))));
    world.assert_clean();
    // By the guard.
    let script = format!("trap '' TERM; {close}; echo ready; exec sleep 600");
    let running = job(&world, "", &script).spawn();
    running.wait_stdout("ready\n");
    guard_of(&world);
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL);
    world.wait_clean();
    // By the next job, when both are dead.
    let running = job(&world, "", &script).spawn();
    running.wait_stdout("ready\n");
    kill_both(&world, running);
    world.cmd("perflock echo next").run().exits(0).prints("next\n").mentions("perflock: ending the job ");
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn threads_in_groups_of_their_own_end_with_the_job() {
    needs!(V2, Program("gcc"));
    let world = of_a_plain_user();
    let script = "mkdir $own/a && echo threaded > $own/a/cgroup.type && mkdir $own/b && echo threaded > $own/b/cgroup.type; \
        trap '' TERM; ./tool threads 4 & until [ $(ls /proc/$!/task | wc -l) = 5 ]; do :; done; echo $! > pid; \
        set -- $(ls /proc/$!/task); shift; echo $1 > $own/a/cgroup.threads && echo $2 > $own/b/cgroup.threads && echo moved; exit 3";
    let done = job(&world, "--grace 0.2", script).run().exits(3).mentions("killed 1 leftover process: tool (");
    assert!(done.stdout.ends_with("moved\n"), "{}", done.stdout);
    assert!(!alive(pid_in(&world.path("pid"))));
    world.assert_clean();
}

#[test]
fn a_process_that_moved_to_another_group_of_the_owner_s_is_left_alone() {
    needs!(V2, OwnGroup);
    // As a plain user, who owns the group above the job's, and as root.
    for world in [of_a_plain_user(), World::new()] {
        let outside = world.group().join("outside");
        fs::create_dir(&outside).unwrap();
        for path in [outside.clone(), outside.join("cgroup.procs")] {
            std::os::unix::fs::chown(path, Some(world.uid()), None).unwrap();
        }
        let script = "trap '' TERM; sh -c 'echo 0 > $OUTSIDE/cgroup.procs; echo $$ > left; exec sleep 600' > /dev/null 2>&1 & \
            sleep 600 & echo $! > stayed; until [ -s left ]; do :; done; [ -e go ] || read go; exit 3";
        let outsider = world.cmd("sleep 600").in_group(&outside).spawn();
        for guarded in [false, true] {
            let _ = fs::remove_file(world.path("left"));
            let running = job(&world, "--grace 0.2", script).env("OUTSIDE", &outside).spawn();
            let left = pid_in(&world.path("left"));
            if guarded {
                running.signal(libc::SIGKILL);
                running.wait().dies_of(libc::SIGKILL);
            } else {
                running.wait().exits(3);
            }
            wait_until("the lock is free", || world.lock_is_free() && world.tickets().is_empty());
            assert!(!alive(pid_in(&world.path("stayed"))));
            assert!(alive(left) && alive(outsider.pid()));
            assert_eq!(world.job_groups(), std::slice::from_ref(&outside));
            signal(left, libc::SIGKILL);
            wait_until("it is gone", || groups::processes(&outside, &[]) == [outsider.pid()]);
        }
        outsider.signal(libc::SIGKILL);
        outsider.wait().dies_of(libc::SIGKILL);
        wait_until("the group is empty", || fs::remove_dir(&outside).is_ok());
        // The last job's end was its guard's, which may still be about to exit.
        world.wait_clean();
    }
}

#[test]
fn a_job_that_freezes_itself_is_ended() {
    needs!(V2);
    let world = of_a_plain_user();
    let freeze = "echo 1 > $own/cgroup.freeze; sleep 600";
    let done = job(&world, "--time-limit 0.3 --grace 0.2", freeze).run().exits(124);
    done.mentions(" reached: ending the command\n");
    world.assert_clean();
    // By a second TERM.
    let frozen =
        |group: &Path| fs::read_to_string(group.join("cgroup.events")).unwrap_or_default().contains("frozen 1");
    let mut running = job(&world, "", &format!("trap '' TERM; {freeze}")).spawn();
    wait_until("it is frozen", || world.job_groups().iter().any(|group| frozen(group)));
    // Those that come soon after another are copies of that.
    wait_until("it ends", || {
        let ended = running.ended();
        (!ended).then(|| running.signal(libc::SIGTERM));
        ended
    });
    running.wait().dies_of(libc::SIGKILL);
    world.assert_clean();
    // By the guard.
    let running = job(&world, "", freeze).spawn();
    wait_until("it is frozen", || world.job_groups().iter().any(|group| frozen(group)));
    guard_of(&world);
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL);
    world.wait_clean();
}
