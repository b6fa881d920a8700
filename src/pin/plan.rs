//! What was asked for, held against the machine: everything that can never be had fails here, before the queue is joined.

use std::path::Path;

use super::allocate::{self, Lease, allocate};
use super::request::{Choice, Processors, Request, Word, Words};
use super::topology::{self, Node, Topology};
use super::{CpuList, request};
use crate::error::FileError;
use crate::machine;

/// Why a job cannot be pinned as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The machine cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It does not have what was asked for, or not for us: a sentence.
    #[error("{0}")]
    NotThere(String),
}

/// Where a job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Processors.
    pub cpus: CpuList,
    /// Memory nodes, at least one.
    pub memory_nodes: CpuList,
    /// These are not all that it could have.
    pub memory_is_bound: bool,
    /// The memory nodes were asked for by name.
    pub memory_is_asked_for: bool,
    /// Cores of its own, with every thread.
    pub reserved: Option<CpuList>,
}

/// What a job will be pinned to, once it is its turn.
#[derive(Clone, Debug)]
pub struct Plan {
    processors: Planned,
    nodes: Vec<Node>,
    /// Memory nodes that were asked for.
    mems: Option<CpuList>,
    /// Memory nodes that we may use.
    allowed_mems: CpuList,
    /// Nobody else is to use the processors.
    pub isolated: bool,
    /// How strong the pin has to be.
    pub choice: Choice,
}

#[derive(Clone, Debug)]
enum Planned {
    These(CpuList),
    Cores { topology: Topology, allowed: CpuList, count: usize, smt: bool },
}

impl Plan {
    /// Holds a request against the machine whose `/sys` and `/proc` are below `root`.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn new(request: &Request, root: &Path) -> Result<Self, PinError> {
        let online = topology::online(root)?;
        let (cpus, mems) = machine::allowed(root);
        let ours = |list: Option<String>| list.and_then(|list| list.parse::<CpuList>().ok());
        // What is offline may be among what is allowed.
        let allowed = ours(cpus).map_or_else(|| online.clone(), |cpus| cpus.shared_with(&online));
        let (nodes, processors) = match &request.processors {
            Some(Processors::Cores { count, smt }) => {
                let topology = Topology::read(root)?;
                let there = allocate::fits(&topology, &allowed);
                if there < *count {
                    return Err(too_many_cores(*count, there, &topology, &allowed));
                }
                (topology.nodes.clone(), Planned::Cores { topology, allowed, count: *count, smt: *smt })
            }
            Some(Processors::List(words)) => {
                let nodes = topology::nodes(root)?;
                let cpus = processors(words, root, &nodes, &online, &allowed)?;
                (nodes, Planned::These(cpus))
            }
            None => (topology::nodes(root)?, Planned::These(allowed)),
        };
        let with_memory: CpuList = nodes.iter().filter(|node| node.has_memory).map(|node| node.number).collect();
        let allowed_mems = ours(mems).map_or_else(|| with_memory.clone(), |mems| mems.shared_with(&with_memory));
        let mems = request.mems.as_ref().map(|words| memory(words, &with_memory, &allowed_mems)).transpose()?;
        Ok(Self { processors, nodes, mems, allowed_mems, isolated: request.isolated, choice: request.choice })
    }

    /// How many cores of its own are asked for.
    pub fn cores(&self) -> Option<usize> {
        match self.processors {
            Planned::Cores { count, .. } => Some(count),
            Planned::These(_) => None,
        }
    }

    /// How many cores are not among `taken`, and how many there are.
    pub fn cores_free(&self, taken: &CpuList) -> Option<(usize, usize)> {
        match &self.processors {
            Planned::Cores { topology, allowed, .. } => {
                let fit = |cpus: &CpuList| allocate::fits(topology, cpus);
                Some((fit(&allowed.without(taken)), fit(allowed)))
            }
            Planned::These(_) => None,
        }
    }

    /// Chooses cores, none of which is among `taken`, and if there are enough none among `used`.
    pub fn pick(&self, taken: &CpuList, used: &CpuList) -> Option<Lease> {
        let Planned::Cores { topology, allowed, count, smt } = &self.processors else { return None };
        let free = allowed.without(taken);
        allocate(topology, &free.without(used), *count, *smt).or_else(|| allocate(topology, &free, *count, *smt))
    }

    /// Where the job runs, which has cores of its own by `lease`, or has the machine alone, or is a part of another job.
    /// `None` if there are no longer so many.
    pub fn pin(&self, lease: Option<&Lease>) -> Option<Pin> {
        let (cpus, reserved) = match (&self.processors, lease) {
            (Planned::These(cpus), _) => (cpus.clone(), None),
            (Planned::Cores { .. }, lease) => {
                let all = CpuList::default();
                let lease = lease.cloned().or_else(|| self.pick(&all, &all))?;
                (lease.cpus, Some(lease.reserved))
            }
        };
        let near = topology::memory_of(&self.nodes, &cpus).shared_with(&self.allowed_mems);
        let near = if near.is_empty() { self.allowed_mems.clone() } else { near };
        let memory_nodes = self.mems.clone().unwrap_or(near);
        let memory_is_bound = memory_nodes != self.allowed_mems;
        Some(Pin { cpus, memory_nodes, memory_is_bound, memory_is_asked_for: self.mems.is_some(), reserved })
    }
}

