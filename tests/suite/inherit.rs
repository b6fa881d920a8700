//! The command gets exactly what perflock was given, and its end is told as without perflock.

use std::os::unix::process::ExitStatusExt;

use crate::harness::{Cmd, World, wait_until};
use crate::needs;

/// What a shell line prints with `{}` replaced by nothing and by `perflock`.
fn without_and_with(world: &World, shell: &str, line: &str) -> (String, String) {
    let run = |prefix: &str| {
        let done = world.cmd(shell).arg("-c").arg(line.replace("{}", prefix)).run().exits(0);
        assert!(!done.stderr.contains("perflock:"), "{}", done.stderr);
        done.stdout
    };
    (run(""), run("perflock"))
}

#[track_caller]
pub(crate) fn assert_same(world: &World, shell: &str, line: &str) -> String {
    let (without, with) = without_and_with(world, shell, line);
    assert_eq!(with, without, "{line}");
    with
}

fn signal(number: i32, action: libc::sighandler_t) -> impl FnMut() -> std::io::Result<()> {
    move || {
        // SAFETY: the action is SIG_IGN or SIG_DFL; nothing else is called.
        unsafe { libc::signal(number, action) };
        Ok(())
    }
}

fn block_all_signals() -> std::io::Result<()> {
    Ok(nix::sys::signal::SigSet::all().thread_block()?)
}

fn dispositions(cmd: Cmd) -> String {
    cmd.run().exits(0).stdout
}

// sed handles no signal itself.
const SIGNALS: &str = "sed -n /^Sig[BIC]/p /proc/self/status";

/// The signals that are ignored, as `/proc/PID/status` shows them.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    u64::from_str_radix(line, 16).unwrap()
}

#[test]
fn ignored_and_blocked_signals_are_as_without_perflock() {
    needs!(V2);
    let world = World::new();
    let job = format!("{{}} {SIGNALS}");
    assert_same(&world, "sh", &job);
    let nohup = assert_same(&world, "sh", &job.replace("{}", "nohup {}"));
    assert_eq!(ignored(&nohup) & 1, 1, "{nohup}");
    let background = assert_same(&world, "sh", &format!("{job} & wait $!"));
    assert_eq!(ignored(&background) & 6, 6, "{background}");
    world.assert_clean();
}

#[test]
fn every_signal_that_can_be_ignored_or_blocked_at_start_stays_so() {
    needs!(V2);
    let world = World::new();
    let ignore_all = || {
        for number in (1..=64).filter(|number| ![9, 19, 32, 33].contains(number)) {
            signal(number, libc::SIG_IGN)()?;
        }
        Ok(())
    };
    let without = dispositions(world.cmd(SIGNALS).before_exec(ignore_all));
    assert_eq!(ignored(&without) | 0x1_8000_0000, !0x4_0100, "{without}");
    assert_eq!(dispositions(world.cmd(&format!("perflock {SIGNALS}")).before_exec(ignore_all)), without);
    let without = dispositions(world.cmd(SIGNALS).before_exec(block_all_signals));
    assert_eq!(dispositions(world.cmd(&format!("perflock {SIGNALS}")).before_exec(block_all_signals)), without);
    world.assert_clean();
}

#[test]
fn the_exit_status_is_right_although_sigchld_was_ignored_or_blocked_at_start() {
    needs!(V2);
    let world = World::new();
    for options in ["", "--cgroup none"] {
        let job = || world.cmd(&format!("perflock {options} sh -c")).arg("exit 7");
        job().before_exec(signal(libc::SIGCHLD, libc::SIG_IGN)).run().exits(7).says("");
        job().before_exec(block_all_signals).run().exits(7).says("");
        let job = world.cmd(&format!("perflock {options} sh -c")).arg("kill -KILL $$");
        job.before_exec(signal(libc::SIGCHLD, libc::SIG_IGN)).run().dies_of(libc::SIGKILL).says("");
    }
    world.assert_clean();
}

#[test]
fn a_closed_pipe_ends_the_command_unless_the_signal_is_ignored() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let line = "perflock yes | head -1; echo ${PIPESTATUS[0]}";
    world.cmd("bash -c").arg(line).run().exits(0).prints("y\n141\n").says("");
    let done = world.cmd("bash -c").arg(format!("trap '' PIPE; {line}")).run().exits(0).prints("y\n1\n");
    assert!(done.stderr.starts_with("yes: "), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn descriptors_keep_their_numbers_and_none_of_ours_is_added() {
    needs!(V2, Program("bash"));
    let world = World::new();
    world.write("input", "one\ntwo\nthree\n");
    let job = r#"exec 3<input 7>output 9<>both 200<input; {} sh -c 'find /proc/$$/fd -type l -printf "%f %l\n"; true'"#;
    let open = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        // Pipes of the tests have a number that changes.
        for line in lines.iter_mut().filter(|line| line.contains("pipe:")) {
            line.truncate(line.find(' ').unwrap());
        }
        lines.sort();
        lines
    };
    let (without, with) = without_and_with(&world, "bash", job);
    let (without, with) = (open(without), open(with));
    assert_eq!(with, without);
    assert!(["3 ", "7 ", "9 ", "200 "].iter().all(|fd| with.iter().any(|line| line.starts_with(fd))), "{with:?}");
    // And they are the very same open files.
    let line = "exec 3<input; perflock sh -c 'read line <&3'; read line <&3; echo $line";
    world.cmd("sh -c").arg(line).run().exits(0).prints("two\n").says("");
    world.assert_clean();
}

