//! What reading the usage adds to a run: what the default run reads, timed where it is read, and what a full report adds
//! to `perflock true`.

use std::process::Stdio;

use super::super::area::Inside;
use super::super::start::IDLE;
use super::super::stats::{Line, Sample};
use super::super::tools::time_msec;
use crate::Failure;

/// Pairs that are not counted.
const WARM_UP: usize = 3;

/// How many readings are timed for each pair of runs: they are short.
const READINGS_PER_PAIR: usize = 10;

/// Measures `pairs` pairs of runs.
///
/// # Errors
/// A program cannot be run.
pub(super) fn measure(place: &Inside, pairs: usize) -> Result<Vec<Line>, Failure> {
    Ok(vec![readings(place, pairs * READINGS_PER_PAIR)?, runs(place, pairs)?])
}

/// Times the reading alone.
fn readings(place: &Inside, rounds: usize) -> Result<Line, Failure> {
    let mut command = place.program("usagecost")?;
    command.arg(place.group()).arg((WARM_UP + rounds).to_string()).stdout(Stdio::piped());
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Option<Vec<[u64; 4]>> = text.lines().skip(WARM_UP).map(parse).collect();
    let Some(lines) = lines.filter(|lines| output.status.success() && lines.len() == rounds) else {
        return Err(place.failed(&format!("usagecost failed ({})", output.status)));
    };
    let (mut short, mut full) = (Sample::default(), Sample::default());
    let mut known = (0, 0);
    for [short_nsec, short_known, full_nsec, full_known] in lines {
        short.push(short_nsec as f64 / 1e6);
        full.push(full_nsec as f64 / 1e6);
        known = (short_known, full_known);
    }
    let more_msec = full.pairs(&short, |full, short| full - short);
    Ok(Line {
        what: format!("reading the usage for the line at the end ({} counters known here)", known.0),
        own: format!("{} ms", short.show(3)),
        other: format!("all that there is ({}): {} ms", known.1, full.show(3)),
        difference: format!("{:+.3} ms for all", more_msec.median()),
        target: Some(("≤ 0.2 ms", short.median() <= 0.2)),
    })
}

/// The four numbers of a line.
fn parse(line: &str) -> Option<[u64; 4]> {
    let numbers: Option<Vec<u64>> = line.split(' ').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// Times `perflock true` with and without a full report.
fn runs(place: &Inside, pairs: usize) -> Result<Line, Failure> {
    let (mut full, mut plain) = (place.perflock()?, place.perflock()?);
    full.arg("--report-file").arg(place.file("report.json")).arg("true");
    plain.arg("true");
    let mut programs = [full, plain];
    let mut samples = [Sample::default(), Sample::default()];
    for pair in 0..WARM_UP + pairs {
        for turn in 0..2 {
            // Each goes first equally often.
            let index = (pair + turn) % 2;
            std::thread::sleep(IDLE);
            let took_msec = time_msec(place, &mut programs[index])?;
            if pair >= WARM_UP {
                samples[index].push(took_msec);
            }
        }
    }
    let [full, plain] = &samples;
    let more_msec = full.pairs(plain, |full, plain| full - plain);
    Ok(Line {
        what: "`perflock --report-file FILE true`, cold".to_owned(),
        own: full.show_msec(),
        other: format!("`perflock true`: {}", plain.show_msec()),
        difference: format!("{:+.3} ms", more_msec.median()),
        target: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_four_numbers() {
        assert_eq!(parse("12000 4 80000 21"), Some([12000, 4, 80000, 21]));
        for line in ["", "1 2 3", "1 2 3 4 5", "1 2 3 x"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
