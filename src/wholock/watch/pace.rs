//! How often something dear may be done.

use std::time::{Duration, Instant};

/// Keeps what is done again and again to a share of one core's time, whatever it turns out to cost.
#[derive(Debug)]
pub struct Pace {
    share: f64,
    next: Option<Instant>,
}

impl Pace {
    /// `share` of one core: 0.01 is one percent.
    pub fn new(share: f64) -> Self {
        Self { share, next: None }
    }

    /// Whether it may be done now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// It was done, and took this much CPU time.
    pub fn spent(&mut self, now: Instant, cost: Duration) {
        let pause = Duration::try_from_secs_f64(cost.as_secs_f64() / self.share).unwrap_or(Duration::MAX);
        self.next = Some(now.checked_add(pause).unwrap_or(now + LONGEST));
    }
}

/// Stands for a pause that no clock can hold.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_more_is_done_more_rarely() {
        let start = Instant::now();
        let mut pace = Pace::new(0.01);
        assert!(pace.is_due(start));
        pace.spent(start, Duration::from_millis(20));
        assert!(!pace.is_due(start + Duration::from_millis(1999)));
        assert!(pace.is_due(start + Duration::from_millis(2000)));
        pace.spent(start, Duration::ZERO);
        assert!(pace.is_due(start));
        pace.spent(start, Duration::MAX);
        assert!(!pace.is_due(start + Duration::from_secs(1 << 20)));
    }
}
