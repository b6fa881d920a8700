//! Mistakes that the program could have, to see that the properties catch them.

use crate::machine::{IN_A_RING, Machine};
use crate::properties::{ALONE, CORES_ALONE, CORES_IDLE, CORES_ORDER, FOR_EVER, ORDER, OUTSIDERS, PLACE, VISIBLE};

/// A mistake that the program could have, to see that the properties catch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bug {
    /// Whoever wakes starts, without looking at the queue again.
    NoSecondLook,
    /// The ticket gets its name before it is locked.
    PublishBeforeLocking,
    /// The number is chosen before the directory is locked.
    NumberOutsideTheLock,
    /// At the end the ticket goes before the lock file is let go.
    TicketRemovedBeforeTheLock,
    /// There is no guard.
    NoGuard,
    /// Orphans are looked for before the lock file is taken.
    LockAfterOrphans,
    /// Who was stopped, and may have been passed, looks for orphans only ahead.
    SearchAheadOnly,
    /// A newcomer removes the ticket of a waiter that was stopped.
    StoppedCleaned,
    /// A waiter comes back from ^Z without locking the directory.
    BackWithoutTheLock,
    /// Cores are chosen and recorded without the directory's lock.
    CoresWithoutTheLock,
    /// Who asks for few enough cores is served before those who asked earlier.
    SmallerFirst,
    /// What is left of a dead job does not count as having its cores.
    OrphansCoresFree,
    /// Whoever is stopped has its cores still when it comes back.
    CoresKeptWhileStopped,
    /// A waiter comes back to its place before a job that has cores by now.
    BackBeforeCores,
    /// Of those that have cores, only one is waited for.
    OneOfThemAwaited,
    /// Who is served goes on holding the part of its ticket's lock that says that it asks.
    ServedStillAsks,
}

impl Bug {
    pub(crate) const ALL: [Self; 16] = [
        Self::NoSecondLook,
        Self::PublishBeforeLocking,
        Self::NumberOutsideTheLock,
        Self::TicketRemovedBeforeTheLock,
        Self::NoGuard,
        Self::LockAfterOrphans,
        Self::SearchAheadOnly,
        Self::StoppedCleaned,
        Self::BackWithoutTheLock,
        Self::CoresWithoutTheLock,
        Self::SmallerFirst,
        Self::OrphansCoresFree,
        Self::CoresKeptWhileStopped,
        Self::BackBeforeCores,
        Self::OneOfThemAwaited,
        Self::ServedStillAsks,
    ];

    /// The promise that it breaks.
    pub(crate) fn breaks(self) -> &'static str {
        match self {
            Self::NoSecondLook | Self::PublishBeforeLocking | Self::NumberOutsideTheLock => ORDER,
            Self::StoppedCleaned => PLACE,
            Self::BackWithoutTheLock => ORDER,
            Self::TicketRemovedBeforeTheLock => VISIBLE,
            Self::NoGuard => OUTSIDERS,
            Self::LockAfterOrphans | Self::SearchAheadOnly => ALONE,
            Self::CoresWithoutTheLock | Self::OrphansCoresFree | Self::CoresKeptWhileStopped => CORES_ALONE,
            Self::SmallerFirst => CORES_ORDER,
            Self::BackBeforeCores => FOR_EVER,
            // Whoever has cores gives them back some day: such a waiter starts late, not never.
            Self::OneOfThemAwaited | Self::ServedStillAsks => CORES_IDLE,
        }
    }

    /// Where it shows.
    pub(crate) fn machine(self) -> Machine {
        let (kills, cancels, stops, outsider, cores) = match self {
            Self::SearchAheadOnly => (2, 0, 1, false, 0),
            Self::StoppedCleaned | Self::BackWithoutTheLock => (2, 0, 1, true, 0),
            Self::OrphansCoresFree => (2, 0, 0, false, 2),
            Self::CoresKeptWhileStopped => (0, 0, 1, true, 2),
            Self::BackBeforeCores => (0, 0, 2, true, 2),
            // Only a waiter that comes back can get between: all others wait for their turn, and so does a newcomer.
            Self::CoresWithoutTheLock => (0, 0, 1, false, 2),
            Self::SmallerFirst | Self::OneOfThemAwaited | Self::ServedStillAsks => (0, 0, 0, false, 2),
            _ => (2, 1, 0, true, 0),
        };
        let these = if self == Self::BackBeforeCores { IN_A_RING } else { &[] };
        Machine { jobs: 3, kills, cancels, stops, outsider, cores, these, bug: Some(self) }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoSecondLook => "no second look after waking",
            Self::PublishBeforeLocking => "publish before locking",
            Self::NumberOutsideTheLock => "number outside the lock",
            Self::TicketRemovedBeforeTheLock => "ticket removed before the lock",
            Self::NoGuard => "guard dropped",
            Self::LockAfterOrphans => "lock after the orphan check",
            Self::SearchAheadOnly => "orphans only looked for ahead",
            Self::StoppedCleaned => "stopped waiter's ticket cleaned",
            Self::BackWithoutTheLock => "back from ^Z without the lock",
            Self::CoresWithoutTheLock => "cores without the lock",
            Self::SmallerFirst => "smaller requests first",
            Self::OrphansCoresFree => "an orphan's cores count as free",
            Self::CoresKeptWhileStopped => "cores kept while stopped",
            Self::BackBeforeCores => "back from ^Z before cores",
            Self::OneOfThemAwaited => "one of two with cores awaited",
            Self::ServedStillAsks => "served, and still asks",
        }
    }
}
