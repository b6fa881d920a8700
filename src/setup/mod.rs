//! What `--setup` puts on a machine beside the lock, and `--undo` takes away: files by which the lock returns at boot, users'
//! jobs get controllers, and services of the machine's own wait their turn; and the directory of the users' histories.
//!
//! # Theory of operation
//!
//! A plan is made first, from what is wanted and what is there: a list of [`Step`]s, each of which can be said before it is done
//! (`--dry-run`) and after it. What is there already makes no step, so that a second run changes nothing.
//!
//! A file that we wrote begins with [`MARK`] and a sum of the rest. One without it, or that was changed since, is somebody else's:
//! it is neither written over nor removed, and that is told, unless it says what is wanted. A package has the same files without
//! the mark below `/usr/lib`; where those are, none is written below `/etc`.
//!
//! A directory that is there becomes that of the histories only if nothing else is in it: others of the machine's are not for
//! everybody to write to. The histories are the users': while there is any, `--undo` leaves the directory, and says so.
//!
//! Everything is below a root directory: `/`, but in tests.

mod file;
pub mod unit;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::FileError;
use crate::history::{self, read::foreign_in};
use crate::lock::setup::{Change, Users};
use crate::text;
use file::{Found, found, marked, says_the_same};
pub use file::{MARK, only_root_can_change};

/// By which the lock returns at boot: tmpfiles.d(5).
const TMPFILES: &str = include_str!("../../config/tmpfiles.d/perflock.conf");

/// By which systemd gives a user's jobs every controller that a job can use.
const DELEGATION: &str = include_str!("../../config/systemd/user@.service.d/perflock.conf");

/// Where units are, the first one that has a unit wins: systemd.unit(5).
const UNIT_DIRECTORIES: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// Services that run now and then and disturb whoever measures, by the name that people know them by.
const KNOWN: [(&str, &[&str]); 2] = [
    ("apt-daily", &["apt-daily.service", "apt-daily-upgrade.service"]),
    ("updatedb", &["plocate-updatedb.service", "mlocate-updatedb.service", "mlocate.service", "updatedb.service"]),
];

/// What is wanted besides the lock.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// `/`, but in tests.
    pub root: &'a Path,
    /// Who may use the lock.
    pub users: Users,
    /// The lock is where the file for tmpfiles.d(5) makes one. Elsewhere than in /run it stays by itself.
    pub is_default: bool,
    /// Services that are to run under `pls`: `--tame`.
    pub tame: &'a [String],
    /// The `pls` that they are to run under.
    pub pls: &'a Path,
    /// The directory of the users' histories, if there are to be any.
    pub histories: Option<&'a Path>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a file.
    Write {
        /// Which.
        path: PathBuf,
        /// All of it.
        text: String,
        /// What it is good for.
        why: String,
        /// systemd must read its units again.
        unit: bool,
    },
    /// Remove a file that we wrote.
    Remove {
        /// Which.
        path: PathBuf,
        /// systemd must read its units again.
        unit: bool,
    },
    /// Make the directory of the users' histories, or set its permissions.
    Histories(Change),
    /// Remove that directory, which is empty.
    RemoveHistories(PathBuf),
}

impl Step {
    /// What was done.
    pub fn done(&self) -> String {
        self.said("wrote", "removed", Change::done)
    }

    /// What `--dry-run` says of it.
    pub fn planned(&self) -> String {
        self.said("would write", "would remove", Change::planned)
    }

    fn said(&self, write: &str, remove: &str, change: impl FnOnce(&Change) -> String) -> String {
        match self {
            Self::Write { path, why, .. } => format!("{write} {}: {why}", path.display()),
            Self::Remove { path, .. } | Self::RemoveHistories(path) => format!("{remove} {}", path.display()),
            Self::Histories(needed) => change(needed),
        }
    }

