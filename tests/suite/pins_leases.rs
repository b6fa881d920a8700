//! Cores of their own for shared jobs that ask for some: who gets which, who waits for whom, and who is not passed.

use std::time::Duration;

use crate::harness::{
    ALICE, BOB, Cmd, Running, V1Group, World, alive, kill_pair, me, pid_in, signal, state_of, wait_until,
};
use crate::needs;
use crate::pins::{Room, end};
use crate::queue::{appends, sleeps, voluntary_switches};
use crate::resources::json_of;
use crate::users::{assert_clean, by};

/// Says where it runs, and does so until it gets a signal.
const STAYS: &str = "echo $PERFLOCK_CPUS; exec sleep 600";

/// What is said of such a job, when it just started.
fn runs(user: &str) -> String {
    format!("; {user} runs sh -c 'echo $PERFLOCK_CPUS; exec sleep 600' (shared, ")
}

/// A job with cores of its own, once it runs, and which these are.
#[track_caller]
fn having(cmd: Cmd) -> (Running, String) {
    let job = cmd.args(["sh", "-c", STAYS]).spawn();
    let cpus = runs_on(&job);
    (job, cpus)
}

/// Where such a job runs.
#[track_caller]
fn runs_on(job: &Running) -> String {
    job.wait_stdout("\n");
    job.stdout().trim_end().to_owned()
}

fn pls(room: &Room, cores: usize) -> Cmd {
    room.cmd(&format!("pls -q --cores {cores}"))
}

/// Starts a job that has to wait, and returns once it has said so and sleeps.
#[track_caller]
fn waiting(world: &World, ticket: &str, cmd: Cmd, said: &str) -> Running {
    let waiter = cmd.spawn();
    waiter.wait_stderr(said);
    assert!(world.tickets().iter().any(|name| name == ticket), "{ticket}: {:?}", world.tickets());
    wait_until("the waiter sleeps", || sleeps(waiter.pid()));
    waiter
}

/// Such a job that asks for cores.
#[track_caller]
fn asking(room: &Room, ticket: &str, cores: usize, said: &str) -> Running {
    let cmd = room.cmd(&format!("pls --cores {cores}")).args(["sh", "-c", STAYS]);
    let what = if cores == 1 { "core" } else { "cores" };
    waiting(room, ticket, cmd, &format!("pls: waiting for {cores} {what} {said}"))
}

#[test]
fn two_jobs_have_different_cores_and_the_third_gets_those_of_the_first_to_end() {
    needs!(V2, TwoCores);
    for first in [0, 1] {
        let room = Room::new();
        let (zero, cpus) = having(pls(&room, 1));
        assert_eq!(cpus, "0");
        let (one, cpus) = having(pls(&room, 1));
        assert_eq!(cpus, "1");
        let third = asking(&room, "3.s", 1, &format!("(0 of 2 free) behind 2 jobs{}", runs(&me())));
        let text = room.cmd("wholock --sample 0").run().exits(0).stdout;
        assert!(text.contains("\ncpus of node 0: 0 job 1; 1 job 2"), "{text}");
        assert!(text.contains("  waiting for cores  "), "{text}");
        let full = room.cmd("wholock 3").run().exits(0).stdout;
        assert!(full.contains("\npins              asks for 1 core\n"), "{full}");
        let waiter = json_of(room.cmd("wholock --json --sample 0"))["waiters"][0].clone();
        assert_eq!((&waiter["state"], &waiter["pin"]["cores_asked"]), (&"waiting-for-cores".into(), &1.into()));
        assert!(waiter["pin"]["cpus"].is_null() && waiter["pin"]["reserved"].is_null(), "{waiter:#}");
        assert_eq!(third.stdout(), "");
        let (ends, stays) = if first == 0 { (zero, one) } else { (one, zero) };
        end(ends);
        assert_eq!(runs_on(&third), first.to_string());
        third.wait_stderr("pls: got lock after ");
        end(stays);
        end(third);
        room.assert_clean();
    }
}

