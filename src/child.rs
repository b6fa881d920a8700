//! Children: waiting for them, by waitid(2) and wait4(2) from libc. nix knows no death by a real-time signal, rustix does
//! not say whose status it is, and neither tells what the child used.
//!
//! The guard, and the launcher of a scope, is a *clone child* (wait(2), `__WCLONE`): one whose end sends no SIGCHLD. So it is in none of the waits here
//! unless it is asked for, and "no child left" means that no member of a job is left that came home to us.

use std::io;
use std::ops::AddAssign;

use serde::Serialize;

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

/// What a process used, with those of its descendants that were waited for: what time(1) sees. Kernel side: getrusage(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WaitedFor {
    /// CPU time in user mode.
    pub user_usec: u64,
    /// CPU time in the kernel.
    pub system_usec: u64,
    /// The most resident memory that any one of the processes had.
    pub largest_process_bytes: u64,
    /// Page faults.
    pub faults: u64,
    /// Those that had to read from a disk.
    pub major_faults: u64,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to block devices.
    pub written_bytes: u64,
    /// How often a process gave the CPU up.
    pub voluntary_switches: u64,
    /// How often the CPU was taken from one.
    pub involuntary_switches: u64,
}

impl WaitedFor {
    /// User and system time.
    pub fn cpu_usec(&self) -> u64 {
        self.user_usec.saturating_add(self.system_usec)
    }
}

impl AddAssign for WaitedFor {
    fn add_assign(&mut self, other: Self) {
        self.user_usec += other.user_usec;
        self.system_usec += other.system_usec;
        self.largest_process_bytes = self.largest_process_bytes.max(other.largest_process_bytes);
        self.faults += other.faults;
        self.major_faults += other.major_faults;
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.voluntary_switches += other.voluntary_switches;
        self.involuntary_switches += other.involuntary_switches;
    }
}

impl From<libc::rusage> for WaitedFor {
    fn from(usage: libc::rusage) -> Self {
        // The kernel counts up from 0; `ru_maxrss` is in KiB, the blocks of `ru_inblock` have 512 bytes whatever the disk.
        let count = |number: libc::c_long| number.max(0).cast_unsigned();
        let usec = |time: libc::timeval| count(time.tv_sec) * 1_000_000 + count(time.tv_usec);
        Self {
            user_usec: usec(usage.ru_utime),
            system_usec: usec(usage.ru_stime),
            largest_process_bytes: count(usage.ru_maxrss) * 1024,
            faults: count(usage.ru_minflt) + count(usage.ru_majflt),
            major_faults: count(usage.ru_majflt),
            read_bytes: count(usage.ru_inblock) * 512,
            written_bytes: count(usage.ru_oublock) * 512,
            voluntary_switches: count(usage.ru_nvcsw),
            involuntary_switches: count(usage.ru_nivcsw),
        }
    }
}

/// Waits for a child of ours, a guard included, and reaps it.
///
/// # Errors
/// It is no child of ours.
pub fn wait_for(pid: i32) -> io::Result<(Exit, WaitedFor)> {
    loop {
        if let Some(ended) = wait(pid, 0)? {
            return Ok(ended);
        }
    }
}

/// The same without waiting: `None` while it is not ours to reap. If another process traces it, a child that ended is that
/// one's first.
///
/// # Errors
/// It is no child of ours.
pub fn reap_now(pid: i32) -> io::Result<Option<(Exit, WaitedFor)>> {
    wait(pid, libc::WNOHANG)
}

fn wait(pid: i32, options: libc::c_int) -> io::Result<Option<(Exit, WaitedFor)>> {
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain data, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both are valid places for the answers.
        match unsafe { libc::wait4(pid, &raw mut status, libc::__WALL | options, &raw mut usage) } {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
            _ => {}
        }
        let exited = libc::WIFEXITED(status);
        let exit = if exited { Exit::Code(libc::WEXITSTATUS(status)) } else { Exit::Signal(libc::WTERMSIG(status)) };
        return Ok(Some((exit, usage.into())));
    }
}

/// Reaps a child that ended or is about to.
pub fn reap(pid: i32) {
    // Nobody else reaps our children, so it cannot be gone.
    let _ = wait_for(pid);
}

/// Reaps every child that ended, up to `except`, and adds what they used to `used`. Only where orphans come home to us are
/// there any.
pub fn reap_orphans(except: i32, used: &mut WaitedFor) {
    while let Ok(Some(pid)) = ended() {
        if pid == except {
            return;
        }
        match wait_for(pid) {
            Ok((_, of_it)) => *used += of_it,
            Err(_) => return,
        }
    }
}

/// The signal that stopped a child of ours, while it is stopped.
pub fn stopped(pid: i32) -> Option<i32> {
    let options = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    let info = wait_id(libc::P_PID, pid.cast_unsigned(), options).ok()?;
    // SAFETY: waitid fills in the fields of SIGCHLD, or leaves the zeroes.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    (pid != 0).then(|| unsafe { info.si_status() })
}

/// Whether we have children. The kernel answers for one moment, unlike a walk through `/proc`, and an orphan comes home
/// in the same moment that its parent ends.
pub fn children() -> Children {
    match ended() {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Children::None,
        _ => Children::Some,
    }
}

/// A child that ended, guards apart; it is left unreaped.
fn ended() -> io::Result<Option<i32>> {
    let info = wait_id(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)?;
    // SAFETY: waitid fills in the fields of SIGCHLD, or leaves the zeroes.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid))
}

/// waitid(2), begun again where a signal handler ran.
fn wait_id(of: libc::idtype_t, id: libc::id_t, options: i32) -> io::Result<libc::siginfo_t> {
    loop {
        // SAFETY: siginfo_t is plain data; zero in its pid is how "nobody yet" is told under WNOHANG.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` is a valid place for the answer.
        if unsafe { libc::waitid(of, id, &raw mut info, options) } == -1 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        }
        return Ok(info);
    }
}
