//! A job inside a job: it runs at once where the outer mode covers it, fails clearly where not, and never deadlocks.

use crate::harness::groups::is_job;
use crate::harness::{World, alive, pid_in, wait_until};
use crate::needs;

/// The names of the job groups that a line of `/proc/self/cgroup` runs through.
fn groups(line: &str) -> Vec<&str> {
    line.trim().split('/').filter(|part| is_job(part)).collect()
}

#[test]
fn a_covered_job_runs_at_once_in_a_sub_group_of_the_outer_one() {
    needs!(V2);
    for (outer, inner) in [("perflock", "perflock"), ("perflock", "pls"), ("pls", "pls"), ("perflock", "pls -x")] {
        let world = World::new();
        let script = format!("grep 0:: /proc/self/cgroup; {inner} grep 0:: /proc/self/cgroup; {inner} -n true");
        let done = world.cmd(outer).args(["sh", "-c", &script]).run().exits(0).says("");
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(lines.len(), 2, "{outer} → {inner}: {}", done.stdout);
        let (outside, inside) = (groups(lines[0]), groups(lines[1]));
        assert_eq!((outside.len(), inside.len()), (1, 2), "{outer} → {inner}: {}", done.stdout);
        assert_eq!(outside[0], inside[0], "{outer} → {inner}");
        assert!(outside[0].starts_with("perflock-1-"));
        world.assert_clean();
    }
}

