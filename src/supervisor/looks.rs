//! When a group is looked at that is about to become empty, between the end of the main process and the job's.

use std::time::Duration;

/// The first and the longest pause while the kernel's notices, which are limited to one per 10 ms, would come too late.
const LOOKS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(2));

/// How long the group is looked at that often. Then its notices are slept on.
const LOOKS_OFTEN_FOR: Duration = Duration::from_millis(20);

/// The same after members were signalled: most die at once, and the machine is free when the last of them is gone.
const DIE_WITHIN: Duration = Duration::from_millis(500);

/// How long it may take to see that a group is empty of which we are told only when one member ends: that one may have been
/// moved out of it instead.
pub(super) const MOVES_AWAY_WITHIN: Duration = Duration::from_secs(10);

/// What the kernel wakes us for while we wait for a group to become empty.
#[derive(Clone, Copy)]
pub(super) enum Told {
    /// Everything.
    Changes,
    /// The end of one member.
    OneEnd,
    /// The end of our own children.
    Children,
}

/// When to look at the group next.
#[derive(Default)]
pub(super) struct Looks {
    often_until: Option<Duration>,
    last: Duration,
    pause: Duration,
}

impl Looks {
    pub(super) fn looked(&mut self, now: Duration, ended_at: Option<Duration>) {
        let first = *self.often_until.get_or_insert(now + LOOKS_OFTEN_FOR);
        self.often_until = Some(first.max(ended_at.map_or(first, |at| at + DIE_WITHIN)));
        self.last = now;
        self.pause = if self.pause.is_zero() { LOOKS.0 } else { (self.pause * 2).min(LOOKS.1) };
    }

    /// The last look was one of those that follow each other quickly.
    pub(super) fn is_often(&self) -> bool {
        self.often_until.is_none_or(|until| self.last < until)
    }

    /// `None`: not before a notice.
    pub(super) fn next(&self, told: Told) -> Option<Duration> {
        if self.often_until.is_none() {
            return Some(Duration::ZERO);
        }
        if self.is_often() {
            return Some(self.last + self.pause);
        }
        match told {
            Told::Changes => None,
            Told::OneEnd => Some(self.last + MOVES_AWAY_WITHIN),
            // The children that come home to us report by SIGCHLD; only what they leave without a parent that is ours has
            // to be looked for.
            Told::Children => Some(self.last + Duration::from_secs(1)),
        }
    }
}
