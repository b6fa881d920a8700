//! Every parser of a file that another user or the kernel writes, for fuzzing: each takes any bytes, must not panic, and
//! what it makes of them must hold. `tests/fuzz` has a target and a corpus for each; the corpus is a test of this module.

use std::path::{Component, Path};

use unicode_width::UnicodeWidthStr as _;

use crate::cgroup::{bus, detect, usage};
use crate::config::Config;
use crate::job::JobId;
use crate::lock::record::Record;
use crate::lock::ticket;
use crate::{nested, procfs, text};

/// A parser under test.
pub type Target = fn(&[u8]);

/// All of them, by the names of their targets.
pub const TARGETS: [(&str, Target); 10] = [
    ("ticket", ticket),
    ("names", names),
    ("proc_stat", proc_stat),
    ("proc_cgroup", proc_cgroup),
    ("proc_locks", proc_locks),
    ("counters", counters),
    ("mountinfo", mountinfo),
    ("bus_frame", bus_frame),
    ("config", config),
    ("words", words),
];

/// A ticket's text. A last line without an end changes nothing.
pub fn ticket(bytes: &[u8]) {
    let record = Record::parse(bytes);
    if bytes.last().is_none_or(|&last| last == b'\n') {
        assert_eq!(Record::parse(&[bytes, b"{\"event\":\"releasing\""].concat()), record);
    }
    if let Some(record) = record {
        let longer = Record::parse(&[bytes, b"\n{\"event\":\"stopped\"}\n"].concat());
        assert!(longer.is_some_and(|longer| longer.stopped && longer.joined == record.joined));
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
    let _ = nested::parse_group_name(&text);
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

/// `/proc/PID/cgroup`.
pub fn proc_cgroup(bytes: &[u8]) {
    let _ = procfs::parse_cgroup_v2(bytes);
}

/// `/proc/locks`.
pub fn proc_locks(bytes: &[u8]) {
    let lines = bytes.split(|&b| b == b'\n').count();
    assert!(procfs::parse_locks(bytes, rustix::fs::makedev(0xfe, 0), 99).len() <= lines);
}

/// A group's counters.
pub fn counters(bytes: &[u8]) {
    let _ = usage::keyed(&String::from_utf8_lossy(bytes), "populated");
}

/// `/proc/self/mountinfo`, and a path from a ticket behind its first empty line. What is found leads nowhere else.
pub fn mountinfo(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (mounts, path) = text.split_once("\n\n").unwrap_or((&text, "/a/perflock-1"));
    if let Ok(found) = detect::locate(mounts, Path::new(path)) {
        assert!(found.relative.components().all(|part| matches!(part, Component::Normal(_))));
    }
}

/// The head of a message from a bus.
pub fn bus_frame(bytes: &[u8]) {
    if let Some(head) = bytes.get(..bus::FIXED)
        && let Ok((_, length)) = bus::frame(head)
    {
        assert!(length >= bus::FIXED);
    }
}

/// A configuration file.
pub fn config(bytes: &[u8]) {
    let _ = Config::default().apply(Path::new("perflock.toml"), &String::from_utf8_lossy(bytes), &mut Vec::new());
}

/// Whatever others write is shown without control characters, in no more columns than there are.
pub fn words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let shown = text::command_line(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
    assert!(!shown.chars().any(char::is_control));
    for columns in [0, 1, 12, 80] {
        assert!(text::cut(&shown, columns).width() <= columns);
    }
    let _ = text::parse_duration(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_corpus_is_parsed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(corpus.join(name)).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(files.len() >= 3, "{name} has no corpus");
            for file in files {
                let bytes = fs::read(&file).unwrap();
                assert!(std::panic::catch_unwind(|| target(&bytes)).is_ok(), "{}", file.display());
            }
        }
    }
}
