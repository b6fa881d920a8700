//! The guard: whatever kills the supervisor, the job ends before the machine is free.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::harness::{
    ALICE, BOB, Running, V1Group, World, alive, groups, kill_pair, me, patient, pid_in, scope_backend, signal,
    state_of, wait_until,
};
use crate::needs;
use crate::release::{DAEMON, START_DAEMON};

/// The guard that lives in the world's cgroup, once it has left what it must leave.
pub(crate) fn guard_of(world: &World) -> i32 {
    let mut found = None;
    wait_until("a guard runs", || {
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let pids = world.processes();
        found = pids.into_iter().find(|&pid| alive(pid) && name(pid) == "perflock-guard\n");
        found.is_some()
    });
    found.unwrap()
}

/// Kills supervisor and guard so that neither can act on the other's death.
pub(crate) fn kill_both(world: &World, running: Running) {
    kill_pair(running, guard_of(world));
}

/// A job with a daemon and a child, all of which ignore what can be ignored. Their pids are in `daemon` and `child`.
pub(crate) fn stubborn(world: &World, options: &str) -> Running {
    world.write("daemon.pl", DAEMON);
    let job = format!("trap '' TERM HUP INT; sleep 600 & echo $! > child; {START_DAEMON}; echo ready; wait");
    let running = world.cmd(&format!("perflock {options} sh -c")).arg(job).spawn();
    running.wait_stdout("ready\n");
    running
}

pub(crate) fn members(world: &World) -> [i32; 2] {
    [pid_in(&world.path("child")), pid_in(&world.path("daemon"))]
}

/// Kills the supervisor of a job that ignores what can be ignored: its guard ends it.
#[track_caller]
pub(crate) fn assert_ended_by_its_guard(world: &World) {
    let running = stubborn(world, "");
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL).says("");
    world.wait_clean();
    assert!(members(world).iter().all(|&pid| !alive(pid)));
}

#[test]
fn when_the_supervisor_is_killed_the_guard_ends_the_job() {
    needs!(V2, Program("perl"));
    assert_ended_by_its_guard(&World::new());
}

#[test]
fn a_waiter_starts_only_when_the_job_of_a_killed_supervisor_is_dead() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let beat = "use Time::HiRes 'time'; $SIG{TERM} = 'IGNORE'; open F, '>>', 'beats'; F->autoflush; \
        while (1) { printf F \"%.6f\\n\", time; select undef, undef, undef, 0.0005 }";
    let running = world.cmd("perflock sh -c").arg("for i in 1 2 3 4; do setsid perl -e \"$BEAT\" & done; wait");
    let running = running.env("BEAT", beat).spawn();
    wait_until("the job runs", || world.read("beats").lines().count() > 20);
    let waiter = world.cmd("perflock perl -e").arg("use Time::HiRes 'time'; printf \"%.6f\\n\", time").spawn();
    waiter.wait_stderr("perflock: waiting for lock behind 1 job; ");
    running.signal(libc::SIGKILL);
    let done = waiter.wait().exits(0);
    let start: f64 = done.stdout.trim().parse().unwrap();
    let beats = world.read("beats");
    let last = beats.lines().filter_map(|line| line.parse::<f64>().ok()).fold(0.0, f64::max);
    assert!(last < start, "a member was alive {} s after the next job's start", last - start);
    running.wait().dies_of(libc::SIGKILL);
    world.wait_clean();
    assert_eq!(world.read("beats"), beats);
}

#[test]
fn the_guard_ignores_what_can_be_ignored() {
    needs!(V2);
    let world = World::new();
    let running = world.cmd("perflock sh -c").arg("until [ -e stop ]; do sleep 0.01; done; exit 3").spawn();
    let guard = guard_of(&world);
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(number)) {
        // In a scope it means that systemd stops that.
        if number != libc::SIGTERM || !scope_backend() {
            signal(guard, number);
        }
    }
    wait_until("the guard sleeps", || state_of(guard) == 'S');
    world.write("stop", "");
    running.wait().exits(3).says("");
    assert!(!alive(guard));
    world.assert_clean();
}

