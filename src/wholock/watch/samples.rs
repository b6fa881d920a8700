//! What the tests of the live view look at.

use std::time::{Duration, Instant};

use super::Sight;
use crate::cgroup::Usage;
use crate::job::{JobId, Mode};
use crate::procfs::{MachineCpu, Stat};
use crate::wholock::snapshot::{Job, Snapshot, State};
use crate::wholock::tree::Process;

/// A job that has the machine.
pub(super) fn holder(number: u64, command: &str) -> Job {
    Job {
        number,
        id: JobId { number, inode: number, boot: 1, joined_usec: 1 },
        uid: 0,
        login_uid: None,
        mode: Mode::Shared,
        state: State::Running,
        age: Duration::from_secs(750),
        usage: Usage::default(),
        read_at: Instant::now(),
        cpu_now_percent: None,
        expected_start: None,
        processes: Some(2),
        members: vec![4, 5],
        command: vec![command.to_owned()],
        message: None,
        pinned: None,
        cores_asked: None,
        reserved: None,
        limits: Default::default(),
        elsewhere: None,
        keepers: Vec::new(),
        group: None,
        cpuacct: None,
        living: None,
        inner: Vec::new(),
        inner_more: 0,
    }
}

/// A job that waits.
pub(super) fn waiter(number: u64, command: &str) -> Job {
    Job { state: State::Waiting, processes: None, members: Vec::new(), ..holder(number, command) }
}

/// A process of a job.
pub(super) fn process(pid: i32, depth: usize) -> Process {
    let stat = Stat {
        pid,
        comm: "cc".to_owned(),
        state: 'R',
        ppid: 1,
        start_ticks: 1,
        cpu_ticks: 300,
        ended_children_ticks: 0,
        threads: 1,
        resident_pages: 9,
        kernel_thread: false,
    };
    Process { depth, stat, uid: Some(0), command: vec!["cc".to_owned(), format!("{pid}.c")] }
}

/// One look.
pub(super) fn sight(at: Instant, cpu: Option<MachineCpu>, snapshot: Snapshot) -> Sight {
    Sight { at, time_of_day: "14:03:22".to_owned(), cpu, snapshot, cores: None, problem: None }
}
