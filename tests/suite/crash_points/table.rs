//! Tables: every case of a test, run in a few threads, and what became of it.

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use perflock::step::Step;

use super::case::{Case, Victim};
use super::{Backend, Place};

/// How many cases run at a time: they wait more than they work.
const THREADS: usize = 3;

/// What became of a case, or what the test that failed says.
type Cell = Result<&'static str, String>;

/// Every case and its cell.
pub(super) struct Table {
    title: &'static str,
    rows: Vec<(Case, Cell)>,
    took: Duration,
}

impl Table {
    /// Runs every case in a place of the backend's.
    pub(super) fn of(
        title: &'static str,
        backend: Backend,
        cases: Vec<Case>,
        run: fn(&Place, Backend, Case) -> &'static str,
    ) -> Self {
        let start = Instant::now();
        let rows = Mutex::new(Vec::new());
        let pending = Mutex::new(cases.iter().copied());
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let mut place = None;
                    loop {
                        let Some(case) = pending.lock().unwrap().next() else { break };
                        let here = place.take().unwrap_or_else(|| backend.place());
                        let ran = catch_unwind(AssertUnwindSafe(|| run(&here, backend, case)));
                        let cell = ran.map_err(|panic| format!("{}\nlog:\n{}", text(&*panic), here.read("log")));
                        // A case that failed may have left something.
                        place = cell.is_ok().then_some(here);
                        rows.lock().unwrap().push((case, cell));
                    }
                });
            }
        });
        Self { title, rows: rows.into_inner().unwrap(), took: start.elapsed() }
    }

    fn cell(&self, step: Step, victim: Victim) -> &str {
        let row = self.rows.iter().find(|(case, _)| (case.step, case.victim) == (step, victim));
        row.map_or("-", |(_, cell)| cell.as_ref().map_or("FAILED", |ok| ok))
    }

    /// Prints it on stdout, for those who run the tests with `--nocapture`.
    #[expect(clippy::print_stdout, reason = "shown when it is asked for")]
    pub(super) fn print(&self) {
        let victims = [Victim::Supervisor, Victim::Guard, Victim::Both];
        let mut text = format!("\n{}: {} cases in {:.1} s\n", self.title, self.rows.len(), self.took.as_secs_f64());
        let names = victims.map(Victim::name);
        writeln!(text, "{:<22}{:<20}{:<20}{}", "killed at", names[0], names[1], names[2]).unwrap();
        for step in Step::SUPERVISOR.into_iter().chain(Step::GUARD) {
            if self.rows.iter().any(|(case, _)| case.step == step) {
                let [supervisor, guard, both] = victims.map(|victim| self.cell(step, victim));
                writeln!(text, "{step:<22}{supervisor:<20}{guard:<20}{both}").unwrap();
            }
        }
        // In one piece: tests run beside each other.
        println!("{text}");
    }

    /// Asserts that no case failed.
    #[track_caller]
    pub(super) fn assert_ok(&self) {
        let failed = self.rows.iter().filter_map(|(case, cell)| Some((case, cell.as_ref().err()?)));
        let failed: Vec<String> = failed.map(|(case, why)| format!("--- {}\n{why}", case.plan())).collect();
        assert!(failed.is_empty(), "{}: {} cases failed\n{}", self.title, failed.len(), failed.join("\n"));
    }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let formatted = panic.downcast_ref::<String>().map(String::as_str);
    formatted.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}
