//! Several users: each in the group that is delegated to him, all at the same lock.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use crate::harness::{ALICE, BOB, Cmd, Running, World, alive, groups, patient, pid_in, state_of, wait_until};
use crate::needs;

/// A group in the world's that a user owns, as one delegated to him.
pub(crate) fn group_of(world: &World, uid: u32) -> PathBuf {
    let group = world.group().join(format!("user-{uid}"));
    if !group.exists() {
        fs::create_dir(&group).unwrap();
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(group.join(file), Some(uid), None).unwrap();
        }
    }
    group
}

/// A command of a user, in his own group.
pub(crate) fn by(world: &World, uid: u32, line: &str) -> Cmd {
    world.cmd(line).uid(uid).in_group(&group_of(world, uid))
}

/// Nothing is left, the users' own groups taken away.
#[track_caller]
pub(crate) fn assert_clean(world: &World, uids: &[u32]) {
    for &uid in uids {
        fs::remove_dir(group_of(world, uid)).unwrap();
    }
    world.assert_clean();
}

#[track_caller]
pub(crate) fn holder(world: &World, uid: u32, line: &str) -> Running {
    let holder = by(world, uid, line).args(["sh", "-c", "echo running; exec sleep 600"]).spawn();
    holder.wait_stdout("running\n");
    holder
}

#[test]
fn users_are_served_in_the_order_they_came() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let first = holder(&world, ALICE, "perflock");
    let job = |uid: u32, line: &str| by(&world, uid, line).args(["sh", "-c", "echo $(id -u) $PERFLOCK_MODE >> order"]);
    // Both may append to it.
    let order = world.write("order", "");
    fs::set_permissions(order, fs::Permissions::from_mode(0o666)).unwrap();
    let waiters = [
        world.waiter("2.x", job(BOB, "perflock")),
        world.waiter("3.s", job(ALICE, "pls")),
        world.waiter("4.x", job(0, "perflock")),
        world.waiter("5.x", job(BOB, "perflock")),
        world.waiter("6.x", job(ALICE, "perflock")),
    ];
    waiters[0]
        .wait_stderr("perflock: waiting for lock behind 1 job; 41001 runs sh -c 'echo running; exec sleep 600' (");
    first.signal(libc::SIGTERM);
    first.wait().dies_of(libc::SIGTERM);
    for waiter in waiters {
        waiter.wait().exits(0).prints("");
    }
    let expected = "41002 exclusive\n41001 shared\n0 exclusive\n41002 exclusive\n41001 exclusive\n";
    assert_eq!(world.read("order"), expected);
    assert_clean(&world, &[ALICE, BOB, 0]);
}

#[test]
fn nobody_can_touch_another_user_s_ticket() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let alice = holder(&world, ALICE, "perflock");
    let waiter = world.waiter("2.x", by(&world, ALICE, "perflock true"));
    for prank in [
        "rm -f lock.d/2.x",
        "mv lock.d/2.x lock.d/9.x",
        "echo >> lock.d/2.x",
        "chmod 0 lock.d/2.x",
        "truncate -s 0 lock.d/1.x",
        "ln lock.d/2.x lock.d/1.s",
        "ln lock.d/2.x mine",
        "rm -rf lock.d",
        "rm -f lock.d/1.x",
    ] {
        let done = by(&world, BOB, "sh -c").arg(prank).run();
        assert_ne!(done.status.code(), Some(0), "{prank}: {}", done.stderr);
    }
    assert_eq!(world.tickets(), ["1.x", "2.x"]);
    by(&world, BOB, "perflock -n true").run().exits(75);
    alice.signal(libc::SIGTERM);
    alice.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0);
    assert_clean(&world, &[ALICE, BOB]);
}

#[test]
fn a_user_s_umask_keeps_nobody_from_waiting_for_him() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let script = "umask 077; exec perflock sh -c 'umask; exec sleep 600'";
    let alice = by(&world, ALICE, "sh -c").arg(script).spawn();
    // The command keeps the umask.
    alice.wait_stdout("0077\n");
    assert_eq!(fs::metadata(world.queue().join("1.x")).unwrap().permissions().mode() & 0o777, 0o644);
    // Behind a waiter, so that it sleeps on a ticket.
    let waiter = world.waiter("2.x", by(&world, ALICE, "sh -c").arg("umask 077; exec perflock true"));
    let bob = world.waiter("3.x", by(&world, BOB, "perflock echo bob"));
    bob.wait_stderr("perflock: waiting for lock behind 2 jobs; 41001 runs sh -c 'umask; exec sleep 600' (exclusive, ");
    alice.signal(libc::SIGTERM);
    alice.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0);
    bob.wait().exits(0).prints("bob\n");
    assert_clean(&world, &[ALICE, BOB]);
}

