//! What it costs to join: `perflock --nonblock true` joins, looks, and leaves.

use super::super::area::Inside;
use super::super::stats::{Line, Sample};
use super::super::tools::time_msec;
use super::{Held, LONG, with_lock};
use crate::Failure;

/// Pairs for each round.
const PAIRS_PER_ROUND: usize = 20;

/// Pairs that are not counted.
const WARM_UP: usize = 3;

/// Measures joining a long queue against joining an empty one.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, rounds: usize) -> Result<Vec<Line>, Failure> {
    let empty = Held::new(place, "empty")?;
    let mut long = Held::new(place, "long")?;
    for _ in 0..LONG {
        long.start(with_lock(place, "perflock", &long.path)?.arg("true"))?;
    }
    long.wait_until_asleep(place)?;
    let mut programs = Vec::new();
    for lock in [&empty, &long] {
        let mut command = with_lock(place, "perflock", &lock.path)?;
        // Not to have got the lock is no failure here.
        command.args(["--nonblock", "--conflict-exit-code", "0", "true"]);
        programs.push(command);
    }
    let mut samples = [Sample::default(), Sample::default()];
    for pair in 0..WARM_UP + rounds * PAIRS_PER_ROUND {
        for turn in 0..2 {
            let index = (pair + turn) % 2;
            let took_msec = time_msec(place, &mut programs[index])?;
            if pair >= WARM_UP {
                samples[index].push(took_msec);
            }
        }
    }
    let still_asleep = long.asleep();
    long.end()?;
    empty.end()?;
    if still_asleep < LONG {
        return Err(place.failed("waiters ended while the queue was measured"));
    }
    let [at_empty, at_long] = &samples;
    let ratio = at_long.pairs(at_empty, |long, empty| long / empty);
    Ok(vec![Line {
        what: format!("joining a queue of {LONG:?} and leaving (`perflock --nonblock`)"),
        own: at_long.show_msec(),
        other: format!("nobody waits: {}", at_empty.show_msec()),
        difference: format!("× {}", ratio.show(2)),
        target: Some(("≤ 3 × the empty queue", ratio.median() <= 3.0)),
    }])
}
