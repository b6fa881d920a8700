//! Looks that were made up, and one that was captured.

use proptest::prelude::*;

use super::*;
use crate::procfs::Stat;
use crate::ticks::Seen;

const HERTZ: u64 = 100;

fn process(pid: i32, ppid: i32, cpu_ticks: u64, ended_children_ticks: u64) -> Stat {
    Stat { pid, ppid, comm: format!("p{pid}"), cpu_ticks, ended_children_ticks, start_ticks: 10, ..Stat::default() }
}

fn look(taken_ticks: u64, stats: &[Stat]) -> Ticks {
    let taken_usec = taken_ticks * 10_000;
    let seen = stats.iter().map(|stat| (stat.pid, Seen { at_usec: taken_usec, stat: stat.clone() }));
    Ticks { taken_usec, own_only: false, processes: seen.collect() }
}

/// Within half a second: every pid and its percentage, where those below 100 are user 1's and the others are user 2's, and 50 to 59 are in a job.
fn uses(before: &[Stat], after: &[Stat]) -> Vec<(u32, Vec<(i32, i64)>)> {
    let in_job = |pid: i32| (50..60).contains(&pid);
    let uid_of = |pid: i32| Some(if pid < 100 { 1 } else { 2 });
    let users = between(&look(1000, before), &look(1050, after), HERTZ, in_job, uid_of);
    let of = |user: &UserLoad| user.busiest.iter().map(|busy| (busy.pid, busy.percent.round() as i64)).collect();
    users.iter().map(|user| (user.uid, of(user))).collect()
}

#[test]
fn the_busiest_come_first_and_those_in_jobs_not_at_all() {
    let before = [process(7, 1, 100, 0), process(8, 1, 0, 0), process(9, 1, 5, 0), process(50, 7, 0, 0)];
    let after = [process(7, 1, 110, 0), process(8, 1, 50, 0), process(9, 1, 5, 0), process(50, 7, 50, 0)];
    assert_eq!(uses(&before, &after), [(1, vec![(8, 100), (7, 20)])]);
    // Others' processes do not add up to somebody's: ten percent is nobody.
    let new = |pid| Stat { start_ticks: 1049, ..process(pid, 1, 5, 0) };
    assert_eq!(uses(&[], &[new(7), new(100)]), []);
    assert_eq!(uses(&[], &[new(7), new(100), new(101)]), [(2, vec![(100, 10), (101, 10)])]);
}

#[test]
fn only_the_busiest_are_named_but_all_are_counted() {
    let after: Vec<Stat> = (10..20).map(|pid| Stat { start_ticks: 1001, ..process(pid, 1, 5, 0) }).collect();
    let users = between(&look(1000, &[]), &look(1050, &after), HERTZ, |_| false, |_| Some(1));
    let pids: Vec<i32> = users[0].busiest.iter().map(|busy| busy.pid).collect();
    assert_eq!((users.len(), users[0].busy, pids), (1, 10, vec![10, 11, 12]));
    assert!((users[0].percent - 100.0).abs() < 1e-9, "{users:?}");
}

#[test]
fn children_that_lived_between_the_looks_count_for_their_parent() {
    let before = [process(7, 1, 1, 5000), process(8, 7, 300, 20)];
    // 8 was there at the first look: of what came in with it, only the last 10 are news.
    let after = [process(7, 1, 2, 5000 + 320 + 10 + 25)];
    assert_eq!(uses(&before, &after), [(1, vec![(7, 72)])]);
    // 9 was waited for by 8, and 8 by 7.
    let before = [process(7, 1, 0, 0), process(8, 7, 1, 0), process(9, 8, 400, 0)];
    assert_eq!(uses(&before, &[process(7, 1, 0, 1 + 400 + 20)]), [(1, vec![(7, 40)])]);
    // 8 ended first: its child went to 7's parent 6.
    let before = [process(6, 1, 0, 0), process(7, 6, 0, 0), process(8, 7, 1, 0), process(9, 8, 400, 0)];
    let after = [process(6, 1, 0, 405), process(7, 6, 0, 1)];
    assert_eq!(uses(&before, &after), []);
    // Pid 1 waits for everybody's.
    assert_eq!(uses(&[process(1, 0, 0, 0)], &[process(1, 0, 10, 9999)]), [(1, vec![(1, 20)])]);
}

