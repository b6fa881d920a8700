//! The guard: a watchdog process that outlives a supervisor killed in any way.
//!
//! It is forked before the command exists and before any thread does. It shares the open file descriptions of the
//! lock and the ticket, so both stay locked while it lives, and it sleeps on the supervisor's pidfd, which the
//! supervisor opened itself: `getppid()` would race with its death. When the supervisor is dead, the guard kills the
//! group, waits until it is empty, removes it, lets the lock go, and removes the ticket: in this order.
//!
//! While the supervisor lives the guard sleeps, but for one case: a job that is past its time limit and its grace, whose supervisor
//! is seen to wait for a processor, is killed for it. The kernel's `cgroup.kill` needs no more than one turn of ours.
//!
//! In a systemd scope it lives beside the job group, since the session that the supervisor lives in may end first.
//! systemd stops a scope by TERM to every process in it, and KILL 90 s later. The guard answers TERM by killing the job
//! at once: if it died of it while the job did not, the job would go on unguarded until then.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::looks::MOVES_AWAY_WITHIN;
use super::shared::SharedWord;
use super::step::{Policy, SURVIVES_FOR};
use crate::cgroup::{Entry, JobGroup, Maker, Population, Usage, kill_survivors};
use crate::child;
use crate::fork::{self, Kin};
use crate::mask::BlockedSignals;
use crate::poll::Limits;
use crate::procfs::Proc;
use crate::step::Step;

/// The process's name, as ps(1) and top(1) show it.
const NAME: &CStr = c"perflock-guard";

/// How long the supervisor may take to read what the group counted, once that is empty.
const READS_WITHIN: Duration = Duration::from_secs(1);

/// A running guard.
#[derive(Debug)]
pub struct Guard {
    /// Its pid.
    pub pid: i32,
    /// It could not be moved into the job's scope, and ends with the session.
    pub outside: bool,
    pidfd: OwnedFd,
    /// `None` where there is no unit to be stopped.
    told: Option<Told>,
    /// Closed by our death and by the command's exec: see [`serve`].
    _unborn: Option<OwnedFd>,
}

/// What a guard tells its supervisor: that systemd stops the unit which the job is in.
#[derive(Debug)]
pub(super) struct Told(SharedWord);

impl Told {
    pub(super) fn new() -> io::Result<Self> {
        SharedWord::new().map(Self)
    }

    fn stopped(&self) -> bool {
        self.0.word().load(Ordering::SeqCst) != 0
    }
}

/// What a guard needs of its supervisor.
#[derive(Clone, Copy)]
pub struct Charge<'a> {
    /// Kept open: the lock's and the ticket's descriptors, and those that `after` needs.
    pub keep: &'a [BorrowedFd<'a>],
    /// Called when the supervisor is dead and the group is empty and removed, with what it used: lets the lock go, and the
    /// ticket.
    pub after: &'a dyn Fn(Usage),
    /// How the job is ended.
    pub policy: Policy,
}

impl Guard {
    /// Forks the guard of `group`.
    ///
    /// # Errors
    /// The process could not be made.
    pub fn start(group: &dyn JobGroup, charge: Charge<'_>) -> io::Result<Self> {
        let supervisor = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        let told = group.unit().map(|_| Told::new()).transpose()?;
        // Born in the group, the command is told by that from the first.
        let joins_later = !matches!(group.maker(), Maker::Into(Entry::Born(_)));
        let (born, unborn) = joins_later.then(|| pipe_with(PipeFlags::CLOEXEC)).transpose()?.unzip();
        // Blocked before the fork: until the guard has a session of its own, ^C reaches it too.
        let blocked = BlockedSignals::all()?;
        // SAFETY: perflock has one thread here; the lock's helper was joined.
        match unsafe { fork::fork(Kin::QuietChild, None) }? {
            Some((pid, pidfd)) => {
                drop(blocked);
                Ok(Self { pid, outside: false, pidfd, told, _unborn: unborn })
            }
            None => serve(group, charge, supervisor.as_fd(), told.as_ref(), born.as_ref()),
        }
    }

