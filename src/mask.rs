//! Signals held back for a while.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// Signals that stop a process by default, and can be blocked.
pub(crate) fn stopping() -> SigSet {
    [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().collect()
}

/// Whether one of [`stopping`] waits to be let in. Async-signal-safe.
pub(crate) fn stop_waits() -> bool {
    // SAFETY: a zeroed sigset_t is a valid empty set.
    let mut pending: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `pending` is a valid place for the answer.
    unsafe { libc::sigpending(&raw mut pending) };
    // SAFETY: `pending` is valid, and the signals are in range.
    let is_in = |signal| unsafe { libc::sigismember(&raw const pending, signal) } == 1;
    is_in(libc::SIGTSTP) || is_in(libc::SIGTTIN) || is_in(libc::SIGTTOU)
}

/// Drops those of [`stopping`] that wait.
pub(crate) fn drop_stops() {
    let set = stopping();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: set and time are valid, and nothing is asked of the signal.
    while unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &raw const now) } > 0 {}
}

/// Signals blocked until this is dropped.
pub(crate) struct BlockedSignals(SigSet);

impl BlockedSignals {
    pub(crate) fn all() -> io::Result<Self> {
        Self::block(SigSet::all())
    }

    /// Those of [`stopping`].
    pub(crate) fn stopping() -> io::Result<Self> {
        Self::block(stopping())
    }

    /// Lets in, once, what was held back, and what comes just now. If it stops this process, this returns when that goes on.
    pub(crate) fn let_in(&self) {
        let mut blocked = SigSet::empty();
        // Neither can fail with a mask that the kernel gave.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.0), Some(&mut blocked));
        let _ = blocked.thread_set_mask();
    }

    fn block(set: SigSet) -> io::Result<Self> {
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))?;
        Ok(Self(before))
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Cannot fail with a mask that the kernel gave.
        let _ = self.0.thread_set_mask();
    }
}
