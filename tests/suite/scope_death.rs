//! Jobs in scopes when somebody dies or is told to: supervisor, guard, both, the scope, at any moment.

use std::fs;
use std::time::{Duration, Instant};

use crate::guard::{guard_of, kill_both, members, stubborn};
use crate::harness::{ALICE, BOB, Machine, Running, alive, groups, pid_in, signal, state_of, wait_until};
use crate::needs;
use crate::release::DAEMON;
use crate::scope::{comm, end, parts, sleeper};

/// What perflock says when its scope was stopped.
fn stopped(unit: &str) -> String {
    format!("perflock: systemd stopped the job's scope ({unit}): every process of the job was ended\n")
}

#[test]
fn when_the_supervisor_is_killed_the_guard_ends_the_job() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    let running = stubborn(&machine, "");
    let members = members(&machine);
    let mut running = running;
    running.signal(libc::SIGKILL);
    // The lock is never free while a member lives.
    wait_until("the job ends", || {
        let free = machine.lock_is_free();
        let living = members.iter().any(|&pid| alive(pid));
        assert!(!(free && living), "the lock is free while a member lives");
        running.ended() && !living && free
    });
    running.wait().dies_of(libc::SIGKILL).says("");
    machine.wait_gone();
}

#[test]
fn a_waiter_starts_only_when_the_job_of_a_killed_supervisor_is_dead() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    let beat = "use Time::HiRes 'time'; $SIG{TERM} = 'IGNORE'; open F, '>>', 'beats'; F->autoflush; \
        while (1) { printf F \"%.6f\\n\", time; select undef, undef, undef, 0.0005 }";
    let running = machine.cmd("perflock sh -c").arg("for i in 1 2 3 4; do setsid perl -e \"$BEAT\" & done; wait");
    let running = running.env("BEAT", beat).spawn();
    wait_until("the job runs", || machine.read("beats").lines().count() > 20);
    let waiter = machine.cmd("perflock perl -e").arg("use Time::HiRes 'time'; printf \"%.6f\\n\", time").spawn();
    waiter.wait_stderr("perflock: waiting for lock behind 1 job; ");
    running.signal(libc::SIGKILL);
    let done = waiter.wait().exits(0);
    let start: f64 = done.stdout.trim().parse().unwrap();
    let last = machine.read("beats").lines().filter_map(|line| line.parse::<f64>().ok()).fold(0.0, f64::max);
    assert!(last < start, "a member was alive {} s after the next job's start", last - start);
    running.wait().dies_of(libc::SIGKILL);
    machine.wait_gone();
}

#[test]
fn a_guard_that_is_killed_is_replaced_in_its_place() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    let running = stubborn(&machine, "");
    let guard = guard_of(&machine);
    let place = machine.group_of(guard);
    let fields = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').skip(1).take(3).map(str::to_owned).collect::<Vec<_>>()
    };
    signal(guard, libc::SIGKILL);
    running.wait_stderr("perflock: warning: the guard was killed; another took its place (");
    let second = guard_of(&machine);
    assert_ne!(second, guard);
    assert!(running.stderr().contains(&format!("({second})\n")), "{}", running.stderr());
    assert_eq!(machine.group_of(second), place);
    let [pid, own] = [running.pid(), second].map(|pid| pid.to_string());
    assert_eq!(fields(second), [&*pid, &*own, &*own]);
    for pid in [running.pid(), second] {
        assert_eq!(crate::harness::threads_of(pid).len(), 1, "{}", comm(pid));
    }
    assert_eq!(machine.processes().len(), 2 + 3, "supervisor, guard, sh, its child and the daemon");
    // The second does the work of the first.
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL);
    machine.wait_gone();
    assert!(members(&machine).iter().all(|&pid| !alive(pid)));
}

#[test]
fn after_three_guards_the_job_goes_on_unguarded() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let job = "until [ -e stop ]; do sleep 0.01; done; sleep 600 & exit 3";
    let running = machine.cmd("perflock --grace 0.2 sh -c").arg(job).spawn();
    let warned = |running: &Running| running.stderr().matches("another took its place (").count();
    for count in 0..2 {
        signal(guard_of(&machine), libc::SIGKILL);
        wait_until("another guard took over", || warned(&running) == count + 1);
    }
    signal(guard_of(&machine), libc::SIGKILL);
    running.wait_stderr("perflock: warning: the guard was killed and cannot be replaced");
    assert!(!machine.lock_is_free());
    machine.write("stop", "");
    running.wait().exits(3).mentions("perflock: killed 1 leftover process: sleep (");
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn a_guard_that_dies_while_systemd_is_silent_is_no_end_of_the_job() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let job = "until [ -e stop ]; do sleep 0.01; done; exit 3";
    let running = machine.cmd("perflock sh -c").arg(job).spawn();
    let guard = guard_of(&machine);
    machine.init().signal(libc::SIGSTOP);
    wait_until("systemd is stopped", || state_of(machine.init().pid()) == 'T');
    signal(guard, libc::SIGKILL);
    running.wait_stderr("perflock: warning: the guard was killed");
    machine.write("stop", "");
    running.wait().exits(3);
    machine.assert_no_job();
    machine.init().signal(libc::SIGCONT);
    machine.wait_gone();
}