    /// A guard that a launcher made for us: a child of ours that nobody has reaped.
    ///
    /// # Errors
    /// The process cannot be had by its pidfd.
    pub(super) fn made_by_launcher(pid: i32, told: Told) -> io::Result<Self> {
        let pidfd = pidfd_open(Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
        Ok(Self { pid, outside: false, pidfd, told: Some(told), _unborn: None })
    }

    /// Whether it was asked to end by systemd, which stops the job's unit, and has killed the job for that.
    pub fn was_stopped(&self) -> bool {
        self.told.as_ref().is_some_and(Told::stopped)
    }

    /// Readable once the guard ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends the guard: the supervisor has done its work. Its descriptors may stay open a moment longer, so the lock
    /// must be let go explicitly.
    pub fn end(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Reaps the guard after [`Guard::end`], waiting for that if need be.
    pub fn reap(self) {
        child::reap(self.pid);
    }
}

/// The guard's life. All signals are blocked.
///
/// Where members are told by a marker in their environment, or join their group themselves, the command is none before it
/// executes, and would not be found if its supervisor died first. From its birth until then it has the other end of the pipe
/// `born`.
pub(super) fn serve(
    group: &dyn JobGroup,
    charge: Charge<'_>,
    supervisor: BorrowedFd<'_>,
    told: Option<&Told>,
    born: Option<&OwnedFd>,
) -> ! {
    // Where there is no unit to be stopped, TERM is nothing to a guard.
    let term =
        told.and_then(|_| SignalFd::with_flags(&term_alone(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).ok());
    let mut kept: Vec<RawFd> = charge.keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.extend(group.descriptors().iter().map(AsRawFd::as_raw_fd));
    kept.push(supervisor.as_raw_fd());
    kept.extend(term.as_ref().map(|term| term.as_fd().as_raw_fd()));
    kept.extend(born.map(AsRawFd::as_raw_fd));
    leave_everything_else(kept, NAME);
    let at = charge.policy.overdue().and_then(|overdue| Instant::now().checked_add(overdue));
    let overdue = at.map(|at| Overdue { group, grace: charge.policy.grace, at, pause: LOOKS.0, starved: false });
    if watch(supervisor, term.as_ref(), overdue) == End::Stopped {
        // Said before it is done: the supervisor sees the job end.
        told.inspect(|told| told.0.word().store(1, Ordering::SeqCst));
        until_empty(group, true, None);
        // It gives the machine back, and ends us when it has read what the group counted: systemd removes that with the last
        // process of the scope. But a supervisor that is stopped must not hold up systemd.
        if !fork::ends_before(supervisor, Instant::now() + READS_WITHIN) {
            fork::end(0);
        }
    }
    Step::GuardAlone.reached();
    // Until then there is no other member, and nothing that could be killed.
    born.into_iter().for_each(until_closed);
    until_empty(group, true, None);
    Step::GuardEmptied.reached();
    let usage = group.usage(Usage::read_all);
    // A group that cannot be removed is empty all the same, and must not hold the machine.
    let _ = group.remove();
    Step::GuardRemoved.reached();
    (charge.after)(usage);
    // The kernel lets go what is left with the descriptors.
    fork::end(0)
}

/// Keeps nothing of the supervisor's but `kept`, and is called `name`: a pipe that the guard held open would keep its
/// reader waiting.
pub(super) fn leave_everything_else(mut kept: Vec<RawFd>, name: &CStr) {
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
    fork::leave_stdio();
    kept.sort_unstable();
    kept.dedup();
    let mut first = 3;
    for fd in kept.into_iter().filter(|&fd| fd >= 3) {
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX);
    // SAFETY: the name is a valid C string; the kernel copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Closes descriptors from the first to the last.
fn close_range(first: RawFd, last: RawFd) {
    // SAFETY: the guard uses no descriptor in the range again, and it ends by `_exit`, so that no owner's drop closes
    // a number that came to mean another file.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    // Before Linux 5.9. The one by which the list is read is closed by then.
    let listed = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<RawFd> = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| (first..=last).contains(fd)) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// What ends a guard's watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The supervisor is dead.
    Alone,
    /// systemd stops the unit: TERM to all of it, and KILL 90 s later.
    Stopped,
}

/// A job whose supervisor should have killed it by some time. Among the processes of a fork bomb that wants every processor,
/// the supervisor is one of thousands; the guard is in a session of its own, which the scheduler sees to on its own (sched(7),
/// autogroups).
struct Overdue<'a> {
    group: &'a dyn JobGroup,
    grace: Duration,
    at: Instant,
    pause: Duration,
    /// The supervisor was seen to wait for a processor when it was looked at last.
    starved: bool,
}

/// The first and the longest pause between two looks at a job that is overdue.
const LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// A guard that wakes so much too late was itself kept from running, and most likely the supervisor too: by a freezer, say.
const HELD_UP: Duration = Duration::from_millis(250);

impl Overdue<'_> {
    /// Kills the job if its supervisor lacks nothing but a processor for that, as was seen twice in a row: one that was just woken
    /// has one in a moment. One that sleeps has done it, or gives the members time that a stop of its own had taken; one that is
    /// stopped is somebody's will. `None`: all is done.
    fn look(mut self) -> Option<Self> {
        let now = Instant::now();
        if self.at > now {
            return Some(self);
        }
        let held_up = now >= self.at + HELD_UP;
        if !held_up && self.group.population() == Population::Empty {
            return None;
        }
        let supervisor = rustix::process::getppid()?.as_raw_pid();
        let state = Proc::default().stat(supervisor).map_or('?', |stat| stat.state);
        if held_up || matches!(state, 'T' | 't') {
            // When it goes on, the members get TERM and their grace from it.
            self.starved = false;
            self.at = now.checked_add(self.grace)? + LOOKS.1;
            return Some(self);
        }
        let starves = matches!(state, 'R' | 'D');
        if starves && self.starved {
            // What cannot be killed now is killed when we look again.
            let _ = self.group.kill();
        }
        self.starved = starves;
        self.at = now + self.pause;
        self.pause = (self.pause * 2).min(LOOKS.1);
        Some(self)
    }
}

fn watch(supervisor: BorrowedFd<'_>, term: Option<&SignalFd>, mut overdue: Option<Overdue<'_>>) -> End {
    crate::pages::let_go();
    loop {
        let mut fds = vec![PollFd::new(supervisor, PollFlags::POLLIN)];
        fds.extend(term.map(|term| PollFd::new(term.as_fd(), PollFlags::POLLIN)));
        let look_at = overdue.as_ref().map(|overdue| overdue.at);
        if crate::poll::until(&mut fds, look_at).is_ok() && fds[0].any() == Some(true) {
            return End::Alone;
        }
        overdue = overdue.and_then(Overdue::look);
        while let Some(Ok(Some(signal))) = term.map(SignalFd::read_signal) {
            // `pkill perflock` and `kill -1` mean the supervisor, which passes it on: the job may have things to save.
            if is_systemd(i32::try_from(signal.ssi_pid).unwrap_or(0)) {
                return End::Stopped;
            }
        }
    }
}

/// Waits until nobody has the other end of a pipe.
fn until_closed(pipe: &OwnedFd) {
    while rustix::io::read(pipe, &mut [0]) == Err(rustix::io::Errno::INTR) {}
}

fn term_alone() -> SigSet {
    SigSet::from(nix::sys::signal::Signal::SIGTERM)
}

/// Whether this process, which sent a signal, is a service manager.
fn is_systemd(pid: i32) -> bool {
    pid == 1 || crate::procfs::Proc::default().stat(pid).is_ok_and(|stat| stat.comm.starts_with("systemd"))
}

/// Whether a TERM of systemd's waits for this process, which has it blocked. It is taken.
pub(super) fn systemd_says_stop() -> bool {
    let term = SignalFd::with_flags(&term_alone(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    let signal = term.and_then(|term| term.read_signal());
    matches!(signal, Ok(Some(signal)) if is_systemd(i32::try_from(signal.ssi_pid).unwrap_or(0)))
}

/// Kills the group, if `kill` says so, again and again until it is empty; else waits for that. Sleeps in between:
/// 50 µs at first, since most groups die at once, then until the kernel reports a change. False if `limits` ended the
/// wait.
pub fn until_empty(group: &dyn JobGroup, kill: bool, limits: Option<Limits<'_>>) -> bool {
    let longest = Duration::from_secs(1);
    let mut pause = if kill { Duration::from_micros(50) } else { longest };
    let removal = if kill { None } else { group.removal() };
    let survives_until = Instant::now() + SURVIVES_FOR;
    loop {
        if kill {
            // If the kernel refuses, all that is left is to keep the lock until the members end by themselves.
            let _ = group.kill();
            if Instant::now() >= survives_until {
                // A guard has nobody to tell who is left.
                kill_survivors(group);
            }
        }
        if group.population() == Population::Empty {
            return true;
        }
        let notices = group.changes();
        // Where the kernel reports everything and nothing has to be killed again, there is nothing to look for.
        let told_all = notices.is_some() && removal.is_some();
        let member = if kill || notices.is_some() { None } else { group.next_end() };
        let again = match &member {
            Some(_) => Some(Instant::now() + MOVES_AWAY_WITHIN),
            None => (kill || !told_all).then(|| Instant::now() + pause),
        };
        let deadline = limits.and_then(|limits| limits.deadline);
        if deadline.is_some_and(|at| at <= Instant::now()) {
            return false;
        }
        let again = again.into_iter().chain(deadline).min();
        let mut fds: Vec<PollFd<'_>> = notices.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLPRI)).collect();
        fds.extend(removal.as_ref().or(member.as_ref()).map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        fds.extend(limits.map(|limits| PollFd::new(limits.interrupt, PollFlags::POLLIN)));
        let slept = crate::poll::until(&mut fds, again);
        if limits.is_some() && slept.is_ok() && fds.last().and_then(PollFd::any) == Some(true) {
            return false;
        }
        // Somebody else's group may have gone: what was told is taken, so that it is told again.
        if let Some(removal) = &removal {
            while rustix::io::read(removal, &mut [0; 4096]).is_ok_and(|length| length > 0) {}
        }
        pause = (pause * 2).min(longest);
    }
}
