//! `wholock --watch` on a terminal: what it shows, what keys do, and how it leaves.

use std::num::NonZero;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use crate::harness::{Cmd, Terminal, World, alive, deadline, me, pid_in, signal, state_of, wait_until};
use crate::needs;
use crate::signals::end;
use crate::terminal::{leave, shell};

/// Of the window, but where a test says otherwise.
const SIZE: (u16, u16) = (100, 20);

/// A job that burns CPU time until it is ended.
const BUSY: &str = "echo $$ > busy.pid; echo running; while :; do :; done";

fn live(world: &World) -> Cmd {
    world.cmd("wholock --watch 0.2").env("TERM", "xterm").env_remove("NO_COLOR")
}

/// What a terminal of this size shows after it was sent these bytes.
fn emulate(bytes: &[u8], (columns, rows): (u16, u16)) -> vt100::Parser {
    let size = |cells| NonZero::new(cells).expect("a window with room");
    let mut parser = vt100::Parser::new(size(rows), size(columns), 0);
    parser.process(bytes);
    parser
}

fn shown(terminal: &Terminal) -> String {
    let screen = emulate(&terminal.bytes(), SIZE);
    screen.screen().rows(0, SIZE.0).map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Waits until the lines that are shown are as wanted.
#[track_caller]
fn wait_shown(terminal: &Terminal, what: &str, wanted: impl Fn(&[&str]) -> bool) {
    let end = Instant::now() + deadline();
    loop {
        let screen = shown(terminal);
        if wanted(&screen.lines().collect::<Vec<_>>()) {
            return;
        }
        assert!(Instant::now() < end, "did not come true: {what}; the screen:\n{screen}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The row of the job with this number.
fn row_of<'a>(lines: &[&'a str], number: &str) -> Option<&'a str> {
    lines.iter().copied().find(|line| line.trim_start_matches('>').split_whitespace().next() == Some(number))
}

/// It left the terminal as it found it.
#[track_caller]
fn assert_restored(terminal: &Terminal) {
    wait_until("the terminal is as it was", || {
        let parser = emulate(&terminal.bytes(), SIZE);
        !parser.screen().alternate_screen() && !parser.screen().hide_cursor()
    });
    assert!(terminal.is_canonical());
}

/// The numbers of every sequence that sets how text looks.
fn looks(bytes: &[u8]) -> Vec<u32> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let sequences = text.split("\x1b[").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';')?;
        rest[end..].starts_with('m').then(|| rest[..end].to_owned())
    });
    sequences.flat_map(|numbers| numbers.split(';').filter_map(|n| n.parse().ok()).collect::<Vec<_>>()).collect()
}

#[test]
fn a_job_its_waiter_and_its_processes_are_shown_as_they_are() {
    needs!(V2);
    let world = World::new();
    let mut terminal = live(&world).on_terminal_of(SIZE);
    wait_shown(&terminal, "a free machine", |lines| lines.contains(&"the machine is free"));
    assert!(!terminal.is_canonical());
    let holder = world.cmd("perflock -q -m nightly sh -c").arg(BUSY).spawn();
    holder.wait_stdout("running\n");
    let waiter = world.waiter("2.s", world.cmd("pls -q true"));
    wait_shown(&terminal, "the job uses CPU time, and the other waits", |lines| {
        let (Some(first), Some(second)) = (row_of(lines, "1"), row_of(lines, "2")) else { return false };
        let used = first.split_whitespace().any(|word| word.strip_suffix('%').is_some_and(|n| n.parse() != Ok(0)));
        let graph = first.contains(['▃', '▄', '▅', '▆', '▇', '█']);
        first.contains("exclusive  running")
            && first.contains(&me())
            && used
            && graph
            && second.contains("shared     waiting")
    });
    wait_shown(&terminal, "the machine's CPU time is told apart", |lines| {
        lines[0].contains(": held by 1 job, 1 waiting") && lines[1].contains("█") && lines[1].contains("] jobs ")
    });
    let process = format!("{} sh -c", pid_in(&world.path("busy.pid")));
    assert!(!shown(&terminal).contains(&process));
    terminal.type_in("\r");
    wait_shown(&terminal, "its process", |lines| lines.iter().any(|line| line.contains(&process)));
    // The other job has none.
    terminal.type_in("\x1b[B");
    wait_shown(&terminal, "the other is selected", |lines| {
        let selected = row_of(lines, "2").is_some_and(|row| row.starts_with('>'));
        selected && !lines.iter().any(|line| line.contains(&process))
    });
    end(holder);
    waiter.wait().exits(0);
    wait_shown(&terminal, "a free machine again", |lines| lines.contains(&"the machine is free"));
    terminal.type_in("q");
    assert_eq!(terminal.wait().code(), Some(0));
    assert_restored(&terminal);
    world.assert_clean();
}

