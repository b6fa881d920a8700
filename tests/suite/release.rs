//! The machine is given back when no member is left, and members that stay are ended.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::harness::{World, alive, groups, patient, pid_in, wait_until};
use crate::needs;

/// What is said of one leftover.
pub(crate) fn killed(name: &str, pid: i32) -> String {
    format!(
        "perflock: killed 1 leftover process: {name} ({pid}); start it before perflock to keep it, \
         or use --leftovers wait to hold the machine until it ends\n"
    )
}

/// A shell line that leaves a process named `sleep`, whose pid is in the file `pid`.
pub(crate) const SLEEPER: &str = "sleep 600 & until grep -qs sleep /proc/$!/comm; do :; done; echo $! > pid";

/// A daemon as daemons are made: forked twice, in a session of its own, without our stdio and directory, ignoring
/// TERM, HUP and INT. Its pid is in the file `daemon`.
pub(crate) const DAEMON: &str = r#"
use POSIX;
open my $out, ">", "daemon.new";
exit if fork;
POSIX::setsid();
exit if fork;
$SIG{$_} = "IGNORE" for qw(TERM HUP INT);
open STDIN, "<", "/dev/null"; open STDOUT, ">", "/dev/null"; open STDERR, ">", "/dev/null";
print $out "$$\n"; close $out;
rename "daemon.new", "daemon";
chdir "/";
sleep 1 while 1;
"#;

/// A shell line that starts the daemon and waits until it is one.
pub(crate) const START_DAEMON: &str = "perl ./daemon.pl; until [ -s daemon ]; do sleep 0.005; done";

#[test]
fn a_leftover_is_killed_and_named_and_the_exit_code_kept() {
    needs!(V2);
    let world = World::new();
    for code in [0, 3] {
        let done = world.cmd("perflock sh -c").arg(format!("{SLEEPER}; exit {code}")).run().exits(code);
        let pid = pid_in(&world.path("pid"));
        done.prints("").says(&killed("sleep", pid));
        assert!(!alive(pid));
        world.assert_clean();
    }
    let done = world.cmd("pls sh -c").arg(format!("{SLEEPER}; kill -KILL $$")).run().dies_of(libc::SIGKILL);
    let said = killed("sleep", pid_in(&world.path("pid")));
    done.says(&said.replace("perflock", "pls"));
    world.assert_clean();
}

#[test]
fn several_leftovers_are_counted_and_the_first_five_named() {
    needs!(V2);
    let world = World::new();
    let job = "for i in 1 2; do sleep 600 & done";
    let done = world.cmd("perflock sh -c").arg(job).run().exits(0);
    let said = done.stderr_but_for_waits();
    assert!(said.starts_with("perflock: killed 2 leftover processes: sleep ("), "{said}");
    let job = "for i in 1 2 3 4 5 6 7; do sleep 600 & done";
    let done = world.cmd("perflock sh -c").arg(job).run().exits(0).mentions(" and 2 more; start ");
    let said = done.stderr_but_for_waits();
    assert!(said.starts_with("perflock: killed 7 leftover processes: sleep ("), "{said}");
    world.assert_clean();
}

#[test]
fn a_leftover_may_save_when_it_gets_term() {
    needs!(V2);
    let world = World::new();
    let leftover = "trap 'sleep 0.3; echo saved > saved; exit' TERM; echo $$ > pid; while :; do sleep 0.01; done";
    world.script("leftover", leftover);
    let done = world.cmd("perflock sh -c").arg("sh ./leftover & until [ -s pid ]; do sleep 0.01; done").run().exits(0);
    assert_eq!(world.read("saved"), "saved\n");
    assert!(done.stderr.contains(&format!(" ({})", pid_in(&world.path("pid")))), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn a_leftover_that_ignores_term_is_killed_after_the_grace() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock --grace 0.4 sh -c").arg(format!("trap '' TERM; {SLEEPER}; date +%s%N > end"));
    let running = job.spawn();
    let pid = pid_in(&world.path("pid"));
    // Whenever the lock is free, the leftover is dead.
    let mut running = running;
    let mut was_held = false;
    wait_until("the job ends", || {
        let free = world.lock_is_free();
        assert!(!(free && alive(pid)), "the lock is free while a member lives");
        was_held |= !free;
        running.ended()
    });
    assert!(was_held);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let ended = Duration::from_nanos(world.read("end").trim().parse().unwrap());
    assert!(now - ended >= Duration::from_millis(400), "{:?}", now - ended);
    running.wait().exits(0).says(&killed("sleep", pid));
    world.assert_clean();
}

#[test]
fn without_grace_a_leftover_is_killed_at_once() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock --grace 0 sh -c").arg(format!("trap '' TERM; {SLEEPER}"));
    job.run().exits(0).says(&killed("sleep", pid_in(&world.path("pid"))));
    world.assert_clean();
}

