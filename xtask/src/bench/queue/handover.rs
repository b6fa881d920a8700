//! From the end of one job to the start of the next, with a queue of waiters behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::super::area::Inside;
use super::super::stats::{Line, Sample};
use super::super::tools::wait_until;
use super::{Held, LONG, SHORT, with_lock};
use crate::Failure;

/// How many hand-overs at the start of a queue are not counted.
const WARM_UP: usize = 2;

/// How many jobs of a long queue run before the others are ended.
const SERVED: usize = 40;

/// How often a short queue is measured for each long one.
const SHORT_PER_ROUND: usize = 5;

/// Idle time before the first hand-over.
const IDLE: Duration = Duration::from_millis(100);

/// Who waits.
#[derive(Clone, Copy, Debug)]
enum Who {
    /// `perflock`.
    Perflock,
    /// flock(1).
    Flock,
    /// `queuefloor`.
    Floor,
    /// `queuefloor --planted`.
    Planted,
}

/// What is compared, in the order of the samples.
const SHORT_QUEUES: [Who; 4] = [Who::Perflock, Who::Flock, Who::Floor, Who::Planted];
/// See [`SHORT_QUEUES`].
const LONG_QUEUES: [Who; 3] = [Who::Perflock, Who::Floor, Who::Planted];

/// The medians of one variant's runs, in milliseconds: one a round, and all hand-overs of all rounds for the spread.
#[derive(Clone, Debug, Default)]
struct Variant {
    /// A round's median.
    rounds: Sample,
    /// Everything.
    all: Sample,
}

impl Variant {
    /// The hand-overs of a round.
    fn push(&mut self, round: &[f64]) {
        let mut sample = Sample::default();
        for &msec in round {
            sample.push(msec);
            self.all.push(msec);
        }
        self.rounds.push(sample.median());
    }

    /// How many times slower than another, round by round.
    fn to(&self, other: &Self) -> Sample {
        self.rounds.pairs(&other.rounds, |own, other| own / other)
    }
}

/// Measures `rounds` rounds.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, rounds: usize) -> Result<Vec<Line>, Failure> {
    let mut short = SHORT_QUEUES.map(|_| Variant::default());
    let mut long = LONG_QUEUES.map(|_| Variant::default());
    for round in 0..rounds {
        let mut served = SHORT_QUEUES.map(|_| Vec::new());
        for turn in 0..SHORT_PER_ROUND * SHORT_QUEUES.len() {
            // Each goes first equally often.
            let index = (round + turn) % SHORT_QUEUES.len();
            served[index].extend(run(place, SHORT_QUEUES[index], SHORT)?);
        }
        for (variant, served) in short.iter_mut().zip(&served) {
            variant.push(served);
        }
        for turn in 0..LONG_QUEUES.len() {
            let index = (round + turn) % LONG_QUEUES.len();
            long[index].push(&run(place, LONG_QUEUES[index], LONG)?);
        }
    }
    let [perflock, flock, floor, planted] = &short;
    let [long_perflock, long_floor, long_planted] = &long;
    let line =
        |waiters: usize, own: &Variant, other: String, ratio: Sample, target: Option<(&'static str, f64)>| Line {
            what: format!("hand-over from job to job, {waiters} waiters"),
            own: own.all.show_msec(),
            other,
            difference: format!("× {}", ratio.show(2)),
            target: target.map(|(words, most)| (words, ratio.median() <= most)),
        };
    let show = |variant: &Variant| variant.all.show_msec();
    Ok(vec![
        line(
            SHORT,
            perflock,
            format!("`flock LOCK`: {}", show(flock)),
            perflock.to(flock),
            Some(("≤ 2.0 × flock", 2.0)),
        ),
        line(
            SHORT,
            perflock,
            format!("floor (`queuefloor.rs`): {}", show(floor)),
            perflock.to(floor),
            Some(("≤ 1.2 × the floor", 1.2)),
        ),
        line(
            LONG,
            long_perflock,
            format!("with {SHORT}: {}", show(perflock)),
            long_perflock.to(perflock),
            Some(("≤ 1.5 × that with 10", 1.5)),
        ),
        line(LONG, long_perflock, format!("floor: {}", show(long_floor)), long_perflock.to(long_floor), None),
        line(SHORT, perflock, format!("floor that opens every ticket: {}", show(planted)), perflock.to(planted), None),
        line(
            LONG,
            long_perflock,
            format!("floor that opens every ticket: {}", show(long_planted)),
            long_perflock.to(long_planted),
            None,
        ),
    ])
}

