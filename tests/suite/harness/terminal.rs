//! Commands on a terminal of their own.

use std::fs;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, FromRawFd, IntoRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use super::process::{Cmd, Collected};
use super::{EXECUTABLES, wait_until};

/// A command on a terminal of its own.
pub(crate) struct Terminal {
    child: Child,
    /// Until it is closed.
    master: Option<fs::File>,
    screen: Collected,
    /// While it is open, the screen is read.
    reading: Option<OwnedFd>,
}

/// Reads a terminal for as long as the other end of a pipe is open. Reading alone would keep the terminal open for ever.
struct Reader {
    master: fs::File,
    reading: OwnedFd,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut fds = [
            PollFd::new(self.master.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.reading.as_fd(), PollFlags::empty()),
        ];
        poll(&mut fds, PollTimeout::NONE)?;
        if fds[1].any() == Some(true) { Ok(0) } else { self.master.read(buffer) }
    }
}

/// Gives a terminal's window a size, in columns and rows.
fn set_size(master: &fs::File, (columns, rows): (u16, u16)) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: a valid size for a terminal that is open.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

impl Terminal {
    pub(super) fn start(cmd: Cmd, size: (u16, u16)) -> Self {
        // Not openpty(3): a program that inherits the other side keeps its own terminal from hanging up.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let pty = nix::pty::posix_openpt(flags).unwrap();
        nix::pty::grantpt(&pty).unwrap();
        nix::pty::unlockpt(&pty).unwrap();
        let slave = nix::fcntl::open(&*nix::pty::ptsname_r(&pty).unwrap(), flags, Mode::empty()).unwrap();
        // SAFETY: the descriptor is the other side's, and only handed on.
        let master = fs::File::from(unsafe { OwnedFd::from_raw_fd(pty.into_raw_fd()) });
        set_size(&master, size);
        let (mut command, _) = cmd.prepared();
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
        let (stop, reading) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let screen = Collected::from(Reader { master: master.try_clone().unwrap(), reading: stop });
        Self { child, master: Some(master), screen, reading: Some(reading) }
    }

    fn master(&self) -> &fs::File {
        self.master.as_ref().expect("a terminal that is open")
    }

    /// Types some text; `\x03` is ^C, `\x1a` is ^Z, `\x1c` is ^\, `\x04` is ^D.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.master().write_all(text.as_bytes()).unwrap();
    }

    /// Everything that was printed so far.
    pub(crate) fn screen(&self) -> String {
        self.screen.text()
    }

    /// The same as it came.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.screen.bytes()
    }

    /// Gives the window another size, in columns and rows.
    pub(crate) fn resize(&mut self, size: (u16, u16)) {
        set_size(self.master(), size);
    }

    /// Whether the terminal gathers lines and echoes, as a shell leaves it to its commands.
    pub(crate) fn is_canonical(&self) -> bool {
        use nix::sys::termios::{LocalFlags, tcgetattr};
        let wanted = LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG;
        tcgetattr(self.master()).unwrap().local_flags.contains(wanted)
    }

    /// Closes the other side of the terminal, as when its window is killed.
    #[track_caller]
    pub(crate) fn close(&mut self) {
        self.reading = None;
        wait_until("nobody reads the terminal", || self.screen.ended());
        self.master = None;
    }

    /// Waits until the screen has shown a text.
    #[track_caller]
    pub(crate) fn wait_screen(&self, text: &str) {
        wait_until(&format!("{text:?} on the screen:\n{}", self.screen()), || self.screen().contains(text));
    }

    /// The terminal's foreground process group.
    pub(crate) fn foreground(&self) -> i32 {
        // SAFETY: asks a terminal that is open.
        unsafe { libc::tcgetpgrp(self.master().as_raw_fd()) }
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Hangs the terminal up, as when its window is closed or its line breaks. Only root may.
    pub(crate) fn hang_up(&mut self) {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: opens the other side of the terminal that this test made.
        let side = unsafe { libc::ioctl(self.master().as_raw_fd(), libc::TIOCGPTPEER, flags) };
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
