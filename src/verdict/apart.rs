//! What is nobody's CPU time, or no CPU time, and can disturb all the same: read at the start and the end of a job, shown apart.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::Apart;
use crate::cgroup::usage::keyed;
use crate::clock;
use crate::procfs::{self, Proc};

/// So many threads are read before it is asked whether to go on.
const BATCH: usize = 4;

/// What happened apart from what groups and processes used; `None` where the kernel does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// CPU time of the kernel's own threads.
    pub kernel_threads_usec: Option<u64>,
    /// CPU time that the host of this virtual machine took.
    pub steal_usec: Option<u64>,
    /// CPU time of interrupts.
    pub interrupts_usec: Option<u64>,
    /// How often a processor was slowed down since it was too hot.
    pub throttled: Option<u64>,
    /// Pages of memory that were read back from swap.
    pub swapped_in_pages: Option<u64>,
    /// Pages of memory that were swapped out.
    pub swapped_out_pages: Option<u64>,
    /// The processors' frequencies when the machine had been given back.
    pub frequency_khz: Option<Range>,
}

/// A range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The lowest.
    pub least: u64,
    /// The highest.
    pub most: u64,
}

/// The counters at one moment, from which [`Figures`] are the difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// When they were read, on the clock of processes.
    taken_usec: u64,
    /// Of each kernel thread, by number and start: what it has used, in clock ticks.
    kernel_threads: Option<HashMap<(i32, u64), u64>>,
    steal_ticks: Option<u64>,
    interrupt_ticks: Option<u64>,
    throttled: Option<u64>,
    swapped_in_pages: Option<u64>,
    swapped_out_pages: Option<u64>,
}

