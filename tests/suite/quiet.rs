//! Whether the machine was quiet: who is told of that used it beside a job, and what `--require-quiet` makes of it. Each test has
//! users of its own, and other tests use the machine as well: nothing here depends on what these do.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Cmd, Done, Running, World, wait_until};
use crate::needs;
use crate::report::report;

/// Nothing but work.
const BURN: &str = "while :; do :; done";

/// Nothing but short processes.
const STORM: &str = "while :; do /bin/true; done";

/// As much as no machine can use elsewhere.
const ANY: &str = "100000%";

/// A job long enough to be judged.
const JOB: [&str; 2] = ["sleep", "1.05"];

/// A world in which jobs are judged.
fn judging(limit: &str) -> World {
    let world = World::new();
    world.judge_quiet(limit);
    world
}

/// The verdict in the report of a run that ended well.
#[track_caller]
fn verdict(world: &World, cmd: Cmd) -> Value {
    cmd.run().exits(0);
    report(world, "r")["verdict"].clone()
}

/// What is said of this user; `null` if nothing.
fn of_user(verdict: &Value, uid: u32) -> Value {
    let by = verdict["by"].as_array().unwrap();
    by.iter().find(|culprit| culprit["uid"] == uid).cloned().unwrap_or_default()
}

/// Runs jobs until one is told to be disturbed by this user. Other tests may use so much that it is not one of the three.
#[track_caller]
fn disturbed_by(world: &World, uid: u32) -> Value {
    let mut told = Value::Null;
    wait_until("the culprit is named", || {
        told = verdict(world, world.cmd("perflock --report-file r").args(JOB));
        told["word"] == "disturbed" && !of_user(&told, uid).is_null()
    });
    let all: u64 = told["by"].as_array().unwrap().iter().map(|culprit| culprit["cpu_usec"].as_u64().unwrap()).sum();
    assert!(told["elsewhere_usec"].as_u64().unwrap() >= all && told["why"].is_null(), "{told:#}");
    of_user(&told, uid)
}

fn end(culprit: Running) {
    culprit.signal(libc::SIGKILL);
    culprit.wait().dies_of(libc::SIGKILL);
}

/// The same job in a cgroup namespace: what runs outside of the world's group is not seen, so that only the test's own is.
fn contained(world: &World, line: &str, script: &str) -> Cmd {
    let mount = world.cgroup_mount();
    let inside = format!("umount {0}; mount -t cgroup2 cgroup2 {0}; exec {line} sh -c \"$1\"", mount.display());
    world.cmd("unshare --mount --cgroup --propagation private sh -ec").arg(inside).arg("sh").arg(script).uid(0)
}

#[test]
fn another_user_s_busy_loop_is_named_wherever_it_runs() {
    needs!(Root, V2, OwnGroup);
    for (uid, in_root) in [(41_031, false), (41_032, true)] {
        let world = judging("1%");
        let cmd = world.sh(&format!("echo running; {BURN}")).uid(uid);
        let cmd = if in_root { cmd.in_group(&world.cgroup_mount()) } else { cmd };
        let burner = cmd.spawn();
        burner.wait_stdout("running\n");
        let culprit = disturbed_by(&world, uid);
        assert_eq!((&culprit["kind"], &culprit["name"]), (&json!("user"), &json!(uid.to_string())), "{culprit:#}");
        assert_eq!(culprit["programs"][0]["name"], "sh", "{culprit:#}");
        // In a group it is not known what it had used before.
        assert_eq!(culprit["programs"][0]["at_most"], !in_root, "{culprit:#}");
        assert_eq!(culprit["group"].is_null(), in_root, "{culprit:#}");
        end(burner);
        world.assert_clean();
    }
}

#[test]
fn a_storm_of_short_processes_is_its_shell_s() {
    needs!(Root, V2, OwnGroup);
    const UID: u32 = 41_033;
    let world = judging("1%");
    let storm = world.sh(&format!("echo running; {STORM}")).uid(UID).spawn();
    storm.wait_stdout("running\n");
    let culprit = disturbed_by(&world, UID);
    assert!(culprit["programs"].as_array().unwrap().iter().any(|program| program["name"] == "sh"), "{culprit:#}");
    end(storm);
    wait_until("its last child has ended", || world.processes().is_empty());
    world.assert_clean();
}

