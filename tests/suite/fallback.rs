//! The fallback without a job group, `--cgroup none`: the same promises, kept by other means.

use crate::guard::{guard_of, kill_both, members, stubborn};
use crate::harness::{World, alive, me, pid_in, signal, state_of, wait_until};
use crate::needs;
use crate::release::{DAEMON, START_DAEMON, killed};

#[test]
fn a_job_without_a_group_runs_and_leaves_nothing() {
    needs!(V2);
    let world = World::new();
    let without = world.cmd("grep 0:: /proc/self/cgroup").run().exits(0).stdout;
    world.cmd("perflock --cgroup none grep 0:: /proc/self/cgroup").run().exits(0).prints(&without).says("");
    for code in [0, 3, 125, 255] {
        world.cmd("perflock --cgroup none sh -c").arg(format!("exit {code}")).run().exits(code).says("");
    }
    for number in [libc::SIGTERM, libc::SIGKILL, 34] {
        world.cmd("perflock --cgroup none sh -c").arg(format!("kill -{number} $$")).run().dies_of(number).says("");
    }
    world.assert_clean();
}

#[test]
fn orphans_are_adopted_reaped_and_no_leftovers_once_they_ended() {
    needs!(V2);
    let world = World::new();
    let job = "for i in 1 2 3 4 5; do (sh -c 'sleep 0.05; echo done >> done' &); done; \
        until [ \"$(wc -l < done)\" = 5 ]; do sleep 0.01; done; grep -c . /proc/$PPID/task/$PPID/children; exit 2";
    world.write("done", "");
    world.cmd("perflock --cgroup none sh -c").arg(job).run().exits(2).prints("1\n").says("");
    world.assert_clean();
}

#[test]
fn leftovers_that_hide_are_killed_and_named() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let done = world.cmd("perflock --cgroup none sh -c").arg("setsid sleep 600 & echo $! > pid; exit 4").run().exits(4);
    let pid = pid_in(&world.path("pid"));
    assert!(!alive(pid));
    let said = done.stderr_but_for_waits();
    assert!(said.starts_with("perflock: killed 1 leftover process: "), "{said}");
    assert!(done.stderr.contains(&format!(" ({pid}); start it before perflock to keep it")), "{}", done.stderr);
    world.assert_clean();
    world.write("daemon.pl", DAEMON);
    let done = world.cmd("perflock --cgroup none --grace 0.2 sh -c").arg(START_DAEMON).run().exits(0);
    let pid = pid_in(&world.path("daemon"));
    assert!(!alive(pid));
    done.says(&killed("perl", pid));
    world.assert_clean();
}

#[test]
fn a_leftover_without_the_marker_is_killed_while_the_supervisor_lives() {
    needs!(V2, Program("perl"));
    let world = World::new();
    world.write("daemon.pl", DAEMON);
    let job = format!("env -i {START_DAEMON}");
    let done = world.cmd("perflock --cgroup none --grace 0.2 sh -c").arg(job).run().exits(0);
    let pid = pid_in(&world.path("daemon"));
    assert!(!alive(pid));
    done.says(&killed("perl", pid));
    world.assert_clean();
}

#[test]
fn a_stopped_leftover_is_ended() {
    needs!(V2);
    let world = World::new();
    let job = "sleep 600 & echo $! > pid; kill -STOP $!";
    let done = world.cmd("perflock --cgroup none --grace 15 sh -c").arg(job).run().exits(0);
    let pid = pid_in(&world.path("pid"));
    assert!(done.stderr.contains(&format!("({pid}); start it")), "{}", done.stderr);
    assert!(!alive(pid));
    world.assert_clean();
}

