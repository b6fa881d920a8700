//! `--setup` and `--undo`: the machine's lock, and what goes with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Error, Here};
use crate::cli::RunArgs;
use crate::exit::Ending;
use crate::history::Size;
use crate::lock::undo::Undone;
use crate::lock::{Ahead, Lock, LockError, Other, Seen, outsiders, setup};
use crate::say::Say;
use crate::settings::{LOCK, Settings, program};
use crate::setup::{Plan, Step, Wanted};
use crate::{orphan, report, text};

/// `--setup`. A lock that `is_named`, on the command line or by the environment, is a file and a directory; what goes with the
/// machine's own is the machine's.
pub(super) fn set_up(settings: &Settings, args: &RunArgs, is_named: bool, say: &Say) -> Result<Ending, Error> {
    let users = match &args.group {
        // Whoever repairs a group's lock does not mean to give it to everybody.
        None => setup::users_of(&settings.lock).unwrap_or(setup::Users::All),
        Some(group) => {
            let unknown =
                || Error::Usage(format!("there is no group {}; make it with: groupadd {group}", text::escape(group)));
            setup::Users::Group(crate::user::group_id(group).ok_or_else(unknown)?)
        }
    };
    let is_default = settings.lock == Path::new(LOCK);
    let is_the_machine_s = is_default || !is_named;
    if !is_the_machine_s && !args.tame.is_empty() {
        return Err(Error::Usage(
            "--tame is for the machine's own lock: services of the machine's use no other".to_owned(),
        ));
    }
    let plan = match is_the_machine_s {
        true => {
            let pls = program("pls").unwrap_or_else(|| PathBuf::from("/usr/bin/pls"));
            if !args.tame.is_empty() {
                crate::setup::only_root_can_change(&pls).map_err(Error::Refused)?;
            }
            let histories = match settings.history.size {
                Size::Nothing => None,
                Size::Bytes(_) => Some(&*settings.history.directory),
            };
            let wanted = Wanted { root: Path::new("/"), users, is_default, tame: &args.tame, pls: &pls, histories };
            Plan::make(&wanted).map_err(Error::Refused)?
        }
        false => Plan::default(),
    };
    let changes = match args.dry_run {
        true => setup::would_set_up(&settings.lock, users)?,
        false => setup::set_up(&settings.lock, users, true)?,
    };
    for change in &changes {
        say.note(&if args.dry_run { change.planned() } else { change.done() });
    }
    perform(&plan, args.dry_run, say)?;
    if changes.is_empty() && plan.steps.is_empty() {
        let (lock, nothing) = (settings.lock.display(), if args.dry_run { "would be" } else { "was" });
        say.note(&format!("{lock} is already set up; nothing {nothing} changed"));
    }
    Ok(Ending::Code(0))
}

/// `--undo`: refuses while anybody uses the machine.
pub(super) fn undo(settings: &Settings, dry_run: bool, is_named: bool, say: &Say) -> Result<Ending, Error> {
    let is_the_machine_s = settings.lock == Path::new(LOCK) || !is_named;
    let plan = if is_the_machine_s { Plan::undo(Path::new("/"), &settings.history.directory) } else { Plan::default() };
    let lock = match Lock::open(&settings.lock) {
        Ok(lock) => Some(lock),
        Err(LockError::Missing(_)) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(lock) = &lock {
        let here = Here::look()?;
        let mut spent =
            |seen: &Seen, record: &_| orphan::is_spent(seen, record, &here.boot, &here.proc, &here.mountinfo);
        match lock.take_away(dry_run, &mut spent)? {
            Undone::Busy(users) => {
                let in_use = in_use(lock, &users, &here);
                let not_undone = if dry_run { "would not be undone now" } else { "not undone" };
                say.wrong(&format!("{not_undone}: the machine is in use{in_use}"));
                return Ok(Ending::Code(settings.conflict_exit_code));
            }
            Undone::Gone(paths) => {
                let removed = if dry_run { "would remove" } else { "removed" };
                for path in paths {
                    say.note(&format!("{removed} {}", path.display()));
                }
            }
        }
    }
    perform(&plan, dry_run, say)?;
    if lock.is_none() && plan.steps.is_empty() {
        say.note(&format!("{} is not set up; nothing was changed", settings.lock.display()));
    }
    Ok(Ending::Code(0))
}

/// Who uses the lock, to follow a message.
fn in_use(lock: &Lock, users: &[Seen], here: &Here) -> String {
    let jobs: Vec<Other> = users.iter().filter_map(Other::seen).collect();
    let supervisors: Vec<i32> = jobs.iter().map(|job| job.record.joined.pid).collect();
    let (holders, waiters): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.record.granted_usec.is_some());
    let first = if holders.is_empty() { waiters } else { holders };
    let ahead = Ahead { jobs: users.len(), exact: true, holders: first, ..Ahead::default() };
    let ours: Vec<i32> = supervisors.into_iter().chain([std::process::id().cast_signed()]).collect();
    let outside = || outsiders::outsiders(&here.proc, &lock.file, &ours).unwrap_or_default();
    report::in_the_way(&ahead, &|record| here.login_uid(record), &outside).replacen(" behind ", " by ", 1)
}

/// Does what is planned, and says so. systemd is told of its units once.
fn perform(plan: &Plan, dry_run: bool, say: &Say) -> Result<(), Error> {
    for note in &plan.notes {
        say.note(note);
    }
    for step in &plan.steps {
        if dry_run {
            say.note(&step.planned());
            continue;
        }
        step.perform()?;
        say.note(&step.done());
    }
    if !dry_run && plan.steps.iter().any(Step::is_unit) && Path::new("/run/systemd/system").is_dir() {
        let told = Command::new("systemctl").arg("daemon-reload").stdin(Stdio::null()).status();
        if !told.is_ok_and(|status| status.success()) {
            return Err(Error::Refused(
                "systemd was not told of its new units; run: systemctl daemon-reload".to_owned(),
            ));
        }
    }
    Ok(())
}
