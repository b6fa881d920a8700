//! Signals for the supervisor: a handler writes what came into a pipe, and that is all it does.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2};

use super::inherit::Inherited;

/// Signals that are forwarded to the command, or end a wait.
const HANDLED: [i32; 6] = [SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2];

/// A signal that came, with what siginfo says of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub signal: i32,
    /// Who sent it by kill(2) or the like; `None` if the kernel did, or a process of another pid namespace.
    pub sender: Option<i32>,
    /// The kernel sent it, as for ^C on a terminal.
    pub from_kernel: bool,
}

/// The handlers and the reading end of their pipe.
#[derive(Debug)]
pub struct Signals {
    pipe: File,
    writer: &'static OwnedFd,
}

/// What one handler call writes: number, `si_code`, `si_pid`. Small enough to be written whole: pipe(7).
type Message = [i32; 3];

impl Signals {
    /// Installs the handlers. A signal that we were started with ignored stays ignored, except for SIGCHLD, which is
    /// put to its default: an inherited ignore makes the kernel throw exit statuses away. With `children`, SIGCHLD is
    /// reported, for a process with children that stop or come home to it.
    ///
    /// # Errors
    /// The kernel refused; none is known to.
    pub fn install(inherited: &Inherited, children: bool) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Never closed: a handler may run at any time from now on.
        let writer: &'static OwnedFd = Box::leak(Box::new(writer));
        for signal in HANDLED.into_iter().filter(|&signal| !inherited.ignores(signal)) {
            report(signal, writer)?;
        }
        set_default(SIGCHLD)?;
        if children {
            report(SIGCHLD, writer)?;
        }
        Ok(Self { pipe: reader.into(), writer })
    }

    /// Also reports ^Z, until [`stop_by_default`]. Only a waiter needs it: a holder stops when its command has ([`super::stops`]).
    ///
    /// # Errors
    /// The kernel refused; none is known to.
    pub fn catch_stop(&self, inherited: &Inherited) -> io::Result<()> {
        if inherited.ignores(SIGTSTP) { Ok(()) } else { report(SIGTSTP, self.writer) }
    }

    /// Also reports `signal`, whatever it does by default.
    ///
    /// # Errors
    /// It is one that cannot be caught.
    pub fn catch(&self, signal: i32) -> io::Result<()> {
        report(signal, self.writer)
    }

    /// Readable when a signal came.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Whether a signal came that was not drained yet. Async-signal-safe: a child that is about to execute asks.
    pub(super) fn pending(&self) -> bool {
        let mut fd = libc::pollfd { fd: self.pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd; a timeout of zero does not sleep.
        unsafe { libc::poll(&raw mut fd, 1, 0) == 1 }
    }

    /// Everything that came since the last call, in order.
    pub fn drain(&self) -> Vec<Arrived> {
        let mut arrived = Vec::new();
        let mut message = [0; size_of::<Message>()];
        while (&self.pipe).read_exact(&mut message).is_ok() {
            let word = |index: usize| {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(&message[index * 4..index * 4 + 4]);
                i32::from_ne_bytes(bytes)
            };
            let (signal, code, pid) = (word(0), word(1), word(2));
            // SI_USER, SI_QUEUE, SI_TKILL are zero or negative: sigaction(2).
            let sent = code <= 0;
            arrived.push(Arrived { signal, sender: (sent && pid > 0).then_some(pid), from_kernel: !sent });
        }
        arrived
    }
}

/// Lets the handler of `signal` write to `pipe`.
fn report(signal: i32, pipe: &'static OwnedFd) -> io::Result<()> {
    let action = move |info: &libc::siginfo_t| {
        // SAFETY: reads a number that is in the union for every signal of kill(2), and is some number for others;
        // it is only used where `si_code` says that it was set.
        let pid = unsafe { info.si_pid() };
        let message: Message = [info.si_signo, info.si_code, pid];
        // SAFETY: write(2) is async-signal-safe, the descriptor is never closed, and a full pipe does not block.
        unsafe { libc::write(pipe.as_raw_fd(), message.as_ptr().cast(), size_of::<Message>()) };
    };
    // SAFETY: the action only makes an async-signal-safe call: it takes no lock and allocates nothing. The registry
    // saves errno around it.
    unsafe { signal_hook_registry::register_sigaction(signal, action) }?;
    Ok(())
}

/// Puts a signal back to what it does by default, handlers of ours included.
fn set_default(signal: i32) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is SIG_DFL with no flags and an empty mask.
    let action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `action` is valid, and the old one is not asked for.
    match unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From now on ^Z stops this process as it stops any other.
pub fn stop_by_default(inherited: &Inherited) {
    if !inherited.ignores(SIGTSTP) {
        // Cannot fail for a signal that exists.
        let _ = set_default(SIGTSTP);
    }
}

/// Stops this process as ^Z would have done, and returns when it is continued. An orphaned process group is not
/// stopped (the kernel discards the signal), so nobody is stopped with no shell to go on by.
pub fn stop_now() {
    let mut handler: std::mem::MaybeUninit<libc::sigaction> = std::mem::MaybeUninit::uninit();
    // SAFETY: an all-zero sigaction is SIG_DFL with no flags and an empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid; the kernel fills in the old action.
    unsafe { libc::sigaction(SIGTSTP, &raw const default, handler.as_mut_ptr()) };
    // SAFETY: sends a signal to this thread; it is not blocked, so the process has stopped before the call returns.
    unsafe { libc::raise(SIGTSTP) };
    // SAFETY: filled in by the first call, which cannot fail for a signal that exists.
    unsafe { libc::sigaction(SIGTSTP, handler.as_ptr(), std::ptr::null_mut()) };
}

/// From now on a limit of file sizes (setrlimit(2), RLIMIT_FSIZE) is an error for us, and not our death: the command's status is
/// still to be told. For when nothing is executed any more that would inherit it.
pub fn outlive_file_limits() {
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Ends this process by `signal`, so that a parent sees the death that the command died. Returns where that is not
/// possible: as PID 1 of a pid namespace, and for signals that do not end a process by default.
pub fn die_of(signal: i32) {
    // The command has dumped core already, if anything had to.
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    // A limit does not hold for a core_pattern that is a pipe: core(5).
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let _ = set_default(signal);
    // SAFETY: a zeroed sigset_t is a valid empty set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid; a number out of range makes the call fail.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: `set` is valid, and the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    // SAFETY: sends a signal to ourselves, who have one thread.
    unsafe { libc::raise(signal) };
}
