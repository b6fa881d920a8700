//! What was typed. No I/O; usage errors come back as text for the one place that prints.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, Args, Command, CommandFactory, FromArgMatches, Parser, ValueHint};

use crate::cgroup::Choice;
use crate::escape;
use crate::job::Mode;
use crate::limit::Bound;
use crate::pin::{self, Words};
use crate::supervisor::step::Leftovers;
use crate::text::parse_duration;

/// The command line of `perflock` and `pls`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct RunArgs {
    /// Share the machine with other shared jobs (what pls does)
    #[arg(short, long, overrides_with = "exclusive")]
    pub shared: bool,
    /// Have the machine alone (what perflock does)
    #[arg(short = 'x', short_alias = 'e', long, overrides_with = "shared")]
    pub exclusive: bool,
    /// Fail instead of waiting, with exit code 75 or -E's
    #[arg(short, long, visible_alias = "nb")]
    pub nonblock: bool,
    /// Give up after waiting this long, with exit code 75 or -E's
    #[arg(short, long, visible_alias = "timeout", value_name = "DURATION", value_parser = parse_duration)]
    pub wait: Option<Duration>,
    /// The exit code when the lock was not obtained
    #[arg(short = 'E', long, value_name = "CODE")]
    pub conflict_exit_code: Option<u8>,
    /// A note for the others, shown by wholock
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// End the command after this long, with exit code 124
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub time_limit: Option<Duration>,
    /// Time between TERM and KILL for members of the job that outlive the command [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub grace: Option<Duration>,
    /// What to do with members that outlive the command: kill them, or wait for them [default: kill]
    #[arg(long, value_name = "kill|wait", value_parser = Leftovers::parse)]
    pub leftovers: Option<Leftovers>,
    /// The job's cgroup: the best there is, a real one or fail, or none [default: auto]
    #[arg(long, value_name = "auto|required|none", value_parser = Choice::parse)]
    pub cgroup: Option<Choice>,
    /// What the command started outside of its cgroup: look for it and name it, or do not look [default: warn]
    #[arg(long, value_name = "warn|ignore", value_parser = escape::Choice::parse)]
    pub escapes: Option<escape::Choice>,
    /// Run on these processors: 0-3,8 or node0 or all
    #[arg(long, value_name = "LIST", value_parser = Words::parse, conflicts_with = "cores")]
    pub cpus: Option<Words>,
    /// Use the memory of these nodes [default: those of the processors]
    #[arg(long, value_name = "LIST", value_parser = Words::parse)]
    pub mems: Option<Words>,
    /// Run on so many whole cores, near each other, one processor of each; shared jobs get cores that no other such job has
    #[arg(long, value_name = "N", value_parser = pin::request::parse_cores)]
    pub cores: Option<usize>,
    /// With --cores: use every thread of each core
    #[arg(long, requires = "cores", conflicts_with = "cpus")]
    pub smt: bool,
    /// Keep everybody else off the job's processors, the kernel's load balancing too (root)
    #[arg(long)]
    pub isolated: bool,
    /// How it is kept there: the best there is, by a cpuset or fail, or by affinity, which it can change [default: auto]
    #[arg(long, value_name = "auto|hard|soft", value_parser = pin::Choice::parse)]
    pub pin: Option<pin::Choice>,
    /// The most memory that the job may have, swap included: 512M, 2G, 1.5GiB; at its limit the kernel kills a process of it
    #[arg(long, value_name = "SIZE|none", value_parser = Bound::memory, allow_hyphen_values = true)]
    pub memory: Option<Bound>,
    /// The most processes and threads that the job may have at a time; at its limit forks fail in it
    #[arg(long, value_name = "N|none", value_parser = Bound::processes, allow_hyphen_values = true)]
    pub pids: Option<Bound>,
    /// Exit with 76 if anybody else used the machine while the command had it, or if that is not known, and it exited with 0
    #[arg(long)]
    pub require_quiet: bool,
    /// Afterwards tell all that is known of the run, on stderr
    #[arg(long)]
    pub report: bool,
    /// Write the same to a file, as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report_file: Option<PathBuf>,
    /// The lock file; the queue is PATH.d [default: /run/perflock]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub lock: Option<PathBuf>,
    /// Use a lock of your own: only your jobs exclude each other
    #[arg(long, conflicts_with = "lock")]
    pub private: bool,
    /// Set this machine up: create the lock file and the queue directory, now and at every boot, and let users' jobs have cpusets
    #[arg(long, conflicts_with_all = ["private", "command"])]
    pub setup: bool,
    /// With --setup: let services of the machine's own run under pls: apt-daily, updatedb, or any by its name
    #[arg(long, value_name = "SERVICE,...", value_delimiter = ',')]
    pub tame: Vec<String>,
    /// Take away what --setup made, if nobody holds the machine or waits for it
    #[arg(long, conflicts_with_all = ["setup", "private", "cancel", "command"])]
    pub undo: bool,
    /// With --setup or --undo: say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// End a job: it leaves the queue, or is sent TERM and after --grace KILL
    #[arg(long, value_name = "JOB", conflicts_with_all = ["setup", "command"])]
    pub cancel: Option<String>,
    /// Tell what of perflock works here, what is lost where something does not, and what mends it; exits with 0 or 1
    #[arg(long, conflicts_with_all = ["setup", "undo", "cancel", "command"])]
    pub check: bool,
    /// Tell what differed between two runs, by the reports that --report-file wrote (- is stdin); exits with 0 if the conditions were the same, else 1
    #[arg(
        long,
        value_names = ["A", "B"],
        num_args = 2,
        action = ArgAction::Set,
        value_hint = ValueHint::FilePath,
        conflicts_with_all = ["setup", "undo", "cancel", "check", "command"]
    )]
    pub diff: Vec<PathBuf>,
    /// With --check or --diff: print it as JSON
    #[arg(long)]
    pub json: bool,
    /// With --setup: only this group may use the lock
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Read this configuration file instead of /etc/perflock.toml and your own
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Say what is done, and how
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Say only what is wrong
    #[arg(short, long)]
    pub quiet: bool,
    /// The command to run, with its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<OsString>,
}

