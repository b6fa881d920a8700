//! What a group has used, from its own files: pure parsers, and a reader that takes a directory. Kernel side:
//! Documentation/admin-guide/cgroup-v2.rst and Documentation/accounting/psi.rst.
//! Each field is `None` where the kernel has no such file or the controller is not on.

use std::path::Path;

use serde::Serialize;

use crate::procfs;

/// A group's counters at one moment, all processes together that are or ever were in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// CPU time.
    pub cpu_usec: Option<u64>,
    /// The part spent in user mode.
    pub user_usec: Option<u64>,
    /// The part spent in the kernel.
    pub system_usec: Option<u64>,
    /// How long the group was held back by its CPU limit.
    pub throttled_usec: Option<u64>,
    /// How long some process had to wait for a CPU.
    pub cpu_stall_usec: Option<u64>,
    /// Memory charged to the group now, page cache included.
    pub memory_bytes: Option<u64>,
    /// The most it ever was; Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
    /// The part that belongs to no file: heaps, stacks.
    pub memory_anon_bytes: Option<u64>,
    /// The part that is page cache: the kernel takes it back when it needs memory.
    pub memory_file_bytes: Option<u64>,
    /// Swap used now.
    pub swap_bytes: Option<u64>,
    /// How long some process had to wait for memory.
    pub memory_stall_usec: Option<u64>,
    /// Page faults.
    pub faults: Option<u64>,
    /// Those that had to read from a disk.
    pub major_faults: Option<u64>,
    /// Processes that were killed because the group had no memory left.
    pub oom_kills: Option<u64>,
    /// Processes and threads now.
    pub tasks: Option<u64>,
    /// The most there ever were; Linux 6.1.
    pub tasks_peak: Option<u64>,
    /// Forks that were refused since the group had as many as its limit, or one above, allows.
    pub forks_refused: Option<u64>,
    /// Bytes read from block devices.
    pub read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub written_bytes: Option<u64>,
    /// Reads from block devices.
    pub reads: Option<u64>,
    /// Writes to block devices.
    pub writes: Option<u64>,
    /// How long some process had to wait for a block device.
    pub io_stall_usec: Option<u64>,
}

/// Where each field is from: a file of the group's directory, and a key in it.
pub const SOURCES: [(&str, &str, &str); 22] = [
    ("cpu_usec", "cpu.stat", "usage_usec"),
    ("user_usec", "cpu.stat", "user_usec"),
    ("system_usec", "cpu.stat", "system_usec"),
    ("throttled_usec", "cpu.stat", "throttled_usec"),
    ("cpu_stall_usec", "cpu.pressure", "some total"),
    ("memory_bytes", "memory.current", ""),
    ("memory_peak_bytes", "memory.peak", ""),
    ("memory_anon_bytes", "memory.stat", "anon"),
    ("memory_file_bytes", "memory.stat", "file"),
    ("swap_bytes", "memory.swap.current", ""),
    ("memory_stall_usec", "memory.pressure", "some total"),
    ("faults", "memory.stat", "pgfault"),
    ("major_faults", "memory.stat", "pgmajfault"),
    ("oom_kills", "memory.events", "oom_kill"),
    ("tasks", "pids.current", ""),
    ("tasks_peak", "pids.peak", ""),
    ("forks_refused", "pids.events", "max"),
    ("read_bytes", "io.stat", "rbytes"),
    ("written_bytes", "io.stat", "wbytes"),
    ("reads", "io.stat", "rios"),
    ("writes", "io.stat", "wios"),
    ("io_stall_usec", "io.pressure", "some total"),
];

impl Usage {
    /// Reads what the short reports and tables need: CPU time and memory.
    pub fn read(directory: &Path) -> Self {
        let files = Files(directory);
        let cpu = files.text("cpu.stat");
        Self {
            cpu_usec: keyed(&cpu, "usage_usec"),
            user_usec: keyed(&cpu, "user_usec"),
            system_usec: keyed(&cpu, "system_usec"),
            throttled_usec: keyed(&cpu, "throttled_usec"),
            memory_bytes: files.number("memory.current"),
            memory_peak_bytes: files.number("memory.peak"),
            ..Self::default()
        }
    }

    /// Reads what a live view shows, again and again: CPU time in all, and memory now.
    pub fn read_live(directory: &Path) -> Self {
        let files = Files(directory);
        Self {
            cpu_usec: keyed(&files.text("cpu.stat"), "usage_usec"),
            memory_bytes: files.number("memory.current"),
            ..Self::default()
        }
    }

