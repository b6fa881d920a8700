//! Jobs whose memory and processes are limited: what happens at the limit, to whom, what is told of it, and what is left.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    ALICE, Cmd, Machine, Running, V1Group, World, alive, kill_pair, me, patient, pid_in, signal, wait_until,
};
use crate::needs;
use crate::pins::end;
use crate::report::report;
use crate::resources::json_of;

/// A world whose commands are in groups of its own in the v1 hierarchies of memory and pids: what jobs leave there is no other
/// test's.
struct Yard {
    // Ends first, and its processes with it.
    world: World,
    memory: V1Group,
    pids: V1Group,
}

impl Deref for Yard {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Yard {
    fn new() -> Self {
        Self::around(World::new())
    }

    fn around(world: World) -> Self {
        let [memory, pids] = ["memory", "pids"].map(|name| V1Group::new(name).expect("this test needs V1"));
        // What a broken perflock does not limit must not take the machine that the tests are run on.
        memory.set("memory.limit_in_bytes", "1G");
        pids.set("pids.max", "1000");
        Self { world, memory, pids }
    }

    fn cmd(&self, line: &str) -> Cmd {
        self.pids.enter(self.memory.enter(self.world.cmd(line)))
    }

    /// Starts a job that has the machine until it gets a signal.
    #[track_caller]
    fn holder(&self, line: &str) -> Running {
        let holder = self.cmd(line).args(["sh", "-c", "echo $$ > main; echo running; exec sleep 600"]).spawn();
        holder.wait_stdout("running\n");
        holder
    }

    /// What jobs have in the v1 hierarchies.
    fn groups(&self) -> Vec<PathBuf> {
        [&self.memory, &self.pids].into_iter().flat_map(V1Group::children).collect()
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.groups(), Vec::<PathBuf>::new(), "groups were left");
        self.world.assert_clean();
    }

    #[track_caller]
    fn wait_clean(&self) {
        wait_until("every group is gone", || self.groups().is_empty());
        self.world.wait_clean();
    }
}

/// Fills its memory with a line that does not end.
const HOG: &str = "tail /dev/zero";

/// What is said of one that was killed.
fn killed(name: &str, limit: &str) -> String {
    format!(
        "{name}: out of memory: the kernel killed 1 process of the job, since that had reached its limit of {limit} (--memory)\n"
    )
}

/// The groups of a process in v1 hierarchies.
fn v1_groups(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().filter(|line| !line.starts_with("0::")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_job_that_needs_more_memory_than_it_may_have_dies_of_it_alone() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    for program in ["perflock", "pls"] {
        let cmd = yard.cmd(&format!("{program} --memory 32M --report-file r {HOG}"));
        cmd.run().dies_of(libc::SIGKILL).prints("").says(&killed(program, "32M"));
        let report = report(&yard, "r");
        assert_eq!(
            (&report["exit"]["reason"], &report["exit"]["signal"]),
            (&"out-of-memory".into(), &libc::SIGKILL.into())
        );
        let expected = json!({"memory_bytes": 32 << 20, "processes": null, "not_in_force": null});
        assert_eq!(report["limits"], expected);
        assert_eq!(
            (&report["usage"]["oom_kills"], &report["usage"]["memory_peak_bytes"]),
            (&1.into(), &(32 << 20).into())
        );
        assert_eq!(report["sources"]["memory_peak_bytes"], "memory.max_usage_in_bytes");
        assert_eq!(report["sources"]["tasks_peak"], "pids.peak");
        yard.assert_clean();
    }
    // As a shell tells it, which goes on.
    let line = format!("perflock -q --memory 1.5MiB {HOG} 2>&1; echo $?");
    let done = yard.cmd("sh -c").arg(line).run().exits(0);
    assert!(done.stdout.starts_with(&killed("perflock", "1536K")) && done.stdout.ends_with("137\n"), "{}", done.stdout);
    let text = yard.cmd(&format!("perflock --memory 32M --report {HOG}")).run().dies_of(libc::SIGKILL).stderr;
    let ended = "\n  ended             out of memory: the kernel killed a process of it, since that had reached its limit of 32M \
                 (--memory); died of signal 9 (SIGKILL)\n";
    assert!(text.contains(ended) && text.contains("\n  memory limit      32M\n"), "{text}");
    assert!(text.contains("\n  memory            32.0M at most ("), "{text}");
    assert!(text.contains("\n  out of memory     1 process\n"), "{text}");
    yard.assert_clean();
}

#[test]
fn a_child_that_was_killed_for_memory_is_told_of_a_job_that_goes_on() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    let script = format!("{HOG}; echo $?; exit 3");
    let cmd = yard.cmd("perflock -q --memory 32M --report-file r sh -c").arg(script);
    let done = cmd.run().exits(3).prints("137\n");
    assert!(done.stderr.ends_with(&killed("perflock", "32M")), "{}", done.stderr);
    let report = report(&yard, "r");
    assert_eq!((&report["exit"]["reason"], &report["exit"]["code"]), (&"exited".into(), &3.into()));
    let note = "1 process of it killed by the kernel, since that had reached its limit of 32M (--memory)";
    assert!(report["notes"].as_array().unwrap().contains(&note.into()), "{}", report["notes"]);
    yard.assert_clean();
}

