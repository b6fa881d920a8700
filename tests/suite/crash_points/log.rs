//! The log of the steps that were reached, and of who was killed there.

use perflock::step::Step;

/// A line: `PID STEP`, or `PID STEP WHAT` where something was done.
#[derive(Clone)]
struct Line {
    pid: i32,
    step: Step,
    what: String,
}

/// The file that `PERFLOCK_CRASH_LOG` names.
#[derive(Clone)]
pub(super) struct Log(Vec<Line>);

/// The step of this name.
#[track_caller]
fn step(name: &str) -> Step {
    let known = Step::SUPERVISOR.into_iter().chain(Step::GUARD).find(|step| step.name() == name);
    known.unwrap_or_else(|| panic!("{name:?} is no step"))
}

impl Log {
    #[track_caller]
    pub(super) fn parse(text: &str) -> Self {
        let parse = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let pid = words.next().unwrap().parse().unwrap_or_else(|_| panic!("no pid in {line:?}"));
            Line { pid, step: step(words.next().unwrap()), what: words.next().unwrap_or_default().to_owned() }
        };
        Self(text.lines().map(parse).collect())
    }

    /// The lines of these processes.
    pub(super) fn by(&self, wanted: impl Fn(i32) -> bool) -> Self {
        Self(self.0.iter().filter(|line| wanted(line.pid)).cloned().collect())
    }

    /// The steps in the order in which they were reached. A group may have to be killed more than once: that counts once.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = self.0.iter().filter(|line| line.what.is_empty()).map(|line| line.step).collect();
        steps.dedup_by(|next, step| next == step && *step == Step::GroupKilled);
        steps
    }

    /// Whether this was done at the step.
    pub(super) fn says(&self, step: Step, what: &str) -> bool {
        self.0.iter().any(|line| line.step == step && line.what == what)
    }

    /// Who reached the step.
    pub(super) fn pid_at(&self, step: Step) -> Option<i32> {
        self.0.iter().find(|line| line.step == step).map(|line| line.pid)
    }
}
