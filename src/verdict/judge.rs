//! What two looks say: pure functions from counters to a verdict.

use std::time::Duration;

use super::apart::Figures;
use super::look::Seen;
use super::{Apart, Counts, Limit, Verdict, Word, core_seconds};
use crate::clock;
use crate::text;
use crate::ticks::Used;

/// What a process used, with children that it waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfProcess {
    /// Which.
    pub pid: i32,
    /// Whose; looked up only where it is told.
    pub uid: Option<u32>,
    /// Its name, chosen by itself: hostile text.
    pub name: String,
    /// CPU time.
    pub usec: u64,
}

/// What a group used since it had used `before`, without what the job used in it. `None`: it was there, and nobody looked.
pub(super) fn elsewhere(before: Option<u64>, after: u64, of_job: Option<u64>) -> u64 {
    before.map_or(0, |before| after.saturating_sub(before).saturating_sub(of_job.unwrap_or(0)))
}

/// What processes used that are in no group. Children that they waited for may have been in groups, and are counted there: they
/// are less what groups used.
pub(super) fn processes<'a>(
    used: impl Iterator<Item = Used<'a>>,
    ticks_per_second: u64,
    grouped_usec: u64,
) -> Vec<OfProcess> {
    let usec = |ticks: u64| clock::to_usec(ticks, ticks_per_second);
    let mut used: Vec<Used<'_>> = used.collect();
    // The most likely parents of processes in groups come first, and always in the same order.
    used.sort_unstable_by_key(|used| (std::cmp::Reverse(used.ended_children_ticks), used.stat.pid));
    let mut grouped_usec = grouped_usec;
    let one = |used: &Used<'_>| {
        let of_children = usec(used.ended_children_ticks);
        let taken_off = of_children.min(grouped_usec);
        grouped_usec -= taken_off;
        let all = usec(used.own_ticks).saturating_add(of_children - taken_off);
        (all > 0).then(|| OfProcess { pid: used.stat.pid, uid: None, name: used.stat.comm.clone(), usec: all })
    };
    used.iter().filter_map(one).collect()
}

/// The verdict, without names.
pub fn judge(seen: &Seen, limit: Limit, counts: &Counts) -> Verdict {
    let Some(most_usec) = limit.usec(seen.elapsed) else {
        return Verdict::unknown("nobody looked (quiet-limit)");
    };
    let apart: Vec<String> = match &seen.apart {
        Some(figures) => counts.iter().filter_map(|apart| too_much(apart, figures, most_usec)).collect(),
        None => Vec::new(),
    };
    let disturbed = seen.elsewhere_usec > most_usec || !apart.is_empty();
    // What was seen was there, whatever was not.
    let untold = || counts.iter().find(|&apart| !seen.apart.as_ref().is_some_and(|figures| figures.knows(apart)));
    let untold = || untold().map(|apart| format!("{apart} cannot be read here, and is to count (quiet-counts)"));
    let (word, why) = match (disturbed, seen.unseen.clone().or_else(untold)) {
        (true, _) => (Word::Disturbed, (!apart.is_empty()).then(|| apart.join("; "))),
        (false, Some(unseen)) => (Word::Unknown, Some(unseen)),
        (false, None) => (Word::Quiet, None),
    };
    Verdict { word, why, elsewhere_usec: Some(seen.elsewhere_usec), by: Vec::new(), apart: seen.apart.clone() }
}

/// What of this was more than is allowed; what the kernel does not tell is not.
fn too_much(apart: Apart, figures: &Figures, most_usec: u64) -> Option<String> {
    let time = |usec: Option<u64>| usec.filter(|&usec| usec > most_usec).map(core_seconds);
    let number = |number: Option<u64>| number.filter(|&number| number > 0);
    let some = |number: u64, thing| text::count(usize::try_from(number).unwrap_or(usize::MAX), thing);
    match apart {
        Apart::KernelThreads => {
            time(figures.kernel_threads_usec).map(|time| format!("{time} core-seconds by kernel threads"))
        }
        Apart::Steal => {
            time(figures.steal_usec).map(|time| format!("{time} core-seconds taken by the virtual machine's host"))
        }
        Apart::Interrupts => time(figures.interrupts_usec).map(|time| format!("{time} core-seconds by interrupts")),
        Apart::Throttling => {
            number(figures.throttled).map(|count| format!("processors too hot {}", some(count, "time")))
        }
        Apart::Swap => {
            let pages = [figures.swapped_in_pages, figures.swapped_out_pages].into_iter().flatten();
            number(pages.reduce(u64::saturating_add)).map(|count| format!("{} swapped", some(count, "page")))
        }
    }
}

