//! The history: what is left of a job when it is over, who sees it, and what becomes of it on a machine that is hostile or full.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{ALICE, BOB, Cmd, World, source, wait_until};
use crate::needs;

/// A user's file.
fn file(world: &World, uid: u32) -> PathBuf {
    world.histories().join(format!("{uid}.jsonl"))
}

/// What it says.
#[track_caller]
fn lines(world: &World) -> Vec<Value> {
    let text = fs::read_to_string(file(world, world.uid())).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// What a program is told, once it was found to be as its schema says.
#[track_caller]
fn document(cmd: Cmd) -> Value {
    let done = cmd.run().exits(0);
    let document = serde_json::from_str(&done.stdout).unwrap();
    let schema = serde_json::from_str(&source("config/history.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}\n{document:#}");
    document
}

/// The numbers that jobs exited with, in their order.
fn codes(document: &Value) -> Vec<i64> {
    document["jobs"].as_array().unwrap().iter().map(|job| job["exit"]["code"].as_i64().unwrap()).collect()
}

/// A line of this user's that another program might have written.
fn line(world: &World, code: i32, started: &str) -> Value {
    json!({
        "version": 1, "job": "1-1-1-1", "number": 1, "uid": 0, "mode": "shared", "lock": world.lock(), "started": started,
        "waited_usec": 0, "held_usec": 5_000_000, "wall_usec": 5_000_000, "cpu_usec": null, "memory_peak_bytes": null,
        "exit": {"reason": "exited", "code": code, "signal": null}, "command": ["x"], "words_left_out": 0, "verdict": null,
    })
}

#[test]
fn every_job_that_ran_has_a_line_and_no_other_has() {
    needs!(V2);
    let world = World::new();
    world.cmd("perflock sh -c").arg("exit 3").run().exits(3).says("");
    world.cmd("pls --time-limit 0.1 sleep 600").run().exits(124);
    // Without the machine, without a program, and inside another job.
    world.cmd("perflock no-such-program").run().exits(127);
    let holder = world.holder("perflock");
    world.cmd("pls -n true").run().exits(75);
    world.cmd("perflock -w 0.1 true").run().exits(75);
    let waiter = world.waiter("2.s", world.cmd("pls sh -c").arg("pls true; kill -9 $$"));
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    waiter.wait().dies_of(libc::SIGKILL);
    let mut lines = lines(&world);
    // The holder's line is written when the waiter has the machine already.
    lines.sort_by_key(|line| line["started"].to_string());
    let exits: Vec<Value> =
        lines.iter().map(|line| json!([line["mode"], line["exit"]["reason"], line["exit"]["code"]])).collect();
    assert_eq!(
        exits,
        [
            json!(["exclusive", "exited", 3]),
            json!(["shared", "time-limit", null]),
            json!(["exclusive", "signal", null]),
            json!(["shared", "signal", null])
        ]
    );
    let (first, last) = (&lines[0], &lines[3]);
    // Too short to be judged.
    assert_eq!(first["verdict"], "unknown");
    assert_eq!(first["command"], json!(["sh", "-c", "exit 3"]));
    assert_eq!(first["lock"], world.lock().to_str().unwrap());
    let usec = |line: &Value, name: &str| line[name].as_u64().unwrap_or_else(|| panic!("{name}: {line}"));
    for line in &lines {
        assert!(usec(line, "held_usec") >= usec(line, "wall_usec") && usec(line, "wall_usec") > 0, "{line}");
        assert!(usec(line, "cpu_usec") > 0, "{line}");
    }
    assert!(usec(&lines[1], "wall_usec") >= 100_000, "{}", lines[1]);
    assert!(usec(last, "waited_usec") > 0 && usec(first, "held_usec") > 0, "{first} {last}");
    world.assert_clean();
}

#[test]
fn users_see_each_other_s_jobs_and_their_shares() {
    needs!(Root, V2);
    let world = World::for_uid(ALICE);
    world.cmd("perflock sh -c").arg("exit 4").run().exits(4).says("");
    world.cmd("pls --cgroup none true").uid(BOB).run().exits(0).says("");
    for (uid, count) in [(ALICE, 1), (BOB, 1)] {
        let metadata = fs::metadata(file(&world, uid)).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (uid, 0o644));
        assert_eq!(fs::read_to_string(file(&world, uid)).unwrap().lines().count(), count);
    }
    // Whoever looks.
    let seen = |line: &str| document(world.cmd(line).uid(BOB));
    let all = seen("wholock --history --json");
    assert_eq!((codes(&all), &all["lines_skipped"]), (vec![4, 0], &json!(0)));
    let users: Vec<&Value> = all["users"].as_array().unwrap().iter().map(|share| &share["user"]["uid"]).collect();
    assert_eq!(users, [ALICE, BOB]);
    assert!(all["users"][0]["exclusive_usec"].as_u64() > Some(0) && all["users"][0]["shared_usec"] == 0, "{all:#}");
    assert_eq!(codes(&seen(&format!("wholock --history --json --user {BOB}"))), [0]);
    let table = world.cmd("wholock --history").uid(BOB).run().exits(0).says("").stdout;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["USER", "MODE", "STARTED", "WAITED", "HELD", "CPU", "TIME", "EXIT", "COMMAND"]);
    assert_eq!((rows[1][0], rows[1][1]), (&*ALICE.to_string(), "exclusive"), "{table}");
    assert_eq!(rows[1][7..], ["4", "sh", "-c", "'exit", "4'"], "{table}");
    assert_eq!(rows[2][7..], ["0", "true"], "{table}");
    assert_eq!(rows[4], ["USER", "JOBS", "ALONE", "SHARED", "WAITED", "CPU", "TIME"], "{table}");
    assert_eq!((rows[5][0], rows[5][1], rows[6][0]), (&*ALICE.to_string(), "1", &*BOB.to_string()), "{table}");
    // A file that its owner keeps from being read, by a lease, takes nobody else's from those who look.
    let hers = fs::OpenOptions::new().write(true).open(file(&world, ALICE)).unwrap();
    // SAFETY: a lease on an open file; no memory is involved.
    assert_eq!(unsafe { libc::fcntl(hers.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) }, 0);
    // SAFETY: ignoring a signal runs no code. It is what asks for the lease back.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let done = world.cmd("wholock --history --json").uid(BOB).run().exits(0);
    assert!(done.stderr.ends_with(" temporarily unavailable; the jobs in it are not shown\n"), "{}", done.stderr);
    assert_eq!(codes(&serde_json::from_str(&done.stdout).unwrap()), [0]);
    drop(hers);
    // A directory that is closed to others is read by none of them.
    fs::set_permissions(world.histories(), fs::Permissions::from_mode(0o1770)).unwrap();
    let done = world.cmd("wholock --history").uid(BOB).run().exits(0);
    done.prints("no job has ended here, as far as the history goes\n").mentions(": Permission denied; the jobs in it ");
    world.cmd("wholock --history --user nobody-at-all").run().exits(125).mentions("there is no user nobody-at-all");
}

