//! The report of a run where numbers, neighbours and files are not as one would like them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, Instant, SystemTime};

use perflock::child::Exit;
use perflock::job::Mode;
use perflock::report::document::{End, Reason, Report};
use perflock::report::full;
use serde_json::{Value, json};

use crate::guard::{guard_of, kill_both, stubborn};
use crate::harness::{ALICE, BOB, Machine, World, groups, me, patient, signal, state_of, wait_until};
use crate::hostile::{hold, joined, put};
use crate::needs;
use crate::outsiders::waits_for_lock;
use crate::report::{exit, report, usec};

#[test]
fn a_job_that_started_after_ours_was_over_did_not_share_with_it() {
    needs!(V2);
    // It starts within the moment in which the report is made, or a little later.
    for _ in 0..5 {
        let world = World::new();
        let job = world.cmd("pls --report-file r sh -c").arg("echo up; until [ -e stop ]; do sleep 0.01; done").spawn();
        job.wait_stdout("up\n");
        let next = world.waiter("2.x", world.cmd("perflock -q true"));
        world.write("stop", "");
        job.wait().exits(0);
        next.wait().exits(0);
        assert_eq!(report(&world, "r")["shared_with"], json!([]));
        world.assert_clean();
    }
}

#[test]
fn what_stood_in_the_file_behind_stdout_is_kept() {
    needs!(V2);
    let world = World::new();
    for (file, redirect) in [("/dev/stdout", ">>"), ("/proc/self/fd/1", ">>"), ("log", ">>"), ("/dev/stdout", ">")] {
        world.write("log", "");
        world
            .sh(&format!("{{ echo before; perflock --report-file {file} echo done; echo after; }} {redirect} log"))
            .run()
            .exits(0);
        let log = world.read("log");
        let [before, done, document, after] = log.lines().collect::<Vec<_>>()[..] else { panic!("{file}: {log:?}") };
        assert_eq!((before, done, after), ("before", "done", "after"));
        assert_eq!(serde_json::from_str::<Value>(document).unwrap()["exit"]["code"], 0);
    }
}

#[test]
fn a_file_without_a_name_that_is_stdout_was_not_removed_meanwhile() {
    needs!(V2);
    let world = World::new();
    let script = "exec 5> out; rm out; perflock --report-file /dev/stdout true >&5; cat /proc/self/fd/5 >&2";
    let done = world.sh(script).run().exits(0);
    let document: Value = serde_json::from_str(&done.stderr).unwrap_or_else(|e| panic!("{e}: {}", done.stderr));
    assert_eq!(document["exit"]["code"], 0);
}

#[test]
fn a_lock_whose_path_is_no_text_has_a_report_too() {
    needs!(V2, Root);
    let world = World::new();
    let lock = world.path("a").with_file_name(OsStr::from_bytes(b"lock\xff"));
    world.cmd("perflock -q --lock").arg(lock).args(["--report-file", "r", "true"]).run().exits(0);
    assert!(report(&world, "r")["lock"].as_str().unwrap().ends_with("/lock\u{fffd}"));
}

/// As below systemd, whose services have a socket for stdout. Such a one cannot be opened by name.
#[test]
fn the_report_goes_to_a_socket_that_is_stdout() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let script = "use Socket; socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, 0); \
        if (!fork) { open STDOUT, '>&', $b; close $b; close $a; exec @ARGV } close $b; print while <$a>; wait; exit $? >> 8";
    let done =
        world.cmd("perl -e").arg(script).args(["perflock", "--report-file", "/dev/stdout", "true"]).run().exits(0);
    assert_eq!(serde_json::from_str::<Value>(&done.stdout).unwrap()["exit"]["code"], 0);
}

#[test]
fn a_descriptor_that_is_not_open_is_found_out_before_anything_is_run() {
    let world = World::new();
    let done = world.cmd("perflock --report-file /dev/fd/77 touch ran").run().exits(125);
    assert_eq!(done.stderr, "perflock: cannot write the report to /dev/fd/77: Bad file descriptor\n");
    assert!(!world.path("ran").exists());
}

#[test]
fn a_limit_of_file_sizes_costs_the_report_and_nothing_else() {
    needs!(V2, Program("prlimit"));
    let world = World::new();
    let done = world.cmd("prlimit --fsize=1024 perflock --report-file r sh -c").arg("exit 3").run().exits(3);
    assert_eq!(done.stderr, "perflock: warning: cannot write the report to r: File too large\n");
    world.assert_clean();
}