impl RunArgs {
    /// The two reports of `--diff`.
    pub fn diffed(&self) -> Option<(&Path, &Path)> {
        match &self.diff[..] {
            [first, second] => Some((first, second)),
            _ => None,
        }
    }
}

/// The command line of `wholock`.
#[derive(Parser, Clone, Debug, Default, PartialEq, Eq)]
#[command(name = "wholock", version, about = "Show who holds the machine, who waits, and what each job uses")]
pub struct WholockArgs {
    /// The lock file [default: /run/perflock]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub lock: Option<PathBuf>,
    /// Look at your own lock (perflock --private)
    #[arg(long, conflicts_with = "lock")]
    pub private: bool,
    /// Tell whose job this process belongs to
    #[arg(long, value_name = "PID")]
    pub pid: Option<i32>,
    /// Print everything as JSON, with every counter that the kernel keeps
    #[arg(long, conflicts_with_all = ["quiet", "pid"])]
    pub json: bool,
    /// Show one job in full, by its number, with every counter and every process
    #[arg(value_name = "JOB", conflicts_with_all = ["pid", "quiet", "json", "tree"])]
    pub job: Option<String>,
    /// Also show every process of each job, with its own CPU time and memory
    #[arg(long, conflicts_with = "quiet")]
    pub tree: bool,
    /// Print nothing: exit 0 if the machine is free, 1 if it is held or waited for
    #[arg(short, long)]
    pub quiet: bool,
    /// Show the jobs that ended: who had the machine, for how long, and after which wait
    #[arg(long, conflicts_with_all = ["pid", "job", "tree", "quiet", "watch", "sample"])]
    pub history: bool,
    /// With --history: only this user's jobs
    #[arg(long, value_name = "NAME", requires = "history")]
    pub user: Option<String>,
    /// With --history: only jobs that ended in this time until now: 2h, 7d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "history")]
    pub since: Option<Duration>,
    /// Show it live, anew every so many seconds [default: 2]
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = parse_interval,
        conflicts_with_all = ["json", "quiet", "pid", "tree", "job", "sample"]
    )]
    pub watch: Option<Duration>,
    /// How long to watch for the CPU NOW column and for what is used outside of jobs; 0 leaves both out [default: 200ms]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub sample: Option<Duration>,
    /// Read this configuration file instead of /etc/perflock.toml and your own
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

/// The shortest time between two looks of the live view.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

/// Reads the time between two looks.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < SHORTEST_INTERVAL {
        Err("the shortest time between two looks is 0.1".to_owned())
    } else {
        Ok(interval)
    }
}

/// What the command line asks for instead of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aside {
    /// Print this on stdout and exit 0: `--help`, `--version`.
    Show(String),
    /// A usage error, to be printed behind the typed name.
    Usage(String),
}

