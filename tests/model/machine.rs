//! What can happen next, and what it does.

use perflock::job::Mode;
use perflock::lock::decide::decide;
use perflock::lock::waiting::Waiting;
use perflock::lock::{Decision, Entry, Life, Target};
use perflock::step::Step;
use stateright::{Model, Property};

use crate::bugs::Bug;
use crate::state::{Doing, Guard, Job, Outsider, Phase, State, Ticket, own_entry};

/// How many jobs there are, and what may befall them all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) jobs: usize,
    pub(crate) kills: u8,
    pub(crate) cancels: u8,
    pub(crate) stops: u8,
    pub(crate) outsider: bool,
    /// How many cores it has, of which shared jobs ask for none, one or two of their own; 0 where nobody asks.
    pub(crate) cores: u8,
    /// What each job wants, and how many cores; empty for all that they may want.
    pub(crate) these: &'static [(Mode, u8)],
    pub(crate) bug: Option<Bug>,
}

/// One that asks for cores may come back from ^Z when a later one has them, which waits for an exclusive one that came
/// back too, which waits for the first. It takes an outsider to let it come that far.
pub(crate) const IN_A_RING: &[(Mode, u8)] = &[(Mode::Shared, 2), (Mode::Exclusive, 0), (Mode::Shared, 1)];

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Victim {
    Supervisor,
    Guard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Locks the queue directory, removes what the dead left, and chooses a number.
    Number(usize),
    /// Makes the next step, or a part of it.
    Step(usize, Step),
    /// Does what a waiter has to do next, or a part of it.
    Wait(usize, Waiting),
    /// The guard makes a step.
    Guard(usize, Step),
    /// A guard that was told to end has done so.
    GuardEnds(usize),
    /// The members of an orphan end by themselves.
    OrphanEnds(usize),
    /// The supervisor puts another guard into the place of one that was killed.
    ReplaceGuard(usize),
    OutsiderEnds,
    /// From here on, what may happen or not.
    OutsiderTakes,
    Kill(usize, Victim),
    Cancel(usize),
    /// ^Z.
    Stop(usize),
    Continue(usize),
}

/// Jobs are of this many users in turn: one's own orphans are killed, others' are waited for.
const USERS: usize = 2;

/// Whether these jobs are of one user.
pub(crate) fn of_one_user(one: usize, other: usize) -> bool {
    one % USERS == other % USERS
}

/// The most that a job asks for.
const MOST_CORES: u8 = 2;

/// Steps of the supervisor that others cannot tell from the one before.
const UNSEEN: [Step; 3] = [Step::Running, Step::MainEnded, Step::LeftoversSignalled];

impl Machine {
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// What the jobs may want: the machine, or to share it, with so many cores of their own or none.
    fn wants(&self) -> Vec<Vec<(Mode, u8)>> {
        if !self.these.is_empty() {
            return vec![self.these.to_vec()];
        }
        let mut wants = vec![(Mode::Exclusive, 0)];
        wants.extend((0..=self.cores.min(MOST_CORES)).map(|asks| (Mode::Shared, asks)));
        let mut all: Vec<Vec<(Mode, u8)>> = vec![Vec::new()];
        for _ in 0..self.jobs {
            all = all.iter().flat_map(|before| wants.iter().map(move |&want| [before, &[want][..]].concat())).collect();
        }
        // One that asks alone is given what it asks for.
        all.retain(|jobs| self.cores == 0 || jobs.iter().filter(|(_, asks)| *asks > 0).count() > 1);
        all
    }

    /// The step that the supervisor makes after this one.
    fn after(&self, step: Step) -> Option<Step> {
        if self.has(Bug::TicketRemovedBeforeTheLock) {
            match step {
                Step::GroupRemoved => return Some(Step::TicketRemoved),
                Step::TicketRemoved => return Some(Step::LockReleased),
                Step::LockReleased => return None,
                _ => {}
            }
        }
        let mut later = Step::SUPERVISOR.into_iter().skip_while(|&other| other != step).skip(1);
        later.find(|next| !UNSEEN.contains(next))
    }

