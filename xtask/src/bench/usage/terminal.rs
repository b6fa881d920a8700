//! A program on a terminal of its own.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::super::tools::Running;
use crate::Failure;

/// The terminal's size.
const SIZE: Winsize = Winsize { ws_col: 80, ws_row: 24, ws_xpixel: 0, ws_ypixel: 0 };

/// How much of what was drawn is quoted.
const QUOTED_BYTES: usize = 400;

/// The program, killed when dropped, and our side of its terminal, which somebody must read.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The program.
    pub(super) running: Running,
    /// Where keys are pressed.
    keyboard: File,
    /// Everything that was drawn.
    drawn: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a program as the leader of a session on a new terminal.
    ///
    /// # Errors
    /// There is no terminal to be had, or the program cannot be started.
    pub(super) fn start(mut command: Command) -> Result<Self, Failure> {
        let (keyboard, theirs) = open().map_err(|error| format!("cannot make a terminal: {error}"))?;
        let both = || theirs.try_clone().map_err(|error| format!("cannot share a terminal: {error}"));
        let screen = keyboard.try_clone().map_err(|error| format!("cannot share a terminal: {error}"))?;
        command.stdin(both()?).stdout(both()?).stderr(theirs).env("TERM", "xterm-256color");
        // SAFETY: the closure makes two async-signal-safe calls and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
            })
        };
        let running = Running::start(&mut command)?;
        // The last of our copies of their side: reading ends when the program does.
        drop(command);
        let drawn = Arc::new(Mutex::new(Vec::new()));
        let board = Arc::clone(&drawn);
        std::thread::spawn(move || copy(screen, &board));
        Ok(Self { running, keyboard, drawn })
    }

    /// How much was drawn so far.
    pub(super) fn drawn_bytes(&self) -> usize {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Presses a key.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn press(&mut self, key: u8) -> Result<(), Failure> {
        self.keyboard.write_all(&[key]).map_err(|error| format!("cannot press a key: {error}"))
    }

    /// The end of what was drawn, printable.
    pub(super) fn last_words(&self) -> String {
        let drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        drawn[drawn.len().saturating_sub(QUOTED_BYTES)..].escape_ascii().to_string()
    }
}

/// Makes a terminal: our side and theirs.
fn open() -> io::Result<(File, File)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
    rustix::termios::tcsetwinsize(&ours, SIZE)?;
    Ok((ours.into(), theirs.into()))
}

/// Reads the screen until nobody has the terminal open any more.
fn copy(mut screen: File, board: &Mutex<Vec<u8>>) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = screen.read(&mut bytes) {
        board.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tools::wait_until;
    use super::*;

    #[test]
    fn a_program_has_a_terminal_of_80_columns_and_hears_a_key() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "stty size </dev/tty; stty -icanon -echo; echo go; [ $(dd bs=1 count=1 2>&-) = q ]"]);
        let mut terminal = Terminal::start(shell).unwrap();
        wait_until("the shell asks for a key", || terminal.last_words().contains("go")).unwrap();
        terminal.press(b'q').unwrap();
        assert!(terminal.running.wait().unwrap().success(), "{}", terminal.last_words());
        assert_eq!(terminal.last_words(), r"24 80\r\ngo\r\n");
        assert_eq!(terminal.drawn_bytes(), 11);
    }
}
