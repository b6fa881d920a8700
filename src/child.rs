//! Children: waiting for them, by waitid(2) from libc. nix knows no death by a real-time signal, and rustix does not say
//! whose status it is.
//!
//! The guard, and the launcher of a scope, is a *clone child* (wait(2), `__WCLONE`): one whose end sends no SIGCHLD. So it is in none of the waits here
//! unless it is asked for, and "no child left" means that no member of a job is left that came home to us.

use std::io;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// It died of this signal.
    Signal(i32),
}

/// Whether we have children, guards apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    /// None.
    None,
    /// At least one that runs, or that ended and was not reaped.
    Some,
}

/// Waits for a child of ours, a guard included, and reaps it.
///
/// # Errors
/// It is no child of ours.
pub fn wait_for(pid: i32) -> io::Result<Exit> {
    match wait(libc::P_PID, pid.cast_unsigned(), libc::WEXITED | libc::__WALL)? {
        Some((_, exit)) => Ok(exit),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Reaps a child that ended or is about to.
pub fn reap(pid: i32) {
    // Nobody else reaps our children, so it cannot be gone.
    let _ = wait_for(pid);
}

/// Reaps every child that ended, up to `except`. Only where orphans come home to us are there any.
pub fn reap_orphans(except: i32) {
    let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    while let Ok(Some((pid, _))) = wait(libc::P_ALL, 0, look) {
        if pid == except || wait_for(pid).is_err() {
            return;
        }
    }
}

/// Whether we have children. The kernel answers for one moment, unlike a walk through `/proc`, and an orphan comes home
/// in the same moment that its parent ends.
pub fn children() -> Children {
    match wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Children::None,
        _ => Children::Some,
    }
}

fn wait(kind: libc::idtype_t, id: libc::id_t, options: libc::c_int) -> io::Result<Option<(i32, Exit)>> {
    loop {
        // SAFETY: siginfo_t is plain data; zero in its pid is how "nobody yet" is told under WNOHANG.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is a valid place for the answer.
        if unsafe { libc::waitid(kind, id, &raw mut info, options) } == -1 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        }
        // SAFETY: waitid fills in the fields of SIGCHLD, or leaves the zeroes.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) };
        return Ok((pid != 0).then_some((pid, exit)));
    }
}