#[test]
fn when_both_are_killed_the_next_perflock_ends_the_orphan_before_it_starts() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    // The next may have a group or not, and may be anywhere.
    for next in ["perflock", "pls", "perflock --cgroup none"] {
        for file in ["child", "daemon"] {
            let _ = fs::remove_file(machine.path(file));
        }
        kill_both(&machine, stubborn(&machine, ""));
        let [child, daemon] = members(&machine);
        assert!(alive(child) && alive(daemon) && machine.lock_is_free());
        let shown = machine.cmd("wholock --sample 0").run().exits(0).stdout;
        assert!(shown.contains(" orphan "), "{shown}");
        let job = format!("grep -ls '^State:.[^ZX]' /proc/{child}/status /proc/{daemon}/status; echo started");
        let done = machine.cmd(&format!("{next} sh -c")).arg(job).run().exits(0).prints("started\n");
        done.mentions(": ending the job sh -c ").mentions(", whose supervisor was killed, before starting\n");
        machine.cmd("perflock true").run().exits(0).says("");
        machine.assert_clean();
        machine.wait_gone();
    }
}

#[test]
fn an_orphan_of_another_user_is_waited_for() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let job = machine.cmd("perflock sh -c").arg("trap '' TERM; echo ready; exec sleep 600").spawn();
    job.wait_stdout("ready\n");
    kill_both(&machine, job);
    let group = machine.job_groups().pop().unwrap();
    let next = machine.cmd("perflock --cgroup none echo ran").uid(BOB).spawn();
    next.wait_stderr("perflock: waiting for the job sh -c ");
    next.wait_stderr(" to end (only ");
    assert_eq!(next.stdout(), "");
    // Root ends it: the ticket names the group, and both are the user's.
    let root = machine.cmd("wholock --sample 0").uid(0).run().exits(0).stdout;
    assert!(root.contains(" orphan "), "{root}");
    groups::kill(&group);
    next.wait().exits(0).prints("ran\n");
    machine.cmd("perflock true").run().exits(0);
    machine.assert_clean();
    machine.wait_gone();
    assert_eq!(machine.uid(), ALICE);
}

#[test]
fn a_scope_that_is_stopped_ends_its_job_at_once() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    let (running, main) = sleeper(&machine, "perflock");
    let unit = machine.units().pop().unwrap();
    machine.systemctl(&format!("stop {unit}"));
    assert!(!alive(main));
    let done = running.wait().prints("").says(&stopped(&unit));
    let number = std::os::unix::process::ExitStatusExt::signal(&done.status);
    assert!([Some(libc::SIGTERM), Some(libc::SIGKILL)].contains(&number), "{}", done.status);
    machine.assert_clean();
    machine.wait_gone();
    // Ignoring what is ignored elsewhere is no way out, and the long grace is not waited for.
    let start = Instant::now();
    let running = stubborn(&machine, "--grace 1h");
    let unit = machine.units().pop().unwrap();
    machine.systemctl(&format!("stop {unit}"));
    assert!(members(&machine).iter().all(|&pid| !alive(pid)));
    running.wait().dies_of(libc::SIGKILL).says(&stopped(&unit));
    assert!(start.elapsed() < crate::harness::patient(Duration::from_secs(10)), "{:?}", start.elapsed());
    machine.assert_clean();
    machine.wait_gone();
    // The machine is usable after that.
    machine.cmd("perflock --cgroup required true").run().exits(0).says("");
    machine.wait_gone();
}

#[test]
fn a_scope_that_is_stopped_while_its_leftovers_are_waited_for_ends_them() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let job = "trap '' TERM; setsid sleep 600 & echo $! > pid; exit 6";
    for options in ["--leftovers wait", "--grace 1h"] {
        let running = machine.cmd(&format!("perflock {options} sh -c")).arg(job).spawn();
        let pid = pid_in(&machine.path("pid"));
        running.wait_stderr("process");
        let unit = machine.units().pop().unwrap();
        machine.systemctl(&format!("stop {unit}"));
        running.wait().exits(6);
        assert!(!alive(pid));
        machine.assert_clean();
        machine.wait_gone();
        fs::remove_file(machine.path("pid")).unwrap();
    }
}

