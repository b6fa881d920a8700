//! Drawing the state into whatever room there is. Text of other users comes escaped from [`view`](crate::wholock::view);
//! the buffer cuts it at its cells, wide characters whole.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use unicode_width::UnicodeWidthStr;

use super::app::{App, Line, Tone, summary};
use super::columns::{COMMAND, Column, GAP, fit};
use super::machine::Shares;
use crate::job::JobId;
use crate::text;
use crate::wholock::view::{COLUMNS, RIGHT, Row};

/// From no use to the most of a graph.
const LEVELS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// A graph reaches at least to one core: the little that an idle job does is not to look like much.
const GRAPH_TOP_PERCENT: f64 = 100.0;

/// A bar with fewer cells tells nothing.
const SHORTEST_BAR: usize = 8;

const KEYS: &str = "q quit  ↑↓ select  Enter processes  PgUp PgDn scroll";

/// Before the line of the selected job, and before every other.
const MARKS: [&str; 2] = ["> ", "  "];

/// Draws everything.
pub fn draw(app: &mut App, buffer: &mut Buffer) {
    let area = *buffer.area();
    let height = area.height;
    if area.is_empty() {
        return;
    }
    let mut top = 1;
    header(app, buffer, row_of(area, 0));
    if height >= 5 {
        machine(app, buffer, row_of(area, 1));
        top = 2;
    }
    let footer_rows = u16::from(height >= 6);
    let table = Rect { y: area.y + top, height: height - top - footer_rows, ..area };
    if !table.is_empty() {
        jobs(app, buffer, table);
    }
    if footer_rows > 0 {
        footer(app, buffer, row_of(area, height - 1));
    }
}

fn row_of(area: Rect, row: u16) -> Rect {
    Rect { y: area.y + row, height: 1, ..area }
}

/// Writes into one row from its cell `at` on. Returns where it ended.
fn put(buffer: &mut Buffer, row: Rect, at: usize, text: &str, style: Style) -> usize {
    let width = usize::from(row.width);
    let (Ok(offset), true) = (u16::try_from(at), at < width) else { return at };
    let (end, _) = buffer.set_stringn(row.x + offset, row.y, text::cut(text, width - at), width - at, style);
    usize::from(end - row.x)
}

/// Two texts at the ends of a row; the right one only if both fit.
fn put_both(buffer: &mut Buffer, row: Rect, left: &str, right: &str, style: Style) {
    put(buffer, row, 0, left, style);
    let width = usize::from(row.width);
    if left.width() + GAP + right.width() <= width {
        put(buffer, row, width - right.width(), right, style);
    }
}

fn colour(app: &App, colour: Color) -> Style {
    if app.setting.colour { Style::new().fg(colour) } else { Style::new() }
}

/// Which machine and lock, and who has it.
fn header(app: &App, buffer: &mut Buffer, row: Rect) {
    let (setting, sight) = (&app.setting, app.sight());
    let what = if sight.problem.is_some() { "cannot look".to_owned() } else { summary(&sight.snapshot) };
    let lock = setting.lock.as_ref().map(|lock| format!(" {lock}")).unwrap_or_default();
    let left = format!("{}{lock}: {what}", setting.host);
    let right = format!("every {}  {}", text::exact_duration(setting.interval), sight.time_of_day);
    put_both(buffer, row, &left, &right, Style::new().add_modifier(Modifier::BOLD));
}

/// What the machine's CPUs do.
fn machine(app: &App, buffer: &mut Buffer, row: Rect) {
    let Some(shares) = app.shares() else {
        put(buffer, row, 0, "CPU -", Style::new());
        return;
    };
    let label = label(&shares);
    let width = usize::from(row.width);
    let room = width.saturating_sub("CPU [] ".len() + label.width());
    if room < SHORTEST_BAR {
        put(buffer, row, 0, &format!("CPU {label}"), Style::new());
        return;
    }
    let cells = |percent: f64| ((percent * room as f64 / 100.0).round() as usize).min(room);
    let jobs = cells(shares.jobs_percent);
    let outside = cells(shares.jobs_percent + shares.outside_percent) - jobs;
    let parts = [
        ("CPU [".to_owned(), Style::new()),
        ("█".repeat(jobs), colour(app, Color::Green)),
        ("▒".repeat(outside), colour(app, Color::Yellow)),
        (" ".repeat(room - jobs - outside), Style::new()),
        (format!("] {label}"), Style::new()),
    ];
    parts.iter().fold(0, |at, (text, style)| put(buffer, row, at, text, *style));
}

