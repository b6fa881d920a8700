//! What the whole machine does, split into the jobs of this lock and everything else. Pure.

use std::collections::HashMap;

use super::Sight;
use crate::job::JobId;
use crate::wholock::snapshot::{Job, Snapshot};

/// The machine's CPU time between two looks, in percent of all its CPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Used by jobs.
    pub jobs_percent: f64,
    /// Used by everything else. With [`Shares::uncounted`] by those jobs as well.
    pub outside_percent: f64,
    /// Some job's use is not known: it has no group, or one that cannot be seen.
    pub uncounted: bool,
    /// How many CPUs that is of.
    pub cpus: usize,
}

/// What was used between two looks. `None` where the kernel does not say, or no time passed.
pub fn shares(before: &Sight, after: &Sight) -> Option<Shares> {
    // Without the jobs of one of the looks, theirs would count as everything else's, or all they ever used as of just now.
    if before.problem.is_some() || after.problem.is_some() {
        return None;
    }
    let (earlier, later) = (before.cpu?, after.cpu?);
    let total = later.total_ticks.checked_sub(earlier.total_ticks).filter(|&ticks| ticks > 0)? as f64;
    // Some counters of a CPU that goes idle may step back a little.
    let busy = later.busy_ticks.saturating_sub(earlier.busy_ticks) as f64;
    let busy_percent = (100.0 * busy / total).min(100.0);
    let machine_usec = after.at.checked_duration_since(before.at)?.as_micros() as f64 * later.cpus as f64;
    let used = jobs_usec(&before.snapshot, &after.snapshot);
    let jobs_percent = if machine_usec > 0.0 { (100.0 * used as f64 / machine_usec).min(100.0) } else { 0.0 };
    let has_use = |job: &Job| job.usage.cpu_usec.is_some();
    Some(Shares {
        jobs_percent,
        // Counted by another clock and in larger steps than the jobs' use: a little less than that is none.
        outside_percent: (busy_percent - jobs_percent).max(0.0),
        uncounted: !after.snapshot.holders.iter().all(has_use),
        cpus: later.cpus,
    })
}

/// CPU time that the jobs used between two looks. One that began meanwhile used all of its own; what one used that ended
/// meanwhile nobody knows any more.
fn jobs_usec(before: &Snapshot, after: &Snapshot) -> u64 {
    let counted = |job: &Job| Some((job.id, job.usage.cpu_usec?));
    let earlier: HashMap<JobId, u64> = before.jobs().filter_map(counted).collect();
    let used =
        after.jobs().filter_map(counted).map(|(id, usec)| usec.saturating_sub(earlier.get(&id).copied().unwrap_or(0)));
    used.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::procfs::MachineCpu;
    use crate::wholock::watch::samples::{holder, sight};
    use proptest::prelude::*;

    /// Two looks a second apart at a machine of two CPUs; the jobs' CPU time is given in milliseconds.
    fn between(busy: [u64; 2], jobs: [&[(u64, Option<u64>)]; 2]) -> Option<Shares> {
        let start = Instant::now();
        let [before, after] = [0, 1].map(|index| {
            let holders = jobs[index].iter().map(|&(number, msec)| {
                let mut job = holder(number, "job");
                job.usage.cpu_usec = msec.map(|msec| msec * 1000);
                job
            });
            let at = start + Duration::from_secs(index as u64);
            let cpu = MachineCpu { busy_ticks: busy[index], total_ticks: 200 * index as u64, cpus: 2 };
            sight(at, Some(cpu), Snapshot { holders: holders.collect(), ..Snapshot::default() })
        });
        shares(&before, &after)
    }

    #[test]
    fn jobs_and_the_rest_make_up_what_the_machine_did() {
        let found = between([0, 150], [&[(1, Some(5000))], &[(1, Some(5500))]]).unwrap();
        assert_eq!(found, Shares { jobs_percent: 25.0, outside_percent: 50.0, uncounted: false, cpus: 2 });
        // A job that began meanwhile used all that it ever did; one that ended is not known any more.
        let found = between([0, 150], [&[(1, Some(5000))], &[(2, Some(500))]]).unwrap();
        assert_eq!((found.jobs_percent, found.outside_percent), (25.0, 50.0));
        assert!(between([0, 150], [&[], &[(1, None)]]).unwrap().uncounted);
    }

    #[test]
    fn the_rest_is_never_less_than_nothing() {
        let found = between([0, 90], [&[(1, Some(0))], &[(1, Some(1000))]]).unwrap();
        assert_eq!((found.jobs_percent, found.outside_percent), (50.0, 0.0));
        let found = between([7, 0], [&[(1, Some(900))], &[(1, Some(0))]]).unwrap();
        assert_eq!((found.jobs_percent, found.outside_percent), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn no_counters_make_a_share_that_is_none(busy: [u64; 2], jobs: [Vec<(u64, Option<u32>)>; 2]) {
            let jobs = jobs.map(|jobs| {
                jobs.into_iter().map(|(number, msec)| (number, msec.map(u64::from))).collect::<Vec<_>>()
            });
            if let Some(found) = between(busy, [&jobs[0], &jobs[1]]) {
                prop_assert!((0.0..=100.0).contains(&found.jobs_percent), "{:?}", found);
                prop_assert!((0.0..=100.0).contains(&found.outside_percent), "{:?}", found);
                prop_assert!(found.jobs_percent + found.outside_percent <= 100.01, "{:?}", found);
            }
        }
    }
}