#[test]
fn a_report_whose_file_was_removed_meanwhile_is_said_to_be_lost() {
    needs!(V2);
    let world = World::new();
    let done = world.cmd("perflock --report-file r rm r").run().exits(0);
    assert_eq!(done.stderr, "perflock: warning: cannot write the report to r: it was removed meanwhile\n");
}

#[test]
fn a_wait_for_the_queue_is_not_no_wait_at_all() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let script = "echo locked; until [ -e go ]; do sleep 0.01; done";
    let holder = world.cmd("flock -F").arg(world.queue()).args(["sh", "-c", script]).spawn();
    holder.wait_stdout("locked\n");
    let waiter = world.cmd("perflock --report --report-file r true").spawn();
    wait_until("it waits for the queue", || waits_for_lock(waiter.pid()));
    // From here on every moment counts, and so long that the report has a word about it.
    let (start, notable) = (Instant::now(), Duration::from_millis(200));
    wait_until("that is over", || start.elapsed() > notable);
    world.write("go", "");
    let done = waiter.wait().exits(0);
    assert!(u128::from(usec(&report(&world, "r"), "/waited_usec")) >= notable.as_micros());
    assert!(!done.stderr.contains("waited            not at all"), "{}", done.stderr);
    holder.wait().exits(0);
}

/// `exec 9> LOCK; flock 9` in a script: flock(1) ends, and the script has the lock.
#[test]
fn a_holder_by_flock_that_ended_is_not_shown_as_somebody_s_nothing() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let holder = world.sh("exec 9< lock; flock 9; echo locked; until [ -e stop ]; do sleep 0.01; done").spawn();
    holder.wait_stdout("locked\n");
    let waiter = world.cmd("perflock --report --report-file r true").spawn();
    waiter.wait_stderr("waiting for lock");
    world.write("stop", "");
    holder.wait().exits(0);
    let done = waiter.wait().exits(0);
    let pid = report(&world, "r")["waited_behind"][0]["pid"].clone();
    assert!(done.stderr.contains(&format!("; process {pid}, which ended (exclusive, by flock)\n")), "{}", done.stderr);
}

#[test]
fn a_job_inside_another_is_shown_as_one() {
    needs!(V2);
    let world = World::new();
    let done = world.cmd("perflock -q pls --report true").run().exits(0);
    assert!(done.stderr.contains("s shared, inside job 1, which had the machine\n"), "{}", done.stderr);
}

#[test]
fn a_message_is_told_as_it_is() {
    needs!(V2);
    let world = World::new();
    for message in ["-", "at least three", ""] {
        let done = world.cmd("perflock --report -m").args([message, "true"]).run().exits(0);
        let (shown, counted) = (format!("\n  message           {message}\n"), "  not counted       message");
        assert_eq!(done.stderr.contains(&shown), !message.is_empty(), "{}", done.stderr);
        assert!(!done.stderr.contains(counted), "{}", done.stderr);
    }
}

/// Making and executing it is a part of the time that it takes, as of the CPU time that is counted.
#[test]
fn one_process_does_not_use_more_than_one_core() {
    needs!(V2);
    let world = World::new();
    for _ in 0..5 {
        world.cmd("perflock --report-file r true").run().exits(0);
        let report = report(&world, "r");
        assert!(usec(&report, "/wall_usec") >= usec(&report, "/usage/cpu_usec"), "{report:#}");
        assert!(report["cpu_average_percent"].as_f64().is_some_and(|percent| percent <= 100.0), "{report:#}");
    }
}

#[test]
fn a_wait_for_an_orphan_is_a_wait_and_behind_its_owner() {
    needs!(V2, Root, OwnGroup);
    let world = World::for_uid(ALICE);
    let job = world.cmd("perflock sh -c").arg("trap '' TERM; echo ready; sleep 600").spawn();
    job.wait_stdout("ready\n");
    kill_both(&world, job);
    let group = world.job_groups().pop().unwrap();
    // One gives up, one is ended, one gets the machine.
    let by_bob = |file: &str, options: &str| {
        let line = format!("perflock --cgroup none --report --report-file {file} {options} true");
        world.cmd(&line).uid(BOB)
    };
    // Time enough to find the orphan.
    let limit = patient(Duration::from_millis(300));
    by_bob("late", &format!("-w {}", limit.as_secs_f64())).run().exits(75);
    let late = report(&world, "late");
    assert_eq!(exit(&late), json!({"reason": "lock-not-obtained"}));
    assert!(u128::from(usec(&late, "/waited_usec")) >= limit.as_micros(), "{late:#}");
    assert_eq!(late["waited_behind"][0]["user"]["uid"], ALICE);
    let ended = by_bob("ended", "").spawn();
    ended.wait_stderr(" to end (only ");
    ended.signal(libc::SIGINT);
    ended.wait().dies_of(libc::SIGINT);
    let ended = report(&world, "ended");
    assert_eq!(
        exit(&ended),
        json!({"reason": "lock-not-obtained", "error": "ended by signal 2 (SIGINT) while it waited"})
    );
    let next = by_bob("r", "").spawn();
    next.wait_stderr(" to end (only ");
    // From here on every moment counts as waited for, and so long that the report has a word about it.
    let start = Instant::now();
    wait_until("more than a second is over", || start.elapsed() > Duration::from_millis(1200));
    let waited = start.elapsed();
    let end = Instant::now();
    groups::kill(&group);
    let done = next.wait().exits(0);
    let held = end.elapsed();
    let report = report(&world, "r");
    assert!(u128::from(usec(&report, "/waited_usec")) >= waited.as_micros(), "{report:#}");
    assert!(u128::from(usec(&report, "/held_usec")) <= held.as_micros(), "{report:#}");
    assert_eq!(report["waited_behind"][0]["user"]["uid"], ALICE);
    assert!(!done.stderr.contains("for what the command left"), "{}", done.stderr);
    world.cmd("perflock true").run().exits(0);
}

