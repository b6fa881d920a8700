//! What a job starts outside of its group is named when the job is over, and never ended.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{
    BOB, Done, Machine, World, alive, deadline, groups, is_slow, pid_in, signal, state_of, wait_until,
};
use crate::needs;

/// A process, ended with this.
struct Runaway(i32);

impl Runaway {
    /// Whose pid the file has.
    #[track_caller]
    fn in_file(world: &World, name: &str) -> Self {
        Self(pid_in(&world.path(name)))
    }

    #[track_caller]
    fn lives_until_ended(self) {
        assert!(alive(self.0) && state_of(self.0) != 'Z', "perflock ended it");
    }
}

impl Drop for Runaway {
    fn drop(&mut self) {
        signal(self.0, libc::SIGKILL);
        let end = std::time::Instant::now() + deadline();
        while alive(self.0) && state_of(self.0) != 'Z' && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

/// A user.
const LONER: u32 = 41_777;

/// What is appended to a background command for the job not to wait for it: it holds no pipe.
const APART: &str = "</dev/null >/dev/null 2>&1 &";

fn report(world: &World) -> Value {
    serde_json::from_str(&world.read("r")).unwrap()
}

/// The report found nothing, and nothing was said.
#[track_caller]
fn no_word(world: &World, done: Done) {
    done.exits(0).says("");
    let report = report(world);
    assert_eq!((&report["escaped"], &report["possible_escapes"]), (&json!([]), &json!([])));
}

/// A group beside the jobs' own.
fn sibling(world: &World, name: &str) -> PathBuf {
    let group = world.group().join(name);
    fs::create_dir(&group).unwrap();
    group
}

/// It is empty, or about to be.
#[track_caller]
fn remove(group: &Path) {
    wait_until("the group can be removed", || groups::remove(group));
}

#[test]
fn what_moved_to_another_group_is_warned_of_with_all_that_descends_from_it() {
    needs!(V2, OwnGroup);
    let world = World::new();
    let group = sibling(&world, "beside");
    let inner = "echo $$ > child.new; mv child.new child; exec sleep 600";
    let script = format!(
        "(echo 0 > {}/cgroup.procs; exec sh -c 'echo $$ > first; env -i sh -c \"{inner}\" & exec sleep 601') {APART}
        until [ -s child ]; do sleep 0.01; done",
        group.display(),
        inner = inner.replace('$', "\\$"),
    );
    let done = world.cmd("perflock --report-file r sh -c").arg(&script).run().exits(0);
    let (first, child) = (Runaway::in_file(&world, "first"), Runaway::in_file(&world, "child"));
    let escaped = report(&world)["escaped"].clone();
    let unit = world.group().file_name().unwrap().to_str().unwrap();
    let path = format!("/{unit}/beside");
    let listed: Vec<(Value, Value, bool)> = (0..2)
        .map(|at| {
            let group = escaped[at]["group"].as_str().unwrap_or_default().ends_with(&path);
            (escaped[at]["pid"].clone(), escaped[at]["command"].clone(), group)
        })
        .collect();
    assert_eq!(
        listed,
        [(json!(first.0), json!(["sleep", "601"]), true), (json!(child.0), json!(["sleep", "600"]), true)],
        "{escaped}"
    );
    let line = format!(
        "perflock: warning: 2 processes that the job started left its group and run on: sleep 601 ({0}, in {unit}), sleep 600 \
         ({1}, in {unit}); to end them: kill {0} {1}\n",
        first.0, child.0
    );
    assert_eq!(done.stderr, line);
    first.lives_until_ended();
    child.lives_until_ended();
    remove(&group);
    world.assert_no_job();
}

#[test]
fn nobody_looks_if_told_so() {
    needs!(V2, OwnGroup);
    for how in ["--escapes ignore", "--config c"] {
        let world = World::new();
        world.write("c", "escapes = \"ignore\"\n");
        let script = format!(
            "(echo 0 > {}/cgroup.procs; exec sh -c 'echo $$ > it; exec sleep 600') {APART} until [ -s it ]; do sleep 0.01; done",
            world.group().display()
        );
        world.cmd(&format!("perflock {how} --report-file r sh -c")).arg(&script).run().exits(0).says("");
        Runaway::in_file(&world, "it").lives_until_ended();
        let report = report(&world);
        assert_eq!((&report["escaped"], &report["possible_escapes"]), (&Value::Null, &Value::Null), "{how}");
        world.assert_no_job();
    }
    let world = World::new();
    let error = "perflock: invalid value 'x' for '--escapes <warn|ignore>': escapes are \"warn\" or \"ignore\"";
    world.cmd("perflock --escapes x true").run().exits(125).mentions(error);
}

#[test]
fn a_new_group_is_a_possible_escape_and_worth_a_warning_when_it_used_cpu_time() {
    needs!(Root, V2, OwnGroup);
    for (burns, program) in [(false, "perflock"), (true, "pls")] {
        // A user's that no test beside this one has: to their jobs it would be a possible escape as well.
        let world = World::for_uid(LONER);
        let group = world.group().join("new");
        // Nothing tells whose it is: not its environment, and its parent has ended.
        let work = if burns { "while [ ! -e stop ]; do :; done" } else { "exec sleep 600" };
        let script = format!(
            "mkdir {group}; (echo 0 > {group}/cgroup.procs; exec env -i setsid sh -c 'echo $$ > it; {work}') {APART}
            until [ -s it ]; do sleep 0.01; done; {wait}",
            group = group.display(),
            wait = match burns {
                true => format!(
                    "until [ $(sed -n 's/usage_usec //p' {}/cpu.stat) -gt 1100000 ]; do sleep 0.02; done",
                    group.display()
                ),
                false => String::new(),
            },
        );
        let done = world.cmd(program).args(["--report-file", "r", "sh", "-c", &script]).run().exits(0);
        let it = Runaway::in_file(&world, "it");
        let report = report(&world);
        assert_eq!(report["escaped"], json!([]));
        let possible = report["possible_escapes"].as_array().unwrap();
        // A test beside this one makes a container, which is anybody's.
        let found = possible.iter().find(|found| found["pid"] == it.0).unwrap_or_else(|| panic!("{report:#}"));
        assert!(found["group"].as_str().unwrap().ends_with("/new"), "{found}");
        assert_eq!((&found["unit"], &found["container"]), (&Value::Null, &json!(false)));
        let cpu_usec = found["cpu_usec"].as_u64().unwrap();
        // Where a process takes long to start, that alone may be worth the warning.
        let worth = cpu_usec > 1_000_000;
        assert!(worth == burns || (worth && is_slow()), "{found}");
        let warning = format!(
            "{program}: warning: while the job ran, perhaps started by it, and running on outside of its group: "
        );
        let named =
            done.stderr.lines().any(|line| line.starts_with(&warning) && line.contains(&format!(", {}; used ", it.0)));
        assert_eq!(named, worth, "{}", done.stderr);
        it.lives_until_ended();
        remove(&group);
        world.assert_no_job();
    }
}

#[test]
fn a_container_of_anybody_s_that_appeared_is_a_possible_escape() {
    needs!(Root, V2, OwnGroup);
    let world = World::new();
    let engine = sibling(&world, "docker");
    // By an engine that the job asked, and that runs it as another user.
    let script = format!(
        "mkdir {engine}/0123; (echo 0 > {engine}/0123/cgroup.procs; exec env -i setpriv --reuid {BOB} --clear-groups sh -c 'exec sleep 600') {APART}
        echo $! > it; until [ \"$(cat /proc/$!/comm)\" = sleep ]; do sleep 0.01; done",
        engine = engine.display()
    );
    world.cmd("perflock --report-file r sh -c").arg(&script).run().exits(0).says("");
    let it = Runaway::in_file(&world, "it");
    let report = report(&world);
    let possible = report["possible_escapes"].as_array().unwrap();
    let found = possible.iter().find(|found| found["pid"] == it.0).unwrap_or_else(|| panic!("{report:#}"));
    assert!(found["container"] == true && found["group"].as_str().unwrap().ends_with("/docker/0123"), "{found}");
    it.lives_until_ended();
    remove(&engine);
    world.assert_no_job();
}

#[test]
fn what_runs_in_a_group_that_was_there_before_is_not_suspected() {
    needs!(V2, OwnGroup);
    let world = World::new();
    let group = sibling(&world, "before");
    let script = format!(
        "(echo 0 > {}/cgroup.procs; exec env -i setsid sh -c 'echo $$ > it; exec sleep 600') {APART} until [ -s it ]; do sleep 0.01; done",
        group.display()
    );
    let done = world.cmd("perflock --report-file r sh -c").arg(&script).run().exits(0).says("");
    let it = Runaway::in_file(&world, "it");
    let report = report(&world);
    assert!(!report["possible_escapes"].to_string().contains("/before"), "{report:#}");
    assert_eq!(report["escaped"], json!([]), "{}", done.stdout);
    it.lives_until_ended();
    remove(&group);
    world.assert_no_job();
}

#[test]
fn what_a_tmux_server_that_was_there_runs_for_a_job_is_not_seen() {
    needs!(V2, OwnGroup, Program("tmux"));
    let world = World::new();
    let tmux = format!("tmux -S {} -f /dev/null", world.path("tmux").display());
    world.cmd(&format!("{tmux} new-session -d sleep 602")).run().exits(0);
    // A limit that the README tells: the server's processes are its own, in the group that it has always been in.
    let script = format!("{tmux} new-window -d 'echo $$ > it; exec sleep 600'; until [ -s it ]; do sleep 0.01; done");
    let done = world.cmd("perflock --report-file r sh -c").arg(&script).run().exits(0).says("");
    let it = Runaway::in_file(&world, "it");
    let report = report(&world);
    assert_eq!(report["escaped"], json!([]), "{}", done.stdout);
    assert!(!report["possible_escapes"].to_string().contains(&it.0.to_string()), "{report:#}");
    it.lives_until_ended();
    world.cmd(&format!("{tmux} kill-server")).run().exits(0);
    world.wait_clean();
}

#[test]
fn what_a_job_inside_another_left_is_told_by_the_outer_one() {
    needs!(V2, OwnGroup);
    let world = World::new();
    let script = format!(
        "(echo 0 > {}/cgroup.procs; exec sh -c 'echo $$ > it; exec sleep 600') {APART} until [ -s it ]; do sleep 0.01; done",
        world.group().display()
    );
    let done = world.cmd("perflock pls sh -c").arg(&script).run().exits(0);
    let it = Runaway::in_file(&world, "it");
    let lines: Vec<&str> = done.stderr.lines().collect();
    assert!(
        matches!(&lines[..], [line] if line.starts_with("perflock: warning: 1 process that the job started left")),
        "{lines:?}"
    );
    it.lives_until_ended();
    world.assert_no_job();
}

#[test]
fn what_systemd_starts_for_a_job_is_told() {
    needs!(Root, V2, Manager, Program("systemd-run"));
    let machine = Machine::new();
    let run = "systemd-run --user --quiet --collect";
    // In files, since systemd expands a `$` itself.
    machine.script("within.sh", "echo $$ > within; exec sleep 600");
    machine.script("asked.sh", "echo $$ > asked; exec sleep 601");
    let script = format!(
        "{run} --scope --unit=within sh within.sh {APART}
        {run} --unit=asked --working-directory=$PWD sh asked.sh
        until [ -s within ] && [ -s asked ]; do sleep 0.01; done"
    );
    for cgroup in ["auto", "none"] {
        let done =
            machine.cmd(&format!("perflock --cgroup {cgroup} --report-file r sh -c")).arg(&script).run().exits(0);
        let asked = Runaway::in_file(&machine, "asked");
        let report = report(&machine);
        let found = &report["possible_escapes"][0];
        assert_eq!((&found["unit"], &found["pid"]), (&json!("asked.service"), &json!(asked.0)), "{report:#}");
        assert_eq!(report["possible_escapes"].as_array().unwrap().len(), 1);
        if cgroup == "auto" {
            let within = Runaway::in_file(&machine, "within");
            let escaped = &report["escaped"];
            assert_eq!(
                (&escaped[0]["unit"], &escaped[0]["pid"]),
                (&json!("within.scope"), &json!(within.0)),
                "{report:#}"
            );
            assert_eq!(escaped.as_array().unwrap().len(), 1);
            let line = format!(
                "perflock: warning: 1 process that the job started left its group and run on: sleep 600 ({0}, in within.scope); \
                 to end them: kill {0}\n",
                within.0
            );
            assert_eq!(done.stderr, line);
            within.lives_until_ended();
        } else {
            // Without a group the marker keeps it in the job, which ended it.
            assert_eq!(report["escaped"], json!([]), "{report:#}");
        }
        asked.lives_until_ended();
        wait_until("systemd forgot them", || {
            let units = machine.systemctl("list-units --all --plain --no-legend within.scope asked.service");
            units.is_empty()
        });
        fs::remove_file(machine.path("within")).unwrap();
        fs::remove_file(machine.path("asked")).unwrap();
    }
    machine.wait_gone();
}

#[test]
fn another_login_of_the_user_is_not_suspected() {
    needs!(Root, V2, Manager, Program("vim.tiny"));
    let mut machine = Machine::new();
    let job = machine
        .cmd("perflock --report-file r sh -c")
        .arg("echo $$ > job; until [ -e stop ]; do sleep 0.01; done")
        .spawn();
    pid_in(&machine.path("job"));
    // The session appears while the job runs, and so does all that it runs.
    let group = format!("user.slice/user-{}.slice/session-2.scope", machine.uid());
    machine.log_in(&group);
    let mut vim = machine.cmd("vim.tiny -u NONE text").env("TERM", "vt100").on_terminal();
    vim.wait_screen("[New");
    machine.cmd("ls").run().exits(0);
    machine.write("stop", "");
    no_word(&machine, job.wait());
    vim.type_in(":q!\r");
    assert_eq!(vim.wait().code(), Some(0));
    machine.wait_gone();
}

#[test]
fn after_a_short_job_no_process_is_looked_into() {
    needs!(V2, Program("strace"));
    let world = World::new();
    world.cmd("strace -f -o trace -e trace=openat perflock true").run().exits(0).says("");
    let trace = world.read("trace");
    assert!(trace.contains("/proc/loadavg"), "{trace}");
    let looked: Vec<&str> = trace.lines().filter(|line| line.contains("/environ\"")).collect();
    // Somebody else's may have begun in the same moment.
    assert!(looked.len() < 20, "{looked:?}");
    assert!(!trace.contains("\"/proc\","), "{trace}");
    world.cmd("strace -f -o trace -e trace=openat perflock --escapes ignore true").run().exits(0).says("");
    assert!(!world.read("trace").contains("/proc/loadavg"));
    world.assert_clean();
}
