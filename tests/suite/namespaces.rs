//! Jobs in other pid and cgroup namespaces, as from containers that share the host's lock.

use crate::harness::{Running, World, pid_in, wait_until};
use crate::needs;

/// A job that is PID 1 of a pid namespace of its own. The process is `unshare`, which waits for it.
fn contained(world: &World) -> Running {
    let line = "unshare --pid --fork --kill-child --mount-proc perflock sh -c";
    let holder = world.cmd(line).arg("echo running; exec sleep 600").spawn();
    holder.wait_stdout("running\n");
    holder
}

#[test]
fn a_job_of_another_pid_namespace_is_waited_for_and_shown() {
    needs!(Root, V2, OwnGroup, Program("unshare"));
    let world = World::new();
    let holder = contained(&world);
    world.cmd("pls -n true").run().exits(75).mentions("root runs sh -c ");
    let shown = world.cmd("wholock --sample 0").run().exits(0).stdout;
    let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["1", "root", "exclusive", "running"], "{shown}");
    // Its pids mean nothing here: 1 is nobody's job.
    let done = world.cmd("wholock --pid 1").run().exits(0);
    assert!(done.stdout.ends_with("belongs to no job\n"), "{}", done.stdout);
    let waiter = world.waiter("2.x", world.cmd("perflock echo after"));
    assert_eq!(waiter.stdout(), "");
    // With unshare dies the first process of the namespace, and the kernel ends all others: supervisor and guard at once.
    holder.signal(libc::SIGKILL);
    holder.wait().dies_of(libc::SIGKILL);
    waiter.wait().exits(0).prints("after\n");
    world.cmd("perflock true").run().exits(0).says("");
    world.wait_clean();
}

#[test]
fn a_job_of_another_pid_namespace_waits_its_turn() {
    needs!(Root, V2, OwnGroup, Program("unshare"));
    let world = World::new();
    let holder = world.holder("perflock");
    let line = "unshare --pid --fork --mount-proc perflock";
    let waiter = world.cmd(line).args(["echo", "after"]).spawn();
    waiter.wait_stderr("perflock: waiting for lock behind 1 job; root runs sh -c ");
    // In there the holder's pids name other processes: looking harms none of them.
    let inside = "unshare --pid --fork --mount-proc wholock --sample 0";
    let shown = world.cmd(inside).run().exits(0).stdout;
    assert!(shown.lines().nth(1).unwrap().contains(" exclusive  running "), "{shown}");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0).prints("after\n");
    world.assert_clean();
}

#[test]
fn a_dead_job_of_another_cgroup_namespace_is_not_looked_for() {
    needs!(Root, V2, OwnGroup, Program("unshare"));
    let world = World::new();
    let script = "mount -t tmpfs none /mnt; mkdir /mnt/cg; mount -t cgroup2 none /mnt/cg; exec perflock sh -c \
                  'echo $$ > pid; exec sleep 600 >/dev/null 2>&1'";
    let holder = world.cmd("unshare --cgroup --mount sh -ec").arg(script).spawn();
    let member = pid_in(&world.path("pid"));
    assert_eq!(holder.stderr(), "", "a job group can be made below the namespace's root");
    world.cmd("perflock -n true").run().exits(75);
    let shown = world.cmd("wholock --sample 0").run().exits(0).stdout;
    assert!(shown.contains("  1  root  exclusive  running "), "{shown}");
    holder.signal(libc::SIGKILL);
    // Its guard does the rest, in its own namespace.
    wait_until("the guard ended the job", || !crate::harness::alive(member));
    drop(holder);
    world.wait_clean();
}
