//! At an interactive shell, with each of the ways to run a command, what the terminal does to a job and the job to the
//! terminal: the same as without perflock.

use crate::harness::{Terminal, World, pid_in, state_of, wait_until};
use crate::terminal::{leave, shell};

/// One test for each way: `NAME (NEEDS);`.
macro_rules! for_each_way {
    ($($name:ident ($($need:expr),*);)*) => {
        for_each_way!(perflock "perflock": $($name ($($need),*);)*);
        for_each_way!(pls "pls": $($name ($($need),*);)*);
        for_each_way!(nested "perflock pls": $($name ($($need),*);)*);
    };
    ($module:ident $way:literal: $($name:ident ($($need:expr),*);)*) => {
        mod $module {
            use crate::needs;
            $(#[test]
            fn $name() {
                needs!(V2, Program("bash"), $($need),*);
                super::$name($way);
            })*
        }
    };
}

pub(crate) use for_each_way;

for_each_way! {
    every_interrupt_is_heard_once();
    an_interrupt_ends_the_command_and_not_the_shell();
    a_stopped_job_goes_on_in_front_and_behind();
    a_job_that_writes_behind_is_stopped_where_the_terminal_says_so();
    a_job_that_reads_behind_is_stopped();
    a_job_hears_of_another_window_size();
    a_line_and_its_end_reach_the_command();
    pipes_end_with_their_readers();
    an_editor_is_used_and_stopped(Program("vim.tiny"));
    a_pager_reads_a_file_from_stdin(Program("less"));
    jobs_end_with_the_terminal(Speed);
    a_hang_up_ends_the_job(Root);
    without_a_shell_nothing_is_stopped();
}

/// A shell, and what a job of its does.
pub(crate) struct Shell {
    pub(crate) world: World,
    pub(crate) terminal: Terminal,
    way: &'static str,
    lines: usize,
}

impl Shell {
    pub(crate) fn new(way: &'static str) -> Self {
        let world = World::new();
        let terminal = shell(&world);
        Self { world, terminal, way, lines: 0 }
    }

    /// Types a command line, `%` being the way to run what follows.
    pub(crate) fn run(&mut self, line: &str) {
        self.terminal.type_in(&format!("{}\n", line.replace('%', self.way)));
    }

    /// Writes a shell script `./job` that tells its pid.
    pub(crate) fn job(&self, script: &str) {
        self.world.script("job", &format!("#!/bin/sh\necho $$ >pid.new; mv pid.new pid\n{script}\n"));
    }

    /// Waits until `./job` runs; the process group that it is in, whose leader is the shell's child.
    #[track_caller]
    pub(crate) fn started(&self) -> i32 {
        let pid = pid_in(&self.world.path("pid"));
        std::fs::remove_file(self.world.path("pid")).unwrap();
        group_of(pid)
    }

    /// Waits until a job is in front.
    #[track_caller]
    pub(crate) fn in_front(&self) -> i32 {
        let shell = self.terminal.pid();
        wait_until("a job has the terminal", || ![shell, 0, -1].contains(&self.terminal.foreground()));
        self.terminal.foreground()
    }

    /// Waits until the shell has its terminal back, as it was.
    #[track_caller]
    fn prompts(&self) {
        let terminal = &self.terminal;
        wait_until("the shell has the terminal", || terminal.foreground() == terminal.pid());
        wait_until("the terminal is as a shell leaves it", || terminal.is_canonical());
    }

    /// Types a command line of the shell's own and waits for what it prints, which is not what was typed.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str, answer: &str) {
        self.prompts();
        // What was there before is no answer.
        self.lines += 1;
        let mark = self.lines;
        self.terminal.type_in(&format!("echo be''gin={mark}; {line}; echo e''nd={mark}\n"));
        self.terminal.wait_screen(&format!("end={mark}"));
        let screen = self.terminal.screen();
        let (_, since) = screen.split_once(&format!("begin={mark}\r\n")).unwrap();
        let (printed, _) = since.split_once(&format!("end={mark}")).unwrap();
        assert!(printed.contains(answer), "no {answer:?} from {line:?} after `{}`:\n{screen}", self.way);
    }

    /// The job ended with this status and has left nothing.
    #[track_caller]
    pub(crate) fn ended(&mut self, code: i32) {
        self.prompts();
        self.run("status=$?");
        self.ask("echo code=$status", &format!("code={code}\r\n"));
        self.world.assert_no_job();
    }

    /// Waits until every process of a process group is stopped, and the shell prompts; the job has the machine still.
    #[track_caller]
    pub(crate) fn stopped(&mut self, group: i32, how: &str) {
        wait_until("every process of the job is stopped", || {
            let states: Vec<char> = members(&self.world, group).into_iter().map(state_of).collect();
            // A shell that was about to start a program by vfork(2) sleeps until that has executed it: `D`.
            states.len() > 1 && states.contains(&'T') && states.iter().all(|state| matches!(state, 'T' | 'D'))
        });
        assert_eq!(state_of(group), 'T', "the shell's child goes on");
        self.ask("jobs -l", how);
        assert!(!self.world.lock_is_free(), "a stopped job has let the machine go");
        let seen = self.world.cmd("wholock --sample 0").run().exits(0).stdout;
        assert!(seen.contains(" stopped "), "{seen}");
    }

    /// Waits until a process group goes on.
    #[track_caller]
    pub(crate) fn goes_on(&self, group: i32) {
        wait_until("the job goes on", || members(&self.world, group).into_iter().all(|pid| state_of(pid) != 'T'));
    }

    pub(crate) fn leave(self) {
        leave(&self.world, self.terminal);
    }
}

