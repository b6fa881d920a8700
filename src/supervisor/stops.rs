//! Stopping with the command: ^Z, and whatever else stops it.
//!
//! The shell takes its terminal back when its child stops, and that is us. By then the command must be done with the
//! terminal: many catch ^Z to leave it as it was, which takes a moment, and some go on. So what stops the whole process
//! group waits here, blocked, until the command has stopped, and is let in then. If the group is continued meanwhile, the
//! kernel drops it (signal.c, prepare_signal): nobody stops after he was continued.
//!
//! A command that stopped without us, as an inner shell does at `suspend`, is followed where it was in front: somebody waits
//! there for a prompt. One behind, that others stop and continue by its pid, would leave us stopped for ever.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, getpgid, getpgrp, getpid, pidfd_send_signal};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

use super::spawn::Main;
use crate::cgroup::JobGroup;
use crate::child;
use crate::mask::{self, BlockedSignals};
use crate::procfs::Proc;

/// How long the command may take to stop until it is looked at why it does not.
const STOPS_WITHIN: Duration = Duration::from_millis(200);

/// Stop signals, held back while the command runs.
pub(super) struct Stops {
    blocked: BlockedSignals,
    /// Readable while one waits; `None` where there was no descriptor left: then nobody looks why the command does not stop.
    waiting: Option<SignalFd>,
    /// When one was first seen to wait.
    since: Option<Instant>,
    /// The command was looked at since then.
    looked: bool,
    /// Inside another job, whose supervisor waits for us.
    nested: bool,
}

impl Stops {
    /// Holds them back from now on.
    ///
    /// # Errors
    /// The kernel refused; it is not known to.
    pub(super) fn hold(nested: bool) -> io::Result<Self> {
        let blocked = BlockedSignals::stopping()?;
        let waiting = SignalFd::with_flags(&mask::stopping(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).ok();
        Ok(Self { blocked, waiting, since: None, looked: false, nested })
    }

    /// To be slept on for the next one.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.waiting.as_ref().filter(|_| self.since.is_none()).map(|waiting| waiting.as_fd())
    }

    /// When [`Stops::follow`] is due without an event.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.filter(|_| !self.looked).map(|since| since + STOPS_WITHIN)
    }

    /// Stops if the command has; returns when it goes on.
    pub(super) fn follow(&mut self, main: &Main, group: &dyn JobGroup) {
        let waits = self.waits();
        let Some(signal) = child::stopped(main.pid) else {
            if waits && self.is_late(main) {
                self.stop();
            }
            return;
        };
        let terminal = terminal();
        let front = terminal.as_ref().and_then(|terminal| tcgetpgrp(terminal).ok());
        if !waits {
            // Whoever does not lead its process group is a part of a script, and no shell waits for it.
            let awaited = self.nested || getpgrp() == getpid();
            let in_front = front.is_some_and(|front| front == getpgrp() || group.contains(front.as_raw_pid()));
            if !awaited || !in_front {
                return;
            }
            // Not SIGSTOP: where nobody would go on with us, the kernel must discard it.
            let signal = if signal == libc::SIGSTOP { libc::SIGTSTP } else { signal };
            // SAFETY: sends a signal to this thread, which has it blocked.
            unsafe { libc::raise(signal) };
        }
        self.stop();
        go_on(main, terminal, front);
    }

    /// Whether one is held back now.
    fn waits(&mut self) -> bool {
        let waits = mask::stop_waits();
        if waits {
            self.since.get_or_insert_with(Instant::now);
        } else {
            (self.since, self.looked) = (None, false);
        }
        waits
    }

    /// Whether the command will not stop before it goes on: it sleeps in vfork(2) until its child executes a program, and the
    /// child was stopped before that. Asked once.
    fn is_late(&mut self, main: &Main) -> bool {
        let due = self.due().is_some_and(|at| at <= Instant::now());
        self.looked |= due;
        due && Proc::default().stat(main.pid).is_ok_and(|stat| stat.state == 'D')
    }

    fn stop(&mut self) {
        self.blocked.let_in();
        // What was blocked before us stays so, and is not asked about again and again.
        mask::drop_stops();
        (self.since, self.looked) = (None, false);
    }
}

/// A command that has a process group of its own, as an inner shell has, is not continued with ours: goes on with it, in
/// front if it was.
fn go_on(main: &Main, terminal: Option<OwnedFd>, front: Option<Pid>) {
    let Some(group) = Pid::from_raw(main.pid).and_then(|pid| getpgid(Some(pid)).ok()) else { return };
    if group == getpgrp() || child::stopped(main.pid).is_none() {
        return;
    }
    if let Some(terminal) = terminal
        && front == Some(group)
        && tcgetpgrp(&terminal) == Ok(getpgrp())
    {
        let _ = tcsetpgrp(&terminal, group);
    }
    let _ = pidfd_send_signal(&main.pidfd, Signal::CONT);
}

fn terminal() -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()
}

impl Drop for Stops {
    fn drop(&mut self) {
        // What the command took no notice of is not for us.
        mask::drop_stops();
    }
}
