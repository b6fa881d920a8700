//! Jobs in systemd scopes, on a [`Machine`] with a systemd of its own: where everything is, and that a job and its user
//! notice nothing.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use perflock::text;

use crate::harness::{BOB, Machine, Running, alive, delegate, groups, patient, pid_in, threads_of, wait_until};
use crate::inherit::assert_same;
use crate::needs;
use crate::release::{DAEMON, SLEEPER, START_DAEMON, killed};

/// A job of one process that runs until it gets a signal. Its pid is in the file `main`.
#[track_caller]
pub(crate) fn sleeper(machine: &Machine, program: &str) -> (Running, i32) {
    let _ = fs::remove_file(machine.path("main"));
    let running = machine.cmd(program).args(["sh", "-c", "echo $$ > main; exec sleep 600"]).spawn();
    let main = pid_in(&machine.path("main"));
    wait_until("the job runs", || comm(main) == "sleep");
    (running, main)
}

/// Ends what [`sleeper`] started, and finds nothing left.
#[track_caller]
pub(crate) fn end(machine: &Machine, running: Running) {
    running.signal(libc::SIGTERM);
    running.wait().dies_of(libc::SIGTERM).says("");
    machine.assert_clean();
    machine.wait_gone();
}

pub(crate) fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// Parent, process group, session, terminal.
fn relations(pid: i32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').skip(1).take(4).map(str::to_owned).collect()
}

/// What the descriptors of a process are.
fn descriptors(pid: i32) -> Vec<(i32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut open: Vec<(i32, String)> = entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, target.to_str()?.to_owned()))
        })
        .collect();
    open.sort();
    open
}

/// Splits `PARENT/perflock-ID.scope/perflock-ID`.
#[track_caller]
pub(crate) fn parts(path: &str) -> (String, String) {
    let mut parts = path.rsplitn(3, '/');
    let (job, scope, parent) = (parts.next().unwrap(), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    assert!(groups::is_job(job), "{path}");
    assert_eq!(scope, format!("{job}.scope"), "{path}");
    (parent.to_owned(), job.strip_prefix("perflock-").unwrap().to_owned())
}

#[test]
fn supervisor_guard_and_command_are_where_they_belong() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let uid = machine.uid();
    for (program, ticket) in [("perflock", "1.x"), ("pls", "1.s"), ("perflock --cgroup required", "1.x")] {
        let (running, main) = sleeper(&machine, program);
        let guard = machine.guard_of(ticket);
        let group = machine.group_of(main);
        let (parent, id) = parts(&group);
        assert!(parent.starts_with(&format!("/user.slice/user-{uid}.slice/user@{uid}.service/")), "{group}");
        let scope = format!("{parent}/perflock-{id}.scope");
        assert_eq!(machine.group_of(guard), format!("{scope}/guard"));
        let session = format!("/user.slice/user-{uid}.slice/session-1.scope");
        assert_eq!(machine.group_of(running.pid()), session);
        // Nobody else is there: no helper that has done its work, and nobody in the scope itself.
        let directory = machine.group().join(&scope[1..]);
        let mut expected = vec![running.pid(), guard, main];
        let mut found = machine.processes();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(fs::read_to_string(directory.join("cgroup.procs")).unwrap(), "");
        let mut children: Vec<_> =
            groups::children(&directory).into_iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        children.sort();
        assert_eq!(children, ["guard", &*format!("perflock-{id}")]);
        // The command is the supervisor's child, in its process group and session; the guard has its own.
        let [pid, command, own] = [running.pid(), main, guard].map(|pid| pid.to_string());
        let session = nix::unistd::getsid(None).unwrap().to_string();
        assert_eq!(relations(main)[..3], [&*pid, &*pid, &*session], "{command}");
        assert_eq!(relations(guard)[..3], [&*pid, &*own, &*own]);
        // The ticket says so too: first that there will be a group, then which.
        let lines: Vec<_> = machine.ticket(ticket).into_iter().filter(|line| line["event"] == "group").collect();
        assert!(lines.len() >= 2, "{lines:?}");
        assert!(lines[0]["path"].is_null(), "{lines:?}");
        let last = lines.last().unwrap();
        assert_eq!((last["backend"].as_str(), last["path"].as_str()), (Some("scope"), Some(&*group)), "{last}");
        let environ = fs::read(format!("/proc/{main}/environ")).unwrap();
        let job = format!("PERFLOCK_JOB={id}");
        assert!(environ.split(|&byte| byte == 0).any(|entry| entry == job.as_bytes()));
        // And systemd knows it as a scope that is ours to divide.
        let unit = format!("perflock-{id}.scope");
        assert_eq!(machine.units(), [&*unit]);
        let shown = machine.systemctl(&format!("show --property Delegate,Transient,ActiveState {unit}"));
        let mut shown: Vec<&str> = shown.lines().collect();
        shown.sort_unstable();
        assert_eq!(shown, ["ActiveState=active", "Delegate=yes", "Transient=yes"]);
        end(&machine, running);
    }
}