#[test]
fn a_job_of_a_lock_that_others_may_not_use_is_not_shown_to_them() {
    needs!(Root, V2);
    let world = World::for_uid(ALICE);
    world.cmd("perflock --cgroup none true").uid(BOB).run().exits(0).says("");
    fs::create_dir(world.path("state")).unwrap();
    for hers in [world.lock(), world.path("state")] {
        std::os::unix::fs::chown(hers, Some(ALICE), None).unwrap();
    }
    fs::set_permissions(world.lock(), fs::Permissions::from_mode(0o660)).unwrap();
    world.cmd("perflock sh -c").arg("exit 4").run().exits(4).says("");
    let seen = |uid| codes(&document(world.cmd("wholock --history --json").uid(uid)));
    assert_eq!((seen(ALICE), seen(BOB)), (vec![0, 4], vec![0]));
    assert!(!file(&world, ALICE).exists());
}

#[test]
fn a_time_and_a_lock_are_kept_apart() {
    needs!(V2);
    let world = World::new();
    let own = file(&world, world.uid());
    let other = json!({"lock": "/elsewhere"});
    let mut elsewhere = line(&world, 9, "2020-01-01T00:00:00Z");
    elsewhere["lock"] = other["lock"].clone();
    // The clock was set back since: what comes later than now is not long ago.
    let lines = [line(&world, 1, "2020-01-01T00:00:00Z"), elsewhere, line(&world, 2, "2099-01-01T00:00:00Z")];
    fs::write(&own, lines.map(|line| format!("{line}\n")).concat()).unwrap();
    world.cmd("perflock true").run().exits(0);
    let seen = |line: &str| codes(&document(world.cmd(line)));
    assert_eq!(seen("wholock --history --json"), [1, 0, 2]);
    assert_eq!(seen("wholock --history --json --since 2h"), [0, 2]);
    assert_eq!(seen("wholock --history --json --lock /elsewhere"), [9]);
    let none = world.cmd("wholock --history --lock /nowhere").run().exits(0);
    none.prints("no job has ended here, as far as the history goes\n").says("");
}

