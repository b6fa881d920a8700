//! One line of a history: its shape as JSON, and what of a command line goes into it. A file is its owner's text: whoever reads it
//! may be reading a neighbour's lies.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize};

use super::Commands;
use crate::child::Exit;
use crate::job::Mode;
use crate::report::document::{Reason, rfc3339};
use crate::verdict::Word;

/// The version of the format: a field may be added, but it changes when one goes or comes to mean something else.
pub const VERSION: u32 = 1;

/// How every line begins. Within a line's strings a quote has a backslash before it, so that this is not found there: by it a line
/// is found that stands behind a torn one.
pub const BEGINNING: &[u8] = b"{\"version\":";

/// What stands before a line's command.
const COMMAND: &[u8] = b"\"command\":";

/// No line is longer; a longer one is none of ours.
pub const LONGEST: usize = 8 << 10;

/// Words of a command line that is cut short: the program and two more.
const SHORT_WORDS: usize = 3;

/// How much of a word is kept then, in bytes of JSON.
const SHORT_WORD: usize = 128;

/// How much of a whole command line is kept, in bytes of JSON. A line is to stay below a page, 4 KiB.
const FULL_COMMAND: usize = 2048;

/// How much of the lock file's path is kept.
const LOCK: usize = 512;

/// No job lasts longer than a century, in microseconds.
const LONGEST_USEC: u64 = 100 * 366 * 24 * 3600 * 1_000_000;

/// A job that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// [`VERSION`].
    pub version: u32,
    /// The job's identity, which is not used again.
    pub job: String,
    /// Its place in the queue.
    pub number: u64,
    /// Whose it was. Not believed: the owner of the file is.
    pub uid: u32,
    /// How it held the machine.
    pub mode: Mode,
    /// The lock file.
    pub lock: String,
    /// When perflock was started, by the clock on the wall. Everything else is measured by one that cannot be set.
    #[serde(serialize_with = "rfc3339", deserialize_with = "from_rfc3339")]
    pub started: SystemTime,
    /// How long it waited from then on.
    pub waited_usec: u64,
    /// How long it had the machine after that.
    pub held_usec: u64,
    /// From the command's start to its end; `null` where perflock was killed.
    pub wall_usec: Option<u64>,
    /// CPU time of the whole job, or, where its group was not asked since the job was short, of the processes that were waited for.
    pub cpu_usec: Option<u64>,
    /// The most memory that it used, where its group was asked.
    pub memory_peak_bytes: Option<u64>,
    /// How it ended.
    pub exit: End,
    /// What was run: see [`Commands`].
    pub command: Vec<String>,
    /// How many words of it are not here.
    pub words_left_out: usize,
    /// Whether the machine was quiet, in a word, where that was judged.
    pub verdict: Option<Word>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Why.
    pub reason: Reason,
    /// What the command exited with.
    pub code: Option<i32>,
    /// The signal that the command died of.
    pub signal: Option<i32>,
}

impl End {
    /// The command's own end, for this reason.
    pub fn new(reason: Reason, exit: Exit) -> Self {
        let (code, signal) = match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
        };
        Self { reason, code, signal }
    }

    /// The command did what it was to do.
    pub fn is_success(&self) -> bool {
        (self.reason, self.code) == (Reason::Exited, Some(0))
    }
}

impl Line {
    /// The text, with its end.
    pub fn to_text(&self) -> Vec<u8> {
        // Strings and numbers: nothing in it can fail.
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Reads a text without its end; `None` if it is not a line of this version, or says what cannot be.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let line: Self = serde_json::from_slice(text).ok()?;
        let times = [Some(line.waited_usec), Some(line.held_usec), line.wall_usec];
        let can_be = times.into_iter().flatten().all(|usec| usec <= LONGEST_USEC);
        (line.version == VERSION && can_be).then_some(line)
    }

    /// When it gave the machine back, by the clock on the wall as it was when it started.
    pub fn ended(&self) -> SystemTime {
        let lasted = Duration::from_micros(self.waited_usec.saturating_add(self.held_usec));
        self.started.checked_add(lasted).unwrap_or(self.started)
    }
}

/// The part of a line that begins with its command, as JSON; `None` where there is none. So most lines need not be read for it.
pub fn command_in(text: &[u8]) -> Option<&[u8]> {
    // Near the end. In the words themselves a quote has a backslash before it.
    let at = text.windows(COMMAND.len()).rposition(|part| part == COMMAND)?;
    Some(&text[at + COMMAND.len()..])
}

/// How a line has this command.
pub fn command_text(kept: &[String]) -> Vec<u8> {
    // Strings: nothing in it can fail.
    serde_json::to_vec(kept).unwrap_or_default()
}

