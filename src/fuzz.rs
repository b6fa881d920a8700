//! Every parser of a file that another user or the kernel writes, for fuzzing: each takes any bytes, must not panic, and
//! what it makes of them must hold. `tests/fuzz` has a target and a corpus for each; the corpus is a test of this module.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};
use std::time::Instant;

use unicode_width::UnicodeWidthStr as _;

use crate::cgroup::controller::Controller;
use crate::cgroup::{GroupError, Population, bus, detect, systemd, usage, v1, v2};
use crate::config::Config;
use crate::history::line::{LONGEST, Line, kept_of};
use crate::history::{Commands, read};
use crate::job::JobId;
use crate::lock::record::{self, Joined, Record};
use crate::lock::ticket;
use crate::pin::cpulist::MOST;
use crate::pin::{CpuList, Words};
use crate::{diff, nested, procfs, text};

/// A parser under test.
pub type Target = fn(&[u8]);

/// All of them, by the names of their targets.
pub const TARGETS: [(&str, Target); 14] = [
    ("ticket", ticket),
    ("history", history),
    ("names", names),
    ("proc_stat", proc_stat),
    ("proc_cgroup", proc_cgroup),
    ("proc_locks", proc_locks),
    ("counters", counters),
    ("mountinfo", mountinfo),
    ("bus_frame", bus_frame),
    ("bus_words", bus_words),
    ("config", config),
    ("words", words),
    ("cpulist", cpulist),
    ("report", report),
];

/// A ticket's text. A last line without an end changes nothing; what a ticket keeps of a command and a message fits.
pub fn ticket(bytes: &[u8]) {
    let record = Record::parse(bytes);
    if bytes.last().is_none_or(|&last| last == b'\n') {
        assert_eq!(Record::parse(&[bytes, b"{\"event\":\"releasing\""].concat()), record);
    }
    if let Some(record) = record {
        let longer = Record::parse(&[bytes, b"\n{\"event\":\"stopped\"}\n"].concat());
        assert!(longer.is_some_and(|longer| longer.stopped && longer.joined == record.joined));
    }
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let command = Joined::fit_command(&words);
    assert!(command.len() <= words.len() && command.concat().len() <= record::MAX_COMMAND + '…'.len_utf8());
    assert!(Joined::fit_message(&text).len() <= record::MAX_MESSAGE + '…'.len_utf8());
    // Six bytes for a control character, and three for a word that is empty.
    let line = serde_json::to_vec(&(command, Joined::fit_message(&text))).unwrap_or_default();
    assert!((line.len() as u64) < record::MAX_SIZE / 2);
}

/// A user's history. What is taken for a line is written and read again as it is, and a line of ours behind it is found.
pub fn history(bytes: &[u8]) {
    let read = |mut text: &[u8]| {
        let mut found = Vec::new();
        let passed_over = read::lines(&mut text, &|_| true, &mut |line| found.push(line)).unwrap_or(usize::MAX);
        (found, passed_over)
    };
    let (found, passed_over) = read(bytes);
    assert!(passed_over + found.len() <= 2 * bytes.split(|&b| b == b'\n').count());
    // What a line leaves out is written as nothing.
    for (line, text) in found.iter().map(|line| (line, line.to_text())).filter(|(_, text)| text.len() <= LONGEST) {
        let again = Line { started: line.started, ..read(&text).0.remove(0) };
        assert_eq!((&again, line.ended() >= line.started), (line, true));
    }
    let last = found.last().map(|last| (last, [bytes, &last.to_text()].concat()));
    if let Some((last, text)) = last.filter(|(_, text)| text.len() <= LONGEST) {
        assert_eq!(read(&text).0.last().map(|line| &line.job), Some(&last.job));
    }
    let words: Vec<String> = String::from_utf8_lossy(bytes).split(' ').map(str::to_owned).collect();
    for commands in [Commands::Short, Commands::Full] {
        let (kept, left_out) = kept_of(&words, commands);
        assert_eq!(kept.len() + left_out, words.len());
    }
}

