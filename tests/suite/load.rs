//! Who uses the CPU outside of jobs: what `wholock` says of real busy loops. Each test has users of its own, whose
//! processes nobody else's test starts.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Running, World, pid_in, wait_until};
use crate::needs;
use crate::resources::json_of;

/// By how many percent of a core two readings of one clock may differ that ticks every 10 ms, while a second is watched.
const TOLERANCE: f64 = 15.0;

/// Nothing but work.
const BURN: &str = "while :; do :; done";

/// Nothing but short processes.
const STORM: &str = "while :; do /bin/true; done";

/// What the document says of a user; `null` if nothing.
fn of_user(document: &Value, uid: u32) -> Value {
    let users = document["load_outside"]["users"].as_array().unwrap();
    users.iter().find(|user| user["user"]["uid"] == uid).cloned().unwrap_or_default()
}

/// CPU time of a process and of the children that it waited for.
fn used(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11..15].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Watches for a second, and checks that what is said of `uid` is one process, which used about what is said.
#[track_caller]
fn is_told(world: &World, uid: u32, burner: &Running) -> Value {
    let (mut start, mut used_at_start, mut document, mut user) = Default::default();
    // Where other tests leave it no tenth of a core, nobody is named.
    wait_until("it gets some CPU time", || {
        (start, used_at_start) = (Some(Instant::now()), used(burner.pid()));
        document = json_of(world.cmd("wholock --json --sample 1s"));
        user = of_user(&document, uid);
        !user.is_null()
    });
    let (wall, used) = (start.unwrap().elapsed().as_secs_f64(), (used(burner.pid()) - used_at_start).as_secs_f64());
    assert_eq!(
        (&user["busy_processes"], &user["busiest"][0]["pid"]),
        (&1.into(), &burner.pid().into()),
        "{document:#}"
    );
    assert_eq!(user["busiest"][0]["name"], "sh");
    let told = user["cpu_percent"].as_f64().unwrap();
    assert_eq!(Some(told), user["busiest"][0]["cpu_percent"].as_f64());
    // Other tests take the CPUs as well: what it got is known, but for the time before and after it was watched.
    let watched = document["load_outside"]["elapsed_usec"].as_f64().unwrap() / 1e6;
    let most = 100.0 * used / watched + TOLERANCE;
    let least = 100.0 * (used - (wall - watched)) / watched - TOLERANCE;
    assert!((least..=most).contains(&told), "{told} is not from {least} to {most}: {document:#}");
    user
}

fn end(burner: Running) {
    burner.signal(libc::SIGKILL);
    burner.wait().dies_of(libc::SIGKILL);
}

#[test]
fn who_burns_a_free_machine_is_named_with_what_it_uses() {
    needs!(Root, V2, OwnGroup);
    const UID: u32 = 41_011;
    let world = World::new();
    let burner = world.sh(BURN).uid(UID).spawn();
    let user = is_told(&world, UID, &burner);
    assert_eq!(
        (&user["user"]["name"], &user["busiest"][0]["command"]),
        (&"41011".into(), &vec!["sh", "-c", BURN].into())
    );
    let named = format!("sh ({}) ", burner.pid());
    wait_until("it is named without options", || {
        let text = world.cmd("wholock").run().exits(0).says("").stdout;
        assert!(text.starts_with("the machine is free\n"), "{text}");
        let line = text.lines().find(|line| line.starts_with(&format!("outside the lock: {UID} uses ")));
        line.is_some_and(|line| line.contains("% of a core: ") && line.contains(&named) && line.ends_with('%'))
    });
    // Who only asks whether the machine is free does not wait.
    world.cmd("wholock --sample 0").run().exits(0).prints("the machine is free\n").says("");
    world.cmd("wholock -q").run().exits(0).prints("").says("");
    assert!(json_of(world.cmd("wholock --json --sample 0"))["load_outside"].is_null());
    end(burner);
    assert!(of_user(&json_of(world.cmd("wholock --json")), UID).is_null(), "it has ended");
    world.assert_clean();
}

#[test]
fn a_storm_of_short_processes_counts_for_the_shell_that_waits_for_them() {
    needs!(Root, V2, OwnGroup);
    const UID: u32 = 41_012;
    let world = World::new();
    let storm = world.sh(&format!("echo running; {STORM}")).uid(UID).spawn();
    storm.wait_stdout("running\n");
    let (mut document, mut user) = Default::default();
    wait_until("it is named", || {
        document = json_of(world.cmd("wholock --json --sample 1s"));
        user = of_user(&document, UID);
        !user.is_null()
    });
    let shell = &user["busiest"].as_array().unwrap().iter().find(|busy| busy["pid"] == storm.pid()).unwrap().clone();
    let (all, children) =
        (shell["cpu_percent"].as_f64().unwrap(), shell["ended_children_cpu_percent"].as_f64().unwrap());
    // One after the other, so no more than one core.
    assert!(children > 0.0 && children <= all && all <= 100.0 + TOLERANCE, "{document:#}");
    end(storm);
    wait_until("its last child has ended", || world.processes().is_empty());
    world.assert_clean();
}

