//! The whole suite once more, as a plain user runs it in a login session: every job gets a scope from the user's systemd.
//! It takes minutes, so it is asked for: `cargo test -- --ignored in_a_session`.

use std::time::Duration;

use crate::harness::{Machine, installed_as, source};
use crate::needs;

#[test]
#[ignore = "the whole suite again; ask for it by --ignored"]
fn the_whole_suite_by_a_plain_user() {
    needs!(Root, V2, Manager);
    whole_suite(&Machine::new(), "scope", 150);
}

#[test]
#[ignore = "the whole suite again; ask for it by --ignored"]
fn the_whole_suite_by_root() {
    needs!(Root, V2, Manager);
    whole_suite(&Machine::of_root(), "scope", 180);
}

/// As CI does on a machine that was booted with systemd, and whose only hierarchy is v2.
#[test]
#[ignore = "the whole suite again; ask for it by --ignored"]
fn the_whole_suite_by_root_in_groups_of_the_tests() {
    needs!(Root, V2, Manager);
    whole_suite(&Machine::of_root(), "v2", 250);
}

/// Runs the suite on the machine with this backend; at least so many tests have to run in it.
#[track_caller]
fn whole_suite(machine: &Machine, backend: &str, least: usize) {
    let suite = installed_as(machine, "suite", &std::env::current_exe().unwrap());
    for name in ["perflock", "pls", "wholock"] {
        installed_as(machine, name, &machine.program(name));
    }
    std::fs::create_dir(machine.path("config")).unwrap();
    for file in ["README.md", "config/perflock.toml"] {
        machine.write(file, &source(file));
    }
    let cmd = machine.cmd(suite.to_str().unwrap()).args(["--test-threads", "1"]);
    let mut running = cmd
        // Not of root's directories: who may not look into one is told so, instead of that nothing was found.
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("PERFLOCK_TEST_BACKEND", backend)
        .env("PERFLOCK_TEST_BIN", machine.path(""))
        .env("PERFLOCK_TEST_SOURCE", machine.path(""))
        .env("PERFLOCK_MUST_RUN", "v2")
        // Its worlds have locks of their own, and find what is theirs by them.
        .env_remove("PERFLOCK_LOCK")
        .spawn();
    while !running.ended() {
        std::thread::sleep(Duration::from_millis(200));
    }
    let done = running.wait();
    assert!(done.status.success(), "{}\n{}", done.stdout, done.stderr);
    let skipped = done.stderr.matches("SKIP ").count();
    let ran = done.stdout.matches(" ... ok").count() - skipped;
    assert!(ran >= least, "{ran} tests ran, {skipped} were skipped\n{}", done.stderr);
    machine.wait_gone();
}
