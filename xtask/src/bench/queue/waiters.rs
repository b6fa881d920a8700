//! What waiters do and weigh: they must do nothing.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::area::Inside;
use super::super::idle::{SETTLE, WATCHED, pss_kib, switches, value};
use super::super::stats::{Line, Sample};
use super::{Held, SHORT, with_lock};
use crate::Failure;

/// How much memory a waiter may take.
const MOST_KIB: u64 = 512;

/// Watches some waiters.
///
/// # Errors
/// A program cannot be run, or its files cannot be read.
pub(super) fn measure(place: &Inside) -> Result<Vec<Line>, Failure> {
    let mut queue = Held::new(place, "queue")?;
    for _ in 0..SHORT {
        queue.start(with_lock(place, "perflock", &queue.path)?.arg("true"))?;
    }
    queue.wait_until_asleep(place)?;
    let processes: Vec<PathBuf> =
        queue.waiters.iter().map(|waiter| Path::new("/proc").join(waiter.pid().to_string())).collect();
    std::thread::sleep(SETTLE);
    let each = |read: &dyn Fn(&Path) -> Option<u64>| -> Result<Vec<u64>, Failure> {
        let values = processes.iter().map(|process| read(process)).collect::<Option<_>>();
        values.ok_or_else(|| "cannot read a waiter's files".to_owned())
    };
    let before = each(&switches)?;
    std::thread::sleep(WATCHED);
    let after = each(&switches)?;
    let switched: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    let pss = each(&pss_kib)?;
    let rollup = |process: &Path| fs::read_to_string(process.join("smaps_rollup")).ok();
    let own = each(&|process| value(&rollup(process)?, "Pss_Anon:"))?;
    let files = each(&|process| value(&rollup(process)?, "Pss_File:"))?;
    queue.end()?;
    let (most_switched, most_kib) = (largest(&switched), largest(&pss));
    Ok(vec![
        Line {
            what: format!("voluntary context switches of each of {SHORT} waiters in {} s", WATCHED.as_secs()),
            own: format!("{most_switched} at most"),
            other: String::new(),
            difference: String::new(),
            target: Some(("0", most_switched == 0)),
        },
        Line {
            what: format!("memory (PSS) of each of {SHORT} waiters"),
            own: format!("{} KiB ({most_kib} at most)", median(&pss)),
            other: format!("of that its own {} KiB, its share of files {} KiB", median(&own), median(&files)),
            difference: String::new(),
            target: Some(("≤ 512 KiB", most_kib <= MOST_KIB)),
        },
    ])
}

/// The largest value, or 0.
fn largest(values: &[u64]) -> u64 {
    values.iter().copied().max().unwrap_or(0)
}

/// The value in the middle, in whole numbers.
fn median(values: &[u64]) -> u64 {
    let mut sample = Sample::default();
    values.iter().for_each(|&value| sample.push(value as f64));
    sample.median().round() as u64
}
