//! The launcher: a short-lived process that makes guard and command where the supervisor may not.
//!
//! A plain user's login session has no right to place a process into that user's own systemd tree: the groups that
//! they have in common belong to root. So systemd moves a process of ours there. That one makes guard and command,
//! each born in its own sub-group, as children of the **supervisor** (`CLONE_PARENT`), and ends:
//!
//! ```text
//! supervisor ─┬─ launcher          moved into the scope, gone before the command runs
//!             ├─ perflock-guard    born in scope/guard
//!             └─ COMMAND           born in scope/JOB, waits at the gate until the supervisor opens it
//! ```
//!
//! Where nobody can be born in a group (before Linux 5.7), guard and command are born beside the launcher, by clone(2), and join
//! their sub-groups before they do anything else; the launcher ends when they have.
//!
//! Launcher, command and supervisor share one socket pair, and its order is the protocol: `go` to the launcher, its
//! answer with the pids, the supervisor's byte that opens the gate, and then end of file when the command has executed,
//! or why it could not. Once the launcher is gone nobody else has the command's end, since the guard has closed it before the
//! command is born: if the supervisor dies, the gate reads end of file, and what stands there leaves without executing.
//! While the launcher is at work the supervisor waits for its end, and for signals, as well: it may be killed or stopped.
//!
//! *systemd may stop the scope* at any moment from its birth on, by TERM to every process in it. Until the command is
//! born the launcher is one of them, and has it blocked: it says so, and the command is turned away.
//!
//! Launcher, guard and command end without a SIGCHLD to us (until it executes, for the command): only waits that ask for
//! them find them, so that none is taken for an orphan of the job.
//!
//! *A signal for the whole process group* that came before the command was born reached the supervisor only: its handler
//! has run by the time the launcher's answer is read, and the gate stays shut. A later one reaches the command as well,
//! which has it blocked until it executes.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::command::Command;
use super::guard::{self, Charge, Guard, Told};
use super::spawn::{self, Main, SpawnError, Start};
use crate::cgroup::{Entry, scope, systemd};
use crate::child;
use crate::fork::{self, Kin};
use crate::helper::Interrupt;
use crate::mask::BlockedSignals;
use crate::step::Step;

/// What a launcher makes.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// What the command is.
    pub command: &'a Command,
    /// What the command is started with.
    pub start: Start<'a>,
    /// For the guard.
    pub charge: Charge<'a>,
    /// Opens the group, from inside its scope.
    pub open: &'a dyn Fn() -> io::Result<scope::Group>,
}

/// The launcher's answer: the guard's pid, the command's pid, the errno of what could not be made, and whether systemd
/// stops the scope.
type Made = [i32; 4];

/// What a launcher made.
#[derive(Debug)]
pub struct Launched {
    /// The guard.
    pub guard: Guard,
    /// The command, or why there is none.
    pub command: Result<AtTheGate, SpawnError>,
    /// systemd stops the scope.
    pub stopped: bool,
}

/// Why a launcher made nothing.
#[derive(Debug)]
pub enum NotLaunched {
    /// It could not, or died.
    Failed(io::Error),
    /// The wait for it was ended.
    Interrupted,
}

/// How long a launcher that nobody needs waits for systemd to move it: as long as systemd is waited for.
const LEAVES_AFTER: Duration = systemd::PATIENCE;

/// A launcher that waits to be moved and told to go.
#[derive(Debug)]
pub struct Launcher {
    /// Its pid: a child of ours, not reaped.
    pub pid: i32,
    pidfd: OwnedFd,
    socket: UnixStream,
    told: Told,
}

/// A command that was born, and waits to be let in.
#[derive(Debug)]
pub struct AtTheGate {
    pid: i32,
    pidfd: OwnedFd,
    socket: UnixStream,
}

