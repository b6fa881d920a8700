//! The queue and the kill guarantee, checked with stateright in every interleaving of up to four jobs that are killed,
//! cancelled and stopped at any step, beside a plain flock(1).
//!
//! The model's actions are the program's own steps ([`perflock::step::Step`]), and what a waiter does is decided by the
//! program's own code ([`perflock::lock::waiting`], [`perflock::lock::decide`]), which asks about one ticket at a time
//! while others go on. So is who gets cores of its own, and whom the others wait for ([`perflock::lock::cores`]). The
//! suite's `crash_points` tests check that the program makes these steps in this order. What the model adds is the
//! kernel: flock(2), ticket locks that end with their last holder, and names in a directory.
//!
//! Not in it: how cores are chosen (the lowest free ones are taken), jobs that are pinned and have no cores to
//! themselves, orphans of which cannot be told whether they live, and whoever does not wait (`--nonblock`).
//!
//! A table of planted mistakes shows that the properties would catch them.
#![cfg(test)]
// Its tables are for whoever runs it.
#![allow(clippy::print_stdout)]

mod bugs;
mod cores;
mod machine;
mod properties;
mod state;

use std::collections::HashMap;
use std::time::Instant;

use bugs::Bug;
use machine::{IN_A_RING, Machine};
use stateright::{Checker, HasDiscoveries, Model};

fn up_to(jobs: usize, kills: u8, cancels: u8, stops: u8, outsider: bool) -> Machine {
    Machine { jobs, kills, cancels, stops, outsider, cores: 0, these: &[], bug: None }
}

/// On a machine of so many cores, of which two jobs or more ask for some.
fn on(cores: u8, machine: Machine) -> Machine {
    Machine { cores, ..machine }
}

/// Checks every property in every state, and prints how many those are.
fn check(machine: Machine) {
    let Machine { jobs, kills, cancels, stops, outsider, cores, .. } = machine;
    let those = if machine.these.is_empty() { "any" } else { "certain" };
    let start = Instant::now();
    let checker = machine.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    println!(
        "model: {those} {jobs} jobs, {kills} killed, {cancels} cancelled, {stops} stopped, {} outsiders, \
         {cores} cores: {:>8} states, {:>8} ways to them, {} steps deep, {:.1} s",
        u8::from(outsider),
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        start.elapsed().as_secs_f64()
    );
}

#[test]
fn every_interleaving_keeps_the_promises() {
    check(up_to(2, 3, 1, 2, true));
    check(up_to(3, 1, 1, 1, false));
    check(up_to(3, 2, 0, 0, true));
    check(up_to(3, 2, 0, 1, false));
    check(up_to(3, 0, 0, 1, true));
    check(up_to(4, 0, 1, 0, false));
    check(up_to(4, 1, 0, 0, false));
}

#[test]
fn every_interleaving_of_jobs_with_cores_keeps_the_promises() {
    check(on(2, up_to(2, 2, 1, 2, true)));
    check(on(2, up_to(3, 0, 1, 1, false)));
    check(on(2, up_to(3, 2, 0, 0, false)));
    check(on(3, up_to(3, 0, 0, 1, false)));
    check(on(2, Machine { these: IN_A_RING, ..up_to(3, 0, 0, 2, true) }));
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn more_interleavings_keep_the_promises() {
    check(up_to(3, 3, 1, 1, true));
    check(up_to(4, 0, 0, 1, true));
    check(up_to(4, 2, 0, 0, false));
    check(up_to(4, 1, 1, 0, false));
    check(on(2, up_to(3, 1, 0, 1, false)));
    check(on(2, up_to(3, 0, 0, 1, true)));
    check(on(2, up_to(3, 0, 0, 2, false)));
    check(on(2, Machine { these: IN_A_RING, ..up_to(3, 1, 0, 2, true) }));
    check(on(3, up_to(4, 0, 0, 0, false)));
}

/// Every path ends: so that where nothing is due and nobody waits, nobody ever will.
#[test]
fn no_path_goes_round() {
    let with_cores = [on(2, up_to(2, 2, 0, 2, false)), on(2, up_to(3, 0, 0, 1, false))];
    for machine in [up_to(2, 2, 1, 2, true), up_to(3, 1, 0, 1, false)].into_iter().chain(with_cores) {
        // Whether a state is on the path that is being walked.
        let mut seen = HashMap::new();
        for first in machine.init_states() {
            let mut path = vec![(first.clone(), machine.next_steps(&first))];
            seen.insert(first, true);
            while let Some((state, ways)) = path.last_mut() {
                let Some((_, next)) = ways.pop() else {
                    seen.insert(state.clone(), false);
                    path.pop();
                    continue;
                };
                match seen.get(&next) {
                    Some(true) => panic!("comes back to {next:#?}"),
                    Some(false) => {}
                    None => {
                        seen.insert(next.clone(), true);
                        path.push((next.clone(), machine.next_steps(&next)));
                    }
                }
            }
        }
        println!("model: {} jobs, {} cores: no way back in {} states", machine.jobs, machine.cores, seen.len());
    }
}

/// Each mistake is caught by the promise that it breaks.
#[test]
fn planted_mistakes_are_caught() {
    println!("{:<30} | {:<72} | shortest way there", "model: planted mistake", "breaks");
    for bug in Bug::ALL {
        let promise = bug.breaks();
        let checker = bug.machine().checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let path = checker.assert_any_discovery(promise).into_actions();
        println!("{:<30} | {promise:<72} | {} steps, last {:?}", bug.name(), path.len(), path.last());
    }
}
