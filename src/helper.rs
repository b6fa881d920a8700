//! A question put to a process of its own, for what must not be done in ours: it may never be answered, and the library
//! that is asked may panic, or keep what it opened.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::child;
use crate::fork;
use crate::mask::BlockedSignals;

/// The first and the longest pause between two looks for an effect.
const LOOKS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// What the process found out, or why it could not.
    Said(Result<String, String>),
    /// What was asked for has come about, before the process could say so.
    Seen,
    /// The process ended without a word: it was killed, or panicked.
    Ended(Begun),
    /// Nothing in time.
    Silent(Begun),
    /// We were asked to stop waiting.
    Interrupted(Begun),
}

/// Whether the process had passed the point from which on what it does may have effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// It had not.
    No,
    /// It had.
    Yes,
}

/// What can end the wait for an answer: a descriptor that becomes readable, and whether what it tells of ends us.
pub(crate) struct Interrupt<'a> {
    pub(crate) fd: std::os::fd::BorrowedFd<'a>,
    pub(crate) ends_us: &'a dyn Fn() -> bool,
}

/// Lets a child do `work` and waits for what it has to say, `patience` long at most. It is gone when this returns, with
/// every connection and thread that it made. `work` is given a call with which it says that it begins to have effects;
/// from then on `seen` is asked again and again whether they have come about.
///
/// # Errors
/// No process could be made.
pub(crate) fn ask(
    patience: Duration,
    interrupt: Option<&Interrupt<'_>>,
    seen: Option<&dyn Fn() -> bool>,
    work: impl FnOnce(&dyn Fn()) -> Result<String, String>,
) -> io::Result<Answer> {
    let deadline = Instant::now() + patience;
    let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // Signals are ours to answer: in the child a handler would write to our pipe a second time.
    let blocked = BlockedSignals::all()?;
    // SAFETY: this process has one thread, so the child may allocate.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            fork::die_with(own.as_fd());
            // What a library prints when it panics, for want of descriptors say, is nobody's business.
            fork::leave_stdio();
            let writer = File::from(writer);
            let begin = || {
                let _ = (&writer).write_all(b"!");
            };
            let text = match work(&begin) {
                Ok(text) => format!("+{text}"),
                Err(text) => format!("-{text}"),
            };
            let _ = (&writer).write_all(text.as_bytes());
            fork::end(0);
        }
        pid => pid,
    };
    drop((writer, blocked));
    let mut said = Said { reader: File::from(reader), text: Vec::new() };
    let over = listen(&mut said, deadline, interrupt, seen);
    // A child that nobody has reaped: the number means it.
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
    child::reap(pid);
    // It may have begun, or said all, since we looked last.
    let _ = said.reader.read_to_end(&mut said.text);
    Ok(match over? {
        Over::Seen => Answer::Seen,
        Over::Interrupted => Answer::Interrupted(said.begun()),
        Over::Silent => said.answer().unwrap_or_else(|| Answer::Silent(said.begun())),
        Over::Ended => said.answer().unwrap_or_else(|| Answer::Ended(said.begun())),
    })
}

/// What a helper has said so far.
struct Said {
    reader: File,
    text: Vec<u8>,
}

impl Said {
    fn begun(&self) -> Begun {
        if self.text.is_empty() { Begun::No } else { Begun::Yes }
    }

    fn answer(&self) -> Option<Answer> {
        let text = String::from_utf8_lossy(&self.text);
        match text.trim_start_matches('!').split_at_checked(1)? {
            ("+", rest) => Some(Answer::Said(Ok(rest.to_owned()))),
            ("-", rest) => Some(Answer::Said(Err(rest.to_owned()))),
            _ => None,
        }
    }
}

/// Why listening is over.
enum Over {
    Seen,
    Interrupted,
    Silent,
    Ended,
}

fn listen(
    said: &mut Said,
    deadline: Instant,
    interrupt: Option<&Interrupt<'_>>,
    seen: Option<&dyn Fn() -> bool>,
) -> io::Result<Over> {
    let mut pause = LOOKS.0;
    loop {
        let looks = seen.filter(|_| said.begun() == Begun::Yes);
        if looks.is_some_and(|seen| seen()) {
            return Ok(Over::Seen);
        }
        let wake_at = looks.map_or(deadline, |_| deadline.min(Instant::now() + pause));
        pause = (pause * 2).min(LOOKS.1);
        let mut fds = vec![PollFd::new(said.reader.as_fd(), PollFlags::POLLIN)];
        fds.extend(interrupt.map(|interrupt| PollFd::new(interrupt.fd, PollFlags::POLLIN)));
        crate::poll::until(&mut fds, Some(wake_at))?;
        let ready = fds[0].any() == Some(true);
        let came = fds.get(1).and_then(PollFd::any) == Some(true);
        if interrupt.is_some_and(|interrupt| came && (interrupt.ends_us)()) {
            return Ok(Over::Interrupted);
        }
        if ready {
            let mut chunk = [0; 1024];
            match said.reader.read(&mut chunk)? {
                0 => return Ok(Over::Ended),
                length => said.text.extend_from_slice(&chunk[..length]),
            }
        } else if Instant::now() >= deadline {
            return Ok(Over::Silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask_with(patience: Duration, interrupt: bool, work: impl FnOnce(&dyn Fn()) -> Result<String, String>) -> Answer {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        if interrupt {
            File::from(writer.try_clone().unwrap()).write_all(b"x").unwrap();
        }
        ask(patience, Some(&Interrupt { fd: reader.as_fd(), ends_us: &|| true }), None, work).unwrap()
    }

    #[test]
    fn what_was_found_out_comes_back() {
        let long = "x".repeat(5000);
        let patience = Duration::from_secs(20);
        assert_eq!(ask_with(patience, false, |_| Ok(long.clone())), Answer::Said(Ok(long.clone())));
        let begun = |begin: &dyn Fn()| {
            begin();
            Err("why".to_owned())
        };
        assert_eq!(ask_with(patience, false, begun), Answer::Said(Err("why".to_owned())));
        let died = ask_with(patience, false, |_| fork::end(3));
        assert_eq!(died, Answer::Ended(Begun::No));
    }

    #[test]
    fn an_effect_is_seen_once_it_may_come() {
        let seen = || true;
        let ask = |begins: bool| {
            ask(Duration::from_millis(300), None, Some(&seen), |begin| {
                if begins {
                    begin();
                }
                std::thread::sleep(Duration::from_secs(60));
                Ok(String::new())
            })
        };
        assert_eq!(ask(true).unwrap(), Answer::Seen);
        assert_eq!(ask(false).unwrap(), Answer::Silent(Begun::No));
    }

    #[test]
    fn the_wait_ends_by_time_and_by_interrupt() {
        let sleeps = |_: &dyn Fn()| {
            std::thread::sleep(Duration::from_secs(60));
            Ok(String::new())
        };
        let begins = |begin: &dyn Fn()| {
            begin();
            sleeps(begin)
        };
        assert_eq!(ask_with(Duration::from_millis(10), false, sleeps), Answer::Silent(Begun::No));
        assert_eq!(ask_with(Duration::from_millis(500), false, begins), Answer::Silent(Begun::Yes));
        assert_eq!(ask_with(Duration::from_secs(60), true, sleeps), Answer::Interrupted(Begun::No));
    }
}
