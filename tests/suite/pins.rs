//! Pinned jobs: where they run and their children too, how strongly they are kept there, and what is told of it.

use std::ops::Deref;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{ALICE, Cmd, Running, V1Group, World, kill_pair, me, pid_in, signal, state_of, wait_until};
use crate::needs;
use crate::report::report;
use crate::resources::json_of;

/// A world whose commands may run on processors 0 and 1, in a cpuset of its own where the hierarchy is v1: what jobs leave
/// there is no other test's.
pub(crate) struct Room {
    // Ends first, and its processes with it.
    world: World,
    cpuset: Option<V1Group>,
}

impl Deref for Room {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { world: World::new(), cpuset: V1Group::cpuset("0-1") }
    }

    /// For a plain user, who may not make a cpuset.
    pub(crate) fn for_uid(uid: u32) -> Self {
        Self { world: World::for_uid(uid), cpuset: V1Group::cpuset("0-1") }
    }

    /// The group that jobs get their cpusets in.
    pub(crate) fn cpuset(&self) -> &V1Group {
        self.cpuset.as_ref().expect("this test needs V1")
    }

    /// Has a command run here.
    pub(crate) fn enter(&self, cmd: Cmd) -> Cmd {
        let cmd = match &self.cpuset {
            Some(cpuset) => cpuset.enter(cmd),
            None => cmd,
        };
        cmd.before_exec(|| stay_on(&[0, 1]))
    }

    /// As [`World::cmd`].
    pub(crate) fn cmd(&self, line: &str) -> Cmd {
        self.enter(self.world.cmd(line))
    }

    /// As [`World::holder`].
    #[track_caller]
    pub(crate) fn holder(&self, line: &str) -> Running {
        let holder = self.cmd(line).args(["sh", "-c", "echo running; exec sleep 600"]).spawn();
        holder.wait_stdout("running\n");
        holder
    }

    /// As [`World::assert_clean`], and no job has left a cpuset.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let left = self.cpuset.as_ref().map(V1Group::children).unwrap_or_default();
        assert_eq!(left, Vec::<PathBuf>::new(), "cpusets were left");
        self.world.assert_clean();
    }

    /// As [`World::wait_clean`].
    #[track_caller]
    pub(crate) fn wait_clean(&self) {
        wait_until("every cpuset is gone", || self.cpuset.as_ref().is_none_or(|cpuset| cpuset.children().is_empty()));
        self.world.wait_clean();
    }
}

/// Ends a job that sleeps.
#[track_caller]
pub(crate) fn end(job: Running) {
    job.signal(libc::SIGTERM);
    job.wait().dies_of(libc::SIGTERM);
}