#[test]
fn what_a_job_used_is_not_its_shell_s() {
    // The job was there at the first look, or is there at the second, as a child or below one.
    let shell = |ended| process(7, 6, 0, ended);
    let outer = |ended| process(6, 1, 0, ended);
    assert_eq!(uses(&[outer(0), shell(0), process(50, 7, 3, 0)], &[outer(0), shell(90)]), []);
    assert_eq!(uses(&[outer(0), shell(0)], &[outer(0), shell(90), process(50, 7, 3, 0)]), []);
    let inner = [outer(0), shell(0), process(8, 7, 0, 0), process(50, 8, 3, 0)];
    assert_eq!(uses(&inner, &[outer(0), shell(90)]), []);
    // What it had used before is not taken off from anybody else either.
    assert_eq!(uses(&[outer(0), shell(0), process(50, 7, 3000, 0)], &[outer(40), shell(3090)]), [(1, vec![(6, 80)])]);
    // One that goes on has been waited for by nobody.
    let job = process(50, 7, 3, 0);
    assert_eq!(uses(&[shell(0), job.clone()], &[shell(40), job]), [(1, vec![(7, 80)])]);
}

#[test]
fn no_counter_makes_nonsense() {
    // Back; another process of the same number; one that was hidden; gone.
    assert_eq!(uses(&[process(7, 1, 900, 900)], &[process(7, 1, 10, 10)]), []);
    let other = Stat { start_ticks: 1020, ..process(7, 1, 30, 0) };
    assert_eq!(uses(&[process(7, 1, 900, 900)], &[other]), [(1, vec![(7, 60)])]);
    assert_eq!(uses(&[], &[process(7, 1, 90_000, 90_000)]), []);
    assert_eq!(uses(&[process(7, 1, 900, 900)], &[]), []);
    // Parents in a circle.
    let circle = [process(8, 9, 500, 0), process(9, 8, 500, 0), process(7, 8, 0, 0)];
    assert_eq!(uses(&circle, &[process(7, 8, 50, 0)]), [(1, vec![(7, 100)])]);
    let (before, after) = ([process(7, 1, 0, 0)], [process(7, 1, 9, 0)]);
    let between_looks = |taken_ticks: u64, uid: Option<u32>| {
        between(&look(1000, &before), &look(taken_ticks, &after), HERTZ, |_| false, |_| uid)
    };
    assert_eq!(between_looks(1050, Some(1)).len(), 1);
    assert_eq!(between_looks(1050, None), []);
    // Not even time.
    assert_eq!(between_looks(1000, Some(1)), []);
    assert_eq!(between_looks(900, Some(1)), []);
}

#[test]
fn a_process_that_was_looked_at_late_had_more_time() {
    let (before, mut after) = (look(1000, &[process(7, 1, 0, 0)]), look(1020, &[process(7, 1, 40, 0)]));
    after.processes.get_mut(&7).unwrap().at_usec += 200_000;
    let users = between(&before, &after, HERTZ, |_| false, |_| Some(1));
    assert!((users[0].percent - 100.0).abs() < 1e-9, "{users:?}");
}

#[test]
fn kernel_threads_are_left_out_and_a_missing_first_process_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let add = |pid: i32, flags: u32| {
        std::fs::create_dir(root.path().join(pid.to_string())).unwrap();
        let line = format!("{pid} (x) S 1 1 1 0 -1 {flags} 9 9 0 0 5 6 7 8 20 0 1 0 12 9 2\n");
        std::fs::write(root.path().join(format!("{pid}/stat")), line).unwrap();
    };
    std::fs::create_dir(root.path().join("sys")).unwrap();
    add(9, 4_194_304);
    add(10, 2_129_984);
    let ticks = Ticks::read(&Proc::at(root.path())).unwrap();
    assert!(ticks.own_only && ticks.processes.keys().eq(&[9]), "{ticks:?}");
    assert_eq!((ticks.processes[&9].stat.cpu_ticks, ticks.processes[&9].stat.ended_children_ticks), (11, 15));
    add(1, 4_194_560);
    assert!(!Ticks::read(&Proc::at(root.path())).unwrap().own_only);
    assert!(Ticks::read(&Proc::at(root.path().join("none"))).is_err());
}