#[test]
fn closed_standard_descriptors_stay_closed() {
    needs!(V2);
    let world = World::new();
    let job = r#"{} sh -c 'find /proc/$$/fd -type l -fprintf listed "%f\n"; true'"#;
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let list = |prefix: &str| {
            world.sh(&format!("{} {closed}", job.replace("{}", prefix))).run().exits(0).prints("");
            let mut listed: Vec<String> = world.read("listed").lines().map(str::to_owned).collect();
            listed.sort();
            listed
        };
        let without = list("");
        assert!(without.iter().filter(|fd| fd.len() == 1).count() < 3, "{without:?}");
        assert_eq!(list("perflock"), without, "{closed}");
        world.assert_clean();
    }
}

#[test]
fn place_limits_and_priority_are_as_without_perflock() {
    needs!(V2);
    let world = World::new();
    let line = "mkdir -p sub; cd sub; umask 027; ulimit -n 99; ulimit -c 0; echo 300 > /proc/self/oom_score_adj; \
        nice -n 5 {} sh -c 'pwd; umask; nice; ulimit -a; \
        cat /proc/$$/oom_score_adj /proc/$$/timerslack_ns /proc/$$/personality; grep -E \"^(Cap|NoNew|Seccomp)\" /proc/$$/status'";
    let seen = assert_same(&world, "sh", line);
    assert!(seen.contains("/sub\n0027\n5\n"), "{seen}");
    assert!(seen.contains(" 99\n"), "{seen}");
    world.assert_clean();
}

#[test]
fn the_core_limit_is_the_command_s_own() {
    needs!(V2);
    let world = World::new();
    assert_same(&world, "sh", "ulimit -S -c 7; {} sh -c 'ulimit -S -c; ulimit -H -c'");
    world.assert_clean();
}

#[test]
fn the_command_is_a_child_in_the_same_process_group_and_session() {
    needs!(V2);
    let world = World::new();
    let job = "read pid name state parent group session rest < /proc/$$/stat; echo $parent $group $session";
    let running = world.cmd("perflock sh -c").arg(job).spawn();
    let pid = running.pid();
    let session = nix::unistd::getsid(None).unwrap();
    // The harness gave perflock a group of its own.
    running.wait().exits(0).prints(&format!("{pid} {pid} {session}\n")).says("");
    world.assert_clean();
}

#[test]
fn the_environment_gains_the_job_and_its_mode_and_nothing_else() {
    needs!(V2);
    let world = World::new();
    let environment = |line: &str| {
        let done = world.cmd(line).env("PERFLOCK_MODE", "nonsense").env("EMPTY", "").run().exits(0);
        let mut lines: Vec<String> = done.stdout.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let mut expected = environment("env");
    let own = |line: &&String| line.starts_with("PERFLOCK_JOB=") || line.starts_with("PERFLOCK_MODE=");
    expected.retain(|line| !own(&line));
    for (program, mode) in [("perflock", "exclusive"), ("pls", "shared"), ("perflock -s", "shared")] {
        let mut with = environment(&format!("{program} env"));
        let added: Vec<String> = with.iter().filter(own).cloned().collect();
        assert_eq!(added.len(), 2, "{added:?}");
        assert!(added[0].len() > "PERFLOCK_JOB=".len(), "{added:?}");
        assert_eq!(added[1], format!("PERFLOCK_MODE={mode}"));
        with.retain(|line| !own(&line));
        assert_eq!(with, expected);
    }
    world.assert_clean();
}

#[test]
fn arguments_arrive_byte_for_byte() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let line = r"perflock printf '[%s]' '' ' a  b ' $'\xff\n' -- -x '*' | od -An -c";
    let without = world.cmd("bash -c").arg(line.strip_prefix("perflock ").unwrap()).run().exits(0).stdout;
    world.cmd("bash -c").arg(line).run().exits(0).prints(&without).says("");
    world.assert_clean();
}

