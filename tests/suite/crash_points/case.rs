//! One crash of a job that others wait for.

use std::fs;

use perflock::step::Step;

use super::log::Log;
use super::{ALONE, Backend, Place};
use crate::harness::{Kernel, Running, wait_until};

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Supervisor,
    Guard,
    Both,
}

impl Victim {
    pub(super) const ALL: [Self; 3] = [Self::Supervisor, Self::Guard, Self::Both];

    /// Its name in a plan and in the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Guard => "guard",
            Self::Both => "both",
        }
    }
}

/// Who is killed at which step. At a step that only a guard makes, its supervisor was killed before, when the command ran.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) step: Step,
    pub(super) victim: Victim,
    /// The first step of the supervisor's at which its guard has been told to end.
    unguarded_from: Step,
}

/// Everybody at every step of the supervisor's.
pub(super) fn supervisors(backend: Backend) -> Vec<Case> {
    let unguarded_from = if backend == Backend::Scope { Step::GroupRemoved } else { Step::UsageRead };
    everybody_at(&backend.steps(), unguarded_from)
}

/// Everybody at each of these steps.
pub(super) fn everybody_at(steps: &[Step], unguarded_from: Step) -> Vec<Case> {
    steps.iter().flat_map(|&step| Victim::ALL.map(|victim| Case { step, victim, unguarded_from })).collect()
}

/// The guard at every step of its own.
pub(super) fn guards() -> Vec<Case> {
    Step::GUARD.map(|step| Case { step, victim: Victim::Guard, unguarded_from: Step::UsageRead }).to_vec()
}

impl Case {
    /// What `PERFLOCK_CRASH` says.
    pub(super) fn plan(self) -> String {
        let before = if self.guard_is_alone() { "running:supervisor," } else { "" };
        format!("{before}{}:{}", self.step, self.victim.name())
    }

    fn guard_is_alone(self) -> bool {
        Step::GUARD.contains(&self.step)
    }

    pub(super) fn supervisor_dies(self) -> bool {
        self.victim != Victim::Guard || self.guard_is_alone()
    }

    /// One of the pair goes on, so that whoever gets the lock file is alone; otherwise only a perflock is.
    fn one_lives(self) -> bool {
        self.victim != Victim::Both && !self.guard_is_alone()
    }

    /// Whether a guard exists when the step is reached that was not told to end.
    fn is_guarded(self) -> bool {
        self.step >= Step::GuardForked && (self.step < self.unguarded_from || self.guard_is_alone())
    }

    /// Whether members live without anybody who would end them: always, never, or (`None`) it depends on who is faster.
    fn leaves_an_orphan(self, backend: Backend) -> Option<bool> {
        let joins = Kernel::of_all().is_some_and(|kernel| kernel.refuses(libc::SYS_clone3));
        match self.step {
            // The child ends if it sees that it is alone before it joins. In a scope it has joined before it is let in.
            Step::CommandBorn if joins && backend == Backend::V2 && self.victim == Victim::Both => None,
            // They were killed, and may be dead before they are looked at.
            Step::GroupKilled if self.victim == Victim::Both => None,
            Step::CommandBorn | Step::Running | Step::MainEnded | Step::LeftoversSignalled => {
                Some(self.victim == Victim::Both)
            }
            Step::GuardAlone => Some(true),
            _ => Some(false),
        }
    }

    /// Whether the log proves that everybody was killed who should.
    fn is_proven(self, log: &Log) -> bool {
        let told_to_end = self.step >= self.unguarded_from && !self.guard_is_alone();
        let guard_killed = log.says(self.step, "guard killed");
        let guard = match self.victim {
            Victim::Supervisor => true,
            // It may take a moment to die of that.
            _ if told_to_end => guard_killed || log.says(self.step, "guard gone"),
            _ if self.is_guarded() => guard_killed,
            _ => log.says(self.step, "guard gone"),
        };
        let supervisor = match self.victim {
            _ if self.guard_is_alone() => log.says(Step::Running, "supervisor killed"),
            Victim::Guard => true,
            Victim::Supervisor | Victim::Both => log.says(self.step, "supervisor killed"),
        };
        guard && supervisor && log.pid_at(self.step).is_some()
    }

