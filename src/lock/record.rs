//! What a ticket says: one JSON value per line, the first of who joined, the later ones of what changed. The last complete
//! line wins. A ticket is its owner's text: whoever reads it may be reading a neighbour's lies.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::job::Mode;
use crate::limit::Limits;
use crate::pin::{CpuList, Partition, Strength};
use crate::procfs::{Proc, Stat};

/// The version of the record's format. A live ticket of a newer one is waited for, whatever it says.
pub const FORMAT: u32 = 1;

/// No ticket is larger; a larger file is not one.
pub(crate) const MAX_SIZE: u64 = 64 * 1024;

/// How much of the command line a ticket keeps. In JSON a control character takes six bytes.
pub(crate) const MAX_COMMAND: usize = 4096;

/// How much of a message a ticket keeps.
pub(crate) const MAX_MESSAGE: usize = 1024;

/// The first line of a ticket: who joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// [`FORMAT`].
    pub format: u32,
    /// The boot id: a ticket of an earlier boot is dead, whatever else it names.
    pub boot: String,
    /// When, on `CLOCK_BOOTTIME`.
    pub joined_usec: u64,
    /// The supervisor, in the pid namespace below.
    pub pid: i32,
    /// The supervisor's start in clock ticks since boot.
    pub start_ticks: u64,
    /// Inode number of the supervisor's pid namespace.
    pub pid_namespace: u64,
    /// Inode number of the supervisor's cgroup namespace.
    pub cgroup_namespace: u64,
    /// What the job asks for.
    pub mode: Mode,
    /// The command, cut to 4 KiB.
    pub command: Vec<String>,
    /// `--message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many cores of its own it asks for, beside other shared jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<usize>,
}

impl Joined {
    /// The supervisor, if it is a process still: its number, in our pid namespace and this boot, may have come to mean
    /// another.
    pub fn supervisor(&self, proc: &Proc) -> Option<Stat> {
        proc.stat(self.pid).ok().filter(|stat| stat.start_ticks == self.start_ticks)
    }

    /// The command line as far as it fits into a record.
    pub fn fit_command(argv: &[String]) -> Vec<String> {
        let mut left = MAX_COMMAND;
        let mut kept = Vec::new();
        for word in argv {
            if word.len() >= left {
                kept.push(fit(word, left));
                break;
            }
            left -= word.len() + 1;
            kept.push(word.clone());
        }
        kept
    }

    /// A message as far as it fits into a record.
    pub fn fit_message(message: &str) -> String {
        fit(message, MAX_MESSAGE)
    }
}

fn fit(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = (0..=bytes).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// A later line of a ticket: what changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Change {
    /// The job has the lock file.
    Granted {
        /// When, on `CLOCK_BOOTTIME`.
        at_usec: u64,
    },
    /// The job group, written before the command is born: a group that no ticket names would be invisible.
    Group {
        /// How it is made: see [`crate::cgroup::Backend`].
        backend: String,
        /// Its path in the v2 hierarchy, or in `hierarchy`, where it has one.
        path: Option<PathBuf>,
        /// The v1 hierarchy that it is in, by a controller or name of it, where it is in none of v2.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hierarchy: Option<String>,
        /// Its path in the v1 cpuacct hierarchy, where its CPU time is counted there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cpuacct: Option<PathBuf>,
        /// Its path in the v1 cpuset hierarchy, where it is pinned there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cpuset: Option<PathBuf>,
        /// The same in the v1 memory hierarchy, where its memory is limited there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory: Option<PathBuf>,
        /// The same in the v1 pids hierarchy.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pids: Option<PathBuf>,
    },
    /// It has cores to itself. Written under the directory's lock, and before the lock file is asked for.
    Cores {
        /// Every thread of them.
        cpus: CpuList,
    },
    /// Where the job runs, from before the command executes.
    Pinned(Pinned),
    /// What it may have at most, from before the command executes.
    Limited(Limits),
    /// The guard.
    Guard {
        /// Its pid.
        pid: i32,
    },
    /// The command ended; members that outlived it are being ended.
    Releasing,
    /// A waiter was stopped and let its ticket go; it keeps its place until somebody overtakes it.
    Stopped,
    /// A stopped waiter went on, in its old place.
    Resumed,
    /// Its owner or root cancelled it: nobody else can write here.
    Cancelled {
        /// Who.
        by_uid: u32,
    },
    /// A line of a newer version.
    #[serde(other)]
    Unknown,
}