/// Sets the affinity of this process. Async-signal-safe.
pub(crate) fn stay_on(cpus: &[usize]) -> std::io::Result<()> {
    // SAFETY: a zeroed set is empty.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        // SAFETY: the number is small.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the kernel reads as many bytes as there are.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Says where it and a child may run.
const SHOWS: &str = "cpus() { grep Cpus_allowed_list $1; }; cpus /proc/$$/status; \
                     sh -c 'grep -E \"(Cpus|Mems)_allowed_list\" /proc/$$/status; true' & wait; nproc; echo ${PERFLOCK_CPUS-none}";

/// What it says on these processors.
fn shown(cpus: &str, count: usize) -> String {
    let (cpus_line, mems) = (format!("Cpus_allowed_list:\t{cpus}\n"), "Mems_allowed_list:\t0\n");
    format!("{cpus_line}{cpus_line}{mems}{count}\n{cpus}\n")
}

/// How strong the pins are that a test has a look at: on a machine where none can be hard, soft ones.
fn strengths(room: &Room) -> Vec<(&'static str, &'static str, &'static str)> {
    let hard = room.cmd("pls --pin hard --cpus 0 true").run().status.success();
    let all = [("hard", "hard", "cpuset"), ("soft", "soft", "affinity")];
    all[usize::from(!hard)..].to_vec()
}

#[test]
fn a_job_and_its_children_run_where_it_was_told_to() {
    needs!(V2, TwoCores);
    let room = Room::new();
    for (pin, ..) in strengths(&room) {
        for (options, cpus, count) in [
            ("--cpus 1", "1", 1),
            ("--cpus 0", "0", 1),
            ("--cpus 1,0", "0-1", 2),
            ("--cpus all", "0-1", 2),
            ("--cpus 1 --mems 0", "1", 1),
            ("--mems all", "0-1", 2),
            ("--mems node0", "0-1", 2),
            ("--cores 1", "0", 1),
            ("--cores 1 --smt", "0", 1),
            ("--cores 2", "0-1", 2),
        ] {
            for program in ["perflock", "pls"] {
                // Only v1 has cpusets for jobs without a group.
                let trackings = if pin == "hard" && room.cpuset.is_none() { &[""][..] } else { &["", "--cgroup none"] };
                for tracking in trackings {
                    let cmd = room.cmd(&format!("{program} --pin {pin} {tracking} {options} sh -c")).arg(SHOWS);
                    let done = cmd.run().exits(0).says("");
                    assert_eq!(done.stdout, shown(cpus, count), "{program} {pin} {tracking} {options}");
                    room.assert_clean();
                }
            }
        }
    }
    // Who asks for nothing gets what perflock has, and is told nothing.
    let plain = shown("0-1", 2).replace("\n0-1\n", "\nnone\n");
    room.cmd("pls --pin hard sh -c").arg(SHOWS).run().exits(0).prints(&plain).says("");
    room.assert_clean();
}

#[test]
fn a_node_is_its_processors() {
    needs!(V2);
    let world = World::new();
    let node = std::fs::read_to_string("/sys/devices/system/node/node0/cpulist").unwrap_or_default();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let script = "grep Cpus_allowed_list /proc/self/status; echo $PERFLOCK_CPUS";
    let done = world.cmd("pls --pin soft --cpus node0 sh -c").arg(script).run();
    let whole = status.contains(&format!("Cpus_allowed_list:\t{node}"));
    if whole || done.status.success() {
        done.exits(0).prints(&format!("Cpus_allowed_list:\t{node}{node}")).says("");
    } else {
        // The tests may not use all of it.
        done.exits(125).prints("").mentions(" are not for this process, which may use ");
    }
    world.assert_clean();
}

#[test]
fn ticket_and_wholock_say_where_it_runs_and_how_it_is_kept() {
    needs!(V2, TwoCores);
    let room = Room::new();
    for (pin, strength, _) in strengths(&room) {
        let job = room.holder(&format!("pls -q --pin {pin} --cores 1"));
        let other = room.holder(&format!("pls -q --pin {pin} --cpus 0-1"));
        let lines = room.ticket("1.s");
        let line = |event: &str| lines.iter().find(|line| line["event"] == event).cloned().unwrap_or_default();
        assert_eq!(lines[0]["cores"], 1);
        assert_eq!(line("cores"), json!({"event": "cores", "cpus": "0"}));
        let pinned = json!({"event": "pinned", "cpus": "0", "memory_nodes": "0", "strength": strength});
        assert_eq!(line("pinned"), pinned);
        let named = line("group")["cpuset"].as_str().map(PathBuf::from);
        if let Some(cpuset) = &room.cpuset {
            let made = cpuset.children();
            assert_eq!(made.len(), if pin == "hard" { 2 } else { 0 });
            let name = named.as_ref().and_then(|path| path.file_name());
            assert!(pin == "soft" || made.iter().any(|group| group.file_name() == name), "{made:?} {named:?}");
        }
        let text = room.cmd("wholock --sample 0").run().exits(0).says("").stdout;
        assert!(text.contains("\ncpus of node 0: 0 jobs 1 and 2; 1 job 2"), "{text}");
        let full = |number: &str| room.cmd("wholock --sample 0").arg(number).run().exits(0).says("").stdout;
        let fact = format!("\npins              cpus 0, memory nodes 0 ({strength}); cores of its own: cpus 0\n");
        assert!(full("1").contains(&fact), "{}", full("1"));
        let document = json_of(room.cmd("wholock --json --sample 0"));
        let expected = json!({"cpus": "0", "memory_nodes": "0", "strength": strength, "partition": null,
            "cores_asked": 1, "reserved": "0"});
        assert_eq!(document["holders"][0]["pin"], expected);
        let expected = json!({"cpus": "0-1", "memory_nodes": "0", "strength": strength, "partition": null,
            "cores_asked": null, "reserved": null});
        assert_eq!(document["holders"][1]["pin"], expected);
        let parts = document["cores"]["nodes"][0]["parts"].as_array().unwrap();
        assert_eq!(parts[..2], [json!({"cpus": "0", "jobs": [1, 2]}), json!({"cpus": "1", "jobs": [2]})]);
        end(job);
        let text = room.cmd("wholock --sample 0").run().exits(0).says("").stdout;
        assert!(text.contains("\ncpus of node 0: 0-1 job 2"), "{text}");
        end(other);
        room.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n");
        assert_eq!(json_of(room.cmd("wholock --json --sample 0"))["cores"], Value::Null);
        room.assert_clean();
    }
}

/// What the report says of a pin.
fn pins(room: &Room) -> Value {
    report(room, "r")["pins"].clone()
}

#[test]
fn the_report_says_what_pinned_it_and_what_it_reserved() {
    needs!(V2, TwoCores);
    let room = Room::new();
    for (pin, strength, by) in strengths(&room) {
        let run = |line: &str| {
            let done = room.cmd(&line.replace("PIN", pin)).run().exits(0);
            (done.stderr, pins(&room))
        };
        let expected = |cpus: &str, reserved: Value| {
            json!({"by": by, "strength": strength, "cpus": cpus, "memory_nodes": "0", "reserved": reserved,
                "partition": null, "moved_to": null, "offline": null})
        };
        let (text, told) = run("pls --report --report-file r --pin PIN --cores 1 true");
        assert_eq!(told, expected("0", "0".into()));
        let kept = if pin == "hard" { "hard, by a cpuset" } else { "soft, by affinity, which it could change" };
        let line = format!("\n  pins              {kept}; cpus 0, memory nodes 0; cores of its own: cpus 0\n");
        assert!(text.contains(&line), "{text}");
        assert_eq!(run("pls --report-file r --pin PIN --cpus 1 true"), (String::new(), expected("1", Value::Null)));
        assert_eq!(run("perflock --report-file r --pin PIN --cores 2 true").1, expected("0-1", "0-1".into()));
        room.assert_clean();
    }
    room.cmd("pls --report-file r --pin soft true").run().exits(0);
    let told = pins(&room);
    assert_eq!((&told["by"], &told["strength"], &told["cpus"]), (&Value::Null, &Value::Null, &"0-1".into()));
    room.assert_clean();
}

#[test]
fn a_hard_pin_holds_who_sets_its_own_affinity_and_a_soft_one_tells() {
    needs!(V2, TwoCores, Program("taskset"));
    let room = Room::new();
    let script = "taskset -p 3 $$ >/dev/null 2>&1; grep Cpus_allowed_list /proc/$$/status";
    for (pin, ..) in strengths(&room) {
        for program in ["perflock", "pls"] {
            let cmd = room.cmd(&format!("{program} --report-file r --pin {pin} --cpus 1 sh -c")).arg(script);
            let done = cmd.run().exits(0).says("");
            let (list, moved) = if pin == "hard" { ("1", Value::Null) } else { ("0-1", "0".into()) };
            assert_eq!(done.stdout, format!("Cpus_allowed_list:\t{list}\n"), "{pin}");
            assert_eq!(pins(&room)["moved_to"], moved, "{pin}");
            assert_eq!(pins(&room)["cpus"], "1");
            room.assert_clean();
        }
    }
    // Elsewhere altogether: a hard pin refuses, and the job still is where it was.
    let script = "taskset -p 1 $$ >/dev/null 2>&1 || echo refused; grep Cpus_allowed_list /proc/$$/status";
    for (pin, ..) in strengths(&room) {
        let cmd = room.cmd(&format!("pls --report --report-file r --pin {pin} --cpus 1 sh -c")).arg(script);
        let done = cmd.run().exits(0);
        let (list, moved) = if pin == "hard" {
            ("refused\nCpus_allowed_list:\t1\n", Value::Null)
        } else {
            ("Cpus_allowed_list:\t0\n", "0".into())
        };
        assert_eq!((&*done.stdout, &pins(&room)["moved_to"]), (list, &moved), "{pin}");
        let told = done.stderr.contains("; it changed that, and it could run on cpus 0 too\n");
        assert_eq!(told, pin == "soft", "{}", done.stderr);
    }
    room.assert_clean();
}

/// Joins a group that counts CPU time, and works until so much of it is counted.
const BURNS: &str = "echo 0 > $0/tasks; until read u < $0/cpuacct.usage && [ $u -gt 300000000 ]; do :; done; echo done";

/// CPU time that a group had on processors 0 and 1, in nanoseconds.
fn on_each(group: &V1Group) -> [u64; 2] {
    let text = group.get("cpuacct.usage_percpu");
    let mut times = text.split_whitespace().map(|time| time.parse().unwrap());
    [times.next().unwrap(), times.next().unwrap()]
}

#[test]
fn every_nanosecond_of_a_pinned_job_is_on_its_processor() {
    needs!(Root, V2, TwoCores, V1("cpuacct"));
    let room = Room::new();
    for (pin, ..) in strengths(&room) {
        for (line, cpu) in [("pls --cpus 1", 1), ("perflock --cpus 0", 0), ("perflock --cores 1", 0)] {
            let counts = V1Group::new("cpuacct").unwrap();
            let cmd = room.cmd(&format!("{line} --pin {pin} sh -c")).arg(BURNS).arg(counts.path());
            cmd.run().exits(0).prints("done\n").says("");
            let times = on_each(&counts);
            assert!(times[cpu] > 300_000_000 && times[1 - cpu] == 0, "{line} {pin}: {times:?}");
        }
        // Two at once, each on a core of its own.
        let counts = [(); 2].map(|()| V1Group::new("cpuacct").unwrap());
        let start = |counts: &V1Group| {
            room.cmd(&format!("pls --cores 1 --pin {pin} sh -c")).arg(BURNS).arg(counts.path()).spawn()
        };
        let jobs = [start(&counts[0]), start(&counts[1])];
        for job in jobs {
            job.wait().exits(0).prints("done\n").says("");
        }
        let [a, b] = [on_each(&counts[0]), on_each(&counts[1])];
        let one_each = |a: [u64; 2], b: [u64; 2]| a[0] > 300_000_000 && a[1] == 0 && b[0] == 0 && b[1] > 300_000_000;
        assert!(one_each(a, b) || one_each(b, a), "{pin}: {a:?} {b:?}");
        room.assert_clean();
    }
}

#[test]
fn a_soft_pin_is_announced_with_its_cure_unless_it_was_asked_for() {
    needs!(Root, V2, OwnGroup, TwoCores, V1("cpuset"));
    let room = Room::for_uid(ALICE);
    let denied = format!("no write access to {}: Permission denied", room.cpuset().path().display());
    for program in ["perflock", "pls"] {
        let said = format!(
            "{program}: pinned by affinity alone, which the job itself can change: {denied} (run perflock as root); \
             --pin soft silences this\n"
        );
        let cmd = room.cmd(&format!("{program} --report-file r --cpus 1 sh -c")).arg(SHOWS);
        cmd.run().exits(0).prints(&shown("1", 1)).says(&said);
        assert_eq!(pins(&room)["strength"], "soft");
        room.cmd(&format!("{program} --pin soft --cpus 1 true")).run().exits(0).says("");
        room.cmd(&format!("{program} -q --cpus 1 true")).run().exits(0).says("");
        let said = format!("{program}: --pin hard cannot be had here: {denied} (run perflock as root)\n");
        let cmd = room.cmd(&format!("{program} --pin hard --report-file r --cpus 1 touch ran"));
        cmd.run().exits(125).prints("").says(&said);
        assert!(!room.path("ran").exists());
        let told = report(&room, "r");
        assert_eq!((&told["exit"]["reason"], &told["pins"]["by"]), (&"failed".into(), &Value::Null));
        let said = format!("{program}: --isolated takes processors from everybody else, which only root may\n");
        room.cmd(&format!("{program} --isolated --cores 1 touch ran")).run().exits(125).prints("").says(&said);
        assert!(!room.path("ran").exists());
        room.assert_clean();
    }
    // The file of settings asks for it as the option does.
    let config = room.write("config.toml", "pin = 'hard'\n");
    room.cmd("pls --config")
        .arg(&config)
        .args(["--cpus", "1", "true"])
        .run()
        .exits(125)
        .mentions("--pin hard cannot be had");
    room.cmd("pls --config").arg(&config).arg("true").run().exits(0).says("");
    room.cmd("pls --pin soft --config").arg(&config).args(["--cpus", "1", "true"]).run().exits(0).says("");
    room.assert_clean();
}

#[test]
fn whoever_was_given_a_cpuset_gets_hard_pins_in_it() {
    needs!(Root, V2, OwnGroup, TwoCores, V1("cpuset"), Program("taskset"));
    let room = Room::for_uid(ALICE);
    room.cpuset().give(ALICE);
    let script = "taskset -p 3 $$ >/dev/null 2>&1; grep Cpus_allowed_list /proc/$$/status";
    let cmd = room.cmd("pls --pin hard --report-file r --cpus 1 sh -c").arg(script);
    cmd.run().exits(0).prints("Cpus_allowed_list:\t1\n").says("");
    assert_eq!((&pins(&room)["by"], &pins(&room)["moved_to"]), (&"cpuset".into(), &Value::Null));
    room.assert_clean();
}

#[test]
fn isolation_is_refused_where_the_hierarchy_has_none() {
    needs!(Root, V2, TwoCores, V1("cpuset"));
    let room = Room::new();
    let said = "--isolated cannot be had here: the cpuset controller is in the v1 hierarchy, which has no partitions\n";
    for line in ["perflock --isolated --cpus 1", "pls --isolated --cores 1"] {
        let name = line.split(' ').next().unwrap();
        room.cmd(line).args(["touch", "ran"]).run().exits(125).prints("").says(&format!("{name}: {said}"));
        assert!(!room.path("ran").exists());
        room.assert_clean();
    }
}

#[test]
fn what_this_machine_can_never_give_is_an_error_at_once() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let read = |name: &str| std::fs::read_to_string(format!("/sys/devices/system/cpu/{name}")).unwrap();
    let online = read("online").trim().to_owned();
    // While somebody has the machine: nobody waits for what will never be.
    let holder = room.holder("perflock");
    for (options, said) in [
        ("--cpus 4095", format!("this machine has no cpus 4095 (online are {online})")),
        ("--cpus 0,4094-4095", format!("this machine has no cpus 4094-4095 (online are {online})")),
        ("--cpus node77", "there is no node77: this machine has nodes 0".to_owned()),
        ("--mems 55", "this machine has no memory nodes 55 (with memory are 0)".to_owned()),
        ("--mems node55", "this machine has no memory nodes 55 (with memory are 0)".to_owned()),
        ("--isolated", "--isolated needs processors to isolate: --cpus LIST or --cores N".to_owned()),
    ] {
        for program in ["perflock", "pls"] {
            let cmd = room.cmd(&format!("{program} {options} touch ran"));
            cmd.run().exits(125).prints("").says(&format!("{program}: {said}\n"));
        }
    }
    for (options, said) in [
        ("--cores|0", "a job needs at least one core"),
        ("--cores|x", "a number of cores is expected"),
        ("--cores|99999999999999999999", "a number of cores is expected"),
        ("--cpus|", "the list is empty; it is like 0-3,8 or node0 or all"),
        ("--cpus|1-0", "the range 1-0 ends before it begins"),
        ("--cpus|0,", "a number is missing"),
        ("--cpus|0-4294967295", "4294967295 is higher than any machine has"),
        ("--cpus|4294967296", "4294967296 is no number and no range such as 0-3"),
        ("--cpus|node", "node is no memory node; they are called node0, node1, …"),
        ("--mems|", "the list is empty; it is like 0-3,8 or node0 or all"),
        ("--pin|strong", r#"a pin is "auto", "hard" or "soft""#),
    ] {
        let (option, value) = options.split_once('|').unwrap();
        let done = room.cmd("pls").args([&format!("{option}={value}"), "touch", "ran"]).run().exits(125).prints("");
        let said = format!(">': {said}\n\nFor more information, try '--help'.\n");
        let begins = done.stderr.starts_with(&format!("pls: invalid value '{value}' for '{option} <"));
        assert!(begins && done.stderr.ends_with(&said), "{options}: {}", done.stderr);
    }
    for options in ["--cpus 0 --cores 1", "--smt", "--cpus 0 --smt", "--cores -1"] {
        room.cmd(&format!("pls {options} touch ran")).run().exits(125).prints("").mentions("\nUsage: pls ");
    }
    let cores = std::fs::read_dir("/sys/devices/system/cpu").unwrap().flatten().count();
    let done = room.cmd("pls --cores").args([&cores.to_string(), "touch", "ran"]).run().exits(125).prints("");
    let said = format!("pls: {cores} cores were asked for, and this machine has ");
    assert!(done.stderr.starts_with(&said) && done.stderr.ends_with(": it can never have more\n"), "{}", done.stderr);
    assert!(!room.path("ran").exists());
    assert_eq!(room.tickets(), ["1.x"]);
    end(holder);
    room.assert_clean();
}

/// What somebody gets who may only use processor 0, or, if that is a default, is started there.
#[track_caller]
fn is_narrow(room: &Room, is_limit: bool, enter: &dyn Fn(Cmd) -> Cmd) {
    let others = "cpus 1 are not for this process, which may use 0 (a cpuset or a job around it)\n";
    let cores = "this process may use only cpus 0 of them (taskset, or a cpuset around it), which are 1 core whole\n";
    for (options, said, is_refused) in
        [("--cpus 1", others, is_limit), ("--cpus 0-1", others, is_limit), ("--cores 2", cores, true)]
    {
        for program in ["perflock", "pls"] {
            let cmd = enter(room.world.cmd(&format!("{program} -q {options} touch ran")));
            let done = cmd.run().exits(if is_refused { 125 } else { 0 }).prints("");
            let begins = if said == others { "" } else { "2 cores were asked for, and this machine has " };
            if is_refused {
                assert!(done.stderr.starts_with(&format!("{program}: {begins}")), "{}", done.stderr);
                assert!(done.stderr.ends_with(said), "{}", done.stderr);
            }
            assert_eq!(room.path("ran").exists(), !is_refused, "{options}");
            let _ = std::fs::remove_file(room.path("ran"));
        }
    }
    for options in ["--cpus all", "--cores 1", "--cpus 0", "--mems 0"] {
        let cmd = enter(room.world.cmd(&format!("pls -q {options} sh -c"))).arg(SHOWS);
        cmd.run().exits(0).prints(&shown("0", 1)).says("");
    }
}

#[test]
fn a_narrower_cpuset_above_is_the_machine() {
    needs!(Root, V2, TwoCores, V1("cpuset"));
    let room = Room::new();
    let narrow = V1Group::cpuset("0").unwrap();
    is_narrow(&room, true, &|cmd| narrow.enter(cmd));
    assert_eq!(narrow.children(), Vec::<PathBuf>::new());
    room.assert_clean();
}

#[test]
fn a_narrower_affinity_is_the_machine() {
    needs!(V2, TwoCores);
    let room = Room::new();
    is_narrow(&room, false, &|cmd| room.enter(cmd).before_exec(|| stay_on(&[0])));
    room.assert_clean();
}

#[test]
fn a_cpuset_that_is_copied_to_its_children_makes_no_difference() {
    needs!(Root, V2, TwoCores, V1("cpuset"));
    let room = Room::new();
    for clone in ["0", "1"] {
        room.cpuset().set("cgroup.clone_children", clone);
        room.cmd("pls --pin hard --cpus 1 sh -c").arg(SHOWS).run().exits(0).prints(&shown("1", 1)).says("");
        room.cmd("perflock --pin hard --cores 1 sh -c").arg(SHOWS).run().exits(0).prints(&shown("0", 1)).says("");
        room.assert_clean();
    }
}

#[test]
fn a_cpuset_that_becomes_narrower_meanwhile_is_an_error_and_runs_nothing() {
    needs!(Root, V2, TwoCores, V1("cpuset"));
    let room = Room::new();
    let holder = room.world.holder("perflock");
    let waiter = room.waiter("2.s", room.cmd("pls --pin hard --cpus 1 touch ran"));
    room.cpuset().set("cpuset.cpus", "0");
    end(holder);
    let done = waiter.wait().exits(125).prints("");
    let said = done.stderr.lines().last().unwrap();
    assert!(
        said.starts_with(&format!("pls: cannot write to {}/perflock-2-", room.cpuset().path().display())),
        "{said}"
    );
    assert!(said.ends_with("/cpuset.cpus: Permission denied"), "{said}");
    assert!(!room.path("ran").exists());
    room.cpuset().set("cpuset.cpus", "0-1");
    room.assert_clean();
}

#[test]
fn a_job_inside_another_is_pinned_among_that_one_s_processors() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let note = "inside a job, cores are chosen among that job's, and other jobs inside it may get the same\n";
    let inside = "grep Cpus_allowed_list /proc/self/status; echo $PERFLOCK_CPUS";
    // In v2 a job's group has processes, and so no cpuset below it.
    let strengths = strengths(&room).into_iter().filter(|(pin, ..)| *pin == "soft" || room.cpuset.is_some());
    for (pin, ..) in strengths {
        for (outer, inner, cpus, said) in [
            ("perflock", "pls --cores 1", "0", format!("pls: {note}")),
            ("perflock --cpus 1", "pls --cores 1", "1", format!("pls: {note}")),
            ("perflock --cpus 1", "perflock --cpus all", "1", String::new()),
            ("pls --cores 2", "pls --cpus 1", "1", String::new()),
        ] {
            let line = format!("{inner} --pin {pin} sh -c '{inside}'");
            let cmd = room.cmd(&format!("{outer} --pin {pin} sh -c")).arg(&line);
            if (pin, outer) == ("hard", "perflock") {
                // A cpuset that no ticket names must be in one that is removed with the outer job.
                let why = "the job that it is a part of has no cpuset (pin that one, too)";
                cmd.run().exits(125).prints("").says(&format!("pls: --pin hard cannot be had here: {why}\n"));
                continue;
            }
            cmd.run().exits(0).prints(&format!("Cpus_allowed_list:\t{cpus}\n{cpus}\n")).says(&said);
            room.assert_clean();
        }
        let cmd = room.cmd(&format!("pls --cores 1 --pin {pin} sh -c")).arg("exec pls --cpus 1 touch ran");
        cmd.run()
            .exits(125)
            .prints("")
            .says("pls: cpus 1 are not for this process, which may use 0 (a cpuset or a job around it)\n");
        assert!(!room.path("ran").exists());
        room.assert_clean();
    }
}

