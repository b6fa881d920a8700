//! `perflock --check`: what works here, what does not, and whether the command that is told mends it.

mod machines;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{ALICE, Cmd, Done, World, source, wait_until};
use crate::needs;
use crate::queue::{sleeps, sleeps_for_good, voluntary_switches};

/// What is found, once it was seen to be as its schema says, with every feature once, and to agree with the exit code.
#[track_caller]
fn found(cmd: Cmd) -> Value {
    let Done { status, stdout, stderr, .. } = cmd.run();
    assert_eq!(stderr, "");
    let document: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}"));
    let schema = serde_json::from_str(&source("config/check.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}\n{document:#}");
    let features = document["features"].as_array().unwrap();
    let mut ids: Vec<&str> = features.iter().map(|feature| feature["id"].as_str().unwrap()).collect();
    let told = schema_ids(&schema);
    for id in ids.iter().filter(|id| !id.starts_with("refused-")) {
        assert!(told.contains(&format!(" {id},")), "{id} is not in the schema's list");
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "{document:#}");
    let fails = features.iter().any(|feature| feature["promised"] == true && feature["state"] != "works");
    assert_eq!(document["works"], !fails, "{document:#}");
    assert_eq!(status.code(), Some(i32::from(fails)), "{document:#}");
    assert!(!stdout.trim_end().chars().any(|c| c.is_control() && c != '\n'), "{stdout:?}");
    document
}

/// The list of the features' names in the schema, with a space before and a comma behind each.
fn schema_ids(schema: &Value) -> String {
    let text = schema["$defs"]["feature"]["properties"]["id"]["description"].as_str().unwrap();
    format!("{},", text.replace(':', ": "))
}

#[track_caller]
fn check(world: &World) -> Value {
    found(world.cmd("perflock --check --json"))
}

#[track_caller]
fn feature(document: &Value, id: &str) -> Value {
    let features = document["features"].as_array().unwrap();
    features.iter().find(|feature| feature["id"] == id).unwrap_or_else(|| panic!("no {id} in {document:#}")).clone()
}

#[track_caller]
fn state(document: &Value, id: &str) -> String {
    feature(document, id)["state"].as_str().unwrap().to_owned()
}

#[track_caller]
fn fix(document: &Value, id: &str) -> String {
    feature(document, id)["fix"].as_str().unwrap_or_else(|| panic!("no cure for {id}: {document:#}")).to_owned()
}

/// Takes the lock and its queue away.
fn unset(world: &World) {
    fs::remove_file(world.lock()).unwrap();
    fs::remove_dir(world.queue()).unwrap();
}

/// A script in mounts of its own, in which sudo is what it is without.
fn altered(world: &World, script: &str) -> Cmd {
    world.in_mount_namespace(&format!("sudo() {{ \"$@\"; }}\n{script}"))
}

#[test]
fn the_command_that_is_told_sets_the_machine_up() {
    needs!(Root);
    let world = World::new();
    unset(&world);
    let before = check(&world);
    assert_eq!((state(&before, "lock-file"), state(&before, "queue")), ("missing".to_owned(), "missing".to_owned()));
    assert_eq!(before["works"], false);
    // Looking set nothing up.
    assert!(!world.lock().exists() && !world.queue().exists());
    world.sh(&fix(&before, "lock-file")).run().exits(0);
    let after = check(&world);
    assert_eq!((state(&after, "lock-file"), state(&after, "queue")), ("works".to_owned(), "works".to_owned()));
    assert_eq!(after["lock"], world.lock().to_str().unwrap());
    world.assert_clean();
}

