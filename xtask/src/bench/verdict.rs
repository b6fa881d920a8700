//! What it costs to find out whether the machine was quiet: the two looks of a job, with a thousand groups beside it. Those are
//! below the bench's own group, as a user's or a service manager's are; directly below the root, where each of them is read in
//! any case, the bench makes none: its own group stands for the root there.

use std::process::Stdio;

use super::area::Inside;
use super::stats::{Line, Sample};
use crate::Failure;

/// Rounds that are not counted.
const WARM_UP: usize = 3;

/// Measures `rounds` pairs of looks at each kind of tree.
///
/// # Errors
/// The helper cannot be run.
pub(super) fn measure(place: &Inside, rounds: usize, print: &mut impl FnMut(Vec<Line>)) -> Result<(), Failure> {
    for (shape, what, target) in
        [("below", "1000 groups below one", Some(1.0)), ("flat", "1000 groups directly below the root", None)]
    {
        let mut command = place.program("verdictcost")?;
        command.arg(shape).arg(place.group()).arg((WARM_UP + rounds).to_string()).stdout(Stdio::piped());
        let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Option<Vec<[u64; 2]>> = text.lines().skip(WARM_UP).map(parse).collect();
        let Some(lines) = lines.filter(|lines| output.status.success() && lines.len() == rounds) else {
            return Err(place.failed(&format!("verdictcost failed ({})", output.status)));
        };
        let looks = ["first look", "second look"].into_iter().enumerate().map(|(look, name)| {
            let mut sample = Sample::default();
            lines.iter().for_each(|line| sample.push(line[look] as f64 / 1e6));
            Line {
                what: format!("{name} at what others use, {what}"),
                own: format!("{} ms", sample.show(3)),
                other: String::new(),
                difference: String::new(),
                target: target.map(|most_msec| ("≤ 1 ms", sample.median() <= most_msec)),
            }
        });
        print(looks.collect());
    }
    Ok(())
}

/// The two numbers of a line.
fn parse(line: &str) -> Option<[u64; 2]> {
    let numbers: Option<Vec<u64>> = line.split(' ').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_two_numbers() {
        assert_eq!(parse("12000 80000"), Some([12000, 80000]));
        for line in ["", "1", "1 2 3", "1 x"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
