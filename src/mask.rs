//! Signals held back for a while.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

/// Signals blocked until this is dropped.
pub(crate) struct BlockedSignals(SigSet);

impl BlockedSignals {
    pub(crate) fn all() -> io::Result<Self> {
        Self::block(SigSet::all())
    }

    /// Those that stop a process by default, and can be blocked.
    pub(crate) fn stopping() -> io::Result<Self> {
        Self::block([Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().collect())
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
