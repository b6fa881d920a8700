//! Pinning: jobs on cores of their own.
//!
//! # Theory of operation
//!
//! What was asked for ([`request`]) and what the machine is ([`topology`]) make a [`plan`] before the queue is joined: whatever
//! can never be had fails at once. A list of processors is then final. Cores are chosen when it is the job's turn
//! ([`allocate`]): for an exclusive job among all, for a shared one among those that no other job has to itself
//! ([`crate::lock::cores`]).
//!
//! A **hard** pin is a cpuset ([`crate::cgroup::cpuset`]): members cannot leave it, whatever they ask sched_setaffinity(2) for.
//! Where no cpuset is ours to make, a **soft** pin is what the command inherits: its affinity, and its memory policy. It keeps
//! who does not know better. The command's affinity is set in both cases, since a process that is born in a group is not told
//! its cpuset by every kernel (before Linux 6.3).

pub mod allocate;
pub mod cpulist;
pub mod plan;
pub mod request;
pub mod topology;

use serde::{Deserialize, Serialize};

pub use allocate::Lease;
pub use cpulist::CpuList;
pub use plan::{Pin, PinError, Plan};
pub use request::{Choice, Processors, Request, Words};

/// How a job is kept where it was told to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strength {
    /// By a cpuset: it cannot leave.
    Hard,
    /// By what it inherited, sched_setaffinity(2) and set_mempolicy(2): it can.
    Soft,
}

impl Strength {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
        }
    }
}

/// A cpuset whose processors nobody else uses, not even who asked for nothing: cgroup-v2.rst, `cpuset.cpus.partition`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Partition {
    /// And without load balancing between them.
    Isolated,
    /// With it.
    Root,
}

impl Partition {
    /// The kernel's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Root => "root",
        }
    }
}
