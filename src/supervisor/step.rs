//! What the supervisor does when something happens, as a pure state machine: values in, values out. Time is counted
//! from the command's start.

use std::time::Duration;

use crate::cgroup::Population;

/// How long the group may stay populated after the main process ended before anything is called a leftover: short
/// background children are common, and a process counts until its last context switch.
pub const SETTLE: Duration = Duration::from_millis(20);

/// Copies of a signal within this time count as one: timeout(1) sends two, to us and to our process group.
pub const COPIES: Duration = Duration::from_secs(1);

/// From TERM to CONT, for members that are stopped. By then most are gone, and sending it to thousands for nothing would
/// hold up the release.
const CONTINUE_AFTER: Duration = Duration::from_millis(100);

/// After this long somebody who waits for the prompt is told whom for.
const PATIENCE: Duration = Duration::from_secs(1);

/// A group that lives this long after it was killed is in the kernel's hands.
pub const UNKILLABLE: Duration = Duration::from_secs(5);

/// Members that live this long after a kill need another: most are gone by then.
pub const SURVIVES_FOR: Duration = Duration::from_millis(100);

/// First and longest pause between two kills of the same group.
const KILL_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What to do with members that outlive the main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// End them, then give the machine back.
    Kill,
    /// Hold the machine until they end by themselves.
    Wait,
}

impl Leftovers {
    /// Reads `kill` or `wait`.
    ///
    /// # Errors
    /// A sentence fragment with the words that are allowed.
    pub fn parse(word: &str) -> Result<Self, String> {
        match word {
            "kill" => Ok(Self::Kill),
            "wait" => Ok(Self::Wait),
            _ => Err(r#"leftovers are dealt with by "kill" or "wait""#.to_owned()),
        }
    }
}

/// The settings that steer the end of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From TERM to KILL.
    pub grace: Duration,
    /// Members that outlive the main process.
    pub leftovers: Leftovers,
    /// The command's longest time.
    pub time_limit: Option<Duration>,
}

/// What a supervisor that has the time needs to kill a group, and more.
const LATE: Duration = Duration::from_millis(500);

impl Policy {
    /// How long after its start a job has been killed at the latest, if its supervisor found a processor to do it on.
    pub fn overdue(&self) -> Option<Duration> {
        self.time_limit.map(|limit| limit.saturating_add(self.grace).saturating_add(LATE))
    }
}

/// Where a signal came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The kernel, for a terminal: the whole foreground process group got it, the command included.
    Terminal,
    /// A member of the job itself.
    Member,
    /// Anybody else.
    Outside,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A signal for the supervisor.
    Signal(i32, Origin),
    /// The main process died of SIGKILL; [`Event::MainEnded`] follows.
    MainKilled,
    /// The main process ended. It is reaped, unless another process traces it.
    MainEnded,
    /// The group was looked at.
    Looked(Population),
    /// Members that were killed are frozen, and not ours to thaw.
    Frozen,
    /// Time passed.
    Time,
}

/// What to do about it, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Send this signal to the main process.
    Forward(i32),
    /// Members are likely to be signalled soon: make ready for that.
    Prepare,
    /// Send TERM to every member, and remember who they were.
    Terminate,
    /// Send TERM to the members born since, and CONT to all: a stopped process takes TERM only when it goes on.
    Continue,
    /// Kill the group.
    Kill,
    /// Kill those that live on by other means.
    KillSurvivors,
    /// Tell the user.
    Tell(News),
    /// Tell the user who was killed and does not die.
    TellStuck,
}

/// What the user is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The time limit passed.
    TimeLimit,
    /// Leftovers were found: the machine is being given back.
    Releasing,
    /// Members got TERM and are still there; KILL comes after this time.
    KillsIn(Duration),
    /// `--leftovers wait`: members are still there.
    Lingering,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The main process runs.
    Running,
    /// It ended a moment ago.
    Settling { until: Duration, prepared: bool },
    /// Members got TERM.
    Ending { kill_at: Duration, continue_at: Option<Duration> },
    /// Members may stay.
    Lingering,
    /// The group was killed.
    Killing { since: Duration, again_at: Duration, pause: Duration },
    /// Main ended and the group is empty.
    Done,
}

/// The state of one job.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    phase: Phase,
    main_ended: bool,
    timed_out: bool,
    cut_short: bool,
    /// When the user is told next what is waited for.
    tell_at: Option<Duration>,
    /// When each signal last came from outside.
    last: Vec<(i32, Duration)>,
}

