//! `wholock --watch`: who has the machine, live. A viewer: it changes nothing, and takes no lock.
//!
//! # Theory of operation
//!
//! One loop sleeps in ppoll(2) on stdin, on signals, and until the next look. What comes of it goes into [`app`], which is
//! pure, and [`draw`] makes a screen of that; what differs from the last screen is written.
//!
//! **What a look costs.** The view runs on the machine whose measurements it must not disturb. At each tick the lock is opened
//! (it may have been set up anew), each ticket is asked whether it lives, and read if it changed; of each group two files are read,
//! and its members' numbers. The processes of the opened job are four files each, and for the load outside of the lock ([`outside`]) one file
//! of every process is read: both as rarely as [`pace::Pace`] demands. The rates
//! are from two looks, matched by the job's identity: a counter that went back, or a job that was not there, has none.
//!
//! **The terminal** is given back in every way out: the end, an error, a panic (`screen`), ^Z, SIGTERM. ISIG stays on, so
//! that ^C and ^Z are signals for the whole process group, as a shell expects. In the background nothing is written or set: the
//! view stops itself until it is in front again. Keys are decoded here (`keys`), not by the library: its reader spins on a
//! terminal that hung up. An end of input, a hang-up or a failed write ends the view.

pub mod app;
pub mod columns;
pub mod draw;
pub mod keys;
pub mod machine;
pub mod outside;
pub mod pace;
#[cfg(test)]
mod samples;
pub mod screen;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::io::Errno;
use signal_hook::consts::{SIGCONT, SIGTSTP, SIGWINCH};

use super::cores::CoreMap;
use super::snapshot::{Memory, Snapshot};
use super::tree::{self, Process};
use crate::cgroup::Usage;
use crate::clock::{self, cpu_time};
use crate::exit::Ending;
use crate::lock::{Lock, LockError};
use crate::procfs::{MachineCpu, Proc};
use crate::settings::LOCK;
use crate::supervisor::inherit::Inherited;
use crate::supervisor::signals::{Signals, stop_now};
use crate::text;
use app::{App, Setting};
use keys::{Decoder, Key};
use outside::Outside;
use pace::Pace;
use screen::Screen;

/// Rates need a second look, and nobody wants to wait long for the first of them.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// How long the rest of a key may take to come.
const KEY_TIME: Duration = Duration::from_millis(50);

/// The share of one core that reading the processes of the opened job may take.
const TREE_SHARE: f64 = 0.002;

/// Why the view ended otherwise than it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nowhere to draw on, or nobody to press keys.
    #[error("--watch needs a terminal that can move its cursor; wholock without it prints the same once")]
    NoTerminal,
    /// The terminal hung up.
    #[error("the terminal is gone")]
    Gone,
    /// The terminal failed.
    #[error("cannot use the terminal: {}", crate::error::reason(.0))]
    Terminal(#[from] io::Error),
}

/// One look.
#[derive(Debug)]
pub struct Sight {
    /// When.
    pub at: Instant,
    /// The same for people.
    pub time_of_day: String,
    /// The machine's CPU time, where the kernel tells.
    pub cpu: Option<MachineCpu>,
    /// The lock; empty where there is a problem.
    pub snapshot: Snapshot,
    /// Which job is on which processors, where one was told to run somewhere.
    pub cores: Option<CoreMap>,
    /// Why the lock could not be looked at.
    pub problem: Option<String>,
}

impl Default for Sight {
    fn default() -> Self {
        let (time_of_day, snapshot) = (String::new(), Snapshot::default());
        Self { at: Instant::now(), time_of_day, cpu: None, snapshot, cores: None, problem: None }
    }
}

/// The processes of one job.
#[derive(Debug)]
pub struct Processes {
    /// When they were read.
    pub at: Instant,
    /// In the order of the tree.
    pub tree: Vec<Process>,
}

/// What is looked at.
#[derive(Debug)]
pub struct Target {
    /// The lock file.
    pub path: PathBuf,
    /// It is made by the first job: while it is missing nobody has it.
    pub private: bool,
}

impl Target {
    fn look(&self, proc: &Proc, memory: &mut Memory) -> Sight {
        let seen = Lock::open(&self.path).and_then(|lock| Snapshot::look(&lock, proc, Usage::read_live, memory));
        let (snapshot, problem) = match seen {
            Ok(snapshot) => (snapshot, None),
            Err(LockError::Missing(_)) if self.private => (Snapshot::default(), None),
            Err(error) => (Snapshot::default(), Some(error.to_string())),
        };
        let cores = CoreMap::of(&snapshot, Path::new("/"));
        let (at, time_of_day) = (Instant::now(), clock::time_of_day());
        Sight { at, time_of_day, cpu: proc.machine_cpu().ok(), snapshot, cores, problem }
    }
}