    /// Whether this waiter can do nothing before others do something.
    pub(crate) fn sleeps(&self, state: &State, i: usize) -> bool {
        let Phase::Waiting(waiting, doing) = &state.jobs[i].phase else { return false };
        match (waiting, doing) {
            (Waiting::AskForCores, _) => state.directory.is_some() && !self.has(Bug::CoresWithoutTheLock),
            (Waiting::Sleep(Target::LockFile), _) => !state.lock_is_free(state.jobs[i].mode, Some(i)),
            (Waiting::Sleep(Target::Turn(_)), Doing::Opened(file)) => state.is_asking(*file),
            (Waiting::Sleep(_), Doing::Opened(file)) => state.is_locked(*file),
            // Whichever is over first ends the sleep.
            (Waiting::Sleep(_), Doing::Watching(have, left)) => {
                have.iter().all(|&file| state.is_locked(file)) && left.iter().all(|file| state.jobs[file.job].members)
            }
            (Waiting::Sleep(Target::Orphans), doing) => Self::waits_for_orphan(state, i, doing),
            _ => false,
        }
    }

    /// What happens by itself, sooner or later.
    pub(crate) fn due(&self, state: &State, actions: &mut Vec<Action>) {
        for (i, job) in state.jobs.iter().enumerate() {
            match &job.phase {
                Phase::Away => {
                    // Which job is which does not matter: they come in their order.
                    let next = state.jobs[..i].iter().all(|before| before.phase != Phase::Away);
                    if next && (state.directory.is_none() || self.has(Bug::NumberOutsideTheLock)) {
                        actions.push(Action::Number(i));
                    }
                }
                Phase::Numbered(_) => actions.push(Action::Step(i, Step::TicketPublished)),
                Phase::Waiting(waiting, _) => {
                    if !self.sleeps(state, i) {
                        actions.push(Action::Wait(i, *waiting));
                    }
                }
                Phase::Made(_, doing) if Self::waits_for_orphan(state, i, doing) => {}
                Phase::Made(step, _) => {
                    actions.extend(self.after(*step).map(|next| Action::Step(i, next)));
                    let watches = matches!(step, Step::CommandBorn | Step::GroupKilled);
                    if job.guard == Guard::Killed && watches {
                        actions.push(Action::ReplaceGuard(i));
                    }
                }
                Phase::Stopped | Phase::Done | Phase::Dead => {}
            }
            match job.guard {
                Guard::Alone(step) => {
                    let next = Step::GUARD.into_iter().skip_while(|&other| other != step).nth(1);
                    actions.push(Action::Guard(i, next.unwrap_or(Step::TicketRemoved)));
                }
                Guard::Ending => actions.push(Action::GuardEnds(i)),
                Guard::Killed if job.orphaned && job.members => actions.push(Action::OrphanEnds(i)),
                Guard::None | Guard::Watching | Guard::Killed => {}
            }
        }
        if matches!(state.outsider, Outsider::Holding(_)) {
            actions.push(Action::OutsiderEnds);
        }
    }

    fn may_happen(&self, state: &State, actions: &mut Vec<Action>) {
        if matches!(state.outsider, Outsider::Away(mode) if state.lock_is_free(mode, None)) {
            actions.push(Action::OutsiderTakes);
        }
        for (i, job) in state.jobs.iter().enumerate() {
            if state.kills_left > 0 && job.supervisor_lives() {
                actions.push(Action::Kill(i, Victim::Supervisor));
            }
            if state.kills_left > 0 && matches!(job.guard, Guard::Watching | Guard::Alone(_)) {
                actions.push(Action::Kill(i, Victim::Guard));
            }
            let asleep = matches!(job.phase, Phase::Waiting(Waiting::Sleep(_), _))
                || matches!(job.phase, Phase::Waiting(Waiting::AskForCores, _)) && self.sleeps(state, i);
            // While it deals with an orphan, only what ends it for good is heard.
            let stoppable = asleep && !matches!(job.phase, Phase::Waiting(Waiting::Sleep(Target::Orphans), _));
            // A signal, or the end of its patience, also while it deals with orphans.
            if state.cancels_left > 0 && (asleep || matches!(job.phase, Phase::Made(Step::Granted, _))) {
                actions.push(Action::Cancel(i));
            }
            if state.stops_left > 0 && stoppable {
                actions.push(Action::Stop(i));
            }
            if job.phase == Phase::Stopped && (state.directory.is_none() || self.has(Bug::BackWithoutTheLock)) {
                actions.push(Action::Continue(i));
            }
        }
    }

    /// Under the directory's lock: removes dead tickets that name nothing any more, with the empty groups they name.
    fn clean(&self, state: &mut State, i: usize) {
        for (_, job) in state.jobs.iter_mut().enumerate().filter(|(other, _)| of_one_user(*other, i)) {
            let Some(ticket) = job.ticket.as_mut().filter(|ticket| ticket.named && !ticket.locked) else { continue };
            let comes_back = ticket.stopped && job.phase == Phase::Stopped && !self.has(Bug::StoppedCleaned);
            if !job.members && !comes_back {
                ticket.named = false;
                job.group &= !ticket.names_group;
            }
        }
    }

