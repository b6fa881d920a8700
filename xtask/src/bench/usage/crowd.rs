//! Many shared jobs at the same time.

use std::fmt;
use std::process::Stdio;

use super::super::area::Inside;
use super::super::tools::{Running, wait_until_few_processes};
use crate::Failure;

/// Jobs that run and do nothing.
#[derive(Debug)]
pub(super) struct Crowd {
    /// Their supervisors.
    jobs: Vec<Running>,
    /// Processes of each.
    processes: usize,
}

impl Crowd {
    /// Starts so many jobs of so many processes each, and waits until wholock shows them all.
    ///
    /// # Errors
    /// A program cannot be run, or wholock shows something else.
    pub(super) fn start(place: &Inside, jobs: usize, processes: usize) -> Result<Self, Failure> {
        wait_until_few_processes()?;
        let mut crowd = Self { jobs: Vec::with_capacity(jobs), processes };
        let ready = |index: usize| place.file(&format!("crowd-{index}"));
        for index in 0..jobs {
            let mut command = place.program("pls")?;
            command.arg("--lock").arg(place.lock());
            // The spawner is a process too.
            command.arg(place.binary("spawner")).arg((processes - 1).to_string()).arg(ready(index));
            crowd.jobs.push(Running::start(&mut command)?);
        }
        for (index, job) in crowd.jobs.iter_mut().enumerate() {
            let ready = ready(index);
            job.wait_for_file(place, &ready)?;
            std::fs::remove_file(&ready).map_err(|error| format!("cannot remove {}: {error}", ready.display()))?;
        }
        let shown = shown(place)?;
        if shown != vec![processes as u64; jobs] {
            return Err(format!("wholock shows jobs of {shown:?} processes, where there are {crowd}"));
        }
        Ok(crowd)
    }

    /// How many jobs.
    pub(super) fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// Ends all of them.
    ///
    /// # Errors
    /// They do not end.
    pub(super) fn end(self) -> Result<(), Failure> {
        for job in &self.jobs {
            job.ask_to_end();
        }
        self.jobs.into_iter().try_for_each(|mut job| job.wait().map(drop))?;
        wait_until_few_processes()
    }
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} jobs of {} processes", self.jobs(), self.processes)
    }
}

/// How many processes each job has, as wholock says.
fn shown(place: &Inside) -> Result<Vec<u64>, Failure> {
    let mut wholock = place.program("wholock")?;
    wholock.args(["--json", "--sample", "0", "--lock"]).arg(place.lock()).stdout(Stdio::piped());
    let output = wholock.output().map_err(|error| format!("cannot start {wholock:?}: {error}"))?;
    parse_shown(&output.stdout).ok_or_else(|| place.failed("wholock --json is not understood"))
}

/// The same, from its output.
fn parse_shown(json: &[u8]) -> Option<Vec<u64>> {
    let document: serde_json::Value = serde_json::from_slice(json).ok()?;
    document["holders"].as_array()?.iter().map(|job| job["processes"].as_u64()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processes_of_each_holder_are_read() {
        let json = br#"{"holders": [{"processes": 50}, {"processes": 49}], "waiters": [{"processes": null}]}"#;
        assert_eq!(parse_shown(json), Some(vec![50, 49]));
        assert_eq!(parse_shown(br#"{"holders": [{"processes": null}]}"#), None);
        assert_eq!(parse_shown(b""), None);
    }
}
