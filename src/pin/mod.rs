//! Pinning: jobs on cores of their own.

pub mod allocate;
pub mod cpulist;
pub mod topology;

pub use cpulist::CpuList;
