//! Choosing whole cores, as a pure function. The same machine and the same free processors give the same cores.
//!
//! A job measures best on cores that are alike and near to each other, and leaves most to the next if it does not break
//! up what is whole. So, in this order: all of one speed, the fastest that has so many, else a mix with as many fast
//! ones as there are; all in one cache, else all in one node, else in one socket, else anywhere; of several such places
//! the one with the fewest free cores (best fit). A job that has to span nodes, and caches within a node, takes whole
//! ones, the one with most free cores first, until the rest fits into one: no other way spans fewer.

use std::collections::BTreeMap;

use super::CpuList;
use super::topology::{Core, Topology};

/// Cores that a job has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Every thread of its cores that is online: nobody else who asks for cores gets one of them.
    pub reserved: CpuList,
    /// Where it runs: one thread of each, or all.
    pub cpus: CpuList,
}

/// Which part of the machine a core is in: equal values, same part.
type Place = fn(&Core) -> (u32, u32);

/// Caches are numbered by their lowest processor. One that spans nodes counts as one for each.
const CACHE: Place = |core| (core.cache, core.node);
const NODE: Place = |core| (core.node, 0);
const PACKAGE: Place = |core| (core.package, 0);

/// Chooses `count` cores, none of whose threads is outside of `free`: with their other threads too if `smt`, else on
/// the lowest of each. `None` if there are not so many, or if none is asked for.
pub fn allocate(topology: &Topology, free: &CpuList, count: usize, smt: bool) -> Option<Lease> {
    let mut speeds: BTreeMap<u32, Vec<&Core>> = BTreeMap::new();
    whole(topology, free).for_each(|core| speeds.entry(core.speed).or_default().push(core));
    let fastest_first = || speeds.values().rev();
    if count == 0 || fastest_first().map(Vec::len).sum::<usize>() < count {
        return None;
    }
    let chosen = match fastest_first().find(|cores| cores.len() >= count) {
        Some(alike) => nearest(alike, count),
        None => fastest_first().fold(Vec::new(), |mut chosen, cores| {
            chosen.extend(nearest(cores, cores.len().min(count - chosen.len())));
            chosen
        }),
    };
    let reserved: CpuList = chosen.iter().flat_map(|core| core.cpus.iter()).collect();
    let lowest = || chosen.iter().filter_map(|core| core.cpus.first()).collect();
    Some(Lease { cpus: if smt { reserved.clone() } else { lowest() }, reserved })
}

/// How many whole cores there are within `allowed`: the most that can ever be asked for.
pub fn fits(topology: &Topology, allowed: &CpuList) -> usize {
    whole(topology, allowed).count()
}

fn whole<'a>(topology: &'a Topology, within: &'a CpuList) -> impl Iterator<Item = &'a Core> {
    topology.cores.iter().filter(|core| core.cpus.is_within(within))
}

/// Chooses `count` of `cores`, which are as many at least, in the smallest place that has them.
fn nearest<'a>(cores: &[&'a Core], count: usize) -> Vec<&'a Core> {
    let in_one = |place: Place| take_best(&mut by_place(cores, place), count).filter(|cores| cores.len() >= count);
    let narrowed = [CACHE, NODE, PACKAGE].into_iter().find_map(in_one);
    spanning(narrowed.as_deref().unwrap_or(cores), count, &[NODE, CACHE])
}

/// Chooses `count` of `cores`, which are as many at least, so that they span as few of the first kind of place as
/// possible, and within each as few of the next.
fn spanning<'a>(cores: &[&'a Core], count: usize, places: &[Place]) -> Vec<&'a Core> {
    let Some((&place, within)) = places.split_first() else { return cores.iter().take(count).copied().collect() };
    let mut parts = by_place(cores, place);
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let missing = count - chosen.len();
        let Some(part) = take_best(&mut parts, missing) else { break };
        chosen.extend(spanning(&part, part.len().min(missing), within));
    }
    chosen
}

/// Cores of each place, the lowest place first.
type Parts<'a> = BTreeMap<(u32, u32), Vec<&'a Core>>;

fn by_place<'a>(cores: &[&'a Core], place: Place) -> Parts<'a> {
    let mut parts = Parts::new();
    cores.iter().for_each(|core| parts.entry(place(core)).or_default().push(core));
    parts
}

/// Takes out the smallest part that has `count` cores, or the largest if none has so many; the lowest of equals.
fn take_best<'a>(parts: &mut Parts<'a>, count: usize) -> Option<Vec<&'a Core>> {
    let waste = |cores: &[&Core]| match cores.len().checked_sub(count) {
        Some(unused) => (false, unused),
        None => (true, count - cores.len()),
    };
    let (&place, _) = parts.iter().min_by_key(|(_, cores)| waste(cores))?;
    parts.remove(&place)
}

#[cfg(test)]
mod tests;