#[test]
fn where_there_is_no_directory_it_is_the_user_s_own() {
    needs!(V2);
    let world = World::new();
    fs::remove_dir(world.histories()).unwrap();
    world.cmd("perflock true").run().exits(0).says("");
    let own = world.path("state/perflock/history.jsonl");
    assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o600);
    assert_eq!(codes(&document(world.cmd("wholock --history --json"))), [0]);
    // Nor has everybody a home.
    let config = world.path(".config/perflock/config.toml");
    let homeless = |line: &str| {
        world.cmd(line).env_remove("XDG_STATE_HOME").env("HOME", "/dev/null").env("PERFLOCK_CONFIG", &config)
    };
    homeless("perflock true").run().exits(0).says("");
    homeless("perflock -v true").run().exits(0).mentions("perflock: there is no place for a history");
    fs::remove_dir_all(world.path("state")).unwrap();
    world.cmd("perflock true").env_remove("XDG_STATE_HOME").run().exits(0).says("");
    assert!(world.path(".local/state/perflock/history.jsonl").exists());
}

#[test]
fn none_is_kept_where_none_is_wanted_and_all_of_a_command_where_that_is() {
    needs!(V2);
    let world = World::new();
    let config = |text: &str| {
        world.write("c.toml", &format!("[history]\ndirectory = '{}'\n{text}\n", world.histories().display()))
    };
    let words = ["env", "TOKEN=s3cret-1", "sh", "-c", ": s3cret-2"];
    let run =
        |config: PathBuf| world.cmd("perflock").args(words).env("PERFLOCK_CONFIG", config).run().exits(0).says("");
    run(config("size = 'none'"));
    assert!(!file(&world, world.uid()).exists() && !world.path("state").exists());
    run(config(""));
    let short = lines(&world);
    assert_eq!((&short[0]["command"], &short[0]["words_left_out"]), (&json!(["env", "TOKEN=…", "sh"]), &json!(2)));
    assert!(!fs::read_to_string(file(&world, world.uid())).unwrap().contains("s3cret"));
    run(config("command = 'full'"));
    assert_eq!(lines(&world)[1]["command"], json!(words));
}

#[test]
fn a_job_whose_supervisor_is_killed_is_told_of_by_its_guard() {
    needs!(V2);
    let world = World::new();
    let job = world.holder("perflock");
    job.signal(libc::SIGKILL);
    job.wait().dies_of(libc::SIGKILL);
    wait_until("the guard has written", || !lines(&world).is_empty());
    let lines = lines(&world);
    assert_eq!(lines[0]["exit"], json!({"reason": "supervisor-lost", "code": null, "signal": null}));
    assert_eq!((&lines[0]["wall_usec"], &lines[0]["command"][0]), (&Value::Null, &json!("sh")));
    assert!(lines[0]["held_usec"].as_u64() > Some(0) && lines[0]["cpu_usec"].as_u64() > Some(0), "{lines:?}");
    world.wait_clean();
    assert!(world.cmd("wholock --history").run().exits(0).stdout.contains("supervisor lost"));
}

