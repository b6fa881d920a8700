//! Bad input: a clear error, the right exit code, and nothing lost.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::harness::{ALICE, World, scope_backend};
use crate::needs;

#[test]
fn no_command_is_a_usage_error() {
    let world = World::new();
    for (name, line) in [("perflock", "perflock"), ("pls", "pls"), ("perflock", "perflock -s --"), ("pls", "pls -n")] {
        let said = format!(
            "{name}: no command given\nusage: {name} [OPTIONS] [--] COMMAND [ARG]...   (more: {name} --help)\n"
        );
        world.cmd(line).run().exits(125).prints("").says(&said);
    }
    world.cmd("perflock --nonsense true").run().exits(125).prints("").mentions("--nonsense");
    world.cmd("perflock -w soon true").run().exits(125).prints("").mentions("a duration is seconds");
    world.cmd("wholock --nonsense").run().exits(125).prints("").mentions("--nonsense");
    world.assert_clean();
}

#[test]
fn what_a_shell_would_have_done_is_told() {
    let world = World::new();
    let says = |args: &[&str], code: i32, said: &str| {
        let done = world.cmd("perflock").args(args).run().exits(code).prints("");
        assert!(done.stderr.starts_with("perflock: ") && done.stderr.contains(said), "{args:?}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{args:?}: {}", done.stderr);
    };
    says(&["FOO=1", "./b"], 127, "env FOO=1");
    says(&["-c", "echo a"], 125, "perflock sh -c 'COMMAND LINE'");
    says(&["-nc", "echo a"], 125, "sh -c");
    says(&["cd", "/"], 127, "bash -ic 'cd");
    says(&["ll"], 127, "bash -ic 'll");
    says(&["no-such-command"], 127, "not found in PATH");
    says(&["\x1b[31mred"], 127, r"\u{1b}[31mred");
    says(&[""], 127, "cannot run");
    world.assert_clean();
}

#[test]
fn what_is_no_program_is_126_at_once() {
    needs!(V2);
    let world = World::new();
    world.write("data", "not a program");
    // Found out before the machine is asked for: nothing is waited for.
    let holder = world.holder("perflock");
    let said = "perflock: cannot run ./data: it is not executable (chmod +x ./data)\n";
    world.cmd("perflock ./data").run().exits(126).prints("").says(said);
    world.cmd("perflock .").run().exits(126).prints("").says("perflock: cannot run .: it is a directory\n");
    world.cmd("perflock data").env("PATH", world.path(".")).run().exits(126).prints("");
    world.cmd("perflock no-such-command").run().exits(127).prints("");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    // What only the kernel can tell is told after the wait, and the machine is given back.
    world.script("broken", "#!/no/such/interpreter\n");
    world
        .cmd("perflock ./broken")
        .run()
        .exits(127)
        .prints("")
        .says("perflock: cannot run ./broken: No such file or directory\n");
    world.assert_clean();
}

#[test]
fn a_path_that_does_not_exist_yet_is_run_if_it_was_built_meanwhile() {
    needs!(V2);
    let world = World::new();
    let warning = "perflock: warning: ./built does not exist yet; it is looked for again when the job starts\n";
    let done = world.cmd("perflock ./built").run().exits(127).prints("");
    assert_eq!(done.stderr, format!("{warning}perflock: cannot run ./built: No such file or directory\n"));
    let holder = world.holder("perflock");
    let waiter = world.waiter("2.x", world.cmd("perflock ./built"));
    waiter.wait_stderr(warning);
    world.script("built", "#!/bin/sh\necho built\n");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0).prints("built\n");
    world.assert_clean();
}

#[test]
fn a_lock_that_is_no_file_is_refused() {
    let world = World::new();
    let lock = world.lock();
    let refused = |why: &str| {
        for program in ["perflock touch ran", "pls touch ran", "wholock"] {
            let name = program.split(' ').next().unwrap();
            let said = format!("{name}: {} is {why}; it must be a regular file\n", lock.display());
            world.cmd(program).run().exits(125).prints("").says(&said);
        }
        assert!(!world.path("ran").exists());
    };
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    refused("a directory");
    fs::remove_dir(&lock).unwrap();
    symlink(world.write("target", ""), &lock).unwrap();
    refused("a symbolic link");
    fs::remove_file(&lock).unwrap();
    nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    refused("not a regular file");
    fs::remove_file(&lock).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(&lock).unwrap();
    refused("a socket or device");
    drop(socket);
}

