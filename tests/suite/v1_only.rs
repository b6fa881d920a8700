//! Machines that were booted with cgroup v1 only: the promises are kept by groups in its hierarchies.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::guard::{assert_ended_by_its_guard, guard_of, kill_both, members, stubborn};
use crate::harness::{ALICE, BOB, Cmd, World, alive, me, pid_in, signal, wait_until};
use crate::needs;
use crate::queue::{sleeps, voluntary_switches};
use crate::release::{DAEMON, SLEEPER, START_DAEMON, killed};
use crate::report::report;

/// What root has of v1.
const ROOT_S: [&str; 4] = ["freezer", "cpuacct", "memory", "pids"];

/// What a plain user has.
const USER_S: [&str; 1] = ["name=systemd"];

fn root_s() -> World {
    World::on_v1(0, &ROOT_S)
}

fn user_s() -> World {
    World::on_v1(ALICE, &USER_S)
}

/// A shell line that sets `g` to the directory of the own group in a hierarchy.
fn own_group(hierarchy: &str) -> String {
    let mount = hierarchy.trim_start_matches("name=");
    format!("g=/sys/fs/cgroup/{mount}$(sed -n 's/^[0-9]*:{hierarchy}://p' /proc/self/cgroup)")
}

/// What the job behind a ticket, whose supervisor is dead, is when it has members.
#[track_caller]
fn assert_orphan(world: &World, pids: &[i32]) {
    let shown = world.cmd("wholock --sample 0").run().exits(0).stdout;
    let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[3], "orphan", "{shown}");
    for pid in pids {
        let found = world.cmd(&format!("wholock --pid {pid}")).run().exits(0).stdout;
        assert!(found.contains("job 1"), "{found}");
    }
}

#[test]
fn a_job_is_in_groups_of_its_own_and_leaves_nothing() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("memory"), V1("pids"), V1("name=systemd"));
    for (world, hierarchies) in [(root_s(), &ROOT_S[..2]), (user_s(), &USER_S[..])] {
        let done = world.cmd("perflock --cgroup required cat /proc/self/cgroup").run().exits(0).says("");
        for hierarchy in hierarchies {
            let line = done.stdout.lines().find(|line| line.contains(&format!(":{hierarchy}:"))).unwrap();
            assert!(line.contains("/perflock-1-"), "{line}");
        }
        assert_eq!(done.stdout.matches("/perflock-1-").count(), hierarchies.len(), "{}", done.stdout);
        for code in [0, 3, 125, 255] {
            world.cmd("perflock sh -c").arg(format!("exit {code}")).run().exits(code).says("");
        }
        for number in [libc::SIGTERM, libc::SIGKILL, 34] {
            world.cmd("perflock sh -c").arg(format!("kill -{number} $$")).run().dies_of(number).says("");
        }
        world.cmd("perflock ./lock").run().exits(126);
        world.assert_clean();
    }
}

#[test]
fn daemons_are_killed_and_named() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("name=systemd"), Program("perl"));
    for world in [root_s(), user_s()] {
        world.write("daemon.pl", DAEMON);
        let job = format!("env -i {START_DAEMON}; exit 3");
        let done = world.cmd("perflock --grace 0.2 sh -c").arg(job).run().exits(3);
        let pid = pid_in(&world.path("daemon"));
        assert!(!alive(pid));
        done.says(&killed("perl", pid));
        world.assert_clean();
    }
}

#[test]
fn processes_that_fork_while_they_are_killed_do_not_escape() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("name=systemd"), Program("perl"));
    // One process after the other, each the child of the one before; and some that always have another child.
    let forks = "$SIG{TERM} = 'IGNORE'; for (1 .. 4) { next if fork; setpgrp; while (1) { if (my $child = fork) { waitpid $child, 0 } \
        else { select undef, undef, undef, 0.001; exit } } } \
        exit if fork; open F, '>', 'runs'; close F; while (1) { exit if fork; select undef, undef, undef, 0.005 }";
    for world in [root_s(), user_s()] {
        let job = "perl -e \"$FORKS\"; until [ -e runs ]; do sleep 0.005; done";
        let done = world.cmd("perflock --grace 0.2 sh -c").arg(job).env("FORKS", forks).run().exits(0);
        assert!(done.stderr.starts_with("perflock: killed "), "{}", done.stderr);
        world.assert_clean();
    }
}

