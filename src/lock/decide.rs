//! Who may start, as a pure function of the queue. The program, its tests and any model of it run this same code.

use crate::job::Mode;

/// A ticket as its file name alone tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// The place: lower is earlier.
    pub number: u64,
    /// What the job asks for.
    pub mode: Mode,
}

/// What is known of the job behind a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// Nobody holds the ticket's lock: its job ended, died, or is a waiter that was stopped.
    Dead,
    /// In the queue, not started.
    Waiting,
    /// Its job has the machine.
    Holding,
}

/// What a job in the queue has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Nobody who came earlier is in the way: take the lock file.
    Start,
    /// Sleep until this is free, then decide again.
    Wait(Target),
}

/// The one thing that a waiter sleeps on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The nearest earlier job that waits and conflicts.
    Ticket(Entry),
    /// Only holders are ahead. Waiting on the lock file itself puts us into the kernel's own queue, ahead of
    /// whoever uses plain flock(1) and comes later.
    LockFile,
    /// The nearest earlier job that asks for cores of its own has some: see [`cores`](super::cores::cores).
    Turn(Entry),
    /// Any of the jobs that have cores of their own has ended.
    Cores,
    /// What is left of jobs that have cores of their own, and neither supervisor nor guard.
    Orphans,
}

/// Decides for the job `me`, given every ticket of the queue in any order.
///
/// An exclusive job waits for every earlier job, a shared one for every earlier exclusive job. `life` is asked for
/// conflicting predecessors only, from the nearest down, and not at all beyond the first that waits: with a thousand
/// waiters ahead that is one question. The answer for a holder does not end the search, since a waiter that was
/// stopped and went on may stand before a holder.
pub fn decide(me: Entry, queue: &[Entry], mut life: impl FnMut(Entry) -> Life) -> Decision {
    let mut ahead: Vec<Entry> =
        queue.iter().copied().filter(|entry| entry.number < me.number && entry.mode.conflicts_with(me.mode)).collect();
    ahead.sort_unstable();
    let mut held = false;
    for entry in ahead.into_iter().rev() {
        match life(entry) {
            Life::Dead => {}
            Life::Waiting => return Decision::Wait(Target::Ticket(entry)),
            Life::Holding => held = true,
        }
    }
    if held { Decision::Wait(Target::LockFile) } else { Decision::Start }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Life::{Dead, Holding, Waiting};
    use Mode::{Exclusive, Shared};
    use proptest::prelude::*;

    /// Decides for the last of `jobs`, numbered from 1; also returns whom it asked about.
    fn decide_last(jobs: &[(Mode, Life)]) -> (Decision, Vec<u64>) {
        let entries: Vec<Entry> = (1..).zip(jobs).map(|(number, &(mode, _))| Entry { number, mode }).collect();
        let mut asked = Vec::new();
        let decision = decide(*entries.last().unwrap(), &entries, |entry| {
            asked.push(entry.number);
            jobs[usize::try_from(entry.number).unwrap() - 1].1
        });
        (decision, asked)
    }

    fn ticket(number: u64, mode: Mode) -> Decision {
        Decision::Wait(Target::Ticket(Entry { number, mode }))
    }

    #[test]
    fn an_empty_queue_starts_at_once() {
        assert_eq!(decide_last(&[(Exclusive, Waiting)]).0, Decision::Start);
        assert_eq!(decide_last(&[(Shared, Waiting)]).0, Decision::Start);
    }

    #[test]
    fn shared_jobs_do_not_wait_for_shared_jobs() {
        assert_eq!(decide_last(&[(Shared, Holding), (Shared, Waiting), (Shared, Waiting)]), (Decision::Start, vec![]));
    }

    #[test]
    fn a_shared_job_does_not_pass_a_waiting_exclusive_one() {
        let queue = [(Shared, Holding), (Exclusive, Waiting), (Shared, Waiting), (Shared, Waiting)];
        assert_eq!(decide_last(&queue), (ticket(2, Exclusive), vec![2]));
    }

    #[test]
    fn behind_holders_only_the_lock_file_is_waited_for() {
        let queue = [(Shared, Holding), (Shared, Holding), (Exclusive, Waiting)];
        assert_eq!(decide_last(&queue).0, Decision::Wait(Target::LockFile));
    }

    #[test]
    fn the_dead_do_not_count() {
        let queue = [(Exclusive, Dead), (Shared, Dead), (Exclusive, Waiting)];
        assert_eq!(decide_last(&queue).0, Decision::Start);
    }

    #[test]
    fn a_thousand_waiters_cost_one_question() {
        let queue = vec![(Exclusive, Waiting); 1001];
        assert_eq!(decide_last(&queue), (ticket(1000, Exclusive), vec![1000]));
    }

    #[test]
    fn a_waiter_that_went_on_keeps_its_place_before_a_holder() {
        let queue = [(Exclusive, Waiting), (Shared, Holding), (Exclusive, Waiting)];
        assert_eq!(decide_last(&queue).0, ticket(1, Exclusive));
    }

    fn any_job() -> impl Strategy<Value = (Mode, Life)> {
        (prop_oneof![Just(Exclusive), Just(Shared)], prop_oneof![Just(Dead), Just(Waiting), Just(Holding)])
    }

    proptest! {
        /// The lazy search gives what reading every ticket would.
        #[test]
        fn it_starts_exactly_when_no_earlier_live_job_conflicts(
            mut jobs in proptest::collection::vec(any_job(), 0..12),
            mode in prop_oneof![Just(Exclusive), Just(Shared)],
        ) {
            jobs.push((mode, Waiting));
            let in_the_way: Vec<_> = jobs[..jobs.len() - 1]
                .iter()
                .filter(|(other, life)| *life != Dead && other.conflicts_with(mode))
                .collect();
            match decide_last(&jobs).0 {
                Decision::Start => prop_assert!(in_the_way.is_empty()),
                Decision::Wait(Target::LockFile) => {
                    prop_assert!(!in_the_way.is_empty() && in_the_way.iter().all(|(_, life)| *life == Holding));
                }
                other @ Decision::Wait(Target::Turn(_) | Target::Cores | Target::Orphans) => {
                    prop_assert!(false, "{other:?}");
                }
                Decision::Wait(Target::Ticket(entry)) => {
                    let index = usize::try_from(entry.number).unwrap() - 1;
                    prop_assert_eq!(jobs[index].1, Waiting);
                    prop_assert!(entry.mode.conflicts_with(mode));
                    let nearer = jobs[index + 1..jobs.len() - 1].iter();
                    prop_assert!(nearer.filter(|(m, _)| m.conflicts_with(mode)).all(|(_, life)| *life != Waiting));
                }
            }
        }
    }
}