/// The hand-overs, in milliseconds, at the head of a queue of this length.
fn run(place: &Inside, who: Who, waiters: usize) -> Result<Vec<f64>, Failure> {
    let served = waiters.min(SERVED);
    let slots = place.file("slots");
    // Zero: has not ended.
    std::fs::write(&slots, vec![0; served * SLOT_BYTES]).map_err(|error| format!("cannot write the slots: {error}"))?;
    let gate = Held::new(place, "gate")?;
    let mut queue = Held::new(place, "queue")?;
    for index in 0..served {
        let mut command = who.command(place, &queue.path)?;
        command.arg(place.binary("stamp")).arg(&slots).arg(index.to_string());
        queue.start(&mut command)?;
    }
    queue.wait_until_asleep(place)?;
    // The first behind them keeps the machine while the rest is ended.
    for behind in served..waiters {
        let mut command = who.command(place, &queue.path)?;
        command.args(["/usr/bin/env", "flock"]).arg(&gate.path).arg("true");
        queue.start(&mut command)?;
        if behind == served {
            queue.wait_until_asleep(place)?;
        }
    }
    queue.wait_until_asleep(place)?;
    std::thread::sleep(IDLE);
    queue.let_go()?;
    let mut jobs = Vec::new();
    let ended = wait_until("the jobs of a queue have ended", || {
        jobs = parse_slots(&std::fs::read(&slots).unwrap_or_default());
        jobs.len() == served
    });
    ended.map_err(|message| place.failed(&message))?;
    queue.end_from((served + 1).min(waiters))?;
    gate.let_go()?;
    queue.finish(place)?;
    gate.finish(place)?;
    Ok(hand_overs_msec(jobs))
}

impl Who {
    /// A waiter; the command's path and its arguments are still to be added.
    fn command(self, place: &Inside, lock: &Path) -> Result<Command, Failure> {
        let floor = |option: Option<&str>| {
            let mut command = place.program("queuefloor")?;
            command.args(option).arg(lock).arg(place.group());
            Ok(command)
        };
        match self {
            Self::Perflock => with_lock(place, "perflock", lock),
            Self::Flock => {
                let mut command = place.silent("flock")?;
                command.arg(lock);
                Ok(command)
            }
            Self::Floor => floor(None),
            Self::Planted => floor(Some("--planted")),
        }
    }
}

/// The size of one job's slot, as `stamp` writes it: start and end, in nanoseconds.
const SLOT_BYTES: usize = 16;

/// Start and end of every job that has ended, in the order of their starts.
fn parse_slots(bytes: &[u8]) -> Vec<(i64, i64)> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, i64::from_ne_bytes);
    let slots = bytes.chunks_exact(SLOT_BYTES).map(|slot| (number(&slot[..8]), number(&slot[8..])));
    let mut jobs: Vec<_> = slots.filter(|&(_, end)| end != 0).collect();
    jobs.sort_unstable();
    jobs
}

/// From each job's end to the next one's start, without the first few.
fn hand_overs_msec(jobs: Vec<(i64, i64)>) -> Vec<f64> {
    jobs.windows(2).skip(WARM_UP).map(|pair| (pair[1].0 - pair[0].1) as f64 / 1e6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_is_from_an_end_to_the_next_start() {
        let slots = [[50, 60_i64], [10, 20], [0, 0], [30, 40], [2_000_060, 90]];
        let bytes: Vec<u8> = slots.iter().flatten().flat_map(|number| number.to_ne_bytes()).collect();
        let jobs = parse_slots(&bytes);
        assert_eq!(jobs.len(), 4);
        assert_eq!(hand_overs_msec(jobs), [2.0]);
    }
}
