//! Making the command's first process, born in the job group.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Instant;

use super::command::Command;
use super::inherit::Inherited;
use crate::cgroup::Maker;

/// `linux/sched.h`; libc's constants of these names are 32 bits wide and overflow.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The command's first process.
#[derive(Debug)]
pub struct Main {
    /// Its pid: ours to reap, so the number stays its own until we do.
    pub pid: i32,
    /// Readable once it ended.
    pub pidfd: OwnedFd,
    /// When it was executed.
    pub started: Instant,
}

/// Why there is no first process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The process could not be made.
    #[error("cannot start a process for the command: {}", crate::error::reason(.0))]
    Fork(#[source] io::Error),
    /// The process was made, but the command could not be executed.
    #[error("cannot run {name}: {}", crate::error::reason(.source))]
    Exec {
        /// As typed.
        name: String,
        /// execve(2)'s answer.
        #[source]
        source: io::Error,
    },
}

/// Pointers into strings, ended by a null pointer, as execve(2) takes them.
struct Pointers(Vec<*const libc::c_char>);

impl Pointers {
    fn to<'a>(strings: impl Iterator<Item = &'a CString>) -> Self {
        Self(strings.map(|string| string.as_ptr()).chain([ptr::null()]).collect())
    }
}

/// Makes the command's first process and waits until it has executed the command, or could not.
///
/// # Errors
/// See [`SpawnError`].
pub fn spawn(
    command: &Command,
    inherited: &Inherited,
    maker: Maker<'_>,
    changes: &[(&str, String)],
) -> Result<Main, SpawnError> {
    let mut changes = changes.to_vec();
    let into = match maker {
        Maker::Into(directory) => Some(directory),
        Maker::Marked(entry) => {
            changes.extend(entry.split_once('=').map(|(name, value)| (name, value.to_owned())));
            None
        }
    };
    // Everything that allocates happens before the clone: the child may only make system calls.
    let environment = super::command::environment(&changes);
    let argv = Pointers::to(command.argv.iter());
    let envp = Pointers::to(environment.iter());
    let shell = c"/bin/sh";
    // For a script without `#!`: /bin/sh FILE ARG…, with room for the file's name.
    let mut script_argv = Pointers(vec![shell.as_ptr(), ptr::null()]);
    script_argv.0.extend(&argv.0[1.min(argv.0.len() - 1)..]);
    let (errors, errors_writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| SpawnError::Fork(e.into()))?;

    // Blocked from before the clone until the child has set everything as it was: a signal for the whole terminal
    // must not meet the child half made.
    let blocked = BlockedSignals::all().map_err(SpawnError::Fork)?;
    let cloned = clone(into);
    if let Ok(Cloned::Child) = cloned {
        inherited.restore();
        let errno = exec(&command.candidates, &argv, &envp, shell, &mut script_argv);
        // SAFETY: the pipe is open in the child, the buffer is valid, and the child ends here without returning
        // into code that belongs to the supervisor.
        unsafe { libc::write(errors_writer.as_raw_fd(), (&raw const errno).cast(), size_of_val(&errno)) };
        // SAFETY: ends the child at once; nothing of the supervisor's is flushed or dropped.
        unsafe { libc::_exit(127) };
    }
    drop(blocked);
    let (pid, pidfd) = match cloned.map_err(SpawnError::Fork)? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        // The child left above.
        Cloned::Child => return Err(SpawnError::Fork(io::ErrorKind::Other.into())),
    };
    drop(errors_writer);
    let mut errno = [0; size_of::<i32>()];
    let started = Instant::now();
    match std::fs::File::from(errors).read_exact(&mut errno) {
        // The pipe closed at exec, without a word.
        Err(_) => Ok(Main { pid, pidfd, started }),
        Ok(()) => {
            super::reap(pid);
            let name = command.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let source = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
            Err(SpawnError::Exec { name: crate::text::escape(&name), source })
        }
    }
}

/// Tries every candidate like execvp(3); returns the errno to report. Async-signal-safe: allocates nothing.
fn exec(
    candidates: &[CString],
    argv: &Pointers,
    envp: &Pointers,
    shell: &std::ffi::CStr,
    script_argv: &mut Pointers,
) -> i32 {
    let mut reported = libc::ENOENT;
    for file in candidates {
        // SAFETY: all three point to strings and null-ended arrays that outlive the call, which does not return on
        // success.
        unsafe { libc::execve(file.as_ptr(), argv.0.as_ptr(), envp.0.as_ptr()) };
        let mut errno = last_errno();
        if errno == libc::ENOEXEC {
            script_argv.0[1] = file.as_ptr();
            // SAFETY: as above.
            unsafe { libc::execve(shell.as_ptr(), script_argv.0.as_ptr(), envp.0.as_ptr()) };
            errno = last_errno();
        }
        match errno {
            libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            libc::EACCES => reported = errno,
            _ => return errno,
        }
    }
    reported
}

fn last_errno() -> i32 {
    // Reads errno: async-signal-safe.
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

enum Cloned {
    Parent { pid: i32, pidfd: OwnedFd },
    Child,
}

/// clone3(2), as a plain fork with a pidfd, into a group if one is given. The kernel puts handled signals back to
/// their default in the child (Linux 5.5) and lets it be born in the group (5.7).
fn clone(into: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; zero means "not used" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = into {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = directory.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child gets a copy of the address space, as with fork(2). perflock has one thread
    // here (the lock's helper was joined), so no lock is held by a thread that the child lacks, and the child only
    // makes async-signal-safe calls until it execs or exits.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).map_err(io::Error::other)?;
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Every signal blocked, until dropped.
pub(super) struct BlockedSignals(nix::sys::signal::SigSet);

impl BlockedSignals {
    pub(super) fn all() -> io::Result<Self> {
        use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), Some(&mut before))?;
        Ok(Self(before))
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Cannot fail with a mask that the kernel gave.
        let _ = self.0.thread_set_mask();
    }
}
