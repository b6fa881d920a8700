//! Two reports beside each other. Pure, and takes any JSON.

use serde_json::Value;

use super::fields::{Area, FIELDS, Field, OUTCOMES, Told};

/// What came of comparing two reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// What is to be explained, whether it differs or not.
    pub changes: Vec<Change>,
    /// What may explain it.
    pub differences: Vec<Difference>,
    /// What could not be compared.
    pub unknown: Vec<Unknown>,
}

/// What the runs came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What is compared.
    pub what: &'static str,
    /// What the first tells; `None` if it is not known.
    pub first: Option<Told>,
    /// What the second tells.
    pub second: Option<Told>,
}

/// A condition that was not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What it is about.
    pub area: Area,
    /// Which it is.
    pub what: &'static str,
    /// What the first tells, not yet escaped; `None` if it does not.
    pub first: Option<String>,
    /// What the second tells.
    pub second: Option<String>,
}

/// A condition that one report does not tell, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// What it is about.
    pub area: Area,
    /// Which it is.
    pub what: &'static str,
    /// Not known of the first.
    pub first: bool,
    /// Not known of the second.
    pub second: bool,
}

/// Compares two reports, or whatever these are.
pub fn compare(first: &Value, second: &Value) -> Comparison {
    let changes: Vec<Change> = OUTCOMES
        .iter()
        .map(|outcome| {
            let told = outcome.of.iter().map(|read| (read(first), read(second)));
            let both = told.clone().find(|(first, second)| first.is_some() && second.is_some());
            let (first, second) = both.or_else(|| told.into_iter().next()).unwrap_or_default();
            Change { what: outcome.what, first, second }
        })
        .collect();
    let wall = |report: &Value| report.get("wall_usec").and_then(Value::as_u64).unwrap_or(0);
    let wall_usec = wall(first).min(wall(second));
    let (mut differences, mut unknown) = (Vec::new(), Vec::new());
    for field in &FIELDS {
        let Field { area, what, .. } = *field;
        let told = [field.told(first), field.told(second)];
        let known = [&told[0], &told[1]].map(|told| told.as_ref().is_some_and(Told::is_known));
        let differs = match (&told, known) {
            ([Some(first), Some(second)], [true, true]) => first.differs(second, wall_usec),
            (_, [false, false]) => false,
            _ => !told.iter().flatten().any(|told| told.figure().is_some()),
        };
        if differs {
            let [first, second] = told.map(|told| told.map(|told| told.shown()));
            differences.push(Difference { area, what, first, second });
            continue;
        }
        let [first, second] = [(first, known[0]), (second, known[1])]
            .map(|(report, is_known)| !is_known && !field.is_part_of_nothing(report));
        if first || second {
            unknown.push(Unknown { area, what, first, second });
        }
    }
    Comparison { changes, differences, unknown }
}
