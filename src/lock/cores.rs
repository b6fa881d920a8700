//! Who gets cores of their own, as a pure function of what others have and want. The program, its tests and the model run this
//! same code.
//!
//! Shared jobs that ask for cores are served in their order: a later, smaller request never passes an earlier one, so that
//! small ones cannot starve a large one. The first in that line waits for any of those who have cores to give them back; each
//! other one waits for the one before it to be served. So the end of a job wakes one who asks, and no herd.
//!
//! Shared jobs that ask for none are not in this line. Exclusive ones have every core, and take no part.

use super::decide::{Entry, Target};
use crate::pin::CpuList;

/// What a shared job's ticket says of cores.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// It asks for some, and has none yet.
    Asks,
    /// It has these to itself.
    Has(CpuList),
    /// Supervisor and guard are dead, and what is left of the job has these to itself. Whether we may end that.
    Left(CpuList, bool),
    /// It was told to run on these, and has none to itself.
    Uses(CpuList),
}

/// What somebody who asks for cores has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cores<T> {
    /// Take these.
    Take(T),
    /// Sleep until this is free, then look again.
    Wait(Target),
}

/// Decides for the job `me`, given the claims of all others. `pick` chooses cores, none of which is among the first it is
/// given, and if possible none among the second.
pub fn cores<T>(me: Entry, claims: &[(Entry, Claim)], pick: impl FnOnce(&CpuList, &CpuList) -> Option<T>) -> Cores<T> {
    let asks_before = |(entry, claim): &&(Entry, Claim)| *claim == Claim::Asks && entry.number < me.number;
    if let Some(&(nearest, _)) = claims.iter().filter(asks_before).max_by_key(|(entry, _)| *entry) {
        return Cores::Wait(Target::Turn(nearest));
    }
    let (taken, used) =
        (taken(claims), all(claims, |claim| if let Claim::Uses(cpus) = claim { Some(cpus) } else { None }));
    if let Some(picked) = pick(&taken, &used) {
        return Cores::Take(picked);
    }
    let any = |wanted: fn(&Claim) -> bool| claims.iter().any(|(_, claim)| wanted(claim));
    let live = any(|claim| matches!(claim, Claim::Has(_)));
    let to_end = any(|claim| matches!(claim, Claim::Left(_, true)));
    // What we may not end is waited for where there is nothing else: the others end by themselves.
    let to_wait_for = !live && any(|claim| matches!(claim, Claim::Left(..)));
    Cores::Wait(if to_end || to_wait_for { Target::Orphans } else { Target::Cores })
}

/// Every processor that is somebody's alone.
pub fn taken(claims: &[(Entry, Claim)]) -> CpuList {
    all(claims, |claim| match claim {
        Claim::Has(cpus) | Claim::Left(cpus, _) => Some(cpus),
        Claim::Asks | Claim::Uses(_) => None,
    })
}

fn all(claims: &[(Entry, Claim)], of: impl Fn(&Claim) -> Option<&CpuList>) -> CpuList {
    claims.iter().filter_map(|(_, claim)| of(claim)).fold(CpuList::default(), |all, cpus| all.and(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Mode;
    use proptest::prelude::*;

    const MACHINE: u32 = 8;

    fn shared(number: u64) -> Entry {
        Entry { number, mode: Mode::Shared }
    }

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    /// Decides for job 10, which asks for `count` of eight cores of one processor each.
    fn decide(count: usize, claims: &[(u64, Claim)]) -> Cores<CpuList> {
        let claims: Vec<_> = claims.iter().map(|(number, claim)| (shared(*number), claim.clone())).collect();
        cores(shared(10), &claims, |taken, used| {
            let free = (0..MACHINE).filter(|&cpu| !taken.contains(cpu));
            let mut free: Vec<u32> = free.collect();
            free.sort_by_key(|&cpu| used.contains(cpu));
            (free.len() >= count).then(|| free[..count].iter().copied().collect())
        })
    }

    #[test]
    fn the_free_ones_are_taken() {
        assert_eq!(decide(2, &[(1, Claim::Has(list("0-1"))), (2, Claim::Uses(list("2")))]), Cores::Take(list("3-4")));
        assert_eq!(decide(8, &[(1, Claim::Uses(list("0-7")))]), Cores::Take(list("0-7")));
    }

    #[test]
    fn too_few_free_ones_are_waited_for_with_anybody_s_end() {
        assert_eq!(
            decide(3, &[(1, Claim::Has(list("0-2"))), (2, Claim::Has(list("3-5")))]),
            Cores::Wait(Target::Cores)
        );
    }

    #[test]
    fn who_asked_before_is_served_before() {
        let claims = [(3, Claim::Asks), (4, Claim::Asks), (11, Claim::Asks), (1, Claim::Has(list("0-6")))];
        assert_eq!(decide(1, &claims), Cores::Wait(Target::Turn(shared(4))));
        assert_eq!(decide(1, &claims[2..]), Cores::Take(list("7")));
    }

    #[test]
    fn what_the_dead_left_is_ended_or_waited_for() {
        let (live, ours, theirs) =
            (Claim::Has(list("0-3")), Claim::Left(list("4-5"), true), Claim::Left(list("6"), false));
        assert_eq!(decide(2, &[(1, live.clone()), (2, ours), (3, theirs.clone())]), Cores::Wait(Target::Orphans));
        assert_eq!(decide(7, &[(1, live), (3, theirs.clone())]), Cores::Wait(Target::Cores));
        assert_eq!(decide(8, &[(3, theirs.clone())]), Cores::Wait(Target::Orphans));
        assert_eq!(decide(7, &[(3, theirs)]), Cores::Take(list("0-5,7")));
    }

    fn any_claim() -> impl Strategy<Value = Claim> {
        let cpus =
            proptest::collection::btree_set(0..MACHINE, 1..4).prop_map(|cpus| cpus.into_iter().collect::<CpuList>());
        (0..5, cpus).prop_map(|(kind, cpus)| match kind {
            0 => Claim::Asks,
            1 => Claim::Uses(cpus),
            2 => Claim::Left(cpus, false),
            3 => Claim::Left(cpus, true),
            _ => Claim::Has(cpus),
        })
    }

    proptest! {
        /// What is taken is nobody else's, nobody is passed, and whoever waits waits for somebody that is there.
        #[test]
        fn nobody_s_cores_are_taken_and_nobody_is_passed(
            claims in proptest::collection::vec((1u64..20, any_claim()), 0..6), count in 1..=MACHINE as usize,
        ) {
            let claims: Vec<_> = claims.into_iter().filter(|(number, _)| *number != 10).collect();
            let asks_before = claims.iter().filter(|(number, claim)| *claim == Claim::Asks && *number < 10).map(|(number, _)| *number);
            let nearest = asks_before.max();
            match decide(count, &claims) {
                Cores::Take(cpus) => {
                    prop_assert_eq!(nearest, None);
                    prop_assert_eq!(cpus.len(), count);
                    for (_, claim) in &claims {
                        if let Claim::Has(theirs) | Claim::Left(theirs, _) = claim {
                            prop_assert!(!cpus.meets(theirs));
                        }
                    }
                }
                Cores::Wait(Target::Turn(entry)) => prop_assert_eq!(Some(entry.number), nearest),
                Cores::Wait(Target::Cores) => {
                    prop_assert!(claims.iter().any(|(_, claim)| matches!(claim, Claim::Has(_))));
                }
                Cores::Wait(Target::Orphans) => {
                    prop_assert!(claims.iter().any(|(_, claim)| matches!(claim, Claim::Left(..))));
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