/// The process group of a process; 0 if it is gone.
fn group_of(pid: i32) -> i32 {
    nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid))).map_or(0, nix::unistd::Pid::as_raw)
}

/// The processes of a process group.
fn members(world: &World, group: i32) -> Vec<i32> {
    world.processes().into_iter().filter(|&pid| group_of(pid) == group).collect()
}

pub(crate) const UNTIL_TOLD: &str = "until [ -e stop ]; do sleep 0.01; done";

/// It waits by a builtin, which a signal ends at once: a trap that has to wait for a child runs once for two signals.
const HEARS: &str = "trap 'echo INT >>heard' INT; trap 'echo QUIT >>heard' QUIT; exec 3<>fifo; echo rea''dy
    until [ -e stop ]; do read line <&3; done; exit 6";

fn every_interrupt_is_heard_once(way: &'static str) {
    let mut shell = Shell::new(way);
    nix::unistd::mkfifo(&shell.world.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    shell.job(HEARS);
    shell.run("% ./job");
    shell.started();
    shell.terminal.wait_screen("ready");
    let mut heard = String::new();
    for (key, name) in [("\x03", "INT\n"), ("\x03", "INT\n"), ("\x1c", "QUIT\n"), ("\x03", "INT\n")] {
        shell.terminal.type_in(key);
        heard += name;
        // A signal that comes just before the script reads is heard when it has read: an emulated processor may stop there.
        wait_until(&format!("{heard:?} was heard"), || {
            shell.world.write("fifo", "\n");
            shell.world.read("heard").len() >= heard.len()
        });
    }
    shell.world.write("stop", "");
    shell.world.write("fifo", "go on\n");
    shell.ended(6);
    assert_eq!(shell.world.read("heard"), heard);
    shell.leave();
}

fn an_interrupt_ends_the_command_and_not_the_shell(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.job("ulimit -c 0; exec sleep 600");
    // Two at once: the second comes while the job ends, or to the shell.
    for (keys, code) in [("\x03", 130), ("\x1c", 131), ("\x03\x03", 130)] {
        shell.run("% ./job");
        let group = shell.started();
        wait_until("sleep runs", || members(&shell.world, group).len() >= 2);
        assert_eq!(shell.in_front(), group);
        shell.terminal.type_in(keys);
        shell.ended(code);
    }
    shell.leave();
}

fn a_stopped_job_goes_on_in_front_and_behind(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.job(&format!("{UNTIL_TOLD}; exit 6"));
    shell.run("% ./job");
    let group = shell.started();
    assert_eq!(shell.in_front(), group);
    shell.terminal.type_in("\x1a");
    shell.stopped(group, "Stopped");
    for _ in 0..3 {
        shell.run("fg");
        assert_eq!(shell.in_front(), group);
        shell.goes_on(group);
        shell.terminal.type_in("\x1a");
        shell.stopped(group, "Stopped");
    }
    shell.run("bg");
    shell.goes_on(group);
    shell.ask("jobs", "Running");
    shell.run("fg");
    assert_eq!(shell.in_front(), group);
    shell.world.write("stop", "");
    shell.ended(6);
    shell.leave();
}

fn a_job_that_writes_behind_is_stopped_where_the_terminal_says_so(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.ask("stty tostop", "");
    shell.job("echo wor''ds; exit 6");
    shell.run("% ./job &");
    let group = shell.started();
    shell.stopped(group, "Stopped (tty output)");
    assert!(!shell.terminal.screen().contains("words"), "{}", shell.terminal.screen());
    shell.run("fg");
    shell.terminal.wait_screen("words");
    shell.ended(6);
    shell.leave();
}

fn a_job_that_reads_behind_is_stopped(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.job("read line </dev/tty; echo got=$line; exit 6");
    shell.run("% ./job &");
    let group = shell.started();
    shell.stopped(group, "Stopped (tty input)");
    shell.run("fg");
    assert_eq!(shell.in_front(), group);
    shell.terminal.type_in("words\n");
    shell.terminal.wait_screen("got=words");
    shell.ended(6);
    shell.leave();
}

fn a_job_hears_of_another_window_size(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.job(&format!("trap 'stty size' WINCH; echo rea''dy; {UNTIL_TOLD}; exit 6"));
    shell.run("% ./job");
    shell.started();
    shell.terminal.wait_screen("ready");
    shell.terminal.resize((101, 31));
    shell.terminal.wait_screen("31 101");
    shell.world.write("stop", "");
    shell.ended(6);
    assert_eq!(shell.terminal.screen().matches("31 101").count(), 1, "{}", shell.terminal.screen());
    shell.leave();
}

fn a_line_and_its_end_reach_the_command(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.run("% cat");
    shell.in_front();
    shell.terminal.type_in("some words\n");
    // Once by the terminal's echo, once by cat.
    wait_until("cat answers", || shell.terminal.screen().matches("some words").count() == 2);
    shell.terminal.type_in("\x04");
    shell.ended(0);
    shell.leave();
}

fn pipes_end_with_their_readers(way: &'static str) {
    let mut shell = Shell::new(way);
    for (line, answer) in [
        ("yes | % head -n 1; echo ${PIPESTATUS[@]}", "y\r\n141 0\r\n"),
        ("% yes | head -n 1; echo ${PIPESTATUS[@]}", "y\r\n141 0\r\n"),
    ] {
        let line = line.replace('%', way);
        shell.ask(&line, answer);
        shell.world.assert_no_job();
    }
    shell.leave();
}

fn an_editor_is_used_and_stopped(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.run("TERM=vt100 % vim.tiny -u NONE -i NONE -n text");
    let group = shell.in_front();
    shell.terminal.wait_screen("\"text\"");
    shell.terminal.type_in("ione \x1b");
    // The keys that follow are the shell's if they are typed too early.
    shell.terminal.type_in("\x1a");
    shell.stopped(group, "Stopped");
    shell.prompts();
    shell.run("fg");
    assert_eq!(shell.in_front(), group);
    shell.goes_on(group);
    shell.terminal.type_in("atwo\x1b:wq\r");
    shell.ended(0);
    assert_eq!(shell.world.read("text"), "one two\n");
    shell.leave();
}

fn a_pager_reads_a_file_from_stdin(way: &'static str) {
    let mut shell = Shell::new(way);
    let text: String = (1..=200).map(|line| format!("line {line}.\n")).collect();
    shell.world.write("text", &text);
    shell.run("TERM=vt100 LESS= % less <text");
    let group = shell.in_front();
    shell.terminal.wait_screen("line 1.");
    shell.terminal.type_in("\x1a");
    shell.stopped(group, "Stopped");
    shell.run("fg");
    assert_eq!(shell.in_front(), group);
    shell.goes_on(group);
    shell.terminal.type_in("G");
    shell.terminal.wait_screen("line 200.");
    shell.terminal.type_in("q");
    shell.ended(0);
    shell.leave();
}

fn jobs_end_with_the_terminal(way: &'static str) {
    for (line, stop) in [("% ./job", false), ("% ./job", true), ("% ./job &", false)] {
        let mut shell = Shell::new(way);
        shell.job("exec sleep 600");
        if line.ends_with('&') {
            // The kernel wakes who reads from a terminal that was closed before it sends the hang-up (pty.c, pty_close): the shell
            // may take that for the end of its input, and then leaves jobs behind alone.
            shell.run("trap 'kill -HUP %1' EXIT");
        }
        shell.run(line);
        let group = shell.started();
        wait_until("sleep runs", || members(&shell.world, group).len() >= 2);
        if stop {
            assert_eq!(shell.in_front(), group);
            shell.terminal.type_in("\x1a");
            shell.stopped(group, "Stopped");
        }
        shell.terminal.close();
        shell.terminal.wait();
        shell.world.wait_clean();
    }
}

fn a_hang_up_ends_the_job(way: &'static str) {
    let mut shell = Shell::new(way);
    shell.job("exec sleep 600");
    shell.run("% ./job");
    assert_eq!(shell.started(), shell.in_front());
    shell.terminal.hang_up();
    shell.terminal.wait();
    shell.world.wait_clean();
}

/// As the session's leader, after `exec` in a login shell say, a job has nobody who would go on with it.
fn without_a_shell_nothing_is_stopped(way: &'static str) {
    let world = World::new();
    let job = format!("exec {way} sh -c 'echo ready; {UNTIL_TOLD}; exit 6'");
    let mut terminal = world.cmd("bash --norc -c").arg(job).on_terminal();
    terminal.wait_screen("ready");
    let leader = terminal.pid();
    assert_eq!(terminal.foreground(), leader);
    terminal.type_in("\x1a\x1aafter that\n");
    terminal.wait_screen("after that");
    world.write("stop", "");
    assert_eq!(terminal.wait().code(), Some(6));
    world.assert_clean();
}
