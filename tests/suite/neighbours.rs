//! Neighbours who hold what everybody may hold, and tickets that are taken away or replaced: they cost time, no more.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};

use nix::fcntl::{FcntlArg, fcntl};

use crate::harness::{ALICE, BOB, Running, World, alive, patient, threads_of, wait_until};
use crate::hostile::{hold, joined, put};
use crate::junk::{is_raw, waiting};
use crate::needs;
use crate::outsiders::end_flock;
use crate::queue::appends;

/// ALICE has the queue directory locked, by a command that would draw on a terminal.
fn sits_on_the_queue(world: &World) -> Running {
    let flock = world.cmd("flock").arg(world.queue()).args(["env", "\x1b[2J\u{9b}m=1"]);
    let flock = flock.args(["sh", "-c", "echo running; exec sleep 600"]).uid(ALICE).spawn();
    flock.wait_stdout("running\n");
    flock
}

#[test]
fn whoever_keeps_the_queue_locked_is_named_after_a_while() {
    needs!(Root, V2, OwnGroup, Program("flock"));
    let world = World::for_uid(BOB);
    let holder = world.holder("pls");
    let neighbour = sits_on_the_queue(&world);
    let limit = patient(std::time::Duration::from_secs(7)).as_secs();
    let limited = world.cmd(&format!("perflock -w {limit} touch ran")).spawn();
    let interrupted = waiting(world.cmd("pls touch ran"));
    let patient_one = waiting(world.cmd("pls echo patient"));
    let who = format!("is locked; 41001 runs flock {}", world.queue().display());
    let process = format!(" (exclusive, by flock, process {})\n", neighbour.pid());
    for waiter in [&limited, &interrupted, &patient_one] {
        waiter.wait_stderr(&format!("waiting for the queue: {} {who}", world.queue().display()));
        waiter.wait_stderr(&process);
        assert_eq!(waiter.stderr().lines().count(), 1, "{}", waiter.stderr());
        assert!(!is_raw(&waiter.stderr()), "{:?}", waiter.stderr());
    }
    interrupted.signal(libc::SIGINT);
    interrupted.wait().dies_of(libc::SIGINT).prints("");
    let done = limited.wait().exits(75).prints("").mentions("perflock: gave up after waiting ");
    assert_eq!(done.stderr.lines().count(), 2, "{}", done.stderr);
    // Who has the machine is as free as ever, and so is who only looks.
    let shown = world.cmd("wholock --sample 0").run().exits(0).says("");
    assert_eq!(shown.stdout.lines().count(), 2, "{}", shown.stdout);
    assert_eq!(world.tickets(), ["1.s"]);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM).says("");
    assert_eq!(world.tickets(), Vec::<String>::new());
    end_flock(&world, neighbour);
    patient_one.wait().exits(0).prints("patient\n");
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn a_waiter_is_not_held_up_by_a_locked_queue() {
    needs!(Root, V2, OwnGroup, Program("flock"));
    let world = World::for_uid(BOB);
    let holder = world.holder("perflock");
    let first = world.waiter("2.x", appends(&world, "perflock", "first"));
    let second = world.waiter("3.x", appends(&world, "perflock", "second"));
    let cancelled = world.waiter("4.x", world.cmd("perflock touch ran"));
    let neighbour = sits_on_the_queue(&world);
    cancelled.signal(libc::SIGTERM);
    cancelled.wait().dies_of(libc::SIGTERM);
    assert_eq!(world.tickets(), ["1.x", "2.x", "3.x"]);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    first.wait().exits(0);
    second.wait().exits(0);
    assert_eq!(world.read("order"), "first\nsecond\n");
    end_flock(&world, neighbour);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

/// Everything that can be locked with a right to read only.
fn read_lock(world: &World, name: &str) -> Vec<File> {
    let path = world.queue().join(name);
    let whole = |kind: i32| libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let by_flock = File::open(&path).unwrap();
    by_flock.lock().unwrap();
    // Sleeps until the ticket's owner lets go, as a waiter does, and then keeps what it has.
    let by_ofd = File::open(&path).unwrap();
    let sleeper = by_ofd.try_clone().unwrap();
    std::thread::spawn(move || fcntl(&sleeper, FcntlArg::F_OFD_SETLKW(&whole(libc::F_RDLCK))));
    assert!(
        fcntl(&by_ofd, FcntlArg::F_OFD_SETLK(&whole(libc::F_WRLCK))).is_err(),
        "a reader can forge a ticket's life"
    );
    vec![by_flock, by_ofd]
}

#[test]
fn read_locks_on_everybody_s_tickets_change_nothing() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("pls");
    let waiters = [
        world.waiter("2.x", appends(&world, "perflock", "2")),
        world.waiter("3.s", appends(&world, "pls", "3")),
        world.waiter("4.x", appends(&world, "perflock", "4")),
        world.waiter("5.x", appends(&world, "perflock", "5")),
    ];
    let locks: Vec<_> = ["1.s", "2.x", "3.s", "4.x", "5.x"].iter().map(|name| read_lock(&world, name)).collect();
    world.cmd("pls -n true").run().exits(75);
    let shown = world.cmd("wholock --sample 0").run().exits(0);
    assert_eq!(shown.stdout.lines().count(), 6, "{}", shown.stdout);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    for waiter in waiters {
        waiter.wait().exits(0);
    }
    assert_eq!(world.read("order"), "2\n3\n4\n5\n");
    world.assert_clean();
    drop(locks);
}