impl Launcher {
    /// Forks a launcher that does `work` once it is told to go.
    ///
    /// # Errors
    /// The process could not be made.
    pub fn start(work: Work<'_>) -> io::Result<Self> {
        let supervisor = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        let told = Told::new()?;
        let (ours, theirs) = UnixStream::pair()?;
        let blocked = BlockedSignals::all()?;
        // SAFETY: perflock has one thread here; the lock's helper was joined.
        match unsafe { fork::fork(Kin::QuietChild, None) }? {
            Some((pid, pidfd)) => {
                drop((theirs, blocked));
                Ok(Self { pid, pidfd, socket: ours, told })
            }
            None => {
                drop(ours);
                launch(work, theirs, &supervisor, &told);
            }
        }
    }

    /// Lets it make guard and command. It is gone when this returns.
    ///
    /// # Errors
    /// See [`NotLaunched`]. What it may have made leaves when it sees the socket closed, or us ended.
    pub(crate) fn go(self, interrupt: &Interrupt<'_>) -> Result<Launched, NotLaunched> {
        let Self { pid, pidfd, mut socket, told } = self;
        let answer = socket.write_all(b"g").map_err(NotLaunched::Failed);
        let answer = answer.and_then(|()| listen(&mut socket, &pidfd, interrupt));
        end(pid, &pidfd);
        let [guard, command, errno, stopped] = answer?;
        if guard == 0 {
            return Err(NotLaunched::Failed(io::Error::from_raw_os_error(errno)));
        }
        let guard = Guard::made_by_launcher(guard, told).map_err(NotLaunched::Failed)?;
        let command = match Pid::from_raw(command) {
            None => Err(SpawnError::Fork(io::Error::from_raw_os_error(errno))),
            Some(pid) => pidfd_open(pid, PidfdFlags::empty())
                .map(|pidfd| AtTheGate { pid: pid.as_raw_pid(), pidfd, socket })
                .map_err(|errno| SpawnError::Fork(errno.into())),
        };
        Ok(Launched { guard, command, stopped: stopped != 0 })
    }

    /// It is not needed, and systemd is not about to move it.
    pub fn dismiss(self) {
        end(self.pid, &self.pidfd);
    }

    /// It is not needed, but systemd may be about to move it: it leaves when that is done, or does not come. Returns its
    /// pid, which stays its own as long as we live: nobody reaps it.
    pub fn leave(self) -> i32 {
        // Its end of the socket reads end of file.
        self.pid
    }
}

impl AtTheGate {
    /// Lets the command in, and waits until it has executed, or could not.
    ///
    /// # Errors
    /// It could not be executed.
    pub fn let_in(mut self, command: &Command) -> Result<Main, SpawnError> {
        let mut failure = [0; 4];
        let started = Instant::now();
        let answered = self.socket.write_all(b"g").and_then(|()| read_to_end(&mut self.socket, &mut failure));
        match answered {
            Ok(0) => Ok(Main { pid: self.pid, pidfd: self.pidfd, started }),
            answered => {
                end(self.pid, &self.pidfd);
                let failed = |_| SpawnError::of_failure(command, i32::from_ne_bytes(failure));
                Err(answered.map_or_else(SpawnError::Fork, failed))
            }
        }
    }

    /// The command is not to be executed after all.
    pub fn turn_away(self) {
        end(self.pid, &self.pidfd);
    }
}

/// Ends a child of ours, and reaps it.
fn end(pid: i32, pidfd: &OwnedFd) {
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    child::reap(pid);
}

/// The launcher's answer, or why there is none.
fn listen(socket: &mut UnixStream, launcher: &OwnedFd, interrupt: &Interrupt<'_>) -> Result<Made, NotLaunched> {
    let mut bytes = [0; size_of::<Made>()];
    let mut length = 0;
    while length < bytes.len() {
        let mut fds = [socket.as_fd(), launcher.as_fd(), interrupt.fd].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        crate::poll::until(&mut fds, None).map_err(NotLaunched::Failed)?;
        let [answers, ended, came] = fds.map(|fd| fd.any() == Some(true));
        if came && (interrupt.ends_us)() {
            return Err(NotLaunched::Interrupted);
        }
        // What it wrote before it ended is there when its end is.
        match if answers { socket.read(&mut bytes[length..]) } else { Ok(0) } {
            Ok(0) if answers || ended => {
                return Err(NotLaunched::Failed(io::Error::other("the process that makes it was killed")));
            }
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(NotLaunched::Failed(error)),
        }
    }
    let (words, _) = bytes.as_chunks::<4>();
    Ok([0, 1, 2, 3].map(|index| i32::from_ne_bytes(words[index])))
}

