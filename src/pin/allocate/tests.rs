//! Small machines by hand, and arbitrary ones against what the policy promises.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn set(text: &str) -> CpuList {
    text.parse().unwrap()
}

/// Cores in the order of their processors: threads, node, cache, package, speed.
fn machine(cores: &[(&str, u32, u32, u32, u32)]) -> Topology {
    let core = |&(cpus, node, cache, package, speed)| Core { cpus: set(cpus), node, cache, package, speed };
    Topology { cores: cores.iter().map(core).collect(), nodes: Vec::new() }
}

/// Two sockets of two nodes with one cache each, two cores in it and two threads per core.
fn large() -> Topology {
    machine(&[
        ("0,8", 0, 0, 0, 0),
        ("1,9", 0, 0, 0, 0),
        ("2,10", 1, 2, 0, 0),
        ("3,11", 1, 2, 0, 0),
        ("4,12", 2, 4, 1, 0),
        ("5,13", 2, 4, 1, 0),
        ("6,14", 3, 6, 1, 0),
        ("7,15", 3, 6, 1, 0),
    ])
}

/// One thread per core, one node: so many cores in each cache.
fn of_caches(sizes: &[u32]) -> Topology {
    let mut cores = Vec::new();
    for &size in sizes {
        let lowest = cores.len() as u32;
        cores.extend((lowest..lowest + size).map(|cpu| Core {
            cpus: [cpu].into_iter().collect(),
            node: 0,
            cache: lowest,
            package: 0,
            speed: 0,
        }));
    }
    Topology { cores, nodes: Vec::new() }
}

/// What so many cores run on, one thread each; empty if there are not so many.
fn chosen(topology: &Topology, free: &str, count: usize) -> String {
    allocate(topology, &set(free), count, false).unwrap_or_default().cpus.to_string()
}

#[test]
fn a_job_runs_on_one_thread_of_each_core_unless_it_asks_for_all() {
    let lease = |smt| allocate(&large(), &set("0-15"), 2, smt).unwrap();
    assert_eq!(lease(false), Lease { reserved: set("0-1,8-9"), cpus: set("0-1") });
    assert_eq!(lease(true), Lease { reserved: set("0-1,8-9"), cpus: set("0-1,8-9") });
}

#[test]
fn no_core_is_given_of_which_one_thread_is_taken() {
    assert_eq!(chosen(&large(), "0-7,9-15", 1), "1");
    assert_eq!(chosen(&large(), "0-7", 1), "");
    assert_eq!(fits(&large(), &set("0-7,9-15")), 7);
    assert_eq!(fits(&large(), &set("")), 0);
}

#[test]
fn none_and_too_many_are_not_given() {
    assert_eq!(allocate(&large(), &set("0-15"), 0, false), None);
    assert_eq!(allocate(&large(), &set("0-15"), 9, false), None);
    assert_eq!(allocate(&large(), &set("0-15"), usize::MAX, false), None);
    assert_eq!(chosen(&large(), "0-15", 8), "0-7");
}

#[test]
fn what_is_broken_up_already_is_used_first() {
    assert_eq!(chosen(&large(), "0-6,8-14", 1), "6");
    assert_eq!(chosen(&large(), "1-7,9-15", 2), "2-3");
    assert_eq!(chosen(&of_caches(&[4, 3, 2]), "0-8", 2), "7-8");
    assert_eq!(chosen(&of_caches(&[4, 3, 2]), "0-8", 3), "4-6");
}

#[test]
fn within_a_node_few_caches_are_spanned() {
    assert_eq!(chosen(&of_caches(&[2, 4, 3]), "0-8", 5), "0,2-5");
    assert_eq!(chosen(&of_caches(&[2, 4, 3]), "0-8", 6), "0-5");
    assert_eq!(chosen(&of_caches(&[2, 4, 3]), "0-8", 7), "2-8");
    assert_eq!(chosen(&of_caches(&[2, 4, 3]), "0-8", 8), "0,2-8");
}

#[test]
fn a_node_is_better_than_a_socket_and_a_socket_than_the_machine() {
    assert_eq!(chosen(&large(), "1-7,9-15", 3), "1-3");
    assert_eq!(chosen(&large(), "1-7,9-15", 4), "4-7");
    assert_eq!(chosen(&large(), "1-7,9-15", 5), "1-5");
    // One node of two caches that have room together, another of one cache that has too little.
    let nodes =
        machine(&[("0", 0, 0, 0, 0), ("1", 0, 0, 0, 0), ("2", 1, 2, 0, 0), ("3", 1, 2, 0, 0), ("4", 1, 4, 0, 0)]);
    assert_eq!(chosen(&nodes, "0-4", 3), "2-4");
}

#[test]
fn over_the_whole_machine_few_nodes_are_spanned() {
    assert_eq!(chosen(&large(), "0,2-4,6-8,10-12,14-15", 4), "2-3,6-7");
}

/// A cache that two nodes share is one for each.
#[test]
fn a_cache_over_two_nodes_does_not_join_them() {
    let shared =
        machine(&[("0", 0, 0, 0, 0), ("1", 1, 0, 0, 0), ("2", 2, 2, 0, 0), ("3", 2, 2, 0, 0), ("4", 2, 2, 0, 0)]);
    assert_eq!(chosen(&shared, "0-4", 2), "2-3");
}

