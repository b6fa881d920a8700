//! What has to hold in every state, and what has to be seen in some, so that it is known to have been tried.

use perflock::job::Mode;
use perflock::lock::Target;
use perflock::lock::waiting::Waiting;
use perflock::step::Step;
use stateright::Property;

use crate::machine::Machine;
use crate::state::{Doing, Guard, Job, Outsider, Phase, State};

pub(crate) const ALONE: &str = "alone means alone";
pub(crate) const OUTSIDERS: &str = "flock(1) is kept out too, unless supervisor and guard were both killed";
pub(crate) const ORDER: &str = "first come, first served";
pub(crate) const PLACE: &str = "a stopped waiter keeps its ticket";
pub(crate) const VISIBLE: &str = "who has the lock file is in the queue";
pub(crate) const FOR_EVER: &str = "nobody waits for ever";
pub(crate) const CORES_ALONE: &str = "no two jobs run on the same cores of their own";
pub(crate) const CORES_ORDER: &str = "first come, first served with cores";
pub(crate) const CORES_IDLE: &str = "nobody sleeps for cores that are free";

pub(crate) fn all(machine: &Machine) -> Vec<Property<Machine>> {
    let mut all = vec![
        Property::always(ALONE, |_: &Machine, state: &State| alone(state)),
        Property::always(OUTSIDERS, |_: &Machine, state: &State| outsiders(state)),
        Property::always(ORDER, |_: &Machine, state: &State| in_order(state)),
        Property::always(VISIBLE, |_: &Machine, state: &State| visible(state)),
        Property::always(PLACE, |_: &Machine, state: &State| {
            let named = |job: &Job| job.ticket.as_ref().is_some_and(|ticket| ticket.named);
            state.jobs.iter().filter(|job| job.phase == Phase::Stopped).all(named)
        }),
        Property::always("a group is named by a ticket", |_: &Machine, state: &State| named(state)),
        Property::always(FOR_EVER, |machine: &Machine, state: &State| nobody_waits_for_ever(machine, state)),
        Property::always(CORES_ALONE, |_: &Machine, state: &State| nobody_shares_a_lease(state)),
        Property::always(CORES_ORDER, |_: &Machine, state: &State| !state.jobs.iter().any(|job| job.passed)),
        Property::always("who starts has the cores that it asked for", |_: &Machine, state: &State| {
            !state.jobs.iter().any(|job| job.started() && job.lacks_cores())
        }),
        Property::always(CORES_IDLE, |machine: &Machine, state: &State| {
            !(0..machine.jobs).any(|i| sleeps_for_free_cores(machine, state, i))
        }),
    ];
    if let Some(bug) = machine.bug {
        all.retain(|property| property.name == bug.breaks());
    } else {
        all.push(Property::sometimes("jobs run", |_: &Machine, state: &State| {
            state.jobs.iter().any(|job| job.members)
        }));
        // Not everything befalls certain jobs.
        let any = machine.these.is_empty();
        if machine.jobs > 1 && any {
            all.push(Property::sometimes("shared jobs run together", |_: &Machine, state: &State| {
                state.jobs.iter().filter(|job| job.members).count() > 1
            }));
        }
        if machine.kills > 0 {
            all.push(Property::sometimes("a guard ends a job", |_: &Machine, state: &State| {
                state.jobs.iter().any(|job| job.guard == Guard::Alone(Step::GuardEmptied))
            }));
        }
        if machine.kills > 1 {
            all.push(Property::sometimes("an orphan lives", |_: &Machine, state: &State| {
                state.jobs.iter().any(|job| job.members && job.orphaned)
            }));
            all.push(Property::sometimes("an orphan was ended", |_: &Machine, state: &State| {
                state.jobs.iter().any(|job| job.orphaned && job.guard == Guard::Killed && !job.group)
            }));
        }
        // Two of those that ask for cores are shared.
        if machine.stops > 0 && machine.jobs > if machine.cores > 0 { 2 } else { 1 } {
            all.push(Property::sometimes(
                "a waiter comes back before one that has the lock already",
                |_: &Machine, state: &State| {
                    state.jobs.iter().any(|job| matches!(job.phase, Phase::Waiting(Waiting::LetGo, _)))
                },
            ));
            all.push(Property::sometimes(
                "a waiter that was overtaken goes to the end",
                |_: &Machine, state: &State| {
                    state.jobs.iter().any(|job| job.ticket.as_ref().is_some_and(|ticket| ticket.inode > 0))
                },
            ));
        }
        if machine.cores > 0 && any {
            all.extend(with_cores(machine));
        }
        if machine.outsider {
            all.push(Property::sometimes("an outsider has the lock", |_: &Machine, state: &State| {
                matches!(state.outsider, Outsider::Holding(_)) && state.jobs.iter().any(Job::waits)
            }));
        }
    }
    all
}

