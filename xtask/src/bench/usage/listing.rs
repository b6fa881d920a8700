//! `wholock --sample 0` beside many jobs, against a look at every descriptor of the machine, which is how lsof and fuser
//! find who has the lock.

use super::super::area::Inside;
use super::super::stats::{Line, Sample};
use super::super::tools::time_msec;
use super::crowd::Crowd;
use crate::Failure;

/// Pairs that are not counted.
const WARM_UP: usize = 3;

/// Measures `pairs` pairs.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, crowd: &Crowd, pairs: usize) -> Result<Vec<Line>, Failure> {
    let mut wholock = place.program("wholock")?;
    wholock.args(["--sample", "0", "--lock"]).arg(place.lock());
    let mut scan = place.program("fdscan")?;
    // At least each job's supervisor.
    scan.arg(place.lock()).arg(crowd.jobs().to_string());
    let mut programs = [wholock, scan];
    let mut samples = [Sample::default(), Sample::default()];
    for pair in 0..WARM_UP + pairs {
        for turn in 0..2 {
            // Each goes first equally often.
            let index = (pair + turn) % 2;
            let took_msec = time_msec(place, &mut programs[index])?;
            if pair >= WARM_UP {
                samples[index].push(took_msec);
            }
        }
    }
    let [own, scan] = &samples;
    let ratio = own.pairs(scan, |own, scan| own / scan);
    let line = |other: String, difference: String, target| Line {
        what: format!("`wholock --sample 0`, {crowd}"),
        own: own.show_msec(),
        other,
        difference,
        target: Some(target),
    };
    Ok(vec![
        line(String::new(), String::new(), ("≤ 30 ms", own.median() <= 30.0)),
        line(
            format!("reading every `/proc/*/fd` (`fdscan.rs`): {}", scan.show_msec()),
            format!("× {}", ratio.show(3)),
            ("≤ 1/5 of it", ratio.median() <= 0.2),
        ),
    ])
}