#[test]
fn a_history_that_is_full_is_begun_anew_and_both_are_read() {
    needs!(V2);
    let world = World::new();
    let old = line(&world, 1, "2020-01-01T00:00:00Z");
    let own = file(&world, world.uid());
    fs::write(&own, format!("{old}\n").repeat(40)).unwrap();
    let text = format!("[history]\ndirectory = '{}'\nsize = '16K'\n", world.histories().display());
    let config = world.write("c.toml", &text);
    for _ in 0..2 {
        assert!(fs::metadata(&own).unwrap().len() < 16 << 10);
        let full = format!("{old}\n").repeat(20);
        fs::OpenOptions::new()
            .append(true)
            .open(&own)
            .and_then(|mut file| std::io::Write::write_all(&mut file, full.as_bytes()))
            .unwrap();
        world.cmd("perflock true").env("PERFLOCK_CONFIG", &config).run().exits(0).says("");
        if world.histories().join(format!("{}.jsonl.1", world.uid())).exists() {
            break;
        }
    }
    assert_eq!(lines(&world).len(), 1);
    let all = document(world.cmd("wholock --history --json"));
    assert!(all["jobs"].as_array().unwrap().len() > 40, "{all}");
    assert_eq!(codes(&all).last(), Some(&0));
}

#[test]
fn hostile_lines_are_skipped_with_one_notice() {
    needs!(V2);
    let world = World::new();
    let hostile = [
        "\u{1b}[2J\u{1b}]0;owned\u{7}".to_owned(),
        "{".repeat(5000),
        format!("[{}]", "[".repeat(5000)),
        line(&world, 1, "never").to_string(),
        line(&world, 1, "2020-01-01T00:00:00Z").to_string().replace("5000000", "18446744073709551615"),
        line(&world, 1, "2020-01-01T00:00:00Z").to_string().replace("\"version\":1", "\"version\":-1"),
        "\0".repeat(300),
        "x".repeat(100_000),
    ];
    // Sound, but its text is not.
    let mut loud = line(&world, 7, "2020-01-01T00:00:00Z");
    loud["command"] = json!(["\u{1b}[2J\n\u{202e}"]);
    let mut text: String = hostile.iter().cycle().take(10_000).map(|line| format!("{line}\n")).collect();
    text.push_str(&format!("{loud}\n{{\"version\":1,\"job\":\"torn"));
    let own = file(&world, world.uid());
    // More than is read of a file: the end of it counts.
    assert!(text.len() > 16 << 20);
    fs::write(&own, text).unwrap();
    world.cmd("perflock true").run().exits(0).says("");
    let done = world.cmd("wholock --history").run().exits(0);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    let notice = done.stderr.trim_end();
    assert!(notice.starts_with("wholock: skipped ") && notice.ends_with(&format!("({}.1)", own.display())), "{notice}");
    assert!(!done.stdout.chars().any(|c| c.is_control() && c != '\n'), "{:?}", done.stdout);
    let all = document(world.cmd("wholock --history --json"));
    assert_eq!(codes(&all), [7, 0]);
    assert!(all["lines_skipped"].as_u64() > Some(1000), "{}", all["lines_skipped"]);
}

#[test]
fn what_others_put_in_a_user_s_place_is_not_written_to() {
    needs!(Root, V2);
    let world = World::for_uid(ALICE);
    let own = file(&world, ALICE);
    let target = world.write("target", "");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = |why: &str| {
        let done = world.cmd("perflock sh -c").arg("exit 3").run().exits(3).prints("");
        let warning = format!("perflock: warning: cannot write history to {}: ", own.display());
        assert!(done.stderr.starts_with(&warning) && done.stderr.contains(why), "{}", done.stderr);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        // Nor is it read.
        let read = world.cmd("wholock --history --user").arg(ALICE.to_string()).run().exits(0).says("");
        read.prints("no job has ended here, as far as the history goes\n");
        fs::remove_file(&own).unwrap();
    };
    symlink(&target, &own).unwrap();
    refused("symbolic links");
    for mode in [0o666, 0o600] {
        fs::write(&own, format!("{}\n", line(&world, 5, "2020-01-01T00:00:00Z"))).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&own, Some(BOB), None).unwrap();
        refused("root can remove it");
    }
    nix::unistd::mkfifo(&own, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o666)).unwrap();
    refused("No such device or address");
    assert_eq!(fs::read(&target).unwrap(), b"");
    world.cmd("perflock true").run().exits(0).says("");
    assert_eq!(lines(&world).len(), 1);
    world.assert_clean();
}

