//! The part of a wait that is for cores: see [`cores`].

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::super::LockError;
use super::super::cores::{self, Claim, Cores};
use super::super::decide::Entry;
use super::super::queue::Queue;
use super::super::record::{Change, Record};
use super::super::ticket::Seen;
use super::super::wait::{self, Call, Slept};
use super::{Ahead, LOOKED_AT, Other, PATIENCE, Place, Woken};
use crate::job::Mode;
use crate::pin::{CpuList, Lease};
use crate::poll::Limits;

/// How long whoever waits for cores sleeps at most, where not everybody can be watched who has some.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Of how many jobs with cores the end is watched: each takes a thread and three descriptors, of which a process has 1024.
const WATCHED: usize = 256;

/// What a shared job that asks for cores of its own brings along.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// Chooses its cores: none of the first, which are somebody's alone, and if possible none of the second.
    pub pick: &'a dyn Fn(&CpuList, &CpuList) -> Option<Lease>,
    /// Whether nothing is left of a dead job that could be waited for: see [`Spent`](super::Spent).
    pub spent: &'a dyn Fn(&Seen, &Record) -> bool,
    /// How long somebody may have the queue directory locked without a word about it.
    pub patience: Option<Duration>,
}

impl Place {
    /// Asks for cores, under the directory's lock: nobody else is given any meanwhile, and no stopped waiter comes back. The
    /// inner error is what ended the wait for that lock.
    pub(super) fn ask_for_cores(
        &mut self,
        ask: Ask<'_>,
        limits: Limits<'_>,
    ) -> Result<Result<Cores<Lease>, Woken>, LockError> {
        let late = limits.deadline.map(|at| at.max(Instant::now() + PATIENCE));
        let has_passed = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
        let patience = ask.patience.map(|patience| Instant::now() + patience);
        let soon = late.into_iter().chain(patience).min();
        let Some(_lock) = self.queue.lock_directory(limits.interrupt, soon)? else {
            return Ok(Err(match () {
                () if has_passed(late) => Woken::TimedOut,
                () if has_passed(patience) => Woken::QueueLocked,
                () => Woken::Interrupted,
            }));
        };
        self.claims = claims(&self.queue, self.ticket.entry, ask.spent)?;
        let cores = cores::cores(self.ticket.entry, &self.claims, ask.pick);
        if let Cores::Take(lease) = &cores {
            self.ticket.record(&Change::Cores { cpus: lease.reserved.clone() })?;
            self.ticket.served();
            self.lease = Some(lease.clone());
        }
        Ok(Ok(cores))
    }

    /// Sleeps until any of those that have cores has ended.
    pub(super) fn sleep_until_cores_are_free(&self, limits: Limits<'_>) -> Result<Slept, LockError> {
        let have = || self.claims.iter().filter(|(_, claim)| matches!(claim, Claim::Has(_)));
        let seen: Vec<Option<Seen>> =
            have().take(WATCHED).map(|&(entry, _)| self.queue.try_see(entry)).collect::<Result<_, _>>()?;
        let calls: Vec<Call<'_>> = seen.iter().flatten().map(|seen| Call::WriterGone(seen.as_fd())).collect();
        if calls.len() < seen.len() {
            // One of them has gone already.
            return Ok(Slept::Done);
        }
        // Nobody tells when what is left of the dead ends, and of all who have cores they may be the first.
        let left = self.claims.iter().any(|(_, claim)| matches!(claim, Claim::Left(..)));
        let soon = (left || have().nth(WATCHED).is_some()).then(|| Instant::now() + LOOK_AGAIN);
        let deadline = soon.into_iter().chain(limits.deadline).min();
        match wait::sleep_on_any(&calls, limits.interrupt, deadline).map_err(LockError::Wait)? {
            Slept::TimedOut if limits.deadline.is_none_or(|at| at > Instant::now()) => Ok(Slept::Done),
            slept => Ok(slept),
        }
    }

    /// Those that have cores, and neither supervisor nor guard: ours, which can be ended, or else the first.
    pub(super) fn orphans_with_cores(&self) -> Vec<(Seen, Record)> {
        let left = |ours| {
            let left = self.claims.iter().filter(move |(_, claim)| matches!(claim, Claim::Left(_, is) if *is == ours));
            left.filter_map(|&(entry, _)| self.queue.see(entry)).filter_map(|seen| seen.record().map(|it| (seen, it)))
        };
        let ours: Vec<_> = left(true).collect();
        if ours.is_empty() { left(false).take(1).collect() } else { ours }
    }

    /// Who has cores, or asked for some before us.
    pub(super) fn ahead_for_cores(&self) -> Result<Ahead, LockError> {
        let me = self.ticket.entry;
        let mut others = self.queue.entries()?;
        others.retain(|entry| *entry != me && entry.mode == Mode::Shared);
        // Those too many to look at are counted as if they were in the way.
        let mut ahead = Ahead { jobs: others.len().saturating_sub(LOOKED_AT), ..Ahead::default() };
        ahead.exact = ahead.jobs == 0;
        for seen in others.into_iter().take(LOOKED_AT).filter_map(|entry| self.queue.see(entry)) {
            let (number, live) = (seen.entry.number, seen.is_live());
            let left =
                || self.claims.iter().any(|(entry, claim)| *entry == seen.entry && matches!(claim, Claim::Left(..)));
            if !live && !left() {
                continue;
            }
            let asks = live && seen.holds_asking();
            let Some(other) = Other::seen(&seen) else { continue };
            let (has, asked) = (other.record.cores.is_some(), other.record.joined.cores.is_some());
            let is_before = !has && asked && asks && number < me.number;
            ahead.is_turn |= is_before;
            ahead.jobs += usize::from(has || is_before);
            ahead.supervisors.push(other.record.joined.pid);
            // Who has cores may wait for an exclusive job still.
            if has && other.record.granted_usec.is_some() {
                ahead.holders.push(other);
            }
        }
        ahead.taken = Some(cores::taken(&self.claims));
        Ok(ahead)
    }
}

/// What other shared jobs have and want of cores. A dead one's count as long as something is left of it, but not those of a
/// stopped waiter. Where somebody before us asks, that is all there is to know: the tickets are read from the nearest down,
/// and no further, since the directory is locked meanwhile.
fn claims(queue: &Queue, me: Entry, spent: &dyn Fn(&Seen, &Record) -> bool) -> Result<Vec<(Entry, Claim)>, LockError> {
    let mut others = queue.entries()?;
    others.retain(|entry| *entry != me && entry.mode == Mode::Shared);
    let (before, after): (Vec<Entry>, Vec<Entry>) = others.into_iter().partition(|entry| entry.number < me.number);
    let mut claims = Vec::new();
    for entry in before.into_iter().rev().chain(after) {
        let Some(seen) = queue.try_see(entry)? else { continue };
        let live = seen.is_live();
        // One that cannot be read cannot be known to ask for any, and lets everybody pass who asks for none.
        let Some(record) = seen.record() else { continue };
        let claim = match (&record.cores, &record.pinned) {
            (Some(cpus), _) if live => Claim::Has(cpus.clone()),
            (Some(cpus), _) if !record.stopped && !spent(&seen, &record) => Claim::Left(cpus.clone(), seen.is_ours()),
            (None, _) if live && record.joined.cores.is_some() && seen.holds_asking() => Claim::Asks,
            (None, Some(pinned)) if live => Claim::Uses(pinned.cpus.clone()),
            _ => continue,
        };
        let is_turn = claim == Claim::Asks && entry.number < me.number;
        claims.push((entry, claim));
        if is_turn {
            break;
        }
    }
    Ok(claims)
}