fn label(shares: &Shares) -> String {
    let rest = if shares.uncounted { "outside and uncounted" } else { "outside" };
    let Shares { jobs_percent, outside_percent, cpus, .. } = shares;
    format!("jobs {jobs_percent:.0}%  {rest} {outside_percent:.0}%  of {}", text::count(*cpus, "CPU"))
}

/// The table, with its header if there is room for a line more.
fn jobs(app: &mut App, buffer: &mut Buffer, area: Rect) {
    let header_rows = u16::from(area.height >= 2);
    let room = usize::from(area.height - header_rows);
    // First, since it may scroll.
    let shown = app.visible(room).to_vec();
    let rows = app.lines().iter().filter_map(|line| match line {
        Line::Row(row, ..) => Some(&**row),
        Line::Words(_) => None,
    });
    let any = rows.clone().next().is_some();
    let columns = fit(rows, usize::from(area.width).saturating_sub(MARKS[0].len()));
    if header_rows > 0 && any {
        column_names(app, buffer, row_of(area, 0), &columns);
    }
    for (line, y) in shown.iter().zip(header_rows..) {
        let row = row_of(area, y);
        match line {
            Line::Words(words) => drop(put(buffer, row, 0, words, Style::new())),
            Line::Row(cells, id, tone) => {
                let selected = id.is_some() && *id == app.selected();
                job(app, buffer, row, &columns, (cells, *id, *tone), selected);
                if selected {
                    buffer.set_style(row, Style::new().add_modifier(Modifier::REVERSED));
                }
            }
        }
    }
}

/// The names above the columns; above the graphs, what time they show.
fn column_names(app: &App, buffer: &mut Buffer, row: Rect, columns: &[(Column, usize)]) {
    let style = Style::new().add_modifier(Modifier::BOLD);
    let mut at = MARKS[0].len();
    for &(column, width) in columns {
        let name = match column {
            Column::Plain(index) => aligned(COLUMNS[index], index, width),
            Column::Graph => {
                let samples = u32::try_from(width).unwrap_or(u32::MAX);
                text::cut(&format!("LAST {}", text::duration(app.setting.interval.saturating_mul(samples))), width)
            }
        };
        put(buffer, row, at, &name, style);
        at += width + GAP;
    }
}

fn job(
    app: &App,
    buffer: &mut Buffer,
    row: Rect,
    columns: &[(Column, usize)],
    (cells, id, tone): (&Row, Option<JobId>, Tone),
    selected: bool,
) {
    put(buffer, row, 0, MARKS[usize::from(!selected)], Style::new());
    let mut at = MARKS[0].len();
    for &(column, width) in columns {
        let (text, style) = match column {
            Column::Plain(3) => (text::cut(&cells[3], width), state_style(app, tone)),
            Column::Plain(index) => (aligned(&cells[index], index, width), Style::new()),
            Column::Graph => (id.map(|id| graph(app, id, width)).unwrap_or_default(), colour(app, Color::Cyan)),
        };
        put(buffer, row, at, &text, style);
        at += width + GAP;
    }
}

fn state_style(app: &App, tone: Tone) -> Style {
    match tone {
        Tone::Holds => colour(app, Color::Green),
        Tone::Waits => colour(app, Color::Yellow),
        Tone::Odd => colour(app, Color::Red),
        Tone::Plain => Style::new(),
    }
}

/// A cell of the plain column `index`, cut to its width; numbers stand at its right end.
fn aligned(text: &str, index: usize, width: usize) -> String {
    let short = text::cut(text, width);
    let before = if index != COMMAND && RIGHT.contains(&index) { width.saturating_sub(short.width()) } else { 0 };
    format!("{}{short}", " ".repeat(before))
}

/// A job's CPU use of late, the newest at the right, up to its own peak or one core, whichever is more.
fn graph(app: &App, id: JobId, width: usize) -> String {
    let samples: Vec<Option<f64>> = app.history(id, width).collect();
    let top = samples.iter().flatten().copied().fold(GRAPH_TOP_PERCENT, f64::max);
    let level = |percent: f64| (percent / top * (LEVELS.len() - 1) as f64).round() as usize;
    let cells = samples.iter().map(|sample| sample.map_or(" ", |percent| LEVELS[level(percent).min(LEVELS.len() - 1)]));
    format!("{}{}", " ".repeat(width - samples.len()), cells.collect::<String>())
}

