//! Two jobs that need a processor each, `pls --cores 1`, beside each other: where each ran, by the kernel's own account, and
//! what it got done for its CPU time, against the same job alone and against two that are not pinned.

use std::fs;
use std::path::{Path, PathBuf};

use perflock::pin::CpuList;

use super::super::area::Inside;
use super::super::stats::{Line, Sample};
use super::super::tools::{Running, now_nsec};
use crate::Failure;

/// How long they work.
const WORK_NSEC: i64 = 350_000_000;

/// By then they have been started, on a machine with something else to do, too.
const LEAD_NSEC: i64 = 120_000_000;

/// What one job says of itself, and the kernel of it.
#[derive(Debug, PartialEq)]
struct Job {
    blocks: f64,
    cpu_sec: f64,
    /// Where it was to run.
    cpus: Option<CpuList>,
    /// The share of its time on these processors; where it was not told any, on the one where it was most.
    at_home: Option<f64>,
}

/// Measures `rounds` rounds. `accounts`: the bench's group in the hierarchy of cpuacct, where there is one.
///
/// # Errors
/// A program cannot be run, or two jobs had the same core.
pub(super) fn measure(place: &Inside, accounts: Option<&Path>, rounds: usize) -> Result<Vec<Line>, Failure> {
    let (mut pinned, mut unpinned) = (Sample::default(), Sample::default());
    let (mut at_home, mut wandering) = (Sample::default(), Sample::default());
    for round in 0..rounds {
        let mut rates = [0.0; 3];
        for turn in 0..3 {
            // Each goes first equally often.
            let index = (round + turn) % 3;
            let (count, options): (_, &[&str]) = [(1, CORE), (2, CORE), (2, &[])][index];
            let jobs = run(place, accounts, count, options)?;
            rates[index] =
                jobs.iter().map(|job| job.blocks).sum::<f64>() / jobs.iter().map(|job| job.cpu_sec).sum::<f64>();
            if let [Job { cpus: Some(one), .. }, Job { cpus: Some(other), .. }] = &jobs[..]
                && one.meets(other)
            {
                return Err(format!("two jobs beside each other had cores of their own, cpus {one} and cpus {other}"));
            }
            let shares = jobs.iter().filter_map(|job| job.at_home);
            match index {
                0 => {}
                1 => shares.for_each(|share| at_home.push(100.0 * share)),
                _ => shares.for_each(|share| wandering.push(100.0 * share)),
            }
        }
        let [alone, beside, not_pinned] = rates;
        pinned.push(beside / alone);
        unpinned.push(not_pinned / alone);
    }
    let ratio = pinned.pairs(&unpinned, |pinned, unpinned| pinned / unpinned);
    let worst = at_home.quantile(0.0);
    let (by, other) = match accounts {
        Some(_) => ("cpuacct", format!("not pinned, on the one where it was most: {} %", wandering.show(1))),
        None => ("`getcpu`", String::new()),
    };
    Ok(vec![
        Line {
            what: format!("two CPU-bound `pls --cores 1`, work per CPU second of one alone ({rounds} rounds)"),
            own: pinned.show(3),
            other: format!("two plain `pls`: {}", unpinned.show(3)),
            difference: format!("× {}", ratio.show(3)),
            target: Some(("≥ 0.95", pinned.median() >= 0.95)),
        },
        Line {
            what: format!("each one's CPU time on its own CPU ({by})"),
            own: format!("{} %", at_home.show(1)),
            other,
            difference: format!("worst {worst:.2} %"),
            target: Some(("≥ 99 %", worst >= 99.0)),
        },
    ])
}

/// Options of a job with a core of its own.
const CORE: &[&str] = &["--cores", "1"];

/// A job that was started.
struct Started {
    running: Running,
    said: PathBuf,
    account: Option<PathBuf>,
}

/// Runs jobs that work at the same time.
fn run(place: &Inside, accounts: Option<&Path>, count: usize, options: &[&str]) -> Result<Vec<Job>, Failure> {
    let from = now_nsec() + LEAD_NSEC;
    let start = |index: usize| {
        let said = place.file(&format!("spin-{index}"));
        let account = accounts.map(|accounts| accounts.join(format!("spin-{index}")));
        let mut command = place.program("pls")?;
        command.arg("--lock").arg(place.lock()).args(options).arg(place.binary("spin")).arg(&said);
        command.args([from, from + WORK_NSEC].map(|nsec| nsec.to_string()));
        if let Some(account) = &account {
            fs::create_dir(account).map_err(|error| format!("cannot make {}: {error}", account.display()))?;
            command.arg(account);
        }
        Ok(Started { running: Running::start(&mut command)?, said, account })
    };
    let started: Vec<Started> = (0..count).map(start).collect::<Result<_, Failure>>()?;
    let mut jobs = Vec::new();
    for mut job in started {
        if !job.running.wait()?.success() {
            return Err(place.failed("a job that was to work failed"));
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
        let used = job.account.as_ref().map(|account| read(&account.join("cpuacct.usage_percpu"))).transpose()?;
        let parsed = parse(&read(&job.said)?, used.as_deref());
        jobs.push(parsed.ok_or_else(|| place.failed("a job that worked said nothing of it"))?);
        job.account.iter().try_for_each(fs::remove_dir).map_err(|error| format!("cannot remove a group: {error}"))?;
    }
    Ok(jobs)
}

/// What `spin` wrote, and what the kernel says of the group that it was in: nanoseconds on each processor.
fn parse(said: &str, used: Option<&str>) -> Option<Job> {
    let words: Vec<&str> = said.split_whitespace().collect();
    let &[blocks, cpu_nsec, at_home, cpus] = &words[..] else { return None };
    let (blocks, own): (f64, f64) = (blocks.parse().ok()?, at_home.parse().ok()?);
    let cpus = if cpus == "-" { None } else { Some(cpus.parse::<CpuList>().ok()?) };
    let at_home = match used {
        Some(used) => {
            let each: Vec<f64> = used.split_whitespace().map(|nsec| nsec.parse().ok()).collect::<Option<_>>()?;
            let there = match &cpus {
                Some(cpus) => cpus.iter().filter_map(|cpu| each.get(cpu as usize)).sum(),
                None => each.iter().copied().fold(0.0, f64::max),
            };
            Some(there / each.iter().sum::<f64>())
        }
        None => cpus.is_some().then_some(own / blocks),
    };
    Some(Job { blocks, cpu_sec: cpu_nsec.parse::<f64>().ok()? / 1e9, cpus, at_home })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_did_and_where_is_read() {
        let cpus: CpuList = "1,3".parse().unwrap();
        let job = |cpus, at_home| Job { blocks: 40.0, cpu_sec: 0.5, cpus, at_home };
        assert_eq!(parse("40 500000000 30 1,3\n", Some("5 60 5 30 \n")), Some(job(Some(cpus.clone()), Some(0.9))));
        assert_eq!(parse("40 500000000 30 1,3\n", None), Some(job(Some(cpus), Some(0.75))));
        assert_eq!(parse("40 500000000 0 -\n", Some("25 75")), Some(job(None, Some(0.75))));
        assert_eq!(parse("40 500000000 0 -\n", None), Some(job(None, None)));
        for said in ["", "40 500000000 0", "x 1 0 -", "1 1 0 x"] {
            assert_eq!(parse(said, None), None, "{said}");
        }
    }
}
