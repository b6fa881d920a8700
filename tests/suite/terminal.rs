//! On a terminal: ^C, ^Z, job control, hang-up, and programs that are used there.

use std::os::unix::process::ExitStatusExt;

use crate::harness::{Terminal, World, alive, pid_in, state_of, wait_until};
use crate::needs;
use crate::signals::{end, holder};

/// An interactive shell on a terminal. What is typed is echoed, so tests wait for texts that they do not type.
pub(crate) fn shell(world: &World) -> Terminal {
    let bash = world.cmd("bash --norc --noprofile --noediting -i");
    let terminal = bash.env("PS1", "prompt> ").env("HISTFILE", "").env("TERM", "dumb").on_terminal();
    terminal.wait_screen("prompt> ");
    terminal
}

/// Leaves an interactive shell, and finds nothing left.
pub(crate) fn leave(world: &World, mut terminal: Terminal) {
    wait_until("the shell has the terminal", || terminal.foreground() == terminal.pid());
    terminal.type_in("exit 0\n");
    assert_eq!(terminal.wait().code(), Some(0));
    world.assert_clean();
}

/// A job that says `started` and then runs until a file is there; its own pid and perflock's are in files.
fn write_job(world: &World) {
    let wait = "until [ -e stop ]; do sleep 0.01; done";
    world.script(
        "job",
        &format!("#!/bin/sh\necho $PPID > perflock.pid; echo $$ > job.pid; echo star''ted\n{wait}\nexit 6\n"),
    );
}

fn job_pids(world: &World) -> [i32; 2] {
    [pid_in(&world.path("perflock.pid")), pid_in(&world.path("job.pid"))]
}

#[test]
fn an_interrupt_reaches_the_command_once() {
    needs!(V2);
    let world = World::new();
    let job = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.01; done";
    let mut terminal = world.cmd("perflock sh -c").arg(job).on_terminal();
    terminal.wait_screen("ready");
    assert_eq!(terminal.foreground(), terminal.pid());
    terminal.type_in("\x03");
    let status = terminal.wait();
    assert_eq!(status.code(), Some(9), "{status}");
    world.assert_clean();
    // Nothing follows that could come twice.
    assert_eq!(terminal.screen().matches("caught").count(), 1, "{}", terminal.screen());
}

#[test]
fn an_interrupted_command_and_perflock_die_of_the_interrupt() {
    needs!(V2);
    let world = World::new();
    for (key, number) in [("\x03", libc::SIGINT), ("\x1c", libc::SIGQUIT)] {
        let mut terminal = world.cmd("perflock sh -c").arg("ulimit -c 0; echo ready; exec sleep 600").on_terminal();
        terminal.wait_screen("ready");
        terminal.type_in(key);
        let status = terminal.wait();
        assert_eq!(status.signal(), Some(number), "{status}");
        world.assert_clean();
    }
}

#[test]
fn a_command_that_goes_on_after_an_interrupt_is_left_alone() {
    needs!(V2);
    let world = World::new();
    let job = "trap 'echo caught' INT; echo ready; until [ -e stop ]; do sleep 0.01; done; exit 4";
    let mut terminal = world.cmd("perflock sh -c").arg(job).on_terminal();
    terminal.wait_screen("ready");
    for count in 1..=3 {
        terminal.type_in("\x03");
        wait_until("the interrupt is caught", || terminal.screen().matches("caught").count() == count);
    }
    world.write("stop", "");
    assert_eq!(terminal.wait().code(), Some(4));
    assert_eq!(terminal.screen().matches("caught").count(), 3, "{}", terminal.screen());
    world.assert_clean();
}

#[test]
fn an_interrupt_takes_a_waiter_out_of_the_queue() {
    needs!(V2);
    let world = World::new();
    let holder = holder(&world);
    let mut terminal = world.cmd("perflock touch ran").on_terminal();
    terminal.wait_screen("perflock: waiting for lock behind 1 job; ");
    assert_eq!(world.tickets().len(), 2);
    terminal.type_in("\x03");
    let status = terminal.wait();
    assert_eq!(status.signal(), Some(libc::SIGINT), "{status}");
    assert_eq!(world.tickets().len(), 1);
    end(holder);
    assert!(!world.path("ran").exists());
    world.assert_clean();
}

