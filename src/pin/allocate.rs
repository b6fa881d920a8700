//! Choosing whole cores, as a pure function.

use super::CpuList;
use super::topology::Topology;

/// Cores that a job has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Every thread of its cores that is online: nobody else who asks for cores gets one of them.
    pub reserved: CpuList,
    /// Where it runs: one thread of each, or all.
    pub cpus: CpuList,
}

/// Chooses `count` cores, none of whose threads is outside of `free`: with their other threads too if `smt`, else on the
/// lowest of each. `None` if there are not so many.
pub fn allocate(_topology: &Topology, _free: &CpuList, _count: usize, _smt: bool) -> Option<Lease> {
    None
}
