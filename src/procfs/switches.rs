//! Context switches. The kernel counts them for each thread and for no group: those of a thread that ended are lost.

use std::fs;
use std::io;

use super::{Proc, read};

/// How often threads gave a CPU up, or had it taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextSwitches {
    /// They had to wait for something.
    pub voluntary: u64,
    /// Somebody else had to run.
    pub involuntary: u64,
}

impl ContextSwitches {
    /// Those of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            voluntary: self.voluntary.saturating_add(other.voluntary),
            involuntary: self.involuntary.saturating_add(other.involuntary),
        }
    }
}

impl Proc {
    /// How often the living threads of the process gave a CPU up, or had it taken away: `/proc/PID/task/TID/status`. Threads
    /// that ended are not in it.
    ///
    /// # Errors
    /// The process is gone or hidden, or the kernel does not count them.
    pub fn context_switches(&self, pid: i32) -> io::Result<ContextSwitches> {
        let mut sum = ContextSwitches::default();
        for task in fs::read_dir(self.file(pid, "task"))? {
            match read(&task?.path().join("status")) {
                Ok(status) => {
                    let of_it = parse_switches(&status).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
                    sum = sum.plus(of_it);
                }
                // It ended meanwhile.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sum)
    }
}

/// Whether a reader failed since the process or thread has ended (or is hidden from us).
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Both counters in a thread's `status`.
fn parse_switches(status: &[u8]) -> Option<ContextSwitches> {
    let number = |name: &str| {
        let value = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(name.as_bytes()))?;
        std::str::from_utf8(value).ok()?.trim().parse().ok()
    };
    Some(ContextSwitches {
        voluntary: number("voluntary_ctxt_switches:")?,
        involuntary: number("nonvoluntary_ctxt_switches:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A captured process 7 with these threads, each with this text as its status.
    fn captured(threads: &[(i32, Option<&str>)]) -> (tempfile::TempDir, Proc) {
        let root = tempfile::tempdir().unwrap();
        for (tid, status) in threads {
            let task = root.path().join(format!("7/task/{tid}"));
            fs::create_dir_all(&task).unwrap();
            if let Some(status) = status {
                fs::write(task.join("status"), status).unwrap();
            }
        }
        let proc = Proc::at(root.path());
        (root, proc)
    }

    const STATUS: &str = "Name:\tvoluntary_ctxt_switches:\nState:\tS (sleeping)\nvoluntary_ctxt_switches:\t150\n\
                          nonvoluntary_ctxt_switches:\t545\nx86_Thread_features:\t\n";

    #[test]
    fn all_threads_count_but_one_that_ended_meanwhile() {
        let other = STATUS.replace("\t150", "\t1").replace("\t545", "\t2");
        let (_root, proc) = captured(&[(7, Some(STATUS)), (8, Some(&other)), (9, None)]);
        assert_eq!(proc.context_switches(7).unwrap(), ContextSwitches { voluntary: 151, involuntary: 547 });
    }

    #[test]
    fn what_the_kernel_does_not_count_is_not_zero() {
        let (_root, proc) = captured(&[(7, Some(STATUS)), (8, Some("Name:\tx\nvoluntary_ctxt_switches:\t150\n"))]);
        assert_eq!(proc.context_switches(7).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(proc.context_switches(6).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_kernel_s_own_count_grows_with_every_wait() {
        // On a slow machine the time is over before some of them begin to wait.
        let after_a_wait = |_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            parse_switches(&read(std::path::Path::new("/proc/thread-self/status")).unwrap()).unwrap()
        };
        let own_thread = (0..1000).map(after_a_wait).find(|own_thread| own_thread.voluntary >= 10).unwrap();
        let all = Proc::default().context_switches(std::process::id().cast_signed()).unwrap();
        assert!(all.voluntary >= own_thread.voluntary && all.involuntary >= own_thread.involuntary, "{all:?}");
    }
}
