//! The guard: a watchdog process that outlives a supervisor killed in any way.
//!
//! It is forked before the command exists and before any thread does. It shares the open file descriptions of the
//! lock and the ticket, so both stay locked while it lives, and it sleeps on the supervisor's pidfd, which the
//! supervisor opened itself: `getppid()` would race with its death. When the supervisor is dead, the guard kills the
//! group, waits until it is empty, removes it and the ticket, and lets the lock go by exiting: never before.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::spawn::BlockedSignals;
use crate::cgroup::{JobGroup, Population};
use crate::child;
use crate::poll::Limits;

/// The process's name, as ps(1) and top(1) show it.
const NAME: &std::ffi::CStr = c"perflock-guard";

/// A running guard.
#[derive(Debug)]
pub struct Guard {
    /// Its pid.
    pub pid: i32,
    pidfd: OwnedFd,
}

impl Guard {
    /// Forks the guard of `group`. It keeps `keep` open and calls `after` when the group is empty and removed.
    ///
    /// # Errors
    /// The process could not be made.
    pub fn start(group: &dyn JobGroup, keep: &[BorrowedFd<'_>], after: &dyn Fn()) -> io::Result<Self> {
        let supervisor = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        // Blocked before the fork: until the guard has a session of its own, ^C reaches it too.
        let blocked = BlockedSignals::all()?;
        match fork()? {
            Some((pid, pidfd)) => {
                drop(blocked);
                Ok(Self { pid, pidfd })
            }
            None => {
                let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
                kept.extend(group.descriptors().iter().map(AsRawFd::as_raw_fd));
                kept.push(supervisor.as_raw_fd());
                leave_everything_else(kept);
                watch(group, supervisor.as_fd());
                after();
                // SAFETY: ends the process at once, without flushing or dropping what it has from the supervisor;
                // the kernel lets the locks go with the descriptors.
                unsafe { libc::_exit(0) }
            }
        }
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

/// A fork whose end sends no SIGCHLD, so that it is not among the children that a job's orphans are told from: see
/// [`child`]. `None` in the child.
fn fork() -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; zero means "not used" for each, and for the exit signal "none".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    // SAFETY: without CLONE_VM this is a fork. perflock has one thread here (the lock's helper was joined), so the child's
    // memory is as consistent as ours, and it may allocate.
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    if pid == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
        // Container engines refuse clone3 like this, since its flags lie in memory that their filter cannot see.
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above, by clone(2): flags and exit signal in one, no stack of its own, and where the pidfd goes.
        pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PIDFD, none, &raw mut pidfd, none, none) };
    }
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some((i32::try_from(pid).map_err(io::Error::other)?, pidfd)))
        }
    }
}

/// Keeps nothing of the supervisor's but `kept`: a pipe that the guard held open would keep its reader waiting.
fn leave_everything_else(mut kept: Vec<RawFd>) {
    let _ = nix::unistd::setsid();
    let _ = std::env::set_current_dir("/");
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
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
    unsafe { libc::prctl(libc::PR_SET_NAME, NAME.as_ptr()) };
}

fn close_range(first: RawFd, last: RawFd) {
    // SAFETY: the guard uses no descriptor in the range again, and it ends by `_exit`, so that no owner's drop closes
    // a number that came to mean another file.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

fn watch(group: &dyn JobGroup, supervisor: BorrowedFd<'_>) {
    loop {
        let mut fds = [PollFd::new(supervisor, PollFlags::POLLIN)];
        if crate::poll::until(&mut fds, None).is_ok() && fds[0].any() == Some(true) {
            break;
        }
    }
    until_empty(group, true, None);
    // A group that cannot be removed is empty all the same, and must not hold the machine.
    let _ = group.remove();
}

/// Kills the group, if `kill` says so, again and again until it is empty; else waits for that. Sleeps in between:
/// 50 µs at first, since most groups die at once, then until the kernel reports a change. False if `limits` ended the
/// wait.
pub fn until_empty(group: &dyn JobGroup, kill: bool, limits: Option<Limits<'_>>) -> bool {
    let longest = Duration::from_secs(1);
    let mut pause = if kill { Duration::from_micros(50) } else { longest };
    loop {
        if kill {
            // If the kernel refuses, all that is left is to keep the lock until the members end by themselves.
            let _ = group.kill();
        }
        if group.population() == Population::Empty {
            return true;
        }
        let notices = group.changes();
        // Where the kernel reports changes and nothing has to be killed again, there is nothing to look for.
        let again = if kill || notices.is_none() { Some(Instant::now() + pause) } else { None };
        let deadline = limits.and_then(|limits| limits.deadline);
        if deadline.is_some_and(|at| at <= Instant::now()) {
            return false;
        }
        let again = again.into_iter().chain(deadline).min();
        let mut fds: Vec<PollFd<'_>> = notices.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLPRI)).collect();
        fds.extend(limits.map(|limits| PollFd::new(limits.interrupt, PollFlags::POLLIN)));
        let slept = crate::poll::until(&mut fds, again);
        if limits.is_some() && slept.is_ok() && fds.last().and_then(PollFd::any) == Some(true) {
            return false;
        }
        pause = (pause * 2).min(longest);
    }
}
