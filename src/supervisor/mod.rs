//! Supervision: running one command in its job group, from before it is born until no member is left.
//!
//! # Theory of operation
//!
//! ```text
//! shell ── perflock (supervisor) ─┬─ COMMAND …            in the job group
//!                                 └─ perflock-guard       outside it, own session, no stdio
//! ```
//!
//! The supervisor is the command's parent and shares its process group, so exit status, terminal and job control
//! are as without it: ^C and ^Z reach both from the terminal, and the supervisor leaves those to the command. It stops
//! when the command has: [`stops`].
//!
//! 1. [`inherit`] captured what perflock was started with, before anything changed it.
//! 2. [`signals`]: handlers first, child second; a handler only writes to a pipe.
//! 3. [`guard`]: forked before the command exists, with the lock's and the ticket's descriptions.
//! 4. [`spawn`]: the command is born in the group and gets exactly what perflock was given, but for its [`placement`] where
//!    it was told to run somewhere.
//! 5. [`step`]: what happens on a signal, an exit, a look at the group: a pure machine; [`Supervisor::watch`] does
//!    its bidding. While the command runs nothing is due and nothing is polled, so the supervisor is not woken, once it has done
//!    what there is to do at the start ([`Supervisor::started`]).
//! 6. The job is over when the main process was reaped **and** the group reports `populated 0`.

mod birth;
pub mod command;
pub mod guard;
pub mod inherit;
pub mod launcher;
mod looks;
mod main_end;
pub mod placement;
mod shared;
pub mod signals;
pub mod spawn;
pub mod step;
mod stops;
pub mod stuck;

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use rustix::process::{Signal, pidfd_send_signal};

use crate::cgroup::{Frozen, JobGroup, Maker, OpenedMembers, Usage, kill_survivors, signal_members};
use crate::child::{self, Exit, WaitedFor};
use crate::procfs::Proc;
use crate::step::Step;
use guard::Guard;
use looks::{Looks, Told};
use main_end::MainEnd;
use signals::Signals;
use spawn::Main;
use step::{Act, Event, Machine, News, Origin, Policy};
use stops::Stops;
use stuck::Stuck;

/// How many guards one job may have: more deaths mean that something is wrong, and forking on would not mend it.
const GUARDS: u32 = 3;

/// How long systemd may take between telling a command and telling its guard that their unit is stopped.
const STOP_IS_TOLD_WITHIN: Duration = Duration::from_millis(50);

/// A process that was ended when the job gave the machine back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its pid.
    pub pid: i32,
    /// Its name, chosen by itself: hostile text.
    pub name: String,
}

/// What became of a job.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How the main process ended.
    pub exit: Exit,
    /// From its start, execve(2) included, to its end.
    pub wall: Duration,
    /// From its start until no member was left.
    pub lasted: Duration,
    /// The time limit ended it.
    pub timed_out: bool,
    /// A second TERM killed it while the command ran.
    pub cut_short: bool,
    /// systemd stopped this unit, which was made for the job.
    pub stopped: Option<String>,
    /// Members that outlived the main process and were ended; the first few by name.
    pub leftovers: Vec<Ended>,
    /// How many there were.
    pub leftover_count: usize,
    /// What the whole job used, by its group.
    pub usage: Usage,
    /// What its processes used that were waited for.
    pub waited_for: WaitedFor,
}

/// How many leftovers are named.
const NAMED: usize = 5;

/// Something that whoever started the job should know or record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The main process, of this pid, ended. It is not reaped yet: what the kernel knows of it can be read.
    MainEnded(i32),
    /// The main process ended, and this one, which traces it, does not let us have it.
    Traced(Ended),
    /// The state machine's news, with members that are still there.
    News(News, Vec<Ended>, usize),
    /// A guard died and another took over: its pid, and whether it is outside of the job's scope.
    Guard(i32, bool),
    /// The guard died and could not be replaced.
    Unguarded,
    /// Members that were killed live on: the first few, and how many.
    Stuck(Vec<Stuck>, usize),
    /// The group could not be killed. Told once.
    CannotKill(String),
}

/// Reads counters of the group in a directory: [`Usage::read`] or [`Usage::read_all`].
pub type Read = fn(&Path) -> Usage;

/// Starts a guard of the group.
pub type StartGuard<'a> = dyn Fn(&dyn JobGroup) -> io::Result<Guard> + 'a;

