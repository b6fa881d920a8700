//! Commands on a terminal of their own.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};

use super::process::{Cmd, Collected};
use super::{EXECUTABLES, wait_until};

/// A command on a terminal of its own.
pub(crate) struct Terminal {
    child: Child,
    master: fs::File,
    screen: Collected,
}

impl Terminal {
    pub(super) fn start(cmd: Cmd) -> Self {
        let pty = nix::pty::openpty(None, None).unwrap();
        let (mut command, _) = cmd.prepared();
        let slave: OwnedFd = pty.slave;
        let end = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
        let take_terminal = || {
            nix::unistd::setsid()?;
            // SAFETY: only a system call; descriptor 0 is the terminal by then.
            match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            }
        };
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(take_terminal) };
        let child = {
            let _no_writer = EXECUTABLES.read();
            command.spawn().unwrap()
        };
        let master = fs::File::from(pty.master);
        let screen = Collected::from(master.try_clone().unwrap());
        Self { child, master, screen }
    }

    /// Types some text; `\x03` is ^C, `\x1a` is ^Z, `\x1c` is ^\, `\x04` is ^D.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Everything that was printed so far.
    pub(crate) fn screen(&self) -> String {
        self.screen.text()
    }

    /// Waits until the screen has shown a text.
    #[track_caller]
    pub(crate) fn wait_screen(&self, text: &str) {
        wait_until(&format!("{text:?} on the screen:\n{}", self.screen()), || self.screen().contains(text));
    }

    /// The terminal's foreground process group.
    pub(crate) fn foreground(&self) -> i32 {
        // SAFETY: asks a terminal that is open.
        unsafe { libc::tcgetpgrp(self.master.as_raw_fd()) }
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Hangs the terminal up, as when its window is closed or its line breaks. Only root may.
    pub(crate) fn hang_up(&mut self) {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: opens the other side of the terminal that this test made.
        let side = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        assert!(side >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel just made this descriptor, and nobody else owns it.
        let side = unsafe { OwnedFd::from_raw_fd(side) };
        // SAFETY: hangs up the terminal that this test made.
        let hung_up = unsafe { libc::ioctl(side.as_raw_fd(), libc::TIOCVHANGUP) };
        assert_eq!(hung_up, 0, "{}", std::io::Error::last_os_error());
    }

    /// Waits for the end of the process that was started.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the program on the terminal ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
