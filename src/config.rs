//! Configuration files: `/etc/perflock.toml`, then the user's own. Both have the same keys, each spelled like its flag.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use crate::cgroup::Choice;
use crate::error::FileError;
use crate::escape;
use crate::history;
use crate::limit::Bound;
use crate::pin;
use crate::supervisor::step::Leftovers;
use crate::text::parse_duration;
use crate::verdict;

/// The administrator's file.
pub const SYSTEM_FILE: &str = "/etc/perflock.toml";

/// Every key, as in `config/perflock.toml`.
pub const KEYS: [&str; 16] = [
    "lock",
    "wait",
    "conflict-exit-code",
    "grace",
    "leftovers",
    "time-limit",
    "cgroup",
    "escapes",
    "pin",
    "memory",
    "pids",
    "quiet-limit",
    "quiet-counts",
    "history.command",
    "history.directory",
    "history.size",
];

/// The table of keys that have a dot.
const TABLE: &str = "history";

/// What configuration files set; `None` where they do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The lock file.
    pub lock: Option<PathBuf>,
    /// The longest wait for the lock.
    pub wait: Option<Duration>,
    /// The exit code when the lock was not obtained.
    pub conflict_exit_code: Option<u8>,
    /// From TERM to KILL.
    pub grace: Option<Duration>,
    /// Members that outlive the main process.
    pub leftovers: Option<Leftovers>,
    /// The command's longest time.
    pub time_limit: Option<Duration>,
    /// Job groups.
    pub cgroup: Option<Choice>,
    /// What left the job's group.
    pub escapes: Option<escape::Choice>,
    /// How strong pins have to be.
    pub pin: Option<pin::Choice>,
    /// A job's memory.
    pub memory: Option<u64>,
    /// A job's processes.
    pub pids: Option<u64>,
    /// What may be used elsewhere while a job has the machine.
    pub quiet_limit: Option<verdict::Limit>,
    /// What else makes the machine not quiet.
    pub quiet_counts: Option<verdict::Counts>,
    /// What a history keeps of command lines.
    pub history_command: Option<history::Commands>,
    /// The directory of all users' histories.
    pub history_directory: Option<PathBuf>,
    /// How large a user's history may be.
    pub history_size: Option<history::Size>,
}

/// Why a configuration cannot be used. Nothing is run with half of one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is not TOML, or a value not one that its key takes.
    #[error("{}:{line}: {why}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what would be right.
        why: String,
    },
}

impl Config {
    /// Reads the files in order, later ones over earlier ones. A missing file is no error unless it was `named`.
    /// Returns warnings beside the configuration.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(files: &[PathBuf], named: bool) -> Result<(Self, Vec<String>), ConfigError> {
        let mut config = Self::default();
        let mut warnings = Vec::new();
        for path in files {
            match fs::read_to_string(path) {
                Ok(text) => config.apply(path, &text, &mut warnings)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !named => {}
                // A path through something that is no directory, or another user's home, holds no file of ours.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied)
                        && !named => {}
                Err(error) => return Err(FileError::on("read", path)(error).into()),
            }
        }
        Ok((config, warnings))
    }

    pub(crate) fn apply(&mut self, path: &Path, text: &str, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        let line_of =
            |offset: usize| text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1;
        let error = |offset, why| ConfigError::Line { path: path.to_owned(), line: line_of(offset), why };
        let table = DeTable::parse(text)
            .map_err(|parse| error(parse.span().map_or(0, |span| span.start), parse.message().to_owned()))?;
        let mut all = Vec::new();
        for (key, value) in table.get_ref() {
            let name = key.get_ref();
            match value.get_ref() {
                DeValue::Table(within) if name == TABLE => {
                    all.extend(within.iter().map(|(key, value)| (format!("{name}.{}", key.get_ref()), key, value)));
                }
                other if name == TABLE => {
                    let why = format!("{name}: a table is expected, not {}", other.type_str());
                    return Err(error(value.span().start, why));
                }
                _ => all.push((name.to_string(), key, value)),
            }
        }
        for (name, key, value) in all {
            if KEYS.contains(&&*name) {
                let at = value.span().start;
                self.set(&name, value.get_ref()).map_err(|why| error(at, format!("{name}: {why}")))?;
            } else {
                let line = line_of(key.span().start);
                warnings.push(format!("{}:{line}: unknown key {}{}", path.display(), shown(&name), nearest(&name)));
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), String> {
        match key {
            "lock" => self.lock = Some(absolute(value, "a lock file")?),
            "wait" => self.wait = duration_or_none(value)?,
            "conflict-exit-code" => self.conflict_exit_code = Some(exit_code(value)?),
            "grace" => self.grace = Some(duration(value)?),
            "leftovers" => self.leftovers = Some(Leftovers::parse(string(value)?)?),
            "time-limit" => self.time_limit = duration_or_none(value)?,
            "cgroup" => self.cgroup = Some(Choice::parse(string(value)?)?),
            "escapes" => self.escapes = Some(escape::Choice::parse(string(value)?)?),
            "pin" => self.pin = Some(pin::Choice::parse(string(value)?)?),
            "memory" => self.memory = Bound::memory(number_or_string(value)?)?.0,
            "quiet-limit" => self.quiet_limit = Some(verdict::Limit::parse(string(value)?)?),
            "quiet-counts" => self.quiet_counts = Some(verdict::Counts::parse(string(value)?)?),
            "pids" => self.pids = Bound::processes(number_or_string(value)?)?.0,
            "history.command" => self.history_command = Some(history::Commands::parse(string(value)?)?),
            "history.directory" => self.history_directory = Some(absolute(value, "a directory of histories")?),
            "history.size" => self.history_size = Some(history::Size::parse(number_or_string(value)?)?),
            _ => {}
        }
        Ok(())
    }
}

fn string<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("a string is expected, not {}", value.type_str()))
}