#[test]
fn a_scope_that_fails_leaves_no_cpuset_in_the_way_of_the_next_place() {
    needs!(Root, V2, OwnGroup, TwoCores, V1("cpuset"), Program("perl"));
    let room = Room::new();
    // In a unit that nobody delegated, on a machine whose bus hangs up: a scope is asked for first, and then done without.
    let unit = room.group().join("plain.service");
    std::fs::create_dir(&unit).unwrap();
    let script = format!(
        "echo 0 > {unit}/cgroup.procs; mount -t tmpfs none /run; mkdir -p /run/systemd/system /run/dbus
         perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(Local => shift, Listen => 5); close $c while $c = $s->accept' \
             /run/dbus/system_bus_socket & until [ -S /run/dbus/system_bus_socket ]; do sleep 0.01; done
         {pls} --pin hard --cpus 1 sh -c 'grep Cpus_allowed_list /proc/self/status; sed -n s/^0:://p /proc/self/cgroup'; s=$?
         kill $!; exit $s",
        unit = unit.display(),
        pls = room.program("pls").display(),
    );
    let done = room.enter(room.in_mount_namespace(&script)).run().exits(0).says("");
    assert!(done.stdout.starts_with("Cpus_allowed_list:\t1\n"), "{}", done.stdout);
    assert!(done.stdout.contains("/plain.service/perflock-1-"), "{}", done.stdout);
    std::fs::remove_dir(&unit).unwrap();
    room.assert_clean();
}