#[test]
fn an_exclusive_job_inside_a_shared_one_fails_and_names_it() {
    needs!(V2);
    let world = World::new();
    let script = "perflock touch ran; echo $?; pls -x touch ran; echo $?";
    let done = world.cmd("pls sh -c").arg(script).run().exits(0).prints("125\n125\n");
    let expected = "this runs inside the shared job 1 (sh -c 'perflock touch ran; echo $?; pls -x touch ran; echo $?'), \
                    which does not have the machine alone; start the outer command with perflock\n";
    assert_eq!(done.stderr, format!("perflock: {expected}pls: {expected}"));
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn three_levels_work_and_keep_the_outer_job_s_name() {
    needs!(V2);
    let world = World::new();
    let script = "echo $PERFLOCK_JOB $PERFLOCK_MODE; perflock sh -c \
                  'echo $PERFLOCK_JOB $PERFLOCK_MODE; pls sh -c \"echo \\$PERFLOCK_JOB \\$PERFLOCK_MODE; ls lock.d\"'";
    let done = world.cmd("perflock sh -c").arg(script).run().exits(0).says("");
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{}", done.stdout);
    assert!(lines[0].starts_with("1-") && lines[0].ends_with(" exclusive"), "{}", lines[0]);
    assert_eq!((lines[1], lines[2], lines[3]), (lines[0], lines[0], "1.x"));
    world.assert_clean();
}

#[test]
fn exit_codes_and_signals_pass_through_both_jobs() {
    needs!(V2);
    let world = World::new();
    world.cmd("perflock pls sh -c").arg("exit 42").run().exits(42).says("");
    world.cmd("perflock perflock sh -c").arg("kill -USR1 $$").run().dies_of(libc::SIGUSR1);
    world.assert_clean();
}

#[test]
fn without_groups_it_works_as_well() {
    needs!(V2);
    for (outer, inner) in [("--cgroup none", "--cgroup none"), ("--cgroup none", ""), ("", "--cgroup none")] {
        let world = World::new();
        let script = format!("perflock {inner} echo inside; pls {inner} echo beside; echo $?");
        let line = format!("perflock {outer} sh -c");
        let done = world.cmd(&line).arg(&script).run().exits(0);
        assert_eq!((&*done.stdout, &*done.stderr), ("inside\nbeside\n0\n", ""), "{outer} → {inner}");
        let script = format!("perflock {inner} touch ran; echo $?");
        let line = format!("pls {outer} sh -c");
        let done = world.cmd(&line).arg(&script).run().exits(0).prints("125\n");
        assert!(done.stderr.contains("inside the shared job 1 (sh -c "), "{}", done.stderr);
        assert!(!world.path("ran").exists());
        world.assert_clean();
    }
}

#[test]
fn in_a_group_the_variable_is_not_needed() {
    needs!(V2);
    let world = World::new();
    world.cmd("perflock env -u PERFLOCK_JOB -u PERFLOCK_MODE perflock echo inside").run().exits(0).prints("inside\n");
    world.cmd("perflock env PERFLOCK_JOB=nonsense perflock echo inside").run().exits(0).prints("inside\n").says("");
    world.assert_clean();
}

#[test]
fn if_only_ancestry_tells_it_is_an_error_and_no_deadlock() {
    needs!(V2);
    for inner in ["perflock", "pls", "perflock -n", "perflock --cgroup none"] {
        let world = World::new();
        let script = format!("env -u PERFLOCK_JOB {inner} touch ran; echo $?");
        let done = world.cmd("perflock --cgroup none sh -c").arg(&script).run().exits(0).prints("125\n");
        assert!(done.stderr.contains(": this runs below job 1 (sh -c "), "{inner}: {}", done.stderr);
        assert!(done.stderr.contains("keep PERFLOCK_JOB as the job has it"), "{inner}: {}", done.stderr);
        assert!(!world.path("ran").exists());
        world.assert_clean();
    }
}

#[test]
fn a_forged_variable_lets_nobody_in() {
    needs!(V2);
    let world = World::new();
    let first = world.cmd("perflock sh -c").arg("echo $PERFLOCK_JOB").run().exits(0);
    let ended = first.stdout.trim();
    let holder = world.holder("pls");
    // A job that is over, and a job that never was.
    for job in [ended, "1-1-00000001-1", "1", "", "\n"] {
        world.cmd("perflock -n true").env("PERFLOCK_JOB", job).run().exits(75);
    }
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn what_the_inner_job_leaves_is_ended_with_it() {
    needs!(V2);
    let world = World::new();
    let inner = "sleep 1000 >/dev/null 2>&1 & echo $! > pid";
    let script = format!(
        "perflock --grace 0 sh -c '{inner}'; grep -q 'State:.[^ZX]' /proc/$(cat pid)/status 2>/dev/null || echo gone"
    );
    let done = world.cmd("perflock sh -c").arg(&script).run().exits(0).prints("gone\n");
    let pid = pid_in(&world.path("pid"));
    let said = format!("perflock: killed 1 leftover process: sleep ({pid}); start it before perflock to keep it");
    assert!(done.stderr.starts_with(&said), "{}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn an_inner_supervisor_killed_outright_takes_only_its_own_job_with_it() {
    needs!(V2);
    let world = World::new();
    let script = "perflock sh -c 'echo $$ > inner; echo $PPID > supervisor; exec sleep 600'; echo outer went on; \
                  while [ ! -e go ]; do sleep 0.01; done";
    let outer = world.cmd("perflock sh -c").arg(script).spawn();
    let inner = pid_in(&world.path("inner"));
    crate::harness::signal(pid_in(&world.path("supervisor")), libc::SIGKILL);
    wait_until("the guard ended the inner job", || !alive(inner));
    outer.wait_stdout("outer went on\n");
    world.write("go", "");
    outer.wait().exits(0);
    world.assert_clean();
}

#[test]
fn in_a_cgroup_namespace_the_variable_tells() {
    needs!(V2, Root, OwnGroup, Program("unshare"));
    let world = World::new();
    let done = world.cmd("perflock unshare --cgroup perflock echo inside").run().exits(0).prints("inside\n");
    // The namespace hides the group, so the inner job falls back; what it leaves is in the outer group all the same.
    assert!(done.stderr.starts_with("perflock: warning: no job group can be made here"), "{}", done.stderr);
    let line = "perflock unshare --cgroup env -u PERFLOCK_JOB perflock --cgroup none touch ran";
    world.cmd(line).run().exits(125).mentions("this runs below job 1 ");
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn a_job_of_another_lock_in_between_does_not_hide_the_outer_job() {
    needs!(V2);
    let world = World::new();
    let other = world.path("other");
    world.cmd("perflock --setup --lock").arg(&other).run().exits(0);
    let script = format!("perflock --lock {} perflock echo inside", other.display());
    let done = world.cmd("perflock sh -c").arg(&script).run().exits(0).prints("inside\n");
    assert_eq!(done.stderr, "");
    world.assert_clean();
}

#[test]
fn a_job_of_another_lock_is_queued_as_anywhere() {
    needs!(V2);
    let world = World::new();
    let other = world.path("other");
    world.cmd("perflock --setup --lock").arg(&other).run().exits(0);
    let holder = world.cmd("perflock --lock").arg(&other).args(["sh", "-c", "echo running; exec sleep 600"]).spawn();
    holder.wait_stdout("running\n");
    let script = format!("perflock -n --lock {} true; echo $?", other.display());
    world.cmd("perflock sh -c").arg(&script).run().exits(0).prints("75\n");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

/// A makefile of jobs, whose recipes say in which group they run. `$(OPTIONS)` are for the inner programs, `$(ENTER)` what
/// they are run by.
const MAKEFILE: &str = "all: alone beside both\n\
    alone:\n\t@$(ENTER) perflock $(OPTIONS) grep 0:: /proc/self/cgroup\n\
    beside:\n\t@$(ENTER) pls $(OPTIONS) grep 0:: /proc/self/cgroup\n\
    both:\n\t@$(ENTER) perflock $(OPTIONS) $(MAKE) --no-print-directory deep\n\
    deep:\n\t@$(ENTER) pls $(OPTIONS) grep 0:: /proc/self/cgroup\n";

/// Runs `perflock OUTER make` while another job waits; returns what the recipes said.
fn made(world: &World, outer: &str, variables: &[&str]) -> String {
    world.write("Makefile", MAKEFILE);
    // It begins when somebody waits: whoever queued inside would wait for it, and it for the whole.
    let begin = "touch begun; until [ -e go ]; do sleep 0.01; done; exec \"$@\"";
    let make = world.cmd(&format!("perflock {outer} sh -c")).arg(begin).args(["sh", "make", "-s", "-j4"]);
    let make = make.args(variables).spawn();
    wait_until("make's job runs", || world.path("begun").exists());
    let waiter = world.waiter("2.x", world.cmd("perflock echo after"));
    world.write("go", "");
    let done = make.wait().exits(0);
    waiter.wait().exits(0).prints("after\n");
    assert_eq!(done.stdout.lines().count(), 3, "{}\n{}", done.stdout, done.stderr);
    world.assert_clean();
    done.stdout + &done.stderr
}

#[test]
fn a_makefile_may_call_both_programs() {
    needs!(V2, Program("make"));
    let world = World::new();
    let said = made(&world, "", &[]);
    let lines: Vec<Vec<&str>> = said.lines().map(groups).collect();
    let mut depths: Vec<usize> = lines.iter().map(Vec::len).collect();
    depths.sort_unstable();
    assert_eq!(depths, [2, 2, 3], "{said}");
    for line in &lines {
        assert!(line[0] == lines[0][0] && line[0].starts_with("perflock-1-"), "{said}");
        assert!(line[1..].iter().all(|name| name.starts_with("perflock-nested-")), "{said}");
    }
}

#[test]
fn a_makefile_may_call_both_programs_without_groups() {
    needs!(V2, Program("make"));
    for (outer, inner) in [("--cgroup none", ""), ("", "--cgroup none"), ("--cgroup none", "--cgroup none")] {
        let world = World::new();
        let said = made(&world, outer, &[&format!("OPTIONS={inner}")]);
        assert_eq!(said.lines().filter(|line| line.starts_with("0::")).count(), 3, "{said}");
        assert_eq!(said.lines().count(), 3, "{said}");
    }
}

#[test]
fn a_makefile_may_call_both_programs_across_a_cgroup_namespace() {
    needs!(Root, V2, OwnGroup, Program("make"), Program("unshare"));
    let world = World::new();
    // In the namespace the group's name is not seen; the variable tells.
    made(&world, "", &["ENTER=unshare --cgroup", "OPTIONS=--cgroup=none"]);
    let world = World::new();
    made(&world, "--cgroup none", &["ENTER=unshare --cgroup", "OPTIONS=--cgroup=none"]);
}

#[test]
fn a_shared_job_inside_a_shared_one_does_not_wait_behind_an_exclusive_one_outside() {
    needs!(V2);
    for options in ["", "--cgroup none"] {
        let world = World::new();
        let script = format!("echo running; until [ -e go ]; do sleep 0.01; done; pls {options} echo inside");
        let outer = world.cmd(&format!("pls {options} sh -c")).arg(script).spawn();
        outer.wait_stdout("running\n");
        let waiter = world.waiter("2.x", world.cmd("perflock echo after"));
        world.write("go", "");
        outer.wait().exits(0).prints("running\ninside\n").says("");
        waiter.wait().exits(0).prints("after\n");
        world.assert_clean();
    }
}

#[test]
fn an_exclusive_job_below_a_shared_one_fails_at_once_wherever_it_is_started() {
    needs!(V2);
    // While others wait, from a child's child, with a limit, and in the fallback.
    for (outer, inner) in [
        ("", "perflock"),
        ("", "perflock -n"),
        ("", "perflock -w 1h"),
        ("", "sh -c 'sh -c \"perflock $*; exit \\$?\"' sh"),
        ("--cgroup none", "perflock"),
        ("", "perflock --cgroup none"),
        ("", "setsid perflock"),
    ] {
        let world = World::new();
        let wait = "echo running; until [ -e go ]; do sleep 0.01; done";
        let outer = world.cmd(&format!("pls {outer} sh -c")).arg(format!("{wait}; {inner} touch ran; echo $?")).spawn();
        outer.wait_stdout("running\n");
        let waiter = world.waiter("2.x", world.cmd("perflock true"));
        world.write("go", "");
        let done = outer.wait().exits(0);
        assert_eq!(done.stdout, "running\n125\n", "{inner}: {}", done.stderr);
        assert!(!world.path("ran").exists());
        let named = "perflock: this runs inside the shared job 1 (sh -c 'echo running; ";
        assert!(done.stderr.starts_with(named), "{inner}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{inner}: {}", done.stderr);
        waiter.wait().exits(0);
        world.assert_clean();
    }
}
