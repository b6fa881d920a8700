//! `perflock --check`: what of perflock works on this machine for this user, what is lost where something does not, and the one
//! command that mends it.
//!
//! # Theory of operation
//!
//! [`facts`] looks, and changes nothing that stays; the rest is pure. From the facts come [`Row`]s, one for each feature:
//! of the lock and its queue (`lock`), of the kernel (`kernel`), of job groups (`group`), and of how the machine is set (`machine`). `view` shows
//! them as a table or as JSON.
//!
//! **Tried, not guessed**, where that disturbs nobody. The lock file is opened and not locked. A ticket is drafted as a
//! job's is, and linked under a name that is no ticket's: it has no place in the queue, and nobody is woken. The backend
//! is found by the function that a job asks. A guard is what a process is that another can make, watch and kill. No job group is made: that
//! takes locks of the kernel's which everybody on the machine waits for, and nobody could say that no job starts meanwhile. A
//! service manager is connected to, without a word, only while the queue is empty, since it wakes up for that. So what only the making
//! of a group shows, such as a manager that refuses a scope, is not seen here.
//!
//! **The exit code** is 0 if everything that perflock promises to this user works, else 1. Unknown counts as not working: a
//! script that asks wants to hear that all is well, not that nothing was seen to be wrong. Not promised, and so without
//! influence, are: backends that were refused (whether a good one is left is a row of its own), `--isolated` for who is not
//! root, and the state of the machine. Turbo and SMT spoil measurements and not perflock; on most machines some of it is as it is
//! for good reason, and a script that minds finds it in the JSON. A check that cannot be made exits with 125.

mod boot;
pub mod facts;
mod group;
pub mod groups;
mod kernel;
mod lock;
mod machine;
mod row;
#[cfg(test)]
mod tests;
mod trial;
mod view;

use std::io;
use std::path::Path;

pub use row::{Row, State};

use crate::cli::RunArgs;
use crate::config::Config;
use crate::exit::{self, Ending};
use crate::job::Mode;
use crate::say::{self, Say};
use crate::settings::{Environment, Settings, Verbosity};
use crate::wholock::view::terminal_width;
use facts::{Asker, Facts};

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read /proc (is it mounted?): {}", crate::error::reason(.0))]
    Proc(io::Error),
    #[error("cannot write: {}", crate::error::reason(.0))]
    Write(io::Error),
}

/// Everything that is found, in order: features first, then the state of the machine.
pub fn rows(facts: &Facts) -> Vec<Row> {
    [lock::rows(facts), vec![kernel::row(facts)], group::rows(facts), machine::rows(facts)].concat()
}

/// Checks the machine, prints what was found, and says how to end.
pub fn run(args: &RunArgs, mode: Mode, say: &Say) -> Ending {
    check(args, mode).unwrap_or_else(|error| {
        say.wrong(&error.to_string());
        Ending::Code(exit::OURS)
    })
}

fn check(args: &RunArgs, mode: Mode) -> Result<Ending, Error> {
    let environment = Environment::read(|name| std::env::var_os(name));
    let configuration = environment.configuration(args.config.as_ref());
    // Without a configuration no job runs, and that is a row. The others are about the defaults.
    let (config, configuration) = match configuration {
        Ok((config, warnings)) => (config, Ok(warnings)),
        Err(error) => (Config::default(), Err(error)),
    };
    let settings = Settings::new(args, &environment, config, mode);
    let files = facts::config_files(&environment, args.config.as_ref());
    let asker = Asker::ourselves();
    let facts = Facts::gather(Path::new("/"), &asker, &settings, files, configuration).map_err(Error::Proc)?;
    let rows = rows(&facts);
    let width = terminal_width();
    let text = match (args.json, settings.verbosity) {
        (true, _) => view::json(&facts, &rows),
        (false, Verbosity::Quiet) => {
            let wrong: Vec<Row> = rows.iter().filter(|row| row.state != State::Works).cloned().collect();
            view::text(&wrong, width)
        }
        (false, _) => view::text(&rows, width) + &view::verdict(&rows, width),
    };
    say::print(&text).map_err(Error::Write)?;
    Ok(Ending::Code(u8::from(rows.iter().any(Row::fails))))
}
