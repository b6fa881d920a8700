//! Looks at trees that were made up.

use std::cell::Cell;
use std::fs;

use super::*;
use crate::procfs::Proc;

/// The whole, the shares of groups, and those of processes.
type Told = (u64, Vec<(String, u64)>, Vec<(i32, u64)>);

/// A machine below a directory: `/proc`, and a v2 hierarchy in which the job has a group.
struct Machine {
    root: tempfile::TempDir,
    proc: Proc,
    job: Location,
}

impl Machine {
    /// The job in the group at this path.
    fn new(job: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mount = root.path().join("cgroup");
        let job = Location { mount, relative: job.into(), path: Path::new("/").join(job) };
        let machine = Self { proc: Proc::at(root.path().join("proc")), root, job };
        machine.write("cgroup/cgroup.procs", "2\n3\n");
        // Pid namespaces are told apart by the inode of a link: this machine's own.
        fs::create_dir_all(machine.root.path().join("proc/self")).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns", machine.root.path().join("proc/self/ns")).unwrap();
        machine.write("proc/2/task/2/children", "3");
        for pid in [2, 3] {
            machine.process(pid, 0, "kthread", 2_129_984, 50, 0);
        }
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn process(&self, pid: i32, ppid: i32, name: &str, flags: u64, ticks: u64, of_children: u64) {
        let line = format!("{pid} ({name}) S {ppid} 1 1 0 -1 {flags} 0 0 0 0 {ticks} 0 {of_children} 0 20 0 1 0 5 9 2");
        self.write(&format!("proc/{pid}/stat"), &line);
    }

    /// Sets what groups have used.
    fn used(&self, groups: &[(&str, u64)]) {
        for (group, usec) in groups {
            self.write(&format!("cgroup/{group}/cpu.stat"), &format!("usage_usec {usec}\nuser_usec 1\n"));
        }
    }

    fn scene(&self) -> Scene<'_> {
        Scene {
            proc: &self.proc,
            root: self.root.path(),
            job: Some(&self.job),
            job_inode: Some(u64::MAX),
            apart: false,
            ticks_per_second: 100,
            ours: || Duration::ZERO,
        }
    }

    fn first(&self) -> First {
        First::look(&self.scene(), Vec::new, &|| true).unwrap()
    }

    /// What is seen when so much is allowed.
    fn second(&self, first: First, most_usec: u64) -> Told {
        let seen = first.second(&self.scene(), |_| 0, |_| most_usec).unwrap();
        let share = |share: &Share| (share.group.to_str().unwrap().to_owned(), share.usec);
        let mut shares: Vec<_> = seen.groups.iter().map(share).collect();
        shares.sort();
        (seen.elsewhere_usec, shares, seen.processes.iter().map(|it| (it.pid, it.usec)).collect())
    }
}

/// A job in a session of a user's.
const JOB: &str = "user.slice/user-7.slice/session-1.scope/perflock-1";

#[test]
fn what_the_job_used_is_taken_off_what_is_above_it() {
    let machine = Machine::new(JOB);
    machine.used(&[("user.slice", 1000), ("system.slice", 500), ("mine", 7), (JOB, 100)]);
    machine.used(&[("user.slice/user-7.slice", 900), ("user.slice/user-8.slice", 20), ("system.slice/a.service", 5)]);
    let first = machine.first();
    // The job used 8000, its user 30 more, another one 10, two services 60 and 3, one of them new; what was in `mine` went back.
    machine.used(&[("user.slice", 9040), ("system.slice", 563), ("mine", 6), (JOB, 8100)]);
    machine.used(&[("user.slice/user-7.slice", 8930), ("user.slice/user-8.slice", 30)]);
    machine.used(&[("system.slice/a.service", 65), ("new", 4)]);
    let first_again = machine.first();
    let (all, shares, processes) = machine.second(first, 0);
    assert_eq!((all, processes), (40 + 63 + 4, vec![]));
    let expected = [
        ("new", 4),
        ("system.slice", 3),
        ("system.slice/a.service", 60),
        ("user.slice/user-7.slice", 30),
        ("user.slice/user-8.slice", 10),
    ];
    assert_eq!(shares, expected.map(|(group, usec)| (group.to_owned(), usec)));
    // Nothing happened, and nobody is asked who it was.
    assert_eq!(machine.second(first_again, 0), (0, vec![], vec![]));
    let first = machine.first();
    machine.used(&[("mine", 600)]);
    assert_eq!(machine.second(first, 1000), (594, vec![], vec![]));
}

