//! What a group has used, from its own files: pure parsers, and a reader that takes a directory.
//! Each field is `None` where the kernel has no such file or the controller is not on.

use std::fs;
use std::path::Path;

/// A group's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of every process that ever was in the group: `cpu.stat`.
    pub cpu_usec: Option<u64>,
    /// The part spent in user mode.
    pub user_usec: Option<u64>,
    /// The part spent in the kernel.
    pub system_usec: Option<u64>,
    /// Memory charged to the group now, page cache included: `memory.current`.
    pub memory_bytes: Option<u64>,
    /// The most it ever was: `memory.peak`, Linux 5.19.
    pub memory_peak_bytes: Option<u64>,
}

impl Usage {
    /// Reads the files of the group's directory.
    pub fn read(directory: &Path) -> Self {
        let file = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let cpu = file("cpu.stat");
        Self {
            cpu_usec: keyed(&cpu, "usage_usec"),
            user_usec: keyed(&cpu, "user_usec"),
            system_usec: keyed(&cpu, "system_usec"),
            memory_bytes: file("memory.current").trim().parse().ok(),
            memory_peak_bytes: file("memory.peak").trim().parse().ok(),
        }
    }
}

/// The value of `key` in a flat-keyed file: a line `key value`.
pub(crate) fn keyed(file: &str, key: &str) -> Option<u64> {
    file.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        };
        assert_eq!(Usage::read(directory.path()), usage);
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

        #[test]
        fn any_files_of_a_group_are_read_without_panic(bytes: Vec<u8>) {
            let directory = tempfile::tempdir().unwrap();
            for name in ["cpu.stat", "memory.current", "memory.peak"] {
                fs::write(directory.path().join(name), &bytes).unwrap();
            }
            let _ = Usage::read(directory.path());
        }
    }
}
