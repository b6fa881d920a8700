//! Killing a v2 group where the kernel has no `cgroup.kill` (Linux 5.2 to 5.13): the group is frozen, so that nobody forks or
//! moves, its members are sent SIGKILL, and it is thawed. Kernel side: Documentation/admin-guide/cgroup-v2.rst, `cgroup.freeze`.
//!
//! Unlike a v1 freezer this one does not hold up SIGKILL: a frozen process dies of it, in a sub-group that was frozen by the job
//! as well. Who is there when not all are frozen in time, since one waits in the kernel or for a processor, is killed all the same.
//! The group then stays frozen until the next round, which finds what was forked meanwhile: thawed, a job of processes that fork
//! would be ahead again. Whoever kills a group does it until the group is empty.
//!
//! It is weaker than `cgroup.kill` in two ways. A member that runs as another user is not ours to kill unless we are root
//! (kill(2)): `sudo` inside a plain user's job holds the machine until it ends. And if we die between freezing and thawing, the
//! members stay frozen until the guard, or the next perflock, kills them.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::process::Signal;

use super::{JobGroup, signal_members, usage};

/// How long a round waits for all members to be frozen. Each needs a processor once, to notice.
pub const FREEZES_WITHIN: Duration = Duration::from_millis(100);

/// The file in a group's directory that freezes it, and everything below.
pub(super) const FILE: &str = "cgroup.freeze";

/// Kills the members of `group`, whose directory this is, once. `events` reads its `cgroup.events`.
///
/// # Errors
/// It could not be frozen. Who was there was killed all the same, but may have forked.
pub(super) fn kill(group: &dyn JobGroup, directory: &Path, events: impl Fn() -> String) -> io::Result<()> {
    let file = directory.join(FILE);
    let freezes = fs::write(&file, "1");
    let frozen = freezes.is_ok() && gets_frozen(group, events);
    signal_members(group, &group.members(), Signal::KILL);
    if frozen {
        // Who was not killed, as another user's process, must not stay like that.
        let _ = fs::write(&file, "0");
    }
    freezes
}

/// Whether every member is frozen in time. Sleeps until the kernel reports it, which it does at once, or 10 ms after its last
/// report. Looking for it instead would wake us all the time where a member is not to be frozen.
fn gets_frozen(group: &dyn JobGroup, events: impl Fn() -> String) -> bool {
    let end = Instant::now() + FREEZES_WITHIN;
    while !is_frozen(&events()) {
        if Instant::now() >= end {
            return false;
        }
        let mut fds: Vec<PollFd<'_>> =
            group.changes().map(|fd| PollFd::new(fd, PollFlags::POLLPRI)).into_iter().collect();
        // Ends early for a signal: then it is looked at again.
        let _ = crate::poll::until(&mut fds, Some(end));
    }
    true
}

/// Whether every member is frozen, by what `cgroup.events` says.
fn is_frozen(events: &str) -> bool {
    usage::keyed(events, "frozen") == Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_one_is_frozen() {
        assert!(is_frozen("populated 1\nfrozen 1\n"));
        for events in ["populated 1\nfrozen 0\n", "populated 1\n", "", "frozen x\n"] {
            assert!(!is_frozen(events), "{events}");
        }
    }
}