#[test]
fn the_guard_keeps_nothing_of_ours() {
    needs!(V2, Program("bash"));
    let world = World::new();
    world.write("input", "");
    let running = world.cmd("bash -c").arg("exec 5<input 77<input; exec perflock sleep 600").spawn();
    let guard = guard_of(&world);
    let link = |name: &str| fs::read_link(format!("/proc/{guard}/{name}")).unwrap();
    let descriptors = || {
        let mut open: Vec<(i32, PathBuf)> = Vec::new();
        for entry in fs::read_dir(format!("/proc/{guard}/fd")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            open.push((name.parse().unwrap(), link(&format!("fd/{name}"))));
        }
        open.sort();
        open
    };
    let open = descriptors();
    assert!(open.iter().filter(|(fd, _)| *fd < 3).all(|(_, file)| file == &PathBuf::from("/dev/null")), "{open:?}");
    let own = |file: &PathBuf| {
        let text = file.to_str().unwrap();
        file == &world.lock()
            || file.starts_with(world.queue())
            || text.contains("/perflock-1-")
            || text.contains("pidfd")
            || text.contains("signalfd")
    };
    assert!(open.iter().filter(|(fd, _)| *fd > 2).all(|(_, file)| own(file)), "{open:?}");
    assert!(open.len() <= 9, "{open:?}");
    assert_eq!(link("cwd"), PathBuf::from("/"));
    let stat = fs::read_to_string(format!("/proc/{guard}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // Parent, process group, session.
    let (parent, own) = (running.pid().to_string(), guard.to_string());
    assert_eq!(fields[1..4], [&*parent, &*own, &*own]);
    running.signal(libc::SIGTERM);
    running.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn a_guard_that_is_killed_is_replaced() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let running = stubborn(&world, "");
    let guard = guard_of(&world);
    signal(guard, libc::SIGKILL);
    running.wait_stderr("perflock: warning: the guard was killed; another took its place (");
    let second = guard_of(&world);
    assert_ne!(second, guard);
    assert!(running.stderr().contains(&format!("({second})\n")), "{}", running.stderr());
    // The second does the work of the first.
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL);
    world.wait_clean();
    assert!(members(&world).iter().all(|&pid| !alive(pid)));
}

#[test]
fn after_three_guards_the_job_goes_on_unguarded() {
    needs!(V2);
    let world = World::new();
    let running = world.cmd("perflock sh -c").arg("until [ -e stop ]; do sleep 0.01; done; sleep 600 & exit 3").spawn();
    let warned = |running: &Running| running.stderr().matches("another took its place (").count();
    for count in 0..2 {
        signal(guard_of(&world), libc::SIGKILL);
        wait_until("another guard took over", || warned(&running) == count + 1);
    }
    signal(guard_of(&world), libc::SIGKILL);
    running.wait_stderr("perflock: warning: the guard was killed and cannot be replaced");
    assert!(!world.lock_is_free());
    world.write("stop", "");
    // The supervisor still does all of its own work.
    let done = running.wait().exits(3).mentions("perflock: killed 1 leftover process: sleep (");
    assert_eq!(done.stderr_but_for_waits().lines().count(), 4, "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn when_both_are_killed_the_next_perflock_ends_the_orphan_before_it_starts() {
    needs!(V2, Program("perl"));
    for next in ["perflock", "pls"] {
        let world = World::new();
        kill_both(&world, stubborn(&world, ""));
        assert!(members(&world).iter().all(|&pid| alive(pid)));
        assert!(world.lock_is_free());
        let [child, daemon] = members(&world);
        // Names those that are more than zombies, which wait for the machine's init.
        let job = format!("grep -ls '^State:.[^ZX]' /proc/{child}/status /proc/{daemon}/status; echo started");
        let done = world.cmd(&format!("{next} sh -c")).arg(job).run().exits(0).prints("started\n");
        done.mentions(&format!("{next}: ending the job sh -c "))
            .mentions(&format!(" of {}, whose supervisor was killed, before starting\n", me()));
        // The orphan's ticket goes with the next that joins, at the latest.
        world.cmd("perflock true").run().exits(0).says("");
        world.assert_clean();
    }
}

#[test]
fn nonblock_also_ends_an_orphan_or_does_not_start() {
    needs!(V2, Program("perl"));
    let world = World::new();
    kill_both(&world, stubborn(&world, ""));
    let [child, daemon] = members(&world);
    let done = world.cmd("perflock -n true").run();
    let gone = !alive(child) && !alive(daemon);
    assert!(
        gone && done.status.code() == Some(0) || done.status.code() == Some(75),
        "{}: {}",
        done.status,
        done.stderr
    );
    world.cmd("perflock true").run().exits(0);
    world.assert_clean();
}

#[test]
fn an_orphan_of_another_user_is_waited_for() {
    needs!(V2, Root, OwnGroup);
    let world = World::for_uid(ALICE);
    let job = world.cmd("perflock sh -c").arg("trap '' TERM; echo ready; sleep 600").spawn();
    job.wait_stdout("ready\n");
    kill_both(&world, job);
    let group = world.job_groups().pop().unwrap();
    let next = world.cmd("perflock --cgroup none echo ran").uid(BOB).spawn();
    next.wait_stderr("perflock: waiting for the job sh -c ");
    next.wait_stderr(&format!(" of {ALICE}, whose supervisor was killed, to end (only {ALICE} or root can end it)\n"));
    assert_eq!(next.stdout(), "");
    // Whoever else comes waits behind it.
    let third = world.cmd("perflock --cgroup none echo third").uid(BOB).spawn();
    third.wait_stderr("perflock: waiting for lock behind ");
    groups::kill(&group);
    next.wait().exits(0).prints("ran\n");
    third.wait().exits(0).prints("third\n");
    wait_until("the orphan's group is empty", || world.processes().is_empty());
    // Bob may not remove what Alice's job left; her next one, or root's, does.
    world.cmd("perflock true").run().exits(0);
    world.assert_clean();
}

#[test]
fn a_signal_ends_the_wait_for_an_orphan() {
    needs!(V2, Root, OwnGroup);
    let world = World::for_uid(ALICE);
    let job = world.cmd("perflock sh -c").arg("echo ready; sleep 600").spawn();
    job.wait_stdout("ready\n");
    kill_both(&world, job);
    let next = world.cmd("perflock --cgroup none echo ran").uid(BOB).spawn();
    next.wait_stderr(" to end (only ");
    next.signal(libc::SIGINT);
    next.wait().dies_of(libc::SIGINT).prints("");
    assert!(world.lock_is_free());
    world.cmd("perflock true").run().exits(0).mentions("perflock: ending the job ");
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn the_next_perflock_lets_a_stopped_guard_go_on() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let running = stubborn(&world, "");
    let guard = guard_of(&world);
    signal(guard, libc::SIGSTOP);
    wait_until("the guard is stopped", || state_of(guard) == 'T');
    running.signal(libc::SIGKILL);
    let mut running = running;
    wait_until("the supervisor is dead", || running.ended());
    assert!(members(&world).iter().all(|&pid| alive(pid)), "who ended the job?");
    assert!(!world.lock_is_free());
    world.cmd("perflock echo next").run().exits(0).prints("next\n");
    assert!(members(&world).iter().all(|&pid| !alive(pid)));
    world.wait_clean();
}

#[test]
fn a_guard_that_was_stopped_does_not_keep_perflock_from_ending() {
    needs!(V2);
    let world = World::new();
    let running = world.cmd("perflock sh -c").arg("until [ -e stop ]; do sleep 0.01; done; exit 3").spawn();
    let guard = guard_of(&world);
    signal(guard, libc::SIGSTOP);
    wait_until("the guard is stopped", || state_of(guard) == 'T');
    world.write("stop", "");
    running.wait().exits(3).says("");
    assert!(!alive(guard));
    world.assert_clean();
}

#[test]
fn a_waiter_that_is_killed_leaves_nothing_in_the_way() {
    needs!(V2);
    let world = World::new();
    let holder = crate::signals::holder(&world);
    let waiter = world.cmd("perflock echo never").spawn();
    waiter.wait_stderr("perflock: waiting for lock");
    let behind = world.cmd("perflock echo behind").spawn();
    behind.wait_stderr("perflock: waiting for lock behind 2 jobs");
    waiter.signal(libc::SIGKILL);
    waiter.wait().dies_of(libc::SIGKILL).prints("");
    behind.wait_stderr("perflock: waiting for lock behind 1 job");
    crate::signals::end(holder);
    behind.wait().exits(0).prints("behind\n");
    // A dead waiter's ticket goes with the next that joins, at the latest.
    world.cmd("perflock true").run().exits(0);
    world.assert_clean();
}

#[test]
fn a_supervisor_that_gets_no_processor_does_not_put_off_the_end_of_the_limit() {
    needs!(Root, V2, OwnGroup, V1("freezer"));
    let Some(freezer) = V1Group::new("freezer") else { return };
    let world = World::new();
    // Time enough to freeze it before.
    let limit = patient(Duration::from_secs(1));
    let running = stubborn(&world, &format!("--time-limit {} --grace 100ms", limit.as_secs()));
    let [child, daemon] = members(&world);
    // It wants to run and cannot, as among thousands that want to: nothing else is in that group.
    freezer.set("tasks", &running.pid().to_string());
    freezer.set("freezer.state", "FROZEN");
    wait_until("the job is killed", || !alive(child) && !alive(daemon));
    assert!(!world.lock_is_free());
    freezer.set("freezer.state", "THAWED");
    let said = format!("perflock: time limit of {}s reached: ending the command\n", limit.as_secs());
    running.wait().exits(124).says(&said);
    world.assert_clean();
}

#[test]
fn a_supervisor_that_was_stopped_is_not_overtaken_by_its_guard() {
    needs!(V2);
    let world = World::new();
    let script = "trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    // Time enough to stop it before, and then for the command to end well.
    let limit = patient(Duration::from_secs(1)).as_secs();
    let running = world.cmd(&format!("perflock --time-limit {limit} --grace {limit} sh -c")).arg(script).spawn();
    running.wait_stdout("ready\n");
    let guard = guard_of(&world);
    let sleeps = || voluntary_switches(guard);
    let before = sleeps();
    running.signal(libc::SIGSTOP);
    wait_until("the guard has looked", || sleeps() > before);
    assert_eq!(running.stdout(), "ready\n");
    running.signal(libc::SIGCONT);
    running.wait().exits(124).prints("ready\nterm\n");
    world.assert_clean();
}

/// How often the process went to sleep.
fn voluntary_switches(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}