#[test]
fn the_cpuset_of_a_job_inside_another_goes_with_that_one() {
    needs!(Root, V2, OwnGroup, TwoCores, V1("cpuset"));
    for outer in ["--pin hard --cpus 0", ""] {
        let room = Room::new();
        // The inner supervisor and its guard are killed with everything else.
        let line = format!("perflock -q --time-limit 0.3 --grace 0 {outer} pls -q --cores 1 sleep 600");
        room.cmd(&line).run().exits(124);
        room.assert_clean();
    }
}

#[test]
fn a_crash_of_both_leaves_a_cpuset_that_the_next_job_removes() {
    needs!(Root, V2, OwnGroup, TwoCores, V1("cpuset"));
    for (uid, tracking) in [(0, ""), (ALICE, ""), (0, "--cgroup none")] {
        let room = if uid == 0 { Room::new() } else { Room::for_uid(uid) };
        room.cpuset().give(uid);
        let job = room.holder(&format!("pls -q --pin hard --cores 1 {tracking}"));
        let guard = room.guard_of("1.s");
        kill_pair(job, guard);
        assert_eq!(room.cpuset().children().len(), 1);
        let done = room.cmd("perflock --pin soft echo ran").run().exits(0).prints("ran\n");
        let user = if uid == 0 { me() } else { uid.to_string() };
        let said = format!(
            "perflock: ending the job sh -c 'echo running; exec sleep 600' of {user}, whose supervisor was killed, before \
             starting\n"
        );
        assert_eq!(done.stderr, said);
        // The ticket of what was ended goes with a newcomer, if not before.
        room.cmd("pls true").run().exits(0).says("");
        room.assert_clean();
    }
}

