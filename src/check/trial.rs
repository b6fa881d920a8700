//! Whether a guard could do its work here: another process, watched and killed by its pidfd.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::child;
use crate::fork::{self, Kin};
use crate::mask::BlockedSignals;

/// How long a killed process may take to be seen dead.
const DIES_WITHIN: Duration = Duration::from_secs(5);

/// Makes a process as a guard is made, which watches us as a guard does; watches it die of KILL.
///
/// # Errors
/// What the kernel refused.
///
/// # Safety
/// This process has one thread.
pub(super) unsafe fn guard() -> io::Result<()> {
    let ourselves = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let blocked = BlockedSignals::all()?;
    // SAFETY: our caller keeps the promise.
    let Some((pid, pidfd)) = (unsafe { fork::fork(Kin::QuietChild, None) })? else {
        fork::die_with(ourselves.as_fd());
        while !fork::has_ended(ourselves.as_fd()) {
            // SAFETY: sleeps. Nothing ends that but our death, or KILL.
            unsafe { libc::pause() };
        }
        fork::end(0)
    };
    let killed = pidfd_send_signal(&pidfd, Signal::KILL);
    if killed.is_err()
        && let Some(pid) = Pid::from_raw(pid)
    {
        // It is a child that nobody has reaped: the number is its own.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    let seen = fork::ends_before(pidfd.as_fd(), Instant::now() + DIES_WITHIN);
    child::reap(pid);
    drop(blocked);
    killed?;
    if seen { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}