#[test]
fn wholock_counts_the_job_and_not_the_guard() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let (running, main) = sleeper(&machine, "perflock");
    let guard = machine.guard_of("1.x");
    for uid in [machine.uid(), 0, BOB] {
        let shown = machine.cmd("wholock --sample 0").uid(uid).run().exits(0).says("").stdout;
        let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        let procs = shown.lines().next().unwrap().find("PROCS").unwrap();
        let row = shown.lines().nth(1).unwrap();
        assert_eq!(rows[1][2..4], ["exclusive", "running"], "{shown}");
        assert_eq!(row[procs..procs + "PROCS".len()].trim(), "1", "{shown}");
    }
    let told = |pid: i32| machine.cmd("wholock --pid").arg(pid.to_string()).run().exits(0).stdout;
    assert!(!told(main).contains("belongs to no job"), "{}", told(main));
    assert!(!told(running.pid()).is_empty() && !told(guard).is_empty());
    end(&machine, running);
}

#[test]
fn exit_codes_and_signals_pass_through() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    for code in [0, 3, 75, 125, 126, 127, 255] {
        machine.cmd("perflock sh -c").arg(format!("exit {code}")).run().exits(code).prints("").says("");
    }
    for number in [libc::SIGTERM, libc::SIGKILL, libc::SIGINT, libc::SIGSEGV, 34] {
        let job = machine.cmd("perflock sh -c").arg(format!("ulimit -c 0; kill -{number} $$"));
        job.run().dies_of(number).prints("").says("");
    }
    machine.cmd("perflock ./missing").run().exits(127).prints("").mentions("perflock: ");
    machine.write("plain", "no program\n");
    machine.cmd("perflock ./plain").run().exits(126).prints("").mentions("perflock: ");
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn the_command_gets_what_perflock_was_given() {
    needs!(Root, V2, Manager, Program("bash"));
    let machine = Machine::new();
    machine.write("input", "one\ntwo\nthree\n");
    for line in [
        "{} env | grep -v '^\\(PERFLOCK_JOB\\|PERFLOCK_MODE\\|_\\)=' | sort",
        // What a process inherits, as far as /proc tells, on one path from fork to exec.
        "cd units; umask 027; ulimit -n 99; ulimit -S -c 7; nice -n 5 {} sh -c 'pwd; umask; nice; ulimit -a; cd /proc/$$; \
         cat oom_score_adj timerslack_ns personality coredump_filter loginuid sessionid limits uid_map attr/current 2>/dev/null; \
         grep -E \"^(Uid|Gid|Groups|Umask|Sig[BICQ]|Shd|Cap|NoNew|Seccomp|Cpus_allowed|Mems_allowed|THP|Threads)\" status | grep -v ^SigQ'",
        "{} sed -n /^Sig[BIC]/p /proc/self/status",
        "trap '' INT HUP; nohup {} sed -n /^Sig[BIC]/p /proc/self/status 2>/dev/null",
        "{} sh -c 'readlink /proc/$$/ns/*'",
        r#"exec 3<input 7>output 9<>both 200<input; {} sh -c 'find /proc/$$/fd -type l -printf "%f %l\n"; true' | sed 's/pipe.*//' | sort"#,
        "exec 3<input; {} sh -c 'read line <&3'; read line <&3; echo $line",
        "{} cat <(echo substituted)",
        r"{} printf '[%s]' '' ' a  b ' $'\xff\n' -- -x '*' | od -An -c",
        "echo piped | {} cat",
        "{} sh -c 'find /proc/$$/fd -type l -printf \"%f\n\"; true' <&- 2>&- | sort",
    ] {
        let seen = assert_same(&machine, "bash", line);
        assert_ne!(seen, "", "{line}");
        machine.assert_clean();
    }
    machine.wait_gone();
}

