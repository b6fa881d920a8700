//! Kernels and containers that lack what perflock likes best. What it does instead is shown by tests that are here anyway, run
//! again on [`Kernel`]s: `PERFLOCK_TEST_KERNEL=5.4 cargo test --test suite` does it with all of them.

use std::path::PathBuf;
use std::process::Command;

use crate::guard::guard_of;
use crate::harness::{Kernel, World, alive, pid_in};
use crate::hostile_jobs::furnished;
use crate::needs;
use crate::release::{SLEEPER, killed};

/// Runs tests again on a kernel, each of which must pass.
#[track_caller]
fn again(kernel: &str, tests: &[&str]) {
    let kernel = Kernel::named(kernel).name;
    let mut suite = Command::new(std::env::current_exe().unwrap());
    let ran =
        suite.args(["--exact", "--test-threads=2"]).args(tests).env("PERFLOCK_TEST_KERNEL", kernel).output().unwrap();
    let stdout = String::from_utf8_lossy(&ran.stdout);
    let stderr = String::from_utf8_lossy(&ran.stderr);
    let passed = format!("test result: ok. {} passed; 0 failed; 0 ignored", tests.len());
    assert!(stdout.contains(&passed), "on {kernel}, {passed:?}:\n{stdout}\n{stderr}");
}

/// The command gets into its group, with what it was given, and gets the signals that it should.
const BIRTH: [&str; 14] = [
    "smoke::an_exclusive_job_runs_in_its_own_cgroup_and_leaves_nothing",
    "inherit::whatever_the_command_forks_at_once_is_born_in_the_group",
    "inherit::every_signal_that_can_be_ignored_or_blocked_at_start_stays_so",
    "inherit::descriptors_keep_their_numbers_and_none_of_ours_is_added",
    "inherit::place_limits_and_priority_are_as_without_perflock",
    "inherit::the_exit_code_is_the_command_s_own",
    "inherit::a_death_by_signal_is_repeated_without_a_core",
    "fallback::a_job_without_a_group_runs_and_leaves_nothing",
    "nested::three_levels_work_and_keep_the_outer_job_s_name",
    "nested::what_the_inner_job_leaves_is_ended_with_it",
    "signals::signals_sent_to_perflock_reach_the_command_once",
    "terminal::an_interrupted_command_and_perflock_die_of_the_interrupt",
    "terminal_matrix::perflock::a_stopped_job_goes_on_in_front_and_behind",
    "guard::when_the_supervisor_is_killed_the_guard_ends_the_job",
];

/// Every member dies, whoever kills the group and whatever the members do.
const DEATH: [&str; 14] = [
    "release::a_leftover_is_killed_and_named_and_the_exit_code_kept",
    "release::a_job_may_make_threaded_groups",
    "hostile_jobs::forking::a_process_whose_main_thread_ended_is_a_member",
    "hostile_jobs::groups::closed_groups_far_below_are_emptied_and_removed",
    "hostile_jobs::groups::a_job_that_closes_its_own_group_is_ended",
    "hostile_jobs::groups::threads_in_groups_of_their_own_end_with_the_job",
    "hostile_jobs::groups::a_job_that_freezes_itself_is_ended",
    "guard::when_the_supervisor_is_killed_the_guard_ends_the_job",
    "guard::a_waiter_starts_only_when_the_job_of_a_killed_supervisor_is_dead",
    "guard::a_guard_that_is_killed_is_replaced",
    "guard::when_both_are_killed_the_next_perflock_ends_the_orphan_before_it_starts",
    "cancel::a_job_that_ignores_term_is_killed_after_the_grace_period_and_no_sooner",
    "signals::a_second_term_later_than_a_second_kills_the_group",
    "nested::an_inner_supervisor_killed_outright_takes_only_its_own_job_with_it",
];

