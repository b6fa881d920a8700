//! What the machine's processors are, read from `/sys`.

use std::path::Path;

use super::CpuList;
use crate::error::FileError;

/// A physical core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    /// Its threads that are online, as processor numbers.
    pub cpus: CpuList,
    /// The memory node that it belongs to.
    pub node: u32,
    /// The lowest processor number that it shares its last-level cache with: equal numbers, same cache.
    pub cache: u32,
    /// Its socket.
    pub package: u32,
    /// How fast it is, among cores of one machine: on a machine with fast and slow ones, the fast have the higher number.
    pub speed: u32,
}

/// A memory node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its number.
    pub number: u32,
    /// Its processors that are online; none where it has memory only.
    pub cpus: CpuList,
    /// It has memory.
    pub has_memory: bool,
}

/// The cores of a machine, by their lowest processor number, and its memory nodes, by their number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Topology {
    /// Cores with at least one thread online.
    pub cores: Vec<Core>,
    /// Memory nodes.
    pub nodes: Vec<Node>,
}

impl Topology {
    /// Reads the machine whose `/sys` is below `root`.
    ///
    /// # Errors
    /// A file that every machine has cannot be read.
    pub fn read(_root: &Path) -> Result<Self, FileError> {
        Ok(Self::default())
    }
}

/// The memory nodes of the machine whose `/sys` is below `root`; one with every processor that is online where the kernel
/// knows none.
///
/// # Errors
/// A file that every machine has cannot be read.
pub fn nodes(_root: &Path) -> Result<Vec<Node>, FileError> {
    Ok(Vec::new())
}

/// The processors that are online on the machine whose `/sys` is below `root`.
///
/// # Errors
/// The file cannot be read.
pub fn online(_root: &Path) -> Result<CpuList, FileError> {
    Ok(CpuList::default())
}

/// The memory nodes nearest to these processors that have memory: their own, as far as those have any, else every one.
pub fn memory_of(_nodes: &[Node], _cpus: &CpuList) -> CpuList {
    CpuList::default()
}
