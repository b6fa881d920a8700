//! Signals: which reach the command, how often, and what they do to a waiter.

use std::time::{Duration, Instant};

use perflock::text;

use crate::harness::{Running, World, alive, patient, pid_in, wait_until};
use crate::needs;

/// Waits without end, in a way that traps run soon.
const FOREVER: &str = "while :; do sleep 0.01; done";

/// A job that holds the machine until it is ended.
pub(crate) fn holder(world: &World) -> Running {
    let holder = world.cmd("perflock sh -c").arg("echo held; exec sleep 600").spawn();
    holder.wait_stdout("held\n");
    holder
}

pub(crate) fn end(holder: Running) {
    holder.signal(libc::SIGTERM);
    holder.wait().dies_of(libc::SIGTERM);
}

#[test]
fn under_timeout_the_command_has_the_time_to_save() {
    needs!(V2, Program("timeout"));
    let world = World::new();
    let save = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done; echo saved; exit 3";
    let limit = patient(Duration::from_millis(500)).as_secs_f64();
    let line = format!("timeout --preserve-status {limit} perflock sh -c");
    let job = world.cmd(&line).arg(format!("trap '{save}' TERM; {FOREVER}"));
    let done = job.run().exits(3).prints("saved\n");
    // timeout signals the whole process group: sh may mention a sleep of its own that died.
    assert!(!done.stderr.contains("perflock"), "{}", done.stderr);
    world.assert_clean();
    let job = world.cmd(&format!("timeout {limit} perflock sh -c")).arg(format!("trap '{save}' TERM; {FOREVER}"));
    job.run().exits(124).prints("saved\n");
    world.assert_clean();
}

#[test]
fn a_command_that_signals_its_own_process_group_ends_as_it_wants() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock sh -c").arg("trap 'exit 3' TERM; kill 0");
    job.run().exits(3).prints("").says("");
    world.assert_clean();
}

#[test]
fn signals_sent_to_perflock_reach_the_command_once() {
    needs!(V2);
    let world = World::new();
    let names = ["HUP", "USR1", "USR2", "INT", "QUIT", "TERM"];
    let numbers = [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
    let traps: String = names.iter().map(|name| format!("trap 'echo {name}' {name}; ")).collect();
    let job =
        world.cmd("perflock sh -c").arg(format!("{traps} echo ready; until [ -e stop ]; do sleep 0.01; done; exit 5"));
    let running = job.spawn();
    running.wait_stdout("ready\n");
    for (name, number) in names.into_iter().zip(numbers) {
        // Two copies, as timeout(1) sends them.
        running.signal(number);
        running.signal(number);
        running.wait_stdout(&format!("{name}\n"));
    }
    world.write("stop", "");
    running.wait().exits(5).prints("ready\nHUP\nUSR1\nUSR2\nINT\nQUIT\nTERM\n").says("");
    world.assert_clean();
}

#[test]
fn a_forwarded_signal_that_ends_the_command_ends_perflock_alike() {
    needs!(V2);
    let world = World::new();
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1] {
        let job = world.cmd("perflock sh -c").arg("ulimit -c 0; echo ready; exec sleep 600").spawn();
        job.wait_stdout("ready\n");
        job.signal(number);
        job.wait().dies_of(number).says("");
        world.assert_clean();
    }
}

#[test]
fn a_second_term_later_than_a_second_kills_the_group() {
    needs!(V2);
    let world = World::new();
    let job = world.cmd("perflock sh -c").arg("trap '' TERM; setsid sleep 600 & echo $! > pid; echo ready; wait");
    let mut running = job.spawn();
    running.wait_stdout("ready\n");
    let pid = pid_in(&world.path("pid"));
    let start = Instant::now();
    let mut sent = None;
    wait_until("the group is killed", || {
        if sent.is_none_or(|at: Instant| at.elapsed() > Duration::from_millis(100)) && !running.ended() {
            running.signal(libc::SIGTERM);
            sent = Some(Instant::now());
        }
        running.ended()
    });
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    running.wait().dies_of(libc::SIGKILL);
    assert!(!alive(pid));
    world.assert_clean();
}

#[test]
fn a_second_term_kills_a_job_that_the_time_limit_ends() {
    needs!(V2);
    let world = World::new();
    let job = world
        .cmd("perflock --time-limit 0.3 --grace 60 sh -c")
        .arg("trap '' TERM; echo ready; while :; do sleep 1; done");
    let mut running = job.spawn();
    running.wait_stderr("time limit of 300ms reached");
    let mut sent = None;
    wait_until("the group is killed", || {
        if sent.is_none_or(|at: Instant| at.elapsed() > Duration::from_millis(100)) && !running.ended() {
            running.signal(libc::SIGTERM);
            sent = Some(Instant::now());
        }
        running.ended()
    });
    running.wait().exits(124);
    world.assert_clean();
}

#[test]
fn a_signal_ends_a_waiter_which_leaves_the_queue() {
    needs!(V2);
    let world = World::new();
    let holder = holder(&world);
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let waiter = world.cmd("perflock touch ran").spawn();
        waiter.wait_stderr("perflock: waiting for lock behind 1 job; ");
        assert_eq!(world.tickets().len(), 2);
        let behind = world.cmd("perflock true").spawn();
        behind.wait_stderr("perflock: waiting for lock behind 2 jobs; ");
        waiter.signal(number);
        let done = waiter.wait().dies_of(number).prints("");
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        assert_eq!(world.tickets().len(), 2);
        // Who was behind is behind the holder now, and says so.
        behind.wait_stderr("perflock: waiting for lock behind 1 job; ");
        behind.signal(number);
        behind.wait().dies_of(number);
        assert_eq!(world.tickets().len(), 1);
    }
    assert_eq!(world.read("ran"), "");
    assert!(!world.path("ran").exists());
    end(holder);
    world.assert_clean();
}

