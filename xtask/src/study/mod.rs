//! `cargo xtask study`: whether the verdict on a job is right.
//!
//! Jobs of two seconds are run by `perflock --report-file`, with the settings that everybody has, many times each: [`workloads`]
//! that are hard on the machine and disturb nobody but themselves, which must be found quiet, and an idle job beside each of some
//! [`culprits`], who must be named. What the reports say is counted by `tally`, which is pure.
//!
//! The study happens in a group and with a lock of its own, like a bench ([`crate::bench::area`]), and makes, ends and removes only
//! what is below that group; but for a service where systemd runs, of which it makes and stops one of its own name. Whatever else
//! runs on the machine disturbs as well, and may be rightly said to: so how busy the machine is by itself is told first and last.

mod culprits;
mod tally;
mod workloads;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use perflock::procfs::Proc;
use serde_json::Value;

use crate::Failure;
use crate::bench::area::{self, Inside};
use crate::bench::tools::time_msec;
use crate::bench::{INSIDE, build, machine, number};
use culprits::Culprit;
use tally::{Row, Seen};
use workloads::Workload;

/// How long each job takes.
const JOB_MSEC: &str = "2000";

/// How long the machine is watched while nothing of ours runs.
const WATCHED: Duration = Duration::from_secs(3);

/// What others may use of a core, in percent, before a machine is not quiet by itself: the configuration's default.
const NOT_QUIET: f64 = 5.0;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// Which scenarios; none means all.
    names: Vec<String>,
    /// How often each is run.
    runs: usize,
}

impl Options {
    /// Reads the arguments behind `study`.
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self { names: Vec::new(), runs: 20 };
        let mut arguments = arguments.iter();
        let known = |name: &str| {
            workloads::ALL.iter().any(|workload| workload.name() == name)
                || culprits::ALL.iter().any(|culprit| culprit.name() == name)
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--runs" => options.runs = number(argument, arguments.next())?,
                name if known(name) => options.names.push(name.to_owned()),
                other => return Err(format!("unknown argument {other}\n{}", crate::USAGE)),
            }
        }
        Ok(options)
    }

    /// Whether this scenario was asked for.
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }
}

/// Builds perflock, runs the jobs, and prints the table.
///
/// # Errors
/// The arguments are wrong, or something could not be built or run.
pub(crate) fn study(arguments: &[String]) -> Result<ExitCode, Failure> {
    if let [first, directory, group, rest @ ..] = arguments
        && first == INSIDE
    {
        return inside(&Inside::new(directory, group)?, &Options::parse(rest)?);
    }
    Options::parse(arguments)?;
    if !rustix::process::geteuid().is_root() {
        return Err("a study needs root, to be another user than itself".to_owned());
    }
    build()?;
    area::run_inside("study", arguments)
}

/// The inner process: a member of the study's own group.
fn inside(place: &Inside, options: &Options) -> Result<ExitCode, Failure> {
    // Nobody's settings but the defaults.
    let config = place.file("defaults.toml");
    fs::write(&config, "").map_err(|error| format!("cannot write {}: {error}", config.display()))?;
    println!("{}; {}", machine::description(), place.lock_place());
    let before = by_itself()?;
    println!("the machine by itself: {before:.1} % of a core\n\n{}", tally::HEADER);
    let mut rows = Vec::new();
    for workload in workloads::ALL.into_iter().filter(|workload| options.wants(workload.name())) {
        let mut row = Row::quiet(workload.name());
        for _ in 0..options.runs {
            row.seen.push(run(place, &config, workload)?);
        }
        println!("{row}");
        rows.push(row);
    }
    for culprit in culprits::ALL.into_iter().filter(|culprit| options.wants(culprit.name())) {
        let mut row = Row::disturbed(culprit.name());
        for number in 0..options.runs {
            let running = Culprit::start(culprit, place, number)?;
            row.seen.push(run(place, &config, Workload::Idle)?);
            row.named.push(running.expected());
            running.end()?;
        }
        println!("{row}");
        rows.push(row);
    }
    let after = by_itself()?;
    println!("\nthe machine by itself: {after:.1} % of a core");
    rows.iter().flat_map(Row::alarms).for_each(|alarm| println!("{alarm}"));
    if before.max(after) > NOT_QUIET {
        println!("others use this machine: what is called a false alarm may be right");
    }
    let total = tally::Total::of(&rows);
    println!("{total}");
    Ok(if total.is_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One job, and what its report says of it.
fn run(place: &Inside, config: &Path, workload: Workload) -> Result<Seen, Failure> {
    let report = place.file("report.json");
    let file = workloads::File::for_load(workload)?;
    let mut command = place.perflock()?;
    command.arg("--quiet").arg("--config").arg(config).arg("--report-file").arg(&report);
    command.arg(place.binary("studyload")).args([workload.name(), JOB_MSEC]).args(file.path());
    time_msec(place, &mut command)?;
    let text = fs::read_to_string(&report).map_err(|error| format!("cannot read {}: {error}", report.display()))?;
    let report: Value = serde_json::from_str(&text).map_err(|error| format!("the report is not JSON: {error}"))?;
    Ok(Seen::of(&report))
}

/// What everybody but us uses, in percent of a core: by the processes that can be seen and those that they waited for.
fn by_itself() -> Result<f64, Failure> {
    let proc = Proc::at("/proc");
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    // Of all together: what one had used that ends meanwhile goes to who waits for it.
    let used = || -> Result<u64, Failure> {
        let pids = proc.pids().map_err(|error| format!("cannot read /proc: {error}"))?;
        let stats = pids.into_iter().filter(|&pid| pid != own).filter_map(|pid| proc.stat(pid).ok());
        Ok(stats.filter(|stat| !stat.kernel_thread).map(|stat| stat.cpu_ticks + stat.ended_children_ticks).sum())
    };
    let before = used()?;
    std::thread::sleep(WATCHED);
    let ticks = used()?.saturating_sub(before);
    // SAFETY: asks for a number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
    Ok(ticks as f64 / per_second / WATCHED.as_secs_f64() * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_asked_for_by_name() {
        let parse = |line: &str| Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let some = parse("storm --runs 3 idle").unwrap();
        assert_eq!(some, Options { names: vec!["storm".to_owned(), "idle".to_owned()], runs: 3 });
        assert!(some.wants("idle") && !some.wants("fsync"));
        assert!(parse("").unwrap().wants("fsync"));
        for wrong in ["noise", "--runs", "--runs 0", "--runs x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
