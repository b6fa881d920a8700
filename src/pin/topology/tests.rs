//! Machines that were made up, file by file, and the one that this runs on.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn set(text: &str) -> CpuList {
    text.parse().unwrap()
}

/// A machine's `/sys`.
struct Sys(tempfile::TempDir);

impl Sys {
    /// Processors, and nothing else known of them.
    fn online(cpus: &str) -> Self {
        Self(tempfile::tempdir().unwrap()).with("system/cpu/online", cpus)
    }

    /// Caches, each with its package and its cores, and these as their threads; all online.
    fn of_caches(caches: &[(u32, &[&str])]) -> Self {
        let all: Vec<&str> = caches.iter().flat_map(|(_, cores)| cores.iter().copied()).collect();
        let mut sys = Self::online(&all.join(","));
        for (package, cores) in caches {
            for core in *cores {
                for cpu in set(core).iter() {
                    let cpu = format!("system/cpu/cpu{cpu}");
                    sys = sys
                        .with(&format!("{cpu}/topology/core_cpus_list"), core)
                        .with(&format!("{cpu}/topology/thread_siblings_list"), core)
                        .with(&format!("{cpu}/topology/physical_package_id"), package.to_string())
                        .with(&format!("{cpu}/cache/uevent"), "")
                        .with(&format!("{cpu}/cache/index0/level"), "1")
                        .with(&format!("{cpu}/cache/index0/shared_cpu_list"), core)
                        .with(&format!("{cpu}/cache/index3/level"), "3")
                        .with(&format!("{cpu}/cache/index3/shared_cpu_list"), cores.join(","));
                }
            }
        }
        sys
    }

    /// Two sockets of two nodes with one cache each, two cores in it and two threads per core.
    fn large() -> Self {
        let caches: [(u32, &[&str]); 4] =
            [(0, &["0,8", "1,9"]), (0, &["2,10", "3,11"]), (1, &["4,12", "5,13"]), (1, &["6,14", "7,15"])];
        Self::of_caches(&caches).nodes(&["0-1,8-9", "2-3,10-11", "4-5,12-13", "6-7,14-15"], "0-3")
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join("sys/devices").join(path)
    }

    fn with(self, path: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [text.as_ref(), b"\n"].concat()).unwrap();
        self
    }

    /// The processors of each node, and which nodes have memory.
    fn nodes(mut self, cpus: &[&str], memory: &str) -> Self {
        for (number, cpus) in cpus.iter().enumerate() {
            self = self.with(&format!("system/node/node{number}/cpulist"), cpus);
        }
        self.with("system/node/has_memory", memory)
    }

    /// The same without what the kernel writes below these directories of the processors.
    fn without(self, cpus: &str, paths: &[&str]) -> Self {
        for (cpu, path) in set(cpus).iter().flat_map(|cpu| paths.iter().map(move |path| (cpu, path))) {
            let path = self.path(&format!("system/cpu/cpu{cpu}/{path}"));
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        self
    }

    /// The same with only these processors left on.
    fn only(self, online: &str, offline: &str) -> Self {
        self.without(offline, &["topology", "cache"]).with("system/cpu/online", online)
    }

    fn topology(&self) -> Topology {
        Topology::read(self.0.path()).unwrap()
    }

    fn memory_of(&self, cpus: &str) -> String {
        memory_of(&nodes(self.0.path()).unwrap(), &set(cpus)).to_string()
    }

    /// The cores, one each line: threads, node, cache, package, speed.
    fn cores(&self) -> String {
        self.topology().cores.iter().fold(String::new(), |mut text, core| {
            let Core { cpus, node, cache, package, speed } = core;
            write!(text, "{cpus} n{node} c{cache} p{package} s{speed}; ").unwrap();
            text
        })
    }
}

const LARGE: &str = "0,8 n0 c0 p0 s0; 1,9 n0 c0 p0 s0; 2,10 n1 c2 p0 s0; 3,11 n1 c2 p0 s0; \
    4,12 n2 c4 p1 s0; 5,13 n2 c4 p1 s0; 6,14 n3 c6 p1 s0; 7,15 n3 c6 p1 s0; ";

#[test]
fn cores_know_their_threads_node_cache_and_socket() {
    let sys = Sys::large();
    assert_eq!(sys.cores(), LARGE);
    let nodes = sys.topology().nodes;
    assert_eq!(nodes, super::nodes(sys.0.path()).unwrap());
    assert_eq!(nodes.iter().map(|node| node.cpus.clone()).collect::<Vec<_>>()[1], set("2-3,10-11"));
    assert!(nodes.iter().all(|node| node.has_memory));
}

#[test]
fn a_core_is_read_once_and_a_cache_once() {
    let sys = Sys::large().without("8-15", &["topology", "cache"]).without("1,3,5,7", &["cache"]);
    assert_eq!(sys.cores(), LARGE);
}

