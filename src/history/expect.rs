//! When a waiter may start, from how long the same commands took before. A guess, and nothing is decided by it: whoever shows it says
//! so. Pure; [`super::runs`] reads what there was.

use std::time::Duration;

use crate::job::Mode;
use crate::text;

/// Of fewer runs nothing is said.
pub const FEWEST: usize = 3;

/// A time that is guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guess {
    /// From now on.
    pub after: Duration,
    /// How many earlier runs it is from: those that a median was taken of; of several commands, those of which least is known.
    pub runs: usize,
    /// How far the middle half of the runs is apart, of all commands together.
    pub spread: Duration,
}

impl Guess {
    const NOW: Self = Self { after: Duration::ZERO, runs: usize::MAX, spread: Duration::ZERO };

    /// One after the other.
    fn then(self, next: Self) -> Self {
        let (after, spread) = (self.after.saturating_add(next.after), self.spread.saturating_add(next.spread));
        Self { after, runs: self.runs.min(next.runs), spread }
    }

    /// Both at once.
    fn beside(self, other: Self) -> Self {
        let longer = if other.after > self.after { other } else { self };
        Self { runs: self.runs.min(other.runs), ..longer }
    }
}

/// How long a job goes on that has had the machine for `elapsed`, if the same command took so long before, in ascending order: what is
/// left of the median of those runs that were longer. `None` if it has taken longer than ever, or little is known of it.
pub fn remaining(runs: &[Duration], elapsed: Duration) -> Option<Guess> {
    let longer = &runs[runs.partition_point(|&run| run <= elapsed)..];
    if runs.len() < FEWEST || longer.is_empty() {
        return None;
    }
    let last = longer.len() - 1;
    let median = (longer[last / 2] + longer[longer.len() / 2]) / 2;
    let spread = longer[last - last / 4].saturating_sub(longer[last / 4]);
    Some(Guess { after: median.saturating_sub(elapsed), runs: longer.len(), spread })
}

/// What a job in the queue is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has had the machine for so long.
    Holds(Duration),
    /// It has the machine and is stopped, or nobody sees to it any more: it goes its own way.
    Stuck,
    /// It waits.
    Waits,
    /// It waits, and wants cores of its own: for them it may wait longer than for those before it.
    WantsCores,
    /// It was stopped while it waited: others pass it.
    Passed,
}

/// When each job of a queue starts, as far as that can be guessed: those that have the machine first, then those that wait, in their
/// order. `runs` is how long the like of each took before.
pub fn starts(jobs: &[(Mode, Stage)], runs: &[Vec<Duration>]) -> Vec<Option<Guess>> {
    let mut course = Course::default();
    let start = |(&(mode, stage), runs): (&(Mode, Stage), &Vec<Duration>)| match stage {
        Stage::Holds(elapsed) => {
            course.holds(mode, remaining(runs, elapsed));
            None
        }
        Stage::Stuck => {
            course.holds(mode, None);
            None
        }
        Stage::Waits => course.waits(mode, remaining(runs, Duration::ZERO)),
        Stage::WantsCores => {
            course.waits(mode, None);
            None
        }
        Stage::Passed => None,
    };
    jobs.iter().zip(runs).map(start).collect()
}

/// What a queue will do, job by job: those that have the machine, then those that wait, in their order.
#[derive(Clone, Copy, Debug)]
struct Course {
    /// When the jobs below start.
    start: Option<Guess>,
    /// How long those take that have the machine then; `None` where that is unknown of one.
    longest: Option<Guess>,
    /// How they have it; `None` before the first one.
    mode: Option<Mode>,
    /// They have it already.
    now: bool,
}

impl Default for Course {
    fn default() -> Self {
        Self { start: Some(Guess::NOW), longest: None, mode: None, now: true }
    }
}

impl Course {
    /// A job that has the machine, and gives it back so.
    fn holds(&mut self, mode: Mode, takes: Option<Guess>) {
        self.beside(mode, takes);
    }

    /// A job that waits behind all that were told of, and will take so long. When it starts.
    fn waits(&mut self, mode: Mode, takes: Option<Guess>) -> Option<Guess> {
        // One that shares what is shared now waits for something that is not in the queue.
        if self.now || self.mode.is_none_or(|before| before.conflicts_with(mode)) {
            let is_known = self.mode.is_some_and(|before| before.conflicts_with(mode));
            let start = self.start.zip(self.longest).filter(|_| is_known).map(|(start, longest)| start.then(longest));
            *self = Self { start, longest: None, mode: None, now: false };
        }
        self.beside(mode, takes);
        self.start
    }

    fn beside(&mut self, mode: Mode, takes: Option<Guess>) {
        self.longest = match self.mode {
            None => takes,
            Some(_) => self.longest.zip(takes).map(|(longest, takes)| longest.beside(takes)),
        };
        // Two that exclude each other have it together only where something is wrong.
        self.mode = Some(self.mode.map_or(mode, |before| before.min(mode)));
    }
}