#[test]
fn limits_are_the_job_s_and_neither_its_supervisor_s_nor_its_guard_s() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    let job = yard.holder("pls --memory 48M --pids 1");
    let (main, guard) = (pid_in(&yard.path("main")), yard.guard_of("1.s"));
    let [memory, pids] = [&yard.memory, &yard.pids].map(|above| above.children().pop().unwrap());
    let said = |group: &PathBuf, file: &str| fs::read_to_string(group.join(file)).unwrap().trim().to_owned();
    assert_eq!(said(&memory, "memory.limit_in_bytes"), (48 << 20).to_string());
    if memory.join("memory.memsw.limit_in_bytes").exists() {
        assert_eq!(said(&memory, "memory.memsw.limit_in_bytes"), (48 << 20).to_string());
    }
    let only_main = |guard: i32| {
        for group in [&memory, &pids] {
            assert_eq!(said(group, "cgroup.procs"), main.to_string());
        }
        assert_eq!((said(&pids, "pids.max"), said(&pids, "pids.current")), ("1".into(), "1".into()));
        assert!(v1_groups(main).contains("/perflock-"), "{}", v1_groups(main));
        for keeper in [job.pid(), guard] {
            assert!(alive(keeper) && !v1_groups(keeper).contains("/perflock-"), "{}", v1_groups(keeper));
        }
    };
    only_main(guard);
    // Nor is the guard that takes its place.
    signal(guard, libc::SIGKILL);
    job.wait_stderr("warning: the guard was killed; another took its place");
    only_main(yard.guard_of("1.s"));
    // The ticket names them, and everybody is told.
    let lines = yard.ticket("1.s");
    let line = |event: &str| lines.iter().find(|line| line["event"] == event).cloned().unwrap_or_default();
    for (kind, group) in [("memory", &memory), ("pids", &pids)] {
        let named = line("group")[kind].as_str().map(PathBuf::from).unwrap();
        assert_eq!(named.file_name(), group.file_name());
    }
    assert_eq!(line("limited"), json!({"event": "limited", "memory_bytes": 48 << 20, "processes": 1}));
    let document = json_of(yard.cmd("wholock --json --sample 0"));
    assert_eq!(document["holders"][0]["limits"], json!({"memory_bytes": 48 << 20, "processes": 1}));
    let full = yard.cmd("wholock --sample 0 1").run().exits(0).stdout;
    assert!(full.contains("\nmemory limit      48M\nprocesses limit   1, threads included\n"), "{full}");
    job.signal(libc::SIGTERM);
    job.wait().dies_of(libc::SIGTERM);
    yard.assert_clean();
}

