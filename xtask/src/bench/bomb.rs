//! A fork bomb that runs into its time limit: when the lock is free again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::area::Inside;
use super::machine;
use super::release::{files, wait_for_lock};
use super::stats::{Line, Sample};
use super::tools::{MANY, Running, wait_until_few_processes};
use crate::Failure;

/// How many processes those have that never sleep.
const BUSY: usize = 1000;

/// When it ends. By then it has as many processes as it may have.
const LIMIT: Duration = Duration::from_secs(2);

/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(1);

/// How often its processes are counted.
const COUNT_EVERY: Duration = Duration::from_millis(100);

/// The exit code of a job that its time limit ended.
const TIMED_OUT: i32 = 124;

/// Measures `runs` runs of each kind of bomb.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, runs: usize, print: &mut dyn FnMut(Vec<Line>)) -> Result<(), Failure> {
    for (most, pause_msec, how) in [(MANY, "1000", "that tries again each second"), (BUSY, "0", "that never sleeps")] {
        machine::check_room(most + 1000)?;
        for (term, and) in [("dies", "dies of"), ("ignores", "ignores")] {
            let (mut after_limit, mut sizes) = (Sample::default(), Sample::default());
            for _ in 0..runs {
                wait_until_few_processes()?;
                let (free_sec, size) = run(place, &[&most.to_string(), pause_msec, term])?;
                after_limit.push(free_sec);
                sizes.push(size as f64);
            }
            let (best, worst) = (after_limit.quantile(0.0), after_limit.quantile(1.0));
            let allowed = GRACE + Duration::from_secs(1);
            print(vec![Line {
                what: format!(
                    "fork bomb of {:.0} processes {how} and {and} TERM, `--time-limit 2s --grace 1s`: limit to lock free \
                     ({runs} runs)",
                    sizes.median()
                ),
                own: format!("{} s", after_limit.show(2)),
                other: String::new(),
                difference: format!("{best:.2} s at best, {worst:.2} s at worst"),
                target: Some(("≤ grace + 1 s, each", worst <= allowed.as_secs_f64())),
            }]);
        }
    }
    wait_until_few_processes()
}

/// Runs one. Seconds from its limit to the lock being obtained by somebody who waited for it, and how many processes it had.
fn run(place: &Inside, arguments: &[&str]) -> Result<(f64, usize), Failure> {
    let (_, stamp) = files(place)?;
    let mut command = place.perflock()?;
    command.args(["--time-limit", "2s", "--grace", "1s"]).arg(place.binary("bomb")).args(arguments).arg(&stamp);
    let mut running = Running::start(&mut command)?;
    running.wait_for_file(place, &stamp)?;
    let group = place.group().to_owned();
    // Beside the wait for the lock, since nobody knows when the bomb lets us run.
    let counter = std::thread::spawn(move || largest(&group));
    let free_nsec = wait_for_lock(place)?;
    let size = counter.join().map_err(|_| "nobody counted the bomb")?;
    match running.wait()?.code() {
        Some(TIMED_OUT) => {}
        other => return Err(place.failed(&format!("a bomb ended with {other:?} instead of its time limit"))),
    }
    let stamp = fs::read_to_string(&stamp).ok().and_then(|text| text.parse::<i64>().ok());
    let started_nsec = stamp.ok_or_else(|| place.failed("a bomb did not say when it started"))?;
    Ok(((free_nsec - started_nsec) as f64 / 1e9 - LIMIT.as_secs_f64(), size))
}

/// The most processes that the job group below `group` had, until it is gone.
fn largest(group: &Path) -> usize {
    let mut largest = 0;
    loop {
        let groups = fs::read_dir(group).into_iter().flatten().flatten();
        let mut jobs = groups.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"perflock-"));
        let Some(job) = jobs.next() else { return largest };
        let members = fs::read_to_string(job.path().join("cgroup.procs")).unwrap_or_default();
        largest = largest.max(members.lines().count());
        std::thread::sleep(COUNT_EVERY);
    }
}