#[test]
fn after_a_second_of_grace_one_line_says_who_is_waited_for() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock --grace 1.5 sh -c").arg(format!("trap '' TERM; {SLEEPER}")).run().exits(0);
    let pid = pid_in(&world.path("pid"));
    let lines: Vec<&str> = job.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{}", job.stderr);
    let line = format!("perflock: waiting for 1 process to end: sleep ({pid}); killed in 0.");
    assert!(lines[0].starts_with(&line) && lines[0].ends_with("s (^C kills now)"), "{}", lines[0]);
    assert_eq!(format!("{}\n", lines[1]), killed("sleep", pid));
    world.assert_clean();
}

#[test]
fn a_term_during_the_grace_kills_at_once() {
    needs!(V2);
    let world = World::new();
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let job = world.cmd("perflock --grace 60 sh -c").arg(format!("trap '' TERM INT; {SLEEPER}; exit 5"));
        let running = job.spawn();
        running.wait_stderr("perflock: waiting for 1 process to end: sleep (");
        running.signal(signal);
        running.wait().exits(5).mentions(&killed("sleep", pid_in(&world.path("pid"))));
        world.assert_clean();
    }
}

#[test]
fn an_interrupt_from_the_terminal_during_the_grace_kills_at_once() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock --grace 60 sh -c").arg(format!("trap '' TERM INT; {SLEEPER}; exit 5"));
    let mut terminal = job.on_terminal();
    terminal.wait_screen("perflock: waiting for 1 process to end: sleep (");
    terminal.type_in("\x03");
    let status = terminal.wait();
    assert_eq!((status.code(), status.signal()), (Some(5), None));
    assert!(!alive(pid_in(&world.path("pid"))));
    world.assert_clean();
}

#[test]
fn with_leftovers_wait_the_machine_is_held_until_they_end() {
    needs!(V2);
    let world = World::new();
    let job = "sh -c 'until [ -e stop ]; do sleep 0.02; done; echo late' & echo $! > pid; exit 6";
    let running = world.cmd("perflock --leftovers wait sh -c").arg(job).spawn();
    let pid = pid_in(&world.path("pid"));
    running.wait_stderr("perflock: holding the machine for ");
    assert!(!world.lock_is_free());
    assert!(alive(pid));
    assert_eq!((world.tickets().len(), world.job_groups().len()), (1, 1));
    world.write("stop", "");
    let done = running.wait().exits(6).prints("late\n");
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn with_leftovers_wait_a_signal_ends_them() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock --leftovers wait sh -c").arg(format!("trap '' TERM; {SLEEPER}; exit 6"));
    let running = job.spawn();
    running.wait_stderr("perflock: holding the machine for 1 process that the command left: sleep (");
    running.signal(libc::SIGTERM);
    running.wait().exits(6);
    assert!(!alive(pid_in(&world.path("pid"))));
    world.assert_clean();
}

#[test]
fn a_background_child_about_to_end_is_no_leftover() {
    needs!(V2, Speed);
    let world = World::new();
    // On a busy machine 2 ms may become more than the 20 that are allowed.
    let silent = (0..10).any(|_| world.cmd("perflock sh -c").arg("sleep 0.002 &").run().exits(0).stderr.is_empty());
    assert!(silent, "a short background child is always called a leftover");
    world.assert_clean();
}

#[test]
fn a_daemon_that_left_the_session_and_ignores_term_is_killed() {
    needs!(V2, Program("perl"));
    let world = World::new();
    world.write("daemon.pl", DAEMON);
    let done = world.cmd("perflock --grace 0.2 sh -c").arg(START_DAEMON).run().exits(0);
    let pid = pid_in(&world.path("daemon"));
    done.says(&killed("perl", pid));
    assert!(!alive(pid));
    world.assert_clean();
}

#[test]
fn a_stopped_leftover_is_ended_by_term() {
    needs!(V2);
    let world = World::new();
    let start = Instant::now();
    let job = format!("{SLEEPER}; kill -STOP $!; exit 1");
    let done = world.cmd("perflock --grace 15 sh -c").arg(job).run().exits(1);
    done.says(&killed("sleep", pid_in(&world.path("pid"))));
    assert!(start.elapsed() < patient(Duration::from_secs(15)), "{:?}", start.elapsed());
    world.assert_clean();
}

#[test]
fn members_in_groups_that_the_job_made_are_killed_and_the_groups_removed() {
    needs!(V2);
    let world = World::new();
    let inner = "until [ -s moved ]; do sleep 0.005; done";
    let job = format!(
        "own=$MOUNT$(sed -n s/^0:://p /proc/self/cgroup); mkdir -p $own/a/b $own/c; \
         sh -c 'echo 0 > '$own'/a/b/cgroup.procs; trap \"\" TERM; echo $$ > moved; exec sleep 600' & {inner}"
    );
    let done = world.cmd("perflock --grace 0.2 sh -c").arg(job).env("MOUNT", groups::mount().unwrap()).run().exits(0);
    done.says(&killed("sleep", pid_in(&world.path("moved"))));
    world.assert_clean();
}

