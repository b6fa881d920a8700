//! Whether the CPU time in the report is what the job's processes used, those included that nobody waited for.
//!
//! Each process counts for itself as late as it can. What its end takes is in the report and cannot be in that sum, so a
//! true report is a little above it: by 0.1 to 0.2 ms for each process.

use std::path::Path;

use super::super::area::Inside;
use super::super::stats::{Line, Sample};
use super::super::tools::time_msec;
use crate::Failure;

/// Children that are waited for, and as many that are not.
const CHILDREN: usize = 200;

/// What two ways to count found in one run.
#[derive(Debug, PartialEq)]
struct Counted {
    /// All processes together, by what each stored of itself.
    used_nsec: i64,
    /// What getrusage(`RUSAGE_CHILDREN`) says, and so `time` of a shell.
    waited_for_nsec: i64,
}

/// Measures `rounds` runs.
///
/// # Errors
/// A program cannot be run, or did not report.
pub(super) fn measure(place: &Inside, rounds: usize) -> Result<Vec<Line>, Failure> {
    let (slots, report) = (place.file("slots"), place.file("report.json"));
    let children = CHILDREN.to_string();
    let mut command = place.perflock()?;
    command.arg("--report-file").arg(&report);
    command.arg(place.binary("burner")).arg(&slots).args([&children, &children]);
    let (mut used_sec, mut reported, mut waited_for) = (Sample::default(), Sample::default(), Sample::default());
    for _ in 0..rounds {
        time_msec(place, &mut command)?;
        let counted = parse_slots(&read(&slots)?, 2 * CHILDREN);
        let counted = counted.ok_or_else(|| place.failed("not every process said what it used"))?;
        let cpu_usec = parse_report(&read(&report)?).ok_or("there is no CPU time in the report")?;
        let percent = |nsec: f64| 100.0 * nsec / counted.used_nsec as f64;
        used_sec.push(counted.used_nsec as f64 / 1e9);
        reported.push(percent(cpu_usec as f64 * 1000.0));
        waited_for.push(percent(counted.waited_for_nsec as f64));
    }
    let deviation = |percent: &Sample| {
        let ends = [0.0, 1.0].map(|share| percent.quantile(share) - 100.0);
        if ends[0].abs() > ends[1].abs() { ends[0] } else { ends[1] }
    };
    let worst = deviation(&reported);
    let ratio = reported.pairs(&waited_for, |reported, waited_for| reported / waited_for);
    let line = |other: String, difference: String, target| Line {
        what: format!("CPU time in the report: {CHILDREN} children reaped, {CHILDREN} not ({rounds} runs)"),
        own: format!("{} %", reported.show(2)),
        other,
        difference,
        target,
    };
    Ok(vec![
        line(
            format!("100 %: what each process counted of itself, {} s together", used_sec.show(2)),
            format!("worst {worst:+.2} %"),
            Some(("within 2 %", worst.abs() <= 2.0)),
        ),
        line(
            format!("`time` (`RUSAGE_CHILDREN`) of the same job: {} %", waited_for.show(2)),
            format!("× {}", ratio.show(2)),
            None,
        ),
    ])
}

/// A file's bytes.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// What `burner` wrote: what was waited for, the job's first two processes, and each child. `None` unless everybody did.
fn parse_slots(bytes: &[u8], children: usize) -> Option<Counted> {
    let (slots, []) = bytes.as_chunks() else { return None };
    let slots: Vec<i64> = slots.iter().map(|&slot| i64::from_ne_bytes(slot)).collect();
    let (&waited_for_nsec, used) = slots.split_first()?;
    let complete = used.len() == 2 + children && slots.iter().all(|&nsec| nsec > 0);
    complete.then(|| Counted { used_nsec: used.iter().sum(), waited_for_nsec })
}

/// The CPU time in `--report-file`'s report, in microseconds.
fn parse_report(json: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(json).ok()?["usage"]["cpu_usec"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_summed_when_all_of_them_were_written() {
        let bytes = |slots: [i64; 5]| slots.map(i64::to_ne_bytes).concat();
        let counted = Counted { used_nsec: 10, waited_for_nsec: 7 };
        assert_eq!(parse_slots(&bytes([7, 1, 2, 3, 4]), 2), Some(counted));
        assert_eq!(parse_slots(&bytes([7, 1, 2, 0, 4]), 2), None);
        assert_eq!(parse_slots(&bytes([7, 1, 2, 3, 4]), 3), None);
        assert_eq!(parse_slots(&bytes([7, 1, 2, 3, 4])[1..], 2), None);
        assert_eq!(parse_slots(&[], 2), None);
    }

    #[test]
    fn the_report_s_cpu_time_is_found() {
        assert_eq!(parse_report(br#"{"exit_code": 0, "usage": {"cpu_usec": 12}}"#), Some(12));
        assert_eq!(parse_report(br#"{"usage": {"cpu_usec": null}}"#), None);
        assert_eq!(parse_report(b"{}"), None);
    }
}
