//! What each job uses: `wholock --json`, `--tree`, and one job in full.

use crate::harness::{Cmd, World, me, pid_in, source, wait_until};
use crate::needs;

/// What `wholock --json` says, once it was found to be as its schema says.
#[track_caller]
fn as_json(world: &World) -> serde_json::Value {
    json_of(world.cmd("wholock --json --sample 10ms"))
}

/// The same for any such command.
#[track_caller]
pub(crate) fn json_of(cmd: Cmd) -> serde_json::Value {
    let done = cmd.run().exits(0).says("");
    let document = serde_json::from_str(&done.stdout).unwrap();
    let schema = serde_json::from_str(&source("config/wholock.schema.json")).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}\n{document:#}");
    document
}

#[test]
fn json_is_as_its_schema_says_in_every_state() {
    needs!(V2, Program("flock"));
    let world = World::new();
    let document = as_json(&world);
    assert_eq!((&document["version"], &document["free"]), (&1.into(), &true.into()));
    assert_eq!(document["lock"], world.lock().to_str().unwrap());
    let script = "pls -q sh -c 'echo inside; exec sleep 600' & flock \"$PERFLOCK_LOCK\" true & wait";
    let job = world.cmd("perflock -q -m nightly\u{1b}[2J sh -c").arg(script).spawn();
    job.wait_stdout("inside\n");
    let waiters = [world.waiter("2.x", world.cmd("perflock -q ls")), world.waiter("3.s", world.cmd("pls -q true"))];
    wait_until("flock waits", || !as_json(&world)["outsiders"].as_array().unwrap().is_empty());
    let document = as_json(&world);
    let holder = &document["holders"][0];
    assert_eq!(
        (&holder["number"], &holder["mode"], &holder["state"]),
        (&1.into(), &"exclusive".into(), &"running".into())
    );
    assert_eq!((&holder["user"]["name"], &holder["message"]), (&me().into(), &"nightly\u{1b}[2J".into()));
    assert_eq!(holder["command"], serde_json::json!(["sh", "-c", script]));
    assert!(holder["usage"]["cpu_usec"].as_u64().is_some_and(|usec| usec > 0), "{holder:#}");
    assert_eq!(holder["inner"][0]["processes"], 1);
    let waiting = |index: usize| (&document["waiters"][index]["state"], &document["waiters"][index]["waits_for"]);
    assert_eq!(waiting(0), (&"waiting".into(), &serde_json::Value::Null));
    assert_eq!(waiting(1), (&"waiting".into(), &2.into()));
    assert_eq!((&document["outsiders"][0]["own_job"], &document["outsiders"][0]["waiting"]), (&1.into(), &true.into()));
    // Every counter names its source, and nothing else is said to be one.
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&document["sources"]), names(&holder["usage"]));
    // Its raw text has no control character but the end of the line.
    let text = world.cmd("wholock --json --sample 0").run().stdout;
    assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
    job.signal(libc::SIGTERM);
    job.wait().dies_of(libc::SIGTERM);
    for waiter in waiters {
        waiter.wait().exits(0);
    }
    world.assert_clean();
}

#[test]
fn without_a_group_json_has_null_for_what_nobody_counts() {
    needs!(V2);
    let world = World::new();
    let job = world.holder("perflock -q --cgroup none");
    let document = as_json(&world);
    let holder = &document["holders"][0];
    assert_eq!((&holder["group"], &holder["processes"]), (&serde_json::Value::Null, &1.into()));
    assert!(holder["usage"].as_object().unwrap().values().all(serde_json::Value::is_null), "{holder:#}");
    world.cmd("wholock --json -q").run().exits(125);
    job.signal(libc::SIGTERM);
    job.wait().dies_of(libc::SIGTERM);
    world.assert_clean();
}

#[test]
fn json_lists_the_processes_of_a_job_as_the_tree_does() {
    needs!(V2);
    for options in ["", "--cgroup none"] {
        let world = World::new();
        let script = "sleep 601 & echo $! > pid; echo running; wait";
        let job = world.cmd(&format!("perflock -q {options} sh -c")).arg(script).spawn();
        job.wait_stdout("running\n");
        let waiter = world.waiter("2.x", world.cmd("perflock -q true"));
        let child = pid_in(&world.path("pid"));
        let name = || std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap();
        wait_until("the child executed sleep", || name() == "sleep\n");
        let holder = &json_of(world.cmd("wholock --json --tree --sample 0"))["holders"][0];
        let list = holder["process_list"].as_array().unwrap();
        assert_eq!(list.len(), 2, "{holder:#}");
        let (shell, sleep) = (&list[0], &list[1]);
        assert_eq!((&shell["parent_pid"], &sleep["parent_pid"]), (&job.pid().into(), &shell["pid"]), "{holder:#}");
        assert_eq!((&sleep["pid"], &sleep["state"], &sleep["name"]), (&child.into(), &"S".into(), &"sleep".into()));
        assert_eq!(sleep["command"], serde_json::json!(["sleep", "601"]));
        assert_eq!(sleep["user"]["name"], me());
        // What it took to start.
        assert!(sleep["cpu_usec"].as_u64().is_some_and(|usec| usec < 1_000_000), "{holder:#}");
        assert!(sleep["memory_bytes"].as_u64().is_some_and(|bytes| bytes >= 4096), "{holder:#}");
        // Both wait, so both have given up a CPU; that is told without the tree as well.
        let document = json_of(world.cmd("wholock --json --sample 0"));
        let switches = &document["holders"][0]["context_switches"];
        assert_eq!(switches["of"], "living threads");
        assert!(switches["voluntary"].as_u64().is_some_and(|times| times >= 2), "{document:#}");
        let full = world.cmd("wholock 1 --sample 0").run().exits(0).stdout;
        assert!(full.contains("\ncontext switches  ") && full.contains(" of living threads (voluntary "), "{full}");
        assert!(document["holders"][0]["process_list"].is_null(), "{document:#}");
        assert!(document["waiters"][0]["context_switches"].is_null(), "{document:#}");
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM);
        waiter.wait().exits(0);
        world.assert_clean();
    }
}