/// The keys; and what is out of sight, or else what the graphs mean.
fn footer(app: &App, buffer: &mut Buffer, row: Rect) {
    let right = match app.hidden() {
        (0, 0) => "graphs: to each job's peak, at least 1 core".to_owned(),
        (above, 0) => format!("{above} more above"),
        (0, below) => format!("{below} more below"),
        (above, below) => format!("{above} more above, {below} below"),
    };
    put_both(buffer, row, KEYS, &right, Style::new().add_modifier(Modifier::DIM));
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::procfs::MachineCpu;
    use crate::wholock::snapshot::{Job, Snapshot};
    use crate::wholock::watch::Processes;
    use crate::wholock::watch::app::Setting;
    use crate::wholock::watch::keys::Key;
    use crate::wholock::watch::samples::{holder, process, sight, waiter};
    use proptest::prelude::*;

    /// What a screen of this size shows.
    fn screen(app: &mut App, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(app, frame.buffer_mut())).unwrap();
        terminal.backend().buffer().clone()
    }

    fn text_of(buffer: &Buffer) -> Vec<String> {
        let area = buffer.area();
        let row = |y| {
            // The cell after a wide character is that one's.
            let mut cells = (0..area.width).map(|x| buffer[(x, y)].symbol());
            let mut text = String::new();
            while let Some(symbol) = cells.next() {
                text.push_str(symbol);
                for _ in 1..symbol.width() {
                    cells.next();
                }
            }
            text.trim_end().to_owned()
        };
        (0..area.height).map(row).collect()
    }

    /// A second look at a running job, which used one of two CPUs for a second, and a waiter.
    fn app(colour: bool, command: &str) -> App {
        let interval = Duration::from_secs(2);
        let mut app = App::new(Setting { host: "atlas".to_owned(), lock: None, interval, colour });
        let start = Instant::now();
        for second in 0..2 {
            let at = start + Duration::from_secs(second);
            let mut job = holder(7, command);
            job.usage.cpu_usec = Some(5_000_000 + second * 1_000_000);
            job.usage.memory_bytes = Some(3 << 30);
            job.read_at = at;
            let cpu = MachineCpu { busy_ticks: second * 150, total_ticks: second * 200, cpus: 2 };
            let snapshot = Snapshot { holders: vec![job], waiters: vec![waiter(8, "ls")], ..Snapshot::default() };
            app.looked(sight(at, Some(cpu), snapshot));
        }
        app
    }

    #[test]
    fn everything_has_its_place_on_a_usual_terminal() {
        let mut app = app(true, "make -j8");
        let lines = text_of(&screen(&mut app, 80, 24));
        let shown = lines.join("\n");
        assert_eq!(lines[0].split("  ").next(), Some("atlas: held by 1 job, 1 waiting"), "{shown}");
        assert!(lines[0].ends_with("every 2s  14:03:22") && lines[0].width() == 80, "{shown}");
        assert!(lines[1].ends_with("] jobs 50%  outside 25%  of 2 CPUs"), "{shown}");
        assert_eq!(lines[1].width(), 80, "{shown}");
        let cells = |what| lines[1].matches(what).count();
        assert!((cells("█") as f64 / cells("▒") as f64 - 2.0).abs() < 0.2, "{shown}");
        let words = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(2).starts_with("JOB USER MODE STATE AGE CPU NOW LAST "), "{shown}");
        assert!(words(2).ends_with(" COMMAND"), "{shown}");
        assert!(words(3).starts_with("> 7 root shared running 12m 30s 100% "), "{shown}");
        assert!(words(3).ends_with("█ 'make -j8'"), "{shown}");
        assert!(words(4).starts_with("8 root shared waiting 12m 30s - ") && words(4).ends_with(" ls"), "{shown}");
        assert!(lines[23].starts_with("q quit "), "{shown}");
    }

    #[test]
    fn the_processes_of_the_selected_job_stand_below_it() {
        let mut app = app(false, "make");
        app.pressed(Key::Enter);
        app.read_processes(Processes { at: app.sight().at, tree: vec![process(4, 0), process(5, 1)] });
        let lines = text_of(&screen(&mut app, 120, 10));
        assert!(lines[4].ends_with(" 4 cc 4.c") && lines[5].ends_with("   5 cc 5.c"), "{lines:?}");
        assert!(lines[4].contains("running") && lines[6].contains("waiting"), "{lines:?}");
        // Read some time ago.
        app.read_processes(Processes { at: app.sight().at - Duration::from_secs(30), tree: vec![process(4, 0)] });
        assert_eq!(text_of(&screen(&mut app, 120, 10))[4], "  processes 30s ago:");
    }

    #[test]
    fn a_free_machine_and_one_that_cannot_be_seen_are_said_to_be_so() {
        let mut app = App::new(Setting { host: "atlas".to_owned(), lock: Some("/x".to_owned()), ..Setting::default() });
        app.looked(sight(Instant::now(), None, Snapshot::default()));
        let lines = text_of(&screen(&mut app, 60, 8));
        assert!(lines[0].starts_with("atlas /x: free "), "{lines:?}");
        assert!(lines.iter().any(|line| line == "the machine is free"), "{lines:?}");
        let problem = Some("cannot read \x1b[2J".to_owned());
        app.looked(super::super::Sight { problem, ..sight(Instant::now(), None, Snapshot::default()) });
        let lines = text_of(&screen(&mut app, 60, 8));
        assert!(lines[0].starts_with("atlas /x: cannot look"), "{lines:?}");
        assert!(lines.iter().any(|line| line == "cannot read \\u{1b}[2J"), "{lines:?}");
    }

    #[test]
    fn without_colours_everything_is_still_told() {
        let (mut with, mut without) = (app(true, "make"), app(false, "make"));
        let (with, without) = (screen(&mut with, 80, 24), screen(&mut without, 80, 24));
        assert_eq!(text_of(&with), text_of(&without));
        let coloured =
            |buffer: &Buffer| buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        assert!(coloured(&with) && !coloured(&without));
    }

    #[test]
    fn a_small_screen_shows_what_matters_most() {
        let mut app = app(false, "make");
        assert_eq!(text_of(&screen(&mut app, 20, 1)), ["atlas: held by 1 jo…"]);
        let lines = text_of(&screen(&mut app, 20, 5));
        assert!(lines[1].starts_with("CPU jobs 50%") && lines[2].contains("STATE"), "{lines:?}");
        assert!(lines[3].starts_with(">   7  running") && lines[4].starts_with("    8  waiting"), "{lines:?}");
    }

    #[test]
    fn wide_characters_are_cut_whole() {
        let mut app = app(false, &"漢字".repeat(60));
        for width in 1..130 {
            for line in text_of(&screen(&mut app, width, 6)) {
                assert!(line.width() <= usize::from(width) && !line.contains('\u{fffd}'), "{width}: {line:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Any text of others, on any screen: no panic, and nothing that a terminal would act upon.
        #[test]
        fn no_job_and_no_size_break_the_screen(
            command in proptest::collection::vec("\\PC{0,30}|[\\x00-\\x1f\\x7f-\\x9f\u{200b}-\u{200f}漢\u{fe0f}é\u{301}]{0,30}", 0..4),
            message: Option<String>, width in 0..200_u16, height in 0..60_u16,
            cpu_usec: Option<u64>, percent in proptest::option::of(0.0..1e9), open: bool,
        ) {
            let mut app = App::new(Setting { host: "h".to_owned(), lock: Some("l".to_owned()), interval: Duration::MAX, colour: open });
            let mut job = Job { command: command.clone(), message, cpu_now_percent: percent, ..holder(u64::MAX, "") };
            job.usage.cpu_usec = cpu_usec;
            let waiters = vec![Job { command, ..waiter(1, "") }];
            app.looked(sight(Instant::now(), None, Snapshot { holders: vec![job], waiters, ..Snapshot::default() }));
            if open {
                app.pressed(Key::Enter);
                app.read_processes(Processes { at: Instant::now(), tree: vec![process(i32::MAX, 99)] });
            }
            let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
            draw(&mut app, &mut buffer);
            for cell in buffer.content() {
                prop_assert!(!cell.symbol().chars().any(char::is_control), "{:?}", cell);
            }
        }
    }
}