#[test]
fn a_job_without_limits_has_no_groups_for_them() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    let config = yard.write("config.toml", "quiet-limit = 'none'\nmemory = '64M'\npids = 100\n");
    for line in ["perflock", &format!("perflock --memory none --pids none --config {}", config.display())] {
        let job = yard.holder(line);
        assert_eq!(yard.groups(), Vec::<PathBuf>::new());
        let text = yard.read("lock.d/1.x");
        assert!(!text.contains("limited") && !text.contains("\"memory\""), "{text}");
        assert_eq!(json_of(yard.cmd("wholock --json --sample 0"))["holders"][0]["limits"], Value::Null);
        end(job);
    }
    let done = yard.cmd("perflock --memory none --report-file r true").run().exits(0).says("");
    assert_eq!((done.stdout, &report(&yard, "r")["limits"]["memory_bytes"]), (String::new(), &Value::Null));
    yard.assert_clean();
}

#[test]
fn a_fork_bomb_ends_with_its_job_and_takes_nothing_else() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"), Program("bash"));
    let yard = Yard::new();
    // Time enough to come to its limit.
    let seconds = patient(Duration::from_secs(2)).as_secs();
    let bomb = format!("perflock --time-limit {seconds} --grace 0 --pids 200 --report-file r bash -c");
    let job = yard.cmd(&bomb).arg(":(){ :|:& };: 2>/dev/null; exec sleep 600 2>/dev/null").spawn();
    let peak = || yard.pids.children().pop().and_then(|group| fs::read_to_string(group.join("pids.current")).ok());
    wait_until("the bomb is at its limit", || peak().is_some_and(|count| count.trim() == "200"));
    // Others go on as before.
    yard.cmd("true").run().exits(0);
    let done = job.wait().exits(124);
    let report = report(&yard, "r");
    assert_eq!((&report["exit"]["reason"], &report["usage"]["tasks_peak"]), (&"time-limit".into(), &200.into()));
    let refused = report["usage"]["forks_refused"].as_u64().unwrap();
    assert!(refused > 0);
    let note = format!("{refused} forks were refused by its limit of 200 processes, threads included");
    assert!(report["notes"].as_array().unwrap().contains(&note.into()), "{}", report["notes"]);
    let said = format!(
        "perflock: warning: {refused} forks were refused by the job's limit of 200 processes, threads included; --pids N allows \
         more, --pids none any number\n"
    );
    assert!(done.stderr.contains(&said), "{}", done.stderr);
    yard.assert_clean();
    yard.cmd("perflock -n echo ran").run().exits(0).prints("ran\n").says("");
}

/// A job of so many processes at a time.
fn crowd(yard: &Yard, options: &str, count: usize) -> Cmd {
    let fork = "$pid = fork; defined $pid or print(qq(refused\\n)), next; $pid or exec qw(sleep 600)";
    let script = format!("for (2 .. {count}) {{ {fork} }}");
    yard.cmd(&format!("pls --grace 0 --leftovers kill {options} perl -e")).arg(script)
}

#[test]
fn a_limit_of_the_configuration_holds_unless_the_option_says_otherwise() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"), Program("perl"));
    let yard = Yard::new();
    let config = yard.write("config.toml", "quiet-limit = 'none'\npids = 3\nmemory = '32M'\n");
    let with = format!("--config {}", config.display());
    let refused = |limit: &str| {
        format!(
            "pls: warning: 1 fork was refused by the job's limit of {limit}, threads included; --pids N allows more, --pids none any \
             number\n"
        )
    };
    let done = crowd(&yard, &with, 4).run().exits(0).prints("refused\n");
    assert!(done.stderr.starts_with(&refused("3 processes")), "{}", done.stderr);
    for (options, count, forks) in
        [("", 3, ""), ("--pids 4", 4, ""), ("--pids none", 4, ""), ("--pids 2", 3, "refused\n")]
    {
        let done = crowd(&yard, &format!("{with} {options}"), count).run().exits(0).prints(forks);
        assert_eq!(done.stderr.contains(&refused("2 processes")), !forks.is_empty(), "{options}: {}", done.stderr);
    }
    yard.cmd(&format!("pls {with} {HOG}")).run().dies_of(libc::SIGKILL).says(&killed("pls", "32M"));
    yard.cmd(&format!("pls {with} --memory 40M {HOG}")).run().dies_of(libc::SIGKILL).says(&killed("pls", "40M"));
    yard.assert_clean();
}