#[test]
fn the_tree_shows_every_process_below_its_job() {
    needs!(V2);
    for options in ["", "--cgroup none"] {
        let world = World::new();
        let script = "sh -c 'sleep 601 & setsid sleep 602 & echo running; wait' & wait";
        let job = world.cmd(&format!("perflock -q {options} sh -c")).arg(script).spawn();
        job.wait_stdout("running\n");
        let shown = || world.cmd("wholock --tree --sample 0").run().exits(0).says("").stdout;
        wait_until("setsid executed sleep", || shown().contains(" sleep 602\n"));
        let text = shown();
        let rows: Vec<&str> = text.lines().skip(1).collect();
        let processes: Vec<String> =
            rows[1..].iter().map(|row| row.split("  ").last().unwrap().trim().to_owned()).collect();
        let names: Vec<&str> = processes.iter().map(|text| text.split_once(' ').unwrap().1).collect();
        let inner = "sh -c 'sleep 601 & setsid sleep 602 & echo running; wait'";
        assert_eq!(names[1..], [inner, "sleep 601", "sleep 602"], "{text}");
        assert!(names[0].starts_with("sh -c 'sh -c "), "{text}");
        let column = |row: &str, what: &str| row.find(what).unwrap();
        let pid = |index: usize| processes[index].split(' ').next().unwrap();
        let indents: Vec<usize> = (0..4).map(|index| column(rows[index + 1], &format!("{} ", pid(index)))).collect();
        assert_eq!(indents.iter().map(|at| at - indents[0]).collect::<Vec<_>>(), [0, 2, 4, 4], "{text}");
        for row in &rows[1..] {
            let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            assert_eq!((cells[0], cells[1]), (&*me(), "sleeping"), "{text}");
            assert!(cells[2].ends_with('s') && cells[3].ends_with(['K', 'M']), "{text}");
        }
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM);
        world.assert_clean();
    }
}

#[test]
fn one_job_is_shown_in_full() {
    needs!(V2);
    let world = World::new();
    let job = world.holder("perflock -q -m nightly");
    let waiter = world.waiter("2.s", world.cmd("pls -q true"));
    let full = |which: &str| world.cmd("wholock").arg(which).run().exits(0).says("").stdout;
    let text = full("1");
    let fact = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
        line.trim().to_owned()
    };
    assert!(fact(&text, "job ").starts_with("1 (1-"), "{text}");
    assert_eq!(fact(&text, "command "), "sh -c 'echo running; exec sleep 600'");
    assert_eq!(
        (fact(&text, "user "), fact(&text, "mode "), fact(&text, "message ")),
        (me(), "exclusive".into(), "nightly".into())
    );
    assert!(fact(&text, "state ").starts_with("running, "), "{text}");
    assert!(fact(&text, "CPU time ").contains("(user "), "{text}");
    assert!(fact(&text, "processes ").starts_with('1'), "{text}");
    assert!(fact(&text, "group ").starts_with('/'), "{text}");
    assert!(text.lines().last().unwrap().ends_with(" sleep 600"), "{text}");
    let id = fact(&text, "job ").split(['(', ')']).nth(1).unwrap().to_owned();
    assert_eq!(fact(&full(&id), "job "), fact(&text, "job "));
    // A waiter has no group yet: nothing is known, and nothing is zero.
    let waits = full("2");
    assert!(fact(&waits, "state ").starts_with("waiting, "), "{waits}");
    for name in ["CPU time ", "memory ", "processes ", "read ", "group "] {
        assert_eq!(fact(&waits, name), "-", "{waits}");
    }
    let none = "wholock: there is no job 3; wholock alone shows the jobs with their numbers\n";
    world.cmd("wholock 3").run().exits(125).prints("").says(none);
    job.signal(libc::SIGTERM);
    job.wait().dies_of(libc::SIGTERM);
    waiter.wait().exits(0);
    world.assert_clean();
}
