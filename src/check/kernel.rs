//! What the kernel, or the filter of a container, does not let perflock do. Pure.

use super::facts::Facts;
use super::row::Row;
use crate::cgroup::Place;
use crate::kernel::{GIVES_BIRTH, OLDEST, is_at_least};

/// What is known of the kernel.
pub(super) fn row(facts: &Facts) -> Row {
    let (id, name, kernel) = ("kernel", "kernel", &facts.kernel);
    let cure = |call: &str, oldest: (u32, u32)| {
        // One that is new enough has the call.
        if is_at_least(&kernel.release, oldest) {
            format!("let {call} through the filter that refuses it")
        } else {
            format!("boot Linux {}.{} or newer", oldest.0, oldest.1)
        }
    };
    if let Err(unfit) = &kernel.fits {
        return Row::missing(id, name, unfit.to_string()).lost("no job can be run").fix(cure(unfit.call, OLDEST));
    }
    // Elsewhere nobody would be born in a group in any case.
    let in_v2 = matches!(facts.groups.place(), Some(Place::V2(_) | Place::Scope(_)));
    let joins = in_v2 && !kernel.gives_birth;
    let stalls = joins.then_some("the start of a job holds up every fork on the machine for some milliseconds");
    // Who has no process left has no thread either: the guard's row tells.
    let (detail, lost) = if !kernel.has_threads && facts.guard.is_ok() {
        let waits = ["a job that has to wait fails"].into_iter().chain(stalls);
        ("no program can have threads, as where clone3(2) is forbidden", waits.collect::<Vec<_>>().join("; "))
    } else if let Some(stalls) = stalls {
        ("no command can be born in its group by clone3(2): it joins it", stalls.to_owned())
    } else {
        return Row::works(id, name, format!("Linux {} has all that jobs need", kernel.release));
    };
    Row::weaker(id, name, detail).lost(lost).fix(cure("clone3(2)", GIVES_BIRTH))
}