#[test]
fn an_older_kernel_s_name_for_the_threads_is_known() {
    let sys = Sys::large().without("0-15", &["topology/core_cpus_list"]);
    assert_eq!(sys.cores(), LARGE);
}

#[test]
fn what_is_offline_is_in_no_core_and_no_node() {
    let sys = Sys::of_caches(&[(0, &["0,4", "1,5", "2,6", "3,7"])]).nodes(&["0-7"], "0").only("1-2,4-6", "0,3,7");
    assert_eq!(sys.cores(), "1,5 n0 c1 p0 s0; 2,6 n0 c1 p0 s0; 4 n0 c1 p0 s0; ");
    assert_eq!(sys.topology().nodes[0].cpus, set("1-2,4-6"));
}

#[test]
fn fast_and_slow_cores_of_intel_s_are_told_apart() {
    let mut sys = Sys::of_caches(&[(0, &["0-1", "2-3", "4", "5", "6"])]);
    sys = sys.with("cpu_core/cpus", "0-3").with("cpu_atom/cpus", "4-5");
    let cores = "0-1 n0 c0 p0 s2; 2-3 n0 c0 p0 s2; 4 n0 c0 p0 s1; 5 n0 c0 p0 s1; 6 n0 c0 p0 s0; ";
    assert_eq!(sys.cores(), cores);
    for (cpu, capacity) in ["1024", "1024", "1009", "1009", "1024", "1024", "1024"].iter().enumerate() {
        sys = sys.with(&format!("system/cpu/cpu{cpu}/cpu_capacity"), capacity);
    }
    assert_eq!(sys.cores(), cores, "the lists say more than the capacity");
}

#[test]
fn fast_and_slow_cores_are_told_apart_by_their_capacity() {
    let mut sys = Sys::of_caches(&[(0, &["0-1", "2", "3"])]);
    for (cpu, capacity) in [(0, "1024"), (2, "446"), (3, "446")] {
        sys = sys.with(&format!("system/cpu/cpu{cpu}/cpu_capacity"), capacity);
    }
    assert_eq!(sys.cores(), "0-1 n0 c0 p0 s1024; 2 n0 c0 p0 s446; 3 n0 c0 p0 s446; ");
}

#[test]
fn a_kernel_without_nodes_has_one() {
    let sys = Sys::of_caches(&[(0, &["0", "1"]), (0, &["2"])]);
    assert_eq!(sys.cores(), "0 n0 c0 p0 s0; 1 n0 c0 p0 s0; 2 n0 c2 p0 s0; ");
    assert_eq!(sys.topology().nodes, [Node { number: 0, cpus: set("0-2"), has_memory: true }]);
}

#[test]
fn without_cache_files_a_node_is_one_cache() {
    let sys = Sys::large().without("0-15", &["cache"]);
    assert_eq!(sys.cores(), LARGE);
    let sys = Sys::online("0-1");
    assert_eq!(sys.cores(), "0 n0 c0 p0 s0; 1 n0 c0 p0 s0; ");
}

#[test]
fn memory_is_that_of_the_own_nodes_as_far_as_they_have_any() {
    let sys = Sys::online("0-5").nodes(&["0-1", "2-3", "", "4-5"], "0,2-3");
    for (cpus, memory) in [("0", "0"), ("0-3", "0"), ("2", "0,2-3"), ("1,4", "0,3"), ("", "0,2-3"), ("9", "0,2-3")] {
        assert_eq!(sys.memory_of(cpus), memory, "{cpus}");
    }
    let nodes = sys.topology().nodes;
    let shown: Vec<_> = nodes.iter().map(|node| (node.number, node.cpus.to_string(), node.has_memory)).collect();
    let node = |number, cpus: &str, has_memory| (number, cpus.to_owned(), has_memory);
    assert_eq!(shown, [node(0, "0-1", true), node(1, "2-3", false), node(2, "", true), node(3, "4-5", true)]);
}

#[test]
fn which_nodes_have_memory_may_be_told_by_an_older_name_or_not_at_all() {
    let sys = Sys::online("0-1").nodes(&["0", "1"], "");
    assert_eq!(sys.memory_of("1"), "1");
    let sys = sys.with("system/node/has_normal_memory", "0");
    assert_eq!(sys.memory_of("1"), "0");
}

#[test]
fn nodes_are_sorted_by_their_number() {
    let sys = (0..12)
        .rev()
        .fold(Sys::online("0-11"), |sys, node| sys.with(&format!("system/node/node{node}/cpulist"), node.to_string()));
    assert_eq!(sys.topology().nodes.iter().map(|node| node.number).collect::<Vec<_>>(), Vec::from_iter(0..12));
}

#[test]
fn nodes_that_share_their_processors_both_have_memory_for_them() {
    let sys = Sys::online("0-3").nodes(&["0-3", "0-3"], "0-1");
    assert_eq!(sys.memory_of("2"), "0-1");
    assert!(sys.topology().cores.iter().all(|core| core.node == 0));
}

