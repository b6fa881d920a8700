//! Processes that are many, fork while they are ended, or ended and are never waited for.

use std::time::{Duration, Instant};

use super::{furnished, job_group, of_a_plain_user, watch_end};
use crate::guard::guard_of;
use crate::harness::{groups, is_slow, patient, wait_until};
use crate::needs;

#[test]
fn a_fork_bomb_is_ended_within_its_time_limit_and_the_grace() {
    needs!(V2, Program("gcc"));
    if nix::unistd::geteuid().is_root() {
        // To be a plain user's, who has a limit.
        needs!(OwnGroup);
    }
    // Time enough for all of them to be there before it, and for us to see them.
    let (limit, grace) = (patient(Duration::from_secs(2)), patient(Duration::from_millis(300)));
    let allowed = grace + patient(Duration::from_secs(1));
    // Whoever else uses this machine may take longer than that to let anybody run.
    let in_time = (0..3).any(|_| {
        // Those of an earlier time count against their user's limit until the machine's init has waited for each.
        wait_until("nobody has dead processes of the tool", || dead_tools() == 0);
        let world = of_a_plain_user();
        // The shell ignores TERM, and so does every process that it becomes.
        let options = format!("perflock --time-limit {} --grace {} sh -c", limit.as_secs_f64(), grace.as_secs_f64());
        let running = world.cmd(&options).arg("trap '' TERM; exec ./tool bomb 300").spawn();
        running.wait_stdout("ready\n");
        let group = job_group(&world);
        // How many of it were killed is not told where the guard had to do it.
        let count = groups::processes(&group, &[]).len();
        let mut limited = Instant::now();
        watch_end(&world, &group, || {
            running.wait_stderr(" reached: ending the command\n");
            limited = Instant::now();
        });
        let took = limited.elapsed();
        running.wait().exits(124);
        world.assert_clean();
        assert!(count > 50, "{count} processes are no bomb");
        took < allowed
    });
    assert!(in_time, "it took longer than {allowed:?} from the time limit on");
}

/// How many processes of the tool have ended and wait for their parent.
fn dead_tools() -> usize {
    let stats = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("stat"));
    stats.filter(|stat| std::fs::read_to_string(stat).is_ok_and(|text| text.contains(" (tool) Z "))).count()
}

#[test]
fn processes_that_fork_while_they_are_ended_are_ended() {
    needs!(V2, Program("gcc"));
    for options in ["", "--cgroup none"] {
        for job in ["./tool forkers 4 & sleep 0.1; exit 3", "trap '' TERM; ./tool forkers 4 & sleep 0.1; exit 3"] {
            let world = furnished();
            let done = world.cmd(&format!("perflock --grace 0.2 {options} sh -c")).arg(job).run().exits(3);
            done.mentions("perflock: killed ");
            world.assert_clean();
        }
    }
}

#[test]
fn the_guard_ends_processes_that_fork_while_they_are_ended() {
    needs!(V2, Program("gcc"));
    // A guard finds the members of a job without a group by walking through /proc: what is gone sooner, it misses.
    for (options, pause) in [("", 0), ("--cgroup none", 2000)] {
        let world = furnished();
        let job = world.cmd(&format!("perflock {options} ./tool forkers 4 {pause}")).spawn();
        job.wait_stdout("ready\n");
        guard_of(&world);
        job.signal(libc::SIGKILL);
        job.wait().dies_of(libc::SIGKILL);
        world.wait_clean();
    }
}

#[test]
fn thousands_of_processes_are_ended_before_the_lock_is_free() {
    needs!(V2, Program("gcc"));
    let world = furnished();
    // `cargo xtask bench` has 20,000; what holds for these holds for them.
    let count = if is_slow() { 500 } else { 4000 };
    for ignored in ["", "trap '' TERM; "] {
        let job = format!("{ignored}./tool sleepers {count}; until [ -e go ]; do sleep 0.02; done; exit 5");
        let running = world.cmd("perflock --grace 0.2 sh -c").arg(job).spawn();
        running.wait_stdout("ready\n");
        watch_end(&world, &job_group(&world), || drop(world.write("go", "")));
        running.wait().exits(5).mentions(&format!("perflock: killed {count} leftover processes: tool ("));
        world.assert_clean();
        std::fs::remove_file(world.path("go")).unwrap();
    }
}

#[test]
fn hundreds_of_processes_without_a_group_are_ended() {
    needs!(V2, Program("gcc"));
    let world = furnished();
    let done =
        world.cmd("perflock --grace 0.2 --cgroup none sh -c").arg("trap '' TERM; ./tool sleepers 300; exit 5").run();
    done.exits(5).mentions("perflock: killed 300 leftover processes: tool (");
    world.assert_clean();
}

#[test]
fn what_nobody_waited_for_is_no_member() {
    needs!(V2, Program("gcc"));
    for options in ["", "--cgroup none"] {
        let world = furnished();
        // Their parent is a leftover; they are none.
        let job = "./tool zombies 200 > out & until [ -s out ]; do sleep 0.01; done; exit 3";
        let done = world.cmd(&format!("perflock {options} sh -c")).arg(job).run().exits(3);
        let said = done.stderr_but_for_waits();
        assert!(said.starts_with("perflock: killed 1 leftover process: tool ("), "{said}");
        world.assert_clean();
        // Their parent is the main process, and they are none when it has ended either.
        let done = world.cmd(&format!("perflock {options} --time-limit 0.3 ./tool zombies 200")).run().exits(124);
        assert!(!done.stderr_but_for_waits().contains("killed "), "{}", done.stderr);
        world.assert_clean();
    }
}

#[test]
fn a_process_whose_main_thread_ended_is_a_member() {
    needs!(V2, Program("gcc"));
    for options in ["", "--cgroup none"] {
        let world = furnished();
        let job = "trap '' TERM; ./tool headless > out & echo $! > pid; until [ -s out ]; do sleep 0.01; done; exit 3";
        let done = world.cmd(&format!("perflock --grace 0.2 {options} sh -c")).arg(job).run().exits(3);
        assert!(done.stderr.starts_with("perflock: killed 1 leftover process: tool ("), "{options}: {}", done.stderr);
        world.assert_clean();
        // Also for the guard.
        let job = world.cmd(&format!("perflock {options} ./tool headless")).spawn();
        job.wait_stdout("ready\n");
        guard_of(&world);
        job.signal(libc::SIGKILL);
        job.wait().dies_of(libc::SIGKILL);
        world.wait_clean();
    }
}
