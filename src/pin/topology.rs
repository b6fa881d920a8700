//! What the machine's processors are, read from `/sys`. Kernel side: Documentation/ABI/stable/sysfs-devices-system-cpu
//! (`topology`), Documentation/ABI/testing/sysfs-devices-system-cpu (`online`, `cache`, `cpu_capacity`),
//! Documentation/ABI/stable/sysfs-devices-node.
//!
//! Only the list of processors that are online is on every machine. All else may be missing, as in a virtual machine,
//! in a container or with an older kernel, and is then taken for the simplest that it can be: a processor is a core of
//! its own, a node has one cache, the machine has one node and one package, every node has memory, all cores are
//! equally fast. Whatever the files say, each processor that is online is in exactly one core.
//!
//! Few files are read, since a job waits for them: a processor that is already known as somebody's thread is not asked
//! again, nor one whose cache is known about its cache.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

use super::CpuList;
use crate::error::FileError;
use crate::procfs;

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
    /// How fast it is, among cores of one machine: of fast and slow ones, the fast have the higher number.
    pub speed: u32,
}

/// A memory node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its number.
    pub number: u32,
    /// Its processors that are online; none where it has memory only. A processor may be in several: those that the
    /// kernel makes up for `numa=fake` share theirs.
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
    pub fn read(root: &Path) -> Result<Self, FileError> {
        Ok(Self::of(root, &online(root)?))
    }

    /// The same of these processors, which are online.
    pub fn of(root: &Path, online: &CpuList) -> Self {
        let nodes = nodes_of(root, online);
        let speeds = Speeds::read(root);
        let mut known = CpuList::default();
        let mut caches = BTreeMap::new();
        let mut cores = Vec::new();
        for cpu in online.iter() {
            if known.contains(cpu) {
                continue;
            }
            let dir = root.join(format!("sys/devices/system/cpu/cpu{cpu}"));
            // Lists may name processors that are offline, which have no files themselves.
            let cpus = threads(&dir, cpu).shared_with(online).without(&known);
            known = known.and(&cpus);
            let own = nodes.iter().find(|node| node.cpus.contains(cpu)).or(nodes.first());
            if !caches.contains_key(&cpu) {
                let group = last_cache(&dir, cpu).unwrap_or_default().shared_with(online);
                caches.extend(group.iter().filter_map(|member| Some((member, group.first()?))));
            }
            cores.push(Core {
                node: own.map_or(0, |node| node.number),
                cache: caches.get(&cpu).copied().or_else(|| own?.cpus.first()).unwrap_or(cpu),
                // -1 where the machine does not say.
                package: value(&dir.join("topology/physical_package_id")).unwrap_or(0),
                speed: speeds.of(&dir, cpu),
                cpus,
            });
        }
        Self { cores, nodes }
    }
}

/// The memory nodes of the machine whose `/sys` is below `root`; one with every processor that is online where the
/// kernel knows none.
///
/// # Errors
/// A file that every machine has cannot be read.
pub fn nodes(root: &Path) -> Result<Vec<Node>, FileError> {
    Ok(nodes_of(root, &online(root)?))
}

/// The processors that are online on the machine whose `/sys` is below `root`.
///
/// # Errors
/// The file cannot be read.
pub fn online(root: &Path) -> Result<CpuList, FileError> {
    let path = root.join("sys/devices/system/cpu/online");
    let bytes = procfs::read(&path).map_err(FileError::on("read", &path))?;
    let list = String::from_utf8_lossy(&bytes).parse();
    list.map_err(|why| FileError::on("read", &path)(io::Error::new(io::ErrorKind::InvalidData, why)))
}

/// The processors that the machine has, online or not, below `root`. `None` if the kernel does not say.
pub fn present(root: &Path) -> Option<CpuList> {
    value(&root.join("sys/devices/system/cpu/present"))
}