/// The same in a scope.
const SCOPE: [&str; 8] = [
    "scope::supervisor_guard_and_command_are_where_they_belong",
    "scope::the_command_gets_what_perflock_was_given",
    "scope::leftovers_are_ended_named_or_waited_for",
    "scope::keys_typed_on_the_terminal_reach_the_command",
    "scope_death::when_the_supervisor_is_killed_the_guard_ends_the_job",
    "scope_death::a_guard_that_is_killed_is_replaced_in_its_place",
    "scope_death::when_both_are_killed_the_next_perflock_ends_the_orphan_before_it_starts",
    "scope_death::a_scope_that_is_stopped_ends_its_job_at_once",
];

#[test]
fn where_nobody_can_be_born_in_a_group_the_command_joins_it() {
    needs!(V2, Filter);
    for kernel in ["clone3-unknown", "clone3-forbidden", "5.4"] {
        again(kernel, &BIRTH);
    }
}

#[test]
fn without_cgroup_kill_groups_are_frozen_and_killed() {
    needs!(Root, V2, OwnGroup, Filter);
    for kernel in ["5.10", "5.4"] {
        again(kernel, &DEATH);
    }
}

#[test]
fn in_a_scope_too() {
    needs!(Root, V2, Manager, Filter);
    for kernel in ["clone3-forbidden", "5.10", "5.4"] {
        again(kernel, &SCOPE);
    }
}