/// A machine on which processes fork, use the CPU, and end. Its first process is not in a job, and stays.
#[derive(Clone, Debug)]
struct Machine {
    processes: Vec<(Stat, bool)>,
    now: u64,
    /// Ticks used outside of jobs.
    used: u64,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Fork(prop::sample::Index),
    Job(prop::sample::Index),
    /// A multiple of what is shown however long it took.
    Burn(prop::sample::Index, u8),
    End(prop::sample::Index),
}

impl Machine {
    fn new() -> Self {
        Self { processes: vec![(process(1, 0, 0, 0), false)], now: 100, used: 0 }
    }

    /// `tidy`: no job, and nobody's children are left to the first process.
    fn happen(&mut self, event: Event, tidy: bool, may_begin_jobs: bool) {
        self.now += 1;
        let pick = |index: prop::sample::Index| index.index(self.processes.len());
        match event {
            Event::Job(_) if tidy || !may_begin_jobs => {}
            Event::Fork(index) | Event::Job(index) => {
                let (parent, in_job) = &self.processes[pick(index)];
                // The lowest number that is free: it is used again at once.
                let pid = (2..).find(|pid| self.processes.iter().all(|(stat, _)| stat.pid != *pid)).unwrap();
                let stat = Stat { start_ticks: self.now, ..process(pid, parent.pid, 0, 0) };
                let in_job = *in_job || matches!(event, Event::Job(_));
                self.processes.push((stat, in_job));
            }
            Event::Burn(index, ticks) => {
                let index = pick(index);
                let (stat, in_job) = &mut self.processes[index];
                let ticks = 1000 * u64::from(ticks);
                stat.cpu_ticks += ticks;
                self.used += if *in_job { 0 } else { ticks };
            }
            Event::End(index) => {
                let index = pick(index);
                let stat = self.processes[index].0.clone();
                let has_children = self.processes.iter().any(|(other, _)| other.ppid == stat.pid);
                if stat.pid == 1 || tidy && (stat.ppid == 1 || has_children) {
                    return;
                }
                self.processes.remove(index);
                for (other, _) in &mut self.processes {
                    if other.ppid == stat.pid {
                        other.ppid = 1;
                    }
                    if other.pid == stat.ppid {
                        other.ended_children_ticks += stat.cpu_ticks + stat.ended_children_ticks;
                    }
                }
            }
        }
    }

    fn look(&self) -> Ticks {
        look(self.now, &self.processes.iter().map(|(stat, _)| stat.clone()).collect::<Vec<_>>())
    }

    fn has_in_job(&self, pid: i32) -> bool {
        self.processes.iter().any(|(stat, in_job)| stat.pid == pid && *in_job)
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => any::<prop::sample::Index>().prop_map(Event::Fork),
        1 => any::<prop::sample::Index>().prop_map(Event::Job),
        4 => any::<(prop::sample::Index, u8)>().prop_map(|(index, ticks)| Event::Burn(index, ticks)),
        3 => any::<prop::sample::Index>().prop_map(Event::End),
    ];
    proptest::collection::vec(event, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Where every child is waited for by its own parent nothing is lost, and nowhere is anything made up.
    #[test]
    fn what_is_told_is_what_was_used(first in events(), second in events(), tidy: bool) {
        let mut machine = Machine::new();
        first.into_iter().for_each(|event| machine.happen(event, tidy, true));
        let (before, machine_before) = (machine.look(), machine.clone());
        second.into_iter().for_each(|event| machine.happen(event, tidy, false));
        machine.now += 1;
        let in_job = |pid: i32| machine_before.has_in_job(pid) || machine.has_in_job(pid);
        let users = between(&before, &machine.look(), HERTZ, in_job, |_| Some(1));
        let elapsed_ticks = (machine.now - machine_before.now) as f64;
        let told: f64 = users.iter().map(|user| user.percent / 100.0 * elapsed_ticks).sum();
        let used = (machine.used - machine_before.used) as f64;
        prop_assert!(told <= used + 1e-6, "{told} told, {used} used");
        prop_assert!(!tidy || told >= used - 1e-6, "{told} told, {used} used");
        for user in users {
            prop_assert!(user.busiest.iter().all(|busy| busy.ended_children_percent <= busy.percent));
            prop_assert!(user.busy >= user.busiest.len() && !user.busiest.is_empty());
        }
    }
}