#[test]
fn a_disturbed_job_says_so_though_it_is_to_be_quiet() {
    needs!(Root, V2, OwnGroup, Program("unshare"));
    const UID: u32 = 41_034;
    let world = judging("1%");
    let burner = world.sh(&format!("echo running; {BURN}")).uid(UID).spawn();
    burner.wait_stdout("running\n");
    let said = |done: Done, start: &str, end: &str| {
        let line = done.stderr.strip_prefix(start).unwrap_or_else(|| panic!("{}", done.stderr));
        let (seconds, by) = line.split_once(" core-seconds by ").unwrap_or_else(|| panic!("{line}"));
        assert!(seconds.parse::<f64>().is_ok_and(|seconds| seconds > 0.0), "{line}");
        assert!(by.starts_with("41034 (sh up to ") && by.ends_with(end), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    };
    let run = |options: &str, script: &str| contained(&world, &format!("perflock {options}"), script).run();
    let warning = "perflock: warning: the machine was not quiet: ";
    said(run("-q", "sleep 1.05").exits(0), warning, ")\n");
    said(run("-q --require-quiet", "sleep 1.05; exit 3").exits(3), warning, ")\n");
    let status = "); exit status 76 (--require-quiet)\n";
    said(run("--require-quiet", "sleep 1.05").exits(76), "perflock: the machine was not quiet: ", status);
    // Whoever shares the machine does not expect to be alone.
    contained(&world, "pls", "sleep 1.05").run().exits(0).says("");
    let told = verdict(&world, contained(&world, "pls --report-file r", "sleep 1.05"));
    assert_eq!((&told["word"], &told["by"][0]["uid"]), (&json!("disturbed"), &json!(UID)), "{told:#}");
    let done = contained(&world, "perflock --report", "sleep 1.05").run().exits(0);
    assert!(done.stderr.contains("\n  machine was       disturbed: "), "{}", done.stderr);
    end(burner);
    world.assert_clean();
}

#[test]
fn what_a_job_burns_itself_is_no_disturbance() {
    needs!(Root, V2, OwnGroup, Program("unshare"));
    let world = judging("5%");
    // On every processor, by short processes, through a pipe, and from a process that nobody waits for.
    let script = format!(
        "for i in 1 2 3; do timeout 1.3 sh -c '{BURN}' & done; timeout 1.3 sh -c '{STORM}' & \
         timeout 1.3 cat /dev/zero | cat >/dev/null & (setsid timeout 1.3 sh -c '{BURN}' &) ; sleep 1.6"
    );
    let told = verdict(&world, contained(&world, "perflock --report-file r", &script));
    // In a container nobody knows what runs outside, but what is seen inside is known.
    let why = "what runs outside of this container cannot be seen";
    assert_eq!((&told["word"], &told["why"], &told["by"]), (&json!("unknown"), &json!(why), &json!([])), "{told:#}");
    assert!(told["elsewhere_usec"].as_u64().unwrap() < 100_000, "{told:#}");
    world.assert_clean();
}

#[test]
fn a_machine_on_which_little_enough_is_used_is_quiet() {
    needs!(V2);
    let world = judging(ANY);
    for options in ["", "--cgroup none"] {
        let told = verdict(&world, world.cmd(&format!("perflock --require-quiet --report-file r {options}")).args(JOB));
        assert_eq!((&told["word"], &told["why"], &told["by"]), (&json!("quiet"), &Value::Null, &json!([])), "{told:#}");
        assert!(told["apart"].is_object());
    }
    world.cmd("perflock --require-quiet").args(JOB).run().exits(0).says("");
    let done = world.cmd("perflock --report").args(JOB).run().exits(0);
    assert!(done.stderr.contains("\n  machine was       quiet (but for "), "{}", done.stderr);
    world.cmd("perflock -v").args(JOB).run().exits(0).mentions("perflock: the machine was quiet\n");
    world.assert_clean();
}

#[test]
fn what_is_not_known_is_not_quiet() {
    needs!(V2);
    let world = judging(ANY);
    let unknown = |why: &str| {
        format!("perflock: it is not known whether the machine was quiet: {why}; exit status 76 (--require-quiet)\n")
    };
    let short = "it took less than 1s";
    world.cmd("perflock --require-quiet true").run().exits(76).says(&unknown(short));
    world.cmd("perflock true").run().exits(0).says("");
    world.cmd("perflock -v true").run().exits(0).mentions(&format!("whether the machine was quiet: {short}\n"));
    // Whatever else went wrong is what the exit code tells.
    world.cmd("perflock --require-quiet false").run().exits(1).says("");
    world.cmd("perflock --require-quiet --time-limit 0.1 sleep 600").run().exits(124);
    world.cmd("perflock --require-quiet sh -c").arg("kill -9 $$").run().dies_of(libc::SIGKILL);
    let told = verdict(&world, world.cmd("perflock --report-file r true"));
    assert_eq!((&told["word"], &told["why"]), (&json!("unknown"), &json!(short)));
    assert_eq!((&told["elsewhere_usec"], &told["by"], &told["apart"]), (&Value::Null, &json!([]), &Value::Null));
    // A job within one is a part of it.
    let script = "pls --report-file r sleep 1.05; pls --require-quiet echo ran; echo $?";
    let done = world.cmd("perflock sh -c").arg(script).run().exits(0).prints("125\n");
    let inside = "it ran inside job 1, whose verdict counts";
    done.says("pls: this runs inside job 1, whose verdict counts: give --require-quiet to that one\n");
    assert_eq!(report(&world, "r")["verdict"]["why"], inside);
    // Where nobody looks, nobody knows.
    world.judge_quiet("none");
    let nobody = "nobody looked (quiet-limit = \"none\")";
    world.cmd("perflock --require-quiet").args(JOB).run().exits(76).says(&unknown(nobody));
    assert_eq!(verdict(&world, world.cmd("perflock --report-file r").args(JOB)), Value::Null);
    world.assert_clean();
}

#[test]
fn a_guard_s_report_knows_no_verdict() {
    needs!(V2);
    let world = judging(ANY);
    let job = world.cmd("perflock --report-file r sh -c").arg("echo running; exec sleep 600").spawn();
    job.wait_stdout("running\n");
    job.signal(libc::SIGKILL);
    job.wait().dies_of(libc::SIGKILL);
    wait_until("the guard has written the report", || world.read("r").ends_with('\n'));
    let told = report(&world, "r")["verdict"].clone();
    assert_eq!((&told["word"], &told["why"]), (&json!("unknown"), &json!("perflock was killed")));
    world.wait_clean();
}

#[test]
fn a_culprit_s_name_does_not_write_to_the_terminal() {
    needs!(Root, V2, OwnGroup, Program("unshare"));
    let world = judging("1%");
    // A process is called as its file, the first 15 bytes of that.
    world.script("a\x1b[2J\u{9b}\nb", &format!("#!/bin/sh\necho running\n{BURN}\n"));
    let burner = world.sh("exec \"$0\"").arg(world.path("a\x1b[2J\u{9b}\nb")).uid(41_035).spawn();
    burner.wait_stdout("running\n");
    let done = contained(&world, "perflock", "sleep 1.05").run().exits(0);
    assert!(done.stderr.contains(r" by 41035 (a\u{1b}[2J\u{9b}\nb up to "), "{:?}", done.stderr);
    assert!(!done.stderr.trim_end().chars().any(char::is_control), "{:?}", done.stderr);
    end(burner);
    world.assert_clean();
}

#[test]
fn counters_that_cannot_be_read_are_no_quiet_machine() {
    needs!(Root, V2, OwnGroup, Program("unshare"));
    let world = judging(ANY);
    world.write("empty", "");
    // That directly below the root: what is below that is read only for names.
    let top = world.group().strip_prefix(world.cgroup_mount()).unwrap().iter().next().unwrap();
    let group = Path::new("/").join(top);
    let file = world.cgroup_mount().join(top).join("cpu.stat");
    let script = format!("mount --bind empty {}; exec perflock --require-quiet sleep 1.05", file.display());
    let said = format!(
        "perflock: it is not known whether the machine was quiet: the group {} cannot be read: it has no counter of CPU \
         time; exit status 76 (--require-quiet)\n",
        group.display()
    );
    world.in_mount_namespace(&script).run().exits(76).says(&said);
    world.assert_clean();
}
