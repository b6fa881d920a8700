//! Processes that are stopped, or traced by a process of the job's or another.

use super::{furnished, job_group, watch_end};
use crate::guard::guard_of;
use crate::harness::{Running, World, alive, pid_in, signal, state_of, wait_until};
use crate::needs;

/// Starts a tracer of a process outside of the job. It looks at nothing, and so reaps nothing.
fn tracer(world: &World, pid: i32) -> Running {
    let tracer = world.cmd(&format!("./tool trace {pid}")).spawn();
    tracer.wait_stdout("ready\n");
    tracer
}

#[test]
fn stopped_and_traced_processes_of_the_job_are_ended() {
    needs!(V2, Program("gcc"));
    for options in ["", "--cgroup none"] {
        let world = furnished();
        // One that is stopped, one whose tracer is stopped, and one that is stopped and traced.
        let job = "trap '' TERM; sleep 600 & a=$!; sleep 600 & b=$!; sleep 600 & c=$!; kill -STOP $a $c; \
            ./tool trace $b > b & t=$!; ./tool trace $c > c & until [ -s b ] && [ -s c ]; do sleep 0.01; done; kill -STOP $t; \
            echo $a > a; echo ready; until [ -e go ]; do sleep 0.01; done; exit 3";
        let running = world.cmd(&format!("perflock --grace 0.2 {options} sh -c")).arg(job).spawn();
        running.wait_stdout("ready\n");
        assert_eq!(state_of(pid_in(&world.path("a"))), 'T');
        world.write("go", "");
        running.wait().exits(3).mentions("perflock: killed 5 leftover processes: ");
        world.assert_clean();
        // And by the guard.
        let running = world.cmd(&format!("perflock --grace 0.2 {options} sh -c")).arg(format!("rm go; {job}")).spawn();
        running.wait_stdout("ready\n");
        guard_of(&world);
        running.signal(libc::SIGKILL);
        running.wait().dies_of(libc::SIGKILL);
        world.wait_clean();
    }
}

#[test]
fn a_leftover_that_is_traced_from_outside_does_not_hold_the_machine() {
    needs!(V2, Program("gcc"));
    let world = furnished();
    let job = "trap '' TERM; sleep 600 & echo $! > pid; until [ -e go ]; do sleep 0.01; done; exit 3";
    let running = world.cmd("perflock --grace 0.2 sh -c").arg(job).spawn();
    let pid = pid_in(&world.path("pid"));
    let tracer = tracer(&world, pid);
    watch_end(&world, &job_group(&world), || drop(world.write("go", "")));
    running.wait().exits(3).says(&crate::release::killed("sleep", pid));
    // It is its tracer's to see.
    assert_eq!(state_of(pid), 'Z');
    world.assert_no_job();
    tracer.signal(libc::SIGKILL);
    tracer.wait().dies_of(libc::SIGKILL);
    world.wait_clean();
}

#[test]
fn a_command_that_is_traced_from_outside_is_seen_to_its_end() {
    needs!(V2, Program("gcc"));
    for options in ["", "--cgroup none"] {
        let world = furnished();
        let job = "trap '' TERM; sleep 600 & echo $! > pid; wait";
        let running = world.cmd(&format!("perflock --grace 0.2 {options} sh -c")).arg(job).spawn();
        let pid = pid_in(&world.path("pid"));
        let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let main = parent.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let tracer = tracer(&world, main);
        signal(main, libc::SIGKILL);
        // The tracer looks at nothing: how the command ended is not known before it is gone.
        running.wait_stderr(&format!(
            "perflock: the command has ended, but tool ({}), which traces it, has not ",
            tracer.pid()
        ));
        assert_eq!(state_of(main), 'Z');
        if options.is_empty() {
            // What it left does not have to wait for that.
            wait_until("the leftover is dead", || !alive(pid));
        }
        assert!(!world.lock_is_free());
        signal(tracer.pid(), libc::SIGKILL);
        let done = running
            .wait()
            .dies_of(libc::SIGKILL)
            .mentions(&format!("perflock: killed 1 leftover process: sleep ({pid}); "));
        assert_eq!(done.stderr.lines().count(), 2, "{}", done.stderr);
        tracer.wait().dies_of(libc::SIGKILL);
        world.assert_clean();
    }
}
