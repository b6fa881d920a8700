//! What was typed, configured and left to its default, validated and put together.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup;
use crate::cli::RunArgs;
use crate::config::{Config, ConfigError, SYSTEM_FILE};
use crate::escape;
use crate::history::Keeping;
use crate::job::Mode;
use crate::limit::{Bound, Kind, Limit};
use crate::pin;
use crate::supervisor::step::{Leftovers, Policy};
use crate::text;
use crate::verdict;

/// The lock file of a machine.
pub const LOCK: &str = "/run/perflock";

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Only what is wrong.
    Quiet,
    /// Also who is waited for.
    Normal,
    /// Also what is done, and how.
    Verbose,
}

/// Everything that one run of `perflock` or `pls` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The lock file.
    pub lock: PathBuf,
    /// `--private`: the lock file is chosen, and made, when it is needed.
    pub private: bool,
    /// What the job asks for.
    pub mode: Mode,
    /// Do not wait.
    pub nonblock: bool,
    /// The longest wait.
    pub wait: Option<Duration>,
    /// The exit code when the lock was not obtained.
    pub conflict_exit_code: u8,
    /// A note for others.
    pub message: Option<String>,
    /// The end of the job.
    pub policy: Policy,
    /// Job groups.
    pub cgroup: cgroup::Choice,
    /// What left the job's group.
    pub escapes: escape::Choice,
    /// Where the job is to run.
    pub pin: Option<pin::Request>,
    /// What the job may have at most.
    pub limits: Vec<Limit>,
    /// What may be used elsewhere while it has the machine.
    pub quiet_limit: verdict::Limit,
    /// What else makes the machine not quiet.
    pub quiet_counts: verdict::Counts,
    /// A machine that was not quiet is an error.
    pub require_quiet: bool,
    /// How much is said.
    pub verbosity: Verbosity,
    /// The full report is printed.
    pub report: bool,
    /// The full report is written there.
    pub report_file: Option<PathBuf>,
    /// What is kept of the job when it is over.
    pub history: Keeping,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lock: LOCK.into(),
            private: false,
            mode: Mode::Exclusive,
            nonblock: false,
            wait: None,
            conflict_exit_code: crate::exit::NOT_OBTAINED,
            message: None,
            policy: Policy { grace: Duration::from_secs(10), leftovers: Leftovers::Kill, time_limit: None },
            cgroup: cgroup::Choice::Auto,
            escapes: escape::Choice::Warn,
            pin: None,
            limits: Vec::new(),
            quiet_limit: verdict::Limit::default(),
            quiet_counts: verdict::Counts::default(),
            require_quiet: false,
            verbosity: Verbosity::Normal,
            report: false,
            report_file: None,
            history: Keeping::default(),
        }
    }
}