#[test]
fn nothing_of_the_bus_is_left_in_supervisor_and_guard() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let sockets = |pid: i32| descriptors(pid).into_iter().filter(|(_, file)| file.starts_with("socket:")).count();
    let without = {
        let (running, _) = sleeper(&machine, "perflock --cgroup none");
        let guard = machine.guard_of("1.x");
        let counted = [running.pid(), guard].map(sockets);
        end(&machine, running);
        counted
    };
    let (running, main) = sleeper(&machine, "perflock");
    let guard = machine.guard_of("1.x");
    for pid in [running.pid(), guard, main] {
        assert_eq!(threads_of(pid).len(), 1, "{}", comm(pid));
    }
    // The last one closes when the command has begun.
    wait_until("no socket is left", || [running.pid(), guard].map(sockets) == without);
    assert_eq!(sockets(main), 0);
    let on_the_bus = machine.cmd("busctl --user list --no-legend").run();
    for line in on_the_bus.stdout.lines() {
        assert!(!line.contains("perflock"), "{}", on_the_bus.stdout);
    }
    // The guard keeps what it works with, and nothing of the user's.
    let own = |file: &str| {
        let path = Path::new(file);
        let ours = path == machine.lock() || path.starts_with(machine.queue()) || file.contains("/perflock-");
        ours || file.contains("pidfd") || file.contains("signalfd")
    };
    let open = descriptors(guard);
    assert!(open.iter().filter(|(fd, _)| *fd < 3).all(|(_, file)| file == "/dev/null"), "{open:?}");
    assert!(open.iter().filter(|(fd, _)| *fd > 2).all(|(_, file)| own(file)), "{open:?}");
    assert!(open.len() <= 9, "{open:?}");
    assert_eq!(fs::read_link(format!("/proc/{guard}/cwd")).unwrap(), Path::new("/"));
    end(&machine, running);
}

#[test]
fn supervisor_and_guard_sleep_while_the_job_runs() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let (running, _) = sleeper(&machine, "perflock");
    let guard = machine.guard_of("1.x");
    let switches = || {
        [running.pid(), guard].map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        })
    };
    // It may still be about to fall asleep.
    let asleep = || [running.pid(), guard].iter().all(|&pid| crate::harness::state_of(pid) == 'S');
    wait_until("both sleep", asleep);
    std::thread::sleep(Duration::from_millis(300));
    let before = switches();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(switches(), before);
    end(&machine, running);
}