/// One job under supervision.
pub struct Supervisor<'a> {
    /// The job group.
    pub group: &'a mut dyn JobGroup,
    /// Signals for us.
    pub signals: &'a Signals,
    /// Starts a guard.
    pub start_guard: &'a StartGuard<'a>,
    /// The guard, while there is one.
    pub guard: Option<Guard>,
    /// Told what happens.
    pub notice: &'a mut dyn FnMut(Notice),
    /// Inside another job.
    pub nested: bool,
    /// What is read of the group's counters when the job is over, by how long its main process took.
    pub counters: &'a dyn Fn(Duration) -> Option<Read>,
    /// Called once, before the first sleep: what there is to do while nothing happens.
    pub started: &'a dyn Fn(&dyn JobGroup, &Main),
}

/// What one sleep of the supervisor ended with.
struct Ready {
    main: bool,
    guard: bool,
}

impl Supervisor<'_> {
    /// Watches over the job until its main process ended and the group is empty.
    ///
    /// # Errors
    /// The kernel refused to let us wait, which it does to nobody; the guard then ends the job.
    pub fn watch(&mut self, main: &Main, policy: Policy) -> io::Result<Outcome> {
        let mut machine = Machine::new(policy);
        let mut end = MainEnd::default();
        let mut waited_for = WaitedFor::default();
        let mut leftovers = Leftover::default();
        let mut guards = 1;
        let mut stopped = None;
        let mut looks = Looks::default();
        let mut stops = Some(Stops::hold(self.nested)?);
        Step::Running.reached();
        // Not before: who is stopped until then leaves the command its terminal.
        (self.started)(self.group, main);
        // Where it is over already there is no long sleep, and what is let go now would be fetched again at once.
        if !main.has_ended() {
            crate::pages::let_go();
        }
        loop {
            // Before the first sleep as well: it may have stopped already. What ends the job must not stop on the way.
            if let Some(stops) = stops.as_mut().filter(|_| machine.runs()) {
                stops.follow(main, self.group);
            }
            let ready = self.sleep(main, &end, &machine, &looks, stops.as_ref())?;
            // Signals before the exit that they caused: a ^C that ended the command must not count as one for us.
            for signal in self.signals.drain() {
                let event = Event::Signal(signal.signal, self.origin(signal));
                if signal.signal != libc::SIGCHLD {
                    self.feed(&mut machine, main, event, &mut leftovers);
                }
            }
            if ready.main {
                stops = None;
                (self.notice)(Notice::MainEnded(main.pid));
            }
            if ready.main || end.is_held() {
                end.try_reap(main)?;
                if end.exit.is_some() {
                    Step::MainEnded.reached();
                }
                if let Some(tracer) = end.tracer_to_tell(main) {
                    (self.notice)(Notice::Traced(tracer));
                }
                if end.exit == Some(Exit::Signal(libc::SIGKILL)) && !machine.main_ended() {
                    self.feed(&mut machine, main, Event::MainKilled, &mut leftovers);
                }
                // Where members are told by being our children, it is one until it is reaped.
                let by_kin = matches!(self.group.maker(), Maker::Marked(..));
                if !machine.main_ended() && (end.exit.is_some() || !by_kin) {
                    self.feed(&mut machine, main, Event::MainEnded, &mut leftovers);
                }
            }
            if ready.guard && self.guard.as_ref().is_some_and(Guard::was_stopped) {
                // It has killed the job, and was right to go.
                if let Some(guard) = self.guard.take() {
                    guard.reap();
                }
                stopped = self.group.unit().map(str::to_owned);
            } else if ready.guard {
                guards += 1;
                self.replace_guard(guards);
            }
            child::reap_orphans(main.pid, &mut waited_for);
            let event = if machine.looks() {
                looks.looked(main.started.elapsed(), leftovers.ended_at);
                Event::Looked(self.group.population())
            } else {
                Event::Time
            };
            self.feed(&mut machine, main, event, &mut leftovers);
            if let (true, Some(exit), Some(wall)) = (machine.done(), end.exit, end.died) {
                waited_for += end.used;
                let leftover_count = leftovers.count();
                let leftovers = leftovers.named;
                if !machine.timed_out() && !machine.cut_short() {
                    stopped = stopped.or_else(|| self.stopped_unit(exit));
                }
                // The group is empty, so there is nothing left to guard. What a crash leaves from here on is an empty
                // group and a dead ticket that names it; the next perflock removes both. Told this early, the guard is
                // gone by the time it is reaped. But with the last process of a scope systemd removes the groups in it,
                // and what they counted; and it leaves some of them for ever if one goes while it does.
                if self.group.unit().is_none() {
                    self.guard.iter().for_each(Guard::end);
                }
                let usage = (self.counters)(wall).map(|read| self.group.usage(read)).unwrap_or_default();
                Step::UsageRead.reached();
                return Ok(Outcome {
                    exit,
                    wall,
                    lasted: main.started.elapsed(),
                    timed_out: machine.timed_out(),
                    cut_short: machine.cut_short(),
                    stopped,
                    leftovers,
                    leftover_count,
                    usage,
                    waited_for,
                });
            }
        }
    }

    fn sleep(
        &self,
        main: &Main,
        end: &MainEnd,
        machine: &Machine,
        looks: &Looks,
        stops: Option<&Stops>,
    ) -> io::Result<Ready> {
        let asks = machine.looks() && !looks.is_often() && self.group.changes().is_none();
        let member = if asks { self.group.next_end() } else { None };
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::POLLIN)];
        // It stays readable.
        let lives = end.died.is_none().then_some(main);
        let main_at = lives.map(|main| push(&mut fds, PollFd::new(main.pidfd.as_fd(), PollFlags::POLLIN)));
        let guard_at = self.guard.as_ref().map(|guard| push(&mut fds, PollFd::new(guard.pidfd(), PollFlags::POLLIN)));
        let stops = stops.filter(|_| machine.runs());
        fds.extend(stops.and_then(Stops::fd).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let mut wake_at = machine.wake_at().into_iter().chain(end.next_try()).min();
        if machine.looks() {
            let notices = self.group.changes().map(|fd| PollFd::new(fd, PollFlags::POLLPRI));
            let told = match (&notices, &member) {
                (Some(_), _) => Told::Changes,
                (None, Some(_)) => Told::OneEnd,
                (None, None) => Told::Children,
            };
            fds.extend(notices);
            fds.extend(member.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            let next = looks.next(told);
            wake_at = wake_at.into_iter().chain(next).min();
        }
        let wake_at = wake_at.map(|at| main.started + at);
        crate::poll::until(&mut fds, wake_at.into_iter().chain(stops.and_then(Stops::due)).min())?;
        let ready = |index: Option<usize>| index.is_some_and(|index| fds[index].any() == Some(true));
        Ok(Ready { main: ready(main_at), guard: ready(guard_at) })
    }

    fn feed(&mut self, machine: &mut Machine, main: &Main, event: Event, leftovers: &mut Leftover) {
        let main_ended = machine.looks() || event == Event::MainEnded;
        let mut acts = VecDeque::from(machine.step(main.started.elapsed(), event));
        while let Some(act) = acts.pop_front() {
            match act {
                Act::Forward(signal) => {
                    // By pidfd: after the main process was reaped its number may mean somebody else.
                    if let Some(signal) = Signal::from_named_raw(signal) {
                        let _ = pidfd_send_signal(&main.pidfd, signal);
                    }
                }
                Act::Prepare => leftovers.opened = OpenedMembers::open(self.group, &self.group.members()),
                Act::Terminate => {
                    let mut opened = std::mem::take(&mut leftovers.opened);
                    if opened.pids().is_empty() {
                        opened = OpenedMembers::open(self.group, &self.group.members());
                    } else {
                        // Those that ended by themselves meanwhile were not ended by us.
                        opened.retain_members(self.group);
                    }
                    let asked = opened.pids();
                    // At the time limit the command's own processes are asked to end: that is no leftover. Named before
                    // they are asked, since most are gone at once.
                    if main_ended {
                        leftovers.add(&asked, None);
                    }
                    opened.send(Signal::TERM);
                    leftovers.asked.extend(&asked);
                    // A process whose pidfd is open takes longer to die.
                    drop(opened);
                    leftovers.signalled(main);
                    Step::LeftoversSignalled.reached();
                }
                Act::Continue => {
                    let members = self.group.members();
                    let new: Vec<i32> = members.iter().copied().filter(|pid| !leftovers.asked.contains(pid)).collect();
                    if main_ended {
                        leftovers.add(&new, None);
                    }
                    signal_members(self.group, &new, Signal::TERM);
                    signal_members(self.group, &members, Signal::CONT);
                }
                Act::Kill => {
                    // Those born since the TERM as well; after the first kill nobody is born.
                    if !leftovers.killed {
                        leftovers.signalled(main);
                        leftovers.add(&self.group.members(), (!main_ended).then_some(main.pid));
                        leftovers.killed = true;
                    }
                    if let Err(error) = self.group.kill()
                        && !std::mem::replace(&mut leftovers.told_why_not, true)
                    {
                        (self.notice)(Notice::CannotKill(error.to_string()));
                    }
                    Step::GroupKilled.reached();
                }
                Act::KillSurvivors => {
                    leftovers.frozen = kill_survivors(self.group);
                    if !leftovers.frozen.is_empty() {
                        acts.extend(machine.step(main.started.elapsed(), Event::Frozen));
                    }
                }
                Act::TellStuck => {
                    let (stuck, count) = stuck::look(self.group, &leftovers.frozen);
                    // Unless the last one ended while we looked.
                    if count > 0 {
                        (self.notice)(Notice::Stuck(stuck, count));
                    }
                }
                Act::Tell(news) => {
                    let living = match news {
                        News::TimeLimit | News::Releasing => (Vec::new(), 0),
                        _ => {
                            let members = self.group.members();
                            (named(members.iter().copied()), members.len())
                        }
                    };
                    // Of members that are there, unless the last one ended while we looked.
                    if matches!(news, News::TimeLimit | News::Releasing) || living.1 > 0 {
                        (self.notice)(Notice::News(news, living.0, living.1));
                    }
                }
            }
        }
    }

    fn origin(&self, signal: signals::Arrived) -> Origin {
        match signal.sender {
            // A hang-up is told to the session's leader alone: the command, which would have been it, must hear of it.
            _ if signal.signal == libc::SIGHUP && signal.from_kernel && leads_session() => Origin::Outside,
            _ if signal.from_kernel => Origin::Terminal,
            Some(pid) if self.group.contains(pid) => Origin::Member,
            _ => Origin::Outside,
        }
    }

    /// The unit, if systemd stopped it. Of its TERM to every process the guard may be told after the command: if that died
    /// of it, or of the guard, the guard is given a moment.
    fn stopped_unit(&self, exit: Exit) -> Option<String> {
        let (unit, guard) = (self.group.unit()?, self.guard.as_ref()?);
        if matches!(exit, Exit::Signal(libc::SIGTERM | libc::SIGKILL)) && !guard.was_stopped() {
            let mut fds = [PollFd::new(guard.pidfd(), PollFlags::POLLIN)];
            // Ends when the guard does; what else ends it early does no harm.
            let _ = crate::poll::until(&mut fds, Some(Instant::now() + STOP_IS_TOLD_WITHIN));
        }
        guard.was_stopped().then(|| unit.to_owned())
    }

    fn replace_guard(&mut self, guards: u32) {
        if let Some(dead) = self.guard.take() {
            dead.reap();
        }
        if guards <= GUARDS {
            self.guard = (self.start_guard)(self.group).ok();
        }
        match &self.guard {
            Some(guard) => {
                let (pid, outside) = (guard.pid, guard.outside);
                self.group.exclude(pid);
                (self.notice)(Notice::Guard(pid, outside));
            }
            None => (self.notice)(Notice::Unguarded),
        }
    }
}