/// The clap command of `perflock` or `pls`, for parsing and for generated documents.
pub fn run_command(name: &'static str, mode: Mode) -> Command {
    let about = match mode {
        Mode::Exclusive => {
            "Run a command with the machine to itself: wait for your turn, then keep every other job out"
        }
        Mode::Shared => "Run a command that shares the machine with other pls jobs, and never overlaps a perflock one",
    };
    let command = RunArgs::augment_args(Command::new(name))
        .args_override_self(true)
        .bin_name(name)
        .about(about)
        .version(env!("CARGO_PKG_VERSION"));
    command.override_usage(format!("{name} [OPTIONS] [--] COMMAND [ARG]..."))
}

/// The command lines of all three programs, for their manual pages and for shells that complete them.
pub fn commands() -> [Command; 3] {
    [run_command("perflock", Mode::Exclusive), run_command("pls", Mode::Shared), WholockArgs::command()]
}

/// Reads the command line of `perflock` or `pls`.
///
/// # Errors
/// See [`Aside`].
pub fn parse_run(name: &'static str, mode: Mode, arguments: Vec<OsString>) -> Result<RunArgs, Aside> {
    let matches = run_command(name, mode).no_binary_name(true).try_get_matches_from(arguments).map_err(|error| {
        match aside(error) {
            Aside::Usage(text) if text.starts_with("unexpected argument '-c'") => {
                Aside::Usage(format!("there is no -c; to run a shell command line: {name} sh -c 'COMMAND LINE'"))
            }
            other => other,
        }
    })?;
    let args = RunArgs::from_arg_matches(&matches).map_err(aside)?;
    if args.group.is_some() && !args.setup {
        return Err(Aside::Usage("--group says who may use the lock, and goes with --setup".to_owned()));
    }
    if !args.tame.is_empty() && !args.setup {
        return Err(Aside::Usage("--tame says what else is set up, and goes with --setup".to_owned()));
    }
    if args.dry_run && !args.setup && !args.undo {
        return Err(Aside::Usage("--dry-run goes with --setup or --undo; a command is run or it is not".to_owned()));
    }
    if args.json && !args.check && args.diff.is_empty() {
        return Err(Aside::Usage(
            "--json is how --check and --diff print, and goes with those (a job's: --report-file)".to_owned(),
        ));
    }
    if args.diffed().is_some_and(|(first, second)| first == "-" && second == "-") {
        return Err(Aside::Usage("--diff reads one of the two reports from stdin, not both".to_owned()));
    }
    let placed = args.cpus.is_some() || args.cores.is_some();
    if args.isolated && args.pin == Some(pin::Choice::Soft) {
        return Err(Aside::Usage("--isolated needs a cpuset, and --pin soft has none".to_owned()));
    }
    let shared = args.shared || mode == Mode::Shared && !args.exclusive;
    if args.isolated && shared && args.cores.is_none() && placed {
        return Err(Aside::Usage(
            "a shared job isolates cores that nobody else has: ask for them by --cores N, or use perflock".to_owned(),
        ));
    }
    if args.isolated && !placed {
        return Err(Aside::Usage("--isolated needs processors to isolate: --cpus LIST or --cores N".to_owned()));
    }
    let aside = args.setup || args.undo || args.check || args.cancel.is_some() || !args.diff.is_empty();
    if args.command.is_empty() && !aside {
        return Err(Aside::Usage(format!(
            "no command given\nusage: {name} [OPTIONS] [--] COMMAND [ARG]...   (more: {name} --help)"
        )));
    }
    Ok(args)
}

/// Reads the command line of `wholock`.
///
/// # Errors
/// See [`Aside`].
pub fn parse_wholock(arguments: Vec<OsString>) -> Result<WholockArgs, Aside> {
    let matches = WholockArgs::command().no_binary_name(true).try_get_matches_from(arguments).map_err(aside)?;
    WholockArgs::from_arg_matches(&matches).map_err(aside)
}

