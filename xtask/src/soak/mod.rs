//! `cargo xtask soak`: hundreds of jobs of several users, and a harness that kills, stops and cancels them at random.
//!
//! The jobs' command (`stress_job`) and the harness write what happens into one log, and [`proof`] says what it proves: alone
//! means alone, on cores as on the machine, in order, and every end explained. Afterwards, when each user has run one more job,
//! nothing may be left. What is drawn at random comes from a seed; when it happens does not.

mod area;
mod child;
mod disturb;
mod flight;
mod plan;
mod proof;
mod record;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::room::Room;
use crate::{Failure, cargo, top};
use area::Area;
pub(crate) use area::missing;
use flight::{Flight, INTERRUPTED, Until};
use record::JobNumber;

/// How many problems are printed.
const PRINTED: usize = 10;

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    until: Until,
    seed: Option<u64>,
    parallel: usize,
    bin: Option<PathBuf>,
}

impl Options {
    /// Reads the arguments behind `soak`.
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let mut options = Self { until: Until::Jobs(2000), seed: None, parallel: 60, bin: None };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let value = arguments.next();
            let number = || value.and_then(|value| value.parse::<u64>().ok());
            let positive = || number().filter(|&number| number > 0);
            match argument.as_str() {
                "--jobs" => options.until = Until::Jobs(positive().ok_or("--jobs takes a number above 0")?),
                "--time" => {
                    let time = value.and_then(|value| parse_time(value));
                    options.until = Until::Time(time.ok_or("--time takes a time, such as 90s, 10m or 2h")?);
                }
                "--seed" => options.seed = Some(number().ok_or("--seed takes a number")?),
                "--parallel" => {
                    let parallel = positive().and_then(|number| usize::try_from(number).ok());
                    options.parallel = parallel.ok_or("--parallel takes a number above 0")?;
                }
                "--bin" => options.bin = Some(value.ok_or("--bin takes a directory")?.into()),
                other => return Err(format!("unknown argument {other}\n{}", crate::USAGE)),
            }
        }
        Ok(options)
    }
}

/// `90s`, `10m`, `2h`.
fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs).filter(|time| !time.is_zero())
}

/// Where cargo puts debug binaries.
pub(crate) fn debug_binaries() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), |dir| top().join(dir));
    target.join("debug")
}

/// Runs a soak and prints what came of it.
///
/// # Errors
/// The arguments are wrong, or a soak is not possible here.
pub(crate) fn soak(arguments: &[String]) -> Result<ExitCode, Failure> {
    let options = Options::parse(arguments)?;
    if let Some(missing) = missing() {
        return Err(format!("a soak is not possible here: {}", missing.why));
    }
    build(options.bin.is_none())?;
    let built = debug_binaries();
    let product = options.bin.clone().unwrap_or_else(|| built.clone());
    let room = Room::read()?;
    let programs = [product.join("perflock"), product.join("pls"), built.join("stress_job")];
    let area = Area::create(&programs, &room.cpus)?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores a word: async-signal-safe.
        unsafe { libc::signal(signal, interrupted as *const () as libc::sighandler_t) };
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(0..1 << 32));
    println!("seed {seed}, up to {} jobs at a time, in {}", options.parallel, area.directory().display());
    let start = Instant::now();
    let mut flight = Flight::new(&area, room, seed)?;
    let flown = flight.fly(options.until, options.parallel).and_then(|()| flight.land());
    let took = start.elapsed();
    let left = if flown.is_ok() { area.left() } else { Vec::new() };
    print_summary(&flight, took, seed);
    let good = flown.is_ok() && left.is_empty() && flight.proof.problems.is_empty();
    if good {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("\nxtask: the soak with --seed {seed} found:");
    print_problems(&flight, &area);
    for what in left {
        eprintln!("left behind: {what}");
    }
    if let Err(message) = flown {
        eprintln!("{message}");
    }
    let kept = std::env::temp_dir().join(format!("perflock-soak-{seed}.log"));
    if fs::copy(area.log(), &kept).is_ok() {
        eprintln!("the whole log: {}", kept.display());
    }
    Ok(ExitCode::FAILURE)
}