#[test]
fn pls_checks_the_same_and_a_person_gets_a_table() {
    needs!(V2);
    let world = World::new();
    let document = check(&world);
    assert_eq!(found(world.cmd("pls --check --json")), document);
    let done = world.cmd("perflock --check").run();
    assert_eq!((done.status.code(), &*done.stderr), (Some(i32::from(document["works"] == false)), ""));
    let mut lines = done.stdout.lines();
    let header: Vec<&str> = lines.next().unwrap().split("  ").map(str::trim).filter(|text| !text.is_empty()).collect();
    assert_eq!(header, ["FEATURE", "STATE", "WHAT IS THERE"]);
    for feature in document["features"].as_array().unwrap() {
        let line = lines.next().unwrap();
        let [name, state, detail] = ["feature", "state", "detail"].map(|key| feature[key].as_str().unwrap());
        assert!(line.starts_with(name) && line.contains(state) && line.ends_with(detail), "{line}\n{feature:#}");
        // Told below the table, whole.
        for key in ["lost", "fix"] {
            assert!(feature[key].as_str().is_none_or(|text| done.stdout.contains(text)), "{}", done.stdout);
        }
    }
    let verdict = if document["works"] == true { "all that perflock" } else { "not all that perflock" };
    assert!(done.stdout.contains(&format!("\n\n{verdict} promises works here")), "{}", done.stdout);
    // Only what is wrong.
    let quiet = world.cmd("perflock --check -q").run();
    assert_eq!(quiet.status.code(), done.status.code());
    assert!(!quiet.stdout.contains("  works  ") && !quiet.stdout.contains("promises"), "{}", quiet.stdout);
    world.assert_clean();
}

#[test]
fn a_plain_user_learns_what_a_job_of_theirs_would_get() {
    needs!(Root, V2, OwnGroup);
    let world = World::for_uid(ALICE);
    let document = check(&world);
    assert_eq!(document["user"], json!({"uid": ALICE, "name": ALICE.to_string()}));
    assert_eq!(document["backend"], "v2");
    for id in ["lock-file", "queue", "configuration", "backend", "guard", "cpu-time", "soft-pin"] {
        assert_eq!(state(&document, id), "works", "{id}: {document:#}");
    }
    assert_eq!(feature(&document, "isolated")["promised"], false);
    // And so it is: the job is in a group of its own.
    let group = world.cmd("perflock -q grep 0:: /proc/self/cgroup").run().exits(0).stdout;
    assert!(group.contains("/perflock-"), "{group}");
    // In a group that is not hers there is the fallback, and its row says what that costs.
    let foreign = world.group().parent().unwrap().to_owned();
    let document = found(world.cmd("perflock --check --json").in_group(&foreign));
    assert_eq!((document["backend"].as_str(), state(&document, "backend")), (Some("subreaper"), "weaker".to_owned()));
    assert!(state(&document, "refused-v2") == "missing" && feature(&document, "refused-v2")["promised"] == false);
    world.cmd("perflock true").in_group(&foreign).run().exits(0).mentions("no job group can be made here");
    world.assert_clean();
}

#[test]
fn a_machine_that_is_held_is_not_disturbed() {
    needs!(Root, V2);
    let world = World::new();
    let holder = world.holder("perflock");
    let waiter = world.waiter("2.x", world.cmd("perflock -q true"));
    let guard = world.guard_of("1.x");
    let pids = [holder.pid(), guard, waiter.pid()];
    wait_until("every thread sleeps", || pids.into_iter().all(sleeps) && sleeps_for_good(holder.pid()));
    let tickets = || ["1.x", "2.x"].map(|name| fs::read(world.queue().join(name)).unwrap());
    let woken = || pids.map(voluntary_switches);
    let groups = world.job_groups();
    let (names, texts, before) = (world.tickets(), tickets(), woken());
    for _ in 0..20 {
        let document = check(&world);
        assert!(feature(&document, "queue")["detail"].as_str().unwrap().contains(" behind 2 jobs"), "{document:#}");
        assert_eq!(state(&document, "queue"), "works");
    }
    assert_eq!(woken(), before, "somebody was woken");
    assert_eq!((world.tickets(), tickets(), world.job_groups()), (names, texts, groups));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0);
    world.assert_clean();
}

