//! Jobs in a group of the v1 freezer, which holds up SIGKILL as well, on machines that have both hierarchies. Every such group
//! is made below one of the test's own.

use std::fs;
use std::path::{Path, PathBuf};

use super::{job_group, of_a_plain_user, watch_end};
use crate::guard::{guard_of, kill_both};
use crate::harness::{Running, V1Group, World, alive, pid_in, state_of, wait_until};
use crate::needs;

/// A freezer group of the world's user.
fn freezer(world: &World) -> V1Group {
    let group = V1Group::new("freezer").expect("this test needs V1(\"freezer\")");
    group.give(world.uid());
    group
}

/// A group below, of the world's user.
fn below(world: &World, group: &Path) -> PathBuf {
    let below = group.join("below");
    fs::create_dir(&below).unwrap();
    for file in ["", "cgroup.procs", "tasks", "freezer.state"] {
        std::os::unix::fs::chown(below.join(file), Some(world.uid()), None).unwrap();
    }
    below
}

fn set(group: &Path, state: &str) {
    fs::write(group.join("freezer.state"), state).unwrap();
}

fn is_frozen(group: &Path) -> bool {
    fs::read_to_string(group.join("freezer.state")).unwrap() == "FROZEN\n"
}

/// Thaws a group when it is dropped: before those who wait for processes in it, when a test fails.
struct Thaws<'a>(&'a Path);

impl Drop for Thaws<'_> {
    fn drop(&mut self) {
        set(self.0, "THAWED");
    }
}

/// A job that leaves a process in this group and freezes it; its pid is in `pid`, and so in `frozen` when that is done.
fn freezes(world: &World, options: &str, group: &Path) -> Running {
    for name in ["pid", "frozen", "go"] {
        let _ = fs::remove_file(world.path(name));
    }
    let group = group.display();
    let job = format!(
        "sleep 600 & until grep -q sleep /proc/$!/comm; do :; done; echo $! > {group}/cgroup.procs && echo FROZEN > {group}/freezer.state; echo $! > pid; \
         until grep -q FROZEN {group}/freezer.state; do sleep 0.01; done; echo $! > frozen; \
         until [ -e go ]; do sleep 0.01; done; exit 3"
    );
    world.cmd(&format!("perflock --grace 0.1 {options} sh -c")).arg(job).spawn()
}

/// The context switches that a process made by itself.
fn switches(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

/// User and system time of a process, in clock ticks.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Whether SIGKILL waits for a process.
fn is_killed(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        u64::from_str_radix(line.trim(), 16).unwrap() & (1 << (libc::SIGKILL - 1)) != 0
    };
    pending("SigPnd:") || pending("ShdPnd:")
}

#[test]
fn a_job_that_is_frozen_is_thawed_when_it_is_killed() {
    needs!(V2, Root, OwnGroup, V1("freezer"));
    for options in ["", "--cgroup none"] {
        let world = of_a_plain_user();
        let freezer = freezer(&world);
        let group = below(&world, freezer.path());
        let running = freezes(&world, options, &group);
        let _thaws = Thaws(&group);
        let pid = pid_in(&world.path("frozen"));
        world.write("go", "");
        running.wait().exits(3).mentions(&format!("perflock: killed 1 leftover process: sleep ({pid}); "));
        assert!(!alive(pid) && !is_frozen(&group));
        world.assert_clean();
        // By the guard; and frozen by the group above.
        let running = freezes(&world, options, &group);
        let _thaws_above = Thaws(freezer.path());
        let pid = pid_in(&world.path("frozen"));
        set(&group, "THAWED");
        set(freezer.path(), "FROZEN");
        wait_until("it is frozen", || is_frozen(&group));
        guard_of(&world);
        running.signal(libc::SIGKILL);
        // Root alone may thaw that one: the lock is held.
        wait_until("it was killed", || is_killed(pid));
        assert!(!world.lock_is_free() && alive(pid) && is_frozen(&group));
        set(freezer.path(), "THAWED");
        running.wait().dies_of(libc::SIGKILL);
        world.wait_clean();
    }
}

#[test]
fn the_guard_and_the_next_job_thaw_what_is_the_job_s_alone() {
    needs!(V2, Root, OwnGroup, V1("freezer"));
    let world = of_a_plain_user();
    let freezer = freezer(&world);
    let group = below(&world, freezer.path());
    let running = freezes(&world, "", &group);
    let _thaws = Thaws(&group);
    let pid = pid_in(&world.path("frozen"));
    guard_of(&world);
    let job_group = job_group(&world);
    watch_end(&world, &job_group, || running.signal(libc::SIGKILL));
    assert!(!alive(pid));
    running.wait().dies_of(libc::SIGKILL);
    world.wait_clean();
    let running = freezes(&world, "", &group);
    let pid = pid_in(&world.path("frozen"));
    kill_both(&world, running);
    world.cmd("perflock echo next").run().exits(0).prints("next\n");
    assert!(!alive(pid));
    world.cmd("perflock true").run().exits(0);
    world.assert_clean();
}

/// The job's leftover is frozen together with somebody else's process, and named.
fn frozen_with_another<'a>(world: &World, options: &str, group: &'a Path) -> (Running, Running, i32, Thaws<'a>) {
    let other = world.cmd("sleep 600").spawn();
    fs::write(group.join("cgroup.procs"), other.pid().to_string()).unwrap();
    let running = freezes(world, options, group);
    let thaws = Thaws(group);
    let pid = pid_in(&world.path("frozen"));
    world.write("go", "");
    (running, other, pid, thaws)
}

#[test]
fn what_is_frozen_with_others_is_named_and_waited_for() {
    needs!(V2, Root, OwnGroup, V1("freezer"));
    for options in ["", "--cgroup none"] {
        let world = of_a_plain_user();
        let freezer = freezer(&world);
        // The user may thaw it, but perflock must not.
        let group = below(&world, freezer.path());
        let (running, other, pid, _thaws) = frozen_with_another(&world, options, &group);
        let path = group.display();
        running.wait_stderr(&format!(
            "perflock: 1 process was killed and does not end: sleep ({pid}), frozen by {path}; the machine is held until it \
             does; to let it end: echo THAWED > {path}/freezer.state\n"
        ));
        // After a moment nobody is woken often for that, and nobody asks again and again.
        wait_until("the supervisor sleeps", || {
            let before = (switches(running.pid()), ticks(running.pid()));
            std::thread::sleep(std::time::Duration::from_secs(1));
            switches(running.pid()) - before.0 <= 6 && ticks(running.pid()) - before.1 <= 3
        });
        assert!(is_frozen(&group) && !world.lock_is_free());
        assert_eq!(state_of(other.pid()), 'D');
        assert_eq!(running.stderr().lines().count(), 1, "{}", running.stderr());
        set(&group, "THAWED");
        running.wait().exits(3);
        assert!(alive(other.pid()) && !alive(pid));
        other.signal(libc::SIGKILL);
        other.wait().dies_of(libc::SIGKILL);
        world.assert_clean();
    }
}
