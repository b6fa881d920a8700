//! The named steps of a run, in their order. A crash may come after each of them, and the promises have to hold all the
//! same: the model of the queue (`tests/model`) is made of these steps, and with the feature `crash-points`, which only
//! tests switch on, the program kills itself or its guard at one of them.

use std::fmt;

#[cfg(feature = "crash-points")]
mod crash;

/// Something that a supervisor or its guard has just done, and that others can see or that a crash leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// The ticket has a name in the queue directory, which is still locked.
    TicketPublished,
    /// The lock file is ours, and nobody came before us meanwhile.
    LockTaken,
    /// The ticket says so.
    Granted,
    /// No member of a job that may not run beside ours is left of those that lost supervisor and guard.
    OrphansEnded,
    /// The ticket names the job group. In a scope, whose path systemd chooses, this comes after [`Step::GroupMade`].
    GroupNamed,
    /// The group exists.
    GroupMade,
    /// The guard exists.
    GuardForked,
    /// The command's first process exists, and has not executed the command.
    CommandBorn,
    /// It has.
    Running,
    /// It ended, and was reaped.
    MainEnded,
    /// Members that outlived it were sent TERM.
    LeftoversSignalled,
    /// The group was killed.
    GroupKilled,
    /// The group is empty, its counters are read, and the guard is told to end; in a scope only when the group is gone.
    UsageRead,
    /// The group is gone.
    GroupRemoved,
    /// The lock file is free.
    LockReleased,
    /// So is our place in the queue.
    TicketRemoved,
    /// The guard has seen that its supervisor is dead.
    GuardAlone,
    /// It has killed the group until it was empty.
    GuardEmptied,
    /// It has removed it.
    GuardRemoved,
    /// It has let the lock file go. What is left is to remove the ticket.
    GuardReleased,
}

impl Step {
    /// The supervisor's steps. The two of leftovers are made only where there are some.
    pub const SUPERVISOR: [Self; 16] = [
        Self::TicketPublished,
        Self::LockTaken,
        Self::Granted,
        Self::OrphansEnded,
        Self::GroupNamed,
        Self::GroupMade,
        Self::GuardForked,
        Self::CommandBorn,
        Self::Running,
        Self::MainEnded,
        Self::LeftoversSignalled,
        Self::GroupKilled,
        Self::UsageRead,
        Self::GroupRemoved,
        Self::LockReleased,
        Self::TicketRemoved,
    ];

    /// The steps of a guard whose supervisor died.
    pub const GUARD: [Self; 4] = [Self::GuardAlone, Self::GuardEmptied, Self::GuardRemoved, Self::GuardReleased];

    /// Its name in tables: `ticket-published`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TicketPublished => "ticket-published",
            Self::LockTaken => "lock-taken",
            Self::Granted => "granted",
            Self::OrphansEnded => "orphans-ended",
            Self::GroupNamed => "group-named",
            Self::GroupMade => "group-made",
            Self::GuardForked => "guard-forked",
            Self::CommandBorn => "command-born",
            Self::Running => "running",
            Self::MainEnded => "main-ended",
            Self::LeftoversSignalled => "leftovers-signalled",
            Self::GroupKilled => "group-killed",
            Self::UsageRead => "usage-read",
            Self::GroupRemoved => "group-removed",
            Self::LockReleased => "lock-released",
            Self::TicketRemoved => "ticket-removed",
            Self::GuardAlone => "guard-alone",
            Self::GuardEmptied => "guard-emptied",
            Self::GuardRemoved => "guard-removed",
            Self::GuardReleased => "guard-released",
        }
    }

    /// Called by the program when it has made this step. Does nothing but in builds that are to be crashed.
    #[inline]
    pub(crate) fn reached(self) {
        #[cfg(feature = "crash-points")]
        crash::reached(self);
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