#[test]
fn members_of_frozen_groups_below_are_killed_and_the_groups_removed() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("unshare"));
    // In a pid namespace of its own perflock thaws no groups but the job's.
    for prefix in ["", "unshare --pid --fork --kill-child --mount-proc "] {
        let world = root_s();
        let job = format!(
            "{}; mkdir $g/a $g/a/b; {SLEEPER}; cat pid > $g/a/b/tasks; echo FROZEN > $g/a/freezer.state\n\
             {}; mkdir $g/c; cat pid > $g/c/tasks; exit 4",
            own_group("freezer"),
            own_group("cpuacct")
        );
        let done = world.cmd(&format!("{prefix}perflock --grace 0.2 sh -c")).arg(job).run().exits(4);
        done.says(&killed("sleep", pid_in(&world.path("pid"))));
        world.assert_clean();
    }
}

#[test]
fn a_group_that_its_job_closed_is_emptied_and_removed() {
    needs!(V1Worlds, V1("name=systemd"));
    let world = user_s();
    let close = "mkdir $g/a; cat pid > $g/a/tasks; chmod 0 $g/a $g/tasks $g/cgroup.procs; chmod 100 $g";
    let job = format!("{}; {SLEEPER}; {close}; exit 5", own_group("name=systemd"));
    let done = world.cmd("perflock --grace 0.2 sh -c").arg(job).run().exits(5);
    let pid = pid_in(&world.path("pid"));
    done.says(&killed("sleep", pid));
    assert!(!alive(pid));
    world.assert_clean();
}

#[test]
fn when_the_supervisor_is_killed_the_guard_ends_the_job() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("name=systemd"), Program("perl"));
    for world in [root_s(), user_s()] {
        assert_ended_by_its_guard(&world);
    }
}

#[test]
fn a_guard_that_is_killed_is_replaced() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("perl"));
    let world = root_s();
    let running = stubborn(&world, "");
    let first = guard_of(&world);
    signal(first, libc::SIGKILL);
    running.wait_stderr("perflock: warning: the guard was killed; another took its place (");
    assert_ne!(guard_of(&world), first);
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL);
    world.wait_clean();
    assert!(members(&world).iter().all(|&pid| !alive(pid)));
}

#[test]
fn when_both_are_killed_wholock_names_the_orphan_and_the_next_perflock_ends_it() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("name=systemd"), Program("perl"));
    for (world, user) in [(root_s(), me()), (user_s(), ALICE.to_string())] {
        kill_both(&world, stubborn(&world, ""));
        let [child, daemon] = members(&world);
        assert!(alive(child) && alive(daemon) && world.lock_is_free());
        assert_orphan(&world, &[child, daemon]);
        let job = format!("grep -ls '^State:.[^ZX]' /proc/{child}/status /proc/{daemon}/status; echo started");
        let done = world.cmd("perflock sh -c").arg(job).run().exits(0).prints("started\n");
        done.mentions("perflock: ending the job sh -c ")
            .mentions(&format!(" of {user}, whose supervisor was killed, before starting\n"));
        world.cmd("perflock true").run().exits(0).says("");
        world.assert_clean();
    }
}

