//! Orphans, jobs whose supervisor and guard were both killed: what the next perflock does about them, and in which order.

use std::fs;
use std::time::Duration;

use crate::harness::{ALICE, BOB, Running, World, alive, me, pid_in, signal, wait_until};
use crate::needs;
use crate::outsiders::{end_flock, flock, flock_holder};
use crate::queue::{sleeps, voluntary_switches};
use crate::users::{assert_clean, by};

/// A job of the world's user whose keepers are dead: its one process.
fn orphan(world: &World) -> i32 {
    let job = world.cmd("perflock sh -c").arg("echo $$ > pid; exec sleep 600 >/dev/null 2>&1").spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(job, "1.x");
    assert!(alive(member));
    member
}

/// What is said of the user's own.
fn ending() -> String {
    format!(
        "perflock: ending the job sh -c 'echo $$ > pid; exec sleep 600 >/dev/null 2>&1' of {}, whose supervisor was \
         killed, before starting\n",
        me()
    )
}

#[test]
fn an_orphan_is_left_alone_until_the_lock_file_is_had() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let member = orphan(&world);
    // An outsider is not kept out: the kernel freed the lock file with its holders.
    let outsider = flock_holder(&world, &["-s"]);
    let next = world.waiter("2.x", world.cmd("perflock echo ran"));
    assert!(alive(member), "it was ended by one that does not have the lock");
    assert!(!next.stderr().contains("ending the job"), "{}", next.stderr());
    end_flock(&world, outsider);
    next.wait().exits(0).prints("ran\n").mentions(&ending());
    assert!(!alive(member));
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

/// Whether a process has a file of this name open.
fn has_open(pid: i32, name: &str) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file.ends_with(name))
}

#[test]
fn plain_flock_is_shut_out_before_the_orphan_is_killed() {
    needs!(V2, CgroupKill, Program("flock"), Program("strace"));
    let world = World::new();
    let member = orphan(&world);
    let group = world.job_groups().pop().unwrap();
    // strace stops perflock with the file open that ends the orphan, before it is written to.
    let strace = "strace -DDD -o /dev/null -e trace=openat -e inject=openat:signal=SIGSTOP:when=1 -P";
    let cmd = world.cmd(strace).arg(group.join("cgroup.kill")).arg(world.program("perflock"));
    let mut next = cmd.args(["echo", "ran"]).spawn();
    next.wait_stderr(&ending());
    wait_until("perflock is there", || has_open(next.pid(), "cgroup.kill"));
    assert!(alive(member));
    flock(&world, &["-n"]).arg("true").run().exits(1);
    flock(&world, &["-n", "-s"]).arg("true").run().exits(1);
    assert_eq!(next.stdout(), "");
    wait_until("perflock goes on and ends", || {
        // The stop may be on its way still.
        next.signal(libc::SIGCONT);
        next.ended()
    });
    next.wait().exits(0).prints("ran\n").says(&ending());
    assert!(!alive(member));
    wait_until("strace is gone", || world.processes().is_empty());
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

/// ALICE's orphan, which makes and loses processes all the time.
fn busy_orphan(world: &World) -> i32 {
    let job = "echo $$ > pid; exec >/dev/null 2>&1; while :; do sleep 0.02; done";
    let alice = by(world, ALICE, "perflock sh -c").arg(job).spawn();
    let member = pid_in(&world.path("pid"));
    world.kill_both(alice, "1.x");
    member
}

#[test]
fn waiting_for_another_user_s_orphan_costs_nothing_and_ends_with_it() {
    needs!(Root, V2, OwnGroup, Program("flock"));
    let world = World::for_uid(ALICE);
    let member = busy_orphan(&world);
    let bob: Running = by(&world, BOB, "perflock echo ran").spawn();
    bob.wait_stderr(" of 41001, whose supervisor was killed, to end (only 41001 or root can end it)\n");
    wait_until("it sleeps", || sleeps(bob.pid()));
    let before = voluntary_switches(bob.pid());
    // BOB has the lock file meanwhile: nobody else gets it.
    for uid in [ALICE, BOB, 0] {
        flock(&world, &["-n"]).arg("true").uid(uid).run().exits(1);
        flock(&world, &["-n", "-s"]).arg("true").uid(uid).run().exits(1);
    }
    by(&world, BOB, "pls -n true").run().exits(75);
    by(&world, BOB, "wholock --sample 0").run().exits(0);
    // This is what is measured: a second of it.
    std::thread::sleep(Duration::from_secs(1));
    assert!(alive(member));
    assert_eq!(voluntary_switches(bob.pid()), before, "it was woken while the orphan lived");
    assert_eq!(bob.stdout(), "");
    signal(member, libc::SIGKILL);
    // Its last child ends by itself.
    bob.wait().exits(0).prints("ran\n");
    assert!(!alive(member));
    by(&world, ALICE, "perflock true").run().exits(0);
    assert_clean(&world, &[ALICE, BOB]);
}

#[test]
fn the_own_orphan_is_ended_and_the_other_user_s_waited_for() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let jobs = [ALICE, BOB].map(|uid| {
        let job = by(&world, uid, "pls sh -c").arg(format!("echo $$ > pid.{uid}; exec sleep 600 >/dev/null 2>&1"));
        (job.spawn(), pid_in(&world.path(&format!("pid.{uid}"))))
    });
    let [(alice, of_alice), (bob, of_bob)] = jobs;
    world.kill_both(alice, "1.s");
    world.kill_both(bob, "2.s");
    let next = by(&world, BOB, "perflock echo ran").spawn();
    next.wait_stderr("perflock: waiting for the job sh -c 'echo $$ > pid.41001; ");
    next.wait_stderr(" of 41001, whose supervisor was killed, to end (only 41001 or root can end it)\n");
    assert!(alive(of_alice));
    assert_eq!(next.stdout(), "");
    signal(of_alice, libc::SIGKILL);
    let done = next.wait().exits(0).prints("ran\n");
    assert!(done.stderr.contains("perflock: ending the job sh -c 'echo $$ > pid.41002; "), "{}", done.stderr);
    assert!(!alive(of_alice) && !alive(of_bob));
    by(&world, 0, "perflock true").run().exits(0).says("");
    by(&world, 0, "perflock true").run().exits(0).says("");
    assert_clean(&world, &[ALICE, BOB, 0]);
}