#[test]
fn a_later_smaller_ask_does_not_pass_a_larger_one_and_who_asks_for_none_does() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (first, _) = having(pls(&room, 1));
    let large = asking(&room, "2.s", 2, &format!("(1 of 2 free) behind 1 job{}", runs(&me())));
    let small = asking(&room, "3.s", 1, &format!("(others asked before) behind 2 jobs{}", runs(&me())));
    room.cmd("pls -n --pin soft --cpus 1 echo passed").run().exits(0).prints("passed\n").says("");
    room.cmd("pls -n echo passed").run().exits(0).prints("passed\n").says("");
    assert_eq!((large.stdout(), small.stdout()), (String::new(), String::new()));
    end(first);
    assert_eq!(runs_on(&large), "0-1");
    wait_until("the small one sleeps", || sleeps(small.pid()));
    assert_eq!(small.stdout(), "");
    end(large);
    assert_eq!(runs_on(&small), "0");
    end(small);
    room.assert_clean();
}

#[test]
fn who_was_told_where_to_run_is_kept_clear_of_as_long_as_there_are_other_cores() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let told = room.holder("pls -q --cpus 0");
    let (first, cpus) = having(pls(&room, 1));
    assert_eq!(cpus, "1");
    let (second, cpus) = having(pls(&room, 1));
    assert_eq!(cpus, "0");
    [told, first, second].into_iter().for_each(end);
    room.assert_clean();
}

#[test]
fn an_exclusive_job_and_those_who_ask_keep_their_order() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (first, _) = having(pls(&room, 2));
    let asks = asking(&room, "2.s", 1, "(0 of 2 free) behind 1 job");
    let alone =
        waiting(&room, "3.x", room.enter(appends(&room, "perflock", "exclusive")), "waiting for lock behind 2 jobs");
    let later =
        waiting(&room, "4.s", room.enter(appends(&room, "pls --cores 1", "later")), "waiting for lock behind 1 job");
    let plain = waiting(&room, "5.s", room.enter(appends(&room, "pls", "plain")), "waiting for lock behind 1 job");
    end(first);
    assert_eq!(runs_on(&asks), "0");
    // There is a free core, but the exclusive job is before.
    for waiter in [&alone, &later, &plain] {
        wait_until("it sleeps", || sleeps(waiter.pid()));
    }
    assert_eq!(room.read("order"), "");
    end(asks);
    for waiter in [alone, later, plain] {
        waiter.wait().exits(0).prints("");
    }
    assert!(room.read("order").starts_with("exclusive\n"), "{}", room.read("order"));
    assert_eq!(room.read("order").lines().count(), 3);
    room.assert_clean();
}

#[test]
fn behind_an_exclusive_holder_nobody_is_said_to_run_who_waits() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let holder = room.holder("perflock");
    let both = "(0 of 2 free) behind 1 job";
    let first =
        waiting(&room, "2.s", room.cmd("pls --cores 2").args(["sh", "-c", STAYS]), "waiting for lock behind 1 job");
    let second = asking(&room, "3.s", 2, both);
    // The first has cores, but waits.
    assert!(!second.stderr().contains(&runs(&me())), "{}", second.stderr());
    end(holder);
    assert_eq!(runs_on(&first), "0-1");
    assert_eq!(second.stdout(), "");
    end(first);
    assert_eq!(runs_on(&second), "0-1");
    end(second);
    room.assert_clean();
}

#[test]
fn an_exclusive_job_has_every_core_and_leases_none() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (job, cpus) = having(room.cmd("perflock -q --cores 2"));
    assert_eq!(cpus, "0-1");
    let lines = room.ticket("1.x");
    assert!(lines[0]["cores"].is_null() && !lines.iter().any(|line| line["event"] == "cores"), "{lines:?}");
    let waiter =
        waiting(&room, "2.s", room.cmd("pls --cores 1").args(["sh", "-c", STAYS]), "waiting for lock behind 1 job");
    end(job);
    assert_eq!(runs_on(&waiter), "0");
    let alone = waiting(&room, "3.x", room.cmd("perflock --cores 1 echo ran"), "waiting for lock behind 1 job");
    end(waiter);
    alone.wait().exits(0).prints("ran\n");
    room.assert_clean();
}

