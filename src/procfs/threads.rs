//! The threads of a process, which may outlive the main one, and who traces it; and those of the kernel.

use std::fs;
use std::io;

use super::{Proc, Stat, read};

impl Stat {
    /// It has ended: what is left is for its parent to see. The state is the main thread's, which may end before others do.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && !self.is_headless()
    }

    /// Its main thread has ended, and others live.
    pub fn is_headless(&self) -> bool {
        self.state == 'Z' && self.threads > 1
    }
}

/// The kernel thread that starts all others, where our pid namespace is the machine's own.
const KTHREADD: i32 = 2;

impl Proc {
    /// The kernel's own threads.
    ///
    /// # Errors
    /// They are hidden, or in no pid namespace of ours.
    pub fn kernel_threads(&self) -> io::Result<Vec<i32>> {
        if !self.stat(KTHREADD)?.kernel_thread {
            return Err(io::ErrorKind::NotFound.into());
        }
        let flagged = |pid: &i32| self.stat(*pid).is_ok_and(|stat| stat.kernel_thread);
        match self.children(KTHREADD) {
            Ok(children) => Ok([KTHREADD].into_iter().chain(children).collect()),
            // Built without CONFIG_PROC_CHILDREN: each is asked.
            Err(_) => Ok(self.pids()?.into_iter().filter(flagged).collect()),
        }
    }

    /// The threads of a process. The files of a thread are found like those of a process, by its number.
    ///
    /// # Errors
    /// The process is gone or hidden.
    pub fn threads(&self, pid: i32) -> io::Result<Vec<i32>> {
        let entries = fs::read_dir(self.file(pid, "task"))?.flatten();
        Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// The process that traces this one, by ptrace(2): a debugger, say.
    ///
    /// # Errors
    /// The process is gone or hidden.
    pub fn tracer(&self, pid: i32) -> io::Result<Option<i32>> {
        let text = read(&self.file(pid, "status"))?;
        let value = text.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"TracerPid:"));
        let number = value.and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
        Ok(number.filter(|&tracer| tracer > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_lives_as_long_as_any_of_its_threads() {
        let stat = |state, threads| Stat { state, threads, ..Stat::default() };
        assert!(stat('Z', 1).is_dead() && stat('X', 0).is_dead());
        assert!(!stat('Z', 2).is_dead() && !stat('S', 1).is_dead() && !stat('D', 2).is_headless());
    }

    #[test]
    fn a_tracer_is_told_from_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("7")).unwrap();
        for (status, tracer) in [("Name:\tx\nTracerPid:\t42\n", Some(42)), ("TracerPid:\t0\n", None), ("", None)] {
            fs::write(root.path().join("7/status"), status).unwrap();
            assert_eq!(Proc::at(root.path()).tracer(7).unwrap(), tracer, "{status}");
        }
        assert!(Proc::at(root.path()).tracer(8).is_err());
    }
}