#[test]
fn a_lock_that_is_not_permitted_says_so() {
    needs!(Root, OwnGroup);
    let world = World::for_uid(ALICE);
    fs::set_permissions(world.lock(), fs::Permissions::from_mode(0o600)).unwrap();
    for program in ["perflock touch ran", "pls touch ran", "wholock"] {
        let name = program.split(' ').next().unwrap();
        let said = format!("{name}: cannot open the lock file {}: Permission denied", world.lock().display());
        let done = world.cmd(program).run().exits(125).prints("");
        assert!(done.stderr.starts_with(&said), "{}", done.stderr);
    }
    let unreachable = world.path("lock/below");
    world.cmd("perflock --lock").arg(unreachable).arg("true").run().exits(125).prints("");
    assert!(!world.path("ran").exists());
}

#[test]
fn a_queue_that_cannot_be_joined_is_an_error() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let queue = world.queue();
    fs::set_permissions(&queue, fs::Permissions::from_mode(0o555)).unwrap();
    let said = format!("perflock: cannot make a ticket in {}: Permission denied", queue.display());
    let done = world.cmd("perflock touch ran").run().exits(125).prints("");
    assert!(done.stderr.starts_with(&said), "{}", done.stderr);
    // Looking needs no right to write.
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n");
    fs::set_permissions(&queue, fs::Permissions::from_mode(0o700)).unwrap();
    let done = world.cmd("perflock touch ran").run().exits(125).prints("");
    assert!(done.stderr.contains(&format!("{}: Permission denied", queue.display())), "{}", done.stderr);
    fs::set_permissions(&queue, fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(!world.path("ran").exists());
    world.assert_clean();
    fs::remove_dir(&queue).unwrap();
    symlink(world.path("."), &queue).unwrap();
    world.cmd("perflock touch ran").run().exits(125).prints("").mentions("it must be a directory");
    assert!(!world.path("ran").exists());
}