#[test]
fn who_does_not_want_to_wait_for_cores_is_told_what_is_not_free() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (first, _) = having(pls(&room, 1));
    let done = room.cmd("pls -n --pin soft --cores 2 touch ran").run().exits(75).prints("");
    let said = format!("pls: not waiting for 2 cores (1 of 2 free) behind 1 job{}", runs(&me()));
    assert!(done.stderr.starts_with(&said), "{}", done.stderr);
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
    room.cmd("pls -q -n -E 9 --cores 2 touch ran").run().exits(9).prints("").says("");
    let done = room.cmd("pls -w 0.2 --pin soft --cores 2 touch ran").run().exits(75).prints("");
    let lines: Vec<&str> = done.stderr.lines().collect();
    let said = format!("pls: waiting for 2 cores (1 of 2 free) behind 1 job{}", runs(&me()));
    assert!(lines[0].starts_with(&said), "{lines:?}");
    assert!(lines[1].starts_with("pls: gave up after waiting ") && lines.len() == 2, "{lines:?}");
    assert!(!room.path("ran").exists());
    assert_eq!(room.tickets(), ["1.s"]);
    // Behind somebody who asks, and not behind those who have cores.
    let asks = asking(&room, "2.s", 2, "(1 of 2 free) behind 1 job");
    room.cmd("pls -n --pin soft --cores 1 true")
        .run()
        .exits(75)
        .mentions("not waiting for 1 core (others asked before) behind 2 jobs");
    room.cmd("pls -q -w 0.2 --cores 1 true").run().exits(75).prints("").says("");
    // They are not put off by those who gave up.
    end(first);
    assert_eq!(runs_on(&asks), "0-1");
    end(asks);
    room.cmd("pls -n -q --cores 2 true").run().exits(0);
    room.assert_clean();
}

#[test]
fn who_asks_and_is_stopped_lets_others_pass_and_comes_back() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (first, _) = having(pls(&room, 1));
    let large = asking(&room, "2.s", 2, "(1 of 2 free) behind 1 job");
    // Nobody passes it meanwhile: it keeps its place.
    large.signal(libc::SIGTSTP);
    wait_until("it is stopped", || state_of(large.pid()) == 'T');
    large.signal(libc::SIGCONT);
    wait_until("it is back", || state_of(large.pid()) != 'T' && sleeps(large.pid()));
    let small = asking(&room, "3.s", 1, "(others asked before) behind 2 jobs");
    large.signal(libc::SIGTSTP);
    assert_eq!(runs_on(&small), "1");
    wait_until("it is stopped", || state_of(large.pid()) == 'T');
    assert_eq!(room.tickets(), ["1.s", "2.s", "3.s"]);
    large.signal(libc::SIGCONT);
    wait_until("it is at the end of the queue", || room.tickets().iter().any(|name| name == "4.s"));
    wait_until("it sleeps", || sleeps(large.pid()));
    // It is in the way of later ones again.
    let last = asking(&room, "5.s", 1, "(others asked before) behind 3 jobs");
    end(first);
    wait_until("both sleep", || sleeps(large.pid()) && sleeps(last.pid()));
    assert_eq!((large.stdout(), last.stdout()), (String::new(), String::new()));
    end(small);
    assert_eq!(runs_on(&large), "0-1");
    end(large);
    assert_eq!(runs_on(&last), "0");
    end(last);
    room.assert_clean();
}

#[test]
fn a_stopped_asker_that_is_killed_or_comes_back_to_free_cores_is_no_problem() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (first, _) = having(pls(&room, 2));
    let killed = asking(&room, "2.s", 2, "(0 of 2 free) behind 1 job");
    let back = asking(&room, "3.s", 2, "(others asked before) behind 2 jobs");
    for waiter in [&killed, &back] {
        waiter.signal(libc::SIGTSTP);
        wait_until("it is stopped", || state_of(waiter.pid()) == 'T');
    }
    killed.signal(libc::SIGKILL);
    killed.wait().dies_of(libc::SIGKILL);
    end(first);
    let (next, cpus) = having(pls(&room, 1));
    assert_eq!(cpus, "0");
    back.signal(libc::SIGCONT);
    wait_until("it waits for the one that passed it", || room.tickets().len() == 2 && sleeps(back.pid()));
    assert_eq!(back.stdout(), "");
    end(next);
    assert_eq!(runs_on(&back), "0-1");
    end(back);
    room.assert_clean();
}

