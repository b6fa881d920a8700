//! Which job is on which processors, and which are free: the map that is shown where a job was told to run somewhere.

use std::fmt;
use std::path::Path;

use super::snapshot::{Job, Snapshot};
use crate::pin::CpuList;
use crate::pin::topology::{self, Node};

/// Processors of one node that the same jobs were told to run on, or have to themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which.
    pub cpus: CpuList,
    /// The jobs' numbers; none where it is free.
    pub jobs: Vec<u64>,
}

/// The map: memory nodes with processors, by number, each in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreMap {
    /// A node's number, and its parts by their lowest processor.
    pub nodes: Vec<(u32, Vec<Part>)>,
}

impl CoreMap {
    /// The map of the machine whose `/sys` is below `root`. `None` where no job was told to run anywhere in particular, or the
    /// kernel does not say what there is.
    pub fn of(snapshot: &Snapshot, root: &Path) -> Option<Self> {
        let places: Vec<(u64, CpuList)> = snapshot.jobs().filter_map(place).collect();
        if places.is_empty() {
            return None;
        }
        Some(Self::new(&topology::nodes(root).ok()?, &places))
    }

    fn new(nodes: &[Node], places: &[(u64, CpuList)]) -> Self {
        let of_node = |node: &Node| {
            let mut parts: Vec<Part> = Vec::new();
            for cpu in node.cpus.iter() {
                let jobs: Vec<u64> =
                    places.iter().filter(|(_, cpus)| cpus.contains(cpu)).map(|&(number, _)| number).collect();
                match parts.iter_mut().find(|part| part.jobs == jobs) {
                    Some(part) => part.cpus.insert(cpu),
                    None => parts.push(Part { cpus: [cpu].into_iter().collect(), jobs }),
                }
            }
            (node.number, parts)
        };
        Self { nodes: nodes.iter().filter(|node| !node.cpus.is_empty()).map(of_node).collect() }
    }

    /// Processors that no job was told to run on.
    pub fn free(&self) -> CpuList {
        let parts = self.nodes.iter().flat_map(|(_, parts)| parts);
        parts.filter(|part| part.jobs.is_empty()).fold(CpuList::default(), |all, part| all.and(&part.cpus))
    }
}

/// Where a job is: the cores that it has to itself, whole, and where it was told to run.
fn place(job: &Job) -> Option<(u64, CpuList)> {
    let cpus = [job.reserved.as_ref(), job.pinned.as_ref().map(|pinned| &pinned.cpus)];
    let all = cpus.into_iter().flatten().fold(CpuList::default(), |all, cpus| all.and(cpus));
    (!all.is_empty()).then_some((job.number, all))
}

/// A line for each node: `cpus of node 0: 0-1 job 3; 2 jobs 4 and 5; 3 free`.
impl fmt::Display for CoreMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (node, parts) in &self.nodes {
            let part = |part: &Part| {
                let numbers: Vec<String> = part.jobs.iter().map(u64::to_string).collect();
                let who = match &numbers[..] {
                    [] => "free".to_owned(),
                    [one] => format!("job {one}"),
                    [first @ .., last] => format!("jobs {} and {last}", first.join(", ")),
                };
                format!("{} {who}", part.cpus)
            };
            let parts: Vec<String> = parts.iter().map(part).collect();
            writeln!(f, "cpus of node {node}: {}", parts.join("; "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_processor_stands_once_with_those_that_are_on_it() {
        let list = |text: &str| text.parse::<CpuList>().unwrap();
        let node = |number, cpus| Node { number, cpus: list(cpus), has_memory: true };
        let nodes = [node(0, "0-3,8-11"), node(1, "4-7,12-15"), node(2, "")];
        let map = CoreMap::new(&nodes, &[(3, list("0-1,8-9")), (4, list("9-10")), (7, list("2"))]);
        let expected = "cpus of node 0: 0-1,8 job 3; 2 job 7; 3,11 free; 9 jobs 3 and 4; 10 job 4\n\
            cpus of node 1: 4-7,12-15 free\n";
        assert_eq!(map.to_string(), expected);
        assert_eq!(map.free(), list("3-7,11-15"));
    }
}
