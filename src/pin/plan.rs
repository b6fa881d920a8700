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

/// What this process may use; `None` where the kernel does not say.
struct Ours<'a> {
    /// Its affinity.
    cpus: Option<CpuList>,
    mems: Option<CpuList>,
    /// Where it could run if it asked to.
    reachable: &'a dyn Fn() -> Option<CpuList>,
}

#[derive(Clone, Debug)]
enum Planned {
    These(CpuList),
    Cores { topology: Topology, allowed: CpuList, count: usize, smt: bool },
}

impl Plan {
    /// Holds a request against the machine whose `/sys` and `/proc` are below `root`. A `nested` job has no more than the one
    /// that it is a part of.
    ///
    /// # Errors
    /// See [`PinError`].
    pub fn new(request: &Request, root: &Path, nested: bool) -> Result<Self, PinError> {
        let (cpus, mems) = machine::limits();
        let reachable = || if nested { None } else { machine::reachable() };
        Self::on(request, root, Ours { cpus, mems, reachable: &reachable })
    }

    fn on(request: &Request, root: &Path, ours: Ours<'_>) -> Result<Self, PinError> {
        let online = topology::online(root)?;
        // What is offline may be among what is allowed.
        let allowed = ours.cpus.map_or_else(|| online.clone(), |cpus| cpus.shared_with(&online));
        let (nodes, processors) = match &request.processors {
            Some(Processors::Cores { count, smt }) => {
                let topology = Topology::of(root, &online);
                let there = allocate::fits(&topology, &allowed);
                if there < *count {
                    return Err(too_many_cores(*count, there, &topology, &allowed));
                }
                (topology.nodes.clone(), Planned::Cores { topology, allowed, count: *count, smt: *smt })
            }
            Some(Processors::List(words)) => {
                let nodes = topology::nodes_of(root, &online);
                let cpus = processors(words, root, &nodes, &online, &allowed, ours.reachable)?;
                (nodes, Planned::These(cpus))
            }
            None => (topology::nodes_of(root, &online), Planned::These(allowed)),
        };
        let with_memory: CpuList = nodes.iter().filter(|node| node.has_memory).map(|node| node.number).collect();
        let allowed_mems = ours.mems.map_or_else(|| with_memory.clone(), |mems| mems.shared_with(&with_memory));
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
    reachable: &dyn Fn() -> Option<CpuList>,
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
    // An affinity is a default, as isolcpus= and init's CPUAffinity= make one; a cpuset is a limit.
    if all.is_within(allowed) || reachable().is_some_and(|reachable| all.is_within(&reachable)) {
        return Ok(all);
    }
    Err(PinError::NotThere(format!(
        "cpus {} are not for this process, which may use {allowed} (a cpuset or a job around it)",
        all.without(allowed)
    )))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Two nodes of two cores, two threads each; cpu 7 is offline, node 2 has memory only, and of node 1 none is for us.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/devices/system/cpu/online", "0-6\n");
        write("sys/devices/system/cpu/present", "0-7\n");
        for cpu in 0..7 {
            write(
                &format!("sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"),
                &format!("{},{}", cpu % 4, cpu % 4 + 4),
            );
        }
        for (node, cpus) in [(0, "0-1,4-5"), (1, "2-3,6-7"), (2, "")] {
            write(&format!("sys/devices/system/node/node{node}/cpulist"), cpus);
        }
        write("sys/devices/system/node/has_memory", "0-2\n");
        root
    }

    fn request(cpus: Option<&str>, cores: Option<usize>, mems: Option<&str>) -> Request {
        let cores = cores.map(|count| Processors::Cores { count, smt: false });
        let list = cpus.map(|cpus| Processors::List(Words::parse(cpus).unwrap()));
        let mems = mems.map(|mems| Words::parse(mems).unwrap());
        Request { processors: list.or(cores), mems, isolated: false, choice: Choice::Auto }
    }

    fn plan(allowed: &str, request: &Request) -> Result<Plan, String> {
        with(allowed, request, "0-6")
    }

