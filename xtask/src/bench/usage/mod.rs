//! What is said of a job's usage: whether it is true, and what it costs to find out.

mod crowd;
mod listing;
mod reading;
mod terminal;
mod truth;
mod watch;

use super::area::Inside;
use super::stats::Line;
use crate::Failure;
use crowd::Crowd;

/// How many jobs a full machine has.
const JOBS: usize = 100;

/// How many a quiet one has.
const FEW: usize = 2;

/// Processes of a job.
const PROCESSES: usize = 50;

/// Measures everything, with this many pairs of what is short.
///
/// # Errors
/// A program cannot be run, or something is not as it should be.
pub(super) fn measure(place: &Inside, pairs: usize, print: &mut dyn FnMut(Vec<Line>)) -> Result<(), Failure> {
    print(truth::measure(place, (pairs / 20).max(5))?);
    print(reading::measure(place, pairs)?);
    let crowd = Crowd::start(place, JOBS, PROCESSES)?;
    print(listing::measure(place, &crowd, pairs)?);
    print(watch::measure(place, &crowd)?);
    crowd.end()?;
    let crowd = Crowd::start(place, FEW, PROCESSES)?;
    print(watch::measure(place, &crowd)?);
    crowd.end()
}
