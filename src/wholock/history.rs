//! `--history`: the jobs that ended, as a table and as JSON, and what each user had of the machine. The shape of the latter is
//! `config/history.schema.json`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::view::lay_out;
use crate::error::FileError;
use crate::history::line::{End, Line};
use crate::history::{Keeping, read};
use crate::job::Mode;
use crate::report::document::{Person, Reason, rfc3339};
use crate::report::facts::known;
use crate::report::full::signal_name;
use crate::text;
use crate::verdict::Word;

/// The version of the JSON.
const VERSION: u32 = 1;

/// What is shown when there is nothing to show.
const NONE: &str = "no job has ended here, as far as the history goes\n";

const COLUMNS: [&str; 8] = ["USER", "MODE", "STARTED", "WAITED", "HELD", "CPU TIME", "EXIT", "COMMAND"];
/// How much of a command is shown, also where no terminal cuts it.
const COMMAND_COLUMNS: usize = 500;
const RIGHT: [usize; 3] = [3, 4, 5];

const USER_COLUMNS: [&str; 6] = ["USER", "JOBS", "ALONE", "SHARED", "WAITED", "CPU TIME"];
const USER_RIGHT: [usize; 5] = [1, 2, 3, 4, 5];

/// Which jobs are asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Of this lock, as a line has it.
    pub lock: String,
    /// Of this user alone.
    pub uid: Option<u32>,
    /// Not those that ended earlier.
    pub ended_after: Option<SystemTime>,
}

impl Wanted {
    fn has(&self, line: &Line) -> bool {
        line.lock == self.lock && self.ended_after.is_none_or(|after| line.ended() >= after)
    }
}

/// What the histories say.
#[derive(Debug, Default)]
pub struct Past {
    /// The jobs with their users, the newest last.
    jobs: Vec<(u32, Line)>,
    /// How many lines make no sense.
    passed_over: usize,
    /// The files that have such.
    in_files: Vec<PathBuf>,
    /// What could not be read at all.
    unread: Vec<FileError>,
}

/// What a user had of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    jobs: usize,
    exclusive_usec: u64,
    shared_usec: u64,
    waited_usec: u64,
    cpu_usec: u64,
}

impl Past {
    /// Reads the jobs that are wanted, from everybody's files or one user's. What cannot be read is no reason to show nothing: its
    /// owner may have done that.
    pub fn read(keeping: &Keeping, wanted: &Wanted) -> Self {
        let (sources, unread) = match wanted.uid {
            Some(uid) => (read::of_user(keeping, uid), None),
            None => read::of_everybody(keeping),
        };
        let mut past = Self { unread: unread.into_iter().collect(), ..Self::default() };
        for source in sources {
            let keep = &mut |line: Line| {
                if wanted.has(&line) {
                    past.jobs.push((source.uid, line));
                }
            };
            match source.read(None, keep) {
                Ok(0) => {}
                Ok(passed_over) => {
                    past.passed_over += passed_over;
                    past.in_files.push(source.path);
                }
                Err(error) => past.unread.push(error),
            }
        }
        past.jobs.sort_by_key(|(_, line)| line.started);
        past
    }

    /// What is not shown, and why: a line for files that cannot be read, and one for lines that make no sense.
    pub fn notices(&self) -> Vec<String> {
        let unread = self.unread.first().map(|error| match self.unread.len() - 1 {
            0 => format!("{error}; the jobs in it are not shown"),
            more => format!("{error}, nor {more} more; the jobs in them are not shown"),
        });
        unread.into_iter().chain(self.senseless()).collect()
    }

    fn senseless(&self) -> Option<String> {
        let first = self.in_files.first()?;
        let (lines, make) =
            (text::count(self.passed_over, "line"), if self.passed_over == 1 { "makes" } else { "make" });
        let more = if self.in_files.len() > 1 { ", …" } else { "" };
        Some(format!("skipped {lines} of history that {make} no sense ({}{more})", text::path(first)))
    }

    fn shares(&self) -> BTreeMap<u32, Share> {
        let mut shares: BTreeMap<u32, Share> = BTreeMap::new();
        for (uid, line) in &self.jobs {
            let share = shares.entry(*uid).or_default();
            let held = match line.mode {
                Mode::Exclusive => &mut share.exclusive_usec,
                Mode::Shared => &mut share.shared_usec,
            };
            *held = held.saturating_add(line.held_usec);
            share.jobs += 1;
            share.waited_usec = share.waited_usec.saturating_add(line.waited_usec);
            share.cpu_usec = share.cpu_usec.saturating_add(line.cpu_usec.unwrap_or(0));
        }
        shares
    }

