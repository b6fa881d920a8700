//! The one place that prints: messages on stderr, each behind the name that was typed, and on stdout what was asked for.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal};

use crate::settings::Verbosity;

/// Prints what was asked for on stdout.
///
/// # Errors
/// It could not be written. A reader that closed the pipe has what it wanted.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// A voice with a name.
#[derive(Clone, Debug)]
pub struct Say {
    name: &'static str,
    verbosity: Verbosity,
}

impl Say {
    /// Speaks as `name`.
    pub fn new(name: &'static str, verbosity: Verbosity) -> Self {
        Self { name, verbosity }
    }

    /// The name that was typed.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether what is done is said, and how.
    pub fn is_verbose(&self) -> bool {
        self.verbosity >= Verbosity::Verbose
    }

    /// Something that went wrong: said even with `--quiet`.
    pub fn wrong(&self, text: &str) {
        self.line(text);
    }

    /// What a person waiting at the terminal wants to know.
    pub fn note(&self, text: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.line(text);
        }
    }

    /// What is done, and how: said with `--verbose`.
    pub fn detail(&self, text: &str) {
        if self.is_verbose() {
            self.line(text);
        }
    }

    /// Like [`Say::wrong`], while the machine is held: said only if the reader takes it at once, since a terminal that
    /// is stopped by ^S, or a pipe that nobody reads, must not hold the machine.
    pub fn wrong_now(&self, text: &str) {
        if stderr_takes_a_line() {
            self.wrong(text);
        }
    }

    /// Like [`Say::note`], while the machine is held.
    pub fn note_now(&self, text: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.wrong_now(text);
        }
    }

    /// Like [`Say::detail`], while the machine is held.
    pub fn detail_now(&self, text: &str) {
        if self.is_verbose() {
            self.wrong_now(text);
        }
    }

    fn line(&self, text: &str) {
        // A background process that writes to its terminal is stopped under `stty tostop`. A supervisor that slept in
        // that stop would hold up the whole machine; with SIGTTOU blocked the terminal takes the line.
        let ttou = SigSet::from(Signal::SIGTTOU);
        let before = ttou.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
        // One write per line, so that lines of several jobs on one terminal do not mix. Nobody may be listening.
        let _ = std::io::stderr().write_all(format!("{}: {text}\n", self.name).as_bytes());
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
    }
}

fn stderr_takes_a_line() -> bool {
    let stderr = std::io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    crate::poll::until(&mut fds, Some(Instant::now())).is_ok() && fds[0].any() == Some(true)
}
