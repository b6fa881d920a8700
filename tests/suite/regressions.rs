//! What once went wrong, found by reading and reproduced by hand before it was mended.

use crate::harness::{World, alive, pid_in, wait_until};
use crate::needs;

/// Starts a job whose member outlives supervisor and guard, and kills both. Returns the member.
fn orphan(world: &World, options: &str) -> i32 {
    let job = "echo $$ > orphan; exec sleep 600 >/dev/null 2>&1";
    let running = world.cmd(&format!("perflock {options} sh -c")).arg(job).spawn();
    let member = pid_in(&world.path("orphan"));
    world.kill_both(running, "1.x");
    assert!(alive(member));
    member
}

#[test]
fn a_job_without_descriptors_does_not_take_an_orphan_for_gone() {
    needs!(V2);
    let world = World::new();
    let member = orphan(&world, "");
    for limit in 8..16 {
        // Without a wait it cannot start: for want of descriptors, or while the orphan dies.
        let done = world.sh(&format!("ulimit -n {limit}; exec pls -n true")).run();
        assert!(!done.status.success() || !alive(member), "{limit}: {}", done.stderr);
        let named = || world.tickets().contains(&"1.x".to_owned());
        wait_until("the orphan is dead, or its ticket names it", || !alive(member) || named());
        if !alive(member) {
            break;
        }
    }
    world.cmd("perflock true").run().exits(0);
    assert!(!alive(member));
    world.assert_clean();
}

#[test]
fn a_nested_job_without_a_group_is_found_by_the_outer_guard() {
    needs!(V2);
    let world = World::new();
    let inner = "echo $PPID > inner; echo $$ > member; exec setsid sleep 600 >/dev/null 2>&1";
    let script = "exec pls --cgroup none sh -c \"$INNER\"";
    let outer = world.cmd("perflock --cgroup none sh -c").arg(script).env("INNER", inner).spawn();
    let (supervisor, member) = (pid_in(&world.path("inner")), pid_in(&world.path("member")));
    wait_until("the inner guard is there", || world.processes().len() == 5);
    crate::harness::signal(supervisor, libc::SIGSTOP);
    outer.signal(libc::SIGKILL);
    outer.wait().dies_of(libc::SIGKILL);
    wait_until("the member is dead", || !alive(member));
    world.wait_clean();
}

#[test]
fn nonblock_is_not_put_off_by_others_who_join_at_the_same_time() {
    needs!(V2, Speed);
    let world = World::new();
    let script = "for i in $(seq 30); do pls -n true || echo failed & done; wait";
    world.sh(script).run().exits(0).prints("").says("");
    world.assert_clean();
}

#[test]
fn a_waiter_whose_messages_nobody_reads_does_not_hold_up_the_queue() {
    needs!(V2, Program("mkfifo"));
    let world = World::new();
    let holder = world.holder("perflock");
    // A pipe that is full, and that nobody reads.
    let script = "mkfifo full; exec 3<>full; \
        dd if=/dev/zero of=full bs=1024 count=64 2>/dev/null; exec perflock touch ran 2>&3 3>&-";
    let silent = world.waiter("2.x", world.sh(script));
    let behind = world.waiter("3.x", world.cmd("perflock echo behind"));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    behind.wait().exits(0).prints("behind\n");
    silent.wait().exits(0);
    assert!(world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn children_that_end_by_themselves_are_not_said_to_be_killed() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let script =
        "for (1..8) { unless (fork) { select undef, undef, undef, 0.014; exit } } exec 'sleep', '600' unless fork";
    // On a busy machine some of them are late, and are rightly killed: once is enough.
    let said_so = || {
        let done = world.cmd("perflock perl -e").arg(script).run().exits(0);
        let said = done.stderr_but_for_waits();
        assert!(said.starts_with("perflock: killed "), "{said}");
        said.starts_with("perflock: killed 1 leftover process: sleep (")
    };
    assert!((0..20).any(|_| said_so()));
    world.assert_clean();
}

#[test]
fn a_time_that_never_comes_is_no_error() {
    needs!(V2);
    let world = World::new();
    let line = "perflock --time-limit 9999999999999999999 --grace 99999999999d -w 9999999999999999999 true";
    world.cmd(line).run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn the_last_of_a_repeated_option_counts() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    world.cmd("perflock -q -q -w 60 -w 0 -E 3 -E 4 true").run().exits(4).says("");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}
