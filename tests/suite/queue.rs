//! The queue: who starts when, who gives up, and what waiting costs.

use std::fs;
use std::time::Duration;

use crate::harness::{Cmd, World, me, threads_of, wait_until};
use crate::needs;

/// A job that appends a word to the file `order`.
pub(crate) fn appends(world: &World, program: &str, word: &str) -> Cmd {
    world.cmd(program).args(["sh", "-c", &format!("echo {word} >> order")])
}

#[test]
fn exclusive_jobs_start_in_the_order_of_their_tickets() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let waiters: Vec<_> = (2..8)
        .map(|number| world.waiter(&format!("{number}.x"), appends(&world, "perflock", &number.to_string())))
        .collect();
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for waiter in waiters {
        waiter.wait().exits(0).prints("").mentions("perflock: got lock after ");
    }
    assert_eq!(world.read("order"), "2\n3\n4\n5\n6\n7\n");
    world.assert_clean();
}

#[test]
fn consecutive_shared_jobs_start_together() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    // Each ends only when all three run.
    let script = "touch in.$0; until [ -e in.2 ] && [ -e in.3 ] && [ -e in.4 ]; do sleep 0.01; done";
    let waiters: Vec<_> = (2..5)
        .map(|number| {
            let cmd = world.cmd("pls sh -c").arg(script).arg(number.to_string());
            world.waiter(&format!("{number}.s"), cmd)
        })
        .collect();
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for waiter in waiters {
        waiter.wait().exits(0).mentions("pls: got lock after ");
    }
    world.assert_clean();
}

#[test]
fn a_shared_job_waits_behind_a_waiting_exclusive_one() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("pls");
    let beside = world.cmd("pls true").run().exits(0).says("");
    beside.prints("");
    let exclusive = world.waiter("2.x", appends(&world, "perflock", "exclusive"));
    let shared = world.waiter("3.s", appends(&world, "pls", "shared"));
    shared.wait_stderr("pls: waiting for lock behind 1 job");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    exclusive.wait().exits(0);
    shared.wait().exits(0);
    assert_eq!(world.read("order"), "exclusive\nshared\n");
    world.assert_clean();
}

#[test]
fn nonblock_does_not_wait_for_a_holder() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    for (line, code) in [("perflock -n", 75), ("pls --nonblock", 75), ("perflock -n -E 9", 9), ("perflock -w 0", 75)] {
        let done = world.cmd(line).arg("false").run().exits(code).prints("");
        let name = line.split(' ').next().unwrap();
        let said = format!("{name}: not waiting for lock behind 1 job; {} runs sh -c 'echo running", me());
        assert!(done.stderr.starts_with(&said), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        assert_eq!(world.tickets(), ["1.x"]);
    }
    world.cmd("perflock -q -n true").run().exits(75).prints("").says("");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.cmd("perflock -n true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn nonblock_does_not_pass_a_waiter_either() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("pls");
    let waiter = world.waiter("2.x", world.cmd("perflock true"));
    // The lock file would let a shared job in.
    let done = world.cmd("pls -n true").run().exits(75).prints("").mentions("pls: not waiting for lock behind 1 job");
    assert!(!done.stderr.contains("by flock"), "a job is taken for an outsider: {}", done.stderr);
    assert_eq!(world.tickets(), ["1.s", "2.x"]);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0);
    world.assert_clean();
}

#[test]
fn a_limited_wait_gives_up_and_leaves_the_queue() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let done = world.cmd("perflock -w 0.2 true").run().exits(75).prints("");
    let lines: Vec<&str> = done.stderr.lines().collect();
    assert!(
        lines[0].starts_with(&format!("perflock: waiting for lock behind 1 job; {} runs sh -c ", me())),
        "{lines:?}"
    );
    assert!(lines[1].starts_with("perflock: gave up after waiting ") && lines[1].ends_with("s for the lock"));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(world.tickets(), ["1.x"]);
    world.cmd("pls --timeout 100ms -E 7 true").run().exits(7).prints("");
    // Behind a waiter it sleeps on a ticket instead of the lock file.
    let waiter = world.waiter("2.x", world.cmd("perflock true"));
    world.cmd("pls -q -w 0.1 true").run().exits(75).prints("").says("");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0);
    world.assert_clean();
}

#[test]
fn a_wait_that_is_long_enough_gets_the_lock() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let waiter = world.waiter("2.x", world.cmd("perflock -w 1h echo got"));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0).prints("got\n").mentions("perflock: got lock after ");
    world.assert_clean();
}

#[test]
fn a_waiter_says_whom_it_waits_for_and_when_it_got_the_lock() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let first = world.waiter("2.x", world.cmd("perflock true"));
    let second = world.waiter("3.x", world.cmd("perflock echo done"));
    let quiet = world.waiter("4.x", world.cmd("perflock -q echo quiet"));
    second.wait_stderr(&format!(
        "perflock: waiting for lock behind 2 jobs; {} runs sh -c 'echo running; exec sleep 600' (exclusive, ",
        me()
    ));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    first.wait().exits(0);
    let done = second.wait().exits(0).prints("done\n");
    assert!(done.stderr.lines().last().unwrap().starts_with("perflock: got lock after "), "{}", done.stderr);
    quiet.wait().exits(0).prints("quiet\n").says("");
    world.assert_clean();
}