#[test]
fn a_job_that_is_cancelled_while_it_waits_for_an_orphan_says_by_whom() {
    needs!(V2, Root, OwnGroup);
    let world = World::for_uid(ALICE);
    let job = world.cmd("perflock sh -c").arg("echo ready; sleep 600").spawn();
    job.wait_stdout("ready\n");
    kill_both(&world, job);
    let next = world.cmd("perflock --cgroup none --report-file r true").uid(BOB).spawn();
    next.wait_stderr(" to end (only ");
    world.cmd("perflock --cancel 2").uid(0).run().exits(0);
    let done = next.wait().dies_of(libc::SIGTERM);
    let report = report(&world, "r");
    assert_eq!(
        (&report["exit"]["reason"], &report["exit"]["cancelled_by"]["uid"]),
        (&"cancelled".into(), &0.into()),
        "{report:#}"
    );
    assert!(done.stderr.ends_with("perflock: cancelled by root\n"), "{}", done.stderr);
    world.cmd("perflock true").run().exits(0);
}

/// Who is overtaken while stopped comes back with another ticket, in which nobody cancelled it.
#[test]
fn a_stopped_waiter_that_was_overtaken_and_is_cancelled_says_by_whom() {
    needs!(V2);
    let world = World::new();
    let first = world.holder("perflock -q");
    let waiter = world.waiter("2.x", world.cmd("perflock --report-file r true"));
    waiter.signal(libc::SIGTSTP);
    wait_until("it is stopped", || state_of(waiter.pid()) == 'T');
    first.signal(libc::SIGTERM);
    first.wait().dies_of(libc::SIGTERM);
    let second = world.holder("perflock -q");
    world.cmd("perflock --cancel 2").run().exits(0);
    let done = waiter.wait().dies_of(libc::SIGTERM);
    let report = report(&world, "r");
    assert_eq!(
        (&report["exit"]["reason"], &report["exit"]["cancelled_by"]["name"]),
        (&"cancelled".into(), &me().into()),
        "{report:#}"
    );
    assert!(done.stderr.ends_with(&format!("perflock: cancelled by {}\n", me())), "{}", done.stderr);
    second.signal(libc::SIGTERM);
    second.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

/// What excludes others is its ticket's name.
#[test]
fn a_neighbour_who_lies_about_its_mode_is_told_as_what_it_is() {
    needs!(V2, Root);
    let world = World::new();
    let text = joined("\x1b[2Jugly", "") + "{\"event\":\"granted\",\"at_usec\":1}\n";
    assert!(text.contains("\"mode\":\"exclusive\""));
    let ticket = put(&world, "1.s", text);
    let live = hold(&ticket);
    let done = world.cmd("pls --report --report-file r true").run().exits(0);
    let shared = &report(&world, "r")["shared_with"][0];
    assert_eq!((&shared["mode"], &shared["user"]["uid"]), (&"shared".into(), &ALICE.into()));
    assert!(done.stderr.contains("beside 41001's '\\u{1b}[2Jugly' (shared)\n"), "{}", done.stderr);
    drop(live);
    std::fs::remove_file(ticket).unwrap();
}

/// Looking a user up may take as long as a directory service likes.
#[test]
fn nobody_s_name_is_looked_up_while_the_machine_is_held() {
    needs!(V2, Program("strace"));
    let world = World::new();
    let other = world.holder("pls -q");
    world.cmd("strace -f -o trace -e trace=openat,connect,flock,execve pls -q --report-file r true").run().exits(0);
    let shared = &report(&world, "r")["shared_with"][0];
    assert_eq!((&shared["number"], &shared["user"]["name"]), (&1.into(), &me().into()));
    let trace = world.read("trace");
    let held = trace.split("LOCK_SH").nth(1).unwrap().split("LOCK_UN").next().unwrap();
    // The sockets of name services; that of systemd, for a scope, is another.
    let looks_up =
        |trace: &str| ["/etc/passwd", "/nscd/", "/nslcd/", "/sss/", "/userdb/"].iter().any(|name| trace.contains(name));
    assert!(held.contains("execve(") && !looks_up(held), "{held}");
    assert!(looks_up(&trace), "{trace}");
    other.signal(libc::SIGTERM);
    other.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn the_guard_in_a_scope_writes_the_report() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    // The one that systemd took in, and the one that took its place.
    for replaced in [false, true] {
        let job = stubborn(&machine, "--report-file r");
        if replaced {
            signal(guard_of(&machine), libc::SIGKILL);
            job.wait_stderr("another took its place (");
        }
        job.signal(libc::SIGKILL);
        job.wait().dies_of(libc::SIGKILL);
        wait_until("the guard wrote", || machine.read("r").ends_with('\n'));
        let report = report(&machine, "r");
        assert_eq!(exit(&report), json!({"reason": "supervisor-lost"}));
        assert_eq!(report["tracking"], "scope");
        assert!(usec(&report, "/usage/cpu_usec") > 0 && usec(&report, "/held_usec") > 0, "{report:#}");
        machine.wait_gone();
    }
}

#[test]
fn a_job_that_systemd_stopped_says_so() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let job = machine.cmd("perflock --report-file r sh -c").arg("echo up; exec sleep 600").spawn();
    job.wait_stdout("up\n");
    let group = machine.job_groups().pop().unwrap();
    machine.systemctl(&format!("stop {}", group.parent().unwrap().file_name().unwrap().to_str().unwrap()));
    job.wait();
    let report = report(&machine, "r");
    assert_eq!((&report["exit"]["reason"], &report["exit"]["code"]), (&"stopped".into(), &Value::Null));
    assert!(usec(&report, "/usage/cpu_usec") > 0, "{report:#}");
    machine.wait_gone();
}