#[test]
fn output_ends_with_the_command_and_the_guard_holds_no_pipe() {
    needs!(Root, V2, Manager, Program("bash"));
    let machine = Machine::new();
    machine.cmd("bash -c").arg("perflock echo x | cat; echo ${PIPESTATUS[0]}").run().exits(0).prints("x\n0\n").says("");
    machine
        .cmd("bash -c")
        .arg("perflock yes | head -1; echo ${PIPESTATUS[0]}")
        .run()
        .exits(0)
        .prints("y\n141\n")
        .says("");
    // Also when the supervisor is killed, and so the guard is the last to go.
    let script =
        "{ echo $BASHPID > supervisor; exec perflock sh -c 'echo $$ > main; exec sleep 600'; } | { cat; touch eof; }";
    let running = machine.cmd("bash -c").arg(script).spawn();
    let (supervisor, main) = (pid_in(&machine.path("supervisor")), pid_in(&machine.path("main")));
    crate::harness::signal(supervisor, libc::SIGKILL);
    wait_until("the reader sees the end", || machine.path("eof").exists());
    assert!(!alive(main));
    running.wait().exits(0);
    machine.wait_gone();
}

#[test]
fn keys_typed_on_the_terminal_reach_the_command() {
    needs!(Root, V2, Manager, Program("bash"));
    let machine = Machine::new();
    let job = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.01; done";
    let mut terminal = machine.cmd("perflock sh -c").arg(job).on_terminal();
    terminal.wait_screen("ready");
    assert_eq!(terminal.foreground(), terminal.pid());
    terminal.type_in("\x03");
    assert_eq!(terminal.wait().code(), Some(9));
    terminal.wait_screen("caught");
    machine.assert_clean();
    assert_eq!(terminal.screen().matches("caught").count(), 1, "{}", terminal.screen());
    // What tells of the terminal is as without perflock, but for the processes' numbers.
    let line = "sh -c 'tty; read -r pid name state parent group session terminal foreground rest < /proc/$$/stat; \
        [ $session = $SHELL_PID ]; echo $? $terminal; [ $group = $foreground ]; echo $?'";
    let tell = |prefix: &str| {
        let mut terminal =
            machine.cmd("bash -c").arg(format!("export SHELL_PID=$$; {prefix} {line}; exit 5")).on_terminal();
        assert_eq!(terminal.wait().code(), Some(5));
        terminal.wait_screen("\n0\r\n");
        let lines: Vec<String> = terminal.screen().lines().map(|line| line.trim_end().to_owned()).collect();
        // The terminal has a number of its own.
        assert!(lines[0].starts_with("/dev/pts/"), "{lines:?}");
        (lines[1].starts_with("0 "), lines[2].clone(), lines.len())
    };
    assert_eq!(tell("perflock"), tell(""));
    // ^Z, and on with it.
    let mut shell = crate::terminal::shell(&machine);
    shell.type_in("perflock sh -c 'echo $$ > main; echo star''ted; until [ -e stop ]; do sleep 0.01; done; exit 6'\n");
    shell.wait_screen("started");
    let main = pid_in(&machine.path("main"));
    shell.type_in("\x1a");
    shell.wait_screen("Stopped");
    wait_until("the command is stopped", || matches!(crate::harness::state_of(main), 'T' | 'D'));
    shell.type_in("fg\n");
    wait_until("the command goes on", || !matches!(crate::harness::state_of(main), 'T'));
    machine.write("stop", "");
    shell.type_in("echo code=$?\n");
    shell.wait_screen("code=6");
    crate::terminal::leave(&machine, shell);
    machine.wait_gone();
}