/// `about 14m (a guess from 6 runs)`, to follow `in `.
pub fn shown(guess: &Guess) -> String {
    let seconds = guess.after.as_secs();
    // Nobody guesses to the second.
    let rough = if seconds < 600 { guess.after } else { Duration::from_secs((seconds + 30) / 60 * 60) };
    format!("about {} (a guess from {})", text::duration(rough), text::count(guess.runs, "run"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Mode::{Exclusive, Shared};
    use proptest::prelude::*;

    fn runs(seconds: &[u64]) -> Vec<Duration> {
        seconds.iter().map(|&seconds| Duration::from_secs(seconds)).collect()
    }

    fn guess(seconds: u64, runs: usize, spread: u64) -> Option<Guess> {
        Some(Guess { after: Duration::from_secs(seconds), runs, spread: Duration::from_secs(spread) })
    }

    #[test]
    fn what_remains_is_the_median_of_longer_runs() {
        let six = runs(&[10, 20, 30, 50, 60, 70]);
        let remaining = |elapsed| remaining(&six, Duration::from_secs(elapsed));
        assert_eq!(remaining(0), guess(40, 6, 40));
        assert_eq!(remaining(25), guess(30, 4, 40));
        assert_eq!(remaining(65), guess(5, 1, 0));
        assert_eq!(remaining(70), None);
        assert_eq!(super::remaining(&runs(&[10, 20]), Duration::ZERO), None);
        assert_eq!(super::remaining(&[], Duration::ZERO), None);
    }

    #[test]
    fn those_ahead_come_one_after_the_other_or_at_once() {
        let mut course = Course::default();
        course.holds(Exclusive, guess(100, 6, 10));
        assert_eq!(course.waits(Shared, guess(5, 3, 1)), guess(100, 6, 10));
        assert_eq!(course.waits(Shared, guess(50, 4, 2)), guess(100, 6, 10));
        // After the longer of the two that share.
        assert_eq!(course.waits(Exclusive, guess(7, 9, 0)), guess(150, 3, 12));
        assert_eq!(course.waits(Exclusive, None), guess(157, 3, 12));
        assert_eq!(course.waits(Shared, guess(1, 3, 0)), None);
        assert_eq!(course.waits(Exclusive, guess(1, 3, 0)), None);
    }

    #[test]
    fn what_is_unknown_of_one_is_unknown_of_those_behind() {
        let mut course = Course::default();
        course.holds(Shared, guess(5, 3, 1));
        course.holds(Shared, None);
        assert_eq!(course.waits(Exclusive, guess(5, 3, 1)), None);
        // Nobody has it, or a job that shares waits for no job: for an outsider, or a moment.
        assert_eq!(Course::default().waits(Exclusive, guess(5, 3, 1)), None);
        let mut course = Course::default();
        course.holds(Shared, guess(5, 3, 1));
        assert_eq!(course.waits(Shared, guess(5, 3, 1)), None);
    }

    #[test]
    fn who_is_stuck_or_wants_cores_leaves_those_behind_without_a_guess() {
        let three = vec![runs(&[10, 10, 10]); 4];
        let holds = (Exclusive, Stage::Holds(Duration::from_secs(4)));
        let queue = |first, second| {
            let starts = starts(&[first, second, (Exclusive, Stage::Waits), (Shared, Stage::Waits)], &three);
            starts.iter().map(|start| start.map(|start| start.after.as_secs())).collect::<Vec<_>>()
        };
        assert_eq!(queue(holds, (Shared, Stage::Waits)), [None, Some(6), Some(16), Some(26)]);
        assert_eq!(queue(holds, (Shared, Stage::Passed)), [None, None, Some(6), Some(16)]);
        assert_eq!(queue(holds, (Shared, Stage::WantsCores)), [None; 4]);
        assert_eq!(queue((Exclusive, Stage::Stuck), (Shared, Stage::Waits)), [None; 4]);
    }

    #[test]
    fn a_guess_says_that_it_is_one() {
        let said = |seconds, runs| shown(&guess(seconds, runs, 0).unwrap());
        assert_eq!(said(843, 6), "about 14m (a guess from 6 runs)");
        assert_eq!(said(4800, 3), "about 1h 20m (a guess from 3 runs)");
        assert_eq!(said(42, 3), "about 42s (a guess from 3 runs)");
    }

    proptest! {
        /// Whatever the history says, nothing overflows, and who comes later starts no earlier.
        #[test]
        fn any_history_makes_an_order(
            jobs in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u64>(), 0..6), any::<u64>()), 1..12),
        ) {
            let mut course = Course::default();
            let mut last = Duration::ZERO;
            for (index, (is_shared, usec, elapsed)) in jobs.iter().enumerate() {
                let mode = if *is_shared { Shared } else { Exclusive };
                let mut runs: Vec<Duration> = usec.iter().map(|&usec| Duration::from_micros(usec)).collect();
                runs.sort_unstable();
                let takes = remaining(&runs, Duration::from_micros(*elapsed));
                if index == 0 {
                    course.holds(mode, takes);
                } else if let Some(start) = course.waits(mode, takes) {
                    prop_assert!(start.after >= last && start.runs > 0);
                    last = start.after;
                }
            }
        }
    }
}
