//! Configuration: what wins over what, and what happens to mistakes in it.

use crate::harness::{Cmd, World};
use crate::needs;

/// A holder makes the exit code of `-n` visible, and with it the configuration that was in force.
fn code(world: &World, cmd: Cmd, code: i32) {
    let done = cmd.args(["-n", "true"]).run().exits(code).prints("");
    assert!(!done.stderr.contains("warning"), "{}", done.stderr);
    assert_eq!(world.tickets(), ["1.x"]);
}

#[test]
fn the_machine_s_file_then_the_user_s_then_the_flag() {
    needs!(Root, V2);
    let world = World::new();
    world.write("etc.toml", "conflict-exit-code = 11\nleftovers = 'wait'\n");
    let holder = world.holder("perflock");
    let in_etc = |line: &str| {
        // The file has to exist to be covered; a tmpfs over /etc hides everything else.
        let script = format!(
            "cp /etc/passwd /etc/group . ; mount -t tmpfs tmpfs /etc; cp passwd group /etc; \
             cp etc.toml /etc/perflock.toml; exec {line} \"$@\""
        );
        world.in_mount_namespace(&script).arg("sh")
    };
    code(&world, in_etc("perflock"), 11);
    std::fs::create_dir_all(world.path(".config/perflock")).unwrap();
    world.write(".config/perflock/config.toml", "conflict-exit-code = 12\n");
    code(&world, in_etc("perflock"), 12);
    std::fs::create_dir_all(world.path("xdg/perflock")).unwrap();
    world.write("xdg/perflock/config.toml", "conflict-exit-code = 13\n");
    let xdg = world.path("xdg");
    code(&world, in_etc("perflock").env("XDG_CONFIG_HOME", &xdg), 13);
    // A named file is read alone.
    let named = world.write("named.toml", "conflict-exit-code = 14\n");
    code(&world, in_etc("perflock").env("PERFLOCK_CONFIG", &named).env("XDG_CONFIG_HOME", &xdg), 14);
    let flag = world.write("flag.toml", "conflict-exit-code = 15\n");
    let line = format!("perflock --config {}", flag.display());
    code(&world, in_etc(&line).env("PERFLOCK_CONFIG", &named), 15);
    code(&world, in_etc(&format!("{line} -E 16")).env("PERFLOCK_CONFIG", &named), 16);
    // What the user's file does not set, the machine's does.
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    let done = in_etc("perflock").args(["sh", "-c", "sleep 0.1 >/dev/null 2>&1 &"]).run().exits(0).prints("");
    assert!(!done.stderr.contains("killed"), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn the_lock_is_named_by_flag_environment_or_file_in_this_order() {
    needs!(V2);
    let world = World::new();
    let lock = |name: &str| {
        let path = world.path(name);
        world.cmd("perflock -q --setup --lock").arg(&path).run().exits(0).says("");
        path
    };
    let (by_file, by_environment, by_flag) = (lock("by-file"), lock("by-environment"), lock("by-flag"));
    let config = world.write("config.toml", &format!("lock = '{}'\n", by_file.display()));
    let show = ["sh", "-c", "ls -d *.d/*.x"];
    let perflock = || world.cmd("perflock").env("PERFLOCK_CONFIG", &config);
    perflock().env("PERFLOCK_LOCK", "").args(show).run().exits(0).prints("by-file.d/1.x\n");
    perflock().env("PERFLOCK_LOCK", &by_environment).args(show).run().exits(0).prints("by-environment.d/1.x\n");
    let done = perflock().env("PERFLOCK_LOCK", &by_environment).arg("--lock").arg(&by_flag).args(show).run();
    done.exits(0).prints("by-flag.d/1.x\n").says("");
    // wholock looks where perflock locks.
    let holder = perflock().env("PERFLOCK_LOCK", "").args(["sh", "-c", "echo running; exec sleep 600"]).spawn();
    holder.wait_stdout("running\n");
    world.cmd("wholock -q").env("PERFLOCK_CONFIG", &config).env("PERFLOCK_LOCK", "").run().exits(1);
    world.cmd("wholock -q").env("PERFLOCK_CONFIG", &config).run().exits(0);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn an_unknown_key_is_one_warning_and_the_run_goes_on() {
    needs!(V2);
    let world = World::new();
    let config = world.write("config.toml", "# a comment\n\ngrase = \"1s\"\nconflict-exit-code = 9\n");
    let file = config.display();
    for program in ["perflock", "pls", "wholock"] {
        let cmd = world.cmd(program).arg("--config").arg(&config);
        let cmd = cmd.args(if program == "wholock" { ["--sample", "0"] } else { ["echo", "ran"] });
        let said = if program == "wholock" { "the machine is free\n" } else { "ran\n" };
        let done = cmd.run().exits(0).prints(said);
        let line = format!("{program}: {file}:3: unknown key grase; did you mean grace?\n");
        assert_eq!(done.stderr.replace("warning: ", ""), line);
    }
    world.assert_clean();
}

#[test]
fn a_bad_value_or_syntax_is_an_error_with_file_and_line_and_nothing_runs() {
    needs!(V2);
    let world = World::new();
    for (text, line) in [
        ("\ngrace = \"soon\"\n", 2),
        ("leftovers = \"keep\"\n", 1),
        ("leftovers = 3\n", 1),
        ("cgroup = \"auto\"\ncgroup = \"none\"\n", 2),
        ("wait = -1\n", 1),
        ("wait = true\n", 1),
        ("conflict-exit-code = 256\n", 1),
        ("conflict-exit-code = \"9\"\n", 1),
        ("lock = \"relative\"\n", 1),
        ("cgroup = \"maybe\"\n", 1),
        ("# fine\n\n[grace\n", 3),
        ("grace = = 3\n", 1),
        ("\n\nnonsense\n", 3),
    ] {
        let config = world.write("config.toml", text);
        for program in ["perflock", "wholock"] {
            let cmd = world.cmd(program).env("PERFLOCK_CONFIG", &config);
            let cmd = if program == "wholock" { cmd } else { cmd.args(["touch", "ran"]) };
            let done = cmd.run().exits(125).prints("");
            let start = format!("{program}: {}:{line}: ", config.display());
            assert!(done.stderr.starts_with(&start), "{text:?}: {}", done.stderr);
        }
    }
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn a_named_file_must_be_readable_and_text() {
    needs!(V2);
    let world = World::new();
    let missing = world.path("missing.toml");
    let said = format!("perflock: cannot read {}: No such file or directory\n", missing.display());
    world.cmd("perflock --config").arg(&missing).arg("true").run().exits(125).prints("").says(&said);
    world.cmd("perflock true").env("PERFLOCK_CONFIG", &missing).run().exits(125).prints("").says(&said);
    let directory = world.path(".");
    world.cmd("perflock --config").arg(&directory).arg("true").run().exits(125).prints("").mentions("cannot read ");
    let binary = world.path("binary.toml");
    std::fs::write(&binary, b"grace = \"\xff\xfe\"\n").unwrap();
    world.cmd("perflock --config").arg(&binary).arg("true").run().exits(125).prints("").mentions("binary.toml");
    // Escapes in a key are not passed on to the terminal.
    let hostile = world.write("hostile.toml", "\"\\u001b[2Jx\" = 1\n");
    let done = world.cmd("perflock --config").arg(&hostile).arg("true").run().exits(0);
    assert!(!done.stderr.contains('\x1b'), "{:?}", done.stderr);
    world.assert_clean();
}

#[test]
fn a_home_that_is_closed_or_missing_is_no_error() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(crate::harness::ALICE);
    world.cmd("perflock true").env("HOME", "/root").run().exits(0).says("");
    world.cmd("perflock true").env("HOME", "/nonexistent").run().exits(0).says("");
    world.cmd("perflock true").env("HOME", "/dev/null").run().exits(0).says("");
    world.cmd("perflock true").env_remove("HOME").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn the_shipped_file_can_be_used_as_it_is_and_with_every_key_set() {
    needs!(V2);
    let world = World::new();
    let shipped = crate::harness::source("config/perflock.toml");
    let as_it_is = world.write("shipped.toml", &shipped);
    world.cmd("perflock --config").arg(&as_it_is).arg("true").run().exits(0).says("");
    let set: String = shipped
        .lines()
        .filter(|line| line.starts_with('#') && line.contains(" = "))
        .map(|line| format!("{}\n", &line[1..]))
        .collect();
    let set = world.write("set.toml", &set);
    // PERFLOCK_LOCK wins over its lock.
    world.cmd("perflock --config").arg(&set).arg("true").run().exits(0).says("");
    world.assert_clean();
}

#[test]
fn what_another_user_configured_is_not_read_by_root() {
    needs!(Root);
    let world = World::new();
    let file = world.path(".config/perflock/config.toml");
    std::fs::write(&file, "conflict-exit-code = 9\n").unwrap();
    let holder = world.holder("perflock");
    world.cmd("perflock -q -n true").run().exits(9);
    // As where sudo(8) leaves HOME as it was.
    std::os::unix::fs::chown(&file, Some(crate::harness::ALICE), None).unwrap();
    let not_read = format!("perflock: {} is another user's, and is not read\n", file.display());
    world.cmd("perflock -q -n true").run().exits(75).says(&not_read);
    drop(holder);
}