#[test]
fn a_job_without_a_group_has_no_limits_and_is_refused_before_it_waits() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock");
    for program in ["perflock", "pls"] {
        for option in ["--memory 64M", "--pids 10", "--memory 64M --pids 10"] {
            let name = option.split(' ').next().unwrap();
            let said =
                format!("{program}: {name} cannot be had here: the job has no group of its own (see --cgroup)\n");
            let cmd = world.cmd(&format!("{program} --cgroup none {option} touch ran"));
            cmd.run().exits(125).prints("").says(&said);
        }
    }
    assert_eq!(world.tickets(), ["1.x"]);
    assert!(!world.path("ran").exists());
    end(holder);
    // What nobody asked for by name is told, and done without.
    let config = world.write("config.toml", "quiet-limit = 'none'\nmemory = '64M'\npids = 10\n");
    let line = |options: &str| format!("perflock --cgroup none --config {} {options} echo ran", config.display());
    let why = "the job has no group of its own";
    let said = format!(
        "not limited as configured (memory 64M: {why}; 10 processes: {why}; see --cgroup); --memory none --pids none silences this"
    );
    world.cmd(&line("--report-file r")).run().exits(0).prints("ran\n").says(&format!("perflock: {said}\n"));
    let told = report(&world, "r");
    assert_eq!(told["limits"], json!({"memory_bytes": null, "processes": null, "not_in_force": said}));
    assert!(told["notes"].as_array().unwrap().contains(&format!("it was {said}").into()), "{}", told["notes"]);
    world.cmd(&line("-q")).run().exits(0).prints("ran\n").says("");
    world.cmd(&line("--memory none --pids none")).run().exits(0).prints("ran\n").says("");
    let one = "perflock: not limited as configured (10 processes: the job has no group of its own; see --cgroup); --pids none \
               silences this\n";
    world.cmd(&line("--memory none")).run().exits(0).prints("ran\n").says(one);
    world.assert_clean();
}

#[test]
fn what_is_no_limit_is_told_with_what_is() {
    let world = World::new();
    let size = "a size is in bytes (1073741824) or has a unit (512M, 2G, 1.5GiB), or is none";
    let small = "no program starts with less than 1M of memory";
    let count = "a number of processes is expected, or none";
    for (option, value, said) in [
        ("--memory", "0", small),
        ("--memory", "1048575", small),
        ("--memory", "512K", small),
        ("--memory", "-1", size),
        ("--memory", "-512M", size),
        ("--memory", "", size),
        ("--memory", "all", size),
        ("--memory", "1.5", size),
        ("--memory", "1P", size),
        ("--memory", "99999999999999999999", size),
        ("--pids", "0", "a job has at least one process"),
        ("--pids", "-5", count),
        ("--pids", "", count),
        ("--pids", "1.5", count),
        ("--pids", "1K", count),
        ("--pids", "4294967296", count),
    ] {
        let shown = if option == "--memory" { "--memory <SIZE|none>" } else { "--pids <N|none>" };
        let said =
            format!("pls: invalid value '{value}' for '{shown}': {said}\n\nFor more information, try '--help'.\n");
        for arguments in [vec![format!("{option}={value}")], vec![option.to_owned(), value.to_owned()]] {
            world.cmd("pls").args(arguments).args(["touch", "ran"]).run().exits(125).prints("").says(&said);
        }
        let config = world.write("config.toml", &format!("\n{} = '{value}'\n", &option[2..]));
        let done = world.cmd("pls --config").arg(&config).args(["touch", "ran"]).run().exits(125).prints("");
        assert!(done.stderr.contains(&format!("config.toml:2: {}: ", &option[2..])), "{}", done.stderr);
    }
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn a_command_that_does_not_fit_into_its_limit_is_out_of_memory_and_no_failure_of_ours() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    let said = "perflock: out of memory: true cannot be started within the job's limit of 1M (--memory)\n";
    // The kernel copies the arguments before the process can be killed for them.
    let long = "x".repeat(100_000);
    let cmd = yard.cmd("perflock --memory 1M --report-file r true").args(vec![&long; 15]);
    cmd.run().exits(126).prints("").says(said);
    let exit = &report(&yard, "r")["exit"];
    assert_eq!(
        (&exit["reason"], &exit["code"], &exit["signal"]),
        (&"out-of-memory".into(), &Value::Null, &Value::Null)
    );
    yard.assert_clean();
    // With as much as it needs it starts.
    yard.cmd("perflock --memory 8M true").args(vec![&long; 15]).run().exits(0).says("");
    yard.assert_clean();
}

