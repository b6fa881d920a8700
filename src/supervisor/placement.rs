//! What puts a command where it is to run from inside, between its birth and execve(2).

use std::os::fd::BorrowedFd;

use crate::error::last_errno;
use crate::fork;
use crate::pin::CpuList;

/// What the command does to itself before it executes. A default one does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement<'a> {
    /// The `tasks` files of the job group itself, where that is in v1.
    pub tracking: [Option<BorrowedFd<'a>>; 2],
    /// The `tasks` files of its groups in v1 hierarchies.
    pub groups: [Option<BorrowedFd<'a>>; 3],
    /// Its affinity.
    pub cpus: Option<&'a CpuList>,
    /// The memory nodes that it binds itself to.
    pub memory_nodes: Option<&'a CpuList>,
}

impl Placement<'_> {
    /// Joins its groups, the one first by which it is found. Returns an errno, or 0. Async-signal-safe: only system calls, and it
    /// allocates nothing.
    pub(super) fn join(&self) -> i32 {
        let groups = self.tracking.iter().chain(&self.groups).flatten();
        groups.map(|&tasks| fork::join(tasks)).find(|&errno| errno != 0).unwrap_or(0)
    }

    /// Goes to its processors and memory nodes. As [`Placement::join`].
    pub(super) fn take(&self) -> i32 {
        if let Some(words) = self.cpus.map(CpuList::words) {
            // SAFETY: the kernel reads as many bytes as there are. 0 is this process.
            if unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(words), words.as_ptr()) } < 0 {
                return last_errno();
            }
        }
        match self.memory_nodes.map(CpuList::words) {
            Some(words) if !bind_memory(words) => last_errno(),
            _ => 0,
        }
    }
}

/// set_mempolicy(2) of this thread, kept across execve(2). Async-signal-safe.
fn bind_memory(words: &[u64]) -> bool {
    // The kernel takes one bit less than it is told.
    set_memory_policy(libc::MPOL_BIND, words, size_of_val(words) * 8 + 1)
}

fn set_memory_policy(policy: libc::c_int, words: &[u64], bits: usize) -> bool {
    // SAFETY: the kernel reads `bits` bits but for one, which the callers have.
    unsafe { libc::syscall(libc::SYS_set_mempolicy, policy, words.as_ptr(), bits) == 0 }
}

/// Whether a process may bind its memory: some containers' filters refuse it, and some kernels know only one node. Asked by a
/// policy that there is not, so that nothing is set.
pub fn can_bind_memory() -> bool {
    !set_memory_policy(-1, &[], 0) && last_errno() == libc::EINVAL
}