impl Settings {
    /// Flags over PERFLOCK_LOCK over configuration over defaults.
    pub fn new(args: &RunArgs, environment: &Environment, config: Config, mode: Mode) -> Self {
        let default = Self::default();
        let mode = match (args.shared, args.exclusive) {
            (true, _) => Mode::Shared,
            (_, true) => Mode::Exclusive,
            _ => mode,
        };
        let verbosity = match (args.quiet, args.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        let wait = args.wait.or(config.wait);
        Self {
            lock: lock_path(args.lock.as_ref(), environment, &config),
            private: args.private,
            mode,
            // As in flock(1): a wait of no time is no wait.
            nonblock: args.nonblock || wait.is_some_and(|wait| wait.is_zero()),
            wait,
            conflict_exit_code: args
                .conflict_exit_code
                .or(config.conflict_exit_code)
                .unwrap_or(default.conflict_exit_code),
            message: args.message.clone(),
            policy: Policy {
                grace: args.grace.or(config.grace).unwrap_or(default.policy.grace),
                leftovers: args.leftovers.or(config.leftovers).unwrap_or(default.policy.leftovers),
                // A limit of 0 is none, as in timeout(1).
                time_limit: args.time_limit.or(config.time_limit).filter(|limit| !limit.is_zero()),
            },
            cgroup: args.cgroup.or(config.cgroup).unwrap_or(default.cgroup),
            escapes: args.escapes.or(config.escapes).unwrap_or(default.escapes),
            pin: pin_request(args, &config),
            limits: limits(args, &config),
            history: keeping(environment, &config),
            quiet_limit: config.quiet_limit.unwrap_or(default.quiet_limit),
            quiet_counts: config.quiet_counts.unwrap_or(default.quiet_counts),
            require_quiet: args.require_quiet,
            verbosity,
            report: args.report,
            report_file: args.report_file.clone(),
        }
    }
}

/// Where the job was asked to run, if anywhere.
fn pin_request(args: &RunArgs, config: &Config) -> Option<pin::Request> {
    let cores = args.cores.map(|count| pin::Processors::Cores { count, smt: args.smt });
    let processors = args.cpus.clone().map(pin::Processors::List).or(cores);
    let asked = processors.is_some() || args.mems.is_some();
    let choice = args.pin.or(config.pin).unwrap_or(pin::Choice::Auto);
    asked.then(|| pin::Request { processors, mems: args.mems.clone(), isolated: args.isolated, choice })
}

/// The limits that were asked for, and those of the configuration that were not lifted.
fn limits(args: &RunArgs, config: &Config) -> Vec<Limit> {
    let known = [(Kind::Memory, args.memory, config.memory), (Kind::Processes, args.pids, config.pids)];
    let limit = |(kind, option, configured): (Kind, Option<Bound>, Option<u64>)| {
        let (bound, asked) = option.map_or((configured, false), |Bound(bound)| (bound, true));
        bound.map(|value| Limit { kind, value, asked })
    };
    known.into_iter().filter_map(limit).collect()
}

/// What is kept of jobs that ended, and where.
pub fn keeping(environment: &Environment, config: &Config) -> Keeping {
    let default = Keeping::default();
    Keeping {
        directory: config.history_directory.clone().unwrap_or(default.directory),
        own_file: environment.history.clone(),
        size: config.history_size.unwrap_or(default.size),
        commands: config.history_command.unwrap_or(default.commands),
    }
}

/// The lock file by flag, environment, configuration or default.
pub fn lock_path(flag: Option<&PathBuf>, environment: &Environment, config: &Config) -> PathBuf {
    let chosen = flag.or(environment.lock.as_ref()).or(config.lock.as_ref()).cloned().unwrap_or_else(|| LOCK.into());
    // The guard lives in `/`, and tickets name the lock to others: no path may depend on where we stand.
    std::path::absolute(&chosen).unwrap_or(chosen)
}

/// A program of ours, where this one is.
pub fn program(name: &str) -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.join(name))
}

/// The command by which root sets a lock up. sudo(8) may look for programs elsewhere than we were found.
pub fn setup_command(lock: &Path) -> String {
    let program = program("perflock").unwrap_or_else(|| PathBuf::from("perflock"));
    let word = |path: &Path| crate::text::command_line(&[path.display().to_string()]);
    let option = if lock == Path::new(LOCK) { String::new() } else { format!(" --lock {}", word(lock)) };
    format!("{} --setup{option}", word(&program))
}

/// The environment variables that are settings. An empty one counts as not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// PERFLOCK_LOCK.
    pub lock: Option<PathBuf>,
    /// PERFLOCK_CONFIG.
    pub config: Option<PathBuf>,
    /// The user's configuration file.
    pub user_config: Option<PathBuf>,
    /// The user's own history, where there is no directory for everybody's.
    pub history: Option<PathBuf>,
}

