//! `perflock --diff A B`: what differed between two runs, by the reports that they left (`--report-file`): the answer to "why is
//! today 6 % slower?".
//!
//! # Theory of operation
//!
//! [`read`] reads the two files, which anybody may have written. [`fields`] knows where in a report each thing stands, what `null`
//! says there, and how far two values may be from each other and still be the same. [`compare()`] goes through them and is pure; `view`
//! shows what it found as text or as JSON.
//!
//! **Outcomes and conditions.** How long the runs took, what they used and how they ended always differs a little. These are what is
//! to be explained, and are only put beside each other. Everything else is a condition, told only where it differs, in the order in
//! which it explains: another command first, since then nothing else matters, then the verdict, the machine, the pins, and who shared.
//!
//! **Conditions and figures.** Some conditions are figures that are never the same twice (time stolen, time stalled):
//! they differ when by so much that it can be felt in a run of that length. The others differ when they are not equal. Numbers
//! of processes and of jobs, and times at which something happened, are no conditions; nor are processors' frequencies, which a
//! report has from when the job was over.
//!
//! **What is not known.** A field that is missing, `null` where that means nothing, or not of its kind is not known; so an older
//! report can be read, and a field that a later one has is passed over. A condition that one report tells and the other does not
//! counts as different: a script that asks wants to hear that the conditions were the same, not that nobody saw them differ. What
//! neither tells, and a figure that one alone has, does not count, but is listed.
//!
//! **The exit code** is diff(1)'s: 0 for the same conditions, 1 for different ones; and 125, as everywhere, for trouble.

pub mod compare;
pub mod fields;
pub mod read;
#[cfg(test)]
mod tests;
mod told;
mod view;

use std::io;
use std::path::Path;

pub use compare::{Comparison, Difference, compare};
pub use read::ReadError;

use crate::cli::RunArgs;
use crate::exit::{self, Ending};
use crate::say::{self, Say};
use crate::wholock::view::terminal_width;

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("cannot write: {}", crate::error::reason(.0))]
    Write(io::Error),
}

/// Compares two reports, prints what differs, and says how to end.
pub fn run(first: &Path, second: &Path, args: &RunArgs, say: &Say) -> Ending {
    diff(first, second, args).unwrap_or_else(|error| {
        say.wrong(&error.to_string());
        Ending::Code(exit::OURS)
    })
}

fn diff(first: &Path, second: &Path, args: &RunArgs) -> Result<Ending, Error> {
    let comparison = compare(&read::report(first)?, &read::report(second)?);
    let names = [first, second].map(read::name);
    let text = match (args.json, args.quiet) {
        (true, _) => view::json(&names, &comparison),
        (false, true) => view::differences(&names, &comparison, terminal_width()),
        (false, false) => view::text(&names, &comparison, terminal_width()),
    };
    say::print(&text).map_err(Error::Write)?;
    Ok(Ending::Code(u8::from(!comparison.differences.is_empty())))
}
