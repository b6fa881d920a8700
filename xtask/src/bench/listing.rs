//! `wholock --sample 0` while one job of 5,000 processes runs.

use super::area::Inside;
use super::stats::{Line, Sample};
use super::tools::{MANY, Running, time_msec, wait_until_few_processes};
use crate::Failure;

/// Runs that are not counted.
const WARM_UP: usize = 3;

/// Measures `runs` runs.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, runs: usize) -> Result<Vec<Line>, Failure> {
    wait_until_few_processes()?;
    let ready = place.file("wholock-ready");
    let mut job = place.perflock()?;
    job.arg(place.binary("spawner")).arg(MANY.to_string()).arg(&ready);
    let mut job = Running::start(&mut job)?;
    job.wait_for_file(place, &ready)?;
    let mut wholock = place.program("wholock")?;
    wholock.args(["--sample", "0", "--lock"]).arg(place.lock());
    let mut own = Sample::default();
    for run in 0..WARM_UP + runs {
        let took_msec = time_msec(place, &mut wholock)?;
        if run >= WARM_UP {
            own.push(took_msec);
        }
    }
    job.terminate()?;
    wait_until_few_processes()?;
    Ok(vec![Line {
        what: format!("`wholock --sample 0`, one job of {MANY} processes"),
        own: own.show_msec(),
        other: String::new(),
        difference: String::new(),
        target: Some(("≤ 20 ms", own.median() <= 20.0)),
    }])
}
