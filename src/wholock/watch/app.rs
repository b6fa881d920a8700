//! What is on the screen, and what keys make of it. Pure: looks and keys go in, and lines come out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::keys::Key;
use super::machine::{self, Shares};
use super::{Processes, Sight};
use crate::job::JobId;
use crate::text;
use crate::wholock::load::Load;
use crate::wholock::snapshot::{Job, Snapshot, State};
use crate::wholock::view::{self, Row};

/// How many samples of a job's CPU use are kept: no graph is wider.
const KEPT: usize = 64;

/// What stays the same as long as the view runs.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// The machine's name, escaped.
    pub host: String,
    /// The lock, escaped, if it is not the machine's usual one.
    pub lock: Option<String>,
    /// Time between two looks.
    pub interval: Duration,
    /// Colours may be used.
    pub colour: bool,
}

/// How urgent a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// A job that has the machine.
    Holds,
    /// One that waits.
    Waits,
    /// One that somebody should look at.
    Odd,
    /// A part of the line above, or an explanation.
    Plain,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub enum Line {
    /// A row, and the job whose own row it is.
    Row(Box<Row>, Option<JobId>, Tone),
    /// Words from side to side.
    Words(String),
}

/// The state of the view.
#[derive(Debug, Default)]
pub struct App {
    /// What stays.
    pub setting: Setting,
    sight: Sight,
    shares: Option<Shares>,
    history: HashMap<JobId, VecDeque<Option<f64>>>,
    selected: Option<JobId>,
    /// The processes of the selected job are shown.
    open: bool,
    processes: Option<Processes>,
    /// What is used outside of the lock, and when that was seen.
    load: Option<(Load, Instant)>,
    lines: Vec<Line>,
    offset: usize,
    /// Lines that the screen had for them last.
    page: usize,
    /// The selection was moved: it must come into sight.
    follow: bool,
}

impl App {
    /// Nothing was seen yet.
    pub fn new(setting: Setting) -> Self {
        Self { setting, ..Self::default() }
    }

    /// What was seen. The rates are from the look before.
    pub fn looked(&mut self, mut sight: Sight) {
        sight.snapshot.rates_since(&self.sight.snapshot);
        self.shares = machine::shares(&self.sight, &sight);
        let here: HashSet<JobId> = sight.snapshot.jobs().map(|job| job.id).collect();
        self.history.retain(|id, _| here.contains(id));
        for job in &sight.snapshot.holders {
            let samples = self.history.entry(job.id).or_default();
            if samples.len() == KEPT {
                samples.pop_front();
            }
            samples.push_back(job.cpu_now_percent);
        }
        let place = self.place();
        self.sight = sight;
        if self.place().is_none() {
            // The job that was selected is gone: the next one takes its place.
            let last = self.sight.snapshot.jobs().count().saturating_sub(1);
            self.selected = self.nth(place.unwrap_or(0).min(last));
            self.processes = None;
        }
        self.compose();
    }

    /// What is used outside of the lock, as of now: it is shown with the next look, and until there is something newer.
    pub fn loaded(&mut self, load: Load, at: Instant) {
        self.load = Some((load, at));
    }

    /// A key was pressed. True if that ends the view.
    pub fn pressed(&mut self, key: Key) -> bool {
        match key {
            Key::Quit => return true,
            Key::Up => self.select(self.place().map(|place| place.saturating_sub(1))),
            Key::Down => self.select(self.place().map(|place| place + 1)),
            Key::PageUp => self.offset = self.offset.saturating_sub(self.page.max(1)),
            Key::PageDown => self.offset += self.page.max(1),
            Key::Enter => {
                self.open = !self.open;
                self.processes = None;
                self.follow = true;
                self.compose();
            }
        }
        false
    }

    /// The job whose processes are to be shown.
    pub fn opened(&self) -> Option<&Job> {
        let selected = self.selected.filter(|_| self.open)?;
        self.sight.snapshot.jobs().find(|job| job.id == selected)
    }

    /// The processes of [`App::opened`] are still to be read.
    pub fn lacks_processes(&self) -> bool {
        self.processes.is_none() && self.opened().is_some()
    }

    /// The processes of [`App::opened`].
    pub fn read_processes(&mut self, processes: Processes) {
        self.processes = Some(processes);
        self.compose();
    }

    /// What was seen last.
    pub fn sight(&self) -> &Sight {
        &self.sight
    }

    /// What the machine did since the look before.
    pub fn shares(&self) -> Option<Shares> {
        self.shares
    }

