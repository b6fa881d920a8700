//! `wholock`: what it shows of every kind of job, to anybody, and what it answers to scripts.

use std::time::Duration;

use crate::harness::{ALICE, World, alive, me, patient, pid_in, signal, state_of, wait_until};
use crate::needs;

const HEADER: &str = "JOB USER MODE STATE AGE CPU NOW CPU AVG CPU TIME MEMORY PROCS COMMAND";

/// The table without its header, each row cut into the columns that the header marks.
#[track_caller]
fn rows(text: &str) -> Vec<Vec<String>> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    assert_eq!(header.split_whitespace().collect::<Vec<_>>().join(" "), HEADER, "{text}");
    lines
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect())
        .collect()
}

#[track_caller]
fn shown(world: &World) -> Vec<Vec<String>> {
    rows(&world.cmd("wholock --sample 0").run().exits(0).says("").stdout)
}

/// The state of the first job; empty while there is none.
fn state(world: &World) -> String {
    let text = world.cmd("wholock --sample 0").run().exits(0).stdout;
    if text == "the machine is free\n" { String::new() } else { rows(&text)[0][3].clone() }
}

#[test]
fn a_free_machine_is_said_to_be_free() {
    let world = World::new();
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n").says("");
    world.cmd("wholock --sample 0 --lock").arg(world.lock()).env_remove("PERFLOCK_LOCK").run().exits(0);
    world.cmd("wholock -q").run().exits(0).prints("").says("");
    world.assert_clean();
}

#[test]
fn a_machine_that_is_not_set_up_is_an_error() {
    let world = World::new();
    std::fs::remove_file(world.lock()).unwrap();
    for line in ["wholock", "wholock -q"] {
        let done = world.cmd(line).run().exits(125).prints("");
        let missing = format!("{} is missing", world.lock().display());
        assert!(done.stderr.starts_with("wholock: ") && done.stderr.contains(&missing), "{}", done.stderr);
    }
    assert!(!world.lock().exists());
}

#[test]
fn holders_come_first_and_then_waiters_in_their_order() {
    needs!(V2);
    let world = World::new();
    let first = world.holder("pls -m nightly");
    let second = world.holder("pls");
    let waiters = vec![
        world.waiter("3.x", world.cmd("perflock ls here")),
        world.waiter("4.s", world.cmd("pls ls")),
        world.waiter("5.x", world.cmd("perflock ls here")),
    ];
    let rows = shown(&world);
    let columns = |row: usize, from: usize, to: usize| rows[row][from..to].join("|");
    assert_eq!(rows.len(), 5, "{rows:?}");
    assert_eq!(columns(0, 0, 4), format!("1|{}|shared|running", me()));
    assert_eq!(rows[0][10..].join("  "), "sh -c 'echo running; exec sleep 600'  # nightly");
    assert_eq!(columns(1, 0, 4), format!("2|{}|shared|running", me()));
    // CPU NOW is not known without a sample; the group has one process.
    assert_eq!(rows[1][5], "-");
    assert!(rows[1][6].ends_with('%') && rows[1][7].ends_with('s'), "{rows:?}");
    assert_eq!(rows[1][9], "1", "{rows:?}");
    assert_eq!(columns(2, 0, 4), format!("3|{}|exclusive|waiting", me()));
    assert_eq!(columns(3, 0, 4), format!("4|{}|shared|waiting for 3", me()));
    assert_eq!(columns(4, 0, 4), format!("5|{}|exclusive|waiting for 4", me()));
    for row in &rows[2..] {
        assert_eq!(row[5..10].join("|"), "-|-|-|-|-", "{rows:?}");
    }
    assert_eq!(rows[4].last().unwrap(), "ls here");
    world.cmd("wholock -q").run().exits(1).prints("").says("");
    // From the last: nobody gets the lock meanwhile.
    for job in waiters.into_iter().rev() {
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM);
    }
    for job in [first, second] {
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM);
    }
    world.assert_clean();
}