/// Somebody would wait for the end of what it held open.
#[test]
fn without_close_range_the_guard_keeps_nothing_of_ours() {
    needs!(V2, Filter, Program("bash"));
    let world = World::new();
    world.write("input", "");
    let running = world.cmd("bash -c").arg("exec 5<input 77<input; exec perflock sleep 600").on("5.4").spawn();
    let guard = guard_of(&world);
    let entries = std::fs::read_dir(format!("/proc/{guard}/fd")).unwrap().flatten();
    let open: Vec<PathBuf> = entries.map(|entry| std::fs::read_link(entry.path()).unwrap()).collect();
    let is_own = |file: &PathBuf| {
        let text = file.to_str().unwrap();
        let named = ["/dev/null", "/perflock-1-", "pidfd", "signalfd"].iter().any(|name| text.contains(name));
        named || file == &world.lock() || file.starts_with(world.queue())
    };
    // A pipe of its own tells it that the command has joined.
    let others: Vec<&PathBuf> = open.iter().filter(|&file| !is_own(file)).collect();
    assert!(matches!(others[..], [pipe] if pipe.to_str().unwrap().starts_with("pipe:")), "{open:?}");
    running.signal(libc::SIGTERM);
    running.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

/// Thawed before all of them are frozen, they would be ahead of whoever kills those that are listed.
#[test]
fn processes_that_fork_while_they_are_killed_are_killed() {
    needs!(V2, Filter, Program("gcc"));
    for kernel in ["5.10", "5.4"] {
        let world = furnished();
        let job = "trap '' TERM; ./tool forkers 4 & sleep 0.1; exit 3";
        let done = world.cmd("perflock --grace 0.2 --cgroup required sh -c").arg(job).on(kernel).run().exits(3);
        done.mentions("perflock: killed ");
        world.assert_clean();
        let running = world.cmd("perflock --cgroup required ./tool forkers 4").on(kernel).spawn();
        running.wait_stdout("ready\n");
        guard_of(&world);
        running.signal(libc::SIGKILL);
        running.wait().dies_of(libc::SIGKILL);
        world.wait_clean();
    }
}

/// Whoever dies between the birth of the command and its joining, or while the group is frozen, no member is alive beside the next
/// job.
#[cfg(feature = "crash-points")]
#[test]
fn a_crash_at_any_step_leaves_nothing() {
    needs!(Root, V2, OwnGroup, Manager, Filter, Program("flock"), Program("setsid"));
    let tests = [
        "crash_points::in_a_group",
        "crash_points::birth::in_a_group",
        "crash_points::nested::in_a_group",
        "crash_points::in_a_scope",
    ];
    again("5.4", &tests);
}

/// Nobody forks then. Seen in the calls: with few processors, most are caught without as well.
#[test]
fn members_are_killed_while_they_are_frozen() {
    needs!(V2, OwnGroup, Filter, Program("strace"));
    let world = World::new();
    let trace = "strace -f -o trace -e trace=openat,write,pidfd_send_signal perflock --grace 0.1 sh -c";
    let job = "trap '' TERM; sleep 600 & until grep -qs sleep /proc/$!/comm; do :; done; exit 3";
    world.cmd(trace).arg(job).on("5.10").run().exits(3).mentions("perflock: killed 1 leftover process: ");
    let trace = world.read("trace");
    let kills = trace.lines().skip_while(|line| !line.contains("/cgroup.freeze\""));
    let what = |line: &str| {
        let written =
            ["1", "0"].into_iter().find(|text| line.contains("write(") && line.contains(&format!("\"{text}\", 1")));
        written.or((line.contains("pidfd_send_signal(") && line.contains("SIGKILL")).then_some("KILL"))
    };
    let first: Vec<&str> = kills.filter_map(what).take(3).collect();
    assert_eq!(first, ["1", "KILL", "0"], "{trace}");
    world.assert_clean();
}

/// What is said with `--verbose` of how the job's group is used.
const WAYS: [(&str, &str); 5] = [
    ("", "the command is born in it, and it is killed by cgroup.kill"),
    (
        "clone3-unknown",
        "the command joins it (no clone3(2) with CLONE_INTO_CGROUP here), and it is killed by cgroup.kill",
    ),
    (
        "clone3-forbidden",
        "the command joins it (no clone3(2) with CLONE_INTO_CGROUP here), and it is killed by cgroup.kill",
    ),
    ("5.10", "the command is born in it, and it is frozen to be killed (no cgroup.kill here)"),
    (
        "5.4",
        "the command joins it (no clone3(2) with CLONE_INTO_CGROUP here), and it is frozen to be killed (no cgroup.kill here)",
    ),
];

#[test]
fn which_way_is_used_is_said_on_request_and_makes_no_difference_else() {
    needs!(V2, Filter);
    let world = World::new();
    for (kernel, ways) in WAYS {
        let cmd = |line: &str| if kernel.is_empty() { world.cmd(line) } else { world.cmd(line).on(kernel) };
        let done = cmd("perflock --verbose --cgroup required true").run().exits(0);
        assert!(done.stderr.starts_with(&format!("perflock: job group: {ways}\n")), "{kernel}: {}", done.stderr);
        let done =
            cmd("perflock --cgroup required sh -c").arg(format!("{SLEEPER}; grep 0:: /proc/$!/cgroup; exit 4")).run();
        let pid = pid_in(&world.path("pid"));
        assert!(!alive(pid), "{kernel}");
        assert!(done.stdout.contains("/perflock-"), "{kernel}: {}", done.stdout);
        done.exits(4).says(&killed("sleep", pid));
        std::fs::remove_file(world.path("pid")).unwrap();
        world.assert_clean();
    }
}

#[test]
fn a_kernel_that_will_not_do_is_refused_at_once_with_one_error() {
    needs!(V2, Filter);
    let world = World::new();
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let filtered = "; this one has it, so a filter refuses it, a container's say: let it through there";
    for (kernel, call, reason) in [
        ("5.2", "pidfd_open(2)", "Function not implemented"),
        ("pidfd-forbidden", "pidfd_send_signal(2)", "Operation not permitted"),
    ] {
        let why =
            format!("perflock needs Linux 5.3 or newer: {call} is refused on Linux {release} ({reason}){filtered}\n");
        // Before it would wait.
        let holder = world.holder("perflock -q");
        for line in ["perflock touch ran", "pls touch ran", "perflock --cgroup none touch ran", "perflock --cancel 1"] {
            let name = line.split(' ').next().unwrap();
            world.cmd(line).on(kernel).run().exits(125).prints("").says(&format!("{name}: {why}"));
        }
        assert!(!world.path("ran").exists());
        // It makes and kills nothing.
        let shown = world.cmd("wholock --sample 0").on(kernel).run().exits(0).says("").stdout;
        assert!(shown.contains(" exclusive  running "), "{shown}");
        holder.signal(libc::SIGTERM);
        holder.wait().dies_of(libc::SIGTERM);
        world.assert_clean();
    }
}