fn leads_session() -> bool {
    nix::unistd::getsid(None).is_ok_and(|session| session == nix::unistd::getpid())
}

fn push<'a>(fds: &mut Vec<PollFd<'a>>, fd: PollFd<'a>) -> usize {
    fds.push(fd);
    fds.len() - 1
}

/// The first few of these processes by name; one that ended meanwhile has none.
fn named(pids: impl Iterator<Item = i32>) -> Vec<Ended> {
    let proc = Proc::default();
    pids.filter_map(|pid| Some(Ended { pid, name: proc.stat(pid).ok()?.comm })).take(NAMED).collect()
}

/// Members that are being ended.
#[derive(Default)]
struct Leftover {
    named: Vec<Ended>,
    pids: HashSet<i32>,
    /// They were looked for, since the group was populated; they may have ended before they could be named.
    seen: bool,
    killed: bool,
    /// Opened while the group settles.
    opened: OpenedMembers,
    /// Those that got TERM.
    asked: HashSet<i32>,
    /// Those that are frozen by groups which are not ours to thaw.
    frozen: Vec<Frozen>,
    /// It was told why the group cannot be killed.
    told_why_not: bool,
    /// When they were last sent a signal.
    ended_at: Option<Duration>,
}

impl Leftover {
    /// From now on they may be gone at any moment.
    fn signalled(&mut self, main: &Main) {
        self.ended_at = Some(main.started.elapsed());
    }

    /// Adds these members to those that are being ended. The latest come first: they resist the most.
    fn add(&mut self, members: &[i32], except: Option<i32>) {
        let others = members.iter().copied().filter(|&pid| Some(pid) != except);
        let new: Vec<i32> = others.filter(|pid| !self.pids.contains(pid)).collect();
        let before = std::mem::take(&mut self.named);
        self.named = named(new.iter().copied()).into_iter().chain(before).take(NAMED).collect();
        self.pids.extend(new);
        // With the main process still there, the group was populated by it at least.
        self.seen |= except.is_none();
    }

    fn count(&self) -> usize {
        self.pids.len().max(usize::from(self.seen && self.killed))
    }
}
