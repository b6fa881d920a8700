//! The end of the main process: from its death until it is reaped, which is the same moment unless another process traces it.
//! Then it is the tracer's first, and ours when that has looked, or is gone.

use std::io;
use std::time::Duration;

use super::spawn::Main;
use super::{Ended, named};
use crate::child::{self, Exit, WaitedFor};
use crate::procfs::Proc;

/// First and longest pause between two tries to reap it.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_secs(1));

/// A tracer that takes longer is named.
const TRACERS_TIME: Duration = Duration::from_secs(1);

/// What is known of it.
#[derive(Default)]
pub(super) struct MainEnd {
    /// When it died, from its start.
    pub(super) died: Option<Duration>,
    /// How, once it was reaped.
    pub(super) exit: Option<Exit>,
    /// What it used, with those that it had waited for.
    pub(super) used: WaitedFor,
    tried: Duration,
    pause: Duration,
    told: bool,
}

impl MainEnd {
    /// It died, and was not reaped yet.
    pub(super) fn is_held(&self) -> bool {
        self.died.is_some() && self.exit.is_none()
    }

    /// When to try again.
    pub(super) fn next_try(&self) -> Option<Duration> {
        self.is_held().then(|| self.tried + self.pause)
    }

    /// Reaps it, if it is ours.
    ///
    /// # Errors
    /// It is no child of ours.
    pub(super) fn try_reap(&mut self, main: &Main) -> io::Result<()> {
        let now = main.started.elapsed();
        self.died.get_or_insert(now);
        match child::reap_now(main.pid)? {
            Some((exit, used)) => (self.exit, self.used) = (Some(exit), used),
            None => (self.tried, self.pause) = (now, (self.pause * 2).clamp(PAUSES.0, PAUSES.1)),
        }
        Ok(())
    }

    /// Who holds it up, if that has lasted long and was not told before.
    pub(super) fn tracer_to_tell(&mut self, main: &Main) -> Option<Ended> {
        let long = self.died.is_some_and(|died| self.tried >= died + TRACERS_TIME);
        if self.told || !self.is_held() || !long {
            return None;
        }
        self.told = true;
        let tracer = Proc::default().tracer(main.pid).ok().flatten()?;
        named([tracer].into_iter()).pop()
    }
}