    /// Whether systemd must be told.
    pub fn is_unit(&self) -> bool {
        match self {
            Self::Write { unit, .. } | Self::Remove { unit, .. } => *unit,
            Self::Histories(_) | Self::RemoveHistories(_) => false,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn perform(&self) -> Result<(), FileError> {
        match self {
            Self::Write { path, text, .. } => file::write(path, text),
            Self::Remove { path, .. } => file::remove(path),
            Self::Histories(change) => {
                file::only_ours(change.path().parent().unwrap_or(Path::new("/")))?;
                change.make_directory()
            }
            Self::RemoveHistories(path) => fs::remove_dir(path).map_err(FileError::on("remove", path)),
        }
    }
}

/// What is to be done, and what was found that is to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// A line each.
    pub notes: Vec<String>,
}

impl Plan {
    /// What `wanted` needs on the machine that is below its root.
    ///
    /// # Errors
    /// A word of `--tame` that is no service here, or a service that cannot run under `pls`.
    pub fn make(wanted: &Wanted<'_>) -> Result<Self, String> {
        let mut plan = Self::default();
        let root = wanted.root;
        let why = "the lock returns at every boot";
        if !wanted.is_default {
            // Nothing to make at boot.
        } else if ["usr/lib/tmpfiles.d", "etc/tmpfiles.d"].iter().any(|directory| root.join(directory).is_dir()) {
            plan.wants(root, "tmpfiles.d/perflock.conf", &tmpfiles(wanted.users, wanted.histories), why, false);
        } else {
            plan.notes.push("nothing here makes files at boot (tmpfiles.d): run this again after each".to_owned());
        }
        if root.join("run/systemd/system").is_dir() {
            let why = "jobs of users who log in from now on can have cpusets, and their I/O counted";
            plan.wants(root, "systemd/system/user@.service.d/perflock.conf", DELEGATION, why, true);
        }
        if let Some(path) = wanted.histories {
            let path = root.join(path.strip_prefix("/").unwrap_or(path));
            let needed = Change::of_histories(&path, wanted.users).map_err(|error| error.to_string())?;
            if needed.is_some() && path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                let foreign = foreign_in(&path).map_err(|error| error.to_string())?;
                refuse_foreign(&path, &foreign)?;
            }
            plan.steps.extend(needed.map(Step::Histories));
        }
        for word in wanted.tame {
            plan.tame(wanted, word)?;
        }
        Ok(plan)
    }

    /// What `--undo` removes: every file that bears our mark, and the directory of histories if there is none in it.
    pub fn undo(root: &Path, histories: &Path) -> Self {
        let mut plan = Self::default();
        let units = root.join("etc/systemd/system");
        let mut drop_ins: Vec<PathBuf> = fs::read_dir(&units)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "d"))
            .map(|path| path.join("perflock.conf"))
            .collect();
        drop_ins.sort();
        let tmpfiles = root.join("etc/tmpfiles.d/perflock.conf");
        let all = [(tmpfiles, false)].into_iter().chain(drop_ins.into_iter().map(|path| (path, true)));
        for (path, unit) in all {
            match found(&path) {
                Found::Ours(_) => plan.steps.push(Step::Remove { path, unit }),
                Found::Edited => plan.notes.push(edited(&path)),
                Found::Theirs(_) => plan.notes.push(left_alone(&path)),
                Found::Missing => {}
            }
        }
        // An earlier set-up may have made the default one.
        let default = Some(Path::new(history::DIRECTORY)).filter(|default| *default != histories);
        for directory in [histories].into_iter().chain(default) {
            plan.undo_histories(root.join(directory.strip_prefix("/").unwrap_or(directory)));
        }
        plan
    }

    fn undo_histories(&mut self, path: PathBuf) {
        match fs::read_dir(&path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => self.steps.push(Step::RemoveHistories(path)),
            Ok(false) if foreign_in(&path).is_ok_and(|foreign| foreign.is_empty()) => self.notes.push(format!(
                "{} has users' histories in it, and stays; if nobody needs them: rm -r {0}",
                path.display()
            )),
            Ok(false) => self.notes.push(left_alone(&path)),
            // There is none, or it is not ours to look into, let alone to remove.
            Err(_) => {}
        }
    }

    /// Plans a file below `etc`, unless it or the package's is there.
    fn wants(&mut self, root: &Path, name: &str, content: &str, why: &str, unit: bool) {
        let packaged = fs::read_to_string(root.join("usr/lib").join(name));
        let is_packaged = packaged.is_ok_and(|there| says_the_same(&there, content));
        let (path, text) = (root.join("etc").join(name), marked(content));
        match found(&path) {
            Found::Ours(there) | Found::Theirs(there) if says_the_same(&there, content) => {}
            // It would hide the package's.
            Found::Ours(_) if is_packaged => self.steps.push(Step::Remove { path, unit }),
            Found::Missing if is_packaged => {}
            Found::Ours(_) | Found::Missing => {
                self.steps.push(Step::Write { path, text, why: why.to_owned(), unit });
            }
            Found::Edited => self.notes.push(edited(&path)),
            Found::Theirs(_) => self.notes.push(left_alone(&path)),
        }
    }

    fn tame(&mut self, wanted: &Wanted<'_>, word: &str) -> Result<(), String> {
        let own;
        let names = match KNOWN.iter().find(|(known, _)| *known == word) {
            Some((_, names)) => *names,
            None if word.ends_with(".service") && !word.contains('/') => {
                own = [word];
                &own[..]
            }
            None => return Err(format!("--tame takes apt-daily, updatedb, or the name of a service: not {word:?}")),
        };
        let mut any = false;
        for name in names {
            let Some(file) = unit_file(wanted.root, name) else { continue };
            any = true;
            let stays = |why| format!("{name} stays as it is: {why}");
            let text = whole_unit(wanted.root, name, &file).map_err(stays)?;
            let tamed = unit::under_pls(&text, wanted.pls).map_err(stays)?;
            if let Some(tamed) = tamed {
                let why = format!("{name} runs under pls, and waits while somebody has the machine alone");
                let path = format!("systemd/system/{name}.d/perflock.conf");
                self.wants(wanted.root, &path, &tamed, &why, true);
            }
        }
        if !any {
            self.notes.push(format!("there is no {} here", names.join(", nor ")));
        }
        Ok(())
    }
}