#[test]
fn a_job_inside_another_is_limited_inside_that_one_s_limits() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    // A group that no ticket names must be in one that is removed with the outer job.
    for (outer, inner) in [("", "--memory 32M"), ("--pids 50", "--memory 32M"), ("--memory 64M", "--pids 9")] {
        let option = inner.split(' ').next().unwrap();
        let said = format!(
            "pls: {option} cannot be had here: the job that it is a part of has no such limit (give that one {option}, too)\n"
        );
        let cmd = yard.cmd(&format!("perflock {outer} pls {inner} touch ran"));
        cmd.run().exits(125).prints("").says(&said);
        assert!(!yard.path("ran").exists());
        yard.assert_clean();
    }
    let script = format!("pls --memory 32M --report-file r {HOG}; echo $?; echo goes on");
    let cmd = yard.cmd("perflock -q --memory 256M --report-file outer sh -c").arg(script);
    let done = cmd.run().exits(0).prints("137\ngoes on\n");
    assert!(done.stderr.contains(&killed("pls", "32M")), "{}", done.stderr);
    assert_eq!(report(&yard, "r")["exit"]["reason"], "out-of-memory");
    assert_eq!(report(&yard, "outer")["exit"]["reason"], "exited");
    yard.assert_clean();
    // A default is for the job as a whole: no word about it for a part, nor a group.
    let config = yard.write("config.toml", "quiet-limit = 'none'\nmemory = '64M'\npids = 20\n");
    let with = format!("--config {}", config.display());
    for outer in [&*with, "--memory none"] {
        let cmd = yard.cmd(&format!("perflock {outer} pls {with} --report-file r true"));
        cmd.run().exits(0).prints("").says("");
        let expected = json!({"memory_bytes": null, "processes": null, "not_in_force": null});
        assert_eq!(report(&yard, "r")["limits"], expected);
    }
    // With everything killed, the inner group goes with the outer one.
    let line = "perflock -q --time-limit 0.3 --grace 0 --memory 64M --pids 20 pls -q --memory 32M --pids 10 sleep 600";
    yard.cmd(line).run().exits(124);
    yard.assert_clean();
}