#[test]
fn what_we_used_ourselves_is_nobody_s() {
    let machine = Machine::new("mine/perflock-1");
    machine.used(&[("mine", 0), ("mine/perflock-1", 0), ("other", 0)]);
    machine.write("proc/self/cgroup", "0::/mine\n");
    let first = machine.first();
    machine.used(&[("mine", 900), ("other", 100)]);
    let scene = Scene { ours: || Duration::from_micros(700), ..machine.scene() };
    let seen = first.second(&scene, |_| 0, |_| 0).unwrap();
    let share = |group: &str, usec| Share { group: group.into(), usec };
    assert_eq!(seen.elsewhere_usec, 300);
    assert!(seen.groups.contains(&share("mine", 200)) && seen.groups.contains(&share("other", 100)), "{seen:?}");
}

#[test]
fn a_root_s_own_processes_are_looked_at_where_it_counts_nothing() {
    let machine = Machine::new("perflock-1");
    machine.used(&[("perflock-1", 0), ("mine", 0)]);
    machine.write("cgroup/cgroup.procs", "1\n2\n3\n70\n71\n");
    machine.process(1, 0, "init", 0, 0, 0);
    machine.process(70, 1, "sh", 0, 100, 1000);
    machine.process(71, 70, "make", 0, 10, 0);
    // In a group, and counted there.
    machine.process(80, 70, "cc1", 0, 500, 0);
    let first = First::look(&machine.scene(), || vec![71], &|| true).unwrap();
    machine.process(1, 0, "init", 0, 3, 9999);
    machine.process(70, 1, "sh", 0, 120, 1600);
    machine.process(71, 70, "make", 0, 9000, 0);
    fs::remove_dir_all(machine.root.path().join("proc/80")).unwrap();
    machine.used(&[("mine", 300_000)]);
    // 80 had 500 before, and ended: 100 of what its parent waited for are news, of which groups have used 30.
    let (all, _, processes) = machine.second(first, u64::MAX);
    assert_eq!(processes, [(70, 200_000 + 700_000), (1, 30_000)]);
    assert_eq!(all, 930_000 + 300_000);
}

#[test]
fn a_root_that_is_a_group_counts_all_and_what_is_outside_is_not_seen() {
    let machine = Machine::new("perflock-1");
    machine.write("cgroup/cgroup.events", "populated 1\n");
    // No process is looked at, whatever is in the root.
    machine.write("cgroup/cgroup.procs", "1\n70\n");
    machine.used(&[("", 100), ("perflock-1", 10), ("other", 5)]);
    let first = machine.first();
    machine.used(&[("", 1100), ("perflock-1", 410), ("other", 305)]);
    let seen = first.second(&machine.scene(), |_| 0, |_| 0).unwrap();
    assert_eq!((seen.elsewhere_usec, seen.unseen), (600, Some(OUTSIDE.to_owned())));
    let share = |group: &str, usec| Share { group: group.into(), usec };
    assert_eq!(seen.groups, [share("other", 300), share("", 300)]);
}

#[test]
fn without_a_group_every_process_is_looked_at() {
    let machine = Machine::new("");
    machine.process(1, 0, "init", 0, 0, 0);
    machine.process(70, 1, "sh", 0, 100, 0);
    let scene = Scene { job: None, ..machine.scene() };
    let first = First::look(&scene, Vec::new, &|| true).unwrap();
    machine.process(70, 1, "sh", 0, 150, 0);
    machine.process(3, 2, "kworker", 2_129_984, 9000, 0);
    let seen = first.second(&scene, |_| 0, |_| 0).unwrap();
    assert_eq!((seen.elsewhere_usec, seen.unseen), (500_000, None));
    assert_eq!(seen.processes[0].name, "sh");
    // Of a first process that is hidden, all others' are.
    let first = First::look(&scene, Vec::new, &|| true).unwrap();
    fs::remove_dir_all(machine.root.path().join("proc/1")).unwrap();
    assert_eq!(first.second(&scene, |_| 0, |_| 0).unwrap().unseen, Some(HIDDEN.to_owned()));
}

#[test]
fn a_look_is_given_up_when_the_command_ends() {
    let machine = Machine::new("perflock-1");
    machine.used(&[("perflock-1", 0)]);
    for number in 0..100 {
        machine.used(&[(&format!("g{number}"), 1)]);
    }
    let asked = Cell::new(0);
    let goes_on = |times| {
        asked.set(0);
        let result = First::look(&machine.scene(), Vec::new, &|| {
            asked.set(asked.get() + 1);
            asked.get() < times
        });
        result.map(|first| first.groups.unwrap().usage_usec.len())
    };
    for times in [1, 2, 5] {
        assert_eq!(goes_on(times), Err(Missing::Ended));
        assert_eq!(asked.get(), times, "it is asked no more");
    }
    assert_eq!(goes_on(u32::MAX), Ok(101));
    assert!(asked.get() >= 101 / BATCH as u32, "{}", asked.get());
}