#[test]
fn neither_the_lock_file_nor_the_queue_is_locked_and_no_group_is_made() {
    needs!(V2, Program("strace"));
    let world = World::new();
    let calls = "trace=flock,fcntl,mkdir,mkdirat,link,linkat,unlink,unlinkat,kill,pidfd_send_signal,socket,connect";
    let line = format!("strace -f -o calls -e {calls} perflock --check");
    let done = world.cmd(&line).run();
    let log = world.read("calls");
    assert!(log.contains("+++ exited with"), "{}", done.stderr);
    assert!(!log.contains("flock(") && !log.contains("mkdir") && !log.contains("SETLKW"), "{log}");
    let lines = |what: &str| log.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
    // One draft is locked, and one name comes and goes that is no ticket's.
    assert_eq!(lines("F_OFD_SETLK,").len(), 1, "{log}");
    let names = [lines("linkat(AT_FDCWD"), lines("unlinkat(")].concat();
    assert!(names.len() == 2 && names.iter().all(|line| line.contains("\"check-")), "{log}");
    // A process of its own making, and no other. Whether there is such a call is asked by means of no process.
    let signalled = lines("pidfd_send_signal(").into_iter().filter(|line| !line.contains("pidfd_send_signal(-1, "));
    assert_eq!(signalled.count(), 1, "{log}");
    world.assert_clean();
}

#[test]
fn whoever_has_the_queue_locked_does_not_hold_it_up() {
    needs!(Program("flock"));
    let world = World::new();
    let locked = world.sh("exec flock lock.d sh -c 'echo locked; exec flock lock sleep 600'").spawn();
    locked.wait_stdout("locked\n");
    wait_until("the lock is held", || !world.lock_is_free());
    let document = check(&world);
    assert_eq!((state(&document, "lock-file"), state(&document, "queue")), ("works".to_owned(), "works".to_owned()));
    assert!(feature(&document, "queue")["detail"].as_str().unwrap().contains(" behind 1 job"), "{document:#}");
    drop(locked);
}

#[test]
fn inside_a_job_it_is_checked_what_jobs_get_there() {
    needs!(V2);
    let world = World::new();
    let document: Value = {
        let done = world.sh("perflock -q sh -c 'perflock --check --json; :'").run().exits(0).says("");
        serde_json::from_str(&done.stdout).unwrap()
    };
    let detail = feature(&document, "queue")["detail"].as_str().unwrap().to_owned();
    assert!(detail.ends_with("; this is inside job 1, where nothing waits"), "{detail}");
    assert_eq!(document["backend"], "v2");
    let detail = feature(&document, "backend")["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("/perflock-1-") && detail.ends_with(", inside a job"), "{detail}");
    // Only its ancestors tell that it is in a job: a job would be refused here.
    let outside = world.path("seen");
    let script = format!("env -u PERFLOCK_JOB perflock --check --json --cgroup none >{}; :", outside.display());
    world.cmd("perflock -q --cgroup none sh -c").arg(script).run().exits(0).says("");
    let document: Value = serde_json::from_str(&world.read("seen")).unwrap();
    assert_eq!(state(&document, "queue"), "missing", "{document:#}");
    assert!(feature(&document, "queue")["detail"].as_str().unwrap().contains("waiting would wait for itself"));
    world.assert_clean();
}

#[test]
fn what_others_may_do_to_the_lock_is_seen() {
    needs!(Root);
    let world = World::new();
    let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(&world.lock(), 0o600);
    set(&world.queue(), 0o777);
    let document = check(&world);
    assert_eq!((state(&document, "lock-file"), state(&document, "queue")), ("weaker".to_owned(), "weaker".to_owned()));
    world.sh(&fix(&document, "queue")).run().exits(0);
    let document = check(&world);
    assert_eq!((state(&document, "lock-file"), state(&document, "queue")), ("works".to_owned(), "works".to_owned()));
    // For one group, and she is not in it.
    set(&world.lock(), 0o660);
    set(&world.queue(), 0o3770);
    let gid = nix::unistd::Group::from_name("users").unwrap().unwrap().gid.as_raw();
    std::os::unix::fs::chown(world.lock(), None, Some(gid)).unwrap();
    let world_of_alice = World::for_uid(ALICE);
    let document = found(world_of_alice.cmd("perflock --check --json --lock").arg(world.lock()));
    assert_eq!(fix(&document, "lock-file"), format!("sudo usermod -aG users {ALICE}"));
    assert_eq!(
        (state(&document, "lock-file"), state(&document, "queue")),
        ("missing".to_owned(), "missing".to_owned())
    );
}

#[test]
fn a_queue_that_a_plain_user_owns_is_given_to_root_by_what_is_told() {
    needs!(Root);
    // In a place with a name that has to be quoted.
    let world = World::new();
    let lock = world.path("the lab's lock");
    let check = || found(world.cmd("perflock --check --json --lock").arg(&lock));
    world.sh(&fix(&check(), "lock-file")).run().exits(0);
    assert_eq!(state(&check(), "queue"), "works");
    std::os::unix::fs::chown(world.path("the lab's lock.d"), Some(ALICE), None).unwrap();
    let document = check();
    assert_eq!((state(&document, "lock-file"), state(&document, "queue")), ("works".to_owned(), "weaker".to_owned()));
    assert!(feature(&document, "queue")["detail"].as_str().unwrap().ends_with(&format!(" belongs to {ALICE}")));
    world.sh(&fix(&document, "queue")).run().exits(0);
    assert_eq!(state(&check(), "queue"), "works");
}

#[test]
fn a_ticket_that_cannot_be_made_is_seen_to_be_so() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let script = "mount -t tmpfs -o mode=1777,nr_inodes=1 none lock.d; perflock --check --json || exit $?";
    let document = found(altered(&world, script));
    assert_eq!(state(&document, "queue"), "missing");
    let detail = feature(&document, "queue")["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.starts_with("cannot make a ticket in ") && detail.ends_with(": No space left on device"),
        "{detail}"
    );
    let script = "mount --bind lock.d lock.d; mount -o remount,bind,ro lock.d; perflock --check --json || exit $?";
    let document = found(altered(&world, script));
    assert!(feature(&document, "queue")["detail"].as_str().unwrap().ends_with(": Read-only file system"));
    world.assert_clean();
}

