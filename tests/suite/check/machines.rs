//! Of the kernel, of machines with cgroup v1 only, and of a user's service manager.

use serde_json::Value;

use super::{check, feature, fix, found, state};
use crate::harness::{ALICE, Machine, World, wait_until};
use crate::needs;

#[test]
fn what_older_kernels_and_filters_lack_is_seen_and_agrees_with_what_jobs_do() {
    needs!(Root, V2, OwnGroup, CgroupKill, Filter);
    // A plain user may not kill what became another's.
    let world = World::for_uid(ALICE);
    let none = World::new();
    for (kernel, of_kernel, of_kill, of_guard) in [
        ("clone3-unknown", "weaker", "works", "works"),
        ("clone3-forbidden", "weaker", "works", "works"),
        ("5.10", "works", "weaker", "works"),
        ("5.4", "weaker", "weaker", "works"),
        ("5.2", "missing", "weaker", "missing"),
        ("pidfd-forbidden", "missing", "works", "missing"),
    ] {
        let document = found(world.cmd("perflock --check --json").on(kernel));
        let states = ["kernel", "kill", "guard"].map(|id| state(&document, id));
        assert_eq!(states, [of_kernel, of_kill, of_guard], "{kernel}: {document:#}");
        let told = feature(&document, "kernel");
        let done = none.cmd("perflock --verbose true").on(kernel).run();
        if of_kernel == "missing" {
            // The same words.
            done.exits(125).says(&format!("perflock: {}\n", told["detail"].as_str().unwrap()));
            assert!(told["fix"].as_str().unwrap().contains("through the filter"), "{told:#}");
        } else {
            let joins = done.exits(0).stderr.contains("the command joins it");
            assert_eq!(joins, of_kernel == "weaker", "{kernel}");
        }
    }
    none.assert_clean();
    world.assert_clean();
}

#[test]
fn a_job_that_has_to_wait_fails_where_it_is_told_to() {
    needs!(V2, Filter);
    let world = World::new();
    let lost = |kernel: &str| {
        let document = found(world.cmd("perflock --check --json").on(kernel));
        feature(&document, "kernel")["lost"].as_str().unwrap().contains("a job that has to wait fails")
    };
    let is_lost = ["clone3-unknown", "clone3-forbidden"].map(lost);
    let holder = world.holder("perflock -q");
    let waits = |kernel: &str| world.cmd("perflock -w 0.2 true").on(kernel).run().status.code() == Some(75);
    let fails = ["clone3-unknown", "clone3-forbidden"].map(|kernel| !waits(kernel));
    assert_eq!(is_lost, fails);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn on_a_machine_with_v1_alone_it_is_told_what_its_groups_give() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), V1("memory"), V1("pids"), V1("name=systemd"));
    let world = World::on_v1(0, &["freezer", "cpuacct", "memory", "pids"]);
    let document = check(&world);
    assert_eq!(document["backend"], "v1");
    for id in ["kernel", "backend", "kill", "cpu-time", "memory-limit", "pids-limit"] {
        assert_eq!(state(&document, id), "works", "{id}: {document:#}");
    }
    assert!(feature(&document, "kill")["detail"].as_str().unwrap().starts_with("the freezer "), "{document:#}");
    assert_eq!(state(&document, "pressure"), "missing");
    assert!(fix(&document, "pressure").starts_with("boot with "));
    assert_eq!(feature(&document, "refused-v2")["lost"], "nothing: jobs are in a v1 group");
    // What is said to work does.
    world.cmd("perflock -q --cgroup required --memory 64M --pids 9 true").run().exits(0).says("");
    world.assert_clean();
    // A plain user has systemd's hierarchy, which counts nothing and freezes nobody.
    let world = World::on_v1(ALICE, &["name=systemd"]);
    let document = check(&world);
    assert_eq!(document["backend"], "v1");
    for id in ["kill", "cpu-time"] {
        assert!(state(&document, id) == "weaker" && fix(&document, id).starts_with("boot with "), "{document:#}");
    }
    assert!(feature(&document, "kill")["lost"].as_str().unwrap().contains("another user's"), "{document:#}");
    assert_eq!(state(&document, "memory-limit"), "missing");
    world.cmd("perflock --memory 64M true").run().exits(125);
    world.assert_clean();
}

#[test]
fn with_systemd_it_is_told_what_a_user_s_manager_gives_and_whether_it_lingers() {
    needs!(Manager, Program("setpriv"));
    let machine = Machine::new();
    let document = check(&machine);
    assert_eq!(document["backend"], "scope");
    // This machine's controllers are in v1, or root's: a user's manager has none.
    assert_eq!(state(&document, "delegation"), "weaker");
    assert_eq!(state(&document, "linger"), "weaker");
    assert!(fix(&document, "linger").starts_with("loginctl enable-linger "), "{document:#}");
    let lingers = "mkdir -p /var/lib/systemd\nmount -t tmpfs none /var/lib/systemd\nmkdir /var/lib/systemd/linger\n\
        : >/var/lib/systemd/linger/pltest-alice";
    let program = machine.program("perflock");
    let line = format!("{} --check --json", program.display());
    let document = found(machine.altered(lingers, &line));
    assert_eq!(state(&document, "linger"), "works", "{document:#}");
    // What cannot be looked at is not known, and that is not called well.
    let closed = format!("{lingers}\nchmod 700 /var/lib/systemd");
    let document = found(machine.altered(&closed, &line));
    assert_eq!(state(&document, "linger"), "unknown", "{document:#}");
    assert_eq!(document["works"], false);
    machine.wait_gone();
}

#[test]
fn a_service_manager_that_nobody_answers_for_is_refused_with_its_cure() {
    needs!(Manager);
    let machine = Machine::without_manager();
    let document = check(&machine);
    assert_eq!(state(&document, "refused-scope"), "missing");
    assert_eq!(fix(&document, "refused-scope"), "loginctl enable-linger pltest-alice");
    // A socket that nobody listens at any more is no manager.
    drop(machine.listen());
    let mut document = Value::Null;
    // A child that another test makes just now has it too, until it executes.
    wait_until("nobody listens", || {
        document = check(&machine);
        document["backend"] != "scope"
    });
    let detail = feature(&document, "refused-scope")["detail"].as_str().unwrap().to_owned();
    assert!(detail.starts_with("nobody answers at "), "{detail}");
    machine.wait_clean();
}