#[test]
fn an_interrupt_between_the_grant_and_the_command_is_not_lost() {
    needs!(V2, Program("strace"));
    let world = World::new();
    // Somebody who waited long presses ^C just when the lock comes: strace stretches that moment.
    let strace = "strace -DDD -o /dev/null -e trace=clone3 -e inject=clone3:delay_enter=1000000";
    let job = world.cmd(&format!("{strace} perflock sh -c")).arg("touch started; exec sleep 600");
    let mut terminal = job.on_terminal();
    wait_until("the group is made", || world.job_groups().len() == 1);
    wait_until("the guard runs", || world.processes().len() > 1);
    terminal.type_in("\x03");
    wait_until("the command started, or perflock ended", || {
        world.path("started").exists() || world.job_groups().is_empty()
    });
    assert!(!world.path("started").exists(), "^C was lost");
    assert_eq!(terminal.wait().signal(), Some(libc::SIGINT));
    wait_until("strace is gone", || world.processes().is_empty());
    world.assert_clean();
}

#[test]
fn kill_of_a_shell_job_ends_it() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let mut terminal = shell(&world);
    for stop in [false, true] {
        write_job(&world);
        terminal.type_in(if stop { "perflock ./job\n" } else { "perflock ./job &\n" });
        let [perflock, job] = job_pids(&world);
        if stop {
            wait_until("perflock has the terminal", || terminal.foreground() == perflock);
            terminal.type_in("\x1a");
            terminal.wait_screen("Stopped");
        }
        terminal.type_in("kill %1\n");
        wait_until("the job ended", || !alive(perflock));
        assert!(!alive(job));
        // Before a prompt, once it has reaped it: at times bash sleeps with a zombie that died while its `kill` ran, and
        // the end of another child wakes it.
        wait_until("the shell says so", || {
            terminal.type_in("/bin/true\n");
            terminal.screen().matches("Terminated").count() == 1 + usize::from(stop)
        });
        world.assert_no_job();
        std::fs::remove_file(world.path("perflock.pid")).unwrap();
        std::fs::remove_file(world.path("job.pid")).unwrap();
    }
    leave(&world, terminal);
}

#[test]
fn the_shell_has_its_terminal_back_right_afterwards() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let mut terminal = shell(&world);
    for line in
        ["perflock true", "perflock sh -c 'sleep 600 &'", "perflock sh -c 'kill -KILL $$'", "pls bash --norc -ic true"]
    {
        let before = terminal.screen().matches("after=").count();
        terminal.type_in(&format!("{line}; read answer; echo af''ter=$answer\n"));
        terminal.type_in("yes\n");
        wait_until("the shell reads", || terminal.screen().matches("after=yes").count() == before + 1);
        world.assert_no_job();
    }
    leave(&world, terminal);
}

#[test]
fn a_hang_up_ends_the_job() {
    needs!(V2, Root);
    let world = World::new();
    let mut terminal = world.cmd("perflock sh -c").arg("echo $$ > pid; echo ready; exec sleep 600").on_terminal();
    terminal.wait_screen("ready");
    terminal.hang_up();
    let status = terminal.wait();
    assert_eq!(status.signal(), Some(libc::SIGHUP), "{status}");
    assert!(!alive(pid_in(&world.path("pid"))));
    world.assert_clean();
}

#[test]
fn a_command_that_ignores_the_hang_up_goes_on_and_keeps_the_machine() {
    needs!(V2, Root);
    let world = World::new();
    let job = "trap '' HUP; echo ready; until [ -e stop ]; do sleep 0.01; done; exit 3";
    let mut terminal = world.cmd("perflock sh -c").arg(job).on_terminal();
    terminal.wait_screen("ready");
    let perflock = terminal.pid();
    terminal.hang_up();
    wait_until("perflock has no terminal", || {
        let stat = std::fs::read_to_string(format!("/proc/{perflock}/stat")).unwrap();
        // The seventh field: the controlling terminal.
        stat.rsplit(") ").next().unwrap().split(' ').nth(4) == Some("0")
    });
    assert!(alive(perflock) && !world.lock_is_free());
    world.write("stop", "");
    assert_eq!(terminal.wait().code(), Some(3));
    world.assert_clean();
}