#[test]
fn a_child_that_detached_itself_is_counted_under_its_job() {
    needs!(V2, Program("setsid"));
    let world = World::new();
    let script = "setsid sh -c 'sh -c \"echo \\$\\$ > daemon; while :; do :; done\" >/dev/null 2>&1 &'; exec sleep 600";
    let holder = world.cmd("perflock --grace 0 sh -c").arg(script).spawn();
    let daemon = pid_in(&world.path("daemon"));
    wait_until("the shell in between is gone", || shown(&world)[0][9] == "2");
    let seconds = || shown(&world)[0][7].trim_end_matches('s').parse::<f64>().unwrap();
    wait_until("its CPU time shows", || seconds() >= 0.1);
    let before = seconds();
    wait_until("its CPU time grows", || seconds() > before);
    let sampled = rows(&world.cmd("wholock --sample 100ms").run().exits(0).stdout);
    let now: f64 = sampled[0][5].trim_end_matches('%').parse().unwrap();
    assert!(now > 0.0, "{sampled:?}");
    let done = world.cmd(&format!("wholock --pid {daemon}")).run().exits(0).says("");
    assert!(done.stdout.starts_with(&format!("process {daemon} (sh) belongs to job 1\nJOB ")), "{}", done.stdout);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM).mentions("killed 1 leftover process: ");
    assert!(!alive(daemon));
    world.assert_clean();
}

#[test]
fn a_stopped_supervisor_is_shown() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    holder.signal(libc::SIGSTOP);
    wait_until("the supervisor is stopped", || state_of(holder.pid()) == 'T');
    assert_eq!(shown(&world)[0][3], "stopped");
    world.cmd("wholock -q").run().exits(1);
    holder.signal(libc::SIGCONT);
    wait_until("it is shown to run", || state(&world) == "running");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn a_stopped_waiter_is_shown() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let waiter = world.waiter("2.x", world.cmd("perflock true"));
    waiter.signal(libc::SIGTSTP);
    wait_until("the waiter is stopped", || state_of(waiter.pid()) == 'T');
    let rows = shown(&world);
    assert_eq!((&*rows[1][0], &*rows[1][3]), ("2", "stopped"), "{rows:?}");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.signal(libc::SIGCONT);
    waiter.wait().exits(0);
    world.assert_clean();
}

#[test]
fn a_job_that_waits_for_its_leftovers_is_releasing() {
    needs!(V2);
    let world = World::new();
    let script = "(trap '' TERM; echo $$ > ready; while [ ! -e go ]; do sleep 0.01; done) >/dev/null 2>&1 & \
                  while [ ! -e ready ]; do :; done";
    let holder = world.cmd("perflock --leftovers wait sh -c").arg(script).spawn();
    wait_until("it is releasing", || state(&world) == "releasing");
    world.write("go", "");
    holder.wait().exits(0);
    world.assert_clean();
}

#[test]
fn a_job_whose_supervisor_is_lost_is_shown_until_its_guard_has_ended_it() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let guard = world.guard_of("1.x");
    // SIGSTOP cannot be ignored: the guard does nothing until it goes on.
    signal(guard, libc::SIGSTOP);
    wait_until("the guard is stopped", || state_of(guard) == 'T');
    holder.signal(libc::SIGKILL);
    wait_until("the loss is shown", || state(&world) == "supervisor lost");
    world.cmd("wholock -q").run().exits(1);
    signal(guard, libc::SIGCONT);
    world.wait_clean();
}

#[test]
fn an_orphan_is_shown_until_it_ends() {
    needs!(V2);
    let world = World::new();
    let holder = world.cmd("perflock sh -c").arg("echo $$ > pid; exec sleep 600 >/dev/null 2>&1").spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(holder, "1.x");
    let rows = shown(&world);
    assert_eq!((rows.len(), &*rows[0][3], &*rows[0][9]), (1, "orphan", "1"), "{rows:?}");
    world.cmd("wholock -q").run().exits(1);
    let done = world.cmd(&format!("wholock --pid {member}")).run().exits(0);
    assert!(done.stdout.contains("belongs to job 1\n") && done.stdout.contains(" orphan "), "{}", done.stdout);
    assert!(alive(member), "looking ends nothing");
    signal(member, libc::SIGKILL);
    wait_until("the orphan is gone", || world.cmd("wholock -q").run().status.code() == Some(0));
    // The dead ticket names nothing any more, but looking cleans nothing either.
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n");
    assert_eq!(world.tickets(), ["1.x"]);
    world.cmd("pls true").run().exits(0);
    world.assert_clean();
}

