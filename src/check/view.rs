//! The rows as text for a person and as JSON for programs, whose shape is `config/check.schema.json`; a field may be added, but
//! the version changes when one goes or comes to mean something else.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::facts::Facts;
use super::row::{Row, State};
use crate::report::document::Person;
use crate::text;

/// The version of the format.
const VERSION: u32 = 1;

/// The columns of the table.
const COLUMNS: [&str; 3] = ["FEATURE", "STATE", "WHAT IS THERE"];

/// The least that is left of the last column in a narrow terminal.
const SHORTEST: usize = 24;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    user: Person,
    lock: String,
    /// Everything that is promised works: the exit code is 0.
    works: bool,
    /// How a job's group is made; `null` where no job can be run.
    backend: Option<&'static str>,
    features: &'a [Row],
}

/// Everything as JSON.
pub(super) fn json(facts: &Facts, rows: &[Row]) -> String {
    let document = Document {
        version: VERSION,
        user: Person { uid: facts.uid, name: facts.user.clone() },
        lock: facts.lock.path.to_string_lossy().into_owned(),
        works: !rows.iter().any(Row::fails),
        backend: facts.groups.place().map(|place| place.backend().name()),
        features: rows,
    };
    // Of strings, numbers and lists alone: cannot fail.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

/// A table, and below it what is lost where something does not work, and what mends it: whole, since a command that is
/// cut is none. What one command mends stands together.
pub(super) fn text(rows: &[Row], width: Option<u16>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let width = width.map(usize::from);
    let told: Vec<&Row> = rows.iter().filter(|row| row.lost.is_some() || row.fix.is_some()).collect();
    let mut text = table(rows, width);
    for (index, row) in told.iter().enumerate() {
        let same = |other: &Row| other.fix.is_some() && other.fix == row.fix;
        if told[..index].iter().any(|before| same(before)) {
            continue;
        }
        let others = told[index + 1..].iter().filter(|other| same(other));
        text.push('\n');
        text.extend([row].into_iter().chain(others).map(|row| below(row, width)));
        if let Some(fix) = &row.fix {
            // In one line, to be copied.
            text += &format!("  fix   {}\n", text::escape(fix));
        }
    }
    text
}

/// Whether all is well, in a line.
pub(super) fn verdict(rows: &[Row], width: Option<u16>) -> String {
    let names = |fails: bool| {
        let wrong = rows.iter().filter(|row| row.state != State::Works && row.fails() == fails && counts(row));
        wrong.map(|row| &*row.feature).collect::<Vec<_>>().join(", ")
    };
    let (failing, noisy) = (names(true), names(false));
    let line = |label: &str, names: &str| wrapped(label, names, width.map(usize::from));
    let first = match failing.is_empty() {
        true => "all that perflock promises works here".to_owned(),
        false => line("not all that perflock promises works here: ", &failing),
    };
    let second = if noisy.is_empty() { String::new() } else { line("what may spoil measurements: ", &noisy) + "\n" };
    format!("\n{first}\n{second}")
}

/// Worth a word in the verdict: known to be wrong, or promised.
fn counts(row: &Row) -> bool {
    row.promised || row.state == State::Weaker
}

fn table(rows: &[Row], width: Option<usize>) -> String {
    use unicode_width::UnicodeWidthStr as _;
    let cells =
        rows.iter().map(|row| [text::escape(&row.feature), row.state.name().to_owned(), text::escape(&row.detail)]);
    let mut cells: Vec<[String; 3]> = cells.collect();
    if let Some(width) = width {
        let widest = |column: usize| {
            let widths = cells.iter().map(|row| row[column].width());
            widths.chain([COLUMNS[column].width()]).max().unwrap_or(0) + 2
        };
        let left = width.saturating_sub(widest(0) + widest(1)).max(SHORTEST);
        cells.iter_mut().for_each(|row| row[2] = text::cut(&row[2], left));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(COLUMNS);
    for row in cells {
        table.add_row(row);
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn below(row: &Row, width: Option<usize>) -> String {
    let mut lines = wrapped(&format!("{}: ", text::escape(&row.feature)), &row.detail, width) + "\n";
    if let Some(lost) = &row.lost {
        lines += &format!("{}\n", wrapped("  lost  ", lost, width));
    }
    lines
}

/// A text behind a label, broken between words where the terminal ends.
fn wrapped(label: &str, words: &str, width: Option<usize>) -> String {
    use unicode_width::UnicodeWidthStr as _;
    let mut lines = label.to_owned();
    let mut used = label.width();
    for (index, word) in text::escape(words).split(' ').enumerate() {
        if index > 0 && width.is_some_and(|width| used + 1 + word.width() > width) {
            lines += "\n        ";
            used = 8;
        } else if index > 0 {
            lines.push(' ');
            used += 1;
        }
        lines += word;
        used += word.width();
    }
    lines
}
