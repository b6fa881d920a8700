//! Setting a machine up, and what a plain user meets where nobody did.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::harness::{ALICE, World};
use crate::needs;

/// Mode, owner and group of a file.
fn permissions(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

/// A world whose lock is not set up.
fn bare() -> World {
    unset(World::new())
}

fn unset(world: World) -> World {
    fs::remove_file(world.lock()).unwrap();
    fs::remove_dir(world.queue()).unwrap();
    world
}

#[test]
fn for_everybody() {
    needs!(Root);
    let world = bare();
    let (lock, queue) = (world.lock(), world.queue());
    let said = format!(
        "perflock: created {} (mode 1777)\nperflock: created {} (mode 0666)\n",
        queue.display(),
        lock.display()
    );
    world.cmd("perflock --setup --lock").arg(&lock).run().exits(0).prints("").says(&said);
    assert_eq!(permissions(&lock), (0o666, 0, 0));
    assert_eq!(permissions(&queue), (0o1777, 0, 0));
    let again = format!("perflock: {} is already set up; nothing was changed\n", lock.display());
    world.cmd("perflock --setup --lock").arg(&lock).run().exits(0).prints("").says(&again);
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn the_umask_does_not_matter() {
    needs!(Root);
    let world = bare();
    world.sh("umask 077; perflock --setup -q").run().exits(0).prints("").says("");
    assert_eq!(permissions(&world.lock()).0, 0o666);
    assert_eq!(permissions(&world.queue()).0, 0o1777);
}

#[test]
fn for_one_group() {
    needs!(Root);
    let world = bare();
    world.cmd("perflock --setup --group users").run().exits(0).prints("").mentions("group ");
    let gid = nix::unistd::Group::from_name("users").unwrap().unwrap().gid.as_raw();
    assert_eq!(permissions(&world.lock()), (0o660, 0, gid));
    assert_eq!(permissions(&world.queue()), (0o3775, 0, gid));
    world.cmd("perflock --setup --group users").run().exits(0).mentions("is already set up; nothing was changed\n");
    let done = world.cmd("perflock --setup --group no-such-group").run().exits(125).prints("");
    assert_eq!(done.stderr, "perflock: there is no group no-such-group; make it with: groupadd no-such-group\n");
    world.cmd("perflock --group users true").run().exits(125).prints("").mentions("--setup");
}

#[test]
fn what_is_wrong_is_repaired_and_what_is_there_is_kept() {
    needs!(Root);
    let world = World::new();
    fs::set_permissions(world.lock(), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(world.queue(), fs::Permissions::from_mode(0o777)).unwrap();
    let inode = fs::metadata(world.lock()).unwrap().ino();
    let holder = world.holder("perflock");
    world.cmd("perflock --setup").run().exits(0).mentions("set the permissions of ");
    assert_eq!(permissions(&world.lock()).0, 0o666);
    assert_eq!(permissions(&world.queue()).0, 0o1777);
    // The running job keeps its lock.
    assert_eq!(fs::metadata(world.lock()).unwrap().ino(), inode);
    world.cmd("perflock -n true").run().exits(75);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn a_lab_with_the_old_set_up_gets_the_directory_and_keeps_the_lock_file() {
    needs!(Root);
    let world = World::new();
    fs::remove_dir(world.queue()).unwrap();
    fs::set_permissions(world.lock(), fs::Permissions::from_mode(0o444)).unwrap();
    let inode = fs::metadata(world.lock()).unwrap().ino();
    world.cmd("perflock --setup").run().exits(0).mentions("created ");
    assert_eq!(fs::metadata(world.lock()).unwrap().ino(), inode);
    assert_eq!(permissions(&world.lock()).0, 0o666);
    assert_eq!(permissions(&world.queue()).0, 0o1777);
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn something_else_in_the_place_is_refused_and_left_alone() {
    needs!(Root);
    let world = bare();
    let (lock, queue) = (world.lock(), world.queue());
    let victim = world.write("victim", "precious");
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    let setup = || world.cmd("perflock --setup").run().exits(125).prints("");

    symlink(&victim, &lock).unwrap();
    setup().mentions("is a symbolic link; it must be a regular file");
    fs::remove_file(&lock).unwrap();
    symlink(world.path("nowhere"), &lock).unwrap();
    setup().mentions("is a symbolic link");
    assert!(!world.path("nowhere").exists());
    fs::remove_file(&lock).unwrap();

    fs::create_dir(&lock).unwrap();
    setup().mentions("is a directory; it must be a regular file");
    fs::remove_dir(&lock).unwrap();

    nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    setup().mentions("is not a regular file; it must be a regular file");
    assert!(fs::symlink_metadata(&lock).unwrap().file_type().is_fifo());
    assert_eq!(permissions(&lock).0, 0o600);
    fs::remove_file(&lock).unwrap();

    let _ = fs::remove_dir(&queue);
    let elsewhere = world.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let before = permissions(&elsewhere);
    symlink(&elsewhere, &queue).unwrap();
    setup().mentions("it must be a directory");
    assert_eq!(permissions(&elsewhere), before);
    fs::remove_file(&queue).unwrap();
    fs::write(&queue, "").unwrap();
    setup().mentions("is not a directory; it must be a directory");
    assert_eq!(permissions(&victim).0, 0o600);
    assert_eq!(world.read("victim"), "precious");
}

#[test]
fn a_plain_user_cannot_set_a_machine_up() {
    needs!(Root, OwnGroup);
    let world = unset(World::for_uid(ALICE));
    let run = "mount -t tmpfs -o mode=755 tmpfs /run; exec setpriv --reuid 41001 --regid 41001 --clear-groups \
               \"$0\" --setup --lock /run/perflock";
    let done = world.in_mount_namespace(run).arg(world.program("perflock")).run();
    done.exits(125).prints("").says("perflock: cannot create /run/perflock: Permission denied\n");
}

#[test]
fn the_first_error_a_plain_user_meets() {
    needs!(Root, V2, OwnGroup);
    let world = unset(World::for_uid(ALICE));
    let perflock = world.program("perflock");
    let lock = world.lock();
    let expected = |name: &str| {
        format!(
            "{name}: this machine is not set up: {} is missing\n\
             for everybody, once: sudo {} --setup --lock {}\n\
             only among your own jobs: {name} --private CMD\n",
            lock.display(),
            perflock.display(),
            lock.display()
        )
    };
    world.cmd("perflock touch ran").run().exits(125).prints("").says(&expected("perflock"));
    world.cmd("pls -q touch ran").run().exits(125).prints("").says(&expected("pls"));
    assert!(!world.path("ran").exists() && !lock.exists());
}

#[test]
fn the_first_error_names_the_default_lock_as_the_manual_does() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let perflock = world.program("perflock");
    let run = "mount -t tmpfs tmpfs /run; unset PERFLOCK_LOCK; \
               exec setpriv --reuid 41001 --regid 41001 --clear-groups \"$0\" true";
    let expected = format!(
        "perflock: this machine is not set up: /run/perflock is missing\n\
         for everybody, once: sudo {} --setup\n\
         only among your own jobs: perflock --private CMD\n",
        perflock.display()
    );
    world.in_mount_namespace(run).arg(&perflock).run().exits(125).prints("").says(&expected);
}

#[test]
fn the_old_set_up_without_a_directory_is_told_in_the_same_way() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    fs::remove_dir(world.queue()).unwrap();
    let said = format!("perflock: this machine is not set up: {} is missing\n", world.queue().display());
    let done = world.cmd("perflock touch ran").run().exits(125).prints("");
    assert!(done.stderr.starts_with(&said), "{}", done.stderr);
    assert!(done.stderr.contains("--setup") && done.stderr.contains("--private"), "{}", done.stderr);
    assert!(!world.path("ran").exists() && !world.queue().exists());
}

#[test]
fn root_sets_a_machine_up_on_the_way_and_says_so() {
    needs!(Root, V2);
    let world = bare();
    let done = world.cmd("perflock echo ran").run().exits(0).prints("ran\n");
    for path in [world.lock(), world.queue()] {
        assert!(done.stderr.contains(&format!("created {} (", path.display())), "{}", done.stderr);
    }
    assert_eq!(permissions(&world.lock()).0, 0o666);
    assert_eq!(permissions(&world.queue()).0, 0o1777);
    world.cmd("perflock true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn a_group_s_lock_is_for_its_members_and_a_clear_error_for_others() {
    needs!(Root, V2, OwnGroup);
    let world = unset(World::for_uid(ALICE));
    world.cmd("perflock --setup -q --group users").uid(0).run().exits(0).says("");
    let gid = permissions(&world.lock()).2.to_string();
    let member = format!("setpriv --reuid 41001 --regid 41001 --groups {gid} perflock");
    let done = world.cmd(&member).args(["sh", "-c", "stat -c '%a %u %g' lock.d/1.x"]).uid(0).run().exits(0).says("");
    // The ticket belongs to the group as well, and everybody who can see it can wait for it.
    assert_eq!(done.stdout, format!("644 41001 {gid}\n"));
    let holder = world.cmd("perflock sh -c").arg("echo running; exec sleep 600").uid(0).spawn();
    holder.wait_stdout("running\n");
    world.cmd(&member).args(["-n", "true"]).uid(0).run().exits(75);
    let said = format!("perflock: cannot open the lock file {}: Permission denied\n", world.lock().display());
    let done = world.cmd("perflock touch ran").run().exits(125).prints("");
    assert!(done.stderr.starts_with(said.trim_end()), "{}", done.stderr);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

/// In a mount namespace with nothing of the machine's in /run, /var/lib and /tmp, and the world's directory at /mnt.
const APART: &str = "mount --bind . /mnt; mount -t tmpfs -o mode=755 tmpfs /run; mount -t tmpfs -o mode=755 tmpfs /var/lib; \
                     mount -t tmpfs -o mode=1777 tmpfs /tmp; cd /mnt; unset PERFLOCK_LOCK; \
                     export PATH=/mnt:$PATH PERFLOCK_CONFIG=/mnt/.config/perflock/config.toml; \
                     as() { uid=$1; shift; setpriv --reuid $uid --regid $uid --clear-groups \"$@\"; }; ";

#[test]
fn a_private_lock_needs_no_set_up_and_excludes_only_own_jobs() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let script = format!(
        "{APART} as 41001 perflock --private sh -c 'while [ ! -e go ]; do sleep 0.01; done' & \
         until [ -e /tmp/perflock-41001/perflock.d/1.x ]; do sleep 0.01; done; \
         stat -c '%a %u' /tmp/perflock-41001 /tmp/perflock-41001/perflock /tmp/perflock-41001/perflock.d; \
         set +e; \
         as 41001 pls -q --private -n true; echo alice $?; \
         as 41002 perflock --cgroup none --private -n true; echo bob $?; \
         perflock --private -n true; echo root $?; \
         as 41001 wholock --private -q; echo wholock $?; \
         touch go; wait; \
         as 41001 wholock --private --sample 0; ls /run/perflock 2>/dev/null"
    );
    let done = world.in_mount_namespace(&script).run();
    let expected = "700 41001\n600 41001\n700 41001\nalice 75\nbob 0\nroot 0\nwholock 1\nthe machine is free\n";
    assert_eq!((&*done.stdout, &*done.stderr), (expected, ""));
    world.assert_clean();
}

#[test]
fn a_private_lock_stays_the_same_when_sessions_come_and_go() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let script = format!(
        "{APART} as 41001 perflock --private sh -c 'while [ ! -e go ]; do sleep 0.01; done' & \
         until [ -e /tmp/perflock-41001/perflock.d/1.x ]; do sleep 0.01; done; \
         mkdir -m 755 /run/user; mkdir -m 700 /run/user/41001; chown 41001:41001 /run/user/41001; \
         set +e; as 41001 pls -q --private -n true; echo $?; touch go; wait; ls /run/user/41001"
    );
    world.in_mount_namespace(&script).run().prints("75\n").says("");
    world.assert_clean();
}

#[test]
fn a_private_directory_that_another_user_made_first_is_refused() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    for squat in [
        "as 41002 mkdir -m 777 /tmp/perflock-41001",
        "as 41002 ln -s /mnt /tmp/perflock-41001",
        "as 41002 touch /tmp/perflock-41001",
        "mkdir -m 777 /tmp/perflock-41001; chown 41001 /tmp/perflock-41001",
    ] {
        let script = format!("{APART} {squat}; as 41001 perflock --private touch /mnt/ran");
        let done = world.in_mount_namespace(&script).run().exits(125).prints("");
        assert!(
            done.stderr.starts_with("perflock: /tmp/perflock-41001 is not a directory that only you can use"),
            "{squat}: {}",
            done.stderr
        );
        assert!(!world.path("ran").exists() && !world.path("perflock.d").exists(), "{squat}");
    }
}