/// ALICE's job without supervisor and guard: its one process.
fn orphan(world: &World) -> i32 {
    let alice = by(world, ALICE, "perflock sh -c").arg("echo $$ > pid; exec sleep 600 >/dev/null 2>&1").spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(alice, "1.x");
    assert!(alive(member));
    member
}

/// A shell command that shows whether a process lives.
fn look(pid: i32) -> String {
    format!("grep 'State:.[^ZX]' /proc/{pid}/status 2>/dev/null; echo ran")
}

#[test]
fn another_user_s_orphan_is_waited_for_and_named() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let member = orphan(&world);
    let bob = by(&world, BOB, "perflock sh -c").arg(look(member)).spawn();
    bob.wait_stderr(
        "perflock: waiting for the job sh -c 'echo $$ > pid; exec sleep 600 >/dev/null 2>&1' of 41001, \
         whose supervisor was killed, to end (only 41001 or root can end it)\n",
    );
    assert!(alive(member));
    // BOB has the lock while he waits: nobody else starts either.
    by(&world, BOB, "pls -n true").run().exits(75);
    crate::harness::signal(member, libc::SIGKILL);
    wait_until("the orphan is dead", || !alive(member));
    bob.wait().exits(0).prints("ran\n");
    by(&world, ALICE, "perflock true").run().exits(0);
    assert_clean(&world, &[ALICE, BOB]);
}

/// The kernel tells of changes of a group at most once per 10 ms. What it still had to tell is lost when the group is
/// removed, as the next job of its owner does.
#[test]
fn an_orphan_whose_group_is_removed_at_once_is_not_waited_for_any_longer() {
    needs!(Root, V2, OwnGroup);
    for _ in 0..5 {
        let world = World::for_uid(ALICE);
        let member = orphan(&world);
        let group = fs::read_dir(group_of(&world, ALICE)).unwrap().map(|entry| entry.unwrap().path());
        let group = group.into_iter().find(|path| path.is_dir()).unwrap();
        let bob = by(&world, BOB, "pls echo bob").spawn();
        bob.wait_stderr("to end (only 41001 or root can end it)\n");
        wait_until("bob sleeps", || state_of(bob.pid()) == 'S');
        // A change that is told, so that the next one is not told at once.
        fs::write(group.join("cgroup.freeze"), "1").unwrap();
        groups::kill(&group);
        wait_until("the orphan is dead", || !alive(member));
        while let Err(error) = fs::remove_dir(&group) {
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        }
        bob.wait().exits(0).prints("bob\n");
        by(&world, ALICE, "perflock true").run().exits(0);
        assert_clean(&world, &[ALICE, BOB]);
    }
}

#[test]
fn waiting_for_an_orphan_can_be_cancelled() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let member = orphan(&world);
    let bob = by(&world, BOB, "perflock touch ran").spawn();
    bob.wait_stderr("to end (only 41001 or root can end it)\n");
    bob.signal(libc::SIGINT);
    bob.wait().dies_of(libc::SIGINT).prints("");
    assert!(alive(member) && world.lock_is_free());
    assert_eq!(world.tickets(), ["1.x"]);
    assert!(!world.path("ran").exists());
    by(&world, ALICE, "perflock true").run().exits(0);
    assert!(!alive(member));
    by(&world, ALICE, "perflock true").run().exits(0).says("");
    assert_clean(&world, &[ALICE, BOB]);
}

#[test]
fn nonblock_and_a_limited_wait_do_not_wait_for_an_orphan() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let member = orphan(&world);
    // It cannot start this instant.
    for line in ["perflock -n touch ran", "pls -n touch ran", "perflock -w 0.2 touch ran"] {
        by(&world, BOB, line).run().exits(75).prints("");
        assert!(alive(member) && world.lock_is_free());
        assert_eq!(world.tickets(), ["1.x"], "{line}");
    }
    assert!(!world.path("ran").exists());
    by(&world, ALICE, "perflock true").run().exits(0);
    by(&world, ALICE, "perflock true").run().exits(0).says("");
    assert_clean(&world, &[ALICE, BOB]);
}

#[test]
fn root_ends_anybody_s_orphan() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let member = orphan(&world);
    let done = by(&world, 0, "perflock sh -c").arg(look(member)).run().exits(0).prints("ran\n");
    assert!(done.stderr.starts_with("perflock: ending the job sh -c "), "{}", done.stderr);
    assert!(done.stderr.ends_with(" of 41001, whose supervisor was killed, before starting\n"), "{}", done.stderr);
    by(&world, 0, "perflock true").run().exits(0).says("");
    assert_clean(&world, &[ALICE, BOB, 0]);
}

