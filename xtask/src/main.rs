//! The project's own commands, run as `cargo xtask COMMAND`: `check` is exactly what CI runs, `assets` makes manual pages and
//! completions, `package` makes packages, `bench` measures what perflock costs, `soak` stresses it, `study` finds out whether its verdicts
//! are right, `capture` puts what it shows into the README.
// A developer's command line tool: its output goes to the terminal and nowhere else.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod assets;
mod bench;
mod capture;
mod check;
mod manual;
mod package;
mod room;
mod soak;
mod study;
mod v1;

use std::path::PathBuf;
use std::process::ExitCode;

/// What `cargo xtask` alone prints.
const USAGE: &str = "\
usage: cargo xtask check
           what CI runs: format, current assets, clippy, licences and bans, unused dependencies, tests, a short soak
       cargo xtask assets [--check]
           makes manual pages and completions, in config; or says whether those that are there are current
       cargo xtask package [OPTION]...
           the .deb and the .rpm of the last commit, from a tree that has nothing else; needs cargo-deb and cargo-generate-rpm
           --profile NAME         how the programs are built [default: release]
           --deb-version VERSION  another than Cargo.toml's
           --out DIR              where they are put [default: target/packages]
       cargo xtask bench [start|queue|release|bomb|escapes|wholock|idle|usage|pins|verdict]... [OPTION]...
           what perflock costs, as interleaved pairs; without a name: everything
           --pairs N      rounds per measurement [default: 100; queue and usage's jobs: N/20, bomb: N/10, release
                          and pins' jobs: N/5, at least 5; escapes: 2 N]
           --processes N  release: how many a job leaves [default: 5000, then 20000]
           --cold-only    leave out the runs without idle time between them
           --strict       exit 1 if a target is missed
       cargo xtask soak [--jobs N | --time 2h] [--seed N] [--parallel N] [--bin DIR]
           jobs of several users, killed, stopped and cancelled at random; then proves from their log that
           exclusive jobs were alone, cores had one owner, the order was kept and every end is explained; needs root
           and cgroup v2
           --jobs N      how many [default: 2000]
           --time TIME   for so long instead (90s, 10m, 2h)
           --seed N      what is drawn at random [default: another each time]
           --parallel N  how many at a time [default: 60]
           --bin DIR     perflock and pls from there [default: debug binaries, built now]
       cargo xtask study [idle|forks|pingpong|fsync|loopback|user|storm|service|container]... [--runs N]
           whether the verdict is right: quiet jobs that must not be said to be disturbed, and culprits that must be named;
           exits with 1 if one is wrong; needs root and cgroup v2, best on an idle machine
           --runs N  of each [default: 20, which takes about 7 minutes]
       cargo xtask capture
           puts what wholock shows of a real run into the README; needs root and cgroup v2, best on an idle machine";

/// Why a command of xtask ended early, as one message for the developer.
type Failure = String;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", [].as_slice()),
    };
    let result = match command {
        "check" if rest.is_empty() => check::check(),
        "assets" => assets::assets(rest),
        "bench" => bench::bench(rest),
        "package" => package::package(rest),
        "soak" => soak::soak(rest),
        "study" => study::study(rest),
        "capture" => capture::capture(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(code) => code,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The project's top directory.
fn top() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    own.parent().map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// The cargo that runs us, in the project's top directory.
fn cargo() -> std::process::Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(program);
    command.current_dir(top());
    command
}