#[test]
fn a_plain_user_without_the_controllers_is_refused_or_told() {
    needs!(Root, V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::around(World::for_uid(ALICE));
    let [no_memory, no_pids] = [&yard.memory, &yard.pids]
        .map(|group| format!("no write access to {}: Permission denied", group.path().display()));
    for (option, why) in [("--memory 64M", &no_memory), ("--pids 10", &no_pids)] {
        let name = option.split(' ').next().unwrap();
        let said = format!("perflock: {name} cannot be had here: {why} (run perflock as root)\n");
        yard.cmd(&format!("perflock {option} touch ran")).run().exits(125).prints("").says(&said);
        assert!(!yard.path("ran").exists());
    }
    let config = yard.write("config.toml", "quiet-limit = 'none'\nmemory = '64M'\npids = 10\n");
    let said = format!(
        "perflock: not limited as configured (memory 64M: {no_memory}; 10 processes: {no_pids}; run perflock as root); --memory \
         none --pids none silences this\n"
    );
    yard.cmd("perflock --config").arg(&config).args(["echo", "ran"]).run().exits(0).prints("ran\n").says(&said);
    yard.assert_clean();
    // Whoever was given groups has limits in them.
    yard.memory.give(ALICE);
    yard.pids.give(ALICE);
    yard.cmd("perflock --config").arg(&config).args(["echo", "ran"]).run().exits(0).prints("ran\n").says("");
    yard.cmd(&format!("perflock --memory 32M {HOG}")).run().dies_of(libc::SIGKILL).says(&killed("perflock", "32M"));
    yard.assert_clean();
}

#[test]
fn limits_and_processors_go_together() {
    needs!(V2, OwnGroup, TwoCores, V1("memory"), V1("pids"), V1("cpuset"));
    let yard = Yard::new();
    let cpuset = V1Group::cpuset("0-1").unwrap();
    let line = "pls --pin hard --cpus 1 --memory 48M --pids 7";
    let script = "grep -c /perflock- /proc/self/cgroup; grep Cpus_allowed_list /proc/self/status";
    let cmd = cpuset.enter(yard.cmd(line).args(["sh", "-c", script]));
    cmd.run().exits(0).prints("4\nCpus_allowed_list:\t1\n").says("");
    // One that cannot be made leaves none of the others.
    let cmd = cpuset.enter(yard.cmd("pls --pin hard --cpus 1 --memory 48M touch ran"));
    let holder = yard.world.holder("perflock");
    let waiter = yard.waiter("2.s", cmd);
    cpuset.set("cpuset.cpus", "0");
    end(holder);
    waiter.wait().exits(125).prints("").mentions("/cpuset.cpus: Permission denied\n");
    assert!(!yard.path("ran").exists());
    assert_eq!(cpuset.children(), Vec::<PathBuf>::new());
    yard.assert_clean();
}

#[test]
fn a_crash_of_both_leaves_groups_that_the_next_job_removes() {
    needs!(Root, V2, OwnGroup, V1("memory"), V1("pids"));
    for uid in [0, ALICE] {
        let yard = Yard::around(if uid == 0 { World::new() } else { World::for_uid(uid) });
        yard.memory.give(uid);
        yard.pids.give(uid);
        let job = yard.holder("pls -q --memory 48M --pids 9");
        let main = pid_in(&yard.path("main"));
        let guard = yard.guard_of("1.s");
        kill_pair(job, guard);
        assert!(alive(main));
        assert_eq!(yard.groups().len(), 2);
        let done = yard.cmd("perflock echo ran").run().exits(0).prints("ran\n");
        let user = if uid == 0 { me() } else { uid.to_string() };
        let said = format!(
            "perflock: ending the job sh -c 'echo $$ > main; echo running; exec sleep 600' of {user}, whose supervisor was killed, \
             before starting\n"
        );
        assert_eq!(done.stderr, said);
        // The ticket of what was ended goes with a newcomer, if not before.
        yard.cmd("pls true").run().exits(0).says("");
        assert!(!alive(main));
        yard.assert_clean();
    }
}

#[test]
fn a_killed_supervisor_s_guard_removes_the_groups_and_reports_what_they_counted() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    let job = yard.holder("perflock -q --memory 48M --pids 9 --report-file r");
    job.signal(libc::SIGKILL);
    job.wait().dies_of(libc::SIGKILL);
    yard.wait_clean();
    let report = report(&yard, "r");
    assert_eq!(report["exit"]["reason"], "supervisor-lost");
    assert_eq!(report["limits"]["processes"], 9);
    assert_eq!(report["usage"]["tasks_peak"], 1);
    assert!(report["usage"]["memory_peak_bytes"].as_u64().is_some_and(|peak| peak > 0), "{}", report["usage"]);
}

