//! A crash at every named step of a run: the supervisor dies, or its guard, or both, in every kind of group; and no
//! member of the job is ever alive beside the next one.
//!
//! Built with `--features crash-points`, the programs kill themselves where they are told to. Each test prints a table of
//! its cases: `cargo test --features crash-points --test suite crash_points -- --nocapture`.

use std::fs;
use std::ops::Deref;

use perflock::step::Step;

use crate::harness::{Cmd, Machine, World};
use crate::needs;

mod birth;
mod case;
mod log;
mod nested;
mod table;

use case::Case;
use log::Log;
use table::Table;

/// Where the jobs' processes are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backend {
    /// In a group of cgroup v2 that perflock makes.
    V2,
    /// In groups of cgroup v1 that perflock makes.
    V1,
    /// In none: the fallback.
    Fallback,
    /// In a scope that systemd makes.
    Scope,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::V2 => "cgroup v2",
            Self::V1 => "cgroup v1",
            Self::Fallback => "no group",
            Self::Scope => "systemd scope",
        }
    }

    /// What has jobs use it where [`Backend::place`] is.
    fn option(self) -> &'static str {
        match self {
            Self::Fallback => "--cgroup none",
            Self::V2 | Self::V1 | Self::Scope => "--cgroup required",
        }
    }

    /// The supervisor's steps in their order here.
    fn steps(self) -> Vec<Step> {
        let mut steps = Step::SUPERVISOR.to_vec();
        if self == Self::Scope {
            // Only systemd knows the path, before the group is there.
            let named = steps.iter().position(|&step| step == Step::GroupNamed).unwrap();
            steps.swap(named, named + 1);
        }
        steps
    }

    fn place(self) -> Place {
        let place = match self {
            Self::V2 | Self::Fallback => Place::World(World::new()),
            Self::V1 => Place::World(World::on_v1(0, &["freezer", "cpuacct"])),
            Self::Scope => Place::Machine(Machine::new()),
        };
        place.write("job", JOB);
        place.write("presence", "");
        place
    }
}

/// A world for one case after the other.
enum Place {
    World(World),
    Machine(Machine),
}

impl Deref for Place {
    type Target = World;

    fn deref(&self) -> &World {
        match self {
            Self::World(world) => world,
            Self::Machine(machine) => machine,
        }
    }
}

impl Place {
    /// Waits until nothing of any job is left; systemd and guards may take a moment.
    #[track_caller]
    fn wait_clean(&self) {
        match self {
            Self::World(world) => world.wait_clean(),
            Self::Machine(machine) => machine.wait_gone(),
        }
    }

    /// A job whose main process ends, and leaves one that has to be killed. It adds its log to the file `log`.
    fn job(&self, backend: Backend, plan: &str) -> Cmd {
        self.forget();
        let job = self.cmd("perflock -q --grace 50ms").args(backend.option().split(' ')).args(["sh", "job"]);
        job.env("PERFLOCK_CRASH", plan).env("PERFLOCK_CRASH_LOG", self.path("log"))
    }

    /// Removes what the case before wrote.
    fn forget(&self) {
        for file in ["log", "journal"] {
            let _ = fs::remove_file(self.path(file));
        }
    }

    /// A job that has to be alone: it fails if a member of the first one lives.
    fn next(&self, backend: Backend) -> Cmd {
        self.cmd("perflock -q").args(backend.option().split(' ')).args(["sh", "-c", ALONE])
    }

    fn log(&self) -> Log {
        Log::parse(&self.read("log"))
    }

    /// Asserts that no member of the first job began after another job did.
    #[track_caller]
    fn assert_in_order(&self, nexts: usize) {
        let journal = self.read("journal");
        let others = journal.lines().skip_while(|&line| line == "member");
        assert!(others.clone().all(|line| line == "alone"), "a member began beside another job: {journal}");
        assert_eq!(others.count(), nexts, "{journal}");
    }
}

/// Every process of this job has the file `presence` locked as long as it lives. What it leaves is a daemon with a session
/// of its own that ignores TERM.
const JOB: &str = "\
    echo member >> journal\n\
    exec 9< presence\n\
    flock --nonblock --shared 9 || echo 'a member beside another job' >> journal\n\
    trap '' TERM\n\
    setsid --fork sleep 600 < /dev/null > /dev/null 2>&1\n";

/// Exits with 0 if nobody has the file `presence` locked.
const ALONE: &str = "echo alone >> journal; exec flock --nonblock --conflict-exit-code 99 presence true";

/// Runs every case of a backend and prints the table.
#[track_caller]
fn all_cases(backend: Backend) {
    let cases: Vec<Case> = case::supervisors(backend).into_iter().chain(case::guards()).collect();
    let table = Table::of(backend.name(), backend, cases, case::run);
    table.print();
    table.assert_ok();
}

#[test]
fn in_a_group() {
    needs!(V2, OwnGroup, Program("flock"), Program("setsid"));
    all_cases(Backend::V2);
}

#[test]
fn in_a_group_of_v1() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("flock"), Program("setsid"));
    all_cases(Backend::V1);
}

#[test]
fn without_a_group() {
    needs!(V2, OwnGroup, Program("flock"), Program("setsid"));
    all_cases(Backend::Fallback);
}

#[test]
fn in_a_scope() {
    needs!(Root, V2, Manager, Program("flock"), Program("setsid"));
    all_cases(Backend::Scope);
}

/// What an undisturbed run logs; and what is logged if the supervisor is killed as soon as the command runs.
#[track_caller]
fn logs(backend: Backend) {
    let place = backend.place();
    let running = place.job(backend, "").spawn();
    let supervisor = running.pid();
    running.wait().exits(0).mentions("perflock: killed 1 leftover process: ");
    place.assert_clean();
    let log = place.log();
    assert_eq!(log.steps(), backend.steps());
    // The command makes one step itself, and in a scope the launcher the one before.
    let by_others: Vec<Step> = log.by(|pid| pid != supervisor).steps();
    let expected = [Step::GuardForked, Step::CommandBorn];
    assert_eq!(by_others, expected[usize::from(backend != Backend::Scope)..]);

    let running = place.job(backend, "running:supervisor").spawn();
    let supervisor = running.pid();
    running.wait().dies_of(libc::SIGKILL).says("");
    place.wait_clean();
    let log = place.log();
    let guard = log.pid_at(Step::GuardAlone).expect("the guard saw that it is alone");
    assert_ne!(guard, supervisor);
    assert_eq!(log.by(|pid| pid == guard).steps(), Step::GUARD);
    let until_running: Vec<Step> = backend.steps().into_iter().filter(|&step| step <= Step::Running).collect();
    assert_eq!(log.by(|pid| pid != guard).steps(), until_running);
    assert!(log.says(Step::Running, "supervisor killed"));
}

#[test]
fn the_steps_of_a_run_in_a_group_are_logged_in_their_order() {
    needs!(V2, OwnGroup, Program("flock"), Program("setsid"));
    logs(Backend::V2);
}

#[test]
fn the_steps_of_a_run_in_a_group_of_v1_are_logged_in_their_order() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("flock"), Program("setsid"));
    logs(Backend::V1);
}

#[test]
fn the_steps_of_a_run_without_a_group_are_logged_in_their_order() {
    needs!(V2, OwnGroup, Program("flock"), Program("setsid"));
    logs(Backend::Fallback);
}

#[test]
fn the_steps_of_a_run_in_a_scope_are_logged_in_their_order() {
    needs!(Root, V2, Manager, Program("flock"), Program("setsid"));
    logs(Backend::Scope);
}
