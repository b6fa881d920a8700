use super::*;
use std::os::unix::fs::MetadataExt as _;

const HISTORIES: &str = "/var/lib/perflock";

/// A machine with systemd, whose apt is Debian's.
fn machine() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in ["usr/lib/tmpfiles.d", "run/systemd/system", "usr/lib/systemd/system", "etc/systemd/system"] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    let unit = "[Service]\nType=oneshot\nExecStart=/usr/lib/apt/apt.systemd.daily update\n";
    fs::write(root.path().join("usr/lib/systemd/system/apt-daily.service"), unit).unwrap();
    root
}

fn plan(root: &Path, users: Users, tame: &[&str]) -> Result<Plan, String> {
    let tame: Vec<String> = tame.iter().map(|&word| word.to_owned()).collect();
    let (pls, histories) = (Path::new("/usr/bin/pls"), Some(Path::new(HISTORIES)));
    let mut plan = Plan::make(&Wanted { root, users, is_default: true, tame: &tame, pls, histories })?;
    // Those have tests of their own.
    plan.steps.retain(|step| !matches!(step, Step::Histories(_)));
    Ok(plan)
}

fn perform(plan: &Plan) {
    for step in &plan.steps {
        step.perform().unwrap();
    }
}

/// Every file below `etc`.
fn files(root: &Path) -> Vec<String> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), found),
                false => found.push(entry.path()),
            }
        }
    }
    let mut found = Vec::new();
    walk(&root.join("etc"), &mut found);
    let mut names: Vec<String> =
        found.iter().map(|path| path.strip_prefix(root).unwrap().display().to_string()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_written_once_and_undone() {
    let root = machine();
    let first = plan(root.path(), Users::All, &["apt-daily"]).unwrap();
    assert_eq!(first.notes, [] as [&str; 0]);
    perform(&first);
    let all = [
        "etc/systemd/system/apt-daily.service.d/perflock.conf",
        "etc/systemd/system/user@.service.d/perflock.conf",
        "etc/tmpfiles.d/perflock.conf",
    ];
    assert_eq!(files(root.path()), all);
    let packaged = [
        include_str!("../../config/systemd/apt-daily.service.d/perflock.conf"),
        include_str!("../../config/systemd/user@.service.d/perflock.conf"),
    ];
    for (file, packaged) in all.iter().zip(packaged) {
        assert_eq!(fs::read_to_string(root.path().join(file)).unwrap(), marked(packaged));
    }
    assert_eq!(plan(root.path(), Users::All, &["apt-daily"]).unwrap(), Plan::default());
    // Others' files in the same directories stay, with the directories.
    fs::write(root.path().join("etc/systemd/system/apt-daily.service.d/own.conf"), "").unwrap();
    perform(&Plan::undo(root.path(), Path::new(HISTORIES)));
    assert_eq!(files(root.path()), ["etc/systemd/system/apt-daily.service.d/own.conf"]);
    assert!(!root.path().join("etc/systemd/system/user@.service.d").exists());
    assert_eq!(Plan::undo(root.path(), Path::new(HISTORIES)), Plan::default());
}

#[test]
fn another_group_s_lock_is_written_anew() {
    let root = machine();
    perform(&plan(root.path(), Users::All, &[]).unwrap());
    let changed = plan(root.path(), Users::Group(77), &[]).unwrap();
    let [Step::Write { text, .. }] = &changed.steps[..] else { panic!("{changed:?}") };
    assert!(text.contains("f /run/perflock     0660 root 77 -\nd /run/perflock.d   3775 root 77 -\nd /var/lib/perflock 1770 root 77 -\n"), "{text}");
}

#[test]
fn a_file_without_our_mark_is_left_alone() {
    let root = machine();
    let path = root.path().join("etc/tmpfiles.d/perflock.conf");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let theirs = "f /run/perflock 0600 me me -\n";
    let elsewhere = root.path().join("elsewhere");
    for link in [false, true] {
        let text = if link { marked(theirs) } else { theirs.to_owned() };
        fs::write(if link { &elsewhere } else { &path }, text).unwrap();
        if link {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        }
        for plan in [plan(root.path(), Users::All, &[]).unwrap(), Plan::undo(root.path(), Path::new(HISTORIES))] {
            assert_eq!(plan.notes, [left_alone(&path)]);
            assert!(plan.steps.iter().all(|step| !step.planned().contains("tmpfiles")), "{plan:?}");
        }
    }
}

#[test]
fn what_a_package_brought_is_not_written_again() {
    let root = machine();
    for (path, text) in [("tmpfiles.d", TMPFILES), ("systemd/system/user@.service.d", DELEGATION)] {
        let directory = root.path().join("usr/lib").join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("perflock.conf"), text).unwrap();
    }
    assert_eq!(plan(root.path(), Users::All, &[]).unwrap(), Plan::default());
    // One for a group is another, and hides it.
    let group = plan(root.path(), Users::Group(7), &[]).unwrap();
    assert_eq!(group.steps.len(), 1);
    perform(&group);
    let path = root.path().join("etc/tmpfiles.d/perflock.conf");
    let back = plan(root.path(), Users::All, &[]).unwrap();
    assert_eq!(back.steps, [Step::Remove { path: path.clone(), unit: false }]);
    perform(&back);
    assert!(!path.exists());
}

