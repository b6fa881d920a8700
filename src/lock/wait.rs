//! Sleeping in a lock call that a signal, a deadline or nobody can end.
//!
//! A blocking flock(2) or fcntl(2) returns early only for a handler without SA_RESTART, and a signal that arrives
//! just before the call is lost. So the call is made by a helper thread with every signal blocked but one real-time
//! signal of our own; the main thread sleeps in poll(2), and cancels by sending that signal until the helper
//! acknowledges. inotify is no way out: a user has 128 instances, and its close event precedes the unlock.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

use super::ofd::{asking, whole_file};
use crate::job::Mode;

/// The call to sleep in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call<'a> {
    /// flock(2) in this mode.
    Flock(BorrowedFd<'a>, Mode),
    /// Until nobody holds an OFD write lock on the file; the read lock taken for that is let go at once.
    WriterGone(BorrowedFd<'a>),
    /// The same for the part that stands for asking for cores.
    AskerServed(BorrowedFd<'a>),
}

impl Call<'_> {
    fn make(self) -> rustix::io::Result<()> {
        match self {
            Self::Flock(fd, Mode::Exclusive) => rustix::fs::flock(fd, FlockOperation::LockExclusive),
            Self::Flock(fd, Mode::Shared) => rustix::fs::flock(fd, FlockOperation::LockShared),
            Self::WriterGone(fd) | Self::AskerServed(fd) => {
                let lock = |kind| match self {
                    Self::AskerServed(_) => asking(kind),
                    _ => whole_file(kind),
                };
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
    sleep_on_any(&[call], interrupt, deadline)
}

/// The same until one of several calls is made: a thread for each. Only a single one may be a flock, since of several that are
/// made all but the first would have to be undone.
pub(super) fn sleep_on_any(
    calls: &[Call<'_>],
    interrupt: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> io::Result<Slept> {
    install_cancel_handler()?;
    let cancelled = AtomicBool::new(false);
    let threads: Vec<OnceLock<Pthread>> = calls.iter().map(|_| OnceLock::new()).collect();
    let helper = |call: Call<'_>, thread: &OnceLock<Pthread>, writer: OwnedFd| {
        let _ = thread.set(pthread_self());
        let _writer = writer;
        let unblocked = unblock_cancel();
        loop {
            match call.make() {
                Err(Errno::INTR) if !cancelled.load(Ordering::SeqCst) => {}
                result => break unblocked.and(result.map_err(io::Error::from)),
            }
        }
    };
    let helper = &helper;
    thread::scope(|scope| {
        let start = |(&call, thread)| {
            let (done, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let builder = thread::Builder::new().stack_size(64 * 1024);
            Ok(Helper { thread, done, spawned: builder.spawn_scoped(scope, move || helper(call, thread, writer))? })
        };
        // The helpers start with every signal blocked, so that no handler of ours ever runs in one.
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before))?;
        let mut helpers = Vec::with_capacity(calls.len());
        let started = calls.iter().zip(&threads).map(start).try_for_each(|helper: io::Result<_>| {
            helpers.push(helper?);
            io::Result::Ok(())
        });
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        let ended_by = started.and_then(|()| poll_for(&helpers, interrupt, deadline));
        cancelled.store(true, Ordering::SeqCst);
        let mut made = Err(io::Error::from(io::ErrorKind::Interrupted));
        for (helper, &call) in helpers.into_iter().zip(calls) {
            let result = helper.end();
            match (&ended_by, &result) {
                (Ok(Slept::Done), _) => made = made.or(result),
                // Interrupted in the very moment that the lock came: what was got must not be kept unseen.
                (_, Ok(())) => {
                    if let Call::Flock(fd, _) = call {
                        rustix::fs::flock(fd, FlockOperation::Unlock)?;
                    }
                }
                (_, Err(_)) => {}
            }
        }
        match ended_by? {
            Slept::Done => made.map(|()| Slept::Done),
            other => Ok(other),
        }
    })
}

/// A thread that makes a call.
struct Helper<'scope, 'a> {
    thread: &'a OnceLock<Pthread>,
    /// Its other end is closed when the call was made or cancelled.
    done: OwnedFd,
    spawned: thread::ScopedJoinHandle<'scope, io::Result<()>>,
}

impl Helper<'_, '_> {
    fn is_done(&self) -> bool {
        let mut fds = [PollFd::new(self.done.as_fd(), PollFlags::POLLIN)];
        crate::poll::until(&mut fds, Some(Instant::now())).is_ok() && fds[0].any() == Some(true)
    }

    /// Cancels it, if need be, and tells what came of the call. A signal that comes just before the call is lost, so it is
    /// sent until the helper has closed its end of the pipe.
    fn end(self) -> io::Result<()> {
        while !self.is_done() {
            if let Some(&thread) = self.thread.get() {
                // SAFETY: the thread is joined only below, so its id is valid, ended or not.
                unsafe { libc::pthread_kill(thread, cancel_signal()) };
            }
            let mut fds = [PollFd::new(self.done.as_fd(), PollFlags::POLLIN)];
            let _ = crate::poll::until(&mut fds, Some(Instant::now() + Duration::from_millis(10)));
        }
        self.spawned.join().unwrap_or_else(|_| Err(io::Error::other("the waiting thread failed")))
    }
}

fn poll_for(helpers: &[Helper<'_, '_>], interrupt: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<Slept> {
    crate::pages::let_go();
    loop {
        let done = helpers.iter().map(|helper| PollFd::new(helper.done.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<PollFd<'_>> = [PollFd::new(interrupt, PollFlags::POLLIN)].into_iter().chain(done).collect();
        crate::poll::until(&mut fds, deadline)?;
        if fds[0].any() == Some(true) {
            return Ok(Slept::Interrupted);
        }
        if fds[1..].iter().any(|fd| fd.any() == Some(true)) {
            return Ok(Slept::Done);
        }
        if deadline.is_some_and(|at| at <= Instant::now()) {
            return Ok(Slept::TimedOut);
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
    fn the_first_of_several_ends_the_sleep_and_the_others_are_left() {
        let lock = |named: &tempfile::NamedTempFile, part: fn(libc::c_int) -> libc::flock| {
            let file = File::options().read(true).write(true).open(named.path()).unwrap();
            fcntl(&file, FcntlArg::F_OFD_SETLK(&part(libc::F_WRLCK))).unwrap();
            file
        };
        let named = [tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap()];
        let (_holder, asker) = (lock(&named[0], whole_file), lock(&named[1], whole_file));
        let seen = [File::open(named[0].path()).unwrap(), File::open(named[1].path()).unwrap()];
        let calls = [Call::WriterGone(seen[0].as_fd()), Call::AskerServed(seen[1].as_fd())];
        let (never, _writer) = std::io::pipe().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        assert_eq!(sleep_on_any(&calls, never.as_fd(), soon()).unwrap(), Slept::TimedOut);
        // It is served, and lives.
        fcntl(&asker, FcntlArg::F_OFD_SETLK(&asking(libc::F_UNLCK))).unwrap();
        assert_eq!(sleep_on_any(&calls, never.as_fd(), None).unwrap(), Slept::Done);
        assert_eq!(sleep_on(Call::WriterGone(seen[1].as_fd()), never.as_fd(), soon()).unwrap(), Slept::TimedOut);
        // Nothing was kept of what the sleepers asked for.
        assert!(fcntl(&asker, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))).is_ok());
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