#[test]
fn something_else_in_the_place_is_moved_aside_by_what_is_told() {
    needs!(Root);
    let world = World::new();
    unset(&world);
    let victim = world.write("victim", "precious");
    symlink(&victim, world.lock()).unwrap();
    let document = check(&world);
    assert_eq!(state(&document, "lock-file"), "missing");
    world.sh(&fix(&document, "lock-file")).run().exits(0);
    let document = check(&world);
    assert_eq!((state(&document, "lock-file"), state(&document, "queue")), ("works".to_owned(), "works".to_owned()));
    assert_eq!(world.read("victim"), "precious");
}

#[test]
fn a_private_lock_is_not_made_by_looking_at_it() {
    needs!(Root);
    // Of whom no other test has one.
    let world = World::for_uid(41_077);
    let directory = Path::new("/tmp/perflock-41077");
    let document = found(world.cmd("perflock --check --json --private"));
    assert_eq!(document["lock"], "/tmp/perflock-41077/perflock");
    assert_eq!((state(&document, "lock-file"), state(&document, "queue")), ("works".to_owned(), "works".to_owned()));
    assert!(!directory.exists());
}

#[test]
fn the_configuration_is_read_and_judged() {
    needs!(Root);
    let world = World::for_uid(ALICE);
    let file = world.path(".config/perflock/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let configured = |text: &str| {
        fs::write(&file, text).unwrap();
        feature(&check(&world), "configuration")
    };
    let works = configured("grace = \"1s\"\n");
    assert_eq!(works["state"], "works");
    assert!(works["detail"].as_str().unwrap().ends_with(".config/perflock/config.toml"), "{works:#}");
    let unknown = configured("grace = \"1s\"\ngrase = 1\n");
    assert_eq!(unknown["state"], "weaker");
    assert!(unknown["detail"].as_str().unwrap().contains("config.toml:2: unknown key grase"), "{unknown:#}");
    let wrong = configured("grace = \"soon\"\n");
    assert_eq!(wrong["state"], "missing");
    assert_eq!(wrong["fix"], format!("${{EDITOR:-vi}} {}", file.display()));
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(feature(&check(&world), "configuration")["state"], "weaker");
    // Somebody else's home, as HOME still says after some su(1): nothing is known of what is in it, and it stays closed.
    let home = world.path("not hers");
    fs::create_dir_all(home.join(".config/perflock")).unwrap();
    fs::write(home.join(".config/perflock/config.toml"), "").unwrap();
    let from = |home: &Path| found(world.cmd("perflock --check --json").env("HOME", home.to_str().unwrap()));
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let hidden = feature(&from(&home), "configuration");
    assert_eq!((&hidden["state"], &hidden["fix"]), (&json!("unknown"), &Value::Null), "{hidden:#}");
    // What is closed alone is opened by what is told, whatever it is called.
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
    let closed = home.join(".config/perflock/config.toml");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    let mend = fix(&from(&home), "configuration");
    assert!(mend.starts_with("sudo chmod a+r '"), "{mend}");
    World::new().sh(mend.strip_prefix("sudo ").unwrap()).run().exits(0);
    assert_eq!(state(&from(&home), "configuration"), "works");
    let named = found(world.cmd("perflock --check --json --config nowhere.toml"));
    assert_eq!(state(&named, "configuration"), "missing");
    // What it says counts for the rest.
    let other = world.path("other");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, format!("lock = \"{}\"\n", other.display())).unwrap();
    let document = found(world.cmd("perflock --check --json").env_remove("PERFLOCK_LOCK"));
    assert_eq!((document["lock"].as_str(), state(&document, "lock-file")), (other.to_str(), "missing".to_owned()));
}

