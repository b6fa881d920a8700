//! When those who wait may start, from how long the jobs ahead of them took before.

use std::path::Path;

use super::job::Job;
use super::snapshot::{Snapshot, State};
use crate::history::Keeping;
use crate::history::expect::{Stage, starts};
use crate::history::line::lock_text;
use crate::history::runs::{self, Asked};

/// The histories of so many users are read: each takes a millisecond.
const USERS_LOOKED_UP: usize = 16;

impl Snapshot {
    /// Guesses when each waiter for this lock starts, where nobody is in the way of whom nothing is known.
    pub fn expect_starts(&mut self, keeping: &Keeping, lock: &Path) {
        // Whoever uses plain flock is not in the order of the queue.
        let is_ordered = self.outsiders.iter().all(|(_, own_job)| own_job.is_some());
        if self.waiters.is_empty() || !is_ordered {
            return;
        }
        let asked: Vec<Asked<'_>> =
            self.jobs().map(|job| Asked { uid: job.uid, mode: job.mode, command: &job.command }).collect();
        let runs = runs::of_jobs(keeping, &lock_text(&lock.to_string_lossy()), &asked, USERS_LOOKED_UP);
        let stages: Vec<_> = self.jobs().map(|job| (job.mode, stage(job))).collect();
        let of_waiters = starts(&stages, &runs).split_off(self.holders.len());
        for (job, start) in self.waiters.iter_mut().zip(of_waiters) {
            job.expected_start = start;
        }
    }
}

fn stage(job: &Job) -> Stage {
    match job.state {
        State::Running | State::Releasing => Stage::Holds(job.age),
        State::Stopped | State::Guarded | State::Orphan | State::MaybeOrphan => Stage::Stuck,
        State::StoppedWaiter => Stage::Passed,
        State::WaitingFor(_) | State::Waiting | State::WaitingForCores => match job.cores_asked {
            Some(_) => Stage::WantsCores,
            None => Stage::Waits,
        },
    }
}