/// The memory nodes nearest to these processors that have memory: their own, as far as those have any, else every one.
pub fn memory_of(nodes: &[Node], cpus: &CpuList) -> CpuList {
    let with_memory = nodes.iter().filter(|node| node.has_memory);
    let own: CpuList = with_memory.clone().filter(|node| node.cpus.meets(cpus)).map(|node| node.number).collect();
    if own.is_empty() { with_memory.map(|node| node.number).collect() } else { own }
}

/// The same of these processors, which are online.
pub fn nodes_of(root: &Path, online: &CpuList) -> Vec<Node> {
    let dir = root.join("sys/devices/system/node");
    // A machine whose nodes all have no memory would not run.
    let memory_list = |name: &&str| value(&dir.join(name)).filter(|nodes: &CpuList| !nodes.is_empty());
    let with_memory = ["has_memory", "has_normal_memory"].iter().find_map(memory_list);
    let node = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let cpus = value::<CpuList>(&entry.path().join("cpulist")).unwrap_or_default().shared_with(online);
        let has_memory = with_memory.as_ref().is_none_or(|nodes| nodes.contains(number));
        Some(Node { number, cpus, has_memory })
    };
    let mut nodes: Vec<Node> = fs::read_dir(&dir).into_iter().flatten().flatten().filter_map(node).collect();
    nodes.sort_by_key(|node| node.number);
    if nodes.is_empty() {
        nodes.push(Node { number: 0, cpus: online.clone(), has_memory: true });
    }
    nodes
}

/// The threads of the core of `cpu`, offline ones perhaps among them. `core_cpus_list` is the newer name (Linux 5.3).
fn threads(dir: &Path, cpu: u32) -> CpuList {
    let mut names = ["core_cpus_list", "thread_siblings_list"].iter();
    names
        .find_map(|name| list_with(&dir.join("topology").join(name), cpu))
        .unwrap_or_else(|| [cpu].into_iter().collect())
}

/// Who shares the cache that is nearest to memory with `cpu`, itself included. `None` where the machine does not say. The
/// kernel numbers the caches of a processor from the nearest to it: drivers/base/cacheinfo.c and who fills in for it.
fn last_cache(dir: &Path, cpu: u32) -> Option<CpuList> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("index")?.parse::<u32>().ok();
    let last = fs::read_dir(dir.join("cache")).ok()?.flatten().filter_map(number).max()?;
    list_with(&dir.join(format!("cache/index{last}/shared_cpu_list")), cpu)
}

/// Which cores are fast, on a hybrid processor of Intel's: tools/perf/Documentation/intel-hybrid.txt.
struct Speeds {
    /// The performance cores: the list that their counters have.
    performance: CpuList,
    /// The efficient cores. Those of the slowest kind may be in neither list.
    efficient: CpuList,
}

impl Speeds {
    fn read(root: &Path) -> Self {
        let of = |counters: &str| value(&root.join("sys/devices").join(counters).join("cpus")).unwrap_or_default();
        Self { performance: of("cpu_core"), efficient: of("cpu_atom") }
    }

    /// `cpu_capacity`, of Arm and RISC-V, comes second: newer kernels (6.18) have it on x86 too, where nothing says
    /// that it tells the two kinds apart, or that it is the same for all of one kind.
    fn of(&self, dir: &Path, cpu: u32) -> u32 {
        if self.performance.is_empty() && self.efficient.is_empty() {
            return value(&dir.join("cpu_capacity")).unwrap_or(0);
        }
        u32::from(self.performance.contains(cpu)) * 2 + u32::from(self.efficient.contains(cpu))
    }
}

/// A list that a processor has of itself and others; one without itself is not true.
fn list_with(path: &Path, cpu: u32) -> Option<CpuList> {
    value(path).filter(|list: &CpuList| list.contains(cpu))
}

/// The one value that a file holds, where there is such a file and such a value.
fn value<T: FromStr>(path: &Path) -> Option<T> {
    String::from_utf8_lossy(&procfs::read(path).ok()?).trim().parse().ok()
}

#[cfg(test)]
mod tests;
