//! Processes of the harness: born in their user's group, as their user, and known by a pidfd.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::area::{Area, USERS};
use super::record::Ending;

/// `linux/sched.h`; libc's constant of this name is 32 bits wide and overflows.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a child that could not become its program ends with: nothing explains it.
const NOT_STARTED: i32 = 127;

/// A child that was not reaped yet.
pub(super) struct Child {
    /// Its number, which is nobody else's until it is reaped.
    pub(super) pid: i32,
    pidfd: OwnedFd,
    stderr: File,
}

impl Child {
    /// Starts a command line as user number `user`, in that user's group and in a process group of its own.
    ///
    /// # Errors
    /// The process cannot be made.
    pub(super) fn start(area: &Area, user: usize, words: Vec<OsString>) -> io::Result<Self> {
        let string = |word: OsString| CString::new(word.into_vec()).map_err(io::Error::other);
        let words = words.into_iter().map(string).collect::<io::Result<Vec<_>>>()?;
        let home = area.directory().as_os_str().to_owned();
        // Nothing of ours: neither a job that we might be in, nor a user's configuration.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let variables = [("PATH=", path), ("HOME=", home.clone()), ("XDG_CONFIG_HOME=", home.clone())];
        let variables = variables.map(|(name, value)| {
            let mut whole = OsString::from(name);
            whole.push(value);
            string(whole)
        });
        let variables = variables.into_iter().collect::<io::Result<Vec<_>>>()?;
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, envp) = (pointers(&words), pointers(&variables));
        let stderr = tempfile::tempfile()?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        // SAFETY: the harness has one thread.
        match unsafe { fork_into(area.group(user)) }? {
            Some((pid, pidfd)) => Ok(Self { pid, pidfd, stderr }),
            None => become_program(USERS[user], [&null, &null, &stderr], &argv, &envp),
        }
    }

    /// Readable when it ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended, and then nothing is to be done.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// How it ended, if it has.
    pub(super) fn reap(&self) -> Option<Ending> {
        let status = waitid(WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok()??;
        status.exit_status().map(Ending::Code).or_else(|| status.terminating_signal().map(Ending::Signal))
    }

    /// What it said on stderr.
    pub(super) fn said(&mut self) -> String {
        let mut text = Vec::new();
        // Diagnostics: what cannot be read is missing in a message.
        let _ = self.stderr.rewind().and_then(|()| self.stderr.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Forks; the child is born in `group`. `None` in the child.
///
/// # Safety
/// This process has one thread.
unsafe fn fork_into(group: BorrowedFd<'_>) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; zero means "not used" for each.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = group.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM this is a fork, and our caller promises one thread.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some((i32::try_from(pid).map_err(io::Error::other)?, pidfd)))
        }
    }
}

/// In the child: everything that is inherited as a shell would give it, and the program.
fn become_program(uid: u32, stdio: [&File; 3], argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> ! {
    let mut fine = true;
    // SAFETY: a process group of its own, as a shell makes for each job: ^Z is meant for it alone.
    fine &= unsafe { libc::setpgid(0, 0) } == 0;
    for (number, file) in (0..).zip(stdio) {
        // SAFETY: open descriptors; the child uses its own three for nothing else.
        fine &= unsafe { libc::dup2(file.as_raw_fd(), number) } == number;
    }
    // SAFETY: no list is read when its length is zero.
    fine &= unsafe { libc::setgroups(0, std::ptr::null()) } == 0;
    // SAFETY: changes who this process is.
    fine &= unsafe { libc::setresgid(uid, uid, uid) } == 0;
    // SAFETY: changes who this process is.
    fine &= unsafe { libc::setresuid(uid, uid, uid) } == 0;
    // Rust's start-up has it ignored; SIGINT is ignored in what a shell started in the background.
    for signal in [libc::SIGPIPE, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP] {
        // SAFETY: sets signals to their default actions.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    if fine {
        // SAFETY: both lists are of C strings that live on, and end with a null pointer.
        unsafe { libc::execvpe(argv[0], argv.as_ptr(), envp.as_ptr()) };
    }
    // SAFETY: ends the process; nothing of the parent's is flushed or dropped.
    unsafe { libc::_exit(NOT_STARTED) }
}