#[test]
fn cores_that_a_stopped_waiter_had_already_go_to_the_next() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let holder = room.holder("perflock");
    let ask = || room.cmd("pls --cores 2").args(["sh", "-c", STAYS]);
    let first = waiting(&room, "2.s", ask(), "waiting for lock behind 1 job");
    let second = asking(&room, "3.s", 2, "(0 of 2 free) behind 1 job");
    let has_cores = |ticket: &str| room.ticket(ticket).iter().any(|line| line["event"] == "cores");
    assert!(has_cores("2.s") && !has_cores("3.s"));
    first.signal(libc::SIGTSTP);
    wait_until("it is stopped", || state_of(first.pid()) == 'T');
    wait_until("the second has them", || has_cores("3.s"));
    let text = room.cmd("wholock --sample 0").run().exits(0).stdout;
    assert!(text.contains("\ncpus of node 0: 0-1 job 3"), "{text}");
    first.signal(libc::SIGCONT);
    wait_until("it is at the end of the queue", || room.tickets() == ["1.x", "3.s", "4.s"]);
    end(holder);
    assert_eq!(runs_on(&second), "0-1");
    wait_until("the first sleeps", || sleeps(first.pid()));
    assert_eq!(first.stdout(), "");
    end(second);
    assert_eq!(runs_on(&first), "0-1");
    end(first);
    room.assert_clean();
}

#[test]
fn the_end_of_whoever_is_first_in_the_line_wakes_the_next() {
    needs!(V2, TwoCores);
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        let room = Room::new();
        let (first, _) = having(pls(&room, 1));
        let large = asking(&room, "2.s", 2, "(1 of 2 free) behind 1 job");
        let small = asking(&room, "3.s", 1, "(others asked before) behind 2 jobs");
        large.signal(signal);
        large.wait().dies_of(signal);
        assert_eq!(runs_on(&small), "1");
        end(first);
        end(small);
        room.cmd("pls true").run().exits(0).says("");
        room.assert_clean();
    }
}

#[test]
fn a_killed_supervisor_s_cores_are_free_when_its_guard_has_ended_the_job() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (first, _) = having(pls(&room, 2));
    let waiter = asking(&room, "2.s", 2, "(0 of 2 free) behind 1 job");
    // The guard alone is replaced, and nothing is given back.
    signal(room.guard_of("1.s"), libc::SIGKILL);
    first.wait_stderr("warning: the guard was killed; another took its place");
    wait_until("the waiter sleeps", || sleeps(waiter.pid()));
    assert_eq!(waiter.stdout(), "");
    first.signal(libc::SIGKILL);
    first.wait().dies_of(libc::SIGKILL);
    assert_eq!(runs_on(&waiter), "0-1");
    end(waiter);
    room.wait_clean();
}

#[test]
fn the_own_orphan_s_cores_are_not_given_away_until_it_is_ended() {
    needs!(V2, TwoCores);
    for waits in [true, false] {
        let room = Room::new();
        let job = room.cmd("pls -q --cores 2 sh -c").arg("echo $$ > pid; exec sleep 600 >/dev/null 2>&1").spawn();
        let member = pid_in(&room.path("pid"));
        // Killed and not reaped is dead.
        let script = format!("grep -qs 'State:.[RSDT]' /proc/{member}/status && exit 9; {STAYS}");
        let ask = || room.cmd("pls --pin soft --cores 1").args(["sh", "-c", &script]);
        // One that waits already, and one that comes later.
        let early = waits.then(|| waiting(&room, "2.s", ask(), "waiting for 1 core (0 of 2 free)"));
        let guard = room.guard_of("1.s");
        kill_pair(job, guard);
        // Who asks for none does not end it.
        if !waits {
            room.cmd("pls true").run().exits(0).says("");
            assert!(alive(member));
        }
        let next = early.unwrap_or_else(|| ask().spawn());
        assert_eq!(runs_on(&next), "0");
        let said = format!(
            "pls: ending the job sh -c 'echo $$ > pid; exec sleep 600 >/dev/null 2>&1' of {}, whose supervisor was \
             killed, before starting\n",
            me()
        );
        next.wait_stderr(&said);
        assert!(!alive(member));
        end(next);
        room.cmd("pls true").run().exits(0).says("");
        room.assert_clean();
    }
}