#[test]
fn a_scope_all_of_which_is_killed_is_the_end_of_the_job() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    let running = stubborn(&machine, "");
    let unit = machine.units().pop().unwrap();
    machine.systemctl(&format!("kill --signal KILL {unit}"));
    running.wait().dies_of(libc::SIGKILL);
    assert!(members(&machine).iter().all(|&pid| !alive(pid)));
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn when_the_user_s_systemd_ends_so_does_the_job() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    let running = stubborn(&machine, "");
    let unit = machine.units().pop().unwrap();
    // As at logout.
    machine.init().signal(libc::SIGTERM);
    running.wait().dies_of(libc::SIGKILL).says(&stopped(&unit));
    wait_until(&format!("systemd ended: {}", machine.init().stderr()), || !alive(machine.init().pid()));
    assert!(members(&machine).iter().all(|&pid| !alive(pid)));
    machine.wait_clean();
    let done = machine.cmd("perflock true").run().exits(0);
    assert!(done.stderr.contains("scope: ") && done.stderr.contains("loginctl enable-linger"), "{}", done.stderr);
}

#[test]
fn a_systemd_that_executes_itself_anew_keeps_the_job() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let (running, main) = sleeper(&machine, "perflock");
    let group = machine.group_of(main);
    machine.systemctl("daemon-reload");
    machine.systemctl("daemon-reexec");
    wait_until("systemd knows the scope", || machine.units().len() == 1);
    assert!(alive(main));
    assert_eq!(machine.group_of(main), group);
    end(&machine, running);
}

#[test]
fn a_signal_to_perflock_at_any_moment_ends_it() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    machine.cmd("perflock true").run().exits(0);
    for step in 0..16 {
        let number = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT][step % 4];
        let running = machine.cmd("perflock sh -c").arg("ulimit -c 0; exec sleep 600").spawn();
        wait_until("it joined", || !machine.tickets().is_empty());
        std::thread::sleep(Duration::from_micros(700) * u32::try_from(step).unwrap());
        running.signal(number);
        running.wait().dies_of(number).prints("").says("");
        // A launcher that systemd is about to move stays until it is, so that the scope goes with it. While it is moved, one
        // walk through the groups may miss it, but not the next.
        wait_until("nobody is left", || machine.processes().is_empty() && machine.processes().is_empty());
        machine.assert_clean();
    }
    machine.wait_gone();
}

/// What every crash must end in, once the next job has come: nobody lives, no scope, no ticket, and the lock is free.
#[track_caller]
fn after_a_crash(machine: &Machine, what: &str) {
    wait_until(&format!("nobody is left after {what}"), || {
        machine.lock_is_free() && machine.processes().is_empty() && machine.job_groups().is_empty()
    });
    let next = machine.cmd("perflock --cgroup required echo next").run().exits(0).prints("next\n");
    assert!(!next.stderr.contains("warning"), "{what}: {}", next.stderr);
    machine.assert_no_job();
    wait_until(&format!("no scope is left after {what}"), || machine.scopes().is_empty());
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn a_supervisor_killed_at_any_moment_leaves_nothing() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    machine.cmd("perflock true").run().exits(0);
    for step in 0..20 {
        let running = machine.cmd("perflock sh -c").arg("trap '' TERM; setsid sleep 600 & exec sleep 600").spawn();
        wait_until("it joined", || !machine.tickets().is_empty());
        std::thread::sleep(Duration::from_micros(600) * step);
        running.signal(libc::SIGKILL);
        running.wait().dies_of(libc::SIGKILL);
        after_a_crash(&machine, &format!("step {step}"));
    }
}

#[test]
fn a_supervisor_killed_at_any_system_call_leaves_nothing() {
    needs!(Root, V2, Manager, Program("strace"));
    let machine = Machine::new();
    machine.cmd("perflock true").run().exits(0);
    // Which system calls the supervisor makes, once it has its place in the queue: the name, and the how many-th of it.
    let trace = machine.path("trace");
    machine.cmd("strace --output").arg(&trace).args(["perflock", "true"]).run().exits(0);
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    let calls: Vec<(String, u32)> = machine
        .read("trace")
        .lines()
        .filter_map(|line| {
            let name = line.split_once('(')?.0.to_owned();
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.starts_with("exit");
            let count = counts.entry(name.clone()).or_default();
            *count += 1;
            is_name.then_some((name, *count))
        })
        .collect();
    let joined = calls.iter().position(|(name, _)| name == "linkat").expect("a ticket is linked");
    let calls = &calls[joined..];
    assert!(calls.len() > 30, "{calls:?}");
    // A start takes some hundred calls: every so many is enough here, and which ones differs from machine to machine.
    for (name, count) in calls.iter().step_by(calls.len().div_ceil(40)) {
        let inject = format!("--inject={name}:signal=KILL:when={count}");
        let job = "trap '' TERM; setsid sleep 600 >/dev/null 2>&1 & exec sleep 0.2";
        let cmd =
            machine.cmd("strace --output /dev/null").arg(&inject).args(["perflock", "--grace", "0", "sh", "-c", job]);
        let _ = cmd.run();
        after_a_crash(&machine, &inject);
    }
}