#[test]
fn what_was_changed_since_is_left_alone() {
    let root = machine();
    perform(&plan(root.path(), Users::All, &[]).unwrap());
    let path = root.path().join("etc/tmpfiles.d/perflock.conf");
    let changed = fs::read_to_string(&path).unwrap().replace("0666", "0600");
    fs::write(&path, &changed).unwrap();
    for plan in [plan(root.path(), Users::All, &[]).unwrap(), Plan::undo(root.path(), Path::new(HISTORIES))] {
        assert_eq!(plan.notes, [edited(&path)]);
        perform(&plan);
        assert_eq!(fs::read_to_string(&path).unwrap(), changed);
    }
    // Theirs is as good as ours where it says the same.
    fs::write(&path, "# mine\nd /run/perflock.d 1777 root root -\n").unwrap();
    assert_eq!(plan(root.path(), Users::All, &[]).unwrap().notes, [left_alone(&path)]);
    fs::write(&path, format!("# mine\n\n{}", TMPFILES.replace("   ", "\t"))).unwrap();
    assert_eq!(plan(root.path(), Users::All, &[]).unwrap().notes, [] as [&str; 0]);
}

#[test]
fn an_administrator_s_drop_in_keeps_its_command() {
    let root = machine();
    let directory = |above: &str| root.path().join(above).join("systemd/system/apt-daily.service.d");
    for (above, name, command) in
        [("usr/lib", "a.conf", "/hidden"), ("etc", "a.conf", "/other"), ("run", "b.txt", "/no")]
    {
        fs::create_dir_all(directory(above)).unwrap();
        fs::write(directory(above).join(name), format!("[Service]\nExecStart=\nExecStart={command}\n")).unwrap();
    }
    let tamed = plan(root.path(), Users::All, &["apt-daily"]).unwrap();
    perform(&tamed);
    let text = fs::read_to_string(directory("etc").join("perflock.conf")).unwrap();
    assert!(text.contains("ExecStart=\nExecStart=/usr/bin/pls --quiet --leftovers wait -- /other\n"), "{text}");
    assert_eq!(plan(root.path(), Users::All, &["apt-daily"]).unwrap(), Plan::default());
    fs::write(directory("etc").join("z.conf"), "[Service]\nNice=3\n").unwrap();
    assert_eq!(plan(root.path(), Users::All, &["apt-daily"]).unwrap(), Plan::default());
    fs::write(directory("etc").join("z.conf"), "[Service]\nExecStart=/last\n").unwrap();
    let why = plan(root.path(), Users::All, &["apt-daily"]).unwrap_err();
    assert!(why.ends_with("z.conf says what it runs, after perflock.conf would"), "{why}");
}

#[test]
fn a_machine_without_systemd_is_told_what_it_lacks() {
    let root = tempfile::tempdir().unwrap();
    let found = plan(root.path(), Users::All, &["updatedb"]).unwrap();
    assert_eq!(found.steps, []);
    assert_eq!(
        found.notes,
        [
            "nothing here makes files at boot (tmpfiles.d): run this again after each",
            "there is no plocate-updatedb.service, nor mlocate-updatedb.service, nor mlocate.service, nor \
             updatedb.service here"
        ]
    );
}

#[test]
fn a_service_that_cannot_run_under_pls_is_an_error() {
    let root = machine();
    let units = root.path().join("usr/lib/systemd/system");
    fs::write(units.join("own.service"), "[Service]\nType=notify\nExecStart=/bin/x\n").unwrap();
    let why = plan(root.path(), Users::All, &["own.service"]).unwrap_err();
    assert_eq!(why, "own.service stays as it is: it is a daemon (Type=notify), and no job that ends");
    for word in ["apt", "../x.service", ""] {
        assert!(plan(root.path(), Users::All, &[word]).unwrap_err().starts_with("--tame takes "), "{word}");
    }
    // Masked.
    std::os::unix::fs::symlink("/dev/null", root.path().join("etc/systemd/system/own.service")).unwrap();
    assert_eq!(plan(root.path(), Users::All, &["own.service"]).unwrap().notes, ["there is no own.service here"]);
}

