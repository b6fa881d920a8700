//! What perflock was started with, so that the command gets exactly that: ignored signals (nohup; `&` in sh), the
//! signal mask, and standard descriptors that were closed.
//!
//! Rust's runtime ignores SIGPIPE and opens `/dev/null` for closed descriptors before `main`, and forgets what was. So
//! the binaries enter through C's `main`, without that runtime, and [`begin`] does the same after capturing.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

/// Captures what this process was started with, and then makes it fit for Rust: writing to a pipe that nobody reads is
/// an error and not death, and no file that we open becomes somebody's stdout. Returns the arguments beside it.
///
/// # Safety
/// `argc` and `argv` are those of C's `main`, and nothing else of this process has run yet.
pub unsafe fn begin(argc: c_int, argv: *const *const c_char) -> (Vec<OsString>, Inherited) {
    let inherited = Inherited::capture();
    for fd in (0..3).filter(|fd| inherited.closed & (1 << fd) != 0) {
        // SAFETY: the path is a C string. Lower descriptors are open, so this one gets the number `fd`.
        let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        debug_assert_eq!(opened, fd);
    }
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let argument = |pointer: *const c_char| {
        // SAFETY: C's main is given pointers to strings that live as long as the process.
        let text = unsafe { CStr::from_ptr(pointer) };
        OsStr::from_bytes(text.to_bytes()).to_owned()
    };
    // SAFETY: the caller promises `argc` pointers, each to a string that lives as long as the process.
    let pointers = unsafe { std::slice::from_raw_parts(argv, usize::try_from(argc).unwrap_or(0)) };
    (pointers.iter().copied().map(argument).collect(), inherited)
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn disposition(signal: i32) -> Option<usize> {
    // SAFETY: an all-zero sigaction is valid, and it is only written to.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set, and `action` is a valid place for the answer. glibc refuses its own two signals.
    match unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) } {
        0 => Some(action.sa_sigaction),
        _ => None,
    }
}

/// Signal dispositions, mask and closed descriptors to start the command with.
#[derive(Clone, Copy)]
pub struct Inherited {
    /// Bit N-1 stands for signal N being ignored.
    ignored: u64,
    /// Bit N stands for descriptor N, 0 to 2, being closed.
    closed: u64,
    mask: libc::sigset_t,
}

impl Inherited {
    pub(super) fn capture() -> Self {
        let ignored = (1..=64)
            .filter(|&signal| disposition(signal) == Some(libc::SIG_IGN))
            .fold(0, |all, signal| all | bit(signal));
        // SAFETY: F_GETFD reads a flag of a descriptor number and touches no memory.
        let is_closed = |&fd: &c_int| unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1;
        let closed = (0..3).filter(is_closed).fold(0, |all, fd| all | (1 << fd));
        // SAFETY: a zeroed sigset_t is a valid empty set, and it is only written to.
        let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: no new mask is given, and `mask` is a valid place for the old one.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) };
        Self { ignored, closed, mask }
    }

    /// Whether perflock was started with this signal ignored.
    pub fn ignores(&self, signal: i32) -> bool {
        self.ignored & bit(signal) != 0
    }

    /// Sets everything as it was. For the child between clone and exec: async-signal-safe, allocates nothing. Handlers
    /// are gone already (`CLONE_CLEAR_SIGHAND`), so a signal that is pending when the mask opens does what it would
    /// have done to the command.
    pub(super) fn restore(&self) {
        for signal in 1..=64 {
            let wanted = if self.ignores(signal) {
                libc::SIG_IGN
            } else if signal == libc::SIGPIPE {
                libc::SIG_DFL
            } else {
                continue;
            };
            // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = wanted;
            // SAFETY: `action` holds no function of ours, only SIG_IGN or SIG_DFL.
            unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        }
        for fd in 0..3 {
            if self.closed & (1 << fd) != 0 {
                // SAFETY: the child is about to exec and uses none of the three; perflock never keeps an own
                // descriptor there, since `begin` filled the gaps.
                unsafe { libc::close(fd) };
            }
        }
        // SAFETY: `mask` was filled in by the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.mask, std::ptr::null_mut()) };
    }
}

impl std::fmt::Debug for Inherited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inherited {{ ignored: {:#x}, closed: {:#x} }}", self.ignored, self.closed)
    }
}
