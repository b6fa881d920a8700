//! Processes of our own beside the command: forks, by clone3(2) for what fork(2) cannot ask for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};

/// `linux/sched.h`; libc's constants of these names are 32 bits wide and overflow.
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// See [`CLONE_CLEAR_SIGHAND`].
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Whose child a process becomes, and how its end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kin {
    /// Ours; its end sends nothing, so that it is in no wait that does not ask for it (wait(2), `__WCLONE`).
    QuietChild,
    /// Our parent's, told of as our own end is: not, for a quiet child. A program that it executes is an ordinary child.
    Sibling,
}

/// Forks, into a group if one is given. `None` in the child.
///
/// # Errors
/// The process could not be made.
///
/// # Safety
/// This process has one thread: the child's memory is then as consistent as ours, and it may allocate.
pub(crate) unsafe fn fork(kin: Kin, into: Option<BorrowedFd<'_>>) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; zero means "not used" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    if kin == Kin::Sibling {
        args.flags |= libc::CLONE_PARENT as u64;
    }
    args.pidfd = (&raw mut pidfd) as u64;
    if let Some(directory) = into {
        // A kernel that has the one (5.7) has the other (5.5): no handler of ours runs in a child that is to execute.
        args.flags |= CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND;
        args.cgroup = directory.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork, and our caller promises one thread.
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    if pid == -1
        && kin != Kin::Sibling
        && into.is_none()
        && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS)
    {
        // Container engines refuse clone3 like this, since its flags lie in memory that their filter cannot see.
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above, by clone(2): flags, no stack of its own, and where the pidfd goes.
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

/// In a child that must not outlive its parent: dies with it. `parent` is its pidfd, opened by the parent itself.
pub(crate) fn die_with(parent: BorrowedFd<'_>) {
    // SAFETY: sets a number of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // The parent may have died before that was set.
    if has_ended(parent) {
        end(0);
    }
}

/// Whether the process behind a pidfd has ended.
pub(crate) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    ends_before(pidfd, Instant::now())
}

/// Whether it ends before `deadline`: waits for that, unless a signal handler runs.
pub(crate) fn ends_before(pidfd: BorrowedFd<'_>, deadline: Instant) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    crate::poll::until(&mut fds, Some(deadline)).is_ok() && fds[0].any() == Some(true)
}

/// Gives a child `/dev/null` for its standard descriptors, or none: nobody's pipe is kept open, and nothing is printed.
pub(crate) fn leave_stdio() {
    // First, so that there is room for one more.
    for fd in 0..3 {
        // SAFETY: the child uses these only for messages, which nobody is to see, and no owner's drop closes them.
        unsafe { libc::close(fd) };
    }
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Ends a child at once: nothing that it has from its parent is flushed or dropped.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}