#[test]
fn leftovers_are_ended_named_or_waited_for() {
    needs!(Root, V2, Manager, Program("perl"));
    let machine = Machine::new();
    machine.write("daemon.pl", DAEMON);
    let done = machine.cmd("perflock --grace 0.2 sh -c").arg(format!("{START_DAEMON}; exit 4")).run().exits(4);
    let pid = pid_in(&machine.path("daemon"));
    assert!(!alive(pid));
    done.says(&killed("perl", pid));
    machine.assert_clean();
    let done = machine.cmd("pls sh -c").arg(format!("setsid {SLEEPER}; kill -KILL $$")).run().dies_of(libc::SIGKILL);
    let said = killed("sleep", pid_in(&machine.path("pid")));
    done.says(&said.replace("perflock", "pls"));
    machine.assert_clean();
    let job = "setsid sh -c 'until [ -e stop ]; do sleep 0.02; done; echo late' & exit 6";
    let running = machine.cmd("perflock --leftovers wait sh -c").arg(job).spawn();
    running.wait_stderr("perflock: holding the machine for ");
    assert!(!machine.lock_is_free());
    machine.write("stop", "");
    running.wait().exits(6).prints("late\n");
    machine.assert_clean();
    // A time limit ends all of it.
    let job = "trap '' TERM; setsid sleep 600 & echo $! > pid; wait";
    // The command has to get as far as writing that file.
    let limit = patient(Duration::from_millis(500));
    let line = format!("perflock --time-limit {} --grace 0.2 sh -c", limit.as_secs_f64());
    let done = machine.cmd(&line).arg(job).run().exits(124);
    done.mentions(&format!("perflock: time limit of {} reached: ending the command\n", text::exact_duration(limit)));
    assert!(!alive(pid_in(&machine.path("pid"))));
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn the_job_group_is_the_job_s_own_to_divide() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let job = "own=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup); mkdir -p $own/a/b $own/c || exit 9; \
        sh -c 'echo 0 > '$own'/a/b/cgroup.procs; trap \"\" TERM; echo $$ > moved; exec sleep 600' & \
        until [ -s moved ]; do sleep 0.005; done";
    let done = machine.cmd("perflock --grace 0.2 sh -c").arg(job).run().exits(0);
    done.says(&killed("sleep", pid_in(&machine.path("moved"))));
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn a_process_that_left_the_job_group_keeps_neither_perflock_nor_the_lock() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    // The owner of a subtree may do that; it must only do no harm.
    let job = "own=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup); sleep 600 >/dev/null 2>&1 & echo $! > pid; \
        echo $! > ${own%/*}/guard/cgroup.procs || exit 9; exit 3";
    machine.cmd("perflock --grace 0.2 sh -c").arg(job).run().exits(3);
    wait_until("the lock is free", || machine.lock_is_free());
    machine.cmd("perflock true").run().exits(0);
    let pid = pid_in(&machine.path("pid"));
    if alive(pid) {
        crate::harness::signal(pid, libc::SIGKILL);
    }
    machine.wait_gone();
}

#[test]
fn jobs_side_by_side_have_scopes_of_their_own() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let (first, one) = sleeper(&machine, "pls");
    let (second, other) = sleeper(&machine, "pls");
    assert_ne!(machine.group_of(one), machine.group_of(other));
    assert_eq!((machine.units().len(), machine.scopes().len(), machine.job_groups().len()), (2, 2, 2));
    first.signal(libc::SIGTERM);
    first.wait().dies_of(libc::SIGTERM).says("");
    assert!(alive(other));
    wait_until("systemd forgot one", || machine.units().len() == 1);
    end(&machine, second);
}

#[test]
fn many_that_start_at_once_all_get_a_scope() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let script = "for i in $(seq 20); do pls -n sed -n s/^0:://p /proc/self/cgroup & done; wait";
    let done = machine.sh(script).run().exits(0).says("");
    let mut ids: Vec<String> = done.stdout.lines().map(|line| parts(line).1).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20, "{}", done.stdout);
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn one_after_the_other_leaves_nothing_behind() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let script = "for i in $(seq 20); do perflock true || exit 1; done";
    machine.sh(script).run().exits(0).prints("").says("");
    machine.assert_clean();
    machine.wait_gone();
    assert_eq!(machine.systemctl("list-units --failed --plain --no-legend"), "");
}