/// The lock file as a line has it.
pub fn lock_text(lock: &str) -> String {
    fit(lock, LOCK)
}

/// What a line has of a command, and how many words of it are left out.
pub fn kept_of(command: &[String], commands: Commands) -> (Vec<String>, usize) {
    let kept: Vec<String> = match commands {
        Commands::Short => {
            let program = command.first().map(|program| fit(program, SHORT_WORD));
            let words = command.windows(2).take(SHORT_WORDS - 1);
            program.into_iter().chain(words.map(|pair| fit(&discreet(&pair[0], &pair[1]), SHORT_WORD))).collect()
        }
        Commands::Full => {
            let mut left = FULL_COMMAND;
            let fitting = command.iter().map_while(|word| {
                // Two quotes and a comma.
                left = left.checked_sub(3).filter(|&left| left > 0)?;
                let kept = fit(word, left);
                left = left.saturating_sub(json_length(&kept));
                Some(kept)
            });
            fitting.collect()
        }
    };
    let left_out = command.len() - kept.len();
    (kept, left_out)
}

/// A word behind another without what may be secret in it: the value of `--option=value` and `NAME=value`, of `-pVALUE` and
/// `-uVALUE`, what stands behind an option for such a thing, the user in a URL, and all but the first words of a text: two of one that
/// a shell is given as a command line, else one.
fn discreet(before: &str, word: &str) -> String {
    let mut gaps = word.match_indices(char::is_whitespace);
    let (first_end, second_start) = gaps.next().map_or((word.len(), None), |(at, gap)| (at, Some(at + gap.len())));
    let second_start = second_start.filter(|_| before.starts_with('-') && before.ends_with('c'));
    let second_end = gaps.next().map_or(word.len(), |(at, _)| at);
    let first = &word[..first_end];
    let end = match (tactful(before, first).len(), second_start) {
        (kept, Some(start)) if kept == first_end => start + tactful(first, &word[start..second_end]).len(),
        (kept, _) => kept,
    };
    if end == word.len() { word.to_owned() } else { format!("{}…", &word[..end]) }
}

/// The part of a word that is no secret.
fn tactful<'a>(before: &str, word: &'a str) -> &'a str {
    if before.starts_with('-') && !before.contains('=') && is_for_a_secret(before) && !word.starts_with('-') {
        return "";
    }
    let value = word.find('=').map(|at| at + 1);
    let login = word.find("://").map(|at| at + 3).filter(|&at| word[at..].contains('@'));
    let attached = (word.starts_with("-p") || word.starts_with("-u")).then_some(2);
    let end = value.into_iter().chain(login).chain(attached).min().unwrap_or(word.len());
    &word[..end]
}

/// Whether what follows an option may be a secret, or a user's name with one.
fn is_for_a_secret(option: &str) -> bool {
    let name = option.to_ascii_lowercase();
    let says = ["pass", "pw", "token", "secret", "key", "auth", "cred", "user"].iter().any(|part| name.contains(part));
    says || matches!(option, "-p" | "-u" | "-P" | "-U")
}

/// Cuts a text to so many bytes of JSON, with `…` at the end where something was cut.
fn fit(text: &str, bytes: usize) -> String {
    if json_length(text) <= bytes {
        return text.to_owned();
    }
    let mut left = bytes.saturating_sub('…'.len_utf8());
    let fits = |&c: &char| match left.checked_sub(json_length_of(c)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    let mut kept: String = text.chars().take_while(fits).collect();
    kept.push('…');
    kept
}

fn json_length(text: &str) -> usize {
    text.chars().map(json_length_of).sum()
}

/// As serde_json writes it.
fn json_length_of(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        c => c.len_utf8(),
    }
}

