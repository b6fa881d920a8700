//! What `perflock true` pays for being asked whether anything escaped from the job: nothing that can be seen, however many
//! processes there are besides.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use super::area::Inside;
use super::start::{IDLE, time_in_turn};
use super::stats::{Line, Sample};
use super::tools::{Running, wait_until_few_processes};
use crate::Failure;

/// How many processes sleep elsewhere on a full machine.
const OTHERS: usize = 3000;

/// Measures `pairs` rounds, with few other processes and with many.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, pairs: usize, print: &mut dyn FnMut(Vec<Line>)) -> Result<(), Failure> {
    wait_until_few_processes()?;
    print(compare(place, pairs, "")?);
    let others = Others::start(place)?;
    print(compare(place, pairs, &format!(", {OTHERS} other processes"))?);
    drop(others);
    wait_until_few_processes()
}

/// The default against a run that does not ask, and against itself: the second ratio is what the first is blurred by.
fn compare(place: &Inside, pairs: usize, besides: &str) -> Result<Vec<Line>, Failure> {
    let mut programs = [program(place, &[])?, program(place, &["--escapes", "ignore"])?, program(place, &[])?];
    let samples = time_in_turn(place, &mut programs, Some(IDLE), pairs)?;
    let [own, ignoring, again] = &samples[..] else { return Err("there are three programs".to_owned()) };
    let ratio = |other: &Sample| own.pairs(other, |own, other| own / other);
    let line = |other: String, ratio: Sample, target| Line {
        what: format!("`perflock true`, cold{besides} ({pairs} pairs)"),
        own: own.show_msec(),
        other,
        difference: format!("× {}", ratio.show(3)),
        target,
    };
    let (to_ignoring, to_itself) = (ratio(ignoring), ratio(again));
    let met = to_ignoring.median() <= 1.03;
    Ok(vec![
        line(
            format!("`perflock --escapes ignore true`: {}", ignoring.show_msec()),
            to_ignoring,
            Some(("≤ 1.03 ×", met)),
        ),
        line(format!("itself: {}", again.show_msec()), to_itself, None),
    ])
}

/// A job that does nothing.
fn program(place: &Inside, options: &[&str]) -> Result<Command, Failure> {
    let mut command = place.perflock()?;
    command.args(options).arg("true");
    Ok(command)
}

/// Processes that sleep in the bench's group and in no job.
struct Others(Running);

impl Others {
    fn start(place: &Inside) -> Result<Self, Failure> {
        let ready = place.file("others-ready");
        let mut command = place.program("spawner")?;
        command.arg(OTHERS.to_string()).arg(&ready).process_group(0);
        let mut others = Self(Running::start(&mut command)?);
        others.0.wait_for_file(place, &ready)?;
        // So many forks are followed by some work of the kernel's.
        std::thread::sleep(Duration::from_secs(1));
        Ok(others)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        // SAFETY: the group is that of our child, which leads it and was not waited for, so that the number is its own.
        unsafe { libc::kill(-self.0.pid().cast_signed(), libc::SIGKILL) };
    }
}
