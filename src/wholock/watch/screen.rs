//! The terminal: taken when the view begins, and given back however it ends.

use std::cell::RefCell;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::sync::Mutex;

use nix::poll::{PollFd, PollFlags};
use ratatui::backend::CrosstermBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};

/// How the terminal was, while it is ours: for the one who gives it back, be it in a panic.
static TAKEN: Mutex<Option<Termios>> = Mutex::new(None);

/// No screen is larger; a terminal can be told to be 65535 × 65535.
const LARGEST: (u16, u16) = (1000, 500);

/// Bytes for the terminal, written when they are complete. A terminal that is gone fails once, and is asked no more:
/// whoever clears up must not fail for it.
#[derive(Debug, Default)]
struct Output {
    pending: Vec<u8>,
    failed: Rc<RefCell<Option<io::Error>>>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut failed = self.failed.borrow_mut();
        if failed.is_none() {
            *failed = write_all(&self.pending).err();
        }
        self.pending.clear();
        Ok(())
    }
}

/// Writes to stdout, which may have been made not to block by whoever shares it.
fn write_all(mut bytes: &[u8]) -> io::Result<()> {
    let stdout = io::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(&stdout, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => crate::poll::until(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)], None)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The terminal while the view has it.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Output>>,
    failed: Rc<RefCell<Option<io::Error>>>,
    area: Rect,
    /// How it was, while it is given back.
    away: Option<Termios>,
}

impl Screen {
    /// Takes the terminal on stdin and stdout: keys come one by one and unseen, and what was on it stays behind.
    ///
    /// # Errors
    /// It is none.
    pub fn take() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            report(panic);
        }));
        enter(&before)?;
        let failed = Rc::default();
        let area = area();
        Ok(Self { terminal: terminal(area, &failed)?, failed, area, away: None })
    }

    /// Draws, and writes what changed.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        if !self.area.is_empty() {
            self.terminal.draw(|frame| draw(frame.buffer_mut()))?;
        }
        self.failed.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// The window may have another size: everything is drawn anew, unless the terminal is given back.
    ///
    /// # Errors
    /// None is known.
    pub fn resize(&mut self) -> io::Result<()> {
        if self.away.is_some() {
            return Ok(());
        }
        self.area = area();
        self.terminal = terminal(self.area, &self.failed)?;
        Ok(())
    }

    /// Gives the terminal back for now.
    pub fn leave(&mut self) {
        if let Some(before) = give_back() {
            self.away = Some(before);
        }
    }

    /// Takes it again, also where it was not given back: whoever had it meanwhile may have left it otherwise.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn retake(&mut self) -> io::Result<()> {
        let before = self.away.take().or_else(|| TAKEN.lock().map_or(None, |taken| taken.clone()));
        before.as_ref().map_or(Ok(()), enter)?;
        self.resize()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// The window's size; without one, nothing is drawn.
fn area() -> Rect {
    let size = tcgetwinsize(io::stdout()).map_or((0, 0), |size| (size.ws_col, size.ws_row));
    Rect::new(0, 0, size.0.min(LARGEST.0), size.1.min(LARGEST.1))
}

/// A terminal on which nothing stands. Its size is ours to tell: asked for it, the library would run a program at times.
fn terminal(area: Rect, failed: &Rc<RefCell<Option<io::Error>>>) -> io::Result<Terminal<CrosstermBackend<Output>>> {
    let mut output = Output { pending: Vec::new(), failed: Rc::clone(failed) };
    execute!(output, Clear(ClearType::All))?;
    Terminal::with_options(CrosstermBackend::new(output), TerminalOptions { viewport: Viewport::Fixed(area) })
}

/// Signals are still the terminal's to make of ^C and ^Z: they reach everybody in front, and so a shell sees them too.
fn enter(before: &Termios) -> io::Result<()> {
    let mut modes = before.clone();
    modes.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::IEXTEN);
    modes.input_modes.remove(InputModes::ICRNL | InputModes::INLCR | InputModes::IXON);
    modes.special_codes[SpecialCodeIndex::VMIN] = 1;
    modes.special_codes[SpecialCodeIndex::VTIME] = 0;
    if let Ok(mut taken) = TAKEN.lock() {
        *taken = Some(before.clone());
    }
    tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
    let mut bytes = Vec::new();
    execute!(bytes, EnterAlternateScreen, Hide)?;
    write_all(&bytes)
}

/// Whether the terminal takes orders from us: a shell in front of us has it to itself.
pub fn in_front() -> bool {
    // No job control on a terminal that is not our session's.
    tcgetpgrp(io::stdin()).map_or(true, |front| front == getpgrp())
}

/// Puts the terminal back as it was, once. Returns how that was.
fn give_back() -> Option<Termios> {
    let before = TAKEN.lock().ok()?.take()?;
    if !in_front() {
        return Some(before);
    }
    let mut bytes = Vec::new();
    // A vector takes everything; and a terminal that is gone needs nothing.
    let _ = execute!(bytes, LeaveAlternateScreen, Show);
    let _ = write_all(&bytes);
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    Some(before)
}
