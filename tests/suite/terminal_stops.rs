//! At an interactive shell: commands that take their time to stop at ^Z, do not stop, cannot, or stop by themselves.

use crate::harness::{state_of, wait_until};
use crate::terminal_matrix::{Shell, UNTIL_TOLD, for_each_way};

for_each_way! {
    a_command_that_tidies_the_terminal_up_is_waited_for();
    a_command_that_shuns_stop_signals_keeps_the_terminal();
    a_command_that_cannot_stop_yet_is_not_waited_for(Program("python3"));
    a_command_that_stops_itself_gives_the_prompt_back();
    an_inner_shell_is_suspended_and_goes_on_in_front();
}

/// Builtins only: a child would be stopped at once.
const TIDIES: &str = r#"#!/bin/bash
exec 9<>fifo
tidy() { read -t 0.3 -u 9; echo ti''died; trap - TSTP; kill -TSTP $$; exit 6; }
trap tidy TSTP
echo rea''dy
while :; do read -t 0.02 -u 9; done
"#;

fn a_command_that_tidies_the_terminal_up_is_waited_for(way: &'static str) {
    let mut shell = Shell::new(way);
    nix::unistd::mkfifo(&shell.world.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    shell.world.script("tidies", TIDIES);
    shell.run("% ./tidies");
    shell.terminal.wait_screen("ready");
    let group = shell.in_front();
    shell.terminal.type_in("\x1a");
    shell.stopped(group, "Stopped");
    let screen = shell.terminal.screen();
    let (tidied, stopped) = (screen.find("tidied"), screen.find("Stopped"));
    assert!(tidied.is_some() && tidied < stopped, "the shell did not wait:\n{screen}");
    shell.run("fg");
    shell.ended(6);
    shell.leave();
}

fn a_command_that_shuns_stop_signals_keeps_the_terminal(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.job(&format!("trap '' TSTP; echo rea''dy; {UNTIL_TOLD}; exit 6"));
    shell.run("% ./job");
    shell.terminal.wait_screen("ready");
    shell.terminal.type_in("\x1a");
    shell.terminal.wait_screen("^Z");
    shell.world.write("stop", "");
    shell.ended(6);
    assert!(!shell.terminal.screen().contains("Stopped"), "{}", shell.terminal.screen());
    shell.leave();
}

/// It sleeps in vfork(2) until its child has executed a program, and that waits for somebody to open a FIFO.
const CANNOT: &str = r#"#!/usr/bin/env python3
import os
print("rea" + "dy", flush=True)
child = os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "fifo", os.O_RDONLY, 0)])
os.waitpid(child, 0)
os._exit(6)
"#;

fn a_command_that_cannot_stop_yet_is_not_waited_for(way: &'static str) {
    let mut shell = Shell::new(way);
    nix::unistd::mkfifo(&shell.world.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    shell.world.script("cannot", CANNOT);
    shell.run("% ./cannot");
    shell.terminal.wait_screen("ready");
    let group = shell.in_front();
    wait_until("it sleeps in vfork", || shell.world.processes().into_iter().any(|pid| state_of(pid) == 'D'));
    shell.terminal.type_in("\x1a");
    wait_until("perflock is stopped", || state_of(group) == 'T');
    shell.ask("jobs -l", "Stopped");
    assert!(!shell.world.lock_is_free(), "a stopped job has let the machine go");
    shell.run("fg");
    assert_eq!(shell.in_front(), group);
    shell.goes_on(group);
    drop(std::fs::File::options().write(true).open(shell.world.path("fifo")).unwrap());
    shell.ended(6);
    shell.leave();
}

fn a_command_that_stops_itself_gives_the_prompt_back(way: &'static str) {
    let mut shell = Shell::new(way);
    for signal in ["STOP", "TSTP"] {
        shell.job(&format!("kill -{signal} $$; exit 6"));
        shell.run("% ./job");
        let group = shell.started();
        shell.stopped(group, "Stopped");
        shell.run("fg");
        shell.ended(6);
    }
    shell.leave();
}

fn an_inner_shell_is_suspended_and_goes_on_in_front(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.run("% bash --norc --noprofile --noediting -i");
    let inner_is_in_front = |shell: &Shell| {
        let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        wait_until("the inner shell is in front", || {
            let front = shell.terminal.foreground();
            front != shell.terminal.pid() && name(front) == "bash\n"
        });
    };
    inner_is_in_front(&shell);
    for _ in 0..2 {
        shell.terminal.type_in("suspend\n");
        shell.ask("jobs -l", "Stopped");
        assert!(!shell.world.lock_is_free(), "a stopped job has let the machine go");
        shell.run("fg");
        inner_is_in_front(&shell);
    }
    shell.terminal.type_in("echo inner=$((40 + 2)); exit 6\n");
    shell.terminal.wait_screen("inner=42");
    shell.ended(6);
    shell.leave();
}