#[test]
fn a_guard_or_launcher_killed_at_any_system_call_leaves_nothing() {
    needs!(Root, V2, Manager, Program("strace"));
    let machine = Machine::new();
    machine.cmd("perflock true").run().exits(0);
    // In whatever process of perflock's it is the so many-th; the command itself calls few of these.
    for name in [
        "close",
        "close_range",
        "setsid",
        "clone3",
        "poll",
        "ppoll",
        "read",
        "write",
        "prctl",
        "openat",
        "recvmsg",
        "rt_sigprocmask",
        "execve",
    ] {
        for count in [1, 2, 5] {
            let inject = format!("--inject={name}:signal=KILL:when={count}");
            let trace = format!("--trace={name}");
            let cmd = machine.cmd("strace --follow-forks --output /dev/null").arg(&trace).arg(&inject);
            let _ = cmd.args(["pls", "--grace", "0", "sh", "-c", "sleep 600 & exit 3"]).run();
            after_a_crash(&machine, &inject);
        }
    }
}

#[test]
fn leftovers_of_a_killed_supervisor_that_hide_are_found() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    machine.write("daemon.pl", DAEMON);
    let job = "env -i perl ./daemon.pl; until [ -s daemon ]; do sleep 0.005; done; echo ready; exec sleep 600";
    let running = machine.cmd("perflock sh -c").arg(job).spawn();
    running.wait_stdout("ready\n");
    let daemon = pid_in(&machine.path("daemon"));
    parts(&machine.group_of(daemon));
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL);
    machine.wait_gone();
    assert!(!alive(daemon));
}

#[test]
fn a_scope_is_stopped_although_its_supervisor_is_stopped_too() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let (running, main) = sleeper(&machine, "perflock");
    let unit = machine.units().pop().unwrap();
    running.signal(libc::SIGSTOP);
    wait_until("the supervisor is stopped", || state_of(running.pid()) == 'T');
    machine.systemctl(&format!("stop {unit}"));
    assert!(!alive(main));
    // It has the machine until it goes on.
    assert!(!machine.lock_is_free());
    running.signal(libc::SIGCONT);
    running.wait().says(&stopped(&unit));
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn without_descriptors_or_processes_a_job_runs_or_not_and_leaves_nothing() {
    needs!(Root, V2, Manager, Program("prlimit"));
    let machine = Machine::new();
    machine.cmd("perflock true").run().exits(0);
    let descriptors = (4..24).map(|limit| format!("--nofile={limit}"));
    for limit in descriptors.chain((1..8).map(|limit| format!("--nproc={limit}"))) {
        let done = machine.cmd("prlimit").arg(&limit).args(["perflock", "--cgroup", "required", "touch", "ran"]).run();
        // A program that cannot even load its libraries is told so by the loader, with 127.
        let code = done.status.code();
        assert!(
            [Some(0), Some(125), Some(126), Some(127)].contains(&code),
            "{limit}: {}: {}",
            done.status,
            done.stderr
        );
        assert_eq!(machine.path("ran").exists(), code == Some(0), "{limit}: {}", done.stderr);
        let _ = fs::remove_file(machine.path("ran"));
        after_a_crash(&machine, &limit);
    }
}

#[test]
fn a_term_that_is_not_systemd_s_leaves_the_job_its_time() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let job = "trap 'sleep 0.1; echo saved; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    let running = machine.cmd("perflock sh -c").arg(job).spawn();
    running.wait_stdout("up\n");
    // As `pkill perflock` does.
    signal(guard_of(&machine), libc::SIGTERM);
    running.signal(libc::SIGTERM);
    running.wait().exits(0).prints("up\nsaved\n").says("");
    machine.wait_gone();
    machine.assert_clean();
}

/// It would outlive the outer job, and nobody would hold the machine for it.
#[test]
fn a_job_of_another_user_s_inside_a_job_stays_inside() {
    needs!(Root, V2, Manager, Program("setpriv"));
    let machine = Machine::new();
    let inner = "setpriv --reuid $OTHER --regid $OTHER --clear-groups pls sh -c 'sed -n s/^0:://p /proc/self/cgroup'";
    let outer = "sed -n s/^0:://p /proc/self/cgroup; ".to_owned() + inner;
    let done = machine.cmd("perflock sh -c").arg(outer).env("OTHER", ALICE.to_string()).uid(0).run().exits(0);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert!(matches!(lines[..], [outer, inner] if inner == outer), "{}{}", done.stdout, done.stderr);
    assert_eq!(done.stderr, "");
    assert_eq!(machine.units(), Vec::<String>::new());
    machine.assert_clean();
}