#[test]
fn a_read_lock_on_a_killed_waiter_s_ticket_holds_nobody_up() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let killed = world.waiter("2.x", world.cmd("perflock touch ran"));
    let behind = world.waiter("3.x", appends(&world, "perflock", "behind"));
    let locks = read_lock(&world, "2.x");
    killed.signal(libc::SIGKILL);
    killed.wait().dies_of(libc::SIGKILL);
    behind.wait_stderr("perflock: waiting for lock behind 1 job");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    behind.wait().exits(0);
    world.cmd("perflock true").run().exits(0).says("");
    assert!(!world.path("ran").exists());
    world.assert_clean();
    drop(locks);
}

#[test]
fn a_stopped_waiter_whose_ticket_is_read_locked_goes_on_all_the_same() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let stopped = world.waiter("2.x", appends(&world, "perflock", "stopped"));
    stopped.signal(libc::SIGTSTP);
    wait_until("it is stopped", || crate::harness::state_of(stopped.pid()) == 'T');
    let ticket = File::open(world.queue().join("2.x")).unwrap();
    let read =
        libc::flock { l_type: libc::F_RDLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(&ticket, FcntlArg::F_OFD_SETLK(&read)).unwrap();
    stopped.signal(libc::SIGCONT);
    wait_until("it waits again", || threads_of(stopped.pid()).len() == 2);
    assert_eq!(world.tickets().len(), 2);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    stopped.wait().exits(0);
    assert_eq!(world.read("order"), "stopped\n");
    world.assert_clean();
    drop(ticket);
}

/// Makes the directory `alone`, which nobody else's job may have there, and says so.
const ALONE: &str = "mkdir alone && sleep 0.05 && rmdir alone && echo ok";

