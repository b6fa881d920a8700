//! When those who wait may start, from how long the jobs ahead of them took before.

use std::time::Duration;

use super::snapshot::{Snapshot, State};
use crate::history::expect::{Course, remaining};
use crate::history::{Keeping, runs};

/// The histories of so many users are read: each takes a millisecond.
const USERS_LOOKED_UP: usize = 16;

impl Snapshot {
    /// Guesses when each waiter starts, where nobody is in the way of whom nothing is known.
    pub fn expect_starts(&mut self, keeping: &Keeping) {
        // Whoever uses plain flock is not in the order of the queue.
        let is_ordered = self.outsiders.iter().all(|(_, own_job)| own_job.is_some());
        if self.waiters.is_empty() || !is_ordered {
            return;
        }
        let commands: Vec<(u32, &[String])> = self.jobs().map(|job| (job.uid, &*job.command)).collect();
        let runs = runs::of_commands(keeping, &commands, USERS_LOOKED_UP);
        let (of_holders, of_waiters) = runs.split_at(self.holders.len());
        let mut course = Course::default();
        for (job, runs) in self.holders.iter().zip(of_holders) {
            // A job that is stopped, or whose supervisor is gone, goes its own way.
            let goes_on = matches!(job.state, State::Running | State::Releasing);
            course.holds(job.mode, remaining(runs, job.age).filter(|_| goes_on));
        }
        for (job, runs) in self.waiters.iter_mut().zip(of_waiters) {
            let takes = remaining(runs, Duration::ZERO);
            match job.state {
                // Others pass it.
                State::StoppedWaiter => {}
                // For cores it may wait longer than for those before it.
                State::WaitingForCores => {
                    course.waits(job.mode, None);
                }
                _ => job.expected_start = course.waits(job.mode, takes),
            }
        }
    }
}