    /// For a person: the jobs, and below them what each user had.
    pub fn text(&self, width: Option<u16>) -> String {
        if self.jobs.is_empty() {
            return NONE.to_owned();
        }
        let jobs = lay_out(&COLUMNS, &RIGHT, self.jobs.iter().map(|(uid, line)| row(*uid, line)).collect(), width);
        let shares = self.shares();
        let users = shares.iter().map(|(&uid, share)| {
            let Share { jobs, exclusive_usec, shared_usec, waited_usec, cpu_usec } = *share;
            let [alone, shared, waited, cpu] = [exclusive_usec, shared_usec, waited_usec, cpu_usec].map(duration);
            [user(uid), jobs.to_string(), alone, shared, waited, cpu]
        });
        format!("{jobs}\n{}", lay_out(&USER_COLUMNS, &USER_RIGHT, users.collect(), None))
    }

    /// For a program, on one line.
    pub fn document(&self, wanted: &Wanted, keeping: &Keeping) -> String {
        let users = self.shares().into_iter().map(|(uid, share)| UserFields {
            user: Person::of(uid),
            jobs: share.jobs,
            exclusive_usec: share.exclusive_usec,
            shared_usec: share.shared_usec,
            waited_usec: share.waited_usec,
            cpu_usec: share.cpu_usec,
        });
        let document = Document {
            version: VERSION,
            lock: &wanted.lock,
            directory: keeping.directory.display().to_string(),
            jobs: self.jobs.iter().map(|(uid, line)| job(*uid, line)).collect(),
            users: users.collect(),
            lines_skipped: self.passed_over,
        };
        // Maps of strings and numbers: nothing in it can fail.
        serde_json::to_string(&document).unwrap_or_default() + "\n"
    }
}

fn row(uid: u32, line: &Line) -> [String; COLUMNS.len()] {
    let command = text::command_line(&line.command);
    let left_out = if line.words_left_out > 0 { " …" } else { "" };
    [
        user(uid),
        line.mode.to_string(),
        crate::clock::day_and_minute(line.started),
        duration(line.waited_usec),
        duration(line.held_usec),
        known(line.cpu_usec.map(duration)),
        exit(&line.exit),
        text::cut(&command, COMMAND_COLUMNS) + left_out,
    ]
}

fn user(uid: u32) -> String {
    text::escape(&crate::user::name(uid))
}

fn duration(usec: u64) -> String {
    text::duration(Duration::from_micros(usec))
}

/// How it ended, in a word: its code, its signal, or why it had neither of its own.
fn exit(end: &End) -> String {
    match end.reason {
        Reason::Exited => known(end.code.map(|code| code.to_string())),
        Reason::Signal => known(end.signal.map(signal_name)),
        Reason::TimeLimit => "time limit".to_owned(),
        Reason::OutOfMemory => "out of memory".to_owned(),
        Reason::Cancelled => "cancelled".to_owned(),
        Reason::Killed => "killed".to_owned(),
        Reason::Stopped => "stopped".to_owned(),
        Reason::SupervisorLost => "supervisor lost".to_owned(),
        Reason::LockNotObtained | Reason::Failed => "did not run".to_owned(),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    /// Whose jobs these are.
    lock: &'a str,
    directory: String,
    jobs: Vec<JobFields<'a>>,
    users: Vec<UserFields>,
    lines_skipped: usize,
}

#[derive(Serialize)]
struct JobFields<'a> {
    user: Person,
    job: &'a str,
    number: u64,
    mode: Mode,
    #[serde(serialize_with = "rfc3339")]
    started: SystemTime,
    waited_usec: u64,
    held_usec: u64,
    wall_usec: Option<u64>,
    cpu_usec: Option<u64>,
    memory_peak_bytes: Option<u64>,
    exit: End,
    command: &'a [String],
    words_left_out: usize,
    verdict: Option<Word>,
}

#[derive(Serialize)]
struct UserFields {
    user: Person,
    jobs: usize,
    exclusive_usec: u64,
    shared_usec: u64,
    waited_usec: u64,
    cpu_usec: u64,
}

fn job(uid: u32, line: &Line) -> JobFields<'_> {
    JobFields {
        user: Person::of(uid),
        job: &line.job,
        number: line.number,
        mode: line.mode,
        started: line.started,
        waited_usec: line.waited_usec,
        held_usec: line.held_usec,
        wall_usec: line.wall_usec,
        cpu_usec: line.cpu_usec,
        memory_peak_bytes: line.memory_peak_bytes,
        exit: line.exit,
        command: &line.command,
        words_left_out: line.words_left_out,
        verdict: line.verdict,
    }
}