/// Reads until `buffer` is full or nothing more can come; how much it was.
fn read_to_end(socket: &mut UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match socket.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The launcher's life. All signals are blocked, and the supervisor's end is its own.
fn launch(work: Work<'_>, mut socket: UnixStream, supervisor: &OwnedFd, told: &Told) -> ! {
    let mut go = [0];
    if socket.read_exact(&mut go).is_err() {
        leave_once_moved();
    }
    // Inside the scope: whoever dies there takes it along.
    fork::die_with(supervisor.as_fd());
    let mut made: Made = [0; 4];
    if let Err(error) = make(work, &mut socket, supervisor, told, &mut made) {
        made[2] = error.raw_os_error().unwrap_or(libc::EIO);
    }
    made[3] = i32::from(guard::systemd_says_stop());
    let bytes: Vec<u8> = made.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let _ = socket.write_all(&bytes);
    fork::end(0)
}

/// The supervisor is dead or does without a scope, but systemd may have been asked. If it came to move a process that is
/// gone, the scope would be there for ever: it goes when it *gets* empty.
fn leave_once_moved() -> ! {
    // The lock is not ours to keep, nor anybody's pipe.
    guard::leave_everything_else(Vec::new(), c"perflock-leaves");
    let end = Instant::now() + LEAVES_AFTER;
    let mut pause = Duration::from_millis(1);
    while Instant::now() < end && !scope::is_around_us() {
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    fork::end(0)
}

fn make(work: Work<'_>, gate: &mut UnixStream, supervisor: &OwnedFd, told: &Told, made: &mut Made) -> io::Result<()> {
    let group = (work.open)()?;
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    // The guard before the command, here as everywhere.
    // SAFETY: this process has one thread, as the supervisor had when it forked it.
    match unsafe { fork::fork(Kin::Sibling, Some(group.guard_entry())) }? {
        Some((pid, _)) => made[0] = pid,
        None => {
            // What stands at the gate must be alone with it. Whatever takes this one's place is closed by `serve`.
            if let Ok(nothing) = UnixStream::pair() {
                *gate = nothing.0;
            }
            let _ = File::from(tell).write_all(b"r");
            guard::serve(&group, work.charge, supervisor.as_fd(), Some(told), None);
        }
    }
    drop(tell);
    File::from(ready).read_exact(&mut [0])?;
    Step::GuardForked.reached();
    let joins = matches!(group.job_entry(), Entry::Joins(_));
    let (joined, tell) = joins.then(|| pipe_with(PipeFlags::CLOEXEC)).transpose()?.unzip();
    // SAFETY: as above.
    match unsafe { fork::fork(Kin::Sibling, Some(group.job_entry())) }? {
        Some((pid, _)) => {
            drop(tell);
            // It must have left the scope before controllers are passed on to the sub-groups.
            if let Some(joined) = joined {
                File::from(joined).read_exact(&mut [0])?;
            }
            made[1] = pid;
        }
        None => {
            if let Some(tell) = tell {
                let _ = File::from(tell).write_all(b"j");
            }
            wait_at_the_gate(work, gate)
        }
    }
    Ok(())
}

/// The command's first process, from its birth to its exec.
fn wait_at_the_gate(work: Work<'_>, mut gate: &UnixStream) -> ! {
    let mut word = [0];
    if gate.read_exact(&mut word).is_ok() {
        Step::CommandBorn.reached();
        let failure = spawn::execute(work.command, work.start);
        let _ = gate.write_all(&failure.to_ne_bytes());
    }
    fork::end(127)
}