#[test]
fn a_waiter_started_with_interrupts_ignored_is_not_interrupted() {
    needs!(V2);
    let world = World::new();
    let holder = holder(&world);
    let ignore = || {
        // SAFETY: SIG_IGN is no function of ours.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
        Ok(())
    };
    let waiter = world.cmd("perflock echo ran").before_exec(ignore).spawn();
    waiter.wait_stderr("perflock: waiting for lock");
    waiter.signal(libc::SIGINT);
    end(holder);
    waiter.wait().exits(0).prints("ran\n");
    world.assert_clean();
}

#[test]
fn a_signal_from_a_member_of_the_job_is_not_forwarded() {
    needs!(V2);
    let world = World::new();
    for options in ["", "--cgroup none"] {
        // Should both be pending at once, sh runs USR1's trap first.
        let script = format!("trap 'echo USR1' USR1; trap 'exit 4' TERM; kill -USR1 $PPID; echo sent; {FOREVER}");
        let running = world.cmd(&format!("perflock {options} sh -c")).arg(script).spawn();
        running.wait_stdout("sent\n");
        running.signal(libc::SIGTERM);
        running.wait().exits(4).prints("sent\n").says("");
        world.assert_clean();
    }
}

#[test]
fn a_signal_from_a_member_that_ended_meanwhile_is_not_forwarded() {
    needs!(V2, Program("perl"));
    let world = World::new();
    // The sender ends at once and stays a zombie.
    let script = "my $perflock = getppid; $SIG{USR1} = sub { print \"USR1\\n\" }; $SIG{TERM} = sub { exit 4 }; \
        for (1..5) { unless (fork) { kill 'USR1', $perflock; exit } select undef, undef, undef, 0.05 } \
        $| = 1; print \"sent\\n\"; sleep 1 while 1";
    for options in ["", "--cgroup none"] {
        let running = world.cmd(&format!("perflock {options} perl -e")).arg(script).spawn();
        running.wait_stdout("sent\n");
        running.signal(libc::SIGTERM);
        running.wait().exits(4).prints("sent\n").says("");
        world.assert_clean();
    }
}

#[test]
fn the_time_limit_ends_the_command() {
    needs!(V2);
    let world = World::new();
    let said = "perflock: time limit of 200ms reached: ending the command\n";
    world.cmd("perflock --time-limit 0.2 sleep 600").run().exits(124).prints("").says(said);
    // Time enough for the shell to set its trap.
    let limit = patient(Duration::from_millis(500));
    let line = format!("perflock --time-limit {} sh -c", limit.as_secs_f64());
    let done =
        world.cmd(&line).arg(format!("trap 'echo saved; exit 0' TERM; {FOREVER}")).run().exits(124).prints("saved\n");
    let saved = format!("perflock: time limit of {} reached: ending the command\n", text::exact_duration(limit));
    // TERM goes to every member: sh may mention a sleep of its own that died.
    let heard = done.stderr_but_for_waits();
    assert!(heard.starts_with(&saved) && heard.matches("perflock").count() == 1, "{heard}");
    // A stopped command takes TERM only when it goes on.
    world.cmd("perflock --time-limit 0.2 sh -c").arg("kill -STOP $$").run().exits(124).says(said);
    world.cmd("perflock --time-limit 60 sh -c").arg("exit 9").run().exits(9).says("");
    world.assert_clean();
}

#[test]
fn a_command_that_ignores_the_time_limit_is_killed_after_the_grace() {
    needs!(V2);
    let world = World::new();
    let start = Instant::now();
    let job = world.cmd("perflock --time-limit 0.2 --grace 0.2 sh -c").arg("trap '' TERM; exec sleep 600");
    job.run().exits(124).prints("").says("perflock: time limit of 200ms reached: ending the command\n");
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    let job = "trap '' TERM; setsid sleep 600 & echo $! > pid; wait";
    // On a slow machine the command has to get as far as writing that file.
    let limit = patient(Duration::from_millis(200));
    let seconds = limit.as_secs_f64();
    let done = world.cmd(&format!("perflock --time-limit {seconds} --grace {seconds} sh -c")).arg(job).run().exits(124);
    let pid = pid_in(&world.path("pid"));
    let limit = limit.as_millis();
    done.says(&format!(
        "perflock: time limit of {limit}ms reached: ending the command\n\
         perflock: killed 1 process after the time limit: sleep ({pid})\n"
    ));
    world.assert_clean();
}

#[test]
fn the_time_limit_counts_from_the_command_s_start_not_from_the_queue() {
    needs!(V2);
    let world = World::new();
    let holder = holder(&world);
    // Time enough to run, once it may.
    let limit = patient(Duration::from_millis(500));
    let start = Instant::now();
    let waiter = world.cmd(&format!("perflock --time-limit {} echo ran", limit.as_secs_f64())).spawn();
    waiter.wait_stderr("perflock: waiting for lock");
    wait_until("more than the limit passes", || start.elapsed() > limit + Duration::from_millis(100));
    end(holder);
    waiter.wait().exits(0).prints("ran\n");
    world.assert_clean();
}