#[test]
fn histories_have_a_directory_that_goes_when_it_is_empty() {
    let root = machine();
    fs::create_dir_all(root.path().join("var/lib")).unwrap();
    let directory = root.path().join("var/lib/perflock");
    let (tame, pls, histories) = (&[][..], Path::new("/usr/bin/pls"), Some(Path::new(HISTORIES)));
    let wanted = |users| {
        let wanted = Wanted { root: root.path(), users, is_default: false, tame, pls, histories };
        let steps = Plan::make(&wanted).unwrap().steps;
        steps.into_iter().filter(|step| matches!(step, Step::Histories(_))).collect::<Vec<_>>()
    };
    let said = |steps: &[Step]| steps.iter().map(|step| (step.planned(), step.done())).collect::<Vec<_>>();
    let mode = || fs::metadata(&directory).unwrap().mode() & 0o7777;
    let both = |what: &str, would: &str, end: &str| {
        let path = directory.display();
        vec![(format!("{would} {path} ({end})"), format!("{what} {path} ({end})"))]
    };
    let first = wanted(Users::All);
    assert_eq!(said(&first), both("created", "would create", "mode 1777"));
    first[0].perform().unwrap();
    assert_eq!(mode(), 0o1777);
    assert_eq!(wanted(Users::All), []);
    let gid = rustix::process::getegid().as_raw();
    let group = wanted(Users::Group(gid));
    let permissions = ("set the permissions of", "would set the permissions of");
    assert_eq!(said(&group), both(permissions.0, permissions.1, &format!("group {gid}, mode 1770")));
    group[0].perform().unwrap();
    assert_eq!(mode(), 0o1770);
    // With somebody's history in it, it stays.
    fs::write(directory.join("1000.jsonl"), "x").unwrap();
    let kept = Plan::undo(root.path(), Path::new(HISTORIES));
    assert_eq!(kept.steps, []);
    assert!(kept.notes[0].starts_with(&format!("{} has users' histories in it", directory.display())), "{kept:?}");
    fs::remove_file(directory.join("1000.jsonl")).unwrap();
    let undone = Plan::undo(root.path(), Path::new(HISTORIES));
    assert_eq!(undone.steps, [Step::RemoveHistories(directory.clone())]);
    perform(&undone);
    assert!(!directory.exists());
    // A link that somebody put there is refused, not followed.
    std::os::unix::fs::symlink(root.path().join("etc"), &directory).unwrap();
    assert!(wanted(Users::All)[0].perform().is_err());
    assert_ne!(fs::metadata(root.path().join("etc")).unwrap().mode() & 0o7777, 0o1777);
}

#[test]
fn a_directory_with_anything_else_in_it_is_not_the_histories() {
    let root = machine();
    let directory = root.path().join("var/log");
    fs::create_dir_all(&directory).unwrap();
    let (tame, pls, histories) = (&[][..], Path::new("/usr/bin/pls"), Some(Path::new("/var/log")));
    let make = || Plan::make(&Wanted { root: root.path(), users: Users::All, is_default: true, tame, pls, histories });
    let change = |plan: &Plan| plan.steps.iter().filter(|step| matches!(step, Step::Histories(_))).count();
    assert_eq!(change(&make().unwrap()), 1);
    fs::write(directory.join("1000.jsonl"), "x").unwrap();
    fs::write(directory.join("1000.jsonl.1"), "x").unwrap();
    assert_eq!(change(&make().unwrap()), 1);
    fs::write(directory.join("syslog"), "x").unwrap();
    let why = |what: &str| {
        format!("{} is not perflock's: it holds {what}; choose another history.directory", directory.display())
    };
    assert_eq!(make().unwrap_err(), why("syslog"));
    fs::create_dir(directory.join("7.jsonl")).unwrap();
    assert_eq!(make().unwrap_err(), why("7.jsonl and 1 more"));
    // Nobody is told to remove it either.
    assert_eq!(Plan::undo(root.path(), Path::new("/var/log")).notes, [left_alone(&directory)]);
}

#[test]
fn the_file_for_boot_has_the_histories_that_there_are_to_be() {
    assert_eq!(tmpfiles(Users::All, Some(Path::new(history::DIRECTORY))), TMPFILES);
    let lines = |users, histories: Option<&str>| {
        let text = tmpfiles(users, histories.map(Path::new));
        text.lines().skip(3).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(Users::All, Some("/srv/a %b")), [r"d /srv/a\x20%%b 1777 root root -"]);
    assert_eq!(lines(Users::Group(7), Some("/srv/h")), ["d /srv/h 1770 root 7 -"]);
    let none = tmpfiles(Users::Group(7), None);
    assert_eq!(lines(Users::Group(7), None), [] as [&str; 0]);
    assert!(none.contains("f /run/perflock     0660 root 7 -\n") && !none.contains("histories"), "{none}");
}

#[test]
fn undo_looks_at_the_default_directory_too() {
    let root = machine();
    let all = ["srv/h", "var/lib/perflock"].map(|path| root.path().join(path));
    for directory in &all {
        fs::create_dir_all(directory).unwrap();
    }
    let undone = Plan::undo(root.path(), Path::new("/srv/h"));
    assert_eq!(undone.steps, all.map(Step::RemoveHistories));
}