#[test]
fn who_waits_or_does_not_get_the_lock_makes_no_scope() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let (holder, _) = sleeper(&machine, "perflock");
    machine.cmd("perflock -n touch ran").run().exits(75);
    machine.cmd("pls -w 0.1 -E 9 touch ran").run().exits(9);
    let waiter = machine.waiter("2.x", machine.cmd("perflock sed -n s/^0:://p /proc/self/cgroup"));
    assert_eq!((machine.units().len(), machine.scopes().len()), (1, 1));
    assert_eq!(descriptors(waiter.pid()).iter().filter(|(_, file)| file.starts_with("socket:")).count(), {
        let other = machine.waiter("3.x", machine.cmd("perflock --cgroup none true"));
        let sockets = descriptors(other.pid()).iter().filter(|(_, file)| file.starts_with("socket:")).count();
        other.signal(libc::SIGTERM);
        other.wait().dies_of(libc::SIGTERM);
        sockets
    });
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
    let done = waiter.wait().exits(0);
    parts(done.stdout.trim_end());
    assert!(!machine.path("ran").exists());
    machine.assert_clean();
    machine.wait_gone();
}

#[test]
fn a_job_inside_a_job_is_a_group_below_it() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    let tell = "sed -n s/^0:://p /proc/self/cgroup";
    for (outer, inner) in [
        ("perflock", "perflock"),
        ("perflock", "pls"),
        ("pls", "pls"),
        ("perflock", "perflock --cgroup required"),
        ("perflock", "env -u PERFLOCK_JOB perflock"),
        ("perflock", "env -u DBUS_SESSION_BUS_ADDRESS perflock"),
    ] {
        let script = format!(
            "{tell}; {inner} {tell}; {inner} pls sh -c '{tell}; systemctl --user list-units --plain --no-legend \"perflock-*\" | grep -c .'"
        );
        let done = machine.cmd(outer).args(["sh", "-c", &script]).run().exits(0).says("");
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!(lines.len(), 4, "{outer} → {inner}: {}", done.stdout);
        parts(lines[0]);
        let below = |outer: &str, inner: &str| {
            let name = inner.strip_prefix(outer).and_then(|rest| rest.strip_prefix('/'));
            name.is_some_and(|name| groups::is_job(name) && !name.contains('/'))
        };
        assert!(below(lines[0], lines[1]), "{outer} → {inner}: {}", done.stdout);
        let (middle, _) = lines[2].rsplit_once('/').unwrap();
        assert!(below(lines[0], middle) && below(middle, lines[2]), "{outer} → {inner}: {}", done.stdout);
        assert_eq!(lines[3], "1", "one scope for all of them");
        machine.assert_clean();
    }
    // What the inner job leaves is ended with it, and its death is not the outer one's.
    let script = "perflock sh -c 'echo $$ > inner; echo $PPID > supervisor; exec sleep 600'; echo outer went on; \
                  while [ ! -e go ]; do sleep 0.01; done";
    let outer = machine.cmd("perflock sh -c").arg(script).spawn();
    let inner = pid_in(&machine.path("inner"));
    crate::harness::signal(pid_in(&machine.path("supervisor")), libc::SIGKILL);
    wait_until("the guard ended the inner job", || !alive(inner));
    outer.wait_stdout("outer went on\n");
    machine.write("go", "");
    outer.wait().exits(0);
    machine.assert_clean();
    let done = machine.cmd("pls perflock touch ran").run().exits(125);
    done.mentions("this runs inside the shared job 1 ");
    machine.wait_gone();
}

