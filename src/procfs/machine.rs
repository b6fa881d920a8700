//! The CPU time of the whole machine.

use std::io;

use super::{Proc, read};

/// CPU time of the whole machine since boot, in clock ticks, summed over its CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineCpu {
    /// Spent on something: user, nice, system, interrupts.
    pub busy_ticks: u64,
    /// All of it: also idle, waiting for a disk, or taken by the host of a virtual machine.
    pub total_ticks: u64,
    /// How many CPUs are online.
    pub cpus: usize,
}

impl Proc {
    /// CPU time of the whole machine since boot: `/proc/stat`.
    ///
    /// # Errors
    /// The file could not be read, or does not begin as the kernel writes it.
    pub fn machine_cpu(&self) -> io::Result<MachineCpu> {
        let text = read(&self.root.join("stat"))?;
        parse_machine_cpu(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

fn parse_machine_cpu(file: &[u8]) -> Option<MachineCpu> {
    let text = String::from_utf8_lossy(file);
    let mut lines = text.lines();
    let numbers = lines.next()?.strip_prefix("cpu ")?.split_ascii_whitespace().map(str::parse::<u64>);
    // user nice system idle iowait irq softirq steal; what guests used is counted in user and nice already.
    let ticks: Vec<u64> = numbers.take(8).collect::<Result<_, _>>().ok()?;
    let sum = |fields: &[usize]| {
        fields.iter().filter_map(|&field| ticks.get(field)).fold(0, |a: u64, b| a.saturating_add(*b))
    };
    let busy_ticks = sum(&[0, 1, 2, 5, 6]);
    let total_ticks = sum(&[3, 4, 7]).saturating_add(busy_ticks);
    let cpus = lines.take_while(|line| line.starts_with("cpu")).count();
    (ticks.len() >= 4 && cpus > 0).then_some(MachineCpu { busy_ticks, total_ticks, cpus })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_machine_s_cpu_time_is_told_from_its_idle_time() {
        let file = b"cpu  10 20 30 400 50 6 7 8 9 9\ncpu0 1 2 3 4\ncpu1 1 2 3 4\nintr 5 cpu\n";
        assert_eq!(parse_machine_cpu(file), Some(MachineCpu { busy_ticks: 73, total_ticks: 531, cpus: 2 }));
        assert_eq!(parse_machine_cpu(b"cpu  10 20 x 400\ncpu0 1\n"), None);
        assert_eq!(parse_machine_cpu(b"intr 5\n"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, numbers: Vec<u64>) {
            let _ = parse_machine_cpu(&bytes);
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            let file = format!("cpu  {}\ncpu0 1\n", numbers.join(" "));
            if let Some(cpu) = parse_machine_cpu(file.as_bytes()) {
                prop_assert!(cpu.busy_ticks <= cpu.total_ticks && cpu.cpus == 1);
            }
        }
    }
}
