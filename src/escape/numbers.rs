//! Which process numbers the kernel gave away since a moment: it takes the next free one each time, and begins again at the
//! bottom when it reaches the highest (kernel/pid.c, `idr_alloc_cyclic`).

use std::time::Duration;

use crate::procfs::Proc;

/// More numbers than a kernel gives away in a second, threads included: each takes a lock that there is once.
const A_SECOND: u32 = 100_000;

/// What the highest number is at least, unless somebody made it less. As much as a machine of the smallest kind has.
const HIGHEST: u32 = 32_768;

/// So few numbers are tried one by one. Beyond that it takes less to list what there is.
const TRIED: i32 = 256;

/// Numbers that were given away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// Those above the first, up to the second.
    Between(i32, i32),
    /// It began again at the bottom meanwhile, or may have.
    Any,
}

/// What was given away since `after` was, which is `lasted` ago.
pub(super) fn given_since(after: i32, lasted: Duration, proc: &Proc) -> Given {
    given(after, proc.last_pid().unwrap_or_default(), lasted, || proc.highest_pid().unwrap_or(HIGHEST))
}

fn given(after: i32, last: i32, lasted: Duration, highest: impl Fn() -> u32) -> Given {
    // Once around takes as long as that at least.
    let once_around = |highest: u32| Duration::from_secs(1) * highest / A_SECOND;
    let began_again = || lasted >= once_around(HIGHEST) && lasted >= once_around(highest());
    if last < after || began_again() { Given::Any } else { Given::Between(after, last) }
}

impl Given {
    /// Processes that have one of them, in order; some may be of no process.
    pub(super) fn among(self, proc: &Proc) -> Vec<i32> {
        let listed = |given: &dyn Fn(i32) -> bool| {
            let mut pids: Vec<i32> = proc.pids().unwrap_or_default().into_iter().filter(|&pid| given(pid)).collect();
            pids.sort_unstable();
            pids
        };
        match self {
            Self::Between(after, last) if last - after <= TRIED => (after + 1..=last).collect(),
            Self::Between(after, last) => listed(&|pid| pid > after && pid <= last),
            Self::Any => listed(&|_| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    #[test]
    fn numbers_are_given_in_order_until_they_begin_again() {
        let small = || 32_768;
        assert_eq!(given(100, 100, SHORT, small), Given::Between(100, 100));
        assert_eq!(given(100, 140, SHORT, small), Given::Between(100, 140));
        // It began again, or nobody knows.
        assert_eq!(given(100, 99, SHORT, small), Given::Any);
        assert_eq!(given(100, 0, SHORT, small), Given::Any);
        // It may have, and come as far as before.
        assert_eq!(given(100, 140, Duration::from_secs(1), small), Given::Any);
        assert_eq!(given(100, 140, Duration::from_secs(1), || 4_194_304), Given::Between(100, 140));
        assert_eq!(given(100, 140, Duration::from_secs(60), || 4_194_304), Given::Any);
    }

    #[test]
    fn few_numbers_are_tried_and_many_are_looked_up() {
        let root = tempfile::tempdir().unwrap();
        for pid in [7, 300, 30, 1000] {
            std::fs::create_dir(root.path().join(pid.to_string())).unwrap();
        }
        let proc = Proc::at(root.path());
        assert_eq!(Given::Between(7, 7).among(&proc), [] as [i32; 0]);
        assert_eq!(Given::Between(7, 9).among(&proc), [8, 9]);
        assert_eq!(Given::Between(7, 999).among(&proc), [30, 300]);
        assert_eq!(Given::Any.among(&proc), [7, 30, 300, 1000]);
    }

    #[test]
    fn the_kernel_says_which_number_was_the_last() {
        let proc = Proc::default();
        let child = std::process::Command::new("true").spawn().and_then(|mut child| {
            let last = proc.last_pid();
            child.wait()?;
            Ok((child.id().cast_signed(), last?))
        });
        let (pid, last) = child.unwrap();
        // Others take numbers too, and may have come to the highest.
        assert!(last >= pid || last < 1000, "{last} after {pid}");
        assert!(proc.highest_pid().unwrap() >= pid.cast_unsigned());
    }
}
