//! What perflock was started with, captured before Rust's start-up changes it, so that the command gets exactly that:
//! ignored signals (nohup; `&` in sh), the signal mask, and standard descriptors that were closed.
//!
//! Rust's runtime ignores SIGPIPE and opens `/dev/null` for closed descriptors 0 to 2 before `main`. A function in
//! `.init_array` runs before the runtime.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bit N-1 stands for signal N being ignored.
static IGNORED: AtomicU64 = AtomicU64::new(0);
/// Bit N stands for descriptor N, 0 to 2, being closed.
static CLOSED: AtomicU64 = AtomicU64::new(0);

#[used]
// SAFETY: the section holds pointers to functions that the C runtime calls once before main; this is one, and it uses
// only async-signal-safe calls and atomics, which need no Rust runtime.
#[unsafe(link_section = ".init_array")]
static CAPTURE: extern "C" fn() = capture;

extern "C" fn capture() {
    let mut ignored = 0;
    for signal in 1..=64 {
        if disposition(signal) == Some(libc::SIG_IGN) {
            ignored |= bit(signal);
        }
    }
    IGNORED.store(ignored, Ordering::Relaxed);
    let mut closed = 0;
    for fd in 0..3 {
        // SAFETY: F_GETFD reads a flag of a descriptor number and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            closed |= 1 << fd;
        }
    }
    CLOSED.store(closed, Ordering::Relaxed);
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
    ignored: u64,
    closed: u64,
    mask: libc::sigset_t,
}

impl Inherited {
    /// What was captured at start, and the current mask: call it before the mask is changed.
    pub fn captured() -> Self {
        // SAFETY: a zeroed sigset_t is a valid empty set, and it is only written to.
        let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: no new mask is given, and `mask` is a valid place for the old one.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) };
        Self { ignored: IGNORED.load(Ordering::Relaxed), closed: CLOSED.load(Ordering::Relaxed), mask }
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
                // descriptor there, since Rust's runtime filled the gaps.
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
