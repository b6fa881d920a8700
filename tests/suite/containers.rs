//! The host's lock in containers that have nothing else of the host's: a root directory, processes and groups of their own, with the
//! lock file and the queue bound in, as by docker's `-v`.

use crate::harness::{ALICE, Cmd, Running, World, wait_until};
use crate::needs;

/// A shell script in a container. Its programs are the host's, but it has no cgroup hierarchy and no lock but the bound one.
fn contained(world: &World, script: &str) -> Cmd {
    contained_by("unshare", world, script)
}

/// The same by an `unshare` that makes more than those namespaces.
fn contained_by(unshare: &str, world: &World, script: &str) -> Cmd {
    let bin = world.cmd("sh -c").arg("dirname $(command -v perflock)").run().exits(0).stdout;
    let (bin, lock, queue) = (bin.trim(), world.lock(), world.queue());
    world.write("script", script);
    let outside = format!(
        "mkdir -p root; mount -t tmpfs root root; cd root; mkdir -p proc tmp run dev ./{bin}; \
         for d in usr bin sbin lib lib64 etc; do [ ! -e /$d ] || {{ mkdir $d; mount --rbind /$d $d; }}; done; \
         mount --bind {bin} ./{bin}; mount -t proc proc proc; mount --rbind /dev dev; \
         touch run/perflock; mkdir run/perflock.d; mount --bind {lock} run/perflock; mount --bind {queue} run/perflock.d; \
         cp ../script tmp; unset PERFLOCK_LOCK; hostname container; exec chroot . sh /tmp/script",
        lock = lock.display(),
        queue = queue.display(),
    );
    let namespaces = "--mount --pid --fork --kill-child --cgroup --uts --ipc sh -ec";
    world.cmd(&format!("{unshare} {namespaces}")).arg(outside)
}

fn holder_in_a_container(world: &World, line: &str) -> Running {
    let holder = contained(world, &format!("exec {line} sh -c 'echo running; exec sleep 600'")).spawn();
    holder.wait_stdout("running\n");
    holder
}

#[test]
fn a_container_s_job_keeps_the_host_s_waiting() {
    needs!(Root, V2, OwnGroup, Program("unshare"), Program("chroot"));
    let world = World::new();
    let holder = holder_in_a_container(&world, "perflock --cgroup none");
    world.cmd("pls -n true").run().exits(75).mentions("pls: not waiting for lock behind 1 job; root runs sh -c ");
    let shown = world.cmd("wholock --sample 0").run().exits(0).stdout;
    // Its supervisor is not shown a second time, as somebody who uses flock(1).
    let rows: Vec<&str> = shown.lines().skip(1).collect();
    assert!(matches!(rows[..], [row] if row.ends_with("  # in another container")), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&world.cmd("wholock --json").run().exits(0).stdout).unwrap();
    assert_eq!(json["holders"][0]["in_another_container"], true);
    // Its numbers are not looked up here, and nobody is ended for them.
    assert_eq!(json["holders"][0]["processes"], serde_json::Value::Null);
    world.cmd("perflock --cancel 1").run().exits(125);
    let waiter = world.waiter("2.x", world.cmd("perflock echo after"));
    assert_eq!(waiter.stdout(), "");
    holder.signal(libc::SIGKILL);
    holder.wait().dies_of(libc::SIGKILL);
    waiter.wait().exits(0).prints("after\n");
    world.cmd("perflock true").run().exits(0).says("");
    world.wait_clean();
}

#[test]
fn the_host_s_job_keeps_a_container_s_waiting_in_its_turn() {
    needs!(Root, V2, OwnGroup, Program("unshare"), Program("chroot"));
    let world = World::new();
    let holder = world.holder("pls");
    let first = contained(&world, "perflock --cgroup none sh -c 'echo container >>/run/perflock.d/order'").spawn();
    first.wait_stderr("perflock: waiting for lock behind 1 job; root runs sh -c ");
    let second = world.cmd("pls sh -c").arg(format!("echo host >>{}/order", world.queue().display())).spawn();
    wait_until("the host's second job waits", || world.tickets().contains(&"3.s".to_owned()));
    let inside = contained(&world, "wholock --sample 0; wholock -q").run().exits(1).stdout;
    let rows: Vec<bool> = inside.lines().skip(1).map(|row| row.contains("  # in another container")).collect();
    assert_eq!(rows, [true, true, true], "{inside}");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    first.wait().exits(0);
    second.wait().exits(0);
    let order = world.queue().join("order");
    assert_eq!(std::fs::read_to_string(&order).unwrap(), "container\nhost\n");
    std::fs::remove_file(order).unwrap();
    world.assert_clean();
}

#[test]
fn containers_share_with_each_other_and_the_host() {
    needs!(Root, V2, OwnGroup, Program("unshare"), Program("chroot"));
    let world = World::new();
    let holders =
        [holder_in_a_container(&world, "pls --cgroup none"), holder_in_a_container(&world, "pls --cgroup none")];
    world.cmd("pls -n echo shares").run().exits(0).prints("shares\n");
    contained(&world, "perflock --cgroup none -n true").run().exits(75);
    for holder in holders {
        holder.signal(libc::SIGKILL);
        holder.wait().dies_of(libc::SIGKILL);
    }
    contained(&world, "perflock --cgroup none -w 10 echo alone").run().exits(0).prints("alone\n");
    // Whoever sees that nothing is left of the containers, removes what their jobs left: root, on the host.
    world.cmd("perflock true").run().exits(0).says("");
    world.wait_clean();
}

/// As podman makes one for a plain user: its root is that user outside, and the host's root is nobody there.
#[test]
fn a_plain_user_s_container_waits_its_turn_and_is_waited_for() {
    needs!(Root, V2, OwnGroup, UserNamespace, Program("unshare"), Program("chroot"));
    let world = World::for_uid(ALICE);
    let rootless = "unshare --user --map-root-user";
    let host = world.cmd("pls sh -c").arg("echo running; exec sleep 600").uid(0).spawn();
    host.wait_stdout("running\n");
    let job = "perflock --cgroup none sh -c 'id -u; until [ -e /run/perflock.d/go ]; do sleep 0.01; done'";
    let container = contained_by(rootless, &world, job).spawn();
    container.wait_stderr("perflock: waiting for lock behind 1 job; ");
    let shown = world.cmd("wholock --sample 0").run().exits(0).stdout;
    assert!(shown.lines().nth(2).unwrap().ends_with("  # in another container"), "{shown}");
    host.signal(libc::SIGTERM);
    host.wait().dies_of(libc::SIGTERM);
    container.wait_stdout("0\n");
    // To the host it is the user's.
    world.cmd("pls -n true").uid(0).run().exits(75).mentions(&format!("; {ALICE} runs sh -c "));
    let go = world.queue().join("go");
    std::fs::write(&go, "").unwrap();
    container.wait().exits(0).prints("0\n");
    std::fs::remove_file(go).unwrap();
    world.assert_clean();
}
