//! Cores of their own for shared jobs: what the program reads, records and waits for.

use perflock::job::Mode;
use perflock::lock::cores::cores;
use perflock::lock::waiting::Waiting;
use perflock::lock::{Claim, Cores, Entry, Target};
use perflock::pin::CpuList;

use crate::bugs::Bug;
use crate::machine::{Machine, of_one_user};
use crate::state::{Doing, File, State, own_entry};

fn list(cores: u8) -> CpuList {
    (0..u8::BITS).filter(|core| cores >> core & 1 == 1).collect()
}

impl Machine {
    /// Asks for cores, in one step since nobody else has the directory locked meanwhile.
    pub(crate) fn ask_for_cores(&self, state: &mut State, i: usize, doing: Doing) -> (Waiting, Doing) {
        if let Doing::Chosen(lease) = doing {
            return (self.take(state, i, lease), Doing::Nothing);
        }
        let mut claims = self.claims(state, i);
        if self.has(Bug::SmallerFirst) {
            claims.retain(|(_, claim)| *claim != Claim::Asks);
        }
        let asks = usize::from(state.jobs[i].asks);
        let pick = |taken: &CpuList, _: &CpuList| {
            let free = (0..self.cores).filter(|&core| !taken.contains(core.into()));
            let picked: Vec<u8> = free.take(asks).collect();
            (picked.len() == asks).then(|| picked.iter().map(|core| 1 << core).sum())
        };
        match cores(own_entry(state, i), &claims, pick) {
            Cores::Take(lease) if self.has(Bug::CoresWithoutTheLock) => (Waiting::AskForCores, Doing::Chosen(lease)),
            Cores::Take(lease) => (self.take(state, i, lease), Doing::Nothing),
            wait @ Cores::Wait(target) => (Waiting::asked(&wait), self.awaited(target, &claims)),
        }
    }

    fn take(&self, state: &mut State, i: usize, lease: u8) -> Waiting {
        let came = state.jobs[i].came;
        let passed = state.jobs.iter().any(|other| other.waits() && other.lacks_cores() && other.came < came);
        let job = &mut state.jobs[i];
        job.lease = lease;
        job.passed = passed;
        if let Some(ticket) = &mut job.ticket {
            ticket.cores = lease;
            ticket.asking = self.has(Bug::ServedStillAsks);
        }
        Waiting::asked(&Cores::Take(lease))
    }

    /// What the program would say of everybody else's cores, from the nearest before it down, as far as it reads.
    fn claims(&self, state: &mut State, i: usize) -> Vec<(Entry, Claim)> {
        let me = own_entry(state, i);
        let others = state.entries().into_iter().filter(|entry| *entry != me && entry.mode == Mode::Shared);
        let (before, after): (Vec<Entry>, Vec<Entry>) = others.partition(|entry| entry.number < me.number);
        let mut claims = Vec::new();
        for entry in before.into_iter().rev().chain(after) {
            let Some(file) = state.find(entry) else { continue };
            let job = &mut state.jobs[file.job];
            let Some(ticket) = &job.ticket else { continue };
            let ours = of_one_user(file.job, i);
            let claim = match (ticket.cores, ticket.locked) {
                (0, true) if job.asks > 0 && ticket.asking => Claim::Asks,
                (0, _) => continue,
                (cores, true) => Claim::Has(list(cores)),
                (_, false) if self.has(Bug::OrphansCoresFree) => continue,
                (cores, false) if job.members => Claim::Left(list(cores), ours),
                // To see that nothing is left of it removes its group, where that may be done.
                (_, false) => {
                    job.group &= !(ours && ticket.names_group);
                    continue;
                }
            };
            let is_turn = claim == Claim::Asks && entry.number < me.number && !self.has(Bug::SmallerFirst);
            claims.push((entry, claim));
            if is_turn {
                break;
            }
        }
        claims
    }

    /// The tickets that have to do with what is waited for, where it does not say that itself.
    fn awaited(&self, target: Target, claims: &[(Entry, Claim)]) -> Doing {
        let those =
            |wanted: fn(&Claim) -> bool| claims.iter().filter(move |(_, claim)| wanted(claim)).map(|(it, _)| *it);
        Doing::Searching(match target {
            Target::Cores => {
                let most = if self.has(Bug::OneOfThemAwaited) { 1 } else { claims.len() };
                let have = those(|claim| matches!(claim, Claim::Has(_))).take(most).collect();
                return Doing::Found(have, those(|claim| matches!(claim, Claim::Left(..))).collect());
            }
            Target::Orphans => {
                let ours: Vec<Entry> = those(|claim| matches!(claim, Claim::Left(_, true))).collect();
                let first = those(|claim| matches!(claim, Claim::Left(_, false))).take(1);
                if ours.is_empty() { first.collect() } else { ours }
            }
            _ => return Doing::Nothing,
        })
    }

    /// Opens the tickets of those that have cores; `None` where one has gone already: that ends the sleep before it
    /// begins.
    pub(crate) fn watch(state: &State, doing: Doing) -> Option<Doing> {
        let Doing::Found(have, left) = doing else { return None };
        let open =
            |entries: Vec<Entry>| -> Option<Vec<File>> { entries.into_iter().map(|it| state.find(it)).collect() };
        Some(Doing::Watching(open(have)?, open(left)?))
    }

    /// Ends the next of the orphans whose cores are needed, or sees that it has ended; `None` when that was the last.
    pub(crate) fn end_orphan(state: &mut State, i: usize, doing: Doing) -> Option<Doing> {
        let Doing::Searching(mut left) = doing else { return None };
        let file = left.pop().and_then(|entry| state.find(entry)).filter(|&file| !state.is_locked(file));
        if let Some(file) = file {
            let job = &mut state.jobs[file.job];
            job.members = false;
            job.group &= !of_one_user(file.job, i);
        }
        (!left.is_empty()).then_some(Doing::Searching(left))
    }
}