#[test]
fn a_process_is_told_its_job() {
    needs!(V2);
    let world = World::new();
    let holder = world.cmd("perflock sh -c").arg("echo $$ > pid; exec sleep 600").spawn();
    let member = pid_in(&world.path("pid"));
    wait_until("sleep runs", || std::fs::read_to_string(format!("/proc/{member}/comm")).unwrap() == "sleep\n");
    let whose = |pid: i32| world.cmd(&format!("wholock --pid {pid}")).run();
    let guard = world.guard_of("1.x");
    for (pid, name) in [(member, "sleep"), (holder.pid(), "perflock"), (guard, "perflock-guard")] {
        let done = whose(pid).exits(0).says("");
        assert!(done.stdout.starts_with(&format!("process {pid} ({name}) belongs to job 1\n")), "{}", done.stdout);
        assert_eq!(rows(done.stdout.split_once('\n').unwrap().1)[0][0], "1");
    }
    let own = i32::try_from(std::process::id()).unwrap();
    let done = whose(own).exits(0).says("");
    assert!(done.stdout.ends_with(") belongs to no job\n"), "{}", done.stdout);
    whose(i32::MAX).exits(125).prints("").says(&format!("wholock: there is no process {}\n", i32::MAX));
    world.cmd("wholock --pid x").run().exits(125).prints("");
    world.cmd("wholock --pid -1").run().exits(125).prints("");
    world.cmd("wholock --pid 0").run().exits(125).prints("");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn without_groups_processes_are_counted_all_the_same() {
    needs!(V2);
    let world = World::new();
    let script = "sh -c 'echo $$ > child; exec sleep 600' & echo running; exec sleep 600";
    let holder = world.cmd("perflock --cgroup none --grace 0 sh -c").arg(script).spawn();
    let child = pid_in(&world.path("child"));
    holder.wait_stdout("running\n");
    let rows = shown(&world);
    assert_eq!((&*rows[0][3], &*rows[0][7], &*rows[0][9]), ("running", "-", "2"), "{rows:?}");
    world.cmd(&format!("wholock --pid {child}")).run().exits(0).says("");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    assert!(!alive(child));
    world.assert_clean();
}

#[test]
fn a_plain_user_sees_root_s_job() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let holder = world.cmd("perflock -m nightly sh -c").arg("echo $$ > pid; exec sleep 600").uid(0).spawn();
    let member = pid_in(&world.path("pid"));
    let rows = shown(&world);
    assert_eq!(rows[0][..4].join("|"), "1|root|exclusive|running");
    assert_eq!(rows[0][9], "1", "{rows:?}");
    assert_ne!(rows[0][7], "-", "{rows:?}");
    world.cmd("wholock -q").run().exits(1).prints("").says("");
    let done = world.cmd(&format!("wholock --pid {member}")).run().exits(0).says("");
    assert!(done.stdout.contains("belongs to job 1\n"), "{}", done.stdout);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn a_closed_pipe_is_no_error() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    world.sh("wholock --sample 0 | head -1 > header; wholock --help | head -1 > help").run().exits(0).says("");
    assert!(world.read("header").starts_with("JOB "));
    world.sh("wholock > /dev/full").run().exits(125).mentions("wholock: cannot write: No space left on device");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn looking_takes_no_lock_that_anybody_could_notice() {
    needs!(V2);
    let world = World::new();
    let watcher = world.sh("while [ ! -e enough ]; do wholock --sample 0 >/dev/null; done").spawn();
    let start = std::time::Instant::now();
    for _ in 0..10 {
        world.cmd("perflock -n true").run().exits(0).says("");
    }
    assert!(start.elapsed() < patient(Duration::from_secs(10)));
    world.write("enough", "");
    watcher.wait().exits(0);
    world.assert_clean();
}

#[test]
fn a_job_inside_a_job_has_a_row_below_it() {
    needs!(V2);
    for options in ["", "--cgroup none"] {
        let world = World::new();
        let script = format!("pls -q {options} sh -c 'echo inside; exec sleep 600'");
        let outer = world.cmd(&format!("perflock {options} -q sh -c")).arg(&script).spawn();
        outer.wait_stdout("inside\n");
        let waiter = world.waiter("2.x", world.cmd("perflock -q true"));
        let rows = shown(&world);
        assert_eq!(rows.len(), 3, "{rows:?}");
        let inner = &rows[1];
        assert_eq!((&*inner[0], &*inner[1], &*inner[2], &*inner[3]), ("-", &*me(), "-", "inside 1"), "{rows:?}");
        assert!(inner.last().unwrap().ends_with("pls -q sh -c 'echo inside; exec sleep 600'") || !options.is_empty());
        // With a group of its own it is counted.
        let processes = &inner[inner.len() - 2];
        assert_eq!(processes, if options.is_empty() { "1" } else { "-" }, "{rows:?}");
        assert_eq!((&*rows[2][0], &*rows[2][3]), ("2", "waiting"), "{rows:?}");
        outer.signal(libc::SIGTERM);
        outer.wait().dies_of(libc::SIGTERM);
        waiter.wait().exits(0);
        world.assert_clean();
    }
}

#[test]
fn a_flock_that_waits_for_the_job_it_is_a_part_of_is_told_apart() {
    needs!(V2, Program("flock"));
    for options in ["", "--cgroup none"] {
        let world = World::new();
        let script =
            format!("flock {0} true & flock -s {0} true & echo running; exec sleep 600", world.lock().display());
        let job = world.cmd(&format!("perflock {options} -q sh -c")).arg(&script).spawn();
        job.wait_stdout("running\n");
        let other = world.cmd("flock").arg(world.lock()).arg("true").spawn();
        let rows = || shown(&world).into_iter().skip(1).map(|row| format!("{} {}", row[2], row[3])).collect::<Vec<_>>();
        wait_until("three wait by flock", || rows().len() == 3);
        let mut seen = rows();
        seen.sort();
        assert_eq!(
            seen,
            ["exclusive waiting (flock)", "exclusive waits for its own job 1", "shared waits for its own job 1"]
        );
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM);
        other.wait().exits(0);
        world.assert_clean();
    }
}