fn too_many_cores(count: usize, there: usize, topology: &Topology, allowed: &CpuList) -> PinError {
    let all = topology.cores.len();
    let cores = |count: usize| crate::text::count(count, "core");
    let why = if all >= count {
        format!(
            "this process may use only cpus {allowed} of them (taskset, or a cpuset around it), which are {} whole",
            cores(there)
        )
    } else {
        "it can never have more".to_owned()
    };
    PinError::NotThere(format!("{} were asked for, and this machine has {}: {why}", cores(count), cores(all)))
}

/// The processors that were asked for by name.
fn processors(
    words: &Words,
    root: &Path,
    nodes: &[Node],
    online: &CpuList,
    allowed: &CpuList,
) -> Result<CpuList, PinError> {
    let mut all = CpuList::default();
    for word in &words.0 {
        all = all.and(&match word {
            Word::All => allowed.clone(),
            Word::Numbers(numbers) => numbers.clone(),
            Word::Node(number) => {
                let node = nodes.iter().find(|node| node.number == *number).ok_or_else(|| {
                    let there: CpuList = nodes.iter().map(|node| node.number).collect();
                    PinError::NotThere(format!("there is no node{number}: this machine has nodes {there}"))
                })?;
                if node.cpus.is_empty() {
                    return Err(PinError::NotThere(format!(
                        "node{number} has memory only, and no processor that is online"
                    )));
                }
                node.cpus.clone()
            }
        });
    }
    let gone = all.without(online);
    if !gone.is_empty() {
        let present = topology::present(root).unwrap_or_default();
        let absent = gone.without(&present);
        return Err(PinError::NotThere(if absent.is_empty() {
            format!("cpus {gone} are offline (online are {online})")
        } else {
            format!("this machine has no cpus {absent} (online are {online})")
        }));
    }
    if !all.is_within(allowed) {
        return Err(PinError::NotThere(format!(
            "cpus {} are not for this process, which may use {allowed} (taskset, or a cpuset around it)",
            all.without(allowed)
        )));
    }
    Ok(all)
}

/// The memory nodes that were asked for.
fn memory(words: &Words, with_memory: &CpuList, allowed: &CpuList) -> Result<CpuList, PinError> {
    let mut all = CpuList::default();
    for word in &words.0 {
        all = all.and(&match word {
            request::Word::All => allowed.clone(),
            request::Word::Node(number) => [*number].into_iter().collect(),
            request::Word::Numbers(numbers) => numbers.clone(),
        });
    }
    if all.is_within(allowed) {
        return Ok(all);
    }
    let missing = all.without(with_memory);
    Err(PinError::NotThere(if missing.is_empty() {
        format!(
            "memory nodes {} are not for this process, which may use {allowed} (a cpuset around it)",
            all.without(allowed)
        )
    } else {
        format!("this machine has no memory nodes {missing} (with memory are {with_memory})")
    }))
}