#[test]
fn each_program_takes_the_other_s_mode() {
    needs!(V2);
    let world = World::new();
    for (line, said) in [
        ("perflock", "exclusive 1.x"),
        ("perflock -s", "shared 1.s"),
        ("perflock --shared", "shared 1.s"),
        ("pls", "shared 1.s"),
        ("pls -x", "exclusive 1.x"),
        ("pls --exclusive", "exclusive 1.x"),
    ] {
        let show = "echo $PERFLOCK_MODE $(ls lock.d)";
        world.cmd(line).args(["sh", "-c", show]).run().exits(0).prints(&format!("{said}\n")).says("");
    }
    world.assert_clean();
}

/// A job of so many seconds that logs its start and its end, each by one append. The number of its ticket is the first
/// part of PERFLOCK_JOB.
pub(crate) const LOGS: &str = "echo start ${PERFLOCK_JOB%%-*} $PERFLOCK_MODE >> log; sleep $0; \
                               echo end ${PERFLOCK_JOB%%-*} $PERFLOCK_MODE >> log";

/// What the log of the mixed jobs must show. Each line is `start|end NUMBER MODE`.
pub(crate) fn check_log(log: &str) {
    let mut running: Vec<(u64, bool)> = Vec::new();
    let mut started: Vec<(u64, bool)> = Vec::new();
    for line in log.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let job = (fields[1].parse().unwrap(), fields[2] == "exclusive");
        if fields[0] == "end" {
            running.retain(|other| *other != job);
            continue;
        }
        let conflict = running.iter().find(|other| other.1 || job.1);
        assert_eq!(conflict, None, "{job:?} started beside it\n{log}");
        // First come, first served: nobody who conflicts and came later was served before.
        let overtaken = started.iter().find(|other| (other.1 || job.1) && other.0 > job.0);
        assert_eq!(overtaken, None, "it passed {job:?}\n{log}");
        running.push(job);
        started.push(job);
    }
    assert_eq!(running, []);
}

#[test]
fn forty_mixed_jobs_neither_overlap_nor_overtake() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    // Any sequence will do that mixes modes and lengths.
    let mut random: u32 = std::process::id();
    let jobs: Vec<_> = (0..40)
        .map(|_| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let program = if random >> 30 == 0 { "perflock -q" } else { "pls -q" };
            let seconds = format!("0.0{:02}", (random >> 16) % 20);
            world.cmd(program).args(["sh", "-c", LOGS, &seconds]).spawn()
        })
        .collect();
    wait_until("all have joined", || world.tickets().len() == 41);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for job in jobs {
        job.wait().exits(0).says("");
    }
    let log = world.read("log");
    assert_eq!(log.lines().count(), 80, "{log}");
    check_log(&log);
    world.assert_clean();
}

/// Whether every thread of a process sleeps.
pub(crate) fn sleeps(pid: i32) -> bool {
    let asleep = |thread: &String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
    };
    threads_of(pid).iter().all(asleep)
}

/// Whether a holder's supervisor sleeps for good: in the first 10 ms it does so until these are over.
pub(crate) fn sleeps_for_good(pid: i32) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let words: Vec<&str> = call.split(' ').collect();
    // ppoll(2) without a time.
    words.first() == Some(&&*libc::SYS_ppoll.to_string()) && words.get(3) == Some(&"0x0")
}

/// How often the threads of a process gave up a CPU of their own accord.
pub(crate) fn voluntary_switches(pid: i32) -> u64 {
    let of_thread = |thread: String| {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    threads_of(pid).into_iter().map(of_thread).sum()
}

#[test]
fn a_waiter_is_never_woken_while_others_come_and_go() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let on_the_lock_file = world.waiter("2.x", world.cmd("perflock true"));
    let on_a_ticket = world.waiter("3.x", world.cmd("perflock true"));
    let pids = [on_the_lock_file.pid(), on_a_ticket.pid(), holder.pid(), world.guard_of("1.x")];
    wait_until("every thread sleeps", || pids.into_iter().all(sleeps) && sleeps_for_good(holder.pid()));
    let before = pids.map(voluntary_switches);
    let behind = world.waiter("4.s", world.cmd("pls true"));
    world.cmd("perflock -q -n true").run().exits(75);
    world.cmd("wholock --sample 0").run().exits(0);
    behind.signal(libc::SIGINT);
    behind.wait().dies_of(libc::SIGINT);
    // This is what is measured: a second of it.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(pids.map(voluntary_switches), before);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    on_the_lock_file.wait().exits(0);
    on_a_ticket.wait().exits(0);
    world.assert_clean();
}