    fn highest(state: &State) -> u64 {
        state.entries().last().map_or(0, |entry| entry.number)
    }

    fn publish(&self, state: &mut State, i: usize, mut number: u64) {
        while state.find(Entry { number, mode: state.jobs[i].mode }).is_some() {
            number += 1;
        }
        let before = state.entries();
        let came = state.joined;
        state.joined += 1;
        let job = &mut state.jobs[i];
        let inode = job.ticket.as_ref().map_or(0, |old| old.inode + 1);
        let locked = !self.has(Bug::PublishBeforeLocking);
        job.ticket = Some(Ticket {
            inode,
            number,
            named: true,
            locked,
            asking: true,
            cores: 0,
            granted: false,
            names_group: false,
            stopped: false,
        });
        job.came = came;
        // What the directory had before.
        job.phase = Phase::Waiting(Waiting::Look, Doing::Asking(before, Vec::new()));
        state.jobs[i].saw = state.came_back();
    }

    /// A part of what a waiter has to do.
    fn wait(&self, state: &mut State, i: usize, waiting: Waiting, doing: Doing) {
        let mode = state.jobs[i].mode;
        let lacks_cores = state.jobs[i].lacks_cores();
        let next = match (waiting, doing) {
            (_, _) if state.jobs[i].ticket.as_ref().is_some_and(|ticket| !ticket.locked) => {
                // Only where it is published before.
                if let Some(ticket) = &mut state.jobs[i].ticket {
                    ticket.locked = true;
                }
                waiting
            }
            (Waiting::Look | Waiting::LookAgain, Doing::Asking(entries, mut answers)) => {
                let me = own_entry(state, i);
                if let Err(asked) = answered(me, &entries, &answers) {
                    answers.push(state.life(asked));
                }
                match answered(me, &entries, &answers) {
                    Ok(decision) => waiting.looked(decision, lacks_cores),
                    Err(_) => {
                        state.jobs[i].phase = Phase::Waiting(waiting, Doing::Asking(entries, answers));
                        return;
                    }
                }
            }
            (Waiting::Look | Waiting::LookAgain, _) => {
                let entries = state.entries();
                state.jobs[i].saw = state.came_back();
                match answered(own_entry(state, i), &entries, &[]) {
                    Ok(decision) => waiting.looked(decision, lacks_cores),
                    Err(_) => {
                        state.jobs[i].phase = Phase::Waiting(waiting, Doing::Asking(entries, Vec::new()));
                        return;
                    }
                }
            }
            (Waiting::TryLock, doing) if self.has(Bug::LockAfterOrphans) && !state.jobs[i].searched => {
                let doing = self.search(state, i, doing);
                state.jobs[i].searched = doing.is_none();
                state.jobs[i].phase = Phase::Waiting(waiting, doing.unwrap_or_default());
                return;
            }
            (Waiting::TryLock, _) => {
                let got = state.lock_is_free(mode, Some(i));
                state.jobs[i].has_lock = got;
                Waiting::tried(got)
            }
            (Waiting::Sleep(target @ Target::LockFile), _) => {
                state.jobs[i].has_lock = true;
                self.woke(target)
            }
            (Waiting::AskForCores, doing) => {
                let (next, doing) = self.ask_for_cores(state, i, doing);
                state.jobs[i].phase = Phase::Waiting(next, doing);
                return;
            }
            // Asleep until now.
            (Waiting::Sleep(target), Doing::Opened(_) | Doing::Watching(..)) => self.woke(target),
            (Waiting::Sleep(target @ Target::Orphans), doing) => match Self::end_orphan(state, i, doing) {
                Some(doing) => {
                    state.jobs[i].phase = Phase::Waiting(waiting, doing);
                    return;
                }
                None => self.woke(target),
            },
            (Waiting::Sleep(target @ (Target::Ticket(entry) | Target::Turn(entry))), _) => match state.find(entry) {
                Some(file) => {
                    state.jobs[i].phase = Phase::Waiting(waiting, Doing::Opened(file));
                    return;
                }
                None => self.woke(target),
            },
            (Waiting::Sleep(target @ Target::Cores), doing) => match Self::watch(state, doing) {
                Some(watching) => {
                    state.jobs[i].phase = Phase::Waiting(waiting, watching);
                    return;
                }
                None => self.woke(target),
            },
            (Waiting::LetGo, _) => {
                state.jobs[i].has_lock = false;
                Waiting::Look
            }
            (Waiting::Granted, _) => Waiting::Granted,
        };
        state.jobs[i].phase = match next {
            Waiting::Granted => Phase::Made(Step::LockTaken, Doing::Nothing),
            next => Phase::Waiting(next, Doing::Nothing),
        };
    }