#[test]
fn a_list_without_the_processor_itself_is_not_believed() {
    let sys = Sys::large().with("system/cpu/cpu0/topology/core_cpus_list", "1,9");
    assert_eq!(sys.cores(), LARGE);
    let sys = sys.with("system/cpu/cpu0/topology/thread_siblings_list", "1").without("1,8-9", &["topology"]);
    assert!(sys.cores().starts_with("0 n0 c0 p0 s0; 1 n0 c0 p0 s0; 2,10 "));
    let sys = sys.with("system/cpu/cpu0/cache/index3/shared_cpu_list", "6-7");
    assert!(sys.cores().starts_with("0 n0 c0 p0 s0; 1 n0 c0 p0 s0; 2,10 "));
}

#[test]
fn a_socket_without_a_number_is_the_first() {
    let sys = Sys::online("0-1").with("system/cpu/cpu0/topology/physical_package_id", "-1");
    assert!(sys.topology().cores.iter().all(|core| core.package == 0));
}

#[test]
fn without_a_list_of_processors_there_is_no_machine() {
    let sys = Sys::online("none");
    let why = Topology::read(sys.0.path()).unwrap_err().to_string();
    assert!(why.ends_with("/sys/devices/system/cpu/online: none is no number and no range such as 0-3"), "{why}");
    fs::remove_file(sys.path("system/cpu/online")).unwrap();
    let why = nodes(sys.0.path()).unwrap_err().to_string();
    assert!(why.starts_with("cannot read ") && why.ends_with("cpu/online: No such file or directory"), "{why}");
}

/// What is true of every machine, whatever its files say.
fn check(topology: &Topology, online: &CpuList) {
    let threads: Vec<u32> = topology.cores.iter().flat_map(|core| core.cpus.iter()).collect();
    assert_eq!(threads.len(), online.len(), "no processor is in two cores");
    assert_eq!(&threads.into_iter().collect::<CpuList>(), online);
    assert!(topology.cores.iter().all(|core| !core.cpus.is_empty()));
    assert!(topology.cores.is_sorted_by_key(|core| core.cpus.first()));
    assert!(topology.nodes.is_sorted_by_key(|node| node.number));
    for core in &topology.cores {
        assert!(topology.nodes.iter().any(|node| node.number == core.node));
        assert!(online.contains(core.cache));
    }
    assert!(topology.nodes.iter().all(|node| node.cpus.is_within(online)));
}

#[test]
fn this_machine_is_read() {
    let root = Path::new("/");
    let topology = Topology::read(root).unwrap();
    check(&topology, &online(root).unwrap());
    assert!(topology.nodes.iter().any(|node| node.has_memory));
}

/// What a file may hold: a true list, anything else that looks like one, or any bytes.
fn any_content() -> impl Strategy<Value = Vec<u8>> {
    let numbers = proptest::collection::btree_set(0u32..10, 0..5);
    let list = numbers.prop_map(|numbers| numbers.into_iter().collect::<CpuList>().to_string().into_bytes());
    prop_oneof![4 => list, 1 => "[0-9,-]{0,6}".prop_map(String::into_bytes), 1 => any::<Vec<u8>>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_files_say_a_processor_is_in_exactly_one_core(
        cpus in proptest::collection::btree_set(0u32..8, 1..8),
        contents in proptest::collection::vec(any_content(), 8 * 6 + 7),
    ) {
        let online: CpuList = cpus.into_iter().collect();
        let of_machine = ["cpu_core/cpus", "cpu_atom/cpus", "system/node/has_memory", "system/node/has_normal_memory"];
        let of_nodes = [0, 1, 7].map(|node| format!("system/node/node{node}/cpulist"));
        let of_cpu = ["topology/core_cpus_list", "topology/thread_siblings_list", "topology/physical_package_id",
            "cache/index0/level", "cache/index0/shared_cpu_list", "cpu_capacity"];
        let of_cpus = (0..8).flat_map(|cpu| of_cpu.map(|file| format!("system/cpu/cpu{cpu}/{file}")));
        let files = of_machine.map(str::to_owned).into_iter().chain(of_nodes).chain(of_cpus);
        // An empty one stands for no file.
        let files = files.zip(&contents).filter(|(_, content)| !content.is_empty());
        let sys = files.fold(Sys::online(&online.to_string()), |sys, (path, content)| sys.with(&path, content));
        check(&sys.topology(), &online);
    }

    #[test]
    fn any_bytes_for_the_list_of_processors_are_read_without_panic(content in any_content()) {
        let sys = Sys::online("").with("system/cpu/online", content);
        if let Ok(topology) = Topology::read(sys.0.path()) {
            check(&topology, &online(sys.0.path()).unwrap());
        }
    }
}
