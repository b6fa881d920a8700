//! Sleeping in a lock call that a signal, a deadline or nobody can end.
//!
//! A blocking flock(2) or fcntl(2) returns early only for a handler without SA_RESTART, and a signal that arrives
//! just before the call is lost. So the call is made by a helper thread with every signal blocked but one real-time
//! signal of our own; the main thread sleeps in poll(2), and cancels by sending that signal until the helper
//! acknowledges. inotify is no way out: a user has 128 instances, and its close event precedes the unlock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::pthread::{Pthread, pthread_self};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::ofd::whole_file;
use crate::job::Mode;

/// The call to sleep in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call<'a> {
    /// flock(2) in this mode.
    Flock(BorrowedFd<'a>, Mode),
    /// Until nobody holds an OFD write lock on the file; the read lock taken for that is let go at once.
    WriterGone(BorrowedFd<'a>),
}

impl Call<'_> {
    fn make(self) -> rustix::io::Result<()> {
        match self {
            Self::Flock(fd, Mode::Exclusive) => rustix::fs::flock(fd, FlockOperation::LockExclusive),
            Self::Flock(fd, Mode::Shared) => rustix::fs::flock(fd, FlockOperation::LockShared),
            Self::WriterGone(fd) => {
                let lock = |kind| whole_file(kind);
                let wrap = |errno: nix::Error| Errno::from_raw_os_error(errno as i32);
                fcntl(fd, FcntlArg::F_OFD_SETLKW(&lock(libc::F_RDLCK))).map_err(wrap)?;
                fcntl(fd, FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK))).map_err(wrap)?;
                Ok(())
            }
        }
    }
}

/// How the sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slept {
    /// The call was made.
    Done,
    /// `interrupt` became readable. The call was not made, or was undone.
    Interrupted,
    /// The deadline passed. The call was not made, or was undone.
    TimedOut,
}

/// Makes `call`, however long it takes, unless `interrupt` becomes readable or `deadline` passes first.
pub(super) fn sleep_on(call: Call<'_>, interrupt: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<Slept> {
    install_cancel_handler()?;
    let (done, done_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let helper_thread: OnceLock<Pthread> = OnceLock::new();
    let cancelled = AtomicBool::new(false);
    // The helper starts with every signal blocked, so that no handler of ours ever runs in it.
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before))?;
    let slept = thread::scope(|scope| {
        let helper = || {
            let _ = helper_thread.set(pthread_self());
            let _writer = done_writer;
            let unblocked = unblock_cancel();
            loop {
                match call.make() {
                    Err(Errno::INTR) if !cancelled.load(Ordering::SeqCst) => {}
                    result => break unblocked.and(result.map_err(io::Error::from)),
                }
            }
        };
        let spawned = thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, helper);
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        let spawned = spawned?;
        let ended_by = poll_for(done.as_fd(), interrupt, deadline);
        if !matches!(ended_by, Ok(Slept::Done)) {
            cancelled.store(true, Ordering::SeqCst);
            cancel(&helper_thread, done.as_fd());
        }
        let result = spawned.join().unwrap_or_else(|_| Err(io::Error::other("the waiting thread failed")));
        match (ended_by?, result) {
            (Slept::Done, result) => result.map(|()| Slept::Done),
            // Interrupted in the very moment that the lock came: what was got must not be kept unseen.
            (ended_by, Ok(())) => {
                if let Call::Flock(fd, _) = call {
                    rustix::fs::flock(fd, FlockOperation::Unlock)?;
                }
                Ok(ended_by)
            }
            (ended_by, Err(_)) => Ok(ended_by),
        }
    })?;
    Ok(slept)
}

fn poll_for(done: BorrowedFd<'_>, interrupt: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<Slept> {
    loop {
        let mut fds = [PollFd::new(interrupt, PollFlags::POLLIN), PollFd::new(done, PollFlags::POLLIN)];
        crate::poll::until(&mut fds, deadline)?;
        if fds[0].any() == Some(true) {
            return Ok(Slept::Interrupted);
        }
        if fds[1].any() == Some(true) {
            return Ok(Slept::Done);
        }
        if deadline.is_some_and(|at| at <= Instant::now()) {
            return Ok(Slept::TimedOut);
        }
    }
}

/// Sends the cancelling signal until the helper has closed its end of the pipe.
fn cancel(helper: &OnceLock<Pthread>, done: BorrowedFd<'_>) {
    loop {
        if let Some(&thread) = helper.get() {
            // SAFETY: the thread is joined only after this function, so its id is valid, ended or not.
            unsafe { libc::pthread_kill(thread, cancel_signal()) };
        }
        let mut fds = [PollFd::new(done, PollFlags::POLLIN)];
        let again = Some(Instant::now() + Duration::from_millis(10));
        if crate::poll::until(&mut fds, again).is_ok() && fds[0].any() == Some(true) {
            return;
        }
    }
}

fn cancel_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// A handler without SA_RESTART, set directly: signal-hook always restarts.
fn install_cancel_handler() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = do_nothing as *const () as usize;
    // SAFETY: the handler does nothing, so it is async-signal-safe; the pointers are valid or null.
    match unsafe { libc::sigaction(cancel_signal(), &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn unblock_cancel() -> io::Result<()> {
    // SAFETY: a zeroed sigset_t is only written to by sigemptyset below.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place for a signal set.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: `set` is initialised and the signal number is in range.
    unsafe { libc::sigaddset(&raw mut set, cancel_signal()) };
    // SAFETY: `set` is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn file_locked_by(mode: Mode) -> (tempfile::NamedTempFile, File) {
        let named = tempfile::NamedTempFile::new().unwrap();
        let holder = File::open(named.path()).unwrap();
        Call::Flock(holder.as_fd(), mode).make().unwrap();
        (named, holder)
    }

    #[test]
    fn the_sleep_ends_when_the_holder_lets_go() {
        let (named, holder) = file_locked_by(Mode::Shared);
        let waiter = File::open(named.path()).unwrap();
        let (never, _writer) = std::io::pipe().unwrap();
        let slept = thread::scope(|scope| {
            let sleeper =
                scope.spawn(|| sleep_on(Call::Flock(waiter.as_fd(), Mode::Exclusive), never.as_fd(), None).unwrap());
            drop(holder);
            sleeper.join().unwrap()
        });
        assert_eq!(slept, Slept::Done);
    }

    #[test]
    fn an_interrupt_ends_the_sleep_and_leaves_no_lock() {
        let (named, holder) = file_locked_by(Mode::Exclusive);
        let waiter = File::open(named.path()).unwrap();
        let (interrupt, writer) = std::io::pipe().unwrap();
        drop(writer);
        let slept = sleep_on(Call::Flock(waiter.as_fd(), Mode::Shared), interrupt.as_fd(), None).unwrap();
        assert_eq!(slept, Slept::Interrupted);
        drop(holder);
        let other = File::open(named.path()).unwrap();
        // A process that another test forks has the holder's file for a moment.
        let end = Instant::now() + Duration::from_secs(20);
        while rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).is_err() {
            assert!(Instant::now() < end, "the lock was left");
        }
    }

    #[test]
    fn a_deadline_ends_the_sleep() {
        let (named, _holder) = file_locked_by(Mode::Exclusive);
        let waiter = File::open(named.path()).unwrap();
        let (never, _writer) = std::io::pipe().unwrap();
        let deadline = Some(Instant::now() + Duration::from_millis(20));
        let slept = sleep_on(Call::Flock(waiter.as_fd(), Mode::Shared), never.as_fd(), deadline).unwrap();
        assert_eq!(slept, Slept::TimedOut);
    }
}