#[test]
fn in_a_unit_that_was_delegated_no_scope_is_made() {
    needs!(Root, V2, Manager);
    let mut machine = Machine::new();
    let uid = machine.uid();
    let tell = "perflock sed -n s/^0:://p /proc/self/cgroup";
    let own = |group: &Path| {
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(group.join(file), Some(uid), Some(uid)).unwrap();
        }
    };
    // Writable is not enough: systemd may clean up what it did not give away.
    let path = format!("user.slice/user-{uid}.slice/session-2.scope");
    let group = machine.log_in(&path);
    own(&group);
    let done = machine.cmd(tell).run().exits(0).says("");
    assert!(!parts(done.stdout.trim_end()).0.contains("session"), "{}", done.stdout);
    machine.wait_gone();
    // Given away, and below what was given away.
    delegate(&group);
    for below in ["", "/a/b"] {
        let path = format!("{path}{below}");
        own(&machine.log_in(&path));
        let done = machine.cmd(tell).run().exits(0).says("");
        let name = done.stdout.trim_end().strip_prefix(&format!("/{path}/"));
        assert!(name.is_some_and(groups::is_job), "{}", done.stdout);
        assert_eq!(machine.units(), Vec::<String>::new());
        machine.assert_no_job();
    }
    // A unit of its own in there is not given away.
    let inner = format!("{path}/some.service");
    own(&machine.log_in(&inner));
    let done = machine.cmd(tell).run().exits(0).says("");
    assert!(!parts(done.stdout.trim_end()).0.contains("some.service"), "{}", done.stdout);
    // Given away, but not to us.
    let path = format!("user.slice/user-{uid}.slice/session-3.scope");
    delegate(&machine.log_in(&path));
    let done = machine.cmd(tell).run().exits(0).says("");
    parts(done.stdout.trim_end());
    machine.wait_gone();
}

#[test]
fn what_the_user_s_systemd_starts_gets_a_scope_too() {
    needs!(Root, V2, Manager, Program("systemd-run"));
    let machine = Machine::new();
    // The group of such a service belongs to the user as well, and his whole tree is delegated to him; the service is not.
    let run = "systemd-run --user --quiet --collect --wait --pipe";
    let environment = [
        format!("--setenv=PERFLOCK_LOCK={}", machine.lock().display()),
        format!("--working-directory={}", machine.path("").display()),
    ];
    let job = "sed -n s/^0:://p /proc/self/cgroup; exit 4";
    for properties in ["", "--property=Delegate=yes"] {
        let perflock = machine.program("perflock");
        let cmd = machine.cmd(run).args(properties.split_whitespace()).args(&environment).arg(&perflock);
        let done = cmd.args(["sh", "-c", job]).run().exits(4).says("");
        let path = done.stdout.trim_end();
        if properties.is_empty() {
            assert!(!parts(path).0.contains(".service/run-"), "{path}");
            assert!(!parts(path).0.ends_with(".service"), "{path}");
        } else {
            assert!(groups::is_job(path.rsplit('/').next().unwrap()), "{path}");
        }
        machine.assert_clean();
    }
    // As does what was put into a scope.
    let cmd = machine.cmd("systemd-run --user --quiet --scope perflock sed -n s/^0:://p /proc/self/cgroup");
    let done = cmd.run().exits(0).says("");
    parts(done.stdout.trim_end());
    machine.wait_gone();
}

#[test]
fn where_systemd_does_not_run_its_bus_is_not_asked() {
    needs!(Root, V2, Manager);
    let mut machine = Machine::new();
    let uid = machine.uid();
    fs::remove_dir(machine.inside(Path::new("/run/systemd/system"))).unwrap();
    let done = machine.cmd("perflock sh -c").arg("exit 3").run().exits(3);
    assert!(done.stderr.starts_with("perflock: warning: no job group can be made here ("), "{}", done.stderr);
    assert!(!done.stderr.contains("linger"), "{}", done.stderr);
    let group = machine.log_in(&format!("user.slice/user-{uid}.slice/session-2.scope"));
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        std::os::unix::fs::chown(group.join(file), Some(uid), Some(uid)).unwrap();
    }
    let done = machine.cmd("perflock sed -n s/^0:://p /proc/self/cgroup").run().exits(0).says("");
    assert!(done.stdout.contains("/session-2.scope/perflock-1-"), "{}", done.stdout);
    machine.assert_clean();
}