#[test]
fn a_killed_supervisor_s_guard_and_a_killed_guard_s_supervisor_remove_the_cpuset() {
    needs!(V2, TwoCores);
    let room = Room::new();
    for (pin, ..) in strengths(&room) {
        let job = room.holder(&format!("pls -q --pin {pin} --cores 1"));
        job.signal(libc::SIGKILL);
        job.wait().dies_of(libc::SIGKILL);
        room.wait_clean();
        let job = room.holder(&format!("perflock -q --pin {pin} --cores 1"));
        let guard = room.guard_of("1.x");
        signal(guard, libc::SIGKILL);
        job.wait_stderr("warning: the guard was killed; another took its place");
        assert_eq!(state_of(guard), '?');
        end(job);
        room.assert_clean();
    }
}

#[test]
fn what_left_the_group_of_its_job_keeps_the_cpuset_and_that_is_told() {
    needs!(Root, V2, OwnGroup, TwoCores, V1("cpuset"));
    let room = Room::new();
    let elsewhere = room.group().join("elsewhere.service");
    std::fs::create_dir(&elsewhere).unwrap();
    let script = "sleep 600 >/dev/null 2>&1 & echo $! > pid; echo $! > \"$0/cgroup.procs\"";
    let done = room.cmd("pls --escapes ignore --pin hard --cpus 1 sh -c").arg(script).arg(&elsewhere).run().exits(0);
    let left = pid_in(&room.path("pid"));
    let cpusets: Vec<_> = room.cpuset().children();
    assert_eq!(cpusets.len(), 1);
    let said = format!(
        "pls: warning: cannot remove the cpuset {}: Device or resource busy; if a process that left the job's group is in it, it \
         has to be removed by hand (rmdir) when that ends\n",
        cpusets[0].display()
    );
    assert_eq!(done.stderr, said);
    signal(left, libc::SIGKILL);
    wait_until("it is dead", || std::fs::remove_dir(&elsewhere).is_ok());
    wait_until("its cpuset can be removed", || std::fs::remove_dir(&cpusets[0]).is_ok());
    room.assert_clean();
}
