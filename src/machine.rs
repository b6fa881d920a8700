//! The state of the machine as far as it changes what a benchmark measures. Kernel side: Documentation/ABI/testing/sysfs-devices-system-cpu,
//! Documentation/admin-guide/mm/transhuge.rst, proc(5). Each field is `None` where the kernel does not say, as in a container
//! or a virtual machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::pin::CpuList;
use crate::pin::cpulist::MOST;

/// What the machine is and how it is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The host's name.
    pub host: Option<String>,
    /// `Linux 6.1.0-13-amd64`.
    pub kernel: Option<String>,
    /// The first processor's name.
    pub cpu_model: Option<String>,
    /// Processors that are on, as a list: `0-7`.
    pub cpus_online: Option<String>,
    /// How frequencies are chosen; where processors differ, every governor once.
    pub governor: Option<String>,
    /// Whether frequencies above the nominal one are allowed.
    pub turbo: Option<bool>,
    /// Whether cores run more than one thread.
    pub smt: Option<bool>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// Address space randomisation: 0 none, 1 all but the heap, 2 all.
    pub aslr: Option<u8>,
    /// Memory of the machine.
    pub memory_bytes: Option<u64>,
    /// Swap of the machine.
    pub swap_bytes: Option<u64>,
    /// The part of it that is used.
    pub swap_used_bytes: Option<u64>,
}

impl Machine {
    /// Reads the machine whose `/proc` and `/sys` are below `root`.
    pub fn read(root: &Path) -> Self {
        let line = |path: &str| {
            let text = fs::read_to_string(root.join(path)).ok()?;
            Some(text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let switch = |path: &str, on: &str| line(path).map(|value| value == on);
        let meminfo = line("proc/meminfo").unwrap_or_default();
        let memory = |key: &str| kib(&meminfo, key);
        let swap_bytes = memory("SwapTotal");
        let kernel = || Some(format!("{} {}", line("proc/sys/kernel/ostype")?, line("proc/sys/kernel/osrelease")?));
        Self {
            host: line("proc/sys/kernel/hostname"),
            kernel: kernel(),
            cpu_model: line("proc/cpuinfo").and_then(|text| model(&text)),
            cpus_online: line("sys/devices/system/cpu/online"),
            governor: governors(&root.join("sys/devices/system/cpu/cpufreq")),
            // intel_pstate has a switch of its own, with the opposite sense.
            turbo: switch("sys/devices/system/cpu/intel_pstate/no_turbo", "0")
                .or_else(|| switch("sys/devices/system/cpu/cpufreq/boost", "1")),
            smt: switch("sys/devices/system/cpu/smt/active", "1"),
            transparent_huge_pages: line("sys/kernel/mm/transparent_hugepage/enabled").and_then(|text| chosen(&text)),
            aslr: line("proc/sys/kernel/randomize_va_space").and_then(|text| text.parse().ok()),
            memory_bytes: memory("MemTotal"),
            swap_bytes,
            swap_used_bytes: swap_bytes.zip(memory("SwapFree")).map(|(total, free)| total.saturating_sub(free)),
        }
    }
}

/// What processes started by us may use, as lists: cpus and memory nodes. From our own `/proc/self/status`.
pub fn allowed(root: &Path) -> (Option<String>, Option<String>) {
    allowed_to(root, "self")
}

/// The same of any process, by its name in `/proc`; of one that ended, until it is reaped.
pub fn allowed_to(root: &Path, process: &str) -> (Option<String>, Option<String>) {
    let status = fs::read_to_string(root.join("proc").join(process).join("status")).unwrap_or_default();
    let list = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map(|list| list.trim().to_owned())
    };
    (list("Cpus_allowed_list"), list("Mems_allowed_list"))
}

/// Room for every processor, and more than every memory node.
const WORDS: usize = MOST as usize / 64;

/// What we may use now: processors, our affinity, and memory nodes, those of our cpuset. `None` where the kernel does not say.
pub fn limits() -> (Option<CpuList>, Option<CpuList>) {
    /// linux/mempolicy.h.
    const MPOL_F_MEMS_ALLOWED: libc::c_int = 1 << 2;
    let mut nodes = [0_u64; WORDS];
    let (none, bits) = (std::ptr::null_mut::<libc::c_int>(), size_of_val(&nodes) * 8);
    // SAFETY: the kernel writes no more bits than there are.
    let got = unsafe { libc::syscall(libc::SYS_get_mempolicy, none, nodes.as_mut_ptr(), bits, 0, MPOL_F_MEMS_ALLOWED) };
    (affinity(), (got == 0).then(|| CpuList::from_words(&nodes)))
}

/// This thread's affinity: sched_getaffinity(2).
fn affinity() -> Option<CpuList> {
    let mut words = [0_u64; WORDS];
    // SAFETY: the kernel writes no more bytes than there are; 0 is this thread.
    let got = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&words), words.as_mut_ptr()) };
    (got > 0).then(|| CpuList::from_words(&words))
}