#[test]
fn a_group_that_took_long_to_make_is_not_blamed_on_what_the_command_left() {
    needs!(Root, V2, Manager);
    let machine = Machine::without_manager();
    // It takes connections, since the kernel does; nobody ever reads.
    let _listener = machine.listen();
    let done = machine.cmd("perflock --report --report-file r true").run().exits(0);
    let report = report(&machine, "r");
    let (held, lingered) = (usec(&report, "/held_usec"), usec(&report, "/lingered_usec"));
    assert!(held > 4_000_000 && lingered < held - 4_000_000, "{report:#}");
    assert!(
        done.stderr.contains("s before the command ran: making the job's group took that long\n"),
        "{}",
        done.stderr
    );
    assert!(!done.stderr.contains("for what the command left"), "{}", done.stderr);
}

#[test]
fn what_the_machine_was_held_for_after_the_command_is_told() {
    needs!(V2);
    let world = World::new();
    let line = "perflock --report --report-file r --leftovers wait sh -c";
    let done = world.cmd(line).arg("sleep 1.2 > /dev/null 2>&1 &").run().exits(0);
    let lingered = usec(&report(&world, "r"), "/lingered_usec");
    assert!(lingered > 1_000_000, "{lingered}");
    assert!(done.stderr.contains("s longer than the command ran, for what the command left\n"), "{}", done.stderr);
    assert!(!done.stderr.contains("before the command ran"), "{}", done.stderr);
    world.assert_clean();
}

/// A group mostly has no limit of its own; `oom_kill` of memory.events counts kills for want of memory anywhere.
#[test]
fn a_kill_for_want_of_memory_is_not_blamed_on_the_group_alone() {
    let mut report = Report::new(vec!["x".to_owned()], Mode::Exclusive, "/lock".into(), SystemTime::UNIX_EPOCH);
    report.usage.oom_kills = Some(1);
    let note = "1 process of it killed by the kernel, since the group or the machine had no memory left";
    assert_eq!(full::notes(&report), [note]);
    report.exit = End { reason: Reason::OutOfMemory, ..End::by_itself(Exit::Signal(libc::SIGKILL)) };
    assert_eq!(full::notes(&report), Vec::<String>::new());
    let ended = "out of memory: the kernel killed a process of it, since its group or the machine had none left; died of signal 9 (SIGKILL)";
    assert!(full::text(&report).contains(ended), "{}", full::text(&report));
}
