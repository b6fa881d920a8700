//! How the command's first process is made: by clone3(2), or by clone(2) where that cannot do what is asked of it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::error::last_errno;
use crate::fork::{self, CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP};
use crate::kernel;

/// What a child does. Async-signal-safe: only system calls, and it allocates nothing.
pub(super) type Main<T> = extern "C" fn(*mut T) -> !;

/// A child never shares our memory on this architecture.
pub(super) const ALWAYS_COPIES: bool = cfg!(not(target_arch = "x86_64"));

/// clone3(2), into a group if one is given; the child runs `main`. The kernel puts handled signals back to
/// their default in the child (Linux 5.5) and lets it be born in the group (5.7). We sleep until the child has executed
/// the command or ended, as with vfork(2). Where the kernel cannot do that, clone(2) has to do, without a group.
pub(super) fn give<T>(into: Option<BorrowedFd<'_>>, child: &mut T, main: Main<T>) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: libc::c_int = -1;
    let pid = if into.is_some() || kernel::gives_birth_in_groups() {
        // SAFETY: clone_args is plain integers; zero means "not used" for each.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_PIDFD | libc::CLONE_VFORK) as u64 | CLONE_CLEAR_SIGHAND;
        args.pidfd = (&raw mut pidfd) as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        if let Some(directory) = into {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = directory.as_raw_fd() as u64;
        }
        // SAFETY: both kinds of child run `main` alone, which is async-signal-safe, and have no handlers; with
        // CLONE_VFORK we sleep until it has left, so it does not outlive what it borrows.
        #[cfg(target_arch = "x86_64")]
        let pid = unsafe { clone_sharing(&mut args, child, main) };
        // SAFETY: as above.
        #[cfg(not(target_arch = "x86_64"))]
        let pid = unsafe { clone_copying(&mut args, child, main) };
        pid
    } else {
        // SAFETY: as above.
        unsafe { clone_by_the_old_call(&mut pidfd, child, main) }
    };
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(i32::try_from(-pid).unwrap_or(libc::EIO)));
    }
    // SAFETY: the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((i32::try_from(pid).map_err(io::Error::other)?, pidfd))
}

/// Makes a child in our memory (`CLONE_VM`), on a stack of its own: copying page tables and pages would cost as much
/// again as everything else that is done for it. Returns its pid, or a negated errno.
///
/// # Safety
/// `args` asks for `CLONE_VFORK` and `CLONE_CLEAR_SIGHAND`: handlers must not run in our memory beside us.
#[cfg(target_arch = "x86_64")]
unsafe fn clone_sharing<T>(args: &mut libc::clone_args, child: &mut T, main: Main<T>) -> i64 {
    // `u128` for the alignment that the ABI asks of a stack. The child needs little: it calls the C library's thinnest
    // wrappers only.
    let mut stack = Box::<[u128; 2048]>::new_uninit();
    args.flags |= libc::CLONE_VM as u64;
    args.stack = stack.as_mut_ptr() as u64;
    args.stack_size = size_of::<[u128; 2048]>() as u64;
    let mut result = libc::SYS_clone3;
    // SAFETY: in the parent this is one system call, with the registers that syscall(2) names. The child begins behind
    // it on its own empty stack, calls `main`, which does not return, and so never leaves this block.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") child,
            in("r13") main,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Makes a child in a copy of our memory, on the copy of our stack. Returns its pid, or a negated errno.
///
/// # Safety
/// `args` asks for `CLONE_VFORK`: the child uses what `child` borrows.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub(super) unsafe fn clone_copying<T>(args: &mut libc::clone_args, child: &mut T, main: Main<T>) -> i64 {
    // SAFETY: without CLONE_VM this is a fork, in which `main` does not return.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut *args, size_of::<libc::clone_args>()) } {
        -1 => -i64::from(last_errno()),
        0 => main(child),
        pid => pid,
    }
}

/// The same by clone(2). Handlers are there until the child has cleared them: one that runs before leaves its word in the pipe
/// that both processes read, as one that runs before the clone does, and the child sees that.
///
/// # Safety
/// As for a child that shares our memory; `CLONE_VFORK` is asked for here.
unsafe fn clone_by_the_old_call<T>(pidfd: &mut libc::c_int, child: &mut T, main: Main<T>) -> i64 {
    let flags = libc::CLONE_PIDFD | libc::CLONE_VFORK | libc::SIGCHLD;
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM this is a fork, in which `main` does not return.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, &raw mut *pidfd, none, none) } {
        -1 => -i64::from(last_errno()),
        0 => {
            fork::clear_handlers();
            main(child)
        }
        pid => pid,
    }
}