#[test]
fn what_left_the_group_of_its_job_keeps_its_limits_and_that_is_told() {
    needs!(Root, V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    let elsewhere = yard.group().join("elsewhere.service");
    fs::create_dir(&elsewhere).unwrap();
    let script = "sleep 600 >/dev/null 2>&1 & echo $! > pid; echo $! > \"$0/cgroup.procs\"";
    let done = yard.cmd("pls --escapes ignore --pids 9 sh -c").arg(script).arg(&elsewhere).run().exits(0);
    let left = pid_in(&yard.path("pid"));
    let group = yard.groups().pop().unwrap();
    let said = format!(
        "pls: warning: cannot remove the group {}: Device or resource busy; if a process that left the job's group is in it, it \
         has to be removed by hand (rmdir) when that ends\n",
        group.display()
    );
    assert_eq!(done.stderr, said);
    signal(left, libc::SIGKILL);
    wait_until("it is dead", || fs::remove_dir(&elsewhere).is_ok());
    wait_until("its group can be removed", || fs::remove_dir(&group).is_ok());
    yard.assert_clean();
}

#[test]
fn nobody_is_woken_for_limits() {
    needs!(V2, OwnGroup, V1("memory"), V1("pids"));
    let yard = Yard::new();
    let job = yard.holder("perflock --memory 48M --pids 9");
    let keepers = [job.pid(), yard.guard_of("1.x")];
    let switches = || {
        keepers.map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned).collect::<Vec<_>>()
        })
    };
    let mut before = switches();
    // From when they sleep.
    wait_until("they sleep", || {
        std::thread::sleep(Duration::from_millis(50));
        std::mem::replace(&mut before, switches()) == before
    });
    let since = Instant::now();
    while since.elapsed() < patient(Duration::from_millis(500)) {
        assert_eq!(switches(), before);
        std::thread::sleep(Duration::from_millis(20));
    }
    end(job);
    yard.assert_clean();
}

#[test]
fn in_a_scope_the_command_joins_its_groups_from_the_gate() {
    needs!(Root, V2, Manager, V1("memory"), V1("pids"));
    let machine = Machine::new();
    let [memory, pids] = ["memory", "pids"].map(|name| V1Group::new(name).unwrap());
    memory.set("memory.limit_in_bytes", "1G");
    memory.give(machine.uid());
    pids.give(machine.uid());
    // What covers the machine's hierarchies there does not cover these.
    let mounts = "mount -t tmpfs none /mnt; mkdir /mnt/memory /mnt/pids
                  for name in memory pids; do mount -t cgroup -o $name none /mnt/$name; done";
    let cmd = |line: &str| pids.enter(memory.enter(machine.altered(mounts, line)));
    let script =
        "grep -c '/pltest-.*/perflock-' /proc/self/cgroup; grep -c '^0::.*[.]scope/perflock-' /proc/self/cgroup";
    let line = "perflock --cgroup required --memory 48M --pids 9 sh -c";
    cmd(line).arg(script).run().exits(0).prints("2\n1\n").says("");
    cmd(&format!("perflock --cgroup required --memory 32M {HOG}"))
        .run()
        .dies_of(libc::SIGKILL)
        .says(&killed("perflock", "32M"));
    machine.assert_clean();
    let left: Vec<PathBuf> = memory.children().into_iter().chain(pids.children()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    // Without them the v2 hierarchy would have to have the controllers.
    let said = "perflock: --memory cannot be had here: the memory hierarchy that this process is in is not mounted here, or is another \
                controller's, too (run perflock as root)\n";
    machine.cmd("perflock --memory 48M touch ran").run().exits(125).prints("").says(said);
    machine.wait_gone();
}
