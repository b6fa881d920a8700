//! `perflock true` against the floor, against flock(1), and against a bash wrapper around flock(1).

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use super::area::Inside;
use super::stats::{Line, Sample};
use super::tools::time_msec;
use crate::Failure;

/// Idle time before every run of a cold measurement: hot loops hide what the kernel's locks cost.
pub(super) const IDLE: Duration = Duration::from_millis(100);

/// Rounds that are not counted.
const WARM_UP: usize = 3;

/// Milliseconds of each program in `pairs` rounds of all of them, with idle time before each run.
///
/// # Errors
/// A program cannot be run.
pub(super) fn time_in_turn(
    place: &Inside,
    programs: &mut [Command],
    idle: Option<Duration>,
    pairs: usize,
) -> Result<Vec<Sample>, Failure> {
    let mut samples = vec![Sample::default(); programs.len()];
    for round in 0..WARM_UP + pairs {
        for turn in 0..programs.len() {
            // Each goes first equally often.
            let index = (round + turn) % programs.len();
            if let Some(idle) = idle {
                std::thread::sleep(idle);
            }
            let took_msec = time_msec(place, &mut programs[index])?;
            if round >= WARM_UP {
                samples[index].push(took_msec);
            }
        }
    }
    Ok(samples)
}

/// Measures `pairs` rounds of all programs, with idle time before each run.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, name: &str, idle: Option<Duration>, pairs: usize) -> Result<Vec<Line>, Failure> {
    let samples = time_in_turn(place, &mut programs(place)?, idle, pairs)?;
    let cold = idle.is_some();
    let [perflock, floor, flock, wrapper] = &samples[..] else { return Err("there are four programs".to_owned()) };
    let ratio = |other: &Sample| perflock.pairs(other, |own, other| own / other);
    let line = |other: String, difference: String, target| Line {
        what: format!("`perflock true`, {name}"),
        own: perflock.show_msec(),
        other,
        difference,
        target,
    };
    let to_floor = ratio(floor);
    let to_wrapper = ratio(wrapper);
    let more_msec = perflock.median() - flock.median();
    Ok(vec![
        line(
            format!("floor (`floor.rs`, built like perflock): {}", floor.show_msec()),
            format!("× {}", to_floor.show(2)),
            cold.then_some(("≤ 1.5 × the floor", to_floor.median() <= 1.5)),
        ),
        line(
            format!("`flock LOCK true`: {}", flock.show_msec()),
            format!("{more_msec:+.2} ms between medians"),
            cold.then_some(("≤ flock + 2 ms", more_msec <= 2.0)),
        ),
        line(
            format!("bash wrapper: {}", wrapper.show_msec()),
            format!("× {}", to_wrapper.show(2)),
            cold.then_some(("below the wrapper", to_wrapper.median() < 1.0)),
        ),
    ])
}

/// perflock, the floor, flock(1), and the wrapper, each running true(1).
fn programs(place: &Inside) -> Result<[Command; 4], Failure> {
    let mut perflock = place.perflock()?;
    perflock.arg("true");
    let mut floor = place.program("floor")?;
    floor.arg(place.group());
    // A lock of their own; nobody ever waits for it.
    let lock = place.file("flock");
    let mut flock = place.silent("flock")?;
    flock.arg(&lock).arg("true");
    let script = place.file("wrapper");
    let text = format!(
        "#!/bin/bash\nexec 9<{}\nflock -n -x 9 || {{ echo waiting >&2; flock -x 9; }}\n\"$@\" 9<&-\ns=$?\nexec 9<&-\nexit $s\n",
        lock.display()
    );
    let failed = |error| format!("cannot write {}: {error}", script.display());
    std::fs::write(&lock, "").map_err(|error| format!("cannot write {}: {error}", lock.display()))?;
    std::fs::write(&script, text).map_err(failed)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let mut wrapper = place.silent(&script)?;
    wrapper.arg("true");
    Ok([perflock, floor, flock, wrapper])
}
