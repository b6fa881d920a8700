//! What a run knows before it asks for the machine.

use std::cell::OnceCell;

use super::Error;
use super::limiting::Limiting;
use crate::cgroup::controller::{self, Controller, V1Offer};
use crate::cgroup::{self, Detected};
use crate::history::expect::Stage;
use crate::lock::{Other, Record};
use crate::pin::Plan;
use crate::procfs::Proc;
use crate::supervisor::command::Command;
use crate::supervisor::signals::Signals;

/// What this machine and this process are, found out once.
pub(super) struct Here {
    pub(super) proc: Proc,
    pub(super) mountinfo: String,
    pub(super) boot: String,
    pub(super) pid_namespace: u64,
    pub(super) cgroup_namespace: u64,
    /// By controller; asked for by jobs alone that are pinned or limited.
    v1_offers: [OnceCell<V1Offer>; 3],
}

/// What a run is, found out before it asks for the machine.
#[derive(Clone, Copy)]
pub(super) struct Prepared<'a> {
    pub(super) command: &'a Command,
    /// Where it is to run, if that was asked for.
    pub(super) plan: Option<&'a Plan>,
    /// What it may have at most, if it is limited.
    pub(super) limiting: Option<&'a Limiting<'a>>,
    pub(super) here: &'a Here,
    pub(super) signals: &'a Signals,
}

impl Here {
    pub(super) fn look() -> Result<Self, Error> {
        let proc = Proc::default();
        let unreadable = |error| Error::System { what: "read /proc (is it mounted?)", source: error };
        Ok(Self {
            mountinfo: cgroup::detect::own_mountinfo(),
            boot: proc.boot_id().map_err(unreadable)?,
            pid_namespace: proc.own_namespace("pid").unwrap_or(0),
            // Kernels without cgroup namespaces have one for all.
            cgroup_namespace: proc.own_namespace("cgroup").unwrap_or(0),
            v1_offers: Default::default(),
            proc,
        })
    }

    /// What the v1 hierarchy of a controller offers.
    pub(super) fn v1_offer(&self, controller: Controller) -> &V1Offer {
        let look = || controller::v1_offer(&self.proc, &self.mountinfo, controller);
        self.v1_offers[controller as usize].get_or_init(look)
    }

    /// What a job ahead of us is at.
    pub(super) fn stage(&self, job: &Other) -> Stage {
        let Record { joined, granted_usec, stopped, .. } = &job.record;
        let Some(granted_usec) = *granted_usec else {
            return match (stopped, joined.cores) {
                (true, _) => Stage::Passed,
                (false, Some(_)) => Stage::WantsCores,
                (false, None) => Stage::Waits,
            };
        };
        let is_foreign = self.pid_namespace != joined.pid_namespace;
        // What a ticket says of another user's process is not believed.
        let supervisor = joined
            .supervisor(&self.proc)
            .filter(|stat| self.boot == joined.boot && self.proc.uid(stat.pid).is_ok_and(|uid| uid == job.uid));
        match supervisor.map(|stat| stat.state) {
            _ if is_foreign => Stage::Holds(crate::clock::since(granted_usec)),
            None | Some('T' | 't' | 'Z') => Stage::Stuck,
            Some(_) => Stage::Holds(crate::clock::since(granted_usec)),
        }
    }

    /// Who became the user that a job runs as, if its supervisor is a process that we see.
    pub(super) fn login_uid(&self, record: &Record) -> Option<u32> {
        let joined = &record.joined;
        let same = self.boot == joined.boot && self.pid_namespace == joined.pid_namespace;
        joined.supervisor(&self.proc).filter(|_| same).and_then(|stat| self.proc.login_uid(stat.pid))
    }
}

/// What to say where only the fallback is left.
pub(super) fn weaker(detected: &Detected) -> String {
    format!(
        "warning: no job group can be made here ({}); processes that hide from their parent may survive, and CPU time is \
         not counted ({}; --cgroup=none silences this)",
        detected.reasons(),
        detected.cure()
    )
}

/// The same where the fallback was refused.
pub(super) fn no_group(detected: &Detected) -> Error {
    Error::Refused(format!(
        "no job group can be made here ({}); {}, or use --cgroup=auto for weaker tracking",
        detected.reasons(),
        detected.cure()
    ))
}