#[test]
fn a_queue_on_a_read_only_filesystem_is_an_error() {
    needs!(Root, V2);
    let world = World::new();
    let script = "mount --bind . .; cd $PWD; mount -o remount,bind,ro .; exec perflock true";
    let done = world.in_mount_namespace(script).run().exits(125).prints("");
    assert!(done.stderr.starts_with("perflock: cannot make a ticket in "), "{}", done.stderr);
    assert!(done.stderr.contains("Read-only file system"), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn a_full_filesystem_is_an_error_and_holds_nothing() {
    needs!(Root, V2);
    let world = World::new();
    for (options, fill) in [
        ("size=64k", "while echo x >> full/filler-$((i += 1)); do :; done 2>/dev/null"),
        ("nr_inodes=8", "while : > full/filler-$((i += 1)); do :; done 2>/dev/null"),
    ] {
        let script = format!(
            "mkdir -p full; mount -t tmpfs -o {options} tmpfs full; perflock -q --setup --lock $PWD/full/l; set +e; \
             i=0; sh -c '{fill}'; perflock --lock $PWD/full/l touch ran; echo $?; ls full/l.d; \
             flock -n full/l echo free"
        );
        let done = world.in_mount_namespace(&script).run().exits(0).prints("125\nfree\n");
        assert!(done.stderr.contains("a ticket in "), "{options}: {}", done.stderr);
        assert!(done.stderr.contains("No space left on device"), "{options}: {}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{options}: {}", done.stderr);
    }
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn a_read_only_cgroup_filesystem_means_the_fallback_and_it_is_said() {
    needs!(Root, V2, OwnGroup);
    let world = World::new();
    // Only this mount of it, in this namespace: never the filesystem itself.
    let script = format!("mount -o remount,bind,ro {}; exec \"$@\"", world.cgroup_mount().display());
    let apart = |line: &str| world.in_mount_namespace(&script).arg("sh").args(line.split(' '));
    let reason = format!("no write access to {}: Read-only file system", world.group().display());
    let done = apart("perflock echo ran").run().exits(0).prints("ran\n");
    let warning = format!("perflock: warning: no job group can be made here (v2: {reason}");
    assert!(done.stderr.starts_with(&warning), "{}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    apart("perflock --cgroup none echo ran").run().exits(0).prints("ran\n").says("");
    let done = apart("perflock --cgroup required touch ran").run().exits(125).prints("");
    assert!(done.stderr.contains(&reason), "{}", done.stderr);
    assert!(!world.path("ran").exists());
    // Before joining: a holder is not waited for.
    let holder = world.holder("perflock");
    apart("perflock --cgroup required touch ran").run().exits(125).prints("");
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn no_process_left_for_the_guard_or_the_command_is_an_error() {
    needs!(Root, V2, OwnGroup, Program("prlimit"));
    // A user whom no other test has processes of: the limit counts them all.
    let world = World::for_uid(41_009);
    for (limit, said) in
        [(1, "perflock: cannot start the guard: "), (2, "perflock: cannot start a process for the command: ")]
    {
        let line = format!("prlimit --nproc={limit}:{limit} perflock touch ran");
        let done = world.cmd(&line).run().exits(125).prints("");
        assert!(done.stderr.starts_with(said), "{limit}: {}", done.stderr);
        assert!(!world.path("ran").exists());
        world.assert_clean();
    }
    world.cmd("prlimit --nproc=3:3 perflock true").run().exits(0).says("");
    let holder = world.cmd("perflock sh -c").arg("echo running; exec sleep 600").uid(0).spawn();
    holder.wait_stdout("running\n");
    let done = world.cmd("prlimit --nproc=1:1 perflock touch ran").run().exits(125).prints("");
    assert!(done.stderr.contains("cannot wait for the lock: "), "{}", done.stderr);
    assert_eq!(world.tickets(), ["1.x"]);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn too_few_descriptors_are_an_error_wherever_they_run_out() {
    needs!(V2, Program("prlimit"));
    let world = World::new();
    let mut worked = false;
    for limit in 4..32 {
        let line = format!("prlimit --nofile={limit}:{limit} perflock sh -c");
        let done = world.cmd(&line).arg("echo ran").run();
        worked = done.status.code() == Some(0);
        if worked {
            // To ask systemd takes some more.
            let announced = scope_backend() && done.stderr.starts_with("perflock: warning: no job group can be made");
            let done = done.prints("ran\n");
            assert!(done.stderr.is_empty() || announced, "{limit}: {}", done.stderr);
        } else {
            let done = done.exits(125).prints("");
            assert!(done.stderr.starts_with("perflock: "), "{limit}: {}", done.stderr);
        }
        world.assert_clean();
    }
    assert!(worked);
}

#[test]
fn too_few_descriptors_for_waiting_are_an_error_too() {
    needs!(V2, Program("prlimit"));
    let world = World::new();
    let holder = world.holder("perflock");
    for limit in 4..24 {
        let line = format!("prlimit --nofile={limit}:{limit} perflock -w 0.01 touch ran");
        let done = world.cmd(&line).run().prints("");
        assert!(matches!(done.status.code(), Some(125 | 75)), "{limit}: {} {}", done.status, done.stderr);
        assert_eq!(world.tickets(), ["1.x"], "{limit}");
    }
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn too_little_memory_is_an_error_and_leaves_nothing() {
    needs!(V2, Program("prlimit"));
    let world = World::new();
    for kib in (2_000..14_000).step_by(400) {
        // Below some limit the kernel or the dynamic loader cannot even start perflock.
        let started = world.cmd(&format!("prlimit --as={} perflock --version", kib * 1024)).run();
        if started.status.code() != Some(0) {
            continue;
        }
        let line = format!("prlimit --as={} perflock true", kib * 1024);
        let done = world.cmd(&line).run().prints("");
        // 127 is the command's dynamic loader's.
        let code = done.status.code();
        assert!(matches!(code, Some(0 | 125 | 126 | 127)), "{kib} KiB: {} {}", done.status, done.stderr);
        world.wait_clean();
    }
}

#[test]
fn a_missing_proc_is_an_error() {
    needs!(Root, V2);
    let world = World::new();
    let script = "mount -t tmpfs tmpfs /proc; exec \"$0\" touch ran";
    let done = world.in_mount_namespace(script).arg(world.program("perflock")).run().exits(125).prints("");
    assert!(done.stderr.starts_with("perflock: ") && done.stderr.contains("/proc"), "{}", done.stderr);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}
