//! What came of it, as text for a person and as JSON for programs, whose shape is `config/diff.schema.json`; a field may be added,
//! but the version changes when one goes or comes to mean something else.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::compare::{Change, Comparison, Unknown};
use super::fields::{Area, Told};
use crate::text;

/// The version of the format.
const VERSION: u32 = 1;

/// What stands where a report says nothing.
const NOT_KNOWN: &str = "not known";

/// The most columns of a text that one report tells.
const LONGEST: usize = 200;

/// How much is kept of what two such texts have in common, before they differ.
const IN_COMMON: usize = 20;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    /// What was compared, as it was named.
    files: &'a [String; 2],
    /// The conditions were the same: the exit code is 0.
    same: bool,
    outcomes: Vec<Outcome>,
    differences: Vec<Row<'a>>,
    not_known: Vec<Gap>,
}

#[derive(Serialize)]
struct Outcome {
    what: &'static str,
    first: Option<Amount>,
    second: Option<Amount>,
    percent: Option<f64>,
}

/// A number, or for how it ended a text.
#[derive(Serialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

#[derive(Serialize)]
struct Row<'a> {
    area: &'static str,
    what: &'static str,
    first: Option<&'a str>,
    second: Option<&'a str>,
}

#[derive(Serialize)]
struct Gap {
    area: &'static str,
    what: &'static str,
    first: bool,
    second: bool,
}

/// Everything as JSON.
pub(super) fn json(files: &[String; 2], comparison: &Comparison) -> String {
    let amount = |told: &Option<Told>| {
        let told = told.as_ref()?;
        Some(told.figure().map_or_else(|| Amount::Text(told.shown()), Amount::Number))
    };
    let outcome = |change: &Change| Outcome {
        what: change.what,
        first: amount(&change.first),
        second: amount(&change.second),
        percent: percent(change),
    };
    let document = Document {
        version: VERSION,
        files,
        same: comparison.differences.is_empty(),
        outcomes: comparison.changes.iter().map(outcome).collect(),
        differences: comparison
            .differences
            .iter()
            .map(|difference| Row {
                area: difference.area.name(),
                what: difference.what,
                first: difference.first.as_deref(),
                second: difference.second.as_deref(),
            })
            .collect(),
        not_known: comparison
            .unknown
            .iter()
            .map(|&Unknown { area, what, first, second }| Gap { area: area.name(), what, first, second })
            .collect(),
    };
    // Of strings, numbers and lists alone: cannot fail.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

/// What the runs came to, what differed, and what nobody knows.
pub(super) fn text(files: &[String; 2], comparison: &Comparison, width: Option<u16>) -> String {
    let mut text: String = comparison.changes.iter().map(change).collect();
    text.push('\n');
    text += &match comparison.differences.is_empty() {
        true => "nothing else differs that the reports tell of\n".to_owned(),
        false => differences(files, comparison, width),
    };
    let gaps = |whose: &str, of: fn(&Unknown) -> bool| {
        let names: Vec<String> = comparison.unknown.iter().filter(|gap| of(gap)).map(called).collect();
        if names.is_empty() { String::new() } else { format!("not known of {whose}: {}\n", names.join(", ")) }
    };
    text + &gaps("either", |gap| gap.first && gap.second)
        + &gaps(&files[0], |gap| gap.first && !gap.second)
        + &gaps(&files[1], |gap| !gap.first && gap.second)
}

/// Names that say nothing without what they are about.
fn called(gap: &Unknown) -> String {
    match gap.area {
        Area::Machine | Area::Limits => format!("{} ({})", gap.what, gap.area.name()),
        _ => gap.what.to_owned(),
    }
}

/// `wall         12.34s -> 13.08s (+6.0%)`.
fn change(change: &Change) -> String {
    let shown =
        |told: &Option<Told>| told.as_ref().map_or_else(|| NOT_KNOWN.to_owned(), |told| text::escape(&told.shown()));
    let by = percent(change).map(|percent| format!(" ({percent:+.1}%)")).unwrap_or_default();
    format!("{:13}{} -> {}{by}\n", change.what, shown(&change.first), shown(&change.second))
}

/// By how much the second is more than the first. Of nothing there are no percents.
fn percent(change: &Change) -> Option<f64> {
    let (first, second) = (change.first.as_ref()?.figure()?, change.second.as_ref()?.figure()?);
    let (first, second) = (first as f64, second as f64);
    (first > 0.0).then(|| (second - first) / first * 100.0)
}

/// The conditions that differed, as a table; nothing if none did.
pub(super) fn differences(files: &[String; 2], comparison: &Comparison, width: Option<u16>) -> String {
    if comparison.differences.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["", "WHAT", &files[0], &files[1]]);
    // In a terminal that is too narrow cells are broken, not cut: what differs may be at the end.
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    let mut before = None;
    for difference in &comparison.differences {
        let area = if before == Some(difference.area) { "" } else { difference.area.name() };
        before = Some(difference.area);
        let [first, second] = cells(difference.first.as_deref(), difference.second.as_deref());
        table.add_row([area, difference.what, &first, &second]);
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Two texts as they are shown: escaped, and where they are long only from about where they differ.
fn cells(first: Option<&str>, second: Option<&str>) -> [String; 2] {
    let mut texts = [first, second].map(|told| text::escape(told.unwrap_or(NOT_KNOWN)));
    let is_long = |text: &String| text.chars().count() > LONGEST;
    if texts.iter().any(is_long) {
        let [first, second] = &texts;
        let common = first.chars().zip(second.chars()).take_while(|(first, second)| first == second).count();
        if let Some(skipped) = common.checked_sub(IN_COMMON).filter(|&skipped| skipped > 0) {
            texts = texts.map(|text| "…".chars().chain(text.chars().skip(skipped)).collect());
        }
    }
    texts.map(|told| text::cut(&told, LONGEST))
}