/// ALICE's job with so many cores, without supervisor and guard: its one process.
fn orphan_of_alice(room: &Room, options: &str) -> i32 {
    let script = "echo $$ > pid; exec sleep 600 >/dev/null 2>&1";
    let job = room.enter(by(room, ALICE, "pls -q")).args(options.split(' ')).args(["sh", "-c", script]).spawn();
    let member = pid_in(&room.path("pid"));
    let ticket = room.tickets().pop().unwrap();
    room.kill_both(job, &ticket);
    assert!(alive(member));
    member
}

#[test]
fn another_user_s_orphan_keeps_its_cores_until_it_ends() {
    needs!(Root, V2, OwnGroup, TwoCores);
    let room = Room::for_uid(ALICE);
    let member = orphan_of_alice(&room, "--cores 1");
    // There is another core.
    let (beside, cpus) = having(room.enter(by(&room, BOB, "pls -q -n --cores 1")));
    assert_eq!(cpus, "1");
    end(beside);
    let bob = room.enter(by(&room, BOB, "pls --pin soft --cores 2")).args(["sh", "-c", STAYS]).spawn();
    bob.wait_stderr("pls: waiting for the job sh -c 'echo $$ > pid; ");
    bob.wait_stderr(" of 41001, whose supervisor was killed, to end (only 41001 or root can end it)\n");
    wait_until("it sleeps", || sleeps(bob.pid()));
    let before = voluntary_switches(bob.pid());
    // This is what is measured: half a second of it.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(voluntary_switches(bob.pid()), before);
    assert!(alive(member) && bob.stdout().is_empty());
    signal(member, libc::SIGKILL);
    assert_eq!(runs_on(&bob), "0-1");
    end(bob);
    by(&room, ALICE, "pls true").run().exits(0).says("");
    assert_clean(&room, &[ALICE, BOB]);
    room.assert_clean();
}

#[test]
fn an_orphan_that_ends_frees_its_cores_though_others_go_on() {
    needs!(Root, V2, OwnGroup, TwoCores);
    let room = Room::for_uid(ALICE);
    let member = orphan_of_alice(&room, "--cores 1");
    let (beside, cpus) = having(room.enter(by(&room, BOB, "pls -q --cores 1")));
    assert_eq!(cpus, "1");
    let bob = waiting(
        &room,
        "3.s",
        room.enter(by(&room, BOB, "pls --cores 1")).args(["sh", "-c", STAYS]),
        "waiting for 1 core (0 of 2 free) behind 2 jobs",
    );
    signal(member, libc::SIGKILL);
    assert_eq!(runs_on(&bob), "0");
    end(bob);
    end(beside);
    by(&room, ALICE, "pls true").run().exits(0).says("");
    assert_clean(&room, &[ALICE, BOB]);
    room.assert_clean();
}

#[test]
fn an_orphan_that_nobody_can_see_does_not_keep_whoever_asks_busy() {
    needs!(Root, V2, OwnGroup, TwoCores);
    let room = Room::for_uid(ALICE);
    let member = orphan_of_alice(&room, "--cgroup none --cores 2");
    let bob = room.enter(by(&room, BOB, "pls --pin soft --cores 1")).args(["sh", "-c", STAYS]).spawn();
    let said = "pls: warning: the job sh -c 'echo $$ > pid; exec sleep 600 >/dev/null 2>&1' of 41001 ran without a job group, \
                and its supervisor was killed; whether its processes ended is unknown (only 41001 or root can see; the next \
                perflock of either ends them)\n";
    bob.wait_stderr(said);
    // As the whole machine would be, the cores are given to whoever asks.
    runs_on(&bob);
    assert_eq!(bob.stderr().matches(said).count(), 1, "{}", bob.stderr());
    end(bob);
    by(&room, BOB, "pls -q -n --pin soft --cores 2 echo ran").run().exits(0).prints("ran\n");
    assert!(alive(member));
    let done = by(&room, 0, "pls --pin soft --cores 2 true").run().exits(0);
    assert!(done.stderr.contains("pls: ending the job sh -c "), "{}", done.stderr);
    wait_until("it is ended", || !alive(member));
    by(&room, 0, "pls true").run().exits(0);
    assert_clean(&room, &[ALICE, BOB, 0]);
}