    /// Reads every file that there is.
    pub fn read_all(directory: &Path) -> Self {
        let files = Files(directory);
        let (memory, events) = (files.text("memory.stat"), files.text("memory.events"));
        let io = procfs::read(&directory.join("io.stat")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let over_devices = |key| io.as_ref().map(|text| over_devices(text, key));
        Self {
            cpu_stall_usec: stall(&files.text("cpu.pressure")),
            memory_anon_bytes: keyed(&memory, "anon"),
            memory_file_bytes: keyed(&memory, "file"),
            swap_bytes: files.number("memory.swap.current"),
            memory_stall_usec: stall(&files.text("memory.pressure")),
            faults: keyed(&memory, "pgfault"),
            major_faults: keyed(&memory, "pgmajfault"),
            oom_kills: keyed(&events, "oom_kill"),
            tasks: files.number("pids.current"),
            tasks_peak: files.number("pids.peak"),
            forks_refused: keyed(&files.text("pids.events"), "max"),
            read_bytes: over_devices("rbytes"),
            written_bytes: over_devices("wbytes"),
            reads: over_devices("rios"),
            writes: over_devices("wios"),
            io_stall_usec: stall(&files.text("io.pressure")),
            ..Self::read(directory)
        }
    }
}

/// The same for a job's group in the v1 memory hierarchy, where it has one.
pub const V1_MEMORY_SOURCES: [(&str, &str, &str); 8] = [
    ("memory_bytes", "memory.usage_in_bytes", ""),
    ("memory_peak_bytes", "memory.max_usage_in_bytes", ""),
    ("memory_anon_bytes", "memory.stat", "total_rss"),
    ("memory_file_bytes", "memory.stat", "total_cache"),
    ("swap_bytes", "memory.stat", "total_swap"),
    ("faults", "memory.stat", "total_pgfault"),
    ("major_faults", "memory.stat", "total_pgmajfault"),
    ("oom_kills", "memory.oom_control", "oom_kill"),
];

/// The same for its group in the v1 cpuacct hierarchy.
pub const V1_CPU_SOURCES: [(&str, &str, &str); 3] = [
    ("cpu_usec", "cpuacct.usage", ""),
    ("user_usec", "cpuacct.usage_user", ""),
    ("system_usec", "cpuacct.usage_sys", ""),
];

impl Usage {
    /// With the counters of the job's group in the v1 memory hierarchy in their places.
    pub fn with_v1_memory(self, directory: &Path) -> Self {
        let files = Files(directory);
        let stat = files.text("memory.stat");
        Self {
            memory_bytes: files.number("memory.usage_in_bytes"),
            memory_peak_bytes: files.number("memory.max_usage_in_bytes"),
            memory_anon_bytes: keyed(&stat, "total_rss"),
            memory_file_bytes: keyed(&stat, "total_cache"),
            swap_bytes: keyed(&stat, "total_swap"),
            faults: keyed(&stat, "total_pgfault"),
            major_faults: keyed(&stat, "total_pgmajfault"),
            oom_kills: keyed(&files.text("memory.oom_control"), "oom_kill"),
            ..self
        }
    }

    /// With the CPU time of a group in the v1 cpuacct hierarchy, in nanoseconds there. Which part of it was spent where is known
    /// from the ticks of the clock; the whole is divided like them, as the kernel does in v2.
    pub fn with_v1_cpu(self, directory: &Path) -> Self {
        let files = Files(directory);
        let Some(usage_nsec) = files.number("cpuacct.usage") else { return self };
        let ticks = || Some((files.number("cpuacct.usage_user")?, files.number("cpuacct.usage_sys")?));
        let cpu_usec = usage_nsec / 1000;
        let system_usec = ticks().map(|(user, system)| match u128::from(user) + u128::from(system) {
            0 => 0,
            both => u64::try_from(u128::from(cpu_usec) * u128::from(system) / both).unwrap_or(cpu_usec),
        });
        Self {
            cpu_usec: Some(cpu_usec),
            user_usec: system_usec.map(|system_usec| cpu_usec - system_usec),
            system_usec,
            ..self
        }
    }

    /// The same for the v1 pids hierarchy, whose files are called as those of v2.
    pub fn with_v1_pids(self, directory: &Path) -> Self {
        let files = Files(directory);
        Self {
            tasks: files.number("pids.current"),
            tasks_peak: files.number("pids.peak"),
            forks_refused: keyed(&files.text("pids.events"), "max"),
            ..self
        }
    }
}

/// The files of a group. What cannot be read is empty.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn text(&self, name: &str) -> String {
        String::from_utf8(procfs::read(&self.0.join(name)).unwrap_or_default()).unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).trim().parse().ok()
    }
}

/// The value of `key` in a flat-keyed file: a line `key value`.
pub(crate) fn keyed(file: &str, key: &str) -> Option<u64> {
    file.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).and_then(|value| value.trim().parse().ok())
}

/// The stall time in a pressure file: `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, in microseconds.
pub(crate) fn stall(file: &str) -> Option<u64> {
    let some = file.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("total=")?.trim().parse().ok())
}