    /// The job on which keys work.
    pub fn selected(&self) -> Option<JobId> {
        self.selected
    }

    /// A job's CPU use of late in percent of one core, the last `count` samples at most; `None` where it was not known.
    pub fn history(&self, id: JobId, count: usize) -> impl ExactSizeIterator<Item = Option<f64>> {
        let samples = self.history.get(&id);
        let skipped = samples.map_or(0, |samples| samples.len().saturating_sub(count));
        samples.map(VecDeque::iter).unwrap_or_default().copied().skip(skipped)
    }

    /// Every line of the table.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The lines that a screen with this much room for them shows.
    pub fn visible(&mut self, room: usize) -> &[Line] {
        self.page = room;
        if std::mem::take(&mut self.follow) {
            let mine = |line: &Line| matches!(line, Line::Row(_, id @ Some(_), _) if *id == self.selected);
            if let Some(at) = self.lines.iter().position(mine) {
                self.offset = self.offset.clamp((at + 1).saturating_sub(room.max(1)), at);
            }
        }
        self.offset = self.offset.min(self.lines.len().saturating_sub(room));
        let end = self.lines.len().min(self.offset + room);
        &self.lines[self.offset..end]
    }

    /// How many lines are above and below those that [`App::visible`] gave.
    pub fn hidden(&self) -> (usize, usize) {
        (self.offset, self.lines.len().saturating_sub(self.offset + self.page))
    }

    /// Where in the order of jobs the selected one stands.
    fn place(&self) -> Option<usize> {
        let selected = self.selected?;
        self.sight.snapshot.jobs().position(|job| job.id == selected)
    }

    fn nth(&self, place: usize) -> Option<JobId> {
        self.sight.snapshot.jobs().nth(place).map(|job| job.id)
    }

    fn select(&mut self, place: Option<usize>) {
        self.follow = true;
        if let Some(id) = place.and_then(|place| self.nth(place)).filter(|&id| Some(id) != self.selected) {
            self.selected = Some(id);
            self.processes = None;
            self.compose();
        }
    }

    /// Makes the lines anew.
    fn compose(&mut self) {
        let snapshot = &self.sight.snapshot;
        let mut lines = Vec::new();
        if let Some(problem) = &self.sight.problem {
            lines.push(Line::Words(text::escape(problem)));
        } else if snapshot.free() {
            lines.push(Line::Words(view::FREE.trim_end().to_owned()));
        }
        for job in snapshot.jobs() {
            let mut rows = view::rows(job).into_iter();
            lines.extend(rows.next().map(|row| Line::Row(Box::new(row), Some(job.id), tone(job))));
            lines.extend(rows.map(plain));
            if self.open && self.selected == Some(job.id) {
                lines.extend(process_lines(self.processes.as_ref(), &self.sight));
            }
        }
        lines.extend(snapshot.outsiders.iter().map(|(outsider, job)| plain(view::outsider_row(outsider, *job))));
        let map = self.sight.cores.as_ref().map(ToString::to_string).unwrap_or_default();
        lines.extend(map.lines().map(|line| Line::Words(line.to_owned())));
        if let Some((load, at)) = &self.load {
            let age = self.sight.at.saturating_duration_since(*at);
            let ago = if age > Duration::ZERO { format!("  ({} ago)", text::duration(age)) } else { String::new() };
            lines.extend(view::load_outside(load).lines().map(|line| Line::Words(format!("{line}{ago}"))));
        }
        self.lines = lines;
    }
}

fn plain(row: Row) -> Line {
    Line::Row(Box::new(row), None, Tone::Plain)
}

fn tone(job: &Job) -> Tone {
    match job.state {
        State::Running | State::Releasing => Tone::Holds,
        State::Waiting | State::WaitingFor(_) | State::WaitingForCores => Tone::Waits,
        State::Stopped | State::StoppedWaiter | State::Guarded | State::Orphan | State::MaybeOrphan => Tone::Odd,
    }
}

/// The processes of the opened job, with their age where that is worth telling.
fn process_lines(processes: Option<&Processes>, sight: &Sight) -> Vec<Line> {
    let Some(processes) = processes else { return Vec::new() };
    if processes.tree.is_empty() {
        return vec![Line::Words("  no process that can be seen".to_owned())];
    }
    let age = sight.at.saturating_duration_since(processes.at);
    let old = (age > Duration::ZERO).then(|| Line::Words(format!("  processes {} ago:", text::duration(age))));
    old.into_iter().chain(processes.tree.iter().map(|process| plain(view::process_row(process)))).collect()
}

