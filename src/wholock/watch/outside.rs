//! What is used outside of the lock, for a view that goes on: every process of the machine is looked at, which is the dearest
//! thing there is here. So it is done the more rarely the more it costs, and what is shown is the average since the last time.

use std::time::{Duration, Instant};

use super::pace::Pace;
use crate::clock::cpu_time;
use crate::procfs::Proc;
use crate::ticks::Ticks;
use crate::wholock::load::{self, Load};
use crate::wholock::snapshot::Snapshot;

/// The share of one core that it may take.
const SHARE: f64 = 0.0015;

/// Not more often, however cheap it is: processes' CPU time is counted in steps of 10 ms.
const SHORTEST: Duration = Duration::from_millis(400);

/// What was seen of all processes, and when to look again.
#[derive(Debug)]
pub struct Outside {
    pace: Pace,
    before: Option<(Ticks, Snapshot, Instant)>,
}

impl Default for Outside {
    fn default() -> Self {
        Self { pace: Pace::new(SHARE), before: None }
    }
}

impl Outside {
    /// What was used since it was last looked at all processes, if now is the time for that; `snapshot` was just taken.
    pub fn look(&mut self, snapshot: &Snapshot, proc: &Proc) -> Option<Load> {
        let now = Instant::now();
        let recent = self.before.as_ref().is_some_and(|(.., at)| now.saturating_duration_since(*at) < SHORTEST);
        if recent || !self.pace.is_due(now) {
            return None;
        }
        let began = cpu_time();
        let ticks = Ticks::read(proc).ok()?;
        let load = self.before.as_ref().map(|(before, then, _)| load::outside(before, &ticks, &[then, snapshot], proc));
        self.before = Some((ticks, snapshot.clone(), now));
        self.pace.spent(now, cpu_time().saturating_sub(began));
        load
    }
}
