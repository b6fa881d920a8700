//! What the larger parts of a report tell: lists of others and of processes, and the verdict. Whatever is missing in them is left
//! out, and nothing is believed to be of the right kind.

use std::time::Duration;

use serde_json::Value;

use super::fields::Told;
use crate::text;

/// The command line.
pub(super) fn command(value: &Value) -> Option<Told> {
    argv(value).map(Told::Exactly)
}

fn argv(value: &Value) -> Option<String> {
    let words: Option<Vec<String>> = value.as_array()?.iter().map(|word| word.as_str().map(str::to_owned)).collect();
    Some(text::command_line(&words?))
}

/// A user, by name.
pub(super) fn user(value: &Value) -> Option<Told> {
    value.get("name")?.as_str().map(|name| Told::Exactly(name.to_owned()))
}

/// The job that it ran inside of; that one's identity is never the same twice.
pub(super) fn inside(value: &Value) -> Option<Told> {
    value.as_str().map(|_| Told::Exactly("yes".to_owned()))
}

/// Who shared the machine: users, what they ran, and how.
pub(super) fn neighbours(value: &Value) -> Option<Told> {
    let one = |neighbour: &Value| {
        let user = neighbour.pointer("/user/name").and_then(Value::as_str).unwrap_or("somebody");
        let command = neighbour.get("command").and_then(argv).filter(|line| !line.is_empty());
        let mode = neighbour.get("mode").and_then(Value::as_str).unwrap_or("?");
        let by_flock = if neighbour["number"].is_null() { ", by flock" } else { "" };
        format!("{user}'s {} ({mode}{by_flock})", command.as_deref().unwrap_or("?"))
    };
    listed(value.as_array()?.iter().map(one).collect(), "nobody")
}

/// What was ended: how many, and the first few by name.
pub(super) fn leftovers(value: &Value) -> Option<Told> {
    let count = value.get("count")?.as_u64()?;
    let named = value.get("named").and_then(Value::as_array).into_iter().flatten();
    let mut names: Vec<&str> = named.filter_map(|process| process.get("name")?.as_str()).collect();
    names.sort_unstable();
    let shown = if names.is_empty() { count.to_string() } else { format!("{count}: {}", names.join(", ")) };
    Some(Told::Exactly(if count == 0 { "none".to_owned() } else { shown }))
}

/// Which processes left the group.
pub(super) fn escaped(value: &Value) -> Option<Told> {
    let name = |process: &Value| process.get("name").and_then(Value::as_str).unwrap_or("?").to_owned();
    listed(value.as_array()?.iter().map(name).collect(), "none")
}

/// How many groups appeared. Their names are made up anew each time.
pub(super) fn possible(value: &Value) -> Option<Told> {
    let groups = value.as_array()?;
    let containers = groups.iter().filter(|group| group["container"] == true).count();
    let of_them = if containers > 0 { format!(" ({})", text::count(containers, "container")) } else { String::new() };
    Some(Told::Exactly(match groups.len() {
        0 => "none".to_owned(),
        count => text::count(count, "group") + &of_them,
    }))
}

/// In an order that does not depend on when each of them came.
fn listed(mut names: Vec<String>, nobody: &str) -> Option<Told> {
    names.sort();
    Some(Told::Exactly(if names.is_empty() { nobody.to_owned() } else { names.join(", ") }))
}

/// Whether it was disturbed, and by whom: the same if it was by the same, however much.
pub(super) fn verdict(value: &Value) -> Option<Told> {
    let word = value.get("word")?.as_str()?;
    let why = value.get("why").and_then(Value::as_str);
    if word == "unknown" {
        return Some(Told::Unknown(why.map_or_else(|| word.to_owned(), |why| format!("{word}: {why}"))));
    }
    let by: Vec<&Value> = value.get("by").and_then(Value::as_array).into_iter().flatten().collect();
    let name = |culprit: &Value| culprit.get("name").and_then(Value::as_str).unwrap_or("somebody").to_owned();
    let mut key: Vec<String> =
        by.iter().map(|culprit| format!("{} {}", culprit["kind"].as_str().unwrap_or("?"), name(culprit))).collect();
    key.sort();
    key.insert(0, word.to_owned());
    let told: Vec<String> = by.iter().map(|culprit| name(culprit) + &used(culprit)).collect();
    let whom = if told.is_empty() { String::new() } else { format!(" by {}", told.join(", ")) };
    let why = why.map(|why| format!("; {why}")).unwrap_or_default();
    Some(Told::Named { key, shown: format!("{word}{whom}{why}") })
}

/// ` 3.100s (cc1plus, make)`: the CPU time of a culprit, and its programs.
fn used(culprit: &Value) -> String {
    let usec = culprit.get("cpu_usec").and_then(Value::as_u64);
    let time = usec.map(|usec| format!(" {}", text::measured(Duration::from_micros(usec)))).unwrap_or_default();
    let programs = culprit.get("programs").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = programs.filter_map(|program| program.get("name")?.as_str()).collect();
    if names.is_empty() { time } else { format!("{time} ({})", names.join(", ")) }
}
