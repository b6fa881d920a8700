//! A job whose last exit takes long, since it has much memory to give back.

use super::{furnished, job_group, watch_end};
use crate::guard::guard_of;
use crate::harness::wait_until;
use crate::needs;

/// Whether there is that much memory to spare, in MiB.
fn has(mib: u64) -> bool {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kib / 1024 > 2 * mib
}

#[test]
fn the_lock_is_free_only_when_the_last_page_is_given_back() {
    needs!(V2, Program("gcc"));
    let mib = if has(2048) { 2048 } else { 256 };
    let world = furnished();
    // By itself; as a leftover; and with its supervisor dead.
    let stays = |mib: u64| format!("./tool huge {mib} stays > out & until [ -s out ]; do sleep 0.01; done; touch up");
    let goes = "until [ -e go ]; do sleep 0.01; done";
    let cases = [
        (format!("touch up; {goes}; exec ./tool huge {}", mib / 4), false),
        (format!("trap '' TERM; {}; {goes}", stays(mib)), false),
        (format!("{}; wait", stays(mib / 4)), true),
    ];
    for (job, guarded) in cases {
        let running = world.cmd("perflock --grace 0 sh -c").arg(job).spawn();
        wait_until("the job is there", || world.path("up").exists());
        guard_of(&world);
        watch_end(&world, &job_group(&world), || {
            if guarded { running.signal(libc::SIGKILL) } else { drop(world.write("go", "")) }
        });
        if guarded {
            running.wait().dies_of(libc::SIGKILL)
        } else {
            running.wait().exits(0)
        };
        world.wait_clean();
        for file in ["up", "go", "out"] {
            let _ = std::fs::remove_file(world.path(file));
        }
    }
}