#[test]
fn a_job_may_make_threaded_groups() {
    needs!(V2);
    let world = World::new();
    let job = "own=$MOUNT$(sed -n s/^0:://p /proc/self/cgroup); mkdir $own/a && echo threaded > $own/a/cgroup.type; \
        trap '' TERM; sleep 600 & echo $! > $own/a/cgroup.threads && echo $! > moved";
    let done = world.cmd("perflock --grace 0.2 sh -c").arg(job).env("MOUNT", groups::mount().unwrap()).run().exits(0);
    done.says(&killed("sleep", pid_in(&world.path("moved"))));
    world.assert_clean();
}

#[test]
fn a_frozen_leftover_is_killed() {
    needs!(V2);
    let world = World::new();
    let job = "own=$MOUNT$(sed -n s/^0:://p /proc/self/cgroup); mkdir $own/a; sleep 600 & \
        until grep -q sleep /proc/$!/comm; do :; done; echo $! > $own/a/cgroup.procs; echo 1 > $own/a/cgroup.freeze; echo $! > pid";
    let done = world.cmd("perflock --grace 0.3 sh -c").arg(job).env("MOUNT", groups::mount().unwrap()).run().exits(0);
    let pid = pid_in(&world.path("pid"));
    done.says(&killed("sleep", pid));
    assert!(!alive(pid));
    world.assert_clean();
}

#[test]
fn a_chain_of_forks_that_ignores_term_is_killed() {
    needs!(V2, Program("perl"));
    let world = World::new();
    let chain = "$SIG{TERM} = 'IGNORE'; exit if fork; open F, '>', 'runs'; close F; while (1) { exit if fork; select undef, undef, undef, 0.001 }";
    let job = "perl -e \"$CHAIN\"; until [ -e runs ]; do sleep 0.005; done";
    let done = world.cmd("perflock --grace 0.2 sh -c").arg(job).env("CHAIN", chain).run().exits(0);
    assert!(done.stderr.starts_with("perflock: killed "), "{}", done.stderr);
    world.assert_clean();
}

#[test]
fn a_leftover_born_during_the_grace_is_named_as_well() {
    needs!(V2, Program("perl"));
    let world = World::new();
    world.write(
        "leftover.pl",
        "$SIG{TERM} = sub { unless (fork) { $SIG{TERM} = 'IGNORE'; open F, '>', 'pid'; print F \"$$\\n\"; close F; \
         exec 'sleep', '600' } exit }; open F, '>', 'up'; close F; sleep 1 while 1",
    );
    let job = "perl leftover.pl & until [ -e up ]; do sleep 0.005; done";
    let grace = crate::harness::patient(Duration::from_millis(300)).as_secs_f64();
    let done = world.cmd(&format!("perflock --grace {grace} sh -c")).arg(job).run().exits(0);
    let pid = pid_in(&world.path("pid"));
    assert!(!alive(pid));
    // It was killed, and is the one that the user has to know of.
    done.mentions(&format!("sleep ({pid})"));
    world.assert_clean();
}

#[test]
fn the_next_job_starts_only_when_the_leftovers_are_dead() {
    needs!(V2);
    let world = World::new();
    let job = "trap '' TERM; (while :; do date +%s%N >> beats; done) & until [ -s beats ]; do sleep 0.005; done";
    let first = world.cmd("perflock --grace 0.4 sh -c").arg(job).spawn();
    wait_until("the leftover runs", || !world.read("beats").is_empty());
    world.cmd("perflock sh -c").arg("date +%s%N > start").run().exits(0);
    first.wait().exits(0);
    let start: u64 = world.read("start").trim().parse().unwrap();
    let last: u64 = world.read("beats").lines().filter_map(|line| line.parse().ok()).max().unwrap();
    assert!(last < start, "a member was alive {} ns after the next job's start", last - start);
    world.assert_clean();
}

#[test]
fn a_reader_that_is_slow_to_take_the_message_does_not_hold_the_machine() {
    needs!(V2, Program("mkfifo"));
    let world = World::new();
    // stderr is a pipe that is full and that nobody reads until the lock was seen free.
    let script = "mkfifo full; sh -c 'exec 3<full; until [ -e read ]; do sleep 0.01; done; cat <&3 >/dev/null' & exec 2>full; \
        dd if=/dev/zero bs=65536 count=1 >&2 2>/dev/null; touch ready; perflock sh -c 'sleep 600 & echo $! > pid; exit 4'; \
        code=$?; exec 2>/dev/null; wait; exit $code";
    let running = world.sh(script).spawn();
    let pid = pid_in(&world.path("pid"));
    wait_until("the leftover is killed", || !alive(pid));
    wait_until("the lock is free", || world.lock_is_free() && world.tickets().is_empty());
    world.write("read", "");
    running.wait().exits(4);
    world.assert_clean();
}
