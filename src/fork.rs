//! Processes of our own beside the command: forks, by clone(2) and clone3(2) for what fork(2) cannot ask for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};

use crate::cgroup::Entry;
use crate::error::last_errno;

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

/// Forks, into a group if one is given. `None` in the child. One that was to join a group and could not ends at once, before
/// this returns in it; one that is in a group has no handlers of ours, since it is to execute something.
///
/// # Errors
/// The process could not be made.
///
/// # Safety
/// This process has one thread: the child's memory is then as consistent as ours, and it may allocate.
pub(crate) unsafe fn fork(kin: Kin, into: Option<Entry<'_>>) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: libc::c_int = -1;
    let flags = libc::CLONE_PIDFD | if kin == Kin::Sibling { libc::CLONE_PARENT } else { 0 };
    let pid = match into {
        Some(Entry::Born(directory)) => {
            // SAFETY: clone_args is plain integers; zero means "not used" for each.
            let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
            args.flags = flags as u64 | CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND;
            args.pidfd = (&raw mut pidfd) as u64;
            args.cgroup = directory.as_raw_fd() as u64;
            // SAFETY: without CLONE_VM this is a fork, and our caller promises one thread.
            unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) }
        }
        Some(Entry::Joins(_)) | None => {
            let none = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: as above, by clone(2): flags, no stack of its own, and where the pidfd goes.
            unsafe { libc::syscall(libc::SYS_clone, flags, none, &raw mut pidfd, none, none) }
        }
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            if let Some(Entry::Joins(procs)) = into {
                clear_handlers();
                if join(procs) != 0 {
                    end(127);
                }
            }
            Ok(None)
        }
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some((i32::try_from(pid).map_err(io::Error::other)?, pidfd)))
        }
    }
}

/// Puts this process into the group whose `cgroup.procs`, or in v1 `tasks`, this is. Returns an errno, or 0. Async-signal-safe:
/// only a system call, and it allocates nothing.
pub(crate) fn join(group: BorrowedFd<'_>) -> i32 {
    // "0" means whoever writes. In v1, if it has one thread, that takes no kernel-wide lock, unlike a number.
    // SAFETY: writes one byte of a static string to a descriptor that is open.
    match unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) } {
        1 => 0,
        _ => last_errno(),
    }
}

/// What `CLONE_CLEAR_SIGHAND` does (Linux 5.5): every signal that has a handler does what it does by default. For a child with
/// handlers of its own, not shared by `CLONE_SIGHAND`. Async-signal-safe.
pub(crate) fn clear_handlers() {
    for signal in 1..=64 {
        // SAFETY: an all-zero sigaction is valid: the default, no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: nothing is set, and `action` is a valid place for the answer. glibc refuses its own two signals.
        let known = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) } == 0;
        if known && action.sa_sigaction != libc::SIG_IGN && action.sa_sigaction != libc::SIG_DFL {
            // SAFETY: as above.
            action = unsafe { std::mem::zeroed() };
            // SAFETY: `action` holds no function of ours, only the default.
            unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
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
