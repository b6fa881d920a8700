//! The report of a run: what is told of it on stderr and in a file, however it ended.

use std::fs;

use serde_json::{Value, json};

use crate::guard::{kill_both, stubborn};
use crate::harness::{Running, World, alive, me, pid_in, scope_backend, signal, source, wait_until};
use crate::needs;

/// A report that a run left in this file, once it was found to be as its schema says.
#[track_caller]
pub(crate) fn report(world: &World, file: &str) -> Value {
    let document = serde_json::from_str(&world.read(file)).unwrap_or_else(|e| panic!("{e}: {:?}", world.read(file)));
    let schema = serde_json::from_str(&source("config/report.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}\n{document:#}");
    document
}

/// What became of it, without what is `null`.
pub(crate) fn exit(report: &Value) -> Value {
    let known = report["exit"].as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
    known.map(|(name, value)| (name.clone(), value.clone())).collect()
}

pub(crate) fn usec(report: &Value, pointer: &str) -> u64 {
    report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {report:#}"))
}

/// Ends a job of `World::holder`.
fn end(holder: Running) {
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
}

#[test]
fn the_schemas_agree_on_what_they_share() {
    let schema = |name: &str| serde_json::from_str::<Value>(&source(name)).unwrap();
    let (ours, wholocks) = (schema("config/report.schema.json"), schema("config/wholock.schema.json"));
    for name in ["usage", "user", "mode", "command"] {
        assert!(ours["$defs"][name].is_object());
        assert_eq!(ours["$defs"][name], wholocks["$defs"][name], "{name}");
    }
}

#[test]
fn everything_is_told_of_a_job_that_ended_well() {
    needs!(V2);
    let world = World::new();
    // One child is waited for, one is not: both burn CPU time.
    let burn = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done";
    let script = format!(
        "sh -c '{burn}'; (trap '' TERM; {burn}; : > burnt; exec sleep 600) & \
         until [ -e burnt ] && grep -q sleep /proc/$!/comm; do sleep 0.01; done"
    );
    let done = world
        .cmd("perflock --report --report-file r --grace 0 -m nightly sh -c")
        .arg(&script)
        .run()
        .exits(0)
        .prints("");
    let report = report(&world, "r");
    assert_eq!(report["command"], json!(["sh", "-c", script]));
    assert_eq!(
        (&report["message"], &report["mode"], &report["user"]["name"]),
        (&"nightly".into(), &"exclusive".into(), &me().into())
    );
    assert_eq!((&report["number"], &report["lock"]), (&1.into(), &world.lock().to_str().into()));
    assert_eq!(exit(&report), json!({"reason": "exited", "code": 0}));
    assert_eq!(
        (&report["waited_behind"], &report["shared_with"], &report["escaped"]),
        (&json!([]), &json!([]), &json!([]))
    );
    assert_eq!(report["leftovers"]["count"], 1);
    assert_eq!(report["leftovers"]["named"][0]["name"], "sleep");
    assert_eq!(report["tracking"], if scope_backend() { "scope" } else { "v2" });
    // The child that nobody waited for is in the one count and not in the other.
    let (all, waited_for) = (
        usec(&report, "/usage/cpu_usec"),
        usec(&report, "/waited_for/user_usec") + usec(&report, "/waited_for/system_usec"),
    );
    assert!(all > waited_for + waited_for / 4, "{report:#}");
    assert!(usec(&report, "/held_usec") >= usec(&report, "/wall_usec"));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(report["machine"]["kernel"], format!("Linux {}", kernel.trim()));
    let allowed = fs::read_to_string("/proc/self/status").unwrap();
    let cpus = report["pins"]["cpus"].as_str().unwrap();
    assert!(allowed.contains(&format!("Cpus_allowed_list:\t{cpus}\n")), "{cpus}");
    // On a busy machine it takes time to join the queue, and that is told from a tenth of a second on.
    let waited = if usec(&report, "/waited_usec") < 100_000 { "not at all" } else { "" };
    // The same on stderr, with what surprises explained.
    for line in [
        "ended             exited with code 0",
        "message           nightly",
        "held              ",
        &format!("waited            {waited}"),
        "leftovers         1: sleep (",
        "escaped           none seen",
        "note              time(1) would tell ",
    ] {
        assert!(done.stderr.contains(&format!("\n  {line}")), "{line}\n{}", done.stderr);
    }
    assert!(done.stderr.contains("perflock: report of job 1: sh -c "), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn every_way_to_end_has_its_name() {
    needs!(V2);
    for (line, code, expected) in [
        ("sh -c|exit 3", Ok(3), json!({"reason": "exited", "code": 3})),
        ("sh -c|kill -9 $$", Err(9), json!({"reason": "signal", "signal": 9})),
        ("--time-limit 0.1 sleep|600", Ok(124), json!({"reason": "time-limit", "signal": 15})),
        (
            "no-such-program|x",
            Ok(127),
            json!({"reason": "failed", "error": "no-such-program: No such file or directory"}),
        ),
    ] {
        let world = World::new();
        let (options, argument) = line.split_once('|').unwrap();
        let done = world.cmd(&format!("perflock --report-file r {options}")).arg(argument).run();
        let done = match code {
            Ok(code) => done.exits(code),
            Err(signal) => done.dies_of(signal),
        };
        let mut told = exit(&report(&world, "r"));
        if let Some(error) = told.get_mut("error") {
            // The words are perflock's, and tested elsewhere; that it is the one which was said is tested here.
            assert!(done.stderr.contains(error.as_str().unwrap()), "{error} {}", done.stderr);
            *error = expected["error"].clone();
        }
        assert_eq!(told, expected, "{line}");
        world.assert_clean();
    }
}

#[test]
fn a_second_term_is_told_as_what_killed_it() {
    needs!(V2);
    let world = World::new();
    let job = world
        .cmd("perflock --report-file r sh -c")
        .arg("trap '' TERM; echo ready; while :; do sleep 0.01; done")
        .spawn();
    job.wait_stdout("ready\n");
    let start = std::time::Instant::now();
    // Copies within a second count as one.
    wait_until("the second TERM killed it", || {
        job.signal(libc::SIGTERM);
        std::thread::sleep(std::time::Duration::from_millis(100));
        world.tickets().is_empty()
    });
    assert!(start.elapsed().as_secs_f64() > 0.9);
    job.wait().dies_of(libc::SIGKILL);
    assert_eq!(exit(&report(&world, "r")), json!({"reason": "killed", "signal": 9}));
    world.assert_clean();
}

#[test]
fn a_cancelled_job_and_a_cancelled_waiter_say_by_whom() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock -q --report-file job sh -c").arg("echo running; exec sleep 600").spawn();
    job.wait_stdout("running\n");
    let waiter = world.waiter("2.x", world.cmd("perflock -q --report-file waiter -m second true"));
    for number in ["2", "1"] {
        world.cmd("perflock --cancel").arg(number).run().exits(0);
    }
    waiter.wait().dies_of(libc::SIGTERM);
    job.wait().dies_of(libc::SIGTERM);
    for (file, held) in [("job", true), ("waiter", false)] {
        let report = report(&world, file);
        assert_eq!(
            (&report["exit"]["reason"], &report["exit"]["cancelled_by"]["name"]),
            (&"cancelled".into(), &me().into())
        );
        assert_eq!(report["held_usec"].is_u64(), held, "{report:#}");
    }
    let waited = report(&world, "waiter");
    assert_eq!((&waited["number"], &waited["message"]), (&Value::Null, &"second".into()));
    assert_eq!(waited["waited_behind"][0]["command"], json!(["sh", "-c", "echo running; exec sleep 600"]));
    assert!(usec(&waited, "/waited_usec") > 0);
    world.assert_clean();
}

#[test]
fn whom_it_waited_for_is_told_in_the_order_of_the_queue() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let first = world.holder("perflock");
    let second = world.waiter("2.x", world.cmd("perflock -q sh -c").arg(": > second; exec sleep 600"));
    let waiter = world.waiter("3.x", world.cmd("perflock --report --report-file r true"));
    end(first);
    wait_until("the second runs", || world.path("second").exists());
    second.signal(libc::SIGTERM);
    second.wait().dies_of(libc::SIGTERM);
    let done = waiter.wait().exits(0);
    let report = report(&world, "r");
    assert_eq!(report["jobs_ahead"], 2);
    let numbers: Vec<&Value> = report["waited_behind"].as_array().unwrap().iter().map(|job| &job["number"]).collect();
    assert_eq!(numbers, [&json!(1), &json!(2)]);
    assert!(usec(&report, "/waited_usec") > 1000);
    assert!(done.stderr.contains(" behind 2 jobs; "), "{}", done.stderr);
    // Somebody who uses plain flock has no number.
    let flock = world.cmd("flock -F").arg(world.lock()).args(["sh", "-c", "echo locked; exec sleep 600"]).spawn();
    flock.wait_stdout("locked\n");
    let done = world.cmd("perflock -n --report-file r true").run().exits(75);
    assert!(done.stderr.contains("not waiting for lock"), "{}", done.stderr);
    let report = self::report(&world, "r");
    assert_eq!(exit(&report), json!({"reason": "lock-not-obtained"}));
    assert_eq!((&report["waited_behind"][0]["number"], &report["held_usec"]), (&Value::Null, &Value::Null));
    flock.signal(libc::SIGTERM);
    flock.wait();
}

#[test]
fn who_shared_the_machine_is_told() {
    needs!(V2);
    let world = World::new();
    let before = world.holder("pls");
    let job = world
        .cmd("pls --report --report-file r sh -c")
        .arg("echo running; until [ -e stop ]; do sleep 0.01; done")
        .spawn();
    job.wait_stdout("running\n");
    end(before);
    let after = world.holder("pls");
    world.write("stop", "");
    let done = job.wait().exits(0);
    let report = report(&world, "r");
    let numbers: Vec<&Value> = report["shared_with"].as_array().unwrap().iter().map(|job| &job["number"]).collect();
    assert_eq!(numbers, [&json!(1), &json!(3)], "{report:#}");
    assert!(done.stderr.contains("s shared, beside "), "{}", done.stderr);
    end(after);
    world.assert_clean();
}

#[test]
fn the_guard_of_a_killed_supervisor_writes_the_report() {
    needs!(V2, Program("perl"));
    for options in ["", "--cgroup none"] {
        let world = World::new();
        let job = stubborn(&world, &format!("{options} --report-file r"));
        job.signal(libc::SIGKILL);
        job.wait().dies_of(libc::SIGKILL);
        wait_until("the guard wrote", || world.read("r").ends_with('\n'));
        let report = report(&world, "r");
        assert_eq!(exit(&report), json!({"reason": "supervisor-lost"}));
        assert!(report["usage"]["cpu_usec"].as_u64().is_some_and(|usec| usec > 0) == options.is_empty(), "{report:#}");
        assert!(usec(&report, "/held_usec") > 0);
        assert_eq!((&report["number"], &report["waited_for"]), (&1.into(), &Value::Null));
        world.wait_clean();
    }
}

#[test]
fn an_earlier_report_is_not_taken_for_that_of_a_job_of_which_nothing_is_known() {
    needs!(V2, Program("perl"));
    let world = World::new();
    world.cmd("perflock --report-file r true").run().exits(0);
    assert_eq!(report(&world, "r")["exit"]["code"], 0);
    let job = stubborn(&world, "--report-file r");
    kill_both(&world, job);
    assert_eq!(world.read("r"), "");
    // The orphan is ended by the next one.
    world.cmd("perflock true").run().exits(0);
    world.assert_clean();
}

#[test]
fn a_file_that_cannot_be_written_is_found_out_before_anything_is_run() {
    needs!(V2);
    let world = World::new();
    let file = world.path("missing/r");
    let done =
        world.cmd("perflock --report-file").arg(&file).args(["sh", "-c", "echo ran"]).run().exits(125).prints("");
    assert_eq!(
        done.stderr,
        format!("perflock: cannot write the report to {}: No such file or directory\n", file.display())
    );
    world.assert_clean();
}

#[test]
fn a_full_disk_costs_the_report_and_nothing_else() {
    needs!(V2);
    let world = World::new();
    let done =
        world.cmd("perflock --report-file /dev/full sh -c").arg("echo ran; exit 3").run().exits(3).prints("ran\n");
    assert_eq!(done.stderr, "perflock: warning: cannot write the report to /dev/full: No space left on device\n");
    world.assert_clean();
}

/// Through /dev/stdout it comes after what the command wrote, whatever stdout is.
#[test]
fn the_report_can_go_where_the_command_s_output_goes() {
    needs!(V2);
    let world = World::new();
    world.sh("perflock --report-file /dev/stdout echo done > out").run().exits(0);
    let out = world.read("out");
    let (first, rest) = out.split_once('\n').unwrap();
    assert_eq!(first, "done");
    assert_eq!(serde_json::from_str::<Value>(rest).unwrap()["exit"]["code"], 0);
}

#[test]
fn the_command_has_no_descriptor_of_the_report() {
    needs!(V2);
    let world = World::new();
    let plain = world.cmd("perflock ls /proc/self/fd").run().exits(0).stdout;
    world.cmd("perflock --report-file r ls /proc/self/fd").run().exits(0).prints(&plain);
}

#[test]
fn a_job_inside_another_has_a_report_of_its_own() {
    needs!(V2);
    let world = World::new();
    world.cmd("perflock -q --report-file outer pls --report-file inner sh -c").arg("exit 4").run().exits(4);
    let (outer, inner) = (report(&world, "outer"), report(&world, "inner"));
    assert_eq!((&inner["inside"], &inner["number"]), (&outer["job"], &Value::Null));
    assert_eq!(
        (exit(&inner), exit(&outer)),
        (json!({"reason": "exited", "code": 4}), json!({"reason": "exited", "code": 4}))
    );
    assert_eq!(inner["escaped"], Value::Null);
    world.assert_clean();
}

#[test]
fn what_left_the_group_and_lives_on_is_named() {
    needs!(V2, OwnGroup);
    let world = World::new();
    let script = format!(
        "(echo 0 > {}/cgroup.procs; echo $(exec sh -c 'echo $PPID') > runaway; exec sleep 600) > /dev/null 2>&1 & until [ -s runaway ]; do sleep 0.01; done",
        world.group().display()
    );
    let done = world.cmd("perflock --report --report-file r sh -c").arg(script).run().exits(0);
    let runaway = pid_in(&world.path("runaway"));
    assert!(alive(runaway));
    let escaped = &report(&world, "r")["escaped"];
    let found: Vec<&Value> = escaped.as_array().unwrap().iter().map(|process| &process["pid"]).collect();
    assert_eq!(found, [&json!(runaway)], "{escaped}");
    assert!(done.stderr.contains(&format!("\n  escaped           sleep 600 ({runaway}, in ")), "{}", done.stderr);
    signal(runaway, libc::SIGKILL);
    wait_until("it is gone", || !alive(runaway));
    world.assert_clean();
}

#[test]
fn without_a_group_what_is_not_counted_is_not_said_to_be_nothing() {
    let world = World::new();
    let burn = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done";
    let done = world.cmd("perflock --cgroup none --report --report-file r sh -c").arg(burn).run().exits(0);
    let report = report(&world, "r");
    assert!(report["usage"].as_object().unwrap().values().all(Value::is_null), "{report:#}");
    assert!(usec(&report, "/waited_for/user_usec") > 0);
    assert_eq!((&report["tracking"], &report["cpu_average_percent"]), (&"subreaper".into(), &Value::Null));
    assert!(done.stderr.contains("\n  CPU time          at least "), "{}", done.stderr);
    assert!(
        done.stderr.contains("\n  note              at least: counted are processes that were waited for"),
        "{}",
        done.stderr
    );
    world.assert_clean();
}

#[test]
fn a_report_that_was_asked_for_is_printed_even_with_quiet() {
    needs!(V2);
    let world = World::new();
    let done = world.cmd("perflock -q --report true").run().exits(0);
    assert!(done.stderr.starts_with("perflock: report of job 1: true\n"), "{}", done.stderr);
}

#[test]
fn what_lives_on_counts_for_the_time_that_it_took() {
    needs!(V2);
    let world = World::new();
    // However little of a processor it gets, it ends when it has used a second.
    let script = "(ulimit -t 1; while :; do :; done) & :";
    world.cmd("perflock -q --leftovers wait --report-file r sh -c").arg(script).run().exits(0);
    let report = report(&world, "r");
    assert!(usec(&report, "/usage/cpu_usec") > usec(&report, "/wall_usec"), "{report:#}");
    let percent = report["cpu_average_percent"].as_f64().unwrap();
    assert!((1.0..120.0).contains(&percent), "{report:#}");
    world.assert_clean();
}