/// A path that depends on nobody's directory.
fn absolute(value: &DeValue<'_>, what: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(string(value)?);
    if path.is_absolute() { Ok(path) } else { Err(format!("{what} is an absolute path")) }
}

fn duration(value: &DeValue<'_>) -> Result<Duration, String> {
    match value {
        DeValue::Integer(_) => parse_duration(decimal(value)?),
        DeValue::Float(number) => parse_duration(number.as_str()),
        _ => parse_duration(string(value)?),
    }
}

fn number_or_string<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    match value {
        DeValue::Integer(_) => decimal(value),
        _ => string(value),
    }
}

/// The digits of a whole number. Those of `0x40` mean something else.
fn decimal<'a>(value: &'a DeValue<'_>) -> Result<&'a str, String> {
    let number = value.as_integer().filter(|number| number.radix() == 10);
    number.map(toml::de::DeInteger::as_str).ok_or_else(|| "a whole number is expected, in decimal".to_owned())
}

fn duration_or_none(value: &DeValue<'_>) -> Result<Option<Duration>, String> {
    if value.as_str() == Some("none") { Ok(None) } else { duration(value).map(Some) }
}

fn exit_code(value: &DeValue<'_>) -> Result<u8, String> {
    value
        .as_integer()
        .and_then(|number| number.as_str().parse().ok())
        .ok_or_else(|| "an exit code is a number from 0 to 255".to_owned())
}

fn shown(key: &str) -> String {
    crate::text::escape(key)
}