#[test]
fn a_user_with_no_process_left_has_no_guard() {
    needs!(Root, Program("bash"));
    let world = World::for_uid(ALICE);
    let document = found(world.cmd("bash -c").arg("ulimit -u 1; exec perflock --check --json"));
    assert_eq!(
        (state(&document, "guard"), fix(&document, "guard")),
        ("missing".to_owned(), "ulimit -Su hard".to_owned())
    );
    // Where the limit is not the highest that the user may have, the command helps.
    let script = format!("ulimit -Su 1; {}; perflock --check --json || exit $?", fix(&document, "guard"));
    assert_eq!(state(&found(world.cmd("bash -c").arg(script)), "guard"), "works");
    // And no job is run, which is what the row says.
    world.cmd("bash -c").arg("ulimit -u 1; exec perflock true").run().exits(125).prints("");
    world.assert_clean();
}

#[test]
fn how_the_machine_is_set_is_told_and_the_command_changes_it() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    world.write("meminfo", "MemTotal: 99 kB\nSwapTotal: 2048 kB\nSwapFree: 1024 kB\n");
    // A captured machine in the places of this one's files.
    let capture = "mount -t tmpfs none /sys/devices/system/cpu; mount -t tmpfs none /sys/kernel/mm\n\
        mount --bind meminfo /proc/meminfo\ncd /sys/devices/system/cpu; mkdir -p smt cpufreq/policy0 cpufreq/policy1\n\
        echo powersave >cpufreq/policy0/scaling_governor; echo performance >cpufreq/policy1/scaling_governor\n\
        echo 1 >cpufreq/boost; echo 1 >smt/active; mkdir /sys/kernel/mm/transparent_hugepage\n\
        echo '[always] madvise never' >/sys/kernel/mm/transparent_hugepage/enabled; cd - >/dev/null";
    let script = format!("{capture}\nperflock --check --json || exit $?");
    let document = found(altered(&world, &script));
    for (id, detail) in [
        ("governor", "performance, powersave"),
        ("turbo", "on"),
        ("smt", "on"),
        ("huge-pages", "always"),
        ("swap", "2.0M, 1.0M used"),
    ] {
        let feature = feature(&document, id);
        assert_eq!(
            (&feature["state"], &feature["detail"], &feature["promised"]),
            (&json!("weaker"), &json!(detail), &json!(false))
        );
    }
    let (governor, turbo) = (fix(&document, "governor"), fix(&document, "turbo"));
    let script = format!("{capture}\n{governor}\n{turbo}\nperflock --check --json || exit $?");
    let document = found(altered(&world, &script));
    assert_eq!((state(&document, "governor"), state(&document, "turbo")), ("works".to_owned(), "works".to_owned()));
}

