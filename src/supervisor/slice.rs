//! Being heard among a thousand busy processes.
//!
//! A supervisor sleeps until there is something to do, and then has little of it; but of a job that wants every processor
//! all the time, a fork bomb at its time limit say, each process runs for some milliseconds before it is one more's turn.
//! Since Linux 6.12 a process may ask for shorter turns, with no privilege, and has them sooner: the scheduler takes who is
//! due first (kernel/sched/fair.c, EEVDF), and a short turn is due early. It gets no more of a processor by that.

use std::mem::size_of;

/// The shortest turn that there is, in nanoseconds. Documentation/scheduler/sched-eevdf.rst.
const SHORTEST_NSEC: u64 = 100_000;

/// What sched_setattr(2) takes, up to the fields that are of no use here: include/uapi/linux/sched/types.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime_nsec: u64,
    deadline_nsec: u64,
    period_nsec: u64,
}

/// Asks for the shortest turns for this process. Children that are made later have them too: this is for who has none of the
/// job's to make any more. Where the kernel knows no turns, or ours are of another kind (chrt(1)), nothing changes.
pub(super) fn shorten() {
    let mut now = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: the kernel writes at most `size` bytes to a value of that size. 0 is this process.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut now, size, 0) };
    let ordinary = i32::try_from(now.policy).is_ok_and(|policy| policy == libc::SCHED_OTHER);
    if read == 0 && ordinary {
        let shorter = Attributes { size: size as u32, runtime_nsec: SHORTEST_NSEC, ..now };
        // SAFETY: the kernel reads a value of the size that it names.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const shorter, 0) };
    }
}