#[test]
fn a_script_without_an_interpreter_line_is_run_by_sh() {
    needs!(V2);
    let world = World::new();
    world.script("plain", "echo \"$0 $1 $#\"\nexit 4\n");
    world.cmd("perflock ./plain").arg("a b").arg("c").run().exits(4).prints("./plain a b 2\n").says("");
    let path = format!("/nonexistent:.:{}", std::env::var("PATH").unwrap());
    let done = world.cmd("perflock plain").arg("a b").env("PATH", path).run().exits(4).says("");
    assert!(done.stdout.ends_with("plain a b 1\n"), "{}", done.stdout);
    world.script("lost", "#!/nonexistent/interpreter\n");
    let done = world.cmd("perflock ./lost").run().exits(127);
    assert!(done.stderr.starts_with("perflock: cannot run ./lost: "), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn a_process_substitution_can_be_read() {
    needs!(V2, Program("bash"));
    let world = World::new();
    world.cmd("bash -c").arg("perflock cat <(echo x)").run().exits(0).prints("x\n").says("");
    world.cmd("bash -c").arg("perflock tee >(tr a-z A-Z >&2) <<< y; wait").run().exits(0).prints("y\n").says("Y\n");
    world.assert_clean();
}

#[test]
fn the_exit_code_is_the_command_s_own() {
    needs!(V2);
    let world = World::new();
    for code in [0, 1, 2, 3, 75, 76, 124, 125, 126, 127, 128, 129, 137, 143, 200, 255] {
        world.cmd("perflock sh -c").arg(format!("exit {code}")).run().exits(code).prints("").says("");
    }
    world.assert_clean();
}

#[test]
fn a_death_by_signal_is_repeated_without_a_core() {
    needs!(V2);
    let world = World::new();
    for number in [1, 2, 3, 6, 9, 10, 11, 13, 14, 15, 24, 31, 34, 41, 64] {
        let unlimited = || {
            let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: the pointer is to a valid structure.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const all) };
            Ok(())
        };
        // Only perflock may dump core: the command's own is its own business, and slow.
        let job = world.cmd("perflock sh -c").arg(format!("ulimit -c 0; kill -{number} $$"));
        let done = job.before_exec(unlimited).run().dies_of(number).prints("").says("");
        assert!(!done.status.core_dumped(), "signal {number}");
    }
    world.assert_clean();
}

#[test]
fn a_death_by_a_signal_that_was_ignored_at_start_is_repeated() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let job = world.cmd("perflock perl -e").arg("$SIG{INT} = 'DEFAULT'; kill 'INT', $$");
    job.before_exec(signal(libc::SIGINT, libc::SIG_IGN)).run().dies_of(libc::SIGINT).says("");
    world.assert_clean();
}

#[test]
fn as_pid_1_a_death_by_signal_is_told_by_code_and_orphans_are_reaped() {
    needs!(V2, Root, OwnGroup, Program("unshare"));
    let world = World::new();
    for options in ["", "--cgroup none"] {
        let start = || world.cmd(&format!("unshare -pf --mount-proc perflock {options} sh -c"));
        start().arg("echo $PPID; kill -KILL $$").run().exits(137).prints("1\n").says("");
        start().arg("exit 6").run().exits(6).says("");
        // A zombie can still be sent signal 0; only one that was reaped cannot.
        let orphan = "(sh -c 'echo $$ > orphan' &); until [ -s orphan ]; do sleep 0.01; done; pid=$(cat orphan); rm orphan; \
            for try in $(seq 500); do kill -0 $pid 2>/dev/null || exit 0; sleep 0.01; done; exit 1";
        start().arg(orphan).run().exits(0).says("");
        world.assert_clean();
    }
}

#[test]
fn a_job_whose_pid_namespace_was_killed_is_no_obstacle() {
    needs!(V2, Root, OwnGroup, Program("unshare"));
    let world = World::new();
    let running = world.cmd("unshare -pf --mount-proc perflock sh -c").arg("touch up; setsid sleep 600").spawn();
    wait_until("the job runs", || world.path("up").exists());
    let named = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default() == "perflock\n";
    let supervisor = world.processes().into_iter().find(named).unwrap();
    // SAFETY: the number is that of a process in this test's own cgroup, whose parent has not reaped it.
    assert_eq!(unsafe { libc::kill(supervisor, libc::SIGKILL) }, 0);
    running.wait();
    world.cmd("perflock echo next").run().exits(0).prints("next\n");
    world.wait_clean();
}

#[test]
fn as_pid_1_leftovers_are_killed_and_named() {
    needs!(V2, Root, OwnGroup, Program("unshare"));
    let world = World::new();
    let job = world
        .cmd("unshare -pf --mount-proc perflock sh -c")
        .arg("setsid sleep 600 & until grep -q sleep /proc/$!/comm; do :; done; exit 2");
    job.run().exits(2).mentions("perflock: killed 1 leftover process: sleep (");
    world.assert_clean();
}

#[test]
fn whatever_the_command_forks_at_once_is_born_in_the_group() {
    needs!(V2);
    let world = World::new();
    let job = "for i in 1 2 3 4 5 6 7 8 9 10; do (grep 0:: /proc/self/cgroup) & done; wait";
    let done = world.cmd("perflock sh -c").arg(job).run().exits(0).says("");
    assert_eq!(done.stdout.lines().count(), 10);
    assert!(done.stdout.lines().all(|line| line.contains("/perflock-1-")), "{}", done.stdout);
    world.assert_clean();
}