/// Where a process of ours could run if it asked to: what its cpuset allows, which may be more than its affinity. `None` if the
/// kernel does not say, or makes no thread. A thread asks, so that nothing of ours is changed.
pub fn reachable() -> Option<CpuList> {
    let ask = || {
        let everywhere = [u64::MAX; WORDS];
        // SAFETY: the kernel reads as many bytes as there are; 0 is this thread, which ends below.
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&everywhere), everywhere.as_ptr()) };
        affinity()
    };
    // A user may have as many processes as they may: that is no reason to end here.
    std::thread::Builder::new().spawn(ask).ok()?.join().ok()?
}

/// A field of `/proc/meminfo`: `MemTotal:  1024 kB`, in bytes.
fn kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The first `model name` in `/proc/cpuinfo`; kernels of some architectures write none.
fn model(cpuinfo: &str) -> Option<String> {
    let (_, name) =
        cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name")?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The word in brackets: `always [madvise] never`.
fn chosen(words: &str) -> Option<String> {
    Some(words.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn governors(policies: &Path) -> Option<String> {
    let of_policy = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("scaling_governor")).ok();
    let governors: BTreeSet<String> =
        fs::read_dir(policies).ok()?.flatten().filter_map(of_policy).map(|text| text.trim().to_owned()).collect();
    let names: Vec<String> = governors.into_iter().collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A captured machine: these files, by their paths.
    pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_machine_is_described() {
        let root = tree(&[
            ("proc/sys/kernel/hostname", "bench1\n"),
            ("proc/sys/kernel/ostype", "Linux\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n"),
            ("proc/sys/kernel/randomize_va_space", "2\n"),
            ("proc/cpuinfo", "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Fast CPU @ 2.1GHz\nprocessor\t: 1\n"),
            ("proc/meminfo", "MemTotal:       1000 kB\nSwapTotal:      10 kB\nSwapFree:        4 kB\n"),
            ("sys/devices/system/cpu/online", "0-7\n"),
            ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpufreq/policy2/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/intel_pstate/no_turbo", "1\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ]);
        let text = |text: &str| Some(text.to_owned());
        let machine = Machine {
            host: text("bench1"),
            kernel: text("Linux 6.1.0-13-amd64"),
            cpu_model: text("Fast CPU @ 2.1GHz"),
            cpus_online: text("0-7"),
            governor: text("performance, powersave"),
            turbo: Some(false),
            smt: Some(true),
            transparent_huge_pages: text("madvise"),
            aslr: Some(2),
            memory_bytes: Some(1000 << 10),
            swap_bytes: Some(10 << 10),
            swap_used_bytes: Some(6 << 10),
        };
        assert_eq!(Machine::read(root.path()), machine);
    }

    #[test]
    fn boost_is_turbo_where_there_is_no_switch_of_intel_s() {
        let root = tree(&[("sys/devices/system/cpu/cpufreq/boost", "1\n")]);
        assert_eq!(Machine::read(root.path()), Machine { turbo: Some(true), ..Machine::default() });
    }

    #[test]
    fn what_the_kernel_does_not_say_is_unknown() {
        assert_eq!(Machine::read(tempfile::tempdir().unwrap().path()), Machine::default());
    }

    #[test]
    fn what_our_children_may_use_is_read() {
        let root = tree(&[("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-1,4\nMems_allowed_list:\t0\n")]);
        assert_eq!(allowed(root.path()), (Some("0-1,4".to_owned()), Some("0".to_owned())));
    }

    #[test]
    fn the_kernel_s_own_calls_say_what_its_file_says() {
        let (cpus, nodes) = limits();
        let (listed, listed_nodes) = allowed(Path::new("/"));
        let list = |text: Option<String>| text.unwrap().parse::<CpuList>().unwrap();
        // The file lists processors that are offline, too.
        assert!(cpus.unwrap().is_within(&list(listed)));
        assert_eq!(nodes.unwrap(), list(listed_nodes));
        assert!(limits().0.unwrap().is_within(&reachable().unwrap()));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = (kib(&text, "MemTotal"), model(&text), chosen(&text));
        }
    }
}