impl Environment {
    /// Picks from `variable`, which is [`std::env::var_os`] but for tests.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The XDG rules say that a relative path is to be ignored.
        let directory = |name: &str, below_home: &str| {
            let named = path(name).filter(|path| path.is_absolute());
            named.or_else(|| path("HOME").map(|home| home.join(below_home)))
        };
        let config_home = directory("XDG_CONFIG_HOME", ".config");
        // A guard stands in `/`, so this must not depend on where we do.
        let state_home = directory("XDG_STATE_HOME", ".local/state").filter(|path| path.is_absolute());
        Self {
            lock: path("PERFLOCK_LOCK"),
            config: path("PERFLOCK_CONFIG"),
            user_config: config_home.map(|home| home.join("perflock/config.toml")),
            history: state_home.map(|home| home.join("perflock/history.jsonl")),
        }
    }

    /// The configuration: the file of `flag` or PERFLOCK_CONFIG alone, else the machine's and then the user's. Returns
    /// warnings beside it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn configuration(&self, flag: Option<&PathBuf>) -> Result<(Config, Vec<String>), ConfigError> {
        match flag.or(self.config.as_ref()) {
            Some(named) => Config::read(std::slice::from_ref(named), true),
            None => {
                let system = PathBuf::from(SYSTEM_FILE);
                // sudo(8) may leave HOME as it was. What another user wrote does not tell root which files to open to all.
                let own = rustix::process::geteuid().as_raw();
                let is_another_s =
                    |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.uid() != own && found.uid() != 0);
                let another_s = self.user_config.as_ref().filter(|path| is_another_s(path));
                let users = self.user_config.clone().filter(|_| another_s.is_none());
                let files: Vec<PathBuf> = [system].into_iter().chain(users).collect();
                let (config, mut warnings) = Config::read(&files, false)?;
                warnings
                    .extend(another_s.map(|path| format!("{} is another user's, and is not read", text::path(path))));
                Ok((config, warnings))
            }
        }
    }

    /// The same configuration with the `history` keys of the machine's file, or of the one that was named. Root gives that
    /// directory to everybody: with a HOME that sudo(8) kept, the user's own file must not choose which.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn with_the_machine_s_histories(&self, flag: Option<&PathBuf>, config: Config) -> Result<Config, ConfigError> {
        let (machine, _) = Self { user_config: None, ..self.clone() }.configuration(flag)?;
        Ok(Config {
            history_command: machine.history_command,
            history_directory: machine.history_directory,
            history_size: machine.history_size,
            ..config
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::read(|name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_configuration() {
        let config = Config { lock: Some("/config".into()), grace: Some(Duration::from_secs(1)), ..Config::default() };
        let from_environment = environment(&[("PERFLOCK_LOCK", "/env")]);
        let mut args = RunArgs::default();
        let lock = |args: &RunArgs, environment: &Environment| {
            Settings::new(args, environment, config.clone(), Mode::Shared).lock
        };
        assert_eq!(lock(&args, &environment(&[("PERFLOCK_LOCK", "")])), PathBuf::from("/config"));
        assert_eq!(lock(&args, &from_environment), PathBuf::from("/env"));
        args.lock = Some("/flag".into());
        assert_eq!(lock(&args, &from_environment), PathBuf::from("/flag"));
        args.grace = Some(Duration::from_secs(2));
        let settings = Settings::new(&args, &from_environment, config, Mode::Shared);
        assert_eq!((settings.policy.grace, settings.mode), (Duration::from_secs(2), Mode::Shared));
    }

    #[test]
    fn a_limit_of_the_configuration_is_overruled_or_lifted_by_the_option() {
        let config = Config { memory: Some(1 << 30), pids: Some(100), ..Config::default() };
        let limits = |memory, pids| limits(&RunArgs { memory, pids, ..RunArgs::default() }, &config);
        let limit = |kind, value, asked| Limit { kind, value, asked };
        let configured = [limit(Kind::Memory, 1 << 30, false), limit(Kind::Processes, 100, false)];
        assert_eq!(limits(None, None), configured);
        assert_eq!(limits(Some(Bound(Some(7))), None), [limit(Kind::Memory, 7, true), configured[1]]);
        assert_eq!(limits(Some(Bound(None)), Some(Bound(None))), []);
    }

    #[test]
    fn a_wait_of_no_time_is_no_wait_and_a_limit_of_none_is_no_limit() {
        let args = RunArgs { wait: Some(Duration::ZERO), time_limit: Some(Duration::ZERO), ..RunArgs::default() };
        let settings = Settings::new(&args, &Environment::default(), Config::default(), Mode::Exclusive);
        assert!(settings.nonblock);
        assert_eq!(settings.policy.time_limit, None);
    }

    #[test]
    fn the_user_s_file_is_where_xdg_says() {
        let file = |pairs: &[(&str, &str)]| environment(pairs).user_config;
        assert_eq!(file(&[("HOME", "/h")]), Some("/h/.config/perflock/config.toml".into()));
        assert_eq!(file(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/x")]), Some("/x/perflock/config.toml".into()));
        assert_eq!(file(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "x")]), Some("/h/.config/perflock/config.toml".into()));
        assert_eq!(file(&[]), None);
        let history = |pairs: &[(&str, &str)]| environment(pairs).history;
        assert_eq!(history(&[("HOME", "/h")]), Some("/h/.local/state/perflock/history.jsonl".into()));
        assert_eq!(history(&[("XDG_STATE_HOME", "/x")]), Some("/x/perflock/history.jsonl".into()));
        let relative = [("HOME", "/h"), ("XDG_STATE_HOME", "x")];
        assert_eq!(history(&relative), Some("/h/.local/state/perflock/history.jsonl".into()));
        assert_eq!(history(&[("HOME", "h")]), None);
    }
}