/// Where a job runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Processors.
    pub cpus: CpuList,
    /// Memory nodes; none where it may use all that it could before.
    pub memory_nodes: CpuList,
    /// How that is kept: see [`crate::pin::Strength`].
    pub strength: Strength,
    /// The kind of the cpuset partition, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<Partition>,
}

/// What a ticket says, all lines taken together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who joined.
    pub joined: Joined,
    /// When the lock was got.
    pub granted_usec: Option<u64>,
    /// Backend and group.
    pub group: Option<(String, Option<PathBuf>)>,
    /// The v1 hierarchy that the group is in, if it is in none of v2.
    pub hierarchy: Option<String>,
    /// Its group in the v1 cpuacct hierarchy.
    pub cpuacct: Option<PathBuf>,
    /// Its group in the v1 cpuset hierarchy.
    pub cpuset: Option<PathBuf>,
    /// Its group in the v1 memory hierarchy.
    pub memory: Option<PathBuf>,
    /// Its group in the v1 pids hierarchy.
    pub pids: Option<PathBuf>,
    /// The cores that it has to itself.
    pub cores: Option<CpuList>,
    /// Where it runs.
    pub pinned: Option<Pinned>,
    /// What it may have at most.
    pub limits: Limits,
    /// The guard's pid.
    pub guard_pid: Option<i32>,
    /// The command ended.
    pub releasing: bool,
    /// The waiter is stopped.
    pub stopped: bool,
    /// Who cancelled it.
    pub cancelled_by: Option<u32>,
}

impl Record {
    /// Reads a ticket's text; `None` if its first line is not one of ours. A line that was not written to its end,
    /// or that is malformed, is passed over.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let complete = text.iter().rposition(|&b| b == b'\n').map_or(&[][..], |end| &text[..end]);
        let mut lines = complete.split(|&b| b == b'\n');
        let mut record = Self {
            joined: serde_json::from_slice(lines.next()?).ok()?,
            granted_usec: None,
            group: None,
            hierarchy: None,
            cpuacct: None,
            cpuset: None,
            memory: None,
            pids: None,
            cores: None,
            pinned: None,
            limits: Limits::default(),
            guard_pid: None,
            releasing: false,
            stopped: false,
            cancelled_by: None,
        };
        for change in lines.filter_map(|line| serde_json::from_slice(line).ok()) {
            // Any later line of its owner shows that a stopped waiter went on.
            record.stopped = match change {
                Change::Cancelled { .. } => record.stopped,
                _ => change == Change::Stopped,
            };
            match change {
                Change::Granted { at_usec } => record.granted_usec = Some(at_usec),
                Change::Group { backend, path, hierarchy, cpuacct, cpuset, memory, pids } => {
                    record.group = Some((backend, path));
                    (record.hierarchy, record.cpuacct) = (hierarchy, cpuacct);
                    (record.cpuset, record.memory, record.pids) = (cpuset, memory, pids);
                }
                Change::Cores { cpus } => record.cores = Some(cpus),
                Change::Pinned(pinned) => record.pinned = Some(pinned),
                Change::Limited(limits) => record.limits = limits,
                Change::Guard { pid } => record.guard_pid = Some(pid),
                Change::Releasing => record.releasing = true,
                Change::Cancelled { by_uid } => record.cancelled_by = Some(by_uid),
                // Whoever lets its ticket go lets its cores go.
                Change::Stopped => record.cores = None,
                Change::Resumed | Change::Unknown => {}
            }
        }
        Some(record)
    }
}

