//! The wait for the machine, from the ticket to the lock file, as a pure machine around [`decide`](super::decide): the
//! program and the model of the queue do what it says, and tell it what came of it.

use super::cores::Cores;
use super::decide::{Decision, Target};

/// What a waiter has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// Look at the queue and decide.
    Look,
    /// Nobody who came earlier is in the way: ask for cores. They come before the lock file, or plain flock(1) would be shut
    /// out while they are waited for.
    AskForCores,
    /// Take the lock file if that needs no waiting.
    TryLock,
    /// Sleep until this is free. The lock file is then ours; of a ticket nothing is kept.
    Sleep(Target),
    /// With the lock file ours, look and decide once more.
    LookAgain,
    /// Somebody came before us: let the lock file go, and [`Waiting::Look`].
    LetGo,
    /// The machine is ours.
    Granted,
}

impl Waiting {
    /// After [`Waiting::Look`] or [`Waiting::LookAgain`]; `lacks_cores`: it wants cores of its own, and has none yet.
    pub fn looked(self, decision: Decision, lacks_cores: bool) -> Self {
        match (self, decision) {
            // The second look. Holders do not matter now; we have what they would have had to have.
            (Self::LookAgain, Decision::Start | Decision::Wait(Target::LockFile)) => Self::Granted,
            // A waiter that was stopped may have come back before us while we slept.
            (Self::LookAgain, Decision::Wait(_)) => Self::LetGo,
            (_, Decision::Start | Decision::Wait(Target::LockFile)) if lacks_cores => Self::AskForCores,
            // Holders ahead may be shared with us, or about to unlink their tickets: the lock file knows.
            (_, Decision::Start | Decision::Wait(Target::LockFile)) => Self::TryLock,
            (_, Decision::Wait(target)) => Self::Sleep(target),
        }
    }

    /// After [`Waiting::AskForCores`].
    pub fn asked<T>(cores: &Cores<T>) -> Self {
        match cores {
            Cores::Take(_) => Self::TryLock,
            Cores::Wait(target) => Self::Sleep(*target),
        }
    }

    /// After [`Waiting::TryLock`].
    pub fn tried(got: bool) -> Self {
        if got { Self::Granted } else { Self::Sleep(Target::LockFile) }
    }

    /// After [`Waiting::Sleep`] ended because the target was free. Whatever was decided before is old by now.
    pub fn woke(target: Target) -> Self {
        match target {
            Target::LockFile => Self::LookAgain,
            _ => Self::Look,
        }
    }
}