#[test]
fn a_full_disk_costs_a_line_and_a_warning_and_nothing_else() {
    needs!(Root, V2, Program("unshare"));
    let world = World::new();
    // The second job finds space again, behind what the first one could write of its line.
    let script = "mount -t tmpfs -o size=16k,mode=1777 none histories; head -c 12200 /dev/zero | tr '\\0' '\\n' >histories/0.jsonl; \
                  head -c 4096 /dev/zero >histories/fill; perflock sh -c 'exit 3' || echo $?; rm histories/fill; perflock true; \
                  wholock --history --json; mount -o remount,ro histories; perflock sh -c 'exit 4' || echo $?";
    let done = world.in_mount_namespace(script).run().exits(0);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!((lines[0], lines[2]), ("3", "4"), "{}", done.stdout);
    assert_eq!(codes(&serde_json::from_str(lines[1]).unwrap()), [0], "{}", lines[1]);
    let own = file(&world, 0);
    let warning = |why: &str| format!("perflock: warning: cannot write history to {}: {why}\n", own.display());
    let skipped = format!("wholock: skipped 1 line of history that makes no sense ({})\n", own.display());
    done.says(&(warning("No space left on device") + &skipped + &warning("Read-only file system")));
    world.assert_clean();
}

#[test]
fn a_limit_of_file_sizes_costs_a_line_and_a_warning_and_nothing_else() {
    needs!(V2);
    let world = World::new();
    fs::write(file(&world, world.uid()), "\n".repeat(64 << 10)).unwrap();
    let done = world.sh("ulimit -f 40; perflock sh -c 'exit 3'").run().exits(3);
    let why = format!("cannot write history to {}: File too large\n", file(&world, world.uid()).display());
    done.says(&format!("perflock: warning: {why}"));
}

#[test]
fn lines_of_jobs_that_end_at_once_do_not_mix() {
    needs!(V2);
    let world = World::new();
    let script = "for i in 1 2 3 4 5 6 7 8; do (for j in 1 2 3; do pls -q sh -c ': a b c'; done) & done; wait";
    world.sh(script).run().exits(0).says("");
    let commands: Vec<Value> = lines(&world).iter().map(|line| line["command"].clone()).collect();
    assert_eq!(commands, vec![json!(["sh", "-c", ": a…"]); 24]);
    world.assert_clean();
}