#[test]
fn it_follows_the_size_of_the_window_however_small() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock -q -m nightly");
    let mut terminal = live(&world).on_terminal_of(SIZE);
    wait_shown(&terminal, "the job", |lines| row_of(lines, "1").is_some());
    for size in [(20, 5), (1, 1), (0, 0), (130, 30), (u16::MAX, u16::MAX), (60, 10)] {
        let from = terminal.bytes().len();
        terminal.resize(size);
        // It is drawn anew, and nothing is drawn where there is no room.
        wait_until("the screen is cleared", || String::from_utf8_lossy(&terminal.bytes()[from..]).contains("\x1b[2J"));
        if size.0 > 100 && size.0 < 1000 {
            wait_until("more is shown", || {
                emulate(&terminal.bytes()[from..], size).screen().contents().contains("CPU TIME")
            });
        }
        assert!(alive(terminal.pid()));
    }
    let from = terminal.bytes().len();
    terminal.resize((60, 8));
    wait_until("it is drawn for this size", || {
        let screen = emulate(&terminal.bytes()[from..], (60, 8));
        let lines: Vec<String> = screen.screen().rows(0, 60).collect();
        row_of(&lines.iter().map(String::as_str).collect::<Vec<_>>(), "1").is_some() && lines[7].starts_with("q quit")
    });
    terminal.type_in("\x1b");
    assert_eq!(terminal.wait().code(), Some(0));
    end(holder);
    world.assert_clean();
}

#[test]
fn no_colour_is_used_where_none_is_wanted() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock -q");
    for (value, colours) in [("", true), ("1", false)] {
        let mut terminal = live(&world).env("NO_COLOR", value).on_terminal_of(SIZE);
        wait_shown(&terminal, "the job and the bar", |lines| {
            row_of(lines, "1").is_some() && lines[1].contains("] jobs ")
        });
        terminal.type_in("q");
        assert_eq!(terminal.wait().code(), Some(0));
        let numbers = looks(&terminal.bytes());
        // The default colours, 39 and 49, are none. The selected job stands out all the same.
        let used = numbers.iter().any(|n| matches!(n, 30..=38 | 40..=48 | 58 | 90..=107));
        assert_eq!(used, colours, "{numbers:?}");
        assert!(numbers.contains(&7));
    }
    end(holder);
    world.assert_clean();
}

#[test]
fn what_others_wrote_reaches_the_terminal_as_text() {
    needs!(V2);
    let world = World::new();
    let holder = world.holder("perflock -q -m \x1b[2Jgone");
    let mut terminal = live(&world).on_terminal_of((200, 10));
    wait_until("the message", || {
        emulate(&terminal.bytes(), (200, 10)).screen().contents().contains("# \\u{1b}[2Jgone")
    });
    terminal.type_in("q");
    assert_eq!(terminal.wait().code(), Some(0));
    end(holder);
    world.assert_clean();
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let world = World::new();
    let says = "wholock: --watch needs a terminal that can move its cursor; wholock without it prints the same once\n";
    live(&world).run().exits(125).prints("").says(says);
    for term in ["dumb", ""] {
        let mut terminal = live(&world).env("TERM", term).on_terminal_of(SIZE);
        assert_eq!(terminal.wait().code(), Some(125));
        wait_until("it says why", || terminal.screen().replace("\r\n", "\n") == says);
    }
    std::fs::remove_file(world.lock()).unwrap();
    let mut terminal = live(&world).on_terminal_of(SIZE);
    assert_eq!(terminal.wait().code(), Some(125));
    terminal.wait_screen("this machine is not set up");
    assert!(!terminal.screen().contains('\x1b'));
}

