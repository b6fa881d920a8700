//! Where jobs can run, by perflock's own reading of the machine.

use std::path::Path;

use perflock::pin::topology::Topology;
use perflock::pin::{CpuList, allocate};

use crate::Failure;

/// Where jobs can run.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// The processors that we may use.
    pub(crate) cpus: CpuList,
    /// Whole cores among them.
    pub(crate) cores: usize,
}

impl Room {
    /// Looks at this machine.
    ///
    /// # Errors
    /// The kernel does not say what it is.
    pub(crate) fn read() -> Result<Self, Failure> {
        let root = Path::new("/");
        let topology = Topology::read(root).map_err(|error| format!("cannot read the machine: {error}"))?;
        let online: CpuList = topology.cores.iter().flat_map(|core| core.cpus.iter()).collect();
        let (allowed, _) = perflock::machine::allowed(root);
        let allowed = allowed.and_then(|list| list.parse::<CpuList>().ok());
        let cpus = allowed.ok_or("where this process may run is unknown")?.shared_with(&online);
        Ok(Self { cores: allocate::fits(&topology, &cpus), cpus })
    }
}