#[test]
fn a_ticket_that_was_replaced_by_another_user_s_is_not_removed_with_its_job() {
    needs!(Root, V2);
    // Root, who may remove everything.
    let world = World::new();
    let holder = world.holder("perflock");
    let waiter = world.waiter("2.x", world.cmd("perflock sh -c").arg(ALONE));
    let behind = world.waiter("3.x", world.cmd("perflock sh -c").arg(ALONE));
    let held = ["1.x", "2.x"].map(|name| {
        fs::remove_file(world.queue().join(name)).unwrap();
        hold(&put(&world, name, joined("a squatter", "")))
    });
    world.cmd("perflock -n touch ran").run().exits(75);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM).says("");
    // The squatters are before it, and alive: they delay those that look at the queue.
    assert!(alive(behind.pid()) && behind.stdout().is_empty());
    assert!(world.tickets().contains(&"1.x".to_owned()), "{:?}", world.tickets());
    drop(held);
    waiter.wait().exits(0).prints("ok\n");
    behind.wait().exits(0).prints("ok\n");
    assert_eq!(world.tickets(), ["1.x", "2.x"]);
    world.cmd("perflock true").run().exits(0).says("");
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn whoever_deletes_tickets_breaks_no_exclusion() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(BOB);
    // Their owner, and root.
    for by in [BOB, 0] {
        let holder = world.holder("perflock");
        let waiters: Vec<Running> = (0..4)
            .map(|index| waiting(world.cmd(if index % 2 == 0 { "perflock sh -c" } else { "pls -x sh -c" }).arg(ALONE)))
            .collect();
        world.cmd("sh -c").arg("rm lock.d/*").uid(by).run().exits(0);
        assert_eq!(world.tickets(), Vec::<String>::new());
        for line in ["perflock -n", "pls -n"] {
            world.cmd(line).arg("touch").arg("ran").run().exits(75).prints("");
        }
        let late: Vec<Running> = (0..3).map(|_| waiting(world.cmd("perflock sh -c").arg(ALONE))).collect();
        holder.signal(libc::SIGTERM);
        holder.wait().dies_of(libc::SIGTERM).says("");
        for waiter in waiters.into_iter().chain(late) {
            waiter.wait().exits(0).prints("ok\n");
        }
        assert!(!world.path("ran").exists());
        world.assert_clean();
    }
}

#[test]
fn a_killed_supervisor_s_guard_ends_the_job_also_without_its_ticket() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock sh -c").arg("echo $$; exec sleep 600").spawn();
    wait_until("the job runs", || job.stdout().ends_with('\n'));
    let member: i32 = job.stdout().trim().parse().unwrap();
    world.guard_of("1.x");
    fs::remove_file(world.queue().join("1.x")).unwrap();
    let look = format!("grep 'State:.[^ZX]' /proc/{member}/status 2>/dev/null; echo ran");
    let waiter = waiting(world.cmd("perflock sh -c").arg(look));
    job.signal(libc::SIGKILL);
    job.wait().dies_of(libc::SIGKILL);
    waiter.wait().exits(0).prints("ran\n");
    world.wait_clean();
}

#[test]
fn a_umask_of_077_hides_nothing_that_others_need() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(BOB);
    let closed = |line: &str| world.cmd("sh -c").arg(format!("umask 077; exec {line}")).uid(ALICE);
    let holder = closed("pls --cgroup none sh -c 'echo running; exec sleep 600'").spawn();
    holder.wait_stdout("running\n");
    let stopped = world.waiter("2.x", closed("perflock --cgroup none true"));
    let behind = world.waiter("3.s", world.cmd("pls echo behind"));
    behind.wait_stderr("pls: waiting for lock behind 1 job; 41001 runs sh -c 'echo running; exec sleep 600' (shared, ");
    for name in ["1.s", "2.x"] {
        let mode = fs::metadata(world.queue().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644, "{name}");
    }
    let shown = world.cmd("wholock --sample 0").run().exits(0).says("");
    assert!(shown.stdout.contains("waiting for 2"), "{}", shown.stdout);
    stopped.signal(libc::SIGTERM);
    stopped.wait().dies_of(libc::SIGTERM);
    behind.wait().exits(0).prints("behind\n");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn a_ticket_that_its_owner_closes_to_readers_hides_only_its_owner() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(BOB);
    let alice = world.cmd("perflock --cgroup none sh -c").arg("echo running; exec sleep 600").uid(ALICE).spawn();
    alice.wait_stdout("running\n");
    let waiter = world.waiter("2.x", world.cmd("perflock --cgroup none touch waited").uid(ALICE));
    for name in ["1.x", "2.x"] {
        let path = world.queue().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        chown(&path, Some(ALICE), None).unwrap();
    }
    // BOB sees neither, and still does not start beside ALICE.
    for line in ["perflock -n", "pls -n"] {
        world.cmd(line).arg("touch").arg("ran").run().exits(75).prints("");
    }
    let bob = waiting(world.cmd("perflock echo bob"));
    world.cmd("wholock --sample 0").run().exits(0).says("");
    alice.signal(libc::SIGTERM);
    alice.wait().dies_of(libc::SIGTERM);
    bob.wait().exits(0).prints("bob\n");
    waiter.wait().exits(0);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}