    fn woke(&self, target: Target) -> Waiting {
        match target {
            Target::LockFile if self.has(Bug::NoSecondLook) => Waiting::Granted,
            Target::Ticket(_) if self.has(Bug::NoSecondLook) => Waiting::TryLock,
            target => Waiting::woke(target),
        }
    }

    /// A part of the search for orphans that may not live beside job `i`; `None` when it is over.
    fn search(&self, state: &mut State, i: usize, doing: Doing) -> Option<Doing> {
        let me = own_entry(state, i);
        let Doing::Searching(mut left) = doing else {
            let ahead =
                |e: &Entry| state.jobs[i].was_stopped && !self.has(Bug::SearchAheadOnly) || e.number < me.number;
            let others = state.entries().into_iter().filter(|e| *e != me && e.mode.conflicts_with(me.mode));
            let left: Vec<Entry> = others.filter(ahead).collect();
            return (!left.is_empty()).then_some(Doing::Searching(left));
        };
        let entry = left.pop()?;
        let can_clean = state.directory.is_none();
        let ours = |job: usize| of_one_user(job, i);
        if let Some(file) = state.find(entry).filter(|&file| !state.is_locked(file)) {
            let job = &mut state.jobs[file.job];
            if let Some(ticket) = job.ticket.as_mut().filter(|ticket| ticket.names_group) {
                job.members = false;
                job.group = false;
                ticket.named &= !(can_clean && ours(file.job));
            }
        }
        (!left.is_empty()).then_some(Doing::Searching(left))
    }

    /// Whether the next that was found is an orphan of another user, which is waited for.
    fn waits_for_orphan(state: &State, i: usize, doing: &Doing) -> bool {
        let Doing::Searching(left) = doing else { return false };
        let found = left.last().and_then(|&entry| state.find(entry)).filter(|&file| !state.is_locked(file));
        found.is_some_and(|file| state.jobs[file.job].members && !of_one_user(file.job, i))
    }

    fn step(&self, state: &mut State, i: usize, step: Step, doing: Doing) {
        if step == Step::OrphansEnded
            && !self.has(Bug::LockAfterOrphans)
            && let Some(doing) = self.search(state, i, doing)
        {
            state.jobs[i].phase = Phase::Made(Step::Granted, doing);
            return;
        }
        let last = self.after(step).is_none();
        let job = &mut state.jobs[i];
        match step {
            Step::GroupMade => job.group = true,
            Step::GuardForked if !self.has(Bug::NoGuard) => job.guard = Guard::Watching,
            Step::CommandBorn => job.members = true,
            Step::GroupKilled => job.members = false,
            Step::UsageRead if job.guard == Guard::Watching => job.guard = Guard::Ending,
            Step::GroupRemoved => job.group = false,
            Step::LockReleased => job.has_lock = false,
            _ => {}
        }
        if let Some(ticket) = &mut job.ticket {
            match step {
                Step::Granted => ticket.granted = true,
                Step::GroupNamed => ticket.names_group = true,
                Step::TicketRemoved => ticket.named = false,
                _ => {}
            }
        }
        job.phase = if last { Phase::Done } else { Phase::Made(step, Doing::Nothing) };
        job.close();
    }

    fn guard(job: &mut Job, step: Step) {
        job.guard = Guard::Alone(step);
        match step {
            Step::GuardEmptied => job.members = false,
            Step::GuardRemoved => job.group = false,
            Step::GuardReleased => job.has_lock = false,
            // The last thing it does.
            _ => {
                job.ticket.iter_mut().for_each(|ticket| ticket.named = false);
                job.guard = Guard::Killed;
                job.close();
            }
        }
    }

    fn kill(state: &mut State, i: usize, victim: Victim) {
        state.kills_left -= 1;
        if victim == Victim::Supervisor && state.directory == Some(i) {
            state.directory = None;
        }
        let job = &mut state.jobs[i];
        match victim {
            Victim::Supervisor => {
                job.phase = Phase::Dead;
                if job.guard == Guard::Watching {
                    job.guard = Guard::Alone(Step::GuardAlone);
                }
            }
            Victim::Guard => job.guard = Guard::Killed,
        }
        job.orphaned |= job.phase == Phase::Dead && job.guard == Guard::Killed;
        job.close();
    }