#[test]
fn a_shared_job_runs_beside_a_shared_orphan() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let alice = by(&world, ALICE, "pls sh -c").arg("echo $$ > pid; exec sleep 600 >/dev/null 2>&1").spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(alice, "1.s");
    by(&world, BOB, "pls -n echo beside").run().exits(0).prints("beside\n").says("");
    assert!(alive(member));
    by(&world, ALICE, "pls true").run().exits(0);
    assert!(alive(member), "a job that it does not conflict with has no need to end it");
    by(&world, 0, "perflock true").run().exits(0).mentions("ending the job sh -c ");
    assert!(!alive(member));
    by(&world, 0, "perflock true").run().exits(0).says("");
    assert_clean(&world, &[ALICE, BOB, 0]);
}

#[test]
fn an_orphan_without_a_group_is_found_by_its_marker() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let line = "perflock --cgroup none sh -c";
    let alice = by(&world, ALICE, line).arg("echo $$ > pid; exec sleep 600 >/dev/null 2>&1").spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(alice, "1.x");
    let done = by(&world, ALICE, "perflock echo ran").run().exits(0).prints("ran\n");
    assert!(done.stderr.starts_with("perflock: ending the job sh -c "), "{}", done.stderr);
    assert!(!alive(member));
    by(&world, ALICE, "perflock true").run().exits(0).says("");
    assert_clean(&world, &[ALICE, BOB]);
}

#[test]
fn a_user_cannot_continue_or_end_another_user_s_job() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let alice = holder(&world, ALICE, "perflock");
    let guard = world.guard_of("1.x");
    for pid in [alice.pid(), guard] {
        let done = by(&world, BOB, "sh -c").arg(format!("kill -KILL {pid}")).run();
        assert_ne!(done.status.code(), Some(0));
    }
    assert!(alive(guard));
    alice.signal(libc::SIGTERM);
    alice.wait().dies_of(libc::SIGTERM);
    assert_clean(&world, &[ALICE, BOB]);
}

/// Whoever has waited for an orphan in vain does not vouch for it to the next in line.
#[test]
fn who_stops_waiting_for_an_orphan_leaves_it_to_the_next() {
    needs!(Root, V2, OwnGroup);
    // Time enough for the others to come.
    let limited = format!("perflock -w {}", patient(Duration::from_secs(3)).as_secs());
    for line in ["perflock", &limited] {
        let world = World::for_uid(ALICE);
        let alice = by(&world, ALICE, "perflock sh -c").arg("echo $$ > pid; exec sleep 600 >/dev/null 2>&1").spawn();
        let member = pid_in(&world.path("pid"));
        let bob = world.waiter("2.x", by(&world, BOB, &format!("{line} echo bob")));
        let carol = world.waiter("3.x", by(&world, BOB + 1, "perflock sh -c").arg(look(member)));
        world.kill_both(alice, "1.x");
        bob.wait_stderr("to end (only 41001 or root can end it)\n");
        if line == "perflock" {
            bob.signal(libc::SIGINT);
            bob.wait().dies_of(libc::SIGINT);
        } else {
            bob.wait().exits(75).mentions("gave up after waiting ");
        }
        carol.wait_stderr("to end (only 41001 or root can end it)\n");
        assert!(alive(member) && carol.stdout().is_empty());
        by(&world, ALICE, "perflock --cancel 1").run().exits(0);
        assert!(!alive(member));
        carol.wait().exits(0).prints("ran\n");
        by(&world, ALICE, "perflock true").run().exits(0);
        assert_clean(&world, &[ALICE, BOB, BOB + 1]);
    }
}

/// The one in between could not see it; its owner's next job can.
#[test]
fn an_orphan_that_another_user_could_not_see_is_ended_by_its_owner_s_next_job() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let script = "echo $$ > pid; exec sleep 600 >/dev/null 2>&1";
    let alice = by(&world, ALICE, "perflock --cgroup none sh -c").arg(script).spawn();
    let member = pid_in(&world.path("pid"));
    let bob = world.waiter("2.x", by(&world, BOB, "perflock echo bob"));
    let next = world.waiter("3.x", by(&world, ALICE, "perflock sh -c").arg(look(member)));
    world.kill_both(alice, "1.x");
    bob.wait().exits(0).prints("bob\n").mentions("whether its processes ended is unknown");
    next.wait().exits(0).prints("ran\n").mentions("perflock: ending the job ");
    assert_clean(&world, &[ALICE, BOB]);
}