/// What has to be seen where jobs ask for cores.
fn with_cores(machine: &Machine) -> Vec<Property<Machine>> {
    let mut all = vec![
        Property::sometimes("jobs run side by side on cores of their own", |_: &Machine, state: &State| {
            state.jobs.iter().filter(|job| job.members && job.lease != 0).count() > 1
        }),
        Property::sometimes("a turn is waited for", |_: &Machine, state: &State| {
            let waits =
                |phase: &Phase| matches!(phase, Phase::Waiting(Waiting::Sleep(Target::Turn(_)), Doing::Opened(_)));
            state.jobs.iter().any(|job| waits(&job.phase))
        }),
    ];
    if machine.jobs > 2 {
        all.push(Property::sometimes("any of two jobs' cores are waited for", |_: &Machine, state: &State| {
            let two = |job: &Job| match &job.phase {
                Phase::Waiting(Waiting::Sleep(Target::Cores), Doing::Watching(have, _)) => have.len() > 1,
                _ => false,
            };
            state.jobs.iter().any(two)
        }));
    }
    if machine.jobs > 2 && machine.kills > 1 {
        all.push(Property::sometimes(
            "an orphan's cores are waited for beside a live job's",
            |_: &Machine, state: &State| {
                let both = |job: &Job| match &job.phase {
                    Phase::Waiting(_, Doing::Watching(have, left)) => !have.is_empty() && !left.is_empty(),
                    _ => false,
                };
                state.jobs.iter().any(both)
            },
        ));
    }
    if machine.kills > 1 {
        all.push(Property::sometimes("an orphan's cores are waited for", |machine: &Machine, state: &State| {
            let orphans = Waiting::Sleep(Target::Orphans);
            let waits = |i: usize| matches!(state.jobs[i].phase, Phase::Waiting(waiting, _) if waiting == orphans);
            (0..machine.jobs).any(|i| waits(i) && machine.sleeps(state, i))
        }));
    }
    all
}

fn alone(state: &State) -> bool {
    let running = |job: &&Job| job.members;
    let exclusive = state.jobs.iter().filter(running).any(|job| job.mode == Mode::Exclusive);
    !exclusive || state.jobs.iter().filter(running).count() == 1
}

fn outsiders(state: &State) -> bool {
    let Outsider::Holding(mode) = state.outsider else { return true };
    !state.jobs.iter().any(|job| job.members && !job.orphaned && job.mode.conflicts_with(mode))
}

/// Nobody starts before somebody who came earlier and waits. Whoever was stopped may have been passed, but by nobody who saw
/// that it was back.
fn in_order(state: &State) -> bool {
    let overtakes = |later: &Job, (i, earlier): &(usize, &Job)| {
        let knew = !earlier.was_stopped || later.saw >> i & 1 == 1;
        knew && later.came > earlier.came && later.mode.conflicts_with(earlier.mode)
    };
    let waiting: Vec<(usize, &Job)> = state.jobs.iter().enumerate().filter(|(_, job)| job.waits()).collect();
    let mut started = state.jobs.iter().filter(|job| job.started());
    !started.any(|later| waiting.iter().any(|earlier| overtakes(later, earlier)))
}

fn visible(state: &State) -> bool {
    let in_queue = |job: &Job| job.ticket.as_ref().is_some_and(|ticket| ticket.named && ticket.locked);
    state.jobs.iter().filter(|job| job.has_lock).all(in_queue)
}

fn named(state: &State) -> bool {
    let is_named = |job: &Job| job.ticket.as_ref().is_some_and(|ticket| ticket.named && ticket.names_group);
    state.jobs.iter().filter(|job| job.group || job.members).all(is_named)
}

/// Where nothing is due any more, every job that was not stopped had its turn. With nobody killed, cancelled or stopped
/// any more, every path ends in such a state: only a waiter that came back makes one look twice.
fn nobody_waits_for_ever(machine: &Machine, state: &State) -> bool {
    let mut due = Vec::new();
    machine.due(state, &mut due);
    !due.is_empty() || state.jobs.iter().all(|job| matches!(job.phase, Phase::Stopped | Phase::Done | Phase::Dead))
}

/// Also of those that lost supervisor and guard.
fn nobody_shares_a_lease(state: &State) -> bool {
    let mut taken = 0;
    state.jobs.iter().filter(|job| job.members).all(|job| {
        let free = job.lease & taken == 0;
        taken |= job.lease;
        free
    })
}

/// Whether job `i` sleeps for cores although there are enough, and nobody before it lacks some.
fn sleeps_for_free_cores(machine: &Machine, state: &State, i: usize) -> bool {
    let me = &state.jobs[i];
    let for_cores = matches!(me.phase, Phase::Waiting(Waiting::Sleep(Target::Turn(_) | Target::Cores), _));
    if !for_cores || !machine.sleeps(state, i) {
        return false;
    }
    let has = |job: &&Job| job.members || job.ticket.as_ref().is_some_and(|ticket| ticket.locked);
    // Cores count twice between a job's last step and the end of its guard, if they are given to another meanwhile:
    // that end is yet to wake somebody.
    let taken: u32 = state.jobs.iter().filter(has).map(|job| job.lease.count_ones()).sum();
    let enough = u32::from(machine.cores) >= taken + u32::from(me.asks);
    enough && !state.jobs.iter().any(|other| other.waits() && other.lacks_cores() && other.came < me.came)
}