    #[track_caller]
    pub(super) fn assert_proven(self, log: &Log) {
        assert!(self.is_proven(log), "the log does not prove {}", self.plan());
    }

    /// What the table says when all went well.
    pub(super) fn cell(self) -> &'static str {
        match self.victim {
            Victim::Supervisor => "ok",
            _ if self.is_guarded() => "ok",
            _ if self.step < Step::GuardForked => "ok (no guard yet)",
            _ => "ok (guard gone)",
        }
    }
}

/// Crashes a job at its step. A perflock that waits from before gets the machine next, and another that comes after the
/// crash; both have to be alone, and say nothing but what is to be said of an orphan. Nothing may be left.
#[track_caller]
pub(super) fn run(place: &Place, backend: Backend, case: Case) -> &'static str {
    // All of them are in the queue before the first one starts.
    let lock = fs::File::open(place.lock()).unwrap();
    lock.lock().unwrap();
    let job = place.job(backend, &case.plan());
    let (mut job, next) = if case.step == Step::TicketPublished && case.supervisor_dies() {
        let mut job = job.spawn();
        wait_until("the job crashed in the queue", || job.ended());
        (job, place.waiter("1.x", place.next(backend)))
    } else {
        let job = place.waiter("1.x", job);
        wait_for_lock_file(&job);
        (job, place.waiter("2.x", place.next(backend)))
    };
    let outsider = case.one_lives().then(|| waiting_outsider(place));
    // Not by closing it: a child that another thread forks just now has it too.
    lock.unlock().unwrap();
    // A guard that is alone comes there after its supervisor ended.
    let over = |job: &mut Running| !case.guard_is_alone() && job.ended();
    wait_until(&format!("the crash {}", case.plan()), || case.is_proven(&place.log()) || over(&mut job));
    case.assert_proven(&place.log());
    if case.supervisor_dies() {
        // Only a newcomer removes the ticket of one that died before it named a group.
        wait_until("the supervisor is dead", || job.ended());
    }
    let second = place.next(backend).spawn();
    let done = job.wait();
    if case.supervisor_dies() {
        done.dies_of(libc::SIGKILL).says("");
    } else {
        let done = done.exits(0).mentions("perflock: killed 1 leftover process: ");
        if case.is_guarded() && case.step < Step::GroupKilled {
            done.mentions("perflock: warning: the guard was killed; another took its place (");
        }
    }
    if let Some(outsider) = outsider {
        outsider.wait().exits(0).says("");
    }
    let next = next.wait().exits(0);
    match case.leaves_an_orphan(backend) {
        None if next.stderr.is_empty() => {}
        Some(false) => drop(next.says("")),
        Some(true) | None => assert!(is_of_an_orphan(&next.stderr), "of an orphan was said: {:?}", next.stderr),
    }
    second.wait().exits(0).says("");
    place.wait_clean();
    place.assert_in_order(2 + usize::from(case.one_lives()));
    case.cell()
}

/// A plain flock(1) that waits for the lock file behind the job.
#[track_caller]
fn waiting_outsider(place: &Place) -> Running {
    let outsider = place.cmd("flock").arg(place.lock()).args(["sh", "-c", ALONE]).spawn();
    wait_for_lock_file(&outsider);
    outsider
}

/// Waits until this process is in the kernel's queue for a file's lock.
#[track_caller]
fn wait_for_lock_file(running: &Running) {
    let pid = running.pid().to_string();
    let waits = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.contains(&"->") && words.contains(&"FLOCK") && words.contains(&&*pid)
    };
    wait_until("it waits for the lock file", || fs::read_to_string("/proc/locks").unwrap().lines().any(waits));
}

/// Whether this is what is said of an orphan, and nothing else.
fn is_of_an_orphan(said: &str) -> bool {
    let end = ", whose supervisor was killed, before starting\n";
    said.starts_with("perflock: ending the job sh job of ") && said.ends_with(end) && said.lines().count() == 1
}