/// Writes one line, whole.
pub(super) fn append(mut file: &File, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

/// Reads a ticket. By position, so that it can be read again.
pub(super) fn read(file: &File) -> Option<Record> {
    let mut text = vec![0; 1024];
    let mut length = 0;
    // It may grow meanwhile, to no more than its owner may write.
    loop {
        match file.read_at(&mut text[length..], length as u64).ok()? {
            0 => break,
            more => length += more,
        }
        if length as u64 >= MAX_SIZE {
            break;
        }
        if length == text.len() {
            text.resize(2 * length, 0);
        }
    }
    Record::parse(&text[..length])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined() -> Joined {
        Joined {
            format: FORMAT,
            boot: "5f0c7c1e-0000".to_owned(),
            joined_usec: 7,
            pid: 42,
            start_ticks: 9,
            pid_namespace: 1,
            cgroup_namespace: 2,
            mode: Mode::Shared,
            command: vec!["make".to_owned(), "-j".to_owned()],
            message: None,
            cores: None,
        }
    }

    fn text(lines: &[Change]) -> Vec<u8> {
        let mut text = serde_json::to_vec(&joined()).unwrap();
        text.push(b'\n');
        for line in lines {
            text.extend(serde_json::to_vec(line).unwrap());
            text.push(b'\n');
        }
        text
    }

    #[test]
    fn the_last_complete_line_wins() {
        let guard = |pid| Change::Guard { pid };
        let mut ticket = text(&[Change::Granted { at_usec: 8 }, guard(1), guard(2)]);
        ticket.extend(br#"{"event":"guard","pid":3"#);
        let record = Record::parse(&ticket).unwrap();
        assert_eq!(record.joined, joined());
        assert_eq!(record.granted_usec, Some(8));
        assert_eq!(record.guard_pid, Some(2));
    }

    #[test]
    fn a_stopped_waiter_that_wrote_again_went_on() {
        assert!(Record::parse(&text(&[Change::Stopped])).unwrap().stopped);
        assert!(!Record::parse(&text(&[Change::Stopped, Change::Resumed])).unwrap().stopped);
    }

    #[test]
    fn who_cancelled_is_told_and_a_stopped_waiter_stays_one() {
        let record = Record::parse(&text(&[Change::Stopped, Change::Cancelled { by_uid: 7 }])).unwrap();
        assert!(record.stopped);
        assert_eq!(record.cancelled_by, Some(7));
    }

    #[test]
    fn where_a_job_runs_is_read_again() {
        let list = |text: &str| text.parse::<CpuList>().unwrap();
        let pinned = Pinned {
            cpus: list("0-1"),
            memory_nodes: list("0"),
            strength: Strength::Hard,
            partition: Some(Partition::Isolated),
        };
        let cpuset = Some(PathBuf::from("/perflock-1"));
        let group = Change::Group {
            backend: "v2".to_owned(),
            path: None,
            hierarchy: None,
            cpuacct: None,
            cpuset: cpuset.clone(),
            memory: None,
            pids: None,
        };
        let lines = [Change::Cores { cpus: list("0-3") }, group, Change::Pinned(pinned.clone())];
        let record = Record::parse(&text(&lines)).unwrap();
        assert_eq!((record.cores, record.cpuset, record.pinned), (Some(list("0-3")), cpuset, Some(pinned)));
    }

    #[test]
    fn limits_are_read_again_and_an_older_version_s_ticket_has_none() {
        let [memory, pids] = ["/m/perflock-1", "/perflock-1"].map(|path| Some(PathBuf::from(path)));
        let group = Change::Group {
            backend: "v2".to_owned(),
            path: None,
            hierarchy: None,
            cpuacct: None,
            cpuset: None,
            memory: memory.clone(),
            pids: pids.clone(),
        };
        let limits = Limits { memory_bytes: Some(1 << 30), processes: Some(200) };
        let record = Record::parse(&text(&[group, Change::Limited(limits)])).unwrap();
        assert_eq!((record.memory, record.pids, record.limits), (memory, pids, limits));
        let mut ticket = text(&[]);
        ticket.extend(b"{\"event\":\"group\",\"backend\":\"v2\",\"path\":\"/perflock-1\"}\n");
        let record = Record::parse(&ticket).unwrap();
        assert!(record.group.is_some() && record.memory.is_none() && record.limits.is_empty());
    }

    #[test]
    fn a_newer_version_s_lines_are_passed_over() {
        let mut ticket = text(&[]);
        ticket.extend(b"{\"event\":\"moods\",\"list\":[1]}\nnonsense\n{\"event\":\"releasing\"}\n");
        assert!(Record::parse(&ticket).unwrap().releasing);
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        let long = Joined::fit_command(&["x".into(), "é".repeat(9000), "z".into()]);
        assert_eq!(long.len(), 2);
        assert!(long[1].len() <= MAX_COMMAND + 4 && long[1].ends_with('…'));
    }

    fn any_change() -> impl Strategy<Value = Change> {
        prop_oneof![
            any::<u64>().prop_map(|at_usec| Change::Granted { at_usec }),
            any::<(String, Option<String>)>().prop_map(|(backend, path)| Change::Group {
                backend,
                path: path.map(PathBuf::from),
                hierarchy: None,
                cpuacct: None,
                cpuset: None,
                memory: None,
                pids: None
            }),
            proptest::collection::vec(0..200_u32, 0..6)
                .prop_map(|cpus| Change::Cores { cpus: cpus.into_iter().collect() }),
            any::<i32>().prop_map(|pid| Change::Guard { pid }),
            Just(Change::Releasing),
            Just(Change::Stopped),
            Just(Change::Resumed),
        ]
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, tail: String) {
            let _ = Record::parse(&bytes);
            let mut ticket = text(&[]);
            ticket.extend(tail.into_bytes());
            prop_assert!(Record::parse(&ticket).is_some());
        }

        /// What was written is read again, however little of the last line is there.
        #[test]
        fn a_ticket_survives_being_cut_anywhere(
            command in proptest::collection::vec(any::<String>(), 0..6),
            message: Option<String>,
            changes in proptest::collection::vec(any_change(), 0..6),
            cut: prop::sample::Index,
        ) {
            let joined = Joined { command, message, ..joined() };
            let mut lines = vec![serde_json::to_vec(&joined).unwrap()];
            lines.extend(changes.iter().map(|change| serde_json::to_vec(change).unwrap()));
            let text: Vec<u8> = lines.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
            let record = Record::parse(&text).unwrap();
            prop_assert_eq!(&record.joined, &joined);
            prop_assert_eq!(record.stopped, changes.last() == Some(&Change::Stopped));
            prop_assert_eq!(record.releasing, changes.contains(&Change::Releasing));
            let granted = changes.iter().rev().find_map(|change| match change {
                Change::Granted { at_usec } => Some(*at_usec),
                _ => None,
            });
            prop_assert_eq!(record.granted_usec, granted);
            let cores = changes.iter().rev().find_map(|change| match change {
                Change::Cores { cpus } => Some(Some(cpus.clone())),
                Change::Stopped => Some(None),
                _ => None,
            });
            prop_assert_eq!(&record.cores, &cores.flatten());
            let cut = cut.index(text.len() + 1);
            let whole = text[..cut].iter().filter(|&&b| b == b'\n').count();
            let complete: usize = lines[..whole].iter().map(|line| line.len() + 1).sum();
            prop_assert_eq!(Record::parse(&text[..cut]), Record::parse(&text[..complete]));
            prop_assert_eq!(Record::parse(&text[..cut]).is_some(), whole > 0);
        }

        /// A ticket that became too large would not be seen, and its job not waited for.
        #[test]
        fn whatever_the_command_and_the_message_are_the_ticket_is_small_enough(
            words in proptest::collection::vec((any::<char>(), 0usize..12_000), 0..6),
            empty in 0usize..12_000,
            (c, length) in (any::<char>(), 0usize..4000),
        ) {
            let mut command: Vec<String> = words.iter().map(|&(c, length)| c.to_string().repeat(length)).collect();
            command.extend(std::iter::repeat_n(String::new(), empty));
            let fitting = Joined::fit_command(&command);
            prop_assert!(fitting.len() <= command.len());
            for (kept, word) in fitting.iter().zip(&command) {
                prop_assert!(kept == word || word.starts_with(kept.strip_suffix('…').unwrap()));
            }
            let message = Joined::fit_message(&c.to_string().repeat(length));
            let line = serde_json::to_vec(&Joined { command: fitting, message: Some(message), ..joined() }).unwrap();
            prop_assert!((line.len() as u64) < MAX_SIZE / 2, "{} bytes", line.len());
        }
    }
}