#[test]
fn cores_of_one_speed_are_better_than_near_ones() {
    let hybrid = machine(&[
        ("0-1", 0, 0, 0, 2),
        ("2-3", 0, 0, 0, 2),
        ("4", 0, 0, 0, 1),
        ("5", 0, 0, 0, 1),
        ("6", 0, 0, 0, 1),
        ("7", 0, 7, 0, 0),
    ]);
    assert_eq!(chosen(&hybrid, "0-7", 1), "0");
    assert_eq!(chosen(&hybrid, "0-7", 2), "0,2");
    assert_eq!(chosen(&hybrid, "0-7", 3), "4-6", "all slow rather than a mix");
    assert_eq!(chosen(&hybrid, "0-7", 4), "0,2,4-5", "a mix prefers the fast");
    assert_eq!(chosen(&hybrid, "0-7", 6), "0,2,4-7");
    assert_eq!(chosen(&hybrid, "2-7", 2), "4-5");
}

/// A machine whose processors are numbered in any order. Each core is in the cache, node and package of the one before,
/// or begins new ones.
fn any_machine() -> impl Strategy<Value = Topology> {
    let parts = proptest::collection::vec((0usize..8, 1usize..3, 0u32..2), 1..20);
    let numbers = Just(Vec::from_iter(0..40)).prop_shuffle();
    (parts, numbers, any::<bool>()).prop_map(|(parts, numbers, hybrid)| {
        let mut numbers = numbers.into_iter();
        let mut place = [0; 3];
        let core = |(begins, threads, speed)| {
            place.iter_mut().skip(begins).for_each(|number| *number += 1);
            let [package, node, cache] = place;
            let cpus = numbers.by_ref().take(threads).collect();
            Core { cpus, node, cache, package, speed: if hybrid { speed } else { 0 } }
        };
        let mut cores: Vec<Core> = parts.into_iter().map(core).collect();
        cores.sort_by_key(|core| core.cpus.first());
        Topology { cores, nodes: Vec::new() }
    })
}

fn places(cores: &[&Core], place: Place) -> BTreeSet<(u32, u32)> {
    cores.iter().map(|core| place(core)).collect()
}

/// How many cores each place has, most first.
fn sizes(cores: &[&Core], place: Place) -> Vec<usize> {
    let mut sizes: Vec<usize> = by_place(cores, place).values().map(Vec::len).collect();
    sizes.sort_unstable_by_key(|&size| std::cmp::Reverse(size));
    sizes
}

/// How few places any `count` of these cores can be in.
fn fewest(cores: &[&Core], place: Place, count: usize) -> usize {
    let together = |room: &mut usize, size| {
        *room += size;
        Some(*room)
    };
    1 + sizes(cores, place).into_iter().scan(0, together).take_while(|&room| room < count).count()
}

/// The cores of a choice that is what the policy promises.
fn check(topology: &Topology, free: &CpuList, count: usize, smt: bool, lease: &Lease) {
    let chosen: Vec<&Core> = topology.cores.iter().filter(|core| core.cpus.meets(&lease.reserved)).collect();
    assert_eq!(chosen.len(), count);
    assert!(lease.reserved.is_within(free));
    assert!(chosen.iter().all(|core| core.cpus.is_within(&lease.reserved)), "whole cores");
    let lowest: CpuList = chosen.iter().filter_map(|core| core.cpus.first()).collect();
    assert_eq!(lease.cpus, if smt { lease.reserved.clone() } else { lowest });

    let of_speed = |speed| whole(topology, free).filter(|core| core.speed == speed).collect::<Vec<_>>();
    let Some(alike) = [1, 0].map(of_speed).into_iter().find(|alike| alike.len() >= count) else {
        assert!(of_speed(1).iter().all(|core| chosen.contains(core)), "no fast one is left over");
        return;
    };
    assert!(chosen.iter().all(|core| core.speed == alike[0].speed));
    // The smallest place that has room, if there is any; and within it as few nodes and caches as can be.
    let fitting = [CACHE, NODE, PACKAGE].into_iter().find(|&place| sizes(&alike, place)[0] >= count);
    let around = match fitting {
        None => alike,
        Some(place) => {
            assert_eq!(places(&chosen, place).len(), 1);
            let around = by_place(&alike, place).remove(&place(chosen[0])).unwrap();
            let tightest = sizes(&alike, place).into_iter().filter(|&size| size >= count).min();
            assert_eq!(Some(around.len()), tightest, "best fit");
            around
        }
    };
    assert_eq!(places(&chosen, NODE).len(), fewest(&around, NODE, count));
    if places(&chosen, NODE).len() == 1 {
        assert_eq!(places(&chosen, CACHE).len(), fewest(&around, CACHE, count));
    }
}

proptest! {
    #[test]
    fn jobs_that_come_and_go_get_what_is_promised_and_never_the_same(
        topology in any_machine(),
        taken in proptest::collection::btree_set(0u32..40, 0..12),
        steps in proptest::collection::vec((any::<bool>(), 0usize..8, any::<bool>()), 1..24),
    ) {
        let all: CpuList = topology.cores.iter().flat_map(|core| core.cpus.iter()).collect();
        let allowed = all.without(&taken.into_iter().collect());
        let mut leases: Vec<Lease> = Vec::new();
        for (ends, number, smt) in steps {
            if ends && !leases.is_empty() {
                leases.swap_remove(number % leases.len());
                continue;
            }
            let used: CpuList = leases.iter().flat_map(|lease| lease.reserved.iter()).collect();
            let free = allowed.without(&used);
            let lease = allocate(&topology, &free, number, smt);
            prop_assert_eq!(lease.is_some(), number > 0 && number <= fits(&topology, &free));
            prop_assert_eq!(&lease, &allocate(&topology.clone(), &free, number, smt));
            if let Some(lease) = lease {
                check(&topology, &free, number, smt, &lease);
                prop_assert!(!leases.iter().any(|other| other.reserved.meets(&lease.reserved)));
                leases.push(lease);
            }
        }
    }
}