#[test]
fn a_sub_group_named_like_an_inner_job_s_gets_nobody_else_s_command() {
    needs!(V2);
    let world = World::new();
    let job = world.holder("perflock -q");
    let other = world.cmd("perflock -q --cgroup none sleep 600").env("PERFLOCK_LOCK", world.path("other"));
    std::fs::write(world.path("other"), "").unwrap();
    std::fs::create_dir(world.path("other.d")).unwrap();
    let other = other.spawn();
    wait_until("the other job's ticket", || world.path("other.d/1.x").exists());
    let group = world.job_groups().remove(0);
    for number in 0..40 {
        std::fs::create_dir(group.join(format!("perflock-nested-{}-{number}", other.pid()))).unwrap();
    }
    let rows = shown(&world);
    assert_eq!(rows.len(), 1 + 32 + 1, "{rows:?}");
    let unknown = format!("process {} of another pid namespace", other.pid());
    for row in &rows[1..33] {
        assert_eq!((&*row[3], row.last().unwrap()), ("inside 1", &unknown), "{rows:?}");
    }
    assert_eq!(rows[33].last().unwrap(), "and 8 more");
    for running in [job, other] {
        running.signal(libc::SIGTERM);
        running.wait().dies_of(libc::SIGTERM);
    }
    world.assert_clean();
}