impl Counters {
    /// Reads them below `root`, as long as `goes_on` says so: `None` if it does not.
    pub(super) fn read(root: &Path, proc: &Proc, goes_on: &dyn Fn() -> bool) -> Option<Self> {
        let taken_usec = clock::boottime_usec();
        let mut kernel_threads = HashMap::new();
        let listed = proc.kernel_threads();
        for (index, &pid) in listed.iter().flatten().enumerate() {
            if index % BATCH == 0 && !goes_on() {
                return None;
            }
            if let Ok(stat) = proc.stat(pid) {
                kernel_threads.insert((pid, stat.start_ticks), stat.cpu_ticks);
            }
        }
        let text = |path: &str| {
            procfs::read(&root.join(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
        };
        let (steal_ticks, interrupt_ticks) = parse_stat(&text("proc/stat")).unzip();
        let vmstat = text("proc/vmstat");
        Some(Self {
            taken_usec,
            kernel_threads: listed.ok().map(|_| kernel_threads),
            steal_ticks,
            interrupt_ticks,
            throttled: throttled(root),
            swapped_in_pages: keyed(&vmstat, "pswpin"),
            swapped_out_pages: keyed(&vmstat, "pswpout"),
        })
    }

    /// What happened since `before`. A counter that went back is no news.
    pub(super) fn since(&self, before: &Self, ticks_per_second: u64) -> Figures {
        let usec = |ticks: u64| clock::to_usec(ticks, ticks_per_second);
        let taken_ticks = clock::to_ticks(before.taken_usec, ticks_per_second);
        let more = |before: Option<u64>, after: Option<u64>| Some(after?.saturating_sub(before?));
        let threads = self.kernel_threads.as_ref().zip(before.kernel_threads.as_ref()).map(|(after, before)| {
            let of_one = |(thread, &ticks): (&(i32, u64), &u64)| match before.get(thread) {
                Some(&before) => ticks.saturating_sub(before),
                None if thread.1 >= taken_ticks => ticks,
                // The kernel's list of them may lack some while others end: what it had used then is not known.
                None => 0,
            };
            after.iter().map(of_one).fold(0, u64::saturating_add)
        });
        Figures {
            kernel_threads_usec: threads.map(usec),
            steal_usec: more(before.steal_ticks, self.steal_ticks).map(usec),
            interrupts_usec: more(before.interrupt_ticks, self.interrupt_ticks).map(usec),
            throttled: more(before.throttled, self.throttled),
            swapped_in_pages: more(before.swapped_in_pages, self.swapped_in_pages),
            swapped_out_pages: more(before.swapped_out_pages, self.swapped_out_pages),
            frequency_khz: None,
        }
    }
}

impl Figures {
    /// Whether this was told by the kernel.
    pub(super) fn knows(&self, apart: Apart) -> bool {
        let figure = match apart {
            Apart::KernelThreads => self.kernel_threads_usec,
            Apart::Steal => self.steal_usec,
            Apart::Interrupts => self.interrupts_usec,
            Apart::Throttling => self.throttled,
            Apart::Swap => self.swapped_in_pages.or(self.swapped_out_pages),
        };
        figure.is_some()
    }

    /// With the processors' frequencies of now. Not while the machine is held: before Linux 5.18 some processors take 10 ms each.
    pub fn with_frequencies(self, root: &Path) -> Self {
        Self { frequency_khz: frequency_khz(root), ..self }
    }
}

/// Steal, and hard and soft interrupts together, of the whole machine since boot: `user nice system idle iowait irq softirq steal`.
fn parse_stat(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().skip(5);
    let mut number = || fields.next()?.parse::<u64>().ok();
    let interrupts = number()?.saturating_add(number()?);
    Some((number()?, interrupts))
}

/// The processors' directories in `/sys`.
fn processors(root: &Path) -> io::Result<impl Iterator<Item = fs::DirEntry>> {
    let is_one = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    };
    Ok(fs::read_dir(root.join("sys/devices/system/cpu"))?.flatten().filter(is_one))
}

fn number(path: &Path) -> Option<u64> {
    String::from_utf8(procfs::read(path).ok()?).ok()?.trim().parse().ok()
}

/// How often processors were too hot; a package's heat is counted by each of its processors.
fn throttled(root: &Path) -> Option<u64> {
    let count = |entry: fs::DirEntry| number(&entry.path().join("thermal_throttle/core_throttle_count"));
    processors(root).ok()?.filter_map(count).reduce(u64::saturating_add)
}

/// The lowest and the highest frequency of a processor now.
fn frequency_khz(root: &Path) -> Option<Range> {
    let now = |entry: fs::DirEntry| number(&entry.path().join("cpufreq/scaling_cur_freq"));
    let ranges = processors(root).ok()?.filter_map(now).map(|khz| Range { least: khz, most: khz });
    ranges.reduce(|a, b| Range { least: a.least.min(b.least), most: a.most.max(b.most) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/stat", "cpu  1 2 3 4 5 60 7 80 9 9\ncpu0 1\n");
        write("proc/vmstat", "pgpgin 5\npswpin 11\npswpout 12\n");
        write("proc/2/task/2/children", "3 4 ");
        for (pid, ticks) in [(2, 1), (3, 20), (4, 300)] {
            let line = format!("{pid} (kthread) S 0 0 0 0 -1 2129984 0 0 0 0 0 {ticks} 0 0 20 0 1 0 12 0 0 1 1");
            write(&format!("proc/{pid}/stat"), &line);
        }
        for (cpu, khz) in [(0, 900_000), (1, 3_000_000)] {
            write(&format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"), &format!("{khz}\n"));
            write(&format!("sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count"), "2\n");
        }
        write("sys/devices/system/cpu/cpufreq/x", "");
        root
    }

    fn read(root: &Path) -> Counters {
        Counters::read(root, &Proc::at(root.join("proc")), &|| true).unwrap()
    }

    #[test]
    fn what_happened_is_the_difference() {
        let root = machine();
        let before = read(root.path());
        fs::write(root.path().join("proc/stat"), "cpu  1 2 3 4 5 61 8 81 9 9\n").unwrap();
        fs::write(root.path().join("proc/vmstat"), "pswpin 10\npswpout 15\n").unwrap();
        let line = "4 (kthread) S 0 0 0 0 -1 2129984 0 0 0 0 0 350 0 0 20 0 1 0 12 0 0 1 1";
        fs::write(root.path().join("proc/4/stat"), line).unwrap();
        // One that was missed at the first look, and one that was not there.
        for (pid, start) in [(5, 12), (6, u64::MAX >> 1)] {
            let line = format!("{pid} (kthread) S 0 0 0 0 -1 2129984 0 0 0 0 0 7 0 0 20 0 1 0 {start} 0 0 1 1");
            fs::create_dir(root.path().join(format!("proc/{pid}"))).unwrap();
            fs::write(root.path().join(format!("proc/{pid}/stat")), line).unwrap();
        }
        fs::write(root.path().join("proc/2/task/2/children"), "3 4 5 6 ").unwrap();
        let figures = read(root.path()).since(&before, 100).with_frequencies(root.path());
        let expected = Figures {
            kernel_threads_usec: Some(570_000),
            steal_usec: Some(10_000),
            interrupts_usec: Some(20_000),
            throttled: Some(0),
            swapped_in_pages: Some(0),
            swapped_out_pages: Some(3),
            frequency_khz: Some(Range { least: 900_000, most: 3_000_000 }),
        };
        assert_eq!(figures, expected);
        let proc = Proc::at(root.path().join("proc"));
        assert_eq!(Counters::read(root.path(), &proc, &|| false), None);
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_known() {
        let root = tempfile::tempdir().unwrap();
        let none = read(root.path());
        let figures = none.since(&none, 100).with_frequencies(root.path());
        assert_eq!(figures, Figures::default());
        let all = [Apart::KernelThreads, Apart::Steal, Apart::Interrupts, Apart::Throttling, Apart::Swap];
        assert!(!all.into_iter().any(|apart| figures.knows(apart)));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String, numbers: Vec<u64>) {
            let _ = parse_stat(&text);
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            prop_assert_eq!(parse_stat(&format!("cpu  {}", numbers.join(" "))).is_some(), numbers.len() >= 8);
        }
    }
}
