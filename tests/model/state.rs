//! What the model keeps of a machine: the queue directory, the lock file, and each job's processes.

use perflock::job::Mode;
use perflock::lock::waiting::Waiting;
use perflock::lock::{Entry, Life};
use perflock::step::Step;

/// Where a supervisor is in the program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Not started.
    Away,
    /// It has the directory's lock, has cleaned up, and will take this number.
    Numbered(u64),
    /// In the queue: what it does next, and how far it is with that.
    Waiting(Waiting, Doing),
    /// Ended by ^Z, for now.
    Stopped,
    /// The last step that it made. The queue's and the lock file's are behind it.
    Made(Step, Doing),
    /// It ended as it should.
    Done,
    /// It was killed.
    Dead,
}

/// How far a supervisor is with something that takes several looks, between any two of which the others may do anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Doing {
    #[default]
    Nothing,
    /// The directory was read, and these questions about tickets were answered.
    Asking(Vec<Entry>, Vec<Life>),
    /// The ticket to sleep on was opened.
    Opened(File),
    /// Those of the tickets that the directory had which were not yet looked at for orphans.
    Searching(Vec<Entry>),
    /// The jobs that have cores, and those of which something is left that has some.
    Found(Vec<Entry>, Vec<Entry>),
    /// The tickets of the former were opened. Of the latter is seen from time to time whether they ended.
    Watching(Vec<File>, Vec<File>),
    /// These cores were chosen, and not recorded; only where that is not one step.
    Chosen(u8),
}

/// An inode: whose ticket, and which of this job's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct File {
    pub(crate) job: usize,
    pub(crate) inode: u8,
}

/// A job's guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Guard {
    None,
    Watching,
    /// Its supervisor is dead, and this is the last step that it made.
    Alone(Step),
    /// Told to end: it does nothing any more, but its descriptors are open.
    Ending,
    Killed,
}

impl Guard {
    /// The process is there, with the lock's and the ticket's descriptors.
    pub(crate) fn exists(self) -> bool {
        !matches!(self, Self::None | Self::Killed)
    }
}

/// A file in the queue directory, or one that was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket {
    pub(crate) inode: u8,
    pub(crate) number: u64,
    /// The directory has it.
    pub(crate) named: bool,
    /// Its lock is held.
    pub(crate) locked: bool,
    /// Of that lock, the part that says that its job asks for cores.
    pub(crate) asking: bool,
    /// The cores that it says its job has, one bit each.
    pub(crate) cores: u8,
    pub(crate) granted: bool,
    pub(crate) names_group: bool,
    pub(crate) stopped: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(crate) mode: Mode,
    /// How many cores of its own it asks for.
    pub(crate) asks: u8,
    /// The cores that its members run on and nobody else's may, one bit each.
    pub(crate) lease: u8,
    /// It was given them while somebody waited who had asked before.
    pub(crate) passed: bool,
    pub(crate) phase: Phase,
    pub(crate) guard: Guard,
    pub(crate) ticket: Option<Ticket>,
    /// Its descriptor of the lock file has the lock.
    pub(crate) has_lock: bool,
    /// The group exists.
    pub(crate) group: bool,
    /// It has living members.
    pub(crate) members: bool,
    /// The ^Z that it got.
    pub(crate) was_stopped: bool,
    /// How many joined before it.
    pub(crate) came: u8,
    /// Who was there again after a ^Z when it last looked at the queue, one bit each.
    pub(crate) saw: u8,
    /// It lost supervisor and guard.
    pub(crate) orphaned: bool,
    /// It searched for orphans, where it does that before it has the lock file.
    pub(crate) searched: bool,
}

impl Job {
    pub(crate) fn new(mode: Mode, asks: u8) -> Self {
        Self {
            mode,
            asks,
            lease: 0,
            passed: false,
            phase: Phase::Away,
            guard: Guard::None,
            ticket: None,
            has_lock: false,
            group: false,
            members: false,
            was_stopped: false,
            came: 0,
            saw: 0,
            orphaned: false,
            searched: false,
        }
    }

    pub(crate) fn supervisor_lives(&self) -> bool {
        !matches!(self.phase, Phase::Away | Phase::Done | Phase::Dead)
    }