#[test]
fn a_signal_ends_it_and_it_leaves_the_terminal_as_it_was() {
    let world = World::new();
    for (typed, number) in [(None, libc::SIGTERM), (Some("\x03"), libc::SIGINT)] {
        let mut terminal = live(&world).on_terminal_of(SIZE);
        wait_shown(&terminal, "a free machine", |lines| lines.contains(&"the machine is free"));
        match typed {
            Some(keys) => terminal.type_in(keys),
            None => signal(terminal.pid(), number),
        }
        let status = terminal.wait();
        assert_eq!(status.signal(), Some(number), "{status}");
        assert_restored(&terminal);
    }
    world.assert_clean();
}

#[test]
fn it_ends_with_its_terminal() {
    let world = World::new();
    for (trap, ignores) in [("", false), ("trap '' HUP; ", true)] {
        let script = format!("{trap}exec wholock --watch 3600");
        let mut terminal = world.sh(&script).env("TERM", "xterm").on_terminal_of(SIZE);
        wait_shown(&terminal, "a free machine", |lines| lines.contains(&"the machine is free"));
        terminal.close();
        let status = terminal.wait();
        if ignores {
            assert_eq!(status.code(), Some(125), "{status}");
        } else {
            assert!(status.signal() == Some(libc::SIGHUP) || status.code() == Some(125), "{status}");
        }
    }
    world.assert_clean();
}

#[test]
fn it_stops_and_goes_on_as_a_shell_job() {
    needs!(V2, Program("bash"));
    let world = World::new();
    let mut terminal = shell(&world);
    terminal.resize(SIZE);
    terminal.type_in("TERM=xterm wholock --watch 0.2\n");
    wait_until("it is shown", || is_live(&terminal, 0));
    let viewer = terminal.foreground();
    let stop = |terminal: &mut Terminal| {
        let stopped = terminal.screen().matches("Stopped").count();
        terminal.type_in("\x1a");
        wait_until("it is stopped", || terminal.screen().matches("Stopped").count() > stopped);
        wait_until("the shell has the terminal", || terminal.foreground() == terminal.pid());
        assert_eq!(state_of(viewer), 'T');
        assert_restored(terminal);
    };
    stop(&mut terminal);
    let from = terminal.bytes().len();
    terminal.type_in("fg\n");
    wait_until("it is shown again", || is_live(&terminal, from));
    stop(&mut terminal);
    // In the background it leaves the terminal alone.
    let from = terminal.bytes().len();
    terminal.type_in("bg; echo al''so\n");
    terminal.wait_screen("also");
    wait_until("it is stopped again, and the shell knows", || {
        terminal.type_in("jobs\n");
        state_of(viewer) == 'T' && terminal.screen().matches("Stopped").count() > 2
    });
    assert!(!emulate(&terminal.bytes()[from..], SIZE).screen().alternate_screen());
    terminal.type_in("kill %1\n");
    wait_until("it ends", || !alive(viewer));
    assert!(!emulate(&terminal.bytes()[from..], SIZE).screen().alternate_screen());
    leave(&world, terminal);
}

/// Since this byte, the terminal was taken and drawn on.
fn is_live(terminal: &Terminal, from: usize) -> bool {
    let parser = emulate(&terminal.bytes()[from..], SIZE);
    parser.screen().alternate_screen() && parser.screen().contents().contains("the machine is free")
}
