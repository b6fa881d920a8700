//! What being pinned adds to a job that does nothing.

use std::process::Command;

use super::super::area::Inside;
use super::super::start::{IDLE, time_in_turn};
use super::super::stats::{Line, Sample};
use super::super::tools::time_msec;
use crate::Failure;
use crate::room::Room;

/// Measures `pairs` rounds of all programs, with idle time before each run.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, room: &Room, pairs: usize) -> Result<Vec<Line>, Failure> {
    // The last one: the first has more to do than others as a rule.
    let cpu = room.cpus.iter().last().ok_or("there is no processor to use")?.to_string();
    let is_hard = time_msec(place, &mut program(place, "perflock", &["--pin=hard", "--cpus", &cpu])?).is_ok();
    let cores: &[&str] = if room.cores > 0 { &["--cores", "1"] } else { &["--cpus", &cpu] };
    let mut programs = [
        program(place, "perflock", &[])?,
        program(place, "perflock", &["--cpus", &cpu])?,
        program(place, "perflock", &["--pin=soft", "--cpus", &cpu])?,
        program(place, "pls", &[])?,
        program(place, "pls", cores)?,
    ];
    let samples = time_in_turn(place, &mut programs, Some(IDLE), pairs)?;
    let [perflock, hard, soft, pls, leased] = &samples[..] else { return Err("there are five programs".to_owned()) };
    let line = |what: String, own: &Sample, than: &str, other: &Sample, limit: Option<f64>| {
        let more_msec = own.pairs(other, |own, other| own - other);
        Line {
            what: format!("{what}, cold"),
            own: own.show_msec(),
            other: format!("`{than} true`: {}", other.show_msec()),
            difference: format!("{} ms more", more_msec.show(2)),
            target: limit.map(|limit| ("≤ 0.3 ms more", more_msec.median() <= limit)),
        }
    };
    let kept = if is_hard { "by a cpuset" } else { "by affinity: no cpuset is to be had here" };
    Ok(vec![
        line(format!("`perflock --cpus {cpu} true` ({kept})"), hard, "perflock", perflock, is_hard.then_some(0.3)),
        line(format!("`perflock --pin soft --cpus {cpu} true`"), soft, "perflock", perflock, None),
        line(format!("`pls {} true`", cores.join(" ")), leased, "pls", pls, None),
    ])
}

/// A job that does nothing.
fn program(place: &Inside, name: &str, options: &[&str]) -> Result<Command, Failure> {
    let mut command = place.program(name)?;
    command.arg("--lock").arg(place.lock()).args(options).arg("true");
    Ok(command)
}