#[test]
fn the_orphan_of_a_machine_that_v1_is_seen_on_is_ended_from_where_v2_is() {
    needs!(V2, OwnGroup, V1Worlds, V1("freezer"), V1("cpuacct"), Program("perl"));
    let world = root_s();
    kill_both(&world, stubborn(&world, ""));
    let [child, daemon] = members(&world);
    world.with_v2("perflock true").run().exits(0).mentions("perflock: ending the job sh -c ");
    assert!(!alive(child) && !alive(daemon));
    world.with_v2("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn waiting_for_leftovers_costs_nothing_and_ends_with_the_last_of_them() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("perl"));
    let world = root_s();
    world.write("daemon.pl", DAEMON);
    let job = format!("{SLEEPER}; {START_DAEMON}; exit 6");
    let running = world.cmd("perflock --leftovers wait sh -c").arg(job).spawn();
    running.wait_stderr("perflock: holding the machine for 2 processes");
    wait_until("it sleeps", || sleeps(running.pid()));
    let before = voluntary_switches(running.pid());
    // This is what is measured: two seconds of it.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(voluntary_switches(running.pid()), before, "it was woken while its leftovers lived");
    for name in ["pid", "daemon"] {
        assert!(!world.lock_is_free());
        signal(pid_in(&world.path(name)), libc::SIGKILL);
    }
    running.wait().exits(6);
    world.assert_clean();
}

#[test]
fn waiting_for_another_user_s_orphan_costs_nothing_and_ends_with_it() {
    needs!(V1Worlds, V1("name=systemd"));
    let world = user_s();
    let job = "echo $$ > pid; exec >/dev/null 2>&1; while :; do sleep 0.02; done";
    let alice = world.cmd("perflock sh -c").arg(job).spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(alice, "1.x");
    let bob = world.cmd("perflock --cgroup none echo ran").uid(BOB).spawn();
    bob.wait_stderr(" of 41001, whose supervisor was killed, to end (only 41001 or root can end it)\n");
    wait_until("it sleeps", || sleeps(bob.pid()));
    let before = voluntary_switches(bob.pid());
    // This is what is measured: two seconds of it, longer than the pause of one who is told of nothing.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(voluntary_switches(bob.pid()), before, "it was woken while the orphan lived");
    assert_eq!(bob.stdout(), "");
    signal(member, libc::SIGKILL);
    bob.wait().exits(0).prints("ran\n");
    world.cmd("perflock true").run().exits(0);
    world.assert_clean();
}

/// Burns half a second of CPU time in a process that nobody waits for, and says so in the file `burnt`.
const BURNER: &str = "setsid perl -e 'exit if fork; 1 until (times)[0] + (times)[1] >= 0.5; open F, \">\", \"burnt\"; sleep 600'; \
                      until [ -e burnt ]; do sleep 0.05; done";

#[test]
fn the_cpu_time_of_processes_that_nobody_waited_for_is_counted() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("perl"));
    let world = root_s();
    world.cmd("perflock -q --grace 0.2 --report-file report sh -c").arg(BURNER).run().exits(0);
    let report = report(&world, "report");
    assert_eq!(report["tracking"], "v1");
    let usec = |name: &str| report["usage"][name].as_u64().unwrap();
    let (cpu, user, system) = (usec("cpu_usec"), usec("user_usec"), usec("system_usec"));
    assert!((500_000..1_500_000).contains(&cpu), "{report}");
    assert_eq!(user + system, cpu, "{report}");
    assert_eq!(report["sources"]["cpu_usec"], "cpuacct.usage");
    world.assert_clean();
}

#[test]
fn wholock_shows_what_a_job_uses() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("name=systemd"), Program("perl"));
    for (world, at_least) in [(root_s(), ""), (user_s(), "≥")] {
        let running = world.cmd("perflock sh -c").arg(format!("{BURNER}; exec sleep 600")).spawn();
        wait_until("it has burnt", || world.path("burnt").exists());
        let shown = world.cmd("wholock --sample 0.1").run().exits(0).stdout;
        let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        let [now, _, time, memory, processes] = row[5..10] else { panic!("{shown}") };
        let seconds = time.strip_prefix(at_least).and_then(|time| time.strip_suffix('s')).unwrap_or_default();
        let seconds: f64 = seconds.parse().unwrap_or_else(|_| panic!("{shown}"));
        assert!((0.5..1.5).contains(&seconds), "{shown}");
        assert_eq!(now.ends_with('%'), at_least.is_empty(), "{shown}");
        assert!(memory.starts_with('~') && processes.parse::<usize>().unwrap() >= 2, "{shown}");
        running.signal(libc::SIGTERM);
        running.wait();
        world.assert_clean();
    }
}

/// The same in numbers of which none is made up.
#[test]
fn what_nothing_counts_is_unknown_in_reports() {
    needs!(V1Worlds, V1("name=systemd"), Program("perl"));
    let world = user_s();
    let job = "perl -e '1 until (times)[0] + (times)[1] >= 0.2'";
    let done = world.cmd("perflock --report --report-file report sh -c").arg(job).run().exits(0);
    assert!(done.stderr.contains("CPU time          at least 0.2"), "{}", done.stderr);
    assert!(done.stderr.contains("a cgroup of its own in cgroup v1"), "{}", done.stderr);
    let report = report(&world, "report");
    assert!(report["usage"]["cpu_usec"].is_null(), "{report}");
    world.assert_clean();
}