    fn go_on(&self, state: &mut State, i: usize) {
        let me = own_entry(state, i);
        let asks = state.jobs[i].asks > 0 && !self.has(Bug::BackBeforeCores);
        let cores = |entry| state.find(entry).and_then(|file| state.ticket(file)).map_or(0, |ticket| ticket.cores);
        let served = |entry| asks && cores(entry) != 0;
        let overtaken = state.entries().into_iter().any(|entry| {
            let granted = state.find(entry).and_then(|file| state.ticket(file)).is_some_and(|ticket| ticket.granted);
            entry.number > me.number && (entry.mode.conflicts_with(me.mode) && granted || served(entry))
        });
        let ticket = state.jobs[i].ticket.as_mut().filter(|ticket| ticket.named && !overtaken);
        if let Some(ticket) = ticket {
            ticket.stopped = false;
            ticket.locked = true;
            ticket.asking = true;
            state.jobs[i].phase = Phase::Waiting(Waiting::Look, Doing::Nothing);
        } else {
            let number = Self::highest(state) + 1;
            self.publish(state, i, number);
        }
    }
}

/// The question that `decide` asks next, given the answers so far, or what it decides.
fn answered(me: Entry, entries: &[Entry], answers: &[Life]) -> Result<Decision, Entry> {
    let mut known = answers.iter();
    let mut question = None;
    let decision = decide(me, entries, |entry| {
        known.next().copied().unwrap_or_else(|| {
            question = question.or(Some(entry));
            // Ends the search.
            Life::Waiting
        })
    });
    question.map_or(Ok(decision), Err)
}

impl Model for Machine {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let outsiders = if self.outsider {
            vec![Outsider::Away(Mode::Exclusive), Outsider::Away(Mode::Shared)]
        } else {
            vec![Outsider::Gone]
        };
        let jobs = self.wants();
        let mut states = Vec::new();
        for outsider in outsiders {
            states.extend(jobs.iter().map(|jobs| State {
                jobs: jobs.iter().map(|&(mode, asks)| Job::new(mode, asks)).collect(),
                outsider,
                directory: None,
                joined: 0,
                kills_left: self.kills,
                cancels_left: self.cancels,
                stops_left: self.stops,
            }));
        }
        states
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.due(state, actions);
        self.may_happen(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Number(i) => {
                if !self.has(Bug::NumberOutsideTheLock) {
                    self.clean(&mut next, i);
                    next.directory = Some(i);
                }
                next.jobs[i].phase = Phase::Numbered(Self::highest(&next) + 1);
            }
            Action::Step(i, Step::TicketPublished) => {
                if let Phase::Numbered(number) = next.jobs[i].phase {
                    self.publish(&mut next, i, number);
                }
                if next.directory == Some(i) {
                    next.directory = None;
                }
            }
            Action::Step(i, step) => {
                if let Phase::Made(_, doing) = &state.jobs[i].phase {
                    self.step(&mut next, i, step, doing.clone());
                }
            }
            Action::Wait(i, waiting) => {
                if let Phase::Waiting(_, doing) = &state.jobs[i].phase {
                    self.wait(&mut next, i, waiting, doing.clone());
                }
            }
            Action::Guard(i, step) => Self::guard(&mut next.jobs[i], step),
            Action::GuardEnds(i) => {
                next.jobs[i].guard = Guard::Killed;
                next.jobs[i].close();
            }
            Action::OrphanEnds(i) => next.jobs[i].members = false,
            Action::ReplaceGuard(i) => next.jobs[i].guard = Guard::Watching,
            Action::OutsiderTakes => {
                if let Outsider::Away(mode) = next.outsider {
                    next.outsider = Outsider::Holding(mode);
                }
            }
            Action::OutsiderEnds => next.outsider = Outsider::Gone,
            Action::Kill(i, victim) => Self::kill(&mut next, i, victim),
            Action::Cancel(i) => {
                next.cancels_left -= 1;
                next.jobs[i].ticket.iter_mut().for_each(|ticket| ticket.named = false);
                next.jobs[i].phase = Phase::Done;
                // With it goes the lock, where it has that.
                next.jobs[i].close();
            }
            Action::Stop(i) => {
                next.stops_left -= 1;
                let job = &mut next.jobs[i];
                job.was_stopped = true;
                job.phase = Phase::Stopped;
                if !self.has(Bug::CoresKeptWhileStopped) {
                    job.lease = 0;
                }
                if let Some(ticket) = &mut job.ticket {
                    ticket.stopped = true;
                    ticket.locked = false;
                    ticket.cores = 0;
                }
                // Who saw it before may pass it now.
                next.jobs.iter_mut().for_each(|job| job.saw &= !(1 << i));
            }
            Action::Continue(i) => self.go_on(&mut next, i),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        crate::properties::all(self)
    }
}