#[test]
fn root_asks_the_machine_s_systemd() {
    needs!(Root, V2, Manager);
    let machine = Machine::of_root();
    let (running, main) = sleeper(&machine, "perflock");
    let (parent, id) = parts(&machine.group_of(main));
    assert_eq!(parent, "/perflock.slice");
    assert_eq!(machine.group_of(running.pid()), "/user.slice/user-0.slice/session-1.scope");
    assert_eq!(machine.group_of(machine.guard_of("1.x")), format!("{parent}/perflock-{id}.scope/guard"));
    end(&machine, running);
    let done = machine.cmd("perflock sh -c").arg("setsid sleep 600 & exit 7").run().exits(7);
    let said = done.stderr_but_for_waits();
    assert!(said.starts_with("perflock: killed 1 leftover process: "), "{said}");
    machine.assert_clean();
    let (running, main) = sleeper(&machine, "pls");
    running.signal(libc::SIGKILL);
    running.wait().dies_of(libc::SIGKILL).says("");
    machine.wait_gone();
    assert!(!alive(main));
}

#[test]
fn root_does_not_ask_a_user_s_systemd() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    // As by `sudo --preserve-env`: the environment names the user's bus.
    let job = "sed -n s/^0:://p /proc/self/cgroup; exit 3";
    // Root needs no systemd for a real group: where there is no system bus it is made directly.
    let done = machine.cmd("perflock --cgroup required sh -c").arg(job).uid(0).run().exits(3).says("");
    assert!(done.stdout.contains("/session-1.scope/perflock-1-"), "{}", done.stdout);
    machine.assert_clean();
    assert_eq!(machine.units(), Vec::<String>::new());
}

#[test]
fn who_is_root_by_sudo_is_shown_with_his_own_name() {
    needs!(Root, V2, Manager, LoginUid);
    let machine = Machine::of_root();
    let start = |uid: u32| {
        let login = format!("echo {uid} > /proc/self/loginuid && exec pls sh -c 'echo running; exec sleep 600'");
        let running = machine.sh(&login).spawn();
        running.wait_stdout("running\n");
        running
    };
    let jobs = [start(BOB), start(0)];
    let shown = machine.cmd("wholock --sample 0").run().exits(0).stdout;
    assert!(shown.lines().nth(1).unwrap().contains(&format!("root ({BOB})")), "{shown}");
    assert!(!shown.lines().nth(2).unwrap().contains("root ("), "{shown}");
    for job in jobs {
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM);
    }
    machine.wait_gone();
}

#[test]
fn a_process_of_root_s_in_the_job_of_a_user_dies_with_it() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    // What sudo does in there: a member whose user is another.
    let (running, main) = sleeper(&machine, "perflock --grace 0.2");
    let member = machine.cmd("sleep 600").uid(0).in_group(&machine.job_groups()[0]).spawn();
    let pid = member.pid();
    assert_eq!(machine.group_of(pid), machine.group_of(main));
    // The reaper of this one is the test.
    let reap = std::thread::spawn(move || member.wait());
    running.signal(libc::SIGTERM);
    let done = running.wait().dies_of(libc::SIGTERM);
    assert!(done.stderr.contains(&format!("sleep ({pid})")), "{}", done.stderr);
    reap.join().unwrap().dies_of(libc::SIGKILL);
    machine.wait_gone();
}

#[test]
fn the_start_is_no_slower_than_it_must_be() {
    needs!(Root, V2, Manager);
    let machine = Machine::new();
    machine.cmd("perflock true").run().exits(0);
    // Anything that waits for a timeout is far above; what systemd takes is far below.
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            machine.cmd("perflock true").run().exits(0);
            start.elapsed()
        })
        .min();
    assert!(best.unwrap() < patient(Duration::from_millis(500)), "{best:?}");
    machine.wait_gone();
}