#[test]
fn a_lock_that_a_boot_takes_away_is_seen_and_the_command_brings_it_back() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    let run = |rest: &str| {
        let script = format!(
            "mount -t tmpfs -o mode=755 none /run\nmount -t tmpfs -o mode=755 none /var/lib\nmkdir -p etc/tmpfiles.d\ncp -L /etc/passwd /etc/group etc\n\
             mount --bind etc /etc\nunset PERFLOCK_LOCK\n: >/run/perflock\nmkdir -m 1777 /run/perflock.d\n{rest}\n\
             perflock --check --json || exit $?"
        );
        found(altered(&world, &script))
    };
    let document = run("chmod 666 /run/perflock");
    assert_eq!((state(&document, "lock-file"), state(&document, "boot")), ("works".to_owned(), "weaker".to_owned()));
    let document = run(&format!("{} 2>&-", fix(&document, "boot")));
    assert_eq!((state(&document, "lock-file"), state(&document, "boot")), ("works".to_owned(), "works".to_owned()));
    // A lock that is for one group stays so.
    let document = run("rm -r etc/tmpfiles.d/*; chgrp users /run/perflock; chmod 660 /run/perflock");
    assert!(fix(&document, "boot").ends_with("perflock --setup --group users"), "{document:#}");
    // Another lock than the machine's.
    let other = "mkdir /run/lab; perflock --setup -q --lock /run/lab/lock; export PERFLOCK_LOCK=/run/lab/lock";
    let document = run(other);
    assert_eq!(state(&document, "boot"), "weaker", "{document:#}");
    let document = run(&format!("{other}; {}", fix(&document, "boot")));
    assert_eq!(state(&document, "boot"), "works", "{document:#}");
}

#[test]
fn a_proc_that_hides_other_users_is_seen() {
    needs!(Root, Program("unshare"), Program("setpriv"));
    let world = World::for_uid(ALICE);
    let script = format!(
        "mount -t proc -o hidepid=2 proc /proc\n\
         exec setpriv --reuid {ALICE} --regid {ALICE} --clear-groups perflock --check --json"
    );
    let document = found(altered(&world, &script));
    assert_eq!(state(&document, "proc"), "weaker", "{document:#}");
    assert_eq!(fix(&document, "proc"), "sudo mount -o remount,hidepid=0 /proc");
}

#[test]
fn a_check_that_cannot_be_made_is_no_answer() {
    needs!(Root, Program("unshare"));
    let world = World::new();
    world.sh("perflock --check >/dev/full").run().exits(125).says("perflock: cannot write: No space left on device\n");
    let script = "perflock=$(command -v perflock); mount -t tmpfs none /proc; exec \"$perflock\" --check";
    let done = world.in_mount_namespace(script).run().exits(125).prints("");
    assert!(done.stderr.starts_with("perflock: cannot read /proc (is it mounted?): "), "{}", done.stderr);
    for line in ["--check true", "--check --setup", "--check --cancel 1", "--json true", "--json"] {
        world.cmd("perflock").args(line.split(' ')).run().exits(125).prints("");
    }
    world.assert_clean();
}

#[test]
fn on_a_terminal_nothing_but_a_command_is_wider_than_it() {
    use unicode_width::UnicodeWidthStr;
    needs!(V2);
    let world = World::new();
    let lock = world.path(&format!("{}\u{1b}[2J", "long ".repeat(30)));
    let terminal = world.cmd("perflock --check --lock").arg(&lock).on_terminal_of((80, 24));
    terminal.wait_screen("promises works here");
    let text = String::from_utf8(terminal.bytes()).unwrap().replace("\r\n", "\n");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    let table: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).collect();
    assert!(table.len() > 15, "{text}");
    for line in text.lines().filter(|line| !line.starts_with("  fix   ")) {
        assert!(line.width() <= 80, "{}: {line}", line.width());
    }
}