/// Names of tickets, jobs and groups: each has one spelling.
pub fn names(bytes: &[u8]) {
    if let Some(entry) = ticket::parse_file_name(bytes) {
        assert_eq!(ticket::file_name(entry).as_bytes(), bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<JobId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Some((pid, started_usec)) = nested::parse_group_name(&text) {
        assert_eq!(nested::group_name(pid.cast_unsigned(), started_usec), text);
    }
    for id in JobId::in_group_path(Path::new(&*text)) {
        assert!(text.contains(&id.group_name()));
    }
}

/// `/proc/PID/stat`.
pub fn proc_stat(bytes: &[u8]) {
    if let Some(stat) = procfs::parse_stat(bytes) {
        assert!(stat.state.is_ascii_alphabetic());
    }
}

/// `/proc/PID/cgroup`: one line's path, as it is but for the kernel's mark.
pub fn proc_cgroup(bytes: &[u8]) {
    if let Some(path) = procfs::parse_cgroup_v1(bytes, "cpuset") {
        let line = [b":".as_slice(), path.as_os_str().as_bytes()].concat();
        assert!(bytes.split(|&b| b == b'\n').any(|whole| whole.ends_with(&line)));
    }
    if let Some(path) = procfs::parse_cgroup_v2(bytes) {
        let path = path.as_os_str().as_bytes();
        assert!(bytes.split(|&b| b == b'\n').any(|line| {
            line.strip_prefix(b"0::").is_some_and(|whole| whole == path || whole == [path, b" (deleted)"].concat())
        }));
    }
}

/// `/proc/locks`.
pub fn proc_locks(bytes: &[u8]) {
    let lines = bytes.split(|&b| b == b'\n').count();
    assert!(procfs::parse_locks(bytes, rustix::fs::makedev(0xfe, 0), 99).len() <= lines);
}

/// A group's counters. Only a clear zero says that it is empty.
pub fn counters(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for (_, _, key) in usage::SOURCES {
        let _ = usage::keyed(&text, key);
        let devices = text.lines().filter(|line| line.contains(key)).count();
        assert!(devices > 0 || usage::over_devices(&text, key) == 0);
    }
    assert!(usage::stall(&text).is_none() || text.contains("some ") && text.contains("total="));
    let zero = |line: &str| line.strip_prefix("populated ").is_some_and(|value| value.trim().parse() == Ok(0));
    assert!(v2::parse_population(&text) == Population::Populated || text.lines().any(zero));
}

/// `/proc/self/mountinfo`, and a path from a ticket behind its first empty line. What is found leads nowhere else, and a path
/// that no group can have is no reason to keep the machine.
pub fn mountinfo(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (mounts, path) = text.split_once("\n\n").unwrap_or((&text, "/a/perflock-1"));
    // Nobody's group of this name is there, wherever that would be.
    v1::remove_named(Path::new(path), Controller::Cpuset, "perflock-1", u32::MAX, mounts);
    if let Some(found) = v1::locate(mounts, Path::new(path), Controller::Cpuset) {
        assert!(found.is_plain() && found.directory().starts_with(&found.mount));
    }
    if let Ok(found) = detect::locate(mounts, Path::new(path)) {
        assert!(found.relative.components().all(|part| matches!(part, Component::Normal(_))));
        let nowhere = v2::Location { mount: "/dev/null".into(), ..found };
        assert!(matches!(v2::Group::adopt(nowhere, 0), Ok(None) | Err(GroupError::Refused { .. })));
    }
}

/// The head of a message from a bus.
pub fn bus_frame(bytes: &[u8]) {
    if let Some(head) = bytes.get(..bus::FIXED)
        && let Ok((_, length)) = bus::frame(head)
    {
        assert!((bus::FIXED..=bus::LONGEST).contains(&length));
    }
}

/// An address of a bus from the environment, and a bus's own words, which reach the terminal escaped.
pub fn bus_words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if let Some(path) = systemd::unix_path(&text) {
        assert!(text.contains(&*path.to_string_lossy()) && !path.as_os_str().as_bytes().contains(&b','));
    }
    let (name, words) = text.split_once('\n').unwrap_or((&text, ""));
    for error in [bus::BusError::Refused(name.to_owned(), words.to_owned()), bus::BusError::Broken(text.clone())] {
        assert!(!systemd::explain(&error).chars().any(char::is_control));
    }
}

/// A configuration file. What is said of it is one line without control characters, and names the file and a line of it.
pub fn config(bytes: &[u8]) {
    let (mut config, mut said) = (Config::default(), Vec::new());
    let text = String::from_utf8_lossy(bytes);
    let result = config.apply(Path::new("f.toml"), &text, &mut said);
    said.extend(result.err().map(|error| error.to_string()));
    for line in said {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        let number = line.strip_prefix("f.toml:").and_then(|rest| rest.split_once(": ")?.0.parse::<usize>().ok());
        assert!(number.is_some_and(|number| (1..=text.split('\n').count()).contains(&number)), "{line:?}");
    }
    assert!(config.lock.is_none_or(|lock| lock.is_absolute()));
}

/// Whatever others write is shown without control characters, in no more columns than there are.
pub fn words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let shown = text::command_line(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
    assert!(!shown.chars().any(char::is_control));
    for columns in [0, 1, 2, 12, 80] {
        let cut = text::cut(&shown, columns);
        assert!(cut.width() <= columns && (cut == shown || shown.starts_with(cut.trim_end_matches('…'))));
    }
    let safe = text::escape(&text);
    assert!(!safe.chars().any(char::is_control) && text::escape(&safe) == safe);
    if let Ok(duration) = text::parse_duration(&text) {
        assert!(Instant::now().checked_add(duration).is_some());
    }
}

/// A list of processors: somebody else's in a ticket, the kernel's, or typed. It has one spelling, and is no longer than a
/// machine's.
pub fn cpulist(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(list) = text.parse::<CpuList>() {
        assert_eq!(list.to_string().parse(), Ok(list.clone()));
        assert!(list.len() <= MOST as usize && list.mask_bytes().len() <= MOST as usize / 8);
        assert_eq!(list.iter().count(), list.len());
    }
    if let Err(why) = Words::parse(&text) {
        assert!(!why.chars().any(char::is_control), "{why:?}");
    }
}

/// Two reports with an empty line between them, or one beside itself: told to be none, or compared, in both directions alike.
pub fn report(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (first, second) = text.split_once("\n\n").unwrap_or((&text, &text));
    match (diff::read::parse(first.as_bytes()), diff::read::parse(second.as_bytes())) {
        (Ok(first), Ok(second)) => {
            let (there, back) = (diff::compare(&first, &second), diff::compare(&second, &first));
            let mirrored = |(one, other): (&diff::Difference, &diff::Difference)| {
                one.what == other.what && (&one.first, &one.second) == (&other.second, &other.first)
            };
            assert_eq!(there.differences.len(), back.differences.len());
            assert!(there.differences.iter().zip(&back.differences).all(mirrored));
            assert!(diff::compare(&first, &first).differences.is_empty());
        }
        (Err(why), _) | (_, Err(why)) => assert!(!why.chars().any(char::is_control), "{why:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_corpus_is_parsed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        let mut failed = Vec::new();
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(files.len() >= 3, "{name} has no corpus");
            failed.extend(files.into_iter().filter(|file| {
                let bytes = fs::read(file).unwrap();
                std::panic::catch_unwind(|| target(&bytes)).is_err()
            }));
        }
        assert_eq!(failed, Vec::<std::path::PathBuf>::new());
    }
}