fn nearest(key: &str) -> String {
    let near = KEYS.iter().map(|known| (strsim::damerau_levenshtein(key, known), known)).min();
    match near {
        Some((distance, known)) if distance <= 1 + key.chars().count() / 3 => format!("; did you mean {known}?"),
        _ => format!("; known keys: {}", KEYS.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<(Config, Vec<String>), String> {
        let (mut config, mut warnings) = (Config::default(), Vec::new());
        config.apply(Path::new("f.toml"), text, &mut warnings).map_err(|error| error.to_string())?;
        Ok((config, warnings))
    }

    #[test]
    fn every_key_is_read() {
        let text = "lock = '/x'\nwait = 5\nconflict-exit-code = 9\ngrace = '1.5s'\nleftovers = 'wait'\n\
            time-limit = '2h'\ncgroup = 'required'\nescapes = 'ignore'\npin = 'hard'\nmemory = '1.5GiB'\npids = 200\n\
            quiet-limit = '2.5%'\nquiet-counts = 'steal,swap'\n\
            [history]\nsize = '2M'\ncommand = 'full'\ndirectory = '/h'\n";
        let config = Config {
            lock: Some("/x".into()),
            wait: Some(Duration::from_secs(5)),
            conflict_exit_code: Some(9),
            grace: Some(Duration::from_millis(1500)),
            leftovers: Some(Leftovers::Wait),
            time_limit: Some(Duration::from_secs(7200)),
            cgroup: Some(Choice::Required),
            escapes: Some(escape::Choice::Ignore),
            pin: Some(pin::Choice::Hard),
            memory: Some(3 << 29),
            pids: Some(200),
            quiet_limit: Some(verdict::Limit::OfACore(250)),
            quiet_counts: verdict::Counts::parse("steal,swap").ok(),
            history_command: Some(history::Commands::Full),
            history_directory: Some("/h".into()),
            history_size: Some(history::Size::Bytes(2 << 20)),
        };
        assert_eq!(read(text), Ok((config, vec![])));
    }

    #[test]
    fn the_shipped_file_shows_every_key_at_its_default_and_sets_none() {
        let shipped = include_str!("../config/perflock.toml");
        assert_eq!(read(shipped), Ok((Config::default(), vec![])));
        let keys = shipped.lines().filter(|line| line.starts_with('#') && line.contains(" = "));
        let uncommented: Vec<&str> = keys.map(|line| line.trim_start_matches('#')).collect();
        let (config, warnings) = read(&uncommented.join("\n")).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(uncommented.len(), KEYS.len());
        let defaults = crate::settings::Settings::default();
        assert_eq!(config.lock.unwrap(), defaults.lock);
        assert_eq!(config.grace.unwrap(), defaults.policy.grace);
        assert_eq!(config.leftovers.unwrap(), defaults.policy.leftovers);
        assert_eq!(config.conflict_exit_code.unwrap(), defaults.conflict_exit_code);
        assert_eq!(config.cgroup.unwrap(), defaults.cgroup);
        assert_eq!(config.escapes.unwrap(), defaults.escapes);
        assert_eq!(config.pin.unwrap(), pin::Choice::Auto);
        assert_eq!((config.wait, config.time_limit), (None, None));
        assert_eq!((config.memory, config.pids), (None, None));
        assert_eq!(config.quiet_limit.unwrap(), defaults.quiet_limit);
        assert_eq!(config.quiet_counts.unwrap(), defaults.quiet_counts);
        assert_eq!(config.history_command.unwrap(), defaults.history.commands);
        assert_eq!(config.history_directory.unwrap(), defaults.history.directory);
        assert_eq!(config.history_size.unwrap(), defaults.history.size);
    }

    #[test]
    fn a_key_of_a_table_is_named_by_both() {
        let (config, warnings) = read("[history]\nsise = 1\n\nsize = 'none'\n[other]\nx = 1\n").unwrap();
        assert_eq!(config.history_size, Some(history::Size::Nothing));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert_eq!(warnings[0], "f.toml:2: unknown key history.sise; did you mean history.size?");
        assert!(warnings[1].starts_with("f.toml:5: unknown key other; "), "{warnings:?}");
        let error = |text| read(text).unwrap_err();
        assert_eq!(
            error("[history]\n\nsize = '1K'"),
            "f.toml:3: history.size: a history of less than 16K is none: say none"
        );
        assert_eq!(error("\nhistory = 'full'"), "f.toml:2: history: a table is expected, not string");
        assert_eq!(
            error("history.directory = 'x'"),
            "f.toml:1: history.directory: a directory of histories is an absolute path"
        );
        assert!(error("history.command = 'long'").starts_with("f.toml:1: history.command: short "));
    }

    #[test]
    fn a_later_file_lifts_a_limit() {
        let (mut config, mut warnings) = (Config::default(), Vec::new());
        for text in ["memory = '1G'\npids = '100'\n", "memory = 'none'\npids = 'none'\n"] {
            config.apply(Path::new("f.toml"), text, &mut warnings).unwrap();
        }
        assert_eq!((config, warnings), (Config::default(), vec![]));
    }

    #[test]
    fn an_unknown_key_is_a_warning_with_its_line_and_neighbour() {
        let (config, warnings) = read("\ngrase = 1\ngrace = 2\nzzzzzz = 3\n").unwrap();
        assert_eq!(config.grace, Some(Duration::from_secs(2)));
        let known = KEYS.join(", ");
        let expected = [
            "f.toml:2: unknown key grase; did you mean grace?".to_owned(),
            format!("f.toml:4: unknown key zzzzzz; known keys: {known}"),
        ];
        assert_eq!(warnings, expected);
    }

    #[test]
    fn a_bad_value_names_file_line_and_key() {
        let error = |text| read(text).unwrap_err();
        assert_eq!(
            error("\ngrace = 'soon'"),
            "f.toml:2: grace: a duration is seconds (90, 0.5) or has units (1h 30m, 250ms)"
        );
        assert_eq!(error("leftovers = 3"), "f.toml:1: leftovers: a string is expected, not integer");
        assert!(error("leftovers = 'keep'").starts_with("f.toml:1: leftovers: "));
        assert!(error("conflict-exit-code = 256").contains("from 0 to 255"));
        assert!(error("lock = 'x'").contains("absolute"));
        assert_eq!(error("memory = 1000"), "f.toml:1: memory: no program starts with less than 1M of memory");
        assert_eq!(error("memory = 1.5"), "f.toml:1: memory: a string is expected, not float");
        assert_eq!(error("pids = 0"), "f.toml:1: pids: a job has at least one process");
        assert!(error("a = 1\ngrace = = 3").starts_with("f.toml:2: "));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = read(&text);
        }

        /// Any value for a key that there is: it is taken, or refused with file, line and key, and nothing is half read.
        #[test]
        fn any_value_is_taken_or_refused_by_name(
            key in prop::sample::select(&KEYS[..]),
            value in prop_oneof![
                any::<i64>().prop_map(|number| number.to_string()),
                any::<f64>().prop_map(|number| format!("{number:?}")),
                any::<bool>().prop_map(|flag| flag.to_string()),
                "[^'\\x00-\\x1f\\x7f]{0,12}".prop_map(|text| format!("'{text}'")),
                "[0-9]{0,9}[.]?[0-9]{0,3} ?(ms|s|m|h|days|)".prop_map(|text| format!("'{text}'")),
                Just("[1, 'a']".to_owned()),
                Just("{ a = 1 }".to_owned()),
            ],
        ) {
            match read(&format!("\n{key} = {value}\n")) {
                Ok((config, warnings)) => {
                    prop_assert_eq!(warnings, Vec::<String>::new());
                    let set = [
                        config.lock.is_some(),
                        config.conflict_exit_code.is_some(),
                        config.grace.is_some(),
                        config.leftovers.is_some(),
                        config.cgroup.is_some(),
                        config.escapes.is_some(),
                        config.pin.is_some(),
                        config.wait.is_some(),
                        config.time_limit.is_some(),
                        config.memory.is_some(),
                        config.pids.is_some(),
                        config.quiet_limit.is_some(),
                        config.quiet_counts.is_some(),
                        config.history_command.is_some(),
                        config.history_directory.is_some(),
                        config.history_size.is_some(),
                    ];
                    let none = matches!(key, "wait" | "time-limit" | "memory" | "pids") && value == "'none'";
                    prop_assert_eq!(set.iter().filter(|&&is_set| is_set).count(), usize::from(!none));
                    prop_assert!(config.lock.into_iter().chain(config.history_directory).all(|path| path.is_absolute()));
                }
                Err(error) => prop_assert!(error.starts_with("f.toml:2: "), "{}", error),
            }
        }

        /// A warning shows the file's own text.
        #[test]
        fn an_unknown_key_is_shown_escaped(key: String) {
            prop_assume!(!KEYS.contains(&&*key));
            let quoted: String = key.chars().map(|c| format!("\\U{:08X}", u32::from(c))).collect();
            if let Ok((config, warnings)) = read(&format!("\"{quoted}\" = 1")) {
                prop_assert_eq!(config, Config::default());
                prop_assert_eq!(warnings.len(), 1);
                prop_assert!(!warnings[0].chars().any(char::is_control), "{:?}", warnings);
            }
        }
    }
}
