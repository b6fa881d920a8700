//! The main job from end to end.

use crate::harness::{World, me, wait_until};
use crate::needs;

#[test]
fn an_exclusive_job_runs_in_its_own_cgroup_and_leaves_nothing() {
    needs!(V2);
    let world = World::new();
    let done = world.cmd("perflock grep 0:: /proc/self/cgroup").run().exits(0).says("");
    assert!(done.stdout.contains("/perflock-1-"), "{}", done.stdout);
    world.assert_clean();
}

#[test]
fn the_second_exclusive_job_waits_for_the_first() {
    needs!(V2);
    let world = World::new();
    let first = world.sh("perflock sh -c 'echo running; read line'");
    let first = first.stdin("").spawn();
    let done = first.wait().exits(1);
    assert_eq!(done.stdout, "running\n");
    let holder = world.cmd("perflock sleep 600").spawn();
    wait_until("the holder runs", || world.job_groups().len() == 1);
    let waiter = world.cmd("perflock echo second").spawn();
    waiter.wait_stderr(&format!("perflock: waiting for lock behind 1 job; {} runs sleep 600 (exclusive, ", me()));
    assert_eq!(waiter.stdout(), "");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    let done = waiter.wait().exits(0).prints("second\n");
    assert!(done.stderr.contains("perflock: got lock after "), "{}", done.stderr);
    world.assert_clean();
}