/// The sum of `key` over the devices in a nested-keyed file: lines `8:0 rbytes=1 wbytes=2 …`. A group that has not used any
/// has no line.
pub(crate) fn over_devices(file: &str, key: &str) -> u64 {
    let of_device = |line: &str| {
        line.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('=')?.trim().parse::<u64>().ok())
    };
    file.lines().filter_map(of_device).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn a_group_s_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name, text| fs::write(directory.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 300\nuser_usec 200\nsystem_usec 100\nnice_usec 0\n");
        write("memory.current", "4096\n");
        write("memory.peak", "8192\n");
        let usage = Usage {
            cpu_usec: Some(300),
            user_usec: Some(200),
            system_usec: Some(100),
            memory_bytes: Some(4096),
            memory_peak_bytes: Some(8192),
            ..Usage::default()
        };
        assert_eq!(Usage::read(directory.path()), usage);
        assert_eq!(Usage::read_all(directory.path()), usage);
        let live = Usage { cpu_usec: Some(300), memory_bytes: Some(4096), ..Usage::default() };
        assert_eq!(Usage::read_live(directory.path()), live);
    }

    /// Every field is read from the file that is said to be its source, and from nothing else.
    #[test]
    fn every_field_has_its_source() {
        let fields = |usage: &Usage| match serde_json::to_value(usage).unwrap() {
            serde_json::Value::Object(fields) => fields,
            other => panic!("{other}"),
        };
        for (field, file, key) in SOURCES {
            let directory = tempfile::tempdir().unwrap();
            let text = match (file, key) {
                (_, "") => "7\n".to_owned(),
                (_, "some total") => {
                    "some avg10=1.00 avg60=2.00 avg300=3.00 total=7\nfull avg10=0.00 total=9\n".to_owned()
                }
                ("io.stat", key) => format!("8:0 {key}=3 other{key}=9\n8:16 x=1 {key}=4\n"),
                (_, key) => format!("{key}x 9\n{key} 7\n"),
            };
            fs::write(directory.path().join(file), text).unwrap();
            let usage = fields(&Usage::read_all(directory.path()));
            let known = usage.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name);
            // The file that is there tells that of the others there is none.
            let from_it = |name: &&String| SOURCES.iter().any(|&(field, f, _)| field == **name && f == file);
            assert!(known.clone().all(|name| from_it(&name)), "{field}: {usage:?}");
            assert!(known.filter(|name| usage[*name] != 0).eq([field]), "{field}: {usage:?}");
            assert_eq!(usage[field], 7);
        }
        assert_eq!(fields(&Usage::default()).len(), SOURCES.len());
    }

    #[test]
    fn a_v1_group_s_files_are_read_in_their_places() {
        let whole = Usage { cpu_usec: Some(300), ..Usage::default() };
        for (field, file, key) in V1_MEMORY_SOURCES {
            let directory = tempfile::tempdir().unwrap();
            fs::write(
                directory.path().join(file),
                if key.is_empty() { "7\n".to_owned() } else { format!("{key} 7\n") },
            )
            .unwrap();
            let usage = serde_json::to_value(whole.with_v1_memory(directory.path())).unwrap();
            let known = usage.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
            let expected = serde_json::json!({"cpu_usec": 300, field: 7});
            assert_eq!(
                known.map(|(name, value)| (name.clone(), value.clone())).collect::<serde_json::Value>(),
                expected
            );
        }
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("pids.current", "1"), ("pids.peak", "2"), ("pids.events", "max 3\n")] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let usage = Usage { tasks: Some(1), tasks_peak: Some(2), forks_refused: Some(3), ..whole };
        assert_eq!(whole.with_v1_pids(directory.path()), usage);
    }

    #[test]
    fn the_cpu_time_of_a_v1_group_is_divided_as_its_ticks_are() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        assert_eq!(Usage::default().with_v1_cpu(directory.path()), Usage::default());
        write("cpuacct.usage", "900000999\n");
        let whole = Usage { cpu_usec: Some(900_000), ..Usage::default() };
        assert_eq!(Usage::default().with_v1_cpu(directory.path()), whole);
        for (user, system, system_usec) in [("3000", "1000", 225_000), ("0", "0", 0), ("0", "8", 900_000)] {
            write("cpuacct.usage_user", user);
            write("cpuacct.usage_sys", system);
            let parts = Usage { user_usec: Some(900_000 - system_usec), system_usec: Some(system_usec), ..whole };
            assert_eq!(Usage::default().with_v1_cpu(directory.path()), parts, "{user} {system}");
        }
    }

    #[test]
    fn what_the_kernel_does_not_have_is_unknown_not_zero() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("memory.current"), "").unwrap();
        assert_eq!(Usage::read(directory.path()), Usage::default());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = keyed(&text, "usage_usec");
        }

        /// The first line with the very key counts, whatever stands around it.
        #[test]
        fn a_value_is_found_by_its_whole_key(
            before in proptest::collection::vec("[a-z_]{1,12} [0-9a-z]{0,9}", 0..5), value: u64, after: String,
        ) {
            prop_assume!(!before.iter().any(|line| line.starts_with("usage_usec ")));
            let text = [&before[..], &[format!("usage_usec {value}"), after]].concat().join("\n");
            prop_assert_eq!(keyed(&text, "usage_usec"), Some(value));
        }

    }

    proptest! {
        // Each writes a dozen files.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_files_of_a_group_are_read_without_panic(bytes: Vec<u8>) {
            let directory = tempfile::tempdir().unwrap();
            for (_, name, _) in SOURCES {
                fs::write(directory.path().join(name), &bytes).unwrap();
            }
            let _ = Usage::read_all(directory.path());
        }
    }
}