/// Shows `target` anew every `interval`, until a key or a signal ends it.
///
/// # Errors
/// There is no terminal, or none any more.
pub fn run(target: &Target, interval: Duration, inherited: &Inherited) -> Result<Ending, Error> {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if dumb || !rustix::termios::isatty(io::stdin()) || !rustix::termios::isatty(io::stdout()) {
        return Err(Error::NoTerminal);
    }
    let setting = Setting {
        host: text::escape(&rustix::system::uname().nodename().to_string_lossy()),
        lock: (target.path.as_os_str() != LOCK).then(|| text::path(&target.path)),
        interval,
        colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    let signals = Signals::install(inherited, false)?;
    signals.catch_stop(inherited)?;
    signals.catch(SIGWINCH)?;
    signals.catch(SIGCONT)?;
    let mut view = View {
        target,
        proc: Proc::default(),
        app: App::new(setting),
        memory: Memory::default(),
        tree_pace: Pace::new(TREE_SHARE),
        outside: Outside::default(),
        signals,
        keys: Decoder::default(),
        screen: Screen::take()?,
    };
    view.run(interval)
}

/// Everything while it runs.
struct View<'a> {
    target: &'a Target,
    proc: Proc,
    app: App,
    memory: Memory,
    tree_pace: Pace,
    outside: Outside,
    signals: Signals,
    keys: Decoder,
    screen: Screen,
}

impl View<'_> {
    fn run(&mut self, interval: Duration) -> Result<Ending, Error> {
        self.look();
        let mut next = Instant::now() + interval.min(SECOND_LOOK);
        loop {
            self.screen.draw(|buffer| draw::draw(&mut self.app, buffer)).map_err(gone)?;
            let woken = self.sleep(next)?;
            if let Some(ending) = self.obey_signals()? {
                return Ok(ending);
            }
            if self.obey_keys(woken)? {
                return Ok(Ending::Code(0));
            }
            if Instant::now() >= next {
                self.look();
                // Not from when it was due: what was missed while we were stopped is not made up for.
                next = Instant::now() + interval;
            }
            if self.app.lacks_processes() {
                self.read_processes();
            }
        }
    }

    /// Sleeps until something is to be done. Says what stdin has for us.
    fn sleep(&self, next: Instant) -> io::Result<PollFlags> {
        let deadline = if self.keys.is_open() { next.min(Instant::now() + KEY_TIME) } else { next };
        let stdin = io::stdin();
        let readable = PollFlags::POLLIN;
        let mut fds = [PollFd::new(stdin.as_fd(), readable), PollFd::new(self.signals.fd(), readable)];
        crate::poll::until(&mut fds, Some(deadline))?;
        Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
    }

    fn look(&mut self) {
        let sight = self.target.look(&self.proc, &mut self.memory);
        let at = sight.at;
        if let Some(load) = self.outside.look(&sight.snapshot, &self.proc) {
            self.app.loaded(load, at);
        }
        self.app.looked(sight);
        if self.app.opened().is_some() && self.tree_pace.is_due(Instant::now()) {
            self.read_processes();
        }
    }

    fn read_processes(&mut self) {
        let Some(job) = self.app.opened() else { return };
        let before = cpu_time();
        let tree = tree::read(&self.proc, &job.members);
        // Told beside the look that it belongs to, and so of the same moment.
        let at = self.app.sight().at;
        self.tree_pace.spent(Instant::now(), cpu_time().saturating_sub(before));
        self.app.read_processes(Processes { at, tree });
    }

    /// True if a key ends the view.
    fn obey_keys(&mut self, woken: PollFlags) -> Result<bool, Error> {
        let mut pressed = Vec::new();
        if woken.contains(PollFlags::POLLIN) {
            let mut bytes = [0; 256];
            match rustix::io::read(io::stdin(), &mut bytes) {
                Ok(0) | Err(Errno::IO) => return Err(Error::Gone),
                Ok(length) => pressed = self.keys.feed(&bytes[..length]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(Error::Terminal(errno.into())),
            }
        } else if woken.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Err(Error::Gone);
        } else if self.keys.is_open() {
            pressed.extend(self.keys.close());
        }
        Ok(pressed.into_iter().any(|key: Key| self.app.pressed(key)))
    }

    /// Does what signals ask for. The ending, if one does.
    fn obey_signals(&mut self) -> Result<Option<Ending>, Error> {
        let mut came: VecDeque<i32> = self.drain().collect();
        let ends = |signal: &&i32| !matches!(**signal, SIGWINCH | SIGCONT | SIGTSTP);
        loop {
            // Before all others: who is to end and go on at once is not to stop again instead.
            if let Some(&signal) = came.iter().find(ends) {
                return Ok(Some(Ending::Signal(signal)));
            }
            match came.pop_front() {
                None => return Ok(None),
                Some(SIGWINCH) => self.screen.resize()?,
                Some(SIGCONT) if screen::in_front() => self.screen.retake().map_err(gone)?,
                Some(_) => {
                    self.screen.leave();
                    stop_now();
                    let meanwhile = came.len();
                    came.extend(self.drain());
                    let stopped = came.range(meanwhile..).any(|&signal| signal == SIGCONT);
                    if !stopped && !screen::in_front() {
                        // Nobody is left to bring us to the front, or to let us go on.
                        return Err(Error::Gone);
                    }
                    if !stopped {
                        came.push_back(SIGCONT);
                    }
                }
            }
        }
    }

    fn drain(&self) -> impl Iterator<Item = i32> + use<> {
        self.signals.drain().into_iter().map(|arrived| arrived.signal)
    }
}

/// A terminal that hung up fails so.
fn gone(error: io::Error) -> Error {
    if error.raw_os_error() == Some(libc::EIO) { Error::Gone } else { Error::Terminal(error) }
}