/// Who has the machine, in a few words: `free`, `1 job, 2 waiting`.
pub fn summary(snapshot: &Snapshot) -> String {
    if snapshot.free() {
        return "free".to_owned();
    }
    let by_flock = |waits: bool| snapshot.outsiders.iter().filter(|(outsider, _)| outsider.waiting == waits).count();
    let parts = [
        (snapshot.holders.len(), "held by ", text::count(snapshot.holders.len(), "job")),
        (by_flock(false), "", format!("{} by flock", by_flock(false))),
        (snapshot.waiters.len() + by_flock(true), "", format!("{} waiting", snapshot.waiters.len() + by_flock(true))),
    ];
    let told = parts.into_iter().filter(|(count, ..)| *count > 0).map(|(_, before, text)| format!("{before}{text}"));
    told.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wholock::cores::{CoreMap, Part};
    use crate::wholock::load::UserLoad;
    use crate::wholock::tree;
    use crate::wholock::watch::samples::{holder, process, sight, waiter};
    use proptest::prelude::*;

    fn of(holders: &[u64], waiters: &[u64]) -> Snapshot {
        Snapshot {
            holders: holders.iter().map(|&number| holder(number, "job")).collect(),
            waiters: waiters.iter().map(|&number| waiter(number, "job")).collect(),
            ..Snapshot::default()
        }
    }

    fn app(snapshot: Snapshot) -> App {
        let mut app = App::new(Setting::default());
        app.looked(sight(Instant::now(), None, snapshot));
        app
    }

    fn selected(app: &App) -> Option<u64> {
        app.selected().map(|id| id.number)
    }

    #[test]
    fn the_selection_stays_with_its_job() {
        let mut app = app(of(&[1, 2], &[3]));
        assert_eq!(selected(&app), Some(1));
        app.pressed(Key::Up);
        assert_eq!(selected(&app), Some(1));
        app.pressed(Key::Down);
        app.looked(sight(Instant::now(), None, of(&[2, 3], &[4, 5])));
        assert_eq!(selected(&app), Some(2));
        for _ in 0..9 {
            app.pressed(Key::Down);
        }
        assert_eq!(selected(&app), Some(5));
        // Gone: the one that is last now; and none while there is none.
        app.looked(sight(Instant::now(), None, of(&[2], &[4])));
        assert_eq!(selected(&app), Some(4));
        app.looked(sight(Instant::now(), None, of(&[], &[])));
        assert_eq!(selected(&app), None);
        app.pressed(Key::Down);
        app.looked(sight(Instant::now(), None, of(&[9], &[])));
        assert_eq!(selected(&app), Some(9));
        assert!(app.pressed(Key::Quit));
    }

    #[test]
    fn only_the_selected_job_s_processes_are_wanted() {
        let mut app = app(of(&[1, 2], &[]));
        assert!(app.opened().is_none() && !app.lacks_processes());
        app.pressed(Key::Enter);
        assert_eq!(app.opened().map(|job| job.number), Some(1));
        assert!(app.lacks_processes());
        app.read_processes(Processes { at: app.sight().at, tree: vec![process(4, 0), process(5, 1)] });
        assert!(!app.lacks_processes());
        assert_eq!(app.lines().len(), 4);
        app.pressed(Key::Down);
        assert_eq!(app.opened().map(|job| job.number), Some(2));
        assert!(app.lacks_processes() && app.lines().len() == 2);
        app.pressed(Key::Enter);
        assert!(app.opened().is_none());
    }

    #[test]
    fn a_job_s_history_is_of_that_job_and_ends_with_it() {
        let start = Instant::now();
        let with = |number: u64, at: u64, msec: u64| {
            let mut snapshot = of(&[number], &[]);
            snapshot.holders[0].usage.cpu_usec = Some(msec * 1000);
            snapshot.holders[0].read_at = start + Duration::from_secs(at);
            sight(start + Duration::from_secs(at), None, snapshot)
        };
        let mut app = App::new(Setting::default());
        app.looked(with(1, 0, 5000));
        app.looked(with(1, 1, 6000));
        // A counter that went back.
        app.looked(with(1, 2, 100));
        app.looked(with(1, 3, 600));
        let history = |app: &App, count| {
            let id = app.selected().unwrap();
            app.history(id, count).collect::<Vec<_>>()
        };
        assert_eq!(history(&app, 9), [None, Some(100.0), None, Some(50.0)]);
        assert_eq!(history(&app, 2), [None, Some(50.0)]);
        app.looked(with(2, 4, 9000));
        assert_eq!(history(&app, 9), [None]);
        (5..200).for_each(|at| app.looked(with(2, at, 9000 + at)));
        assert_eq!(history(&app, 999).len(), KEPT);
    }

    #[test]
    fn pages_and_the_selection_stay_in_sight() {
        let all: Vec<u64> = (1..=50).collect();
        let mut app = app(of(&all, &[]));
        assert_eq!(app.visible(10).len(), 10);
        assert_eq!(app.hidden(), (0, 40));
        app.pressed(Key::PageDown);
        app.visible(10);
        assert_eq!(app.hidden(), (10, 30));
        for _ in 0..9 {
            app.pressed(Key::PageDown);
        }
        app.visible(10);
        assert_eq!(app.hidden(), (40, 0));
        // Moved from the first, which is out of sight.
        app.pressed(Key::Down);
        app.visible(10);
        assert_eq!(app.hidden(), (1, 39));
        app.pressed(Key::PageUp);
        assert_eq!((app.visible(100).len(), app.hidden()), (50, (0, 0)));
    }

    #[test]
    fn the_map_of_the_processors_stands_below_the_jobs() {
        let part = |cpus: &str, jobs: &[u64]| Part { cpus: cpus.parse().unwrap(), jobs: jobs.to_vec() };
        let cores = Some(CoreMap { nodes: vec![(0, vec![part("0-1", &[1]), part("2-3", &[])])] });
        let mut app = app(of(&[1], &[]));
        app.looked(Sight { cores, ..sight(Instant::now(), None, of(&[1], &[])) });
        let words =
            app.lines().iter().filter_map(|line| if let Line::Words(words) = line { Some(&**words) } else { None });
        assert_eq!(words.collect::<Vec<_>>(), ["cpus of node 0: 0-1 job 1; 2-3 free"]);
    }

    #[test]
    fn load_outside_is_shown_with_its_age() {
        let start = Instant::now();
        let user = UserLoad { uid: 4_000_000, percent: 150.0, busy: 0, busiest: Vec::new() };
        let mut app = App::new(Setting::default());
        app.loaded(Load { elapsed: Duration::from_secs(1), own_only: false, users: vec![user] }, start);
        let last = |app: &App| match app.lines().last() {
            Some(Line::Words(words)) => words.clone(),
            other => panic!("{other:?}"),
        };
        app.looked(sight(start, None, of(&[1], &[])));
        assert!(last(&app).starts_with("outside the lock: 4000000 uses 150% of a core"), "{}", last(&app));
        assert!(!last(&app).contains("ago"));
        app.looked(sight(start + Duration::from_secs(12), None, of(&[1], &[])));
        assert!(last(&app).ends_with("  (12s ago)"), "{}", last(&app));
        app.loaded(Load { elapsed: Duration::from_secs(1), own_only: false, users: vec![] }, start);
        app.looked(sight(start, None, of(&[1], &[])));
        assert_eq!(app.lines().len(), 1);
    }

    #[test]
    fn a_machine_is_summed_up() {
        assert_eq!(summary(&of(&[], &[])), "free");
        assert_eq!(summary(&of(&[1], &[])), "held by 1 job");
        assert_eq!(summary(&of(&[1, 2], &[3, 4])), "held by 2 jobs, 2 waiting");
        assert_eq!(summary(&of(&[], &[3])), "1 waiting");
    }

    proptest! {
        /// Whatever happens, what is selected is there, and what is shown is not more than there is room for.
        #[test]
        fn no_sequence_breaks_the_state(
            steps in proptest::collection::vec((0..5_usize, proptest::collection::vec(1..9_u64, 0..6), 0..9_usize), 0..40),
        ) {
            let mut app = App::new(Setting::default());
            for (what, mut jobs, room) in steps {
                jobs.sort_unstable();
                jobs.dedup();
                match what {
                    0 | 1 => app.looked(sight(Instant::now(), None, of(&jobs, &[]))),
                    _ => {
                        app.pressed([Key::Enter, Key::PageUp, Key::PageDown, Key::Up, Key::Down][room % 5]);
                    }
                }
                if app.lacks_processes() {
                    let tree = tree::read(&crate::procfs::Proc::at("/nonexistent"), &[1]);
                    app.read_processes(Processes { at: Instant::now(), tree });
                }
                prop_assert!(app.visible(room).len() <= room);
                let here = |id: JobId| app.sight().snapshot.jobs().any(|job| job.id == id);
                prop_assert!(app.selected().is_none_or(here));
                prop_assert_eq!(app.selected().is_none(), app.sight().snapshot.jobs().next().is_none());
            }
        }
    }
}
