//! Jobs that are pinned: what that costs, and what it gives.

mod deciding;
mod side_by_side;
mod starting;

use std::path::PathBuf;

use super::area::Inside;
use super::stats::Line;
use crate::room::Room;
use crate::{Failure, v1};

/// Measures everything, with this many pairs of what is short.
///
/// # Errors
/// A program cannot be run, or something is not as it should be.
pub(super) fn measure(place: &Inside, pairs: usize, print: &mut dyn FnMut(Vec<Line>)) -> Result<(), Failure> {
    let room = Room::read()?;
    let accounts = place.v1_group("cpuacct");
    let _inside = InCpuset::enter(place)?;
    print(starting::measure(place, &room, pairs)?);
    if room.cores > 1 {
        print(side_by_side::measure(place, accounts.as_deref(), (pairs / 5).max(5))?);
    }
    print(deciding::measure(place, pairs)?);
    Ok(())
}

/// As long as it lives, perflock makes its cpusets in the bench's own, so that none is left of a bench that is ended early.
struct InCpuset {
    outside: Option<PathBuf>,
}

impl InCpuset {
    fn enter(place: &Inside) -> Result<Self, Failure> {
        let Some(group) = place.v1_group("cpuset") else { return Ok(Self { outside: None }) };
        v1::enter(&group).map_err(|error| format!("cannot enter {}: {error}", group.display()))?;
        Ok(Self { outside: group.parent().map(PathBuf::from) })
    }
}

impl Drop for InCpuset {
    fn drop(&mut self) {
        // The outer process says so if it cannot remove the group.
        let _ = self.outside.as_deref().map(v1::enter);
    }
}