impl Machine {
    /// A job whose command was just executed.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            phase: Phase::Running,
            main_ended: false,
            timed_out: false,
            cut_short: false,
            tell_at: None,
            last: Vec::new(),
        }
    }

    /// The main process ended and no member is alive.
    pub fn done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// The main process ended.
    pub fn main_ended(&self) -> bool {
        self.main_ended
    }

    /// The time limit ended the job.
    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// Somebody's second TERM killed the group while the command ran.
    pub fn cut_short(&self) -> bool {
        self.cut_short
    }

    /// The main process runs, and nothing is being done to end it.
    pub fn runs(&self) -> bool {
        self.phase == Phase::Running && !self.main_ended
    }

    /// The group has to be looked at: only then can it be empty.
    pub fn looks(&self) -> bool {
        self.main_ended && !self.done()
    }

    /// When [`Event::Time`] is due.
    pub fn wake_at(&self) -> Option<Duration> {
        let phase = match self.phase {
            Phase::Running | Phase::Lingering => self.policy.time_limit.filter(|_| !self.timed_out),
            Phase::Settling { until, .. } => Some(until),
            Phase::Ending { kill_at, continue_at } => Some(continue_at.unwrap_or(kill_at)),
            Phase::Killing { again_at, .. } => Some(again_at),
            Phase::Done => None,
        };
        phase.into_iter().chain(self.tell_at).min()
    }

    /// Takes in what happened at `now`.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Act> {
        let mut acts = Vec::new();
        match event {
            Event::Signal(signal, origin) => self.on_signal(now, signal, origin, &mut acts),
            Event::MainKilled => {
                // By the guard for us, if it is that late. Nothing else is due: it has ended, as is told next.
                if self.phase == Phase::Running && self.policy.overdue().is_some_and(|at| now >= at) {
                    self.timed_out = true;
                    acts.push(Act::Tell(News::TimeLimit));
                }
                return acts;
            }
            Event::MainEnded => {
                self.main_ended = true;
                if self.phase == Phase::Running {
                    self.phase = Phase::Settling { until: now + SETTLE, prepared: false };
                }
            }
            Event::Looked(Population::Empty) if self.main_ended => self.phase = Phase::Done,
            Event::Looked(Population::Populated) => self.prepare(now, &mut acts),
            // There is nothing to hope for.
            Event::Frozen => self.tell_at = self.tell_at.map(|at| at.min(now)),
            Event::Looked(_) | Event::Time => {}
        }
        self.on_time(now, &mut acts);
        acts
    }

    /// Half of the time to settle is over: what is idle until its end is used.
    fn prepare(&mut self, now: Duration, acts: &mut Vec<Act>) {
        if let Phase::Settling { until, prepared: false } = self.phase
            && now + SETTLE / 2 >= until
            && self.policy.leftovers == Leftovers::Kill
        {
            acts.push(Act::Prepare);
            self.phase = Phase::Settling { until, prepared: true };
        }
    }

    fn on_time(&mut self, now: Duration, acts: &mut Vec<Act>) {
        match self.phase {
            Phase::Running | Phase::Lingering
                if !self.timed_out && self.policy.time_limit.is_some_and(|limit| now >= limit) =>
            {
                self.timed_out = true;
                acts.push(Act::Tell(News::TimeLimit));
                self.terminate(now, acts);
            }
            Phase::Settling { until, .. } if now >= until => {
                acts.push(Act::Tell(News::Releasing));
                match self.policy.leftovers {
                    Leftovers::Kill => self.terminate(now, acts),
                    Leftovers::Wait => {
                        self.phase = Phase::Lingering;
                        self.tell_at = Some(now + PATIENCE);
                    }
                }
            }
            Phase::Ending { kill_at, .. } if now >= kill_at => self.kill(now, acts),
            Phase::Ending { kill_at, continue_at: Some(at) } if now >= at => {
                acts.push(Act::Continue);
                self.phase = Phase::Ending { kill_at, continue_at: None };
            }
            Phase::Killing { since, again_at, pause } if now >= again_at => {
                acts.push(Act::Kill);
                if now >= since + SURVIVES_FOR {
                    acts.push(Act::KillSurvivors);
                }
                let pause = (pause * 2).min(KILL_AGAIN.1);
                self.phase = Phase::Killing { since, again_at: now + pause, pause };
            }
            _ => {}
        }
        if self.tell_at.is_some_and(|at| now >= at) {
            self.tell_at = None;
            acts.extend(match self.phase {
                Phase::Ending { kill_at, .. } => Some(Act::Tell(News::KillsIn(kill_at.saturating_sub(now)))),
                Phase::Lingering => Some(Act::Tell(News::Lingering)),
                Phase::Killing { .. } => Some(Act::TellStuck),
                Phase::Running | Phase::Settling { .. } | Phase::Done => None,
            });
        }
    }

    fn terminate(&mut self, now: Duration, acts: &mut Vec<Act>) {
        acts.push(Act::Terminate);
        let continue_at = Some(now + CONTINUE_AFTER.min(self.policy.grace / 2));
        self.phase = Phase::Ending { kill_at: now + self.policy.grace, continue_at };
        self.tell_at = Some(now + PATIENCE);
        if self.policy.grace.is_zero() {
            self.kill(now, acts);
        }
    }

    fn kill(&mut self, now: Duration, acts: &mut Vec<Act>) {
        self.cut_short |= !self.main_ended && !self.timed_out;
        acts.push(Act::Kill);
        self.phase = Phase::Killing { since: now, again_at: now + KILL_AGAIN.0, pause: KILL_AGAIN.0 };
        self.tell_at = Some(now + UNKILLABLE);
    }

    fn on_signal(&mut self, now: Duration, signal: i32, origin: Origin, acts: &mut Vec<Act>) {
        if origin == Origin::Member || matches!(self.phase, Phase::Killing { .. } | Phase::Done) {
            return;
        }
        if origin == Origin::Terminal {
            // The command has it already. Once that ended, ^C is for us: somebody wants the prompt back.
            if self.main_ended && signal != libc::SIGHUP {
                self.kill(now, acts);
            }
            return;
        }
        let before = self.last.iter().position(|&(other, _)| other == signal);
        let repeated = match before {
            Some(index) if now.saturating_sub(self.last[index].1) < COPIES => return,
            Some(index) => {
                self.last[index].1 = now;
                true
            }
            None => {
                self.last.push((signal, now));
                false
            }
        };
        let ends = matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP);
        if (self.main_ended && ends) || (repeated && signal == libc::SIGTERM) {
            self.kill(now, acts);
        } else if !self.main_ended {
            acts.push(Act::Forward(signal));
        }
    }
}

#[cfg(test)]
mod tests;