#[test]
fn a_waiter_is_told_when_it_may_start_and_that_this_is_a_guess() {
    needs!(V2);
    let world = World::new();
    // What `World::holder` runs, and what waits.
    let run = |command: Value, minutes: u64, code: i32| {
        let mut run = line(&world, code, "2020-01-01T00:00:00Z");
        (run["mode"], run["command"], run["held_usec"]) = (json!("exclusive"), command, json!(minutes * 60_000_000));
        format!("{run}\n")
    };
    let (held, waits) = (json!(["sh", "-c", "echo running;…"]), json!(["sleep", "0.01"]));
    let mut text: String = [12, 14, 16].map(|minutes| run(held.clone(), minutes, 0)).concat();
    // Those that failed tell nothing.
    text.push_str(&run(held.clone(), 1, 1).repeat(5));
    text.push_str(&run(waits.clone(), 60, 0).repeat(2));
    // Nor do those beside others, or under another lock.
    for (name, value) in [("mode", json!("shared")), ("lock", json!("/elsewhere"))] {
        let mut other: Value = serde_json::from_str(&run(held.clone(), 90, 0)).unwrap();
        other[name] = value;
        text.push_str(&format!("{other}\n").repeat(9));
    }
    fs::write(file(&world, world.uid()), &text).unwrap();
    let holder = world.holder("perflock");
    let first = world.waiter("2.x", world.cmd("perflock sleep 0.01"));
    first.wait_stderr("behind 1 job; ");
    let said = first.stderr();
    assert!(said.ends_with("s); start in about 14m (a guess from 3 runs)\n"), "{said}");
    // Of the one before it two runs are too few.
    let second = world.waiter("3.x", world.cmd("perflock true"));
    second.wait_stderr("behind 2 jobs; ");
    assert!(!second.stderr().contains("start in"), "{}", second.stderr());
    let quiet = |text: &str| {
        let done = world.cmd("wholock --sample 0").run().exits(0).says("");
        let told: Vec<&str> = done.stdout.lines().filter(|line| line.contains("starts in")).collect();
        assert_eq!(told.join("\n"), text, "{}", done.stdout);
    };
    quiet("job 2 starts in about 14m (a guess from 3 runs)");
    fs::write(file(&world, world.uid()), text + &run(waits, 60, 0)).unwrap();
    quiet("job 2 starts in about 14m (a guess from 3 runs)\njob 3 starts in about 1h 14m (a guess from 3 runs)");
    let document = world.cmd("wholock --sample 0 --json").run().exits(0).stdout;
    let document: Value = serde_json::from_str(&document).unwrap();
    let schema = serde_json::from_str(&source("config/wholock.schema.json")).unwrap();
    assert!(jsonschema::draft202012::new(&schema).unwrap().is_valid(&document), "{document:#}");
    let start = |index: usize| document["waiters"][index]["expected_start"].clone();
    assert_eq!((&start(0)["runs"], &start(0)["spread_usec"]), (&json!(3), &json!(240_000_000)));
    assert!(start(1)["after_usec"].as_u64() > start(0)["after_usec"].as_u64(), "{document:#}");
    assert_eq!(document["holders"][0]["expected_start"], Value::Null);
    let full = world.cmd("wholock --sample 0 3").run().exits(0).stdout;
    assert!(full.contains("expected start    in about 1h 14m (a guess from 3 runs), "), "{full}");
    // A plain flock is in nobody's order.
    let flock = world.cmd("flock").arg(world.lock()).arg("true").spawn();
    wait_until("flock waits", || world.cmd("wholock --sample 0").run().stdout.contains("(flock)"));
    quiet("");
    drop(flock);
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    first.wait().exits(0);
    second.wait().exits(0);
    world.assert_clean();
}

#[test]
fn a_waiter_is_told_nothing_where_one_ahead_is_stopped_or_not_in_the_queue() {
    needs!(V2);
    let world = World::new();
    let mut run = line(&world, 0, "2020-01-01T00:00:00Z");
    run["mode"] = json!("exclusive");
    run["held_usec"] = json!(600_000_000);
    let mut text = String::new();
    for command in [json!(["sh", "-c", "echo running;…"]), json!(["sleep", "--x=…"])] {
        run["command"] = command;
        text.push_str(&format!("{run}\n").repeat(3));
    }
    fs::write(file(&world, world.uid()), text).unwrap();
    let holder = world.holder("perflock");
    // Two commands with one short form, each of which is known by it.
    let mut waiters = Vec::new();
    for (ticket, command) in [("2.x", "perflock sleep --x=1"), ("3.x", "perflock sleep --x=2")] {
        waiters.push(world.waiter(ticket, world.cmd(command)));
    }
    // Who comes last, and gives up.
    let told = || {
        let waiter = world.cmd("perflock true").spawn();
        waiter.wait_stderr("behind 3 jobs; ");
        waiter.signal(libc::SIGTERM);
        let done = waiter.wait().dies_of(libc::SIGTERM);
        done.stderr.lines().next().and_then(|line| line.split_once("; start in ")).map(|(_, start)| start.to_owned())
    };
    let start = told().unwrap();
    assert!(start.starts_with("about 30m (a guess from 3 runs)"), "{start}");
    let is_stopped = || fs::read_to_string(format!("/proc/{}/stat", holder.pid())).unwrap().contains(") T ");
    holder.signal(libc::SIGSTOP);
    wait_until("the holder is stopped", is_stopped);
    assert_eq!(told(), None);
    holder.signal(libc::SIGCONT);
    wait_until("the holder goes on", || !is_stopped());
    assert!(told().is_some());
    let flock = world.cmd("flock").arg(world.lock()).arg("true").spawn();
    wait_until("flock waits", || world.cmd("wholock --sample 0").run().stdout.contains("(flock)"));
    assert_eq!(told(), None);
    drop(flock);
    for waiter in waiters {
        waiter.signal(libc::SIGTERM);
        waiter.wait().dies_of(libc::SIGTERM);
    }
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}
