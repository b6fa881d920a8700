//! What a job says of itself in its ticket, for others and for whoever has to end it if we are killed.

use std::path::{Path, PathBuf};

use super::Error;
use super::job::{Job, Kept};
use crate::cgroup::Backend;
use crate::cgroup::legacy::Site;
use crate::limit::Kind;
use crate::lock::Change;
use crate::pin::Partition;

impl Job<'_> {
    /// A group that no ticket names would be invisible to the next perflock: without this nothing is started.
    pub(super) fn record_group(&self, backend: Backend, path: Option<PathBuf>) -> Result<(), Error> {
        self.record_group_in(backend, path, None)
    }

    /// The same; `site` has the job's groups where they are in hierarchies of v1.
    pub(super) fn record_group_in(
        &self,
        backend: Backend,
        path: Option<PathBuf>,
        site: Option<&Site>,
    ) -> Result<(), Error> {
        self.run.account.tracked_by(backend);
        match self.hold {
            Some(hold) => {
                let hierarchy = site.map(|site| site.hierarchy().to_owned());
                let cpuacct = site.and_then(Site::cpuacct_path).map(Path::to_owned);
                let cpuset = self.pinning.and_then(|pinning| Some(pinning.v1.as_ref()?.path.clone()));
                // Without a group of its own it has none for its limits.
                let limits = |kind| self.v1_path(kind).filter(|_| backend != Backend::Subreaper);
                let (memory, pids) = (limits(Kind::Memory), limits(Kind::Processes));
                let backend = backend.name().to_owned();
                Ok(hold.ticket().record(&Change::Group { backend, path, hierarchy, cpuacct, cpuset, memory, pids })?)
            }
            None => Ok(()),
        }
    }

    /// Only what others are shown: a full disk must not end a job that runs.
    pub(super) fn record(&self, change: &Change) {
        if let Some(hold) = self.hold {
            let _ = hold.ticket().record(change);
        }
    }

    /// Says in ticket and report where the job runs and what it may have.
    pub(super) fn record_kept(&self, kept: &Kept, partition: Option<Partition>) -> Result<(), Error> {
        if let (Some(pinning), Some(way)) = (self.pinning, &kept.way) {
            let told = pinning.told(way, partition);
            self.run.account.pinned(&told, pinning.pin.reserved.as_ref());
            if let Some(hold) = self.hold {
                hold.ticket().record(&Change::Pinned(told))?;
            }
        }
        self.record_limits(&kept.limited)
    }
}