#[test]
fn the_baseline_for_names_has_an_end() {
    let machine = Machine::new("perflock-1");
    machine.used(&[("perflock-1", 0), ("system.slice", 1000), ("user.slice", 10), ("user.slice/user-7.slice", 10)]);
    for number in 0..NAMEABLE {
        machine.used(&[(&format!("system.slice/{number}.service"), 1)]);
    }
    let first = machine.first();
    assert_eq!(first.groups.as_ref().unwrap().usage_usec.len(), 4, "too many services");
    machine.used(&[("system.slice", 3000), ("system.slice/7.service", 2001)]);
    machine.used(&[("user.slice", 40), ("user.slice/user-7.slice", 40)]);
    // Counted, but told as the group above it: what it had used before is not known.
    let expected = [("system.slice", 2000), ("user.slice/user-7.slice", 30)];
    let expected = expected.map(|(group, usec)| (group.to_owned(), usec));
    assert_eq!(machine.second(first, 0), (2030, expected.to_vec(), vec![]));
}

#[test]
fn a_group_that_was_made_since_had_used_nothing() {
    let machine = Machine::new("perflock-1");
    machine.used(&[("perflock-1", 0), ("system.slice", 1000), ("system.slice/a.service", 1000)]);
    let looks = [machine.first(), machine.first()];
    machine.used(&[("system.slice", 1600), ("system.slice/b.service", 600)]);
    let told = looks.into_iter().zip([0, u64::MAX]).map(|(first, job_inode)| {
        let scene = Scene { job_inode: Some(job_inode), ..machine.scene() };
        first.second(&scene, |_| 0, |_| 0).unwrap().groups
    });
    let share = |group: &str| vec![Share { group: group.into(), usec: 600 }];
    assert!(told.eq([share("system.slice/b.service"), share("system.slice")]));
}

#[test]
fn what_cannot_be_read_is_not_known() {
    let machine = Machine::new("perflock-1");
    let why = |result: Result<First, Missing>| match result.unwrap_err() {
        Missing::Why(why) => why,
        Missing::Ended => panic!("it has not ended"),
    };
    let look = || First::look(&machine.scene(), Vec::new, &|| true);
    machine.used(&[("perflock-1", 0), ("system.slice", 5)]);
    machine.write("cgroup/odd\n/cpu.stat", "usage_usec many\n");
    machine.write("cgroup/system.slice/a.service/cpu.stat", "usage_usec many\n");
    let first = machine.first();
    machine.used(&[("system.slice", 45), ("odd\n", 9_000_000)]);
    // Others are seen all the same, and what it had used at the first look is not known.
    let seen = first.second(&machine.scene(), |_| 0, |_| 0).unwrap();
    let odd = r"the group /odd\n cannot be read: it has no counter of CPU time";
    assert_eq!((seen.elsewhere_usec, seen.unseen.as_deref()), (40, Some(odd)));
    assert_eq!(seen.groups, [Share { group: "system.slice".into(), usec: 40 }]);
    fs::remove_dir_all(machine.root.path().join("cgroup/odd\n")).unwrap();
    let first = machine.first();
    fs::remove_dir_all(machine.root.path().join("cgroup/perflock-1")).unwrap();
    let gone = Missing::Why("the job's group was removed before it was read".to_owned());
    assert_eq!(first.second(&machine.scene(), |_| 0, |_| 0).unwrap_err(), gone);
    fs::remove_dir_all(machine.root.path().join("cgroup")).unwrap();
    assert!(why(look()).ends_with("/cgroup cannot be read: No such file or directory"));
}

#[test]
fn no_look_takes_long() {
    let machine = Machine::new("perflock-1");
    machine.used(&[("perflock-1", 0)]);
    (10..20).for_each(|pid| machine.process(pid, 1, "sh", 0, 0, 0));
    thread_local!(static USED: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) });
    // Each time that it is asked for it has grown.
    let ours = || {
        USED.set(USED.get() + Duration::from_millis(150));
        USED.get()
    };
    let scene = Scene { ours, ..machine.scene() };
    let too_many = Missing::Why(TOO_MANY.to_owned());
    assert_eq!(First::look(&scene, Vec::new, &|| true).unwrap_err(), too_many);
    assert_eq!(First::look(&machine.scene(), Vec::new, &|| false).unwrap_err(), Missing::Ended);
    let by_process = Scene { job: None, ..machine.scene() };
    let first = First::look(&by_process, Vec::new, &|| true).unwrap();
    assert_eq!(first.second(&Scene { ours, ..by_process }, |_| 0, |_| 0).unwrap_err(), too_many);
}