#[test]
fn a_cancelled_job_s_cores_go_to_the_next() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (first, _) = having(pls(&room, 2));
    let waiter = asking(&room, "2.s", 1, "(0 of 2 free) behind 1 job");
    let last = asking(&room, "3.s", 2, "(others asked before) behind 2 jobs");
    room.cmd("perflock --cancel 1").run().exits(0);
    first.wait().dies_of(libc::SIGTERM);
    assert_eq!(runs_on(&waiter), "0");
    // Who waits can be cancelled as well.
    room.cmd("perflock --cancel 3").run().exits(0);
    last.wait().dies_of(libc::SIGTERM).mentions(&format!("pls: cancelled by {}\n", me()));
    end(waiter);
    room.assert_clean();
}

#[test]
fn whoever_waits_for_cores_is_not_woken_while_others_come_and_go() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let (zero, _) = having(pls(&room, 1));
    let (one, _) = having(pls(&room, 1));
    let first = asking(&room, "3.s", 1, "(0 of 2 free) behind 2 jobs");
    let second = asking(&room, "4.s", 1, "(others asked before) behind 3 jobs");
    let waiters = [first, second];
    let switches = || [0, 1].map(|index: usize| voluntary_switches(waiters[index].pid()));
    let before = switches();
    room.cmd("pls -n true").run().exits(0);
    room.cmd("pls -q -n --cores 1 true").run().exits(75);
    room.cmd("wholock --sample 0").run().exits(0);
    let behind = asking(&room, "5.s", 1, "(others asked before) behind 4 jobs");
    behind.signal(libc::SIGINT);
    behind.wait().dies_of(libc::SIGINT);
    // This is what is measured: a second of it.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(switches(), before);
    let [first, second] = waiters;
    end(zero);
    assert_eq!(runs_on(&first), "0");
    wait_until("the second sleeps", || sleeps(second.pid()));
    end(one);
    assert_eq!(runs_on(&second), "1");
    end(first);
    end(second);
    room.assert_clean();
}

#[test]
fn many_jobs_never_share_a_core_that_one_has_to_itself() {
    needs!(V2, TwoCores);
    let room = Room::new();
    let holder = room.holder("perflock");
    // Each makes a directory for each of its processors: that two have one at once is an error that it tells.
    let script = "IFS=-; for cpu in $PERFLOCK_CPUS; do mkdir cpu.$cpu || echo taken; done; sleep 0.02; \
                  for cpu in $PERFLOCK_CPUS; do rmdir cpu.$cpu; done";
    let alone = "[ -e cpu.0 ] || [ -e cpu.1 ] && echo not alone; sleep 0.01; [ -e cpu.0 ] || [ -e cpu.1 ] && echo not alone; true";
    let jobs: Vec<_> = (0..30)
        .map(|number| match number % 6 {
            5 => room.cmd("perflock -q sh -c").arg(alone).spawn(),
            4 => room.cmd("pls -q true").spawn(),
            3 => room.cmd("pls -q --cores 2 sh -c").arg(script).spawn(),
            _ => room.cmd("pls -q --cores 1 sh -c").arg(script).spawn(),
        })
        .collect();
    wait_until("all have joined", || room.tickets().len() == 31);
    end(holder);
    for job in jobs {
        job.wait().exits(0).prints("").says("");
    }
    room.assert_clean();
}

#[test]
fn a_core_that_is_outside_of_the_own_cpuset_is_nobody_s_to_wait_for() {
    needs!(Root, V2, TwoCores, V1("cpuset"));
    let room = Room::new();
    let (first, cpus) = having(pls(&room, 1));
    assert_eq!(cpus, "0");
    // One job may use only the core that is leased, another one only the free one.
    let [narrow, other] = ["0", "1"].map(|cpus| V1Group::cpuset(cpus).unwrap());
    let cmd = narrow.enter(World::cmd(&room, "pls --cores 1")).args(["sh", "-c", STAYS]);
    let waiter = waiting(&room, "2.s", cmd, "pls: waiting for 1 core (0 of 1 free) behind 1 job");
    // First come, first served, though it could have another core than the first.
    let cmd = other.enter(World::cmd(&room, "pls --cores 1")).args(["sh", "-c", STAYS]);
    let behind = waiting(&room, "3.s", cmd, "pls: waiting for 1 core (others asked before) behind 2 jobs");
    end(first);
    assert_eq!((runs_on(&waiter), runs_on(&behind)), ("0".to_owned(), "1".to_owned()));
    end(waiter);
    end(behind);
    room.assert_clean();
}
