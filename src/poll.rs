//! poll(2) with a deadline on the monotonic clock.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, ppoll};
use nix::sys::time::TimeSpec;

/// What can end a wait from outside.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Ends the wait when it becomes readable.
    pub interrupt: BorrowedFd<'a>,
    /// Ends the wait when it has passed.
    pub deadline: Option<Instant>,
}

/// Sleeps until one of `fds` is ready or `deadline` has passed; without a deadline, for ever. A signal handler that
/// ran ends the sleep early: callers look at what is ready and come back. Give it fresh `fds` each time.
///
/// # Errors
/// The kernel had no memory, or a descriptor is not one.
pub fn until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let left = deadline.map(|at| TimeSpec::from_duration(at.saturating_duration_since(Instant::now())));
    match ppoll(fds, left, None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
