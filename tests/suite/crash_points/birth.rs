//! The supervisor is killed when its command is born, and the command takes its time to execute: it is a member already.

use std::fs;

use super::{Backend, JOB};
use crate::harness::wait_until;
use crate::needs;

/// How often the command is looked for in vain before it is executed, which takes half a second: as many directories as
/// PATH has room for, each of them the current one.
const LOOKS: usize = 130_000;

#[track_caller]
fn killed_before_the_command_executes(backend: Backend) {
    let place = backend.place();
    // It is found at first, and when it is to be executed it has moved to the end of PATH.
    for directory in ["first", "last"] {
        fs::create_dir(place.path(directory)).unwrap();
    }
    let command = place.script("first/command", &format!("#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n{JOB}"));
    let path = format!("first{}{}", ":".repeat(LOOKS), place.path("last").display());
    let lock = fs::File::open(place.lock()).unwrap();
    lock.lock().unwrap();
    let job = place.cmd("perflock -q").args(backend.option().split(' ')).arg("command").env("PATH", path);
    let job = job.env("PERFLOCK_CRASH", "command-born:supervisor").env("PERFLOCK_CRASH_LOG", place.path("log"));
    let job = place.waiter("1.x", job);
    let next = place.waiter("2.x", place.next(backend));
    fs::rename(command, place.path("last/command")).unwrap();
    lock.unlock().unwrap();
    job.wait().dies_of(libc::SIGKILL).says("");
    next.wait().exits(0).says("");
    place.wait_clean();
    place.assert_in_order(1);
}

#[test]
fn in_a_group() {
    needs!(V2, OwnGroup, Program("flock"), Program("setsid"));
    killed_before_the_command_executes(Backend::V2);
}

#[test]
fn in_a_group_of_v1() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("flock"), Program("setsid"));
    killed_before_the_command_executes(Backend::V1);
}

#[test]
fn without_a_group() {
    needs!(V2, OwnGroup, Program("flock"), Program("setsid"));
    killed_before_the_command_executes(Backend::Fallback);
}

#[test]
fn in_a_scope() {
    needs!(Root, V2, Manager, Program("flock"), Program("setsid"));
    killed_before_the_command_executes(Backend::Scope);
}

/// The command writes itself into its group; here that takes longer than whoever ends the job would need to find nobody in it.
#[test]
fn a_command_that_joins_late_is_not_executed_beside_the_next_job() {
    needs!(V1Worlds, V1("freezer"), V1("cpuacct"), Program("flock"), Program("setsid"), Program("strace"));
    for victim in ["supervisor", "both"] {
        let place = Backend::V1.place();
        // It makes a timer just before.
        let strace = "strace -DDD -f -o /dev/null -e trace=timer_settime -e inject=timer_settime:delay_enter=300000";
        let job = place.cmd(&format!("{strace} perflock -q --cgroup required sh job"));
        let job = job.env("PERFLOCK_CRASH", format!("command-born:{victim}"));
        let mut job = job.spawn();
        // Not the end of its output: strace has that as well.
        wait_until("the supervisor is dead", || job.ended());
        place.next(Backend::V1).run().exits(0);
        place.next(Backend::V1).run().exits(0);
        place.wait_clean();
        place.assert_in_order(2);
    }
}