fn from_rfc3339<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A job of an hour.
    pub(crate) fn line() -> Line {
        Line {
            version: VERSION,
            job: "7-1-2-3".to_owned(),
            number: 7,
            uid: 1000,
            mode: Mode::Exclusive,
            lock: "/run/perflock".to_owned(),
            started: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            waited_usec: 60_000_000,
            held_usec: 3_600_000_000,
            wall_usec: Some(3_599_000_000),
            cpu_usec: Some(7_000_000_000),
            memory_peak_bytes: None,
            exit: End::new(Reason::Exited, Exit::Code(0)),
            command: vec!["make".to_owned(), "bench".to_owned()],
            words_left_out: 0,
            verdict: None,
        }
    }

    fn kept(command: &[&str], commands: Commands) -> (Vec<String>, usize) {
        kept_of(&command.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(), commands)
    }

    #[test]
    fn what_may_be_secret_is_left_out() {
        let short = |command: &[&str]| kept(command, Commands::Short);
        let words = |words: &[&str], left_out| (words.iter().map(|&word| word.to_owned()).collect(), left_out);
        assert_eq!(short(&["make", "-j", "8", "all"]), words(&["make", "-j", "8"], 1));
        assert_eq!(short(&["env", "TOKEN=s3cret", "--key=s3cret", "x"]), words(&["env", "TOKEN=…", "--key=…"], 1));
        assert_eq!(short(&["sh", "-c", "make bench; curl -u me:s3cret"]), words(&["sh", "-c", "make bench;…"], 0));
        assert_eq!(short(&["test", "a", "="]), words(&["test", "a", "="], 0));
        assert_eq!(short(&[]), words(&[], 0));
        for (command, expected) in [
            (["curl", "-u", "me:s3cret"], ["curl", "-u", "…"]),
            (["curl", "-H", "X-Key: s3cret"], ["curl", "-H", "X-Key:…"]),
            (["mysql", "-ps3cret", "db"], ["mysql", "-p…", "db"]),
            (["mysql", "--password", "s3cret"], ["mysql", "--password", "…"]),
            (["sshpass", "-p", "s3cret"], ["sshpass", "-p", "…"]),
            (["run", "--api-token", "s3cret"], ["run", "--api-token", "…"]),
            (["git", "clone", "https://u:s3cret@host/x"], ["git", "clone", "https://…"]),
            (["sh", "-c", "mysql -ps3cret db"], ["sh", "-c", "mysql -p…"]),
            (["sh", "-ec", "PW=s3cret make x"], ["sh", "-ec", "PW=…"]),
            (["sh", "-c", "make bench"], ["sh", "-c", "make bench"]),
            (["run", "--keys", "--fast"], ["run", "--keys", "--fast"]),
            (["git", "clone", "https://host/x"], ["git", "clone", "https://host/x"]),
        ] {
            assert_eq!(short(&command), words(&expected, 0));
        }
        // A program's path is none of that.
        assert_eq!(short(&["/a = b c/run"]), words(&["/a = b c/run"], 0));
        let full = kept(&["env", "TOKEN=s3cret", "x y z", "w"], Commands::Full);
        assert_eq!(full, words(&["env", "TOKEN=s3cret", "x y z", "w"], 0));
    }

    #[test]
    fn a_line_that_says_what_cannot_be_is_none() {
        let read = |line: &Line| Line::parse(line.to_text().strip_suffix(b"\n").unwrap());
        assert_eq!(read(&line()), Some(line()));
        assert_eq!(read(&Line { version: 2, ..line() }), None);
        assert_eq!(read(&Line { held_usec: u64::MAX, ..line() }), None);
        assert_eq!(read(&Line { wall_usec: Some(u64::MAX), ..line() }), None);
        // More CPU time than a century of one core is a large machine's.
        assert!(read(&Line { cpu_usec: Some(u64::MAX), ..line() }).is_some());
    }

    #[test]
    fn it_ended_when_it_had_waited_and_run() {
        let lasted = line().ended().duration_since(line().started).unwrap();
        assert_eq!(lasted, Duration::from_secs(3660));
    }

    proptest! {
        /// One write of less than a page, and read again as it was.
        #[test]
        fn whatever_was_run_the_line_is_small_and_read_again(
            words in proptest::collection::vec((any::<char>(), 0usize..3000, any::<String>()), 0..12),
            (c, length) in (any::<char>(), 0usize..4096),
            is_full: bool,
        ) {
            let command: Vec<String> =
                words.iter().map(|(c, length, end)| c.to_string().repeat(*length) + end).collect();
            let commands = if is_full { Commands::Full } else { Commands::Short };
            let (kept, words_left_out) = kept_of(&command, commands);
            prop_assert_eq!(kept.len() + words_left_out, command.len());
            for (kept, word) in kept.iter().zip(&command) {
                prop_assert!(kept == word || word.starts_with(kept.strip_suffix('…').unwrap()));
            }
            let lock = lock_text(&c.to_string().repeat(length));
            let line = Line { command: kept, words_left_out, lock, ..line() };
            let text = line.to_text();
            prop_assert!(text.len() < 4096, "{} bytes", text.len());
            prop_assert!(text.starts_with(BEGINNING));
            prop_assert_eq!(text.windows(BEGINNING.len()).filter(|part| *part == BEGINNING).count(), 1);
            prop_assert!(command_in(&text).unwrap().starts_with(&command_text(&line.command)));
            prop_assert_eq!(Line::parse(text.strip_suffix(b"\n").unwrap()), Some(line));
        }
    }
}