/// The signal handler: the loop sees it, and everything is cleared away.
extern "C" fn interrupted(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Builds the worker, and what is tested if it is not given.
fn build(product: bool) -> Result<(), Failure> {
    let product = product.then_some(["--package=perflock", "--bin=perflock", "--bin=pls"]).into_iter().flatten();
    let mut command = cargo();
    command.args(["build", "--quiet", "--locked", "--package=xtask", "--bin=stress_job"]).args(product);
    let status = command.status().map_err(|error| format!("cannot start cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err("the programs of the soak cannot be built".to_owned()) }
}

/// The table at the end.
fn print_summary(flight: &Flight<'_>, took: Duration, seed: u64) {
    println!("\n{:<28}{:>8}", "jobs", flight.jobs);
    for (kind, ending, count) in flight.proof.endings() {
        println!("  {:<26}{count:>8}", format!("{kind:?}, {ending}").to_lowercase());
    }
    println!("{:<28}{:>8}", "disturbances", flight.disturbances.values().sum::<usize>());
    for (disturbance, count) in &flight.disturbances {
        println!("  {:<26}{count:>8}", disturbance.word());
    }
    let [ended, waited] = flight.orphans;
    println!("{:<28}{:>8}", "orphans met", ended + waited + flight.proof.known_overlaps());
    println!("  {:<26}{ended:>8}", "ended by the next job");
    println!("  {:<26}{waited:>8}", "waited for by the next job");
    println!("  {:<26}{:>8}", "beside flock (known)", flight.proof.known_overlaps());
    let [leases, beside] = flight.proof.leases();
    println!("{:<28}{leases:>8}\n  {:<26}{beside:>8}", "jobs with cores of their own", "beside another such job");
    let seconds = took.as_secs_f64();
    println!("{:<28}{seconds:>8.1}\n{:<28}{:>8.1}", "seconds", "jobs/s", flight.jobs as f64 / seconds);
    println!("{:<28}{:>8.1}", "longest pause, seconds", flight.longest_pause.as_secs_f64());
    println!("{:<28}{:>8}\n{:<28}{seed:>8}", "problems", flight.proof.problems.len(), "seed");
}

/// The problems, with every line of the jobs that they are about, and what those said.
fn print_problems(flight: &Flight<'_>, area: &Area) {
    let problems = &flight.proof.problems;
    for problem in problems.iter().take(PRINTED) {
        eprintln!("{problem}");
    }
    if problems.len() > PRINTED {
        eprintln!("and {} more", problems.len() - PRINTED);
    }
    let jobs: BTreeSet<JobNumber> = problems.iter().take(PRINTED).flat_map(|problem| problem.jobs.clone()).collect();
    let log = fs::read_to_string(area.log()).unwrap_or_default();
    for (number, line) in (1..).zip(log.lines()) {
        let job = line.split(' ').next().and_then(|job| job.parse().ok());
        if job.is_some_and(|job| jobs.contains(&job)) {
            eprintln!("{number:>8}: {line}");
        }
    }
    for job in jobs {
        for line in flight.said(job).unwrap_or_default().lines() {
            eprintln!("job {job} said: {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Failure> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read() {
        let options = parse("--time 2h --seed 7 --parallel 9 --bin there").unwrap();
        let until = Until::Time(Duration::from_secs(7200));
        assert_eq!(options, Options { until, seed: Some(7), parallel: 9, bin: Some("there".into()) });
        assert_eq!(parse("--jobs 5").unwrap().until, Until::Jobs(5));
        assert_eq!(parse("").unwrap().until, Until::Jobs(2000));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in
            ["--jobs", "--jobs 0", "--time 5", "--time 0s", "--time h", "--seed x", "--parallel 0", "--bin", "x"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