/// Whether a job ran long enough to be judged.
pub fn is_long_enough(wall: Duration) -> bool {
    wall >= super::SHORTEST
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::Stat;
    use proptest::prelude::*;

    fn seen(elsewhere_usec: u64) -> Seen {
        Seen { elapsed: Duration::from_secs(10), elsewhere_usec, ..Seen::default() }
    }

    fn word(seen: &Seen, counts: &str) -> (Word, Option<String>) {
        let verdict = judge(seen, Limit::default(), &Counts::parse(counts).unwrap());
        (verdict.word, verdict.why)
    }

    #[test]
    fn more_than_the_limit_disturbs_and_what_is_not_seen_is_not_quiet() {
        assert_eq!(word(&seen(500_000), "none"), (Word::Quiet, None));
        assert_eq!(word(&seen(500_001), "none"), (Word::Disturbed, None));
        let hidden = |elsewhere| Seen { unseen: Some("x".to_owned()), ..seen(elsewhere) };
        assert_eq!(word(&hidden(0), "none"), (Word::Unknown, Some("x".to_owned())));
        assert_eq!(word(&hidden(500_001), "none"), (Word::Disturbed, None));
        assert_eq!(judge(&seen(9_000_000), Limit::None, &Counts::default()).word, Word::Unknown);
    }

    #[test]
    fn what_is_shown_apart_disturbs_only_if_it_counts() {
        let figures = Figures {
            kernel_threads_usec: Some(600_000),
            steal_usec: Some(500_000),
            interrupts_usec: None,
            throttled: Some(1),
            swapped_in_pages: Some(0),
            swapped_out_pages: Some(2),
            frequency_khz: None,
        };
        let seen = Seen { apart: Some(figures), ..seen(0) };
        assert_eq!(word(&seen, "none"), (Word::Quiet, None));
        assert_eq!(word(&seen, "steal"), (Word::Quiet, None));
        // Nobody told.
        let why = "interrupts cannot be read here, and is to count (quiet-counts)".to_owned();
        assert_eq!(word(&seen, "steal,interrupts"), (Word::Unknown, Some(why.clone())));
        assert_eq!(word(&Seen { apart: None, ..seen.clone() }, "interrupts"), (Word::Unknown, Some(why)));
        let all = "0.6 core-seconds by kernel threads; processors too hot 1 time; 2 pages swapped";
        let counts = "kernel-threads,steal,interrupts,throttling,swap";
        assert_eq!(word(&seen, counts), (Word::Disturbed, Some(all.to_owned())));
    }

    #[test]
    fn children_are_less_what_groups_used() {
        let stats: Vec<Stat> = (1..4).map(|pid| Stat { pid, ..Stat::default() }).collect();
        let used =
            |own: [u64; 3], of_children: [u64; 3], grouped_usec| {
                let used = stats.iter().zip(own.into_iter().zip(of_children)).map(|(stat, (own_ticks, children))| {
                    Used { stat, own_ticks, ended_children_ticks: children, elapsed: Duration::from_secs(1) }
                });
                let found = processes(used, 100, grouped_usec);
                found.into_iter().map(|it| (it.pid, it.usec)).collect::<Vec<_>>()
            };
        assert_eq!(used([1, 2, 0], [0, 0, 5], 0), [(3, 50_000), (1, 10_000), (2, 20_000)]);
        assert_eq!(used([1, 2, 0], [0, 0, 5], 40_000), [(3, 10_000), (1, 10_000), (2, 20_000)]);
        assert_eq!(used([1, 2, 0], [0, 4, 5], 80_000), [(2, 30_000), (1, 10_000)]);
        assert_eq!(used([1, 0, 0], [9, 9, 9], u64::MAX), [(1, 10_000)]);
    }

    proptest! {
        /// No counter, going forward or back, makes more of a group than what it used less what the job did.
        #[test]
        fn nothing_is_made_up_of_groups(before: Option<u64>, used: u64, back: bool, of_job: Option<u64>) {
            let before_usec = before.unwrap_or(0);
            let after = if back { before_usec.saturating_sub(used) } else { before_usec.saturating_add(used) };
            let told = elsewhere(before, after, of_job);
            let most = if back { 0 } else { used.saturating_sub(of_job.unwrap_or(0)) };
            prop_assert!(told <= most);
        }

        #[test]
        fn nothing_is_made_up_of_processes(
            used in prop::collection::vec((0..1_u64 << 40, 0..1_u64 << 40), 0..8), grouped: u64,
        ) {
            let stat = Stat::default();
            let elapsed = Duration::from_secs(1);
            let list = used.iter().map(|&(own_ticks, ended_children_ticks)| {
                Used { stat: &stat, own_ticks, ended_children_ticks, elapsed }
            });
            let told: u64 = processes(list, 100, grouped).iter().map(|it| it.usec).sum();
            let own: u64 = used.iter().map(|(own, _)| own * 10_000).sum();
            let children: u64 = used.iter().map(|(_, children)| children * 10_000).sum();
            prop_assert_eq!(told, own + children.saturating_sub(grouped));
        }
    }
}