#[test]
fn a_hang_up_ends_an_interactive_shell_with_its_job_and_waiter() {
    needs!(V2, Root, Program("bash"));
    let world = World::new();
    write_job(&world);
    let mut terminal = shell(&world);
    terminal.type_in("perflock ./job & perflock sleep 600\n");
    terminal.wait_screen("perflock: waiting for lock behind 1 job");
    terminal.hang_up();
    terminal.wait();
    world.wait_clean();
}

#[test]
fn a_stopped_waiter_lets_others_pass() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let holder = holder(&world);
    let mut terminal = shell(&world);
    terminal.type_in("perflock sh -c 'echo first >> order'\n");
    terminal.wait_screen("perflock: waiting for lock behind 1 job");
    let behind = world.cmd("perflock sh -c").arg("echo second >> order").spawn();
    behind.wait_stderr("waiting for lock behind 2 jobs");
    terminal.type_in("\x1a");
    terminal.wait_screen("Stopped");
    end(holder);
    behind.wait().exits(0);
    assert_eq!(world.read("order"), "second\n");
    assert!(world.lock_is_free());
    terminal.type_in("fg\n");
    wait_until("the waiter ran", || world.read("order") == "second\nfirst\n");
    leave(&world, terminal);
}

#[test]
fn a_waiter_continued_before_it_was_overtaken_keeps_its_place() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let holder = holder(&world);
    let mut terminal = shell(&world);
    terminal.type_in("perflock sh -c 'echo first >> order'\n");
    terminal.wait_screen("perflock: waiting for lock behind 1 job");
    let behind = world.cmd("perflock sh -c").arg("echo second >> order").spawn();
    behind.wait_stderr("waiting for lock behind 2 jobs");
    terminal.type_in("\x1a");
    terminal.wait_screen("Stopped");
    behind.wait_stderr("waiting for lock behind 1 job");
    terminal.type_in("fg\n");
    // It is back in the queue when it says again what it waits for.
    wait_until("it waits again", || terminal.screen().matches("perflock: waiting for lock behind 1 job").count() == 2);
    end(holder);
    behind.wait().exits(0);
    assert_eq!(world.read("order"), "first\nsecond\n");
    leave(&world, terminal);
}

#[test]
fn a_stopped_waiter_that_is_killed_leaves_the_queue() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let holder = holder(&world);
    let mut terminal = shell(&world);
    terminal.type_in("perflock touch ran\n");
    terminal.wait_screen("perflock: waiting for lock behind 1 job");
    let waiter = terminal.foreground();
    terminal.type_in("\x1a");
    terminal.wait_screen("Stopped");
    terminal.type_in("kill %1\n");
    wait_until("the waiter is dead", || !alive(waiter));
    assert_eq!(world.tickets().len(), 1);
    terminal.type_in("jobs\n");
    terminal.wait_screen("Terminated");
    end(holder);
    assert!(!world.path("ran").exists());
    leave(&world, terminal);
}

#[test]
fn an_interactive_shell_is_a_job_with_job_control_of_its_own() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let job = world.cmd("perflock bash --norc --noprofile --noediting -i").env("PS1", "prompt> ").env("TERM", "dumb");
    let mut terminal = job.env("HISTFILE", "").on_terminal();
    terminal.wait_screen("prompt> ");
    assert!(!terminal.screen().contains("no job control"), "{}", terminal.screen());
    let sleeps = |terminal: &Terminal| {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", terminal.foreground()));
        comm.is_ok_and(|comm| comm == "sleep\n") && state_of(terminal.foreground()) == 'S'
    };
    terminal.type_in("sleep 600\n");
    wait_until("sleep has the terminal", || sleeps(&terminal));
    terminal.type_in("\x1a");
    terminal.wait_screen("Stopped");
    terminal.type_in("fg\n");
    wait_until("sleep has the terminal again", || sleeps(&terminal));
    terminal.type_in("\x03");
    wait_until("sleep was interrupted", || !sleeps(&terminal));
    terminal.type_in("echo mo''de=$PERFLOCK_MODE; exit 7\n");
    assert_eq!(terminal.wait().code(), Some(7), "{}", terminal.screen());
    terminal.wait_screen("mode=exclusive");
    world.assert_clean();
}