    /// It is in the queue and wants the machine.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.phase, Phase::Waiting(..))
    }

    /// It asks for cores of its own, and has none.
    pub(crate) fn lacks_cores(&self) -> bool {
        self.asks > 0 && self.lease == 0
    }

    /// It may start members: the wait is over.
    pub(crate) fn started(&self) -> bool {
        matches!(self.phase, Phase::Made(..))
    }

    /// The kernel closes what nobody has open any more.
    pub(crate) fn close(&mut self) {
        if self.supervisor_lives() || self.guard.exists() {
            return;
        }
        self.has_lock = false;
        if let Some(ticket) = &mut self.ticket {
            ticket.locked = false;
            if !ticket.named {
                // Which they were makes no difference any more.
                (ticket.cores, self.lease) = (0, 0);
            }
        }
    }
}

/// A plain flock(1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outsider {
    Away(Mode),
    Holding(Mode),
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) jobs: Vec<Job>,
    pub(crate) outsider: Outsider,
    /// Who has the directory locked.
    pub(crate) directory: Option<usize>,
    /// How many joined so far.
    pub(crate) joined: u8,
    pub(crate) kills_left: u8,
    pub(crate) cancels_left: u8,
    pub(crate) stops_left: u8,
}

impl State {
    /// The file that a name in the directory stands for.
    pub(crate) fn find(&self, entry: Entry) -> Option<File> {
        let named = |(_, job): &(usize, &Job)| {
            job.mode == entry.mode && job.ticket.as_ref().is_some_and(|t| t.named && t.number == entry.number)
        };
        let (job, found) = self.jobs.iter().enumerate().find(named)?;
        Some(File { job, inode: found.ticket.as_ref()?.inode })
    }

    /// Every name in the directory.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let entry = |job: &Job| {
            let ticket = job.ticket.as_ref().filter(|ticket| ticket.named)?;
            Some(Entry { number: ticket.number, mode: job.mode })
        };
        let mut entries: Vec<Entry> = self.jobs.iter().filter_map(entry).collect();
        entries.sort_unstable();
        entries
    }

    pub(crate) fn ticket(&self, file: File) -> Option<&Ticket> {
        self.jobs[file.job].ticket.as_ref().filter(|ticket| ticket.inode == file.inode)
    }

    pub(crate) fn is_locked(&self, file: File) -> bool {
        self.ticket(file).is_some_and(|ticket| ticket.locked)
    }

    /// Its job asks for cores, and holds the part of the lock that stands for that.
    pub(crate) fn is_asking(&self, file: File) -> bool {
        self.ticket(file).is_some_and(|ticket| ticket.locked && ticket.asking)
    }

    /// Those who wait and were stopped once, one bit each.
    pub(crate) fn came_back(&self) -> u8 {
        let bits = self.jobs.iter().enumerate();
        bits.map(|(i, job)| u8::from(job.waits() && job.was_stopped) << i).sum()
    }

    /// What the program would say of the life behind a name.
    pub(crate) fn life(&self, entry: Entry) -> Life {
        match self.find(entry).and_then(|file| self.ticket(file)) {
            Some(ticket) if ticket.locked && ticket.granted => Life::Holding,
            Some(ticket) if ticket.locked => Life::Waiting,
            _ => Life::Dead,
        }
    }

    /// flock(2) would succeed at once for a descriptor other than `own`'s.
    pub(crate) fn lock_is_free(&self, mode: Mode, own: Option<usize>) -> bool {
        let jobs = self.jobs.iter().enumerate();
        let by_job = jobs.into_iter().any(|(i, job)| Some(i) != own && job.has_lock && job.mode.conflicts_with(mode));
        let by_outsider =
            matches!(self.outsider, Outsider::Holding(other) if own.is_some() && other.conflicts_with(mode));
        !by_job && !by_outsider
    }
}

/// The place of job `i`.
pub(crate) fn own_entry(state: &State, i: usize) -> Entry {
    let job = &state.jobs[i];
    Entry { number: job.ticket.as_ref().map_or(0, |ticket| ticket.number), mode: job.mode }
}