#[test]
fn what_a_job_burns_is_not_outside() {
    needs!(Root, V2, OwnGroup);
    for (uid, options) in [(41_013, ""), (41_014, "--cgroup none")] {
        let world = World::for_uid(uid);
        let script = format!("(setsid sh -c 'echo $$ > burner; {BURN}' &) ; sh -c '{STORM}' & echo running; wait");
        let job = world.cmd(&format!("perflock -q {options} --grace 0 sh -c")).arg(script).spawn();
        job.wait_stdout("running\n");
        let inside = pid_in(&world.path("burner"));
        // Also to somebody who cannot read the marker of a job without a group.
        for asks in [uid, 41_015] {
            let document = json_of(world.cmd("wholock --json --sample 300ms").uid(asks));
            assert!(of_user(&document, uid).is_null(), "{options}: {document:#}");
            assert!(document["holders"][0]["processes"].is_u64(), "{document:#}");
        }
        // So it is not that nothing is seen of this user.
        let outside = world.sh(BURN).spawn();
        let before = used(inside);
        is_told(&world, uid, &outside);
        assert!(used(inside) > before, "it burns all the time");
        let start = format!("outside the lock: {uid} uses ");
        wait_until("only the one outside has a line", || {
            let text = world.cmd("wholock --sample 1s").run().exits(0).says("").stdout;
            let line = text.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
            assert!(line.is_empty() || line.contains(&format!(": sh ({}) ", outside.pid())), "{text}");
            assert!(!line.contains(", "), "{text}");
            !line.is_empty()
        });
        end(outside);
        job.signal(libc::SIGTERM);
        job.wait().dies_of(libc::SIGTERM);
        world.assert_clean();
    }
}

#[test]
fn a_loop_of_jobs_does_not_count_for_its_shell() {
    needs!(Root, V2, OwnGroup);
    const UID: u32 = 41_016;
    let world = World::for_uid(UID);
    // Longer than wholock takes, so that one of its two looks meets a job.
    let burn = "timeout 1.5 sh -c \"while :; do :; done\"";
    let script = format!("echo running; while [ ! -e enough ]; do perflock -q sh -c '{burn}; :'; done");
    let jobs = world.sh(&script).spawn();
    jobs.wait_stdout("running\n");
    let mut watched = 0;
    wait_until("ten looks at what the loop uses", || {
        let began = Instant::now();
        let document = json_of(world.cmd("wholock --json --sample 300ms"));
        // On a busy machine it may have taken longer than a job does.
        if began.elapsed() < Duration::from_millis(1400) {
            // What it takes to start a perflock is the shell's own.
            let percent = of_user(&document, UID)["cpu_percent"].as_f64().unwrap_or(0.0);
            assert!(percent < 50.0, "{document:#}");
            watched += 1;
        }
        watched == 10
    });
    world.write("enough", "");
    jobs.wait().exits(0);
    world.assert_clean();
}

#[test]
fn where_other_s_processes_are_hidden_it_says_so() {
    needs!(Root, V2, OwnGroup, Program("unshare"), Program("setpriv"));
    const UID: u32 = 41_017;
    let world = World::for_uid(UID);
    let burners = [world.sh(BURN).spawn(), world.sh(BURN).uid(41_018).spawn()];
    let asked = |options: &str| {
        let user = format!("setpriv --reuid {UID} --regid {UID} --clear-groups");
        world.in_mount_namespace(&format!("mount -t proc -o hidepid=2 proc /proc; exec {user} wholock {options}"))
    };
    wait_until("the own one is named", || {
        let document = json_of(asked("--json --sample 1s"));
        assert_eq!(document["load_outside"]["own_only"], true);
        assert!(of_user(&document, 41_018).is_null(), "{document:#}");
        !of_user(&document, UID).is_null()
    });
    let text = asked("").run().exits(0).stdout;
    assert!(text.ends_with("outside the lock: processes of others are hidden from you\n"), "{text}");
    assert_eq!(json_of(world.cmd("wholock --json --sample 10ms"))["load_outside"]["own_only"], false);
    burners.into_iter().for_each(end);
    world.assert_clean();
}