#[test]
fn limits_are_kept_by_groups_beside_and_shown() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("memory"), V1("pids"), Program("perl"));
    let world = root_s();
    let job = "ulimit -u; cat /proc/self/cgroup; tail /dev/zero; exit 7";
    let done = world.cmd("perflock --memory 64M --pids 20 sh -c").arg(job).run().exits(7);
    for hierarchy in ROOT_S {
        let line = done.stdout.lines().find(|line| line.contains(&format!(":{hierarchy}:"))).unwrap();
        assert!(line.contains("/perflock-1-"), "{line}");
    }
    done.mentions("out of memory");
    let job = "for i in $(seq 30); do sleep 600 & done; wait";
    let done = world.cmd("perflock --grace 0.2 --pids 10 sh -c").arg(job).run();
    assert!(done.stderr.contains("--pids"), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn a_pin_is_kept_by_a_cpuset_beside() {
    needs!(V1Worlds, TwoCores, V1("freezer"), V1("cpuacct"), V1("cpuset"));
    let world = World::on_v1(0, &["freezer", "cpuacct", "cpuset"]);
    let job = "taskset -p 3 $$ > /dev/null; grep Cpus_allowed_list /proc/self/status; grep :cpuset: /proc/self/cgroup";
    let done = world.cmd("perflock --cpus 1 --pin hard sh -c").arg(job).run().exits(0).says("");
    let (allowed, cpuset) = done.stdout.split_once('\n').unwrap();
    assert_eq!(allowed, "Cpus_allowed_list:\t1");
    assert!(cpuset.contains("/perflock-1-"), "{cpuset}");
    world.assert_clean();
}

#[test]
fn a_job_inside_another_is_below_it_and_known_by_its_group() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("name=systemd"));
    for (world, hierarchy) in [(root_s(), "freezer"), (user_s(), "name=systemd")] {
        let script = format!("pls grep :{hierarchy}: /proc/self/cgroup; env -u PERFLOCK_JOB perflock -n echo inside");
        let done = world.cmd("perflock sh -c").arg(script).run().exits(0).says("");
        let (line, inside) = done.stdout.split_once('\n').unwrap();
        assert!(line.contains("/perflock-1-") && line.contains("/perflock-nested-"), "{line}");
        assert_eq!(inside, "inside\n");
        world.assert_clean();
    }
}

#[test]
fn a_process_is_told_its_job_from_inside_and_cannot_cancel_it() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"));
    let world = root_s();
    let job = "wholock --pid $$; env -u PERFLOCK_JOB perflock --cancel 1; echo $?";
    let done = world.cmd("perflock sh -c").arg(job).run().exits(0).mentions("cancel it from outside");
    assert!(done.stdout.contains("job 1") && done.stdout.ends_with("125\n"), "{}", done.stdout);
    world.assert_clean();
}

/// A login's groups in systemd's hierarchy, as on a machine with v1: the session is root's, the service manager's the user's own.
struct Login {
    world: World,
    service: PathBuf,
}

impl Login {
    fn new() -> Self {
        let world = World::on_v1(0, &USER_S);
        let slice = world.v1().group("name=systemd").path().join(format!("user-{ALICE}.slice"));
        let service = slice.join(format!("user@{ALICE}.service"));
        for group in [&slice, &slice.join("session-1.scope"), &service] {
            fs::create_dir(group).unwrap();
        }
        for file in ["", "tasks", "cgroup.procs"] {
            std::os::unix::fs::chown(service.join(file), Some(ALICE), None).unwrap();
        }
        world.install(ALICE);
        Self { world, service }
    }

    fn cmd(&self, line: &str) -> Cmd {
        let tasks = self.service.parent().unwrap().join("session-1.scope/tasks");
        let tasks = fs::File::options().write(true).open(tasks).unwrap();
        let cmd = self.world.cmd(line).uid(ALICE);
        cmd.before_exec(move || Ok(nix::unistd::write(&tasks, b"0").map(|_| ())?))
    }
}

#[test]
fn a_plain_user_s_session_uses_the_group_of_its_service_manager() {
    needs!(V1Worlds, V1("name=systemd"));
    let login = Login::new();
    let groups = || crate::harness::groups::children(&login.service);
    let job = format!("grep :name=systemd: /proc/self/cgroup; {SLEEPER}; exit 3");
    let done = login.cmd("perflock --cgroup required sh -c").arg(job).run().exits(3);
    assert!(done.stdout.contains(&format!("/user@{ALICE}.service/perflock-1-")), "{}", done.stdout);
    let pid = pid_in(&login.world.path("pid"));
    done.says(&killed("sleep", pid));
    assert!(!alive(pid));
    // Its guard is in the session, and does the same.
    let running = login.cmd("perflock sh -c").arg(format!("rm pid; {SLEEPER}; echo ready; wait")).spawn();
    running.wait_stdout("ready\n");
    assert_eq!(groups().len(), 1);
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL);
    // It lets the lock go by its end.
    wait_until("the guard has ended the job", || login.world.tickets().is_empty() && login.world.lock_is_free());
    assert!(!alive(pid_in(&login.world.path("pid"))));
    assert_eq!(groups(), Vec::<PathBuf>::new());
}
