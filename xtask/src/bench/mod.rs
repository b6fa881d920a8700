//! `cargo xtask bench`: what perflock costs, always measured in interleaved pairs within one run.
//!
//! The command runs itself once more inside a cgroup that it makes ([`area`]); there every program under test is
//! started, and afterwards the outer process kills and removes that one group, whatever happened. Each measurement
//! gives lines of a table that can be pasted into the README.

pub(crate) mod area;
mod bomb;
mod escapes;
mod freezer;
mod group;
mod idle;
mod listing;
pub(crate) mod machine;
mod pins;
mod queue;
mod release;
mod start;
pub(crate) mod stats;
pub(crate) mod tools;
mod usage;
mod verdict;

use std::process::ExitCode;

use crate::{Failure, cargo};
use area::Inside;
use stats::Line;

/// The first argument of the inner process.
pub(crate) const INSIDE: &str = "--inside";

/// The measurements, by the names that the command line knows.
const NAMES: [&str; 10] =
    ["start", "queue", "release", "bomb", "escapes", "wholock", "idle", "usage", "pins", "verdict"];

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Options {
    /// Which measurements; none means all.
    names: Vec<String>,
    /// Rounds per measurement.
    pairs: usize,
    /// How many processes a job leaves behind.
    processes: Option<usize>,
    /// Without the runs that have no idle time between them.
    cold_only: bool,
    /// A missed target is a failure.
    strict: bool,
}

impl Options {
    /// Reads the arguments behind `bench`.
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self { names: Vec::new(), pairs: 100, processes: None, cold_only: false, strict: false };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--cold-only" => options.cold_only = true,
                "--strict" => options.strict = true,
                "--pairs" => options.pairs = number(argument, arguments.next())?,
                "--processes" => options.processes = Some(number(argument, arguments.next())?),
                name if NAMES.contains(&name) => options.names.push(name.to_owned()),
                other => return Err(format!("unknown argument {other}\n{}", crate::USAGE)),
            }
        }
        Ok(options)
    }

    /// Whether this measurement was asked for.
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }
}

/// The number behind an option.
pub(crate) fn number(option: &str, value: Option<&String>) -> Result<usize, Failure> {
    let value = value.and_then(|value| value.parse().ok()).filter(|&value| value > 0);
    value.ok_or_else(|| format!("{option} takes a number above 0"))
}

/// Builds perflock, measures, and prints the table.
///
/// # Errors
/// The arguments are wrong, or something could not be built or run.
pub(crate) fn bench(arguments: &[String]) -> Result<ExitCode, Failure> {
    if let [first, directory, group, rest @ ..] = arguments
        && first == INSIDE
    {
        return inside(&Inside::new(directory, group)?, &Options::parse(rest)?);
    }
    Options::parse(arguments)?;
    build()?;
    area::run_inside("bench", arguments)
}

/// Builds perflock as it is installed, and the helpers of the bench with the same profile.
pub(crate) fn build() -> Result<(), Failure> {
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--package", "perflock", "--package", "xtask", "--bins"]);
    let status = command.status().map_err(|error| format!("cannot start cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err("perflock cannot be built".to_owned()) }
}

/// The inner process: a member of the bench's own group.
fn inside(place: &Inside, options: &Options) -> Result<ExitCode, Failure> {
    println!("{}; {}\n", machine::description(), place.lock_place());
    println!("{}", stats::HEADER);
    let mut missed = false;
    let mut print = |lines: Vec<Line>| {
        for line in lines {
            missed |= line.missed();
            println!("{line}");
        }
    };
    if options.wants("start") {
        print(start::measure(place, "cold", Some(start::IDLE), options.pairs)?);
        if !options.cold_only {
            print(start::measure(place, "hot", None, options.pairs)?);
        }
    }
    if options.wants("queue") {
        queue::measure(place, (options.pairs / 20).max(5), &mut print)?;
    }
    if options.wants("release") {
        release::measure(place, (options.pairs / 5).max(5), options.processes, &mut print)?;
    }
    if options.wants("bomb") {
        bomb::measure(place, (options.pairs / 10).max(5), &mut print)?;
    }
    if options.wants("wholock") {
        print(listing::measure(place, options.pairs)?);
    }
    if options.wants("idle") {
        print(idle::measure(place)?);
    }
    if options.wants("usage") {
        usage::measure(place, options.pairs, &mut print)?;
    }
    if options.wants("pins") {
        pins::measure(place, options.pairs, &mut print)?;
    }
    if options.wants("verdict") {
        verdict::measure(place, options.pairs, &mut print)?;
    }
    if options.wants("escapes") {
        escapes::measure(place, options.pairs * 2, &mut print)?;
    }
    println!(
        "\nmedian (5th to 95th percentile); ratios and differences: median over pairs unless said otherwise; {}",
        machine::load()
    );
    Ok(if missed && options.strict { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Failure> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn names_and_options_are_read() {
        let options = parse("start --pairs 7 idle --processes 9 --cold-only").unwrap();
        assert!(options.wants("start") && options.wants("idle") && !options.wants("release"));
        assert_eq!((options.pairs, options.processes, options.cold_only, options.strict), (7, Some(9), true, false));
        assert!(parse("").unwrap().wants("wholock"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in ["stat", "--pairs", "--pairs 0", "--pairs x", "--processes", "--inside a"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