#[test]
fn a_chain_of_forks_that_ignores_term_is_killed() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let chain = "$SIG{TERM} = 'IGNORE'; exit if fork; open F, '>', 'runs'; close F; \
        while (1) { exit if fork; select undef, undef, undef, 0.005 }";
    let job = "perl -e \"$CHAIN\"; until [ -e runs ]; do sleep 0.005; done";
    let done = world.cmd("perflock --cgroup none --grace 0.2 sh -c").arg(job).env("CHAIN", chain).run().exits(0);
    assert!(done.stderr.starts_with("perflock: killed "), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn leftovers_may_be_waited_for() {
    needs!(V2);
    let world = World::new();
    let job = "setsid sh -c 'until [ -e stop ]; do sleep 0.02; done; echo late' & exit 6";
    let running = world.cmd("perflock --cgroup none --leftovers wait sh -c").arg(job).spawn();
    running.wait_stderr("perflock: holding the machine for ");
    assert!(!world.lock_is_free());
    world.write("stop", "");
    running.wait().exits(6).prints("late\n");
    world.assert_clean();
}

#[test]
fn children_that_perflock_was_started_with_are_no_members() {
    needs!(V2);
    let world = World::new();
    let script = "sleep 600 & echo $! > child; exec perflock --cgroup none sh -c 'exit 5'";
    let running = world.sh(script).spawn();
    let child = pid_in(&world.path("child"));
    wait_until("perflock ended", || state_of(running.pid()) == 'Z' || state_of(running.pid()) == '?');
    assert!(alive(child));
    signal(child, libc::SIGKILL);
    running.wait().exits(5).says("");
    wait_until("the child is gone", || world.processes().is_empty());
    world.assert_clean();
}

#[test]
fn the_time_limit_and_forwarded_signals_end_the_job() {
    needs!(V2);
    let world = World::new();
    let said = "perflock: time limit of 200ms reached: ending the command\n";
    world.cmd("perflock --cgroup none --time-limit 0.2 sleep 600").run().exits(124).says(said);
    let job =
        world.cmd("perflock --cgroup none sh -c").arg("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done");
    let running = job.spawn();
    running.wait_stdout("ready\n");
    running.signal(libc::SIGTERM);
    running.wait().exits(3).says("");
    world.assert_clean();
}

#[test]
fn when_the_supervisor_is_killed_the_guard_ends_the_job() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let running = stubborn(&world, "--cgroup none");
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL).says("");
    world.wait_clean();
    assert!(members(&world).iter().all(|&pid| !alive(pid)));
}

#[test]
fn a_guard_that_is_killed_is_replaced_and_no_member() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock --cgroup none sh -c").arg("until [ -e stop ]; do sleep 0.01; done; exit 3");
    let running = job.spawn();
    let guard = guard_of(&world);
    signal(guard, libc::SIGKILL);
    running.wait_stderr("perflock: warning: the guard was killed; another took its place (");
    assert_ne!(guard_of(&world), guard);
    world.write("stop", "");
    let done = running.wait().exits(3);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn when_both_are_killed_the_next_perflock_ends_the_orphan_before_it_starts() {
    needs!(V2, Program("perl"));
    for options in ["", "--cgroup none"] {
        let world = World::new();
        kill_both(&world, stubborn(&world, "--cgroup none"));
        let [child, daemon] = members(&world);
        assert!(alive(child) && alive(daemon));
        let job = format!("grep -ls '^State:.[^ZX]' /proc/{child}/status /proc/{daemon}/status; echo started");
        let done = world.cmd(&format!("perflock {options} sh -c")).arg(job).run().exits(0).prints("started\n");
        done.mentions("perflock: ending the job sh -c ")
            .mentions(&format!(" of {}, whose supervisor was killed, before starting\n", me()));
        world.cmd("perflock true").run().exits(0).says("");
        world.assert_clean();
    }
}

#[test]
fn a_plain_user_without_a_group_is_told_and_runs() {
    needs!(V2, Root, OwnGroup);
    let world = World::new();
    for program in ["perflock", "pls"] {
        std::fs::copy(world.program(program), world.path(program)).unwrap();
    }
    let done = world.cmd("perflock sh -c").arg("setsid sleep 600 & exit 7").uid(crate::harness::BOB).run().exits(7);
    let said = done.stderr_but_for_waits();
    let mut lines = said.lines();
    let first = lines.next().unwrap();
    assert!(first.starts_with("perflock: warning: no job group can be made here ("), "{first}");
    assert!(lines.next().unwrap().starts_with("perflock: killed 1 leftover process: "), "{}", done.stderr);
    assert_eq!(lines.next(), None);
    world.assert_clean();
    let done = world.cmd("perflock --cgroup required touch ran").uid(crate::harness::BOB).run().exits(125);
    assert!(done.stderr.starts_with("perflock: no job group can be made here ("), "{}", done.stderr);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn where_clone3_is_refused_as_in_many_containers_the_fallback_works() {
    needs!(V2, Program("strace"));
    let world = World::new();
    let strace = "strace -f -o /dev/null -e trace=clone3 -e inject=clone3:error=ENOSYS";
    let job = "setsid sleep 600 & until grep -q sleep /proc/$!/comm; do :; done; echo $! > pid; grep 0:: /proc/self/cgroup; exit 7";
    let done = world.cmd(&format!("{strace} perflock --cgroup none sh -c")).arg(job).run().exits(7);
    let pid = pid_in(&world.path("pid"));
    assert!(!done.stdout.contains("perflock-"), "{}", done.stdout);
    assert!(!alive(pid));
    done.says(&killed("sleep", pid));
    world.assert_clean();
}