    fn with(allowed: &str, request: &Request, reachable: &str) -> Result<Plan, String> {
        let list = |text: &str| Some(text.parse().unwrap());
        let ours = Ours { cpus: list(allowed), mems: list("0,2"), reachable: &|| list(reachable) };
        Plan::on(request, machine().path(), ours).map_err(|error| error.to_string())
    }

    fn pin(allowed: &str, request: &Request) -> (String, String, Option<String>) {
        let pin = plan(allowed, request).unwrap().pin(None).unwrap();
        (pin.cpus.to_string(), pin.memory_nodes.to_string(), pin.reserved.map(|cpus| cpus.to_string()))
    }

    #[test]
    fn lists_are_understood_on_the_machine() {
        let of = |cpus: &str| pin("0-255", &request(Some(cpus), None, None));
        assert_eq!(of("0-1,4"), ("0-1,4".to_owned(), "0".to_owned(), None));
        assert_eq!(of("node0").0, "0-1,4-5");
        assert_eq!(of("all").0, "0-6");
        // Its own memory is not for us: all that is.
        assert_eq!(of("node1"), ("2-3,6".to_owned(), "0,2".to_owned(), None));
        assert_eq!(pin("0-255", &request(None, None, Some("2"))), ("0-6".to_owned(), "2".to_owned(), None));
    }

    #[test]
    fn an_affinity_is_a_default_and_a_cpuset_is_a_limit() {
        assert_eq!(pin("0-1", &request(Some("3"), None, None)).0, "3");
        assert_eq!(pin("0-1", &request(Some("all"), None, None)).0, "0-1");
        let error = with("0-1", &request(Some("2-3"), None, None), "0-2").unwrap_err();
        assert_eq!(error, "cpus 2-3 are not for this process, which may use 0-1 (a cpuset or a job around it)");
    }

    #[test]
    fn cores_are_whole_and_near_and_their_threads_reserved() {
        let (cpus, memory, reserved) = pin("0-255", &request(None, Some(2), None));
        assert_eq!((&*cpus, &*memory, reserved.as_deref()), ("0-1", "0", Some("0-1,4-5")));
        // Those that somebody uses are taken last, and those that are somebody's never.
        let plan = plan("0-255", &request(None, Some(1), None)).unwrap();
        let list = |text: &str| text.parse().unwrap();
        let reserved =
            |taken: &str, used: &str| plan.pick(&list(taken), &list(used)).map(|lease| lease.reserved.to_string());
        assert_eq!(reserved("3", "0-1").as_deref(), Some("2,6"));
        assert_eq!(reserved("2-3", "0-6").as_deref(), Some("0,4"));
        assert_eq!(reserved("0-3", ""), None);
        assert_eq!(plan.cores_free(&list("0,6")), Some((2, 4)));
    }

    #[test]
    fn what_can_never_be_had_is_told_at_once() {
        let why = |request: Request| plan("0-255", &request).unwrap_err();
        assert_eq!(why(request(Some("6-7"), None, None)), "cpus 7 are offline (online are 0-6)");
        assert_eq!(why(request(Some("6-9"), None, None)), "this machine has no cpus 8-9 (online are 0-6)");
        assert_eq!(why(request(Some("node3"), None, None)), "there is no node3: this machine has nodes 0-2");
        assert_eq!(why(request(Some("node2"), None, None)), "node2 has memory only, and no processor that is online");
        assert_eq!(
            why(request(None, Some(5), None)),
            "5 cores were asked for, and this machine has 4 cores: it can never have more"
        );
        assert_eq!(
            plan("0-2,4-6", &request(None, Some(4), None)).unwrap_err(),
            "4 cores were asked for, and this machine has 4 cores: this process may use only cpus 0-2,4-6 of them (taskset, \
             or a cpuset around it), which are 3 cores whole"
        );
        assert_eq!(
            why(request(Some("0"), None, Some("1"))),
            "memory nodes 1 are not for this process, which may use 0,2 (a cpuset around it)"
        );
        assert_eq!(
            why(request(Some("0"), None, Some("5"))),
            "this machine has no memory nodes 5 (with memory are 0-2)"
        );
    }
}