fn aside(error: clap::Error) -> Aside {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Aside::Show(text),
        _ => Aside::Usage(text.trim_start_matches("error: ").trim_end().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<RunArgs, Aside> {
        parse_run("perflock", Mode::Exclusive, line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn the_definitions_are_sound() {
        run_command("perflock", Mode::Exclusive).debug_assert();
        run_command("pls", Mode::Shared).debug_assert();
        WholockArgs::command().debug_assert();
    }

    #[test]
    fn options_end_at_the_command() {
        for line in ["ls -s", "-- ls -s", "-w 5 ls -s --help", "ls -- -x"] {
            let args = parse(line).unwrap();
            assert_eq!(args.command[0], "ls", "{line}");
            assert!(!args.shared && !args.exclusive, "{line}");
        }
        assert_eq!(parse("ls -- -x").unwrap().command, ["ls", "--", "-x"]);
        assert_eq!(parse("-- --odd").unwrap().command, ["--odd"]);
    }

    #[test]
    fn flock_s_letters_and_names_work() {
        let args = parse("-s -n -w 1.5 -E 9 true").unwrap();
        assert!(args.shared && args.nonblock);
        assert_eq!((args.wait, args.conflict_exit_code), (Some(Duration::from_millis(1500)), Some(9)));
        let long = parse("--shared --nonblock --timeout 1.5 --conflict-exit-code 9 true").unwrap();
        assert_eq!(long, args);
        assert!(parse("-s -x true").unwrap().exclusive);
    }

    #[test]
    fn flock_s_dash_c_says_what_to_type() {
        assert!(matches!(parse("-c ls"), Err(Aside::Usage(text)) if text.contains("perflock sh -c 'COMMAND LINE'")));
        assert_eq!(parse("sh -c ls").unwrap().command, ["sh", "-c", "ls"]);
    }

    #[test]
    fn the_live_view_takes_a_time_or_none() {
        let parse = |line: &str| parse_wholock(line.split_whitespace().map(OsString::from).collect());
        let watch = |line: &str| parse(line).unwrap().watch;
        assert_eq!(watch(""), None);
        assert_eq!(watch("--watch"), Some(Duration::from_secs(2)));
        assert_eq!(watch("--watch 5"), Some(Duration::from_secs(5)));
        assert_eq!(watch("--watch=0.1"), Some(Duration::from_millis(100)));
        assert_eq!(watch("--watch 250ms --lock x"), Some(Duration::from_millis(250)));
        assert_eq!(watch("--watch --private"), Some(Duration::from_secs(2)));
        for line in [
            "--watch 0",
            "--watch 0.05",
            "--watch soon",
            "--watch 1 2",
            "7 --watch",
            "--watch --json",
            "--watch -q",
            "--watch --pid 1",
            "--watch --tree",
            "--watch --sample 1",
        ] {
            assert!(matches!(parse(line), Err(Aside::Usage(_))), "{line}");
        }
    }

    #[test]
    fn two_reports_are_compared_and_the_last_two_asked_for_win() {
        let args = parse("--diff a - --json -q").unwrap();
        assert_eq!(args.diffed(), Some((Path::new("a"), Path::new("-"))));
        assert_eq!(parse("--diff a b --diff c d").unwrap().diffed(), Some((Path::new("c"), Path::new("d"))));
        assert_eq!(parse("true").unwrap().diffed(), None);
    }

    #[test]
    fn the_history_is_asked_for_alone() {
        let parse = |line: &str| parse_wholock(line.split_whitespace().map(OsString::from).collect());
        let args = parse("--history --user alice --since 2h --json --lock x").unwrap();
        assert_eq!((args.user.as_deref(), args.since), (Some("alice"), Some(Duration::from_secs(7200))));
        for line in [
            "--user alice",
            "--since 2h",
            "--history 7",
            "--history --tree",
            "--history -q",
            "--history --watch",
            "--history --pid 1",
            "--history --sample 1",
            "--history --since soon",
        ] {
            assert!(matches!(parse(line), Err(Aside::Usage(_))), "{line}");
        }
    }

    #[test]
    fn misuse_is_told_in_one_go() {
        for line in [
            "",
            "-w soon true",
            "-E 256 true",
            "--leftovers keep true",
            "--nonsense true",
            "--setup true",
            "--undo true",
            "--undo --setup",
            "--undo --private",
            "--dry-run true",
            "--tame apt-daily true",
            "--cancel 3 true",
            "--cancel",
            "--check true",
            "--check --setup",
            "--check --undo",
            "--check --cancel 3",
            "--diff",
            "--diff a",
            "--diff a b true",
            "--diff a b --check",
            "--diff a b --setup",
            "--diff a b --cancel 3",
            "--diff a b --undo",
            "--diff - -",
            "--json true",
            "--json",
            "--group g true",
            "--cores 0 true",
            "--cores many true",
            "--cpus 0-x true",
            "--cpus= true",
            "--cpus 0 --cores 1 true",
            "--cpus 0 --smt true",
            "--smt true",
            "--isolated true",
            "--mems node true",
            "--pin firm true",
            "--isolated --cpus 0 --pin soft true",
            "-s --isolated --cpus 0 true",
        ] {
            assert!(matches!(parse(line), Err(Aside::Usage(_))), "{line}");
        }
        assert!(
            matches!(parse("--help"), Err(Aside::Show(text)) if text.contains("Usage: perflock [OPTIONS] [--] COMMAND"))
        );
        assert!(matches!(parse("--version"), Err(Aside::Show(_))));
    }
}