/// A unit's file, if it has one. A link to /dev/null, which masks a unit, is none.
fn unit_file(root: &Path, name: &str) -> Option<PathBuf> {
    let mut all = UNIT_DIRECTORIES.iter().map(|directory| root.join(directory).join(name));
    all.find(|path| path.symlink_metadata().is_ok()).filter(|path| path.is_file())
}

/// A unit's file with the drop-ins of others behind it, in systemd's order: those of one name hide each other as units do.
fn whole_unit(root: &Path, name: &str, file: &Path) -> Result<String, String> {
    let mut drop_ins = BTreeMap::new();
    for directory in UNIT_DIRECTORIES {
        let entries = fs::read_dir(root.join(directory).join(format!("{name}.d"))).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "conf")) {
            drop_ins.entry(path.file_name().unwrap_or_default().to_owned()).or_insert(path);
        }
    }
    drop_ins.remove(OsStr::new("perflock.conf"));
    let read = |path: &Path| fs::read_to_string(path).map_err(|error| FileError::on("read", path)(error).to_string());
    let mut whole = read(file)?;
    for (name, path) in drop_ins {
        let text = read(&path)?;
        if *name > *OsStr::new("perflock.conf") && unit::has_command(&text) {
            return Err(format!("{} says what it runs, after perflock.conf would", path.display()));
        }
        whole.push('\n');
        whole.push_str(&text);
    }
    Ok(whole)
}

/// Refuses a directory in which something is that is no user's history.
fn refuse_foreign(path: &Path, foreign: &[OsString]) -> Result<(), String> {
    let Some(first) = foreign.first() else { return Ok(()) };
    let more = if foreign.len() > 1 { format!(" and {} more", foreign.len() - 1) } else { String::new() };
    Err(format!(
        "{} is not perflock's: it holds {}{more}; choose another history.directory",
        path.display(),
        text::escape(&first.to_string_lossy())
    ))
}

/// The file for tmpfiles.d(5): for everybody as it is, for one group with its number and modes; with the directory of histories
/// that there is to be, if any.
fn tmpfiles(users: Users, histories: Option<&Path>) -> String {
    let line = format!("{} 1777 root root -", history::DIRECTORY);
    let own = match histories {
        Some(path) => TMPFILES.replace(&line, &format!("{} 1777 root root -", tmpfiles_word(path))),
        None => TMPFILES.replace(&format!("d {line}\n"), "").replace(", and the users' histories", ""),
    };
    match users {
        Users::Group(gid) => own
            .replace("0666 root root", &format!("0660 root {gid}"))
            .replace("perflock.d   1777 root root", &format!("perflock.d   3775 root {gid}"))
            .replace("1777 root root", &format!("1770 root {gid}")),
        Users::All | Users::Own => own,
    }
}

/// A path as a word of tmpfiles.d(5), which has C escapes, quotes and `%` for specifiers.
fn tmpfiles_word(path: &Path) -> String {
    let escaped = |c: char| match c {
        '%' => "%%".to_owned(),
        ' ' | '\\' | '"' | '\'' => format!("\\x{:02x}", u32::from(c)),
        c if c.is_ascii_control() => format!("\\x{:02x}", u32::from(c)),
        c => c.to_string(),
    };
    path.to_string_lossy().chars().map(escaped).collect()
}

fn left_alone(path: &Path) -> String {
    format!("{} is not of perflock's making, and stays as it is", path.display())
}

fn edited(path: &Path) -> String {
    format!(
        "{} was changed since perflock wrote it, and stays as it is; remove it if you do not need it",
        path.display()
    )
}

#[cfg(test)]
mod tests;
