//! Crashes of a job inside another one: the outer job goes on, and at its end nothing is left.

use perflock::step::Step;

use super::case::{self, Case};
use super::log::Log;
use super::table::Table;
use super::{Backend, Place};
use crate::needs;

/// The steps of a job that holds nothing itself.
fn steps() -> Vec<Step> {
    let inner = |step: &Step| (Step::GroupNamed..=Step::GroupRemoved).contains(step);
    Step::SUPERVISOR.into_iter().filter(inner).collect()
}

/// Runs a job in a job, the inner one with this plan, and returns its log. It exits with this code.
#[track_caller]
fn run_inner(place: &Place, backend: Backend, plan: &str, code: i32) -> Log {
    place.forget();
    let option = backend.option();
    let outer = format!(
        "PERFLOCK_CRASH={plan} PERFLOCK_CRASH_LOG=log perflock -q {option} --grace 50ms sh job; echo $?; \
         flock --nonblock --conflict-exit-code 99 lock true; echo $?"
    );
    let job = place.cmd("perflock -q --grace 50ms").args(option.split(' ')).args(["sh", "-c", &outer]);
    // It still has the machine.
    job.run().exits(0).prints(&format!("{code}\n99\n"));
    place.assert_clean();
    place.log()
}

/// Crashes the inner job at its step.
#[track_caller]
fn run(place: &Place, backend: Backend, case: Case) -> &'static str {
    let code = if case.supervisor_dies() { 128 + libc::SIGKILL } else { 0 };
    let log = run_inner(place, backend, &case.plan(), code);
    case.assert_proven(&log);
    place.next(backend).run().exits(0).says("");
    place.assert_clean();
    place.assert_in_order(1);
    case.cell()
}

#[track_caller]
fn all_cases(title: &'static str, backend: Backend) {
    assert_eq!(run_inner(&backend.place(), backend, "", 0).steps(), steps());
    let table = Table::of(title, backend, case::everybody_at(&steps(), Step::UsageRead), run);
    table.print();
    table.assert_ok();
}

#[test]
fn in_a_group() {
    needs!(V2, OwnGroup, Program("flock"), Program("setsid"));
    all_cases("inside a job in a group of cgroup v2", Backend::V2);
}

#[test]
fn without_a_group() {
    needs!(V2, OwnGroup, Program("flock"), Program("setsid"));
    all_cases("inside a job without a group", Backend::Fallback);
}

#[test]
fn in_a_group_of_v1() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("flock"), Program("setsid"));
    all_cases("inside a job in a group of cgroup v1", Backend::V1);
}

#[test]
fn in_a_scope() {
    needs!(Root, V2, Manager, Program("flock"), Program("setsid"));
    all_cases("inside a job in a systemd scope", Backend::Scope);
}
