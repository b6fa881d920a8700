//! `cargo xtask check`: the steps of CI, in order, up to the first that fails.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::{Failure, cargo, soak};

/// The kinds of test that CI's machine can run, so that skipping one there is a failure.
const MUST_RUN: &str = "root,v2,v1,cores,scope,programs";

/// A cargo subcommand that does not come with the toolchain: its program, and the version that CI has.
const TOOLS: [(&str, &str); 2] = [("cargo-deny", "0.20.2"), ("cargo-machete", "0.9.2")];

/// The features that tests alone switch on.
const TEST_ONLY: &str = "crash-points,fuzzing";

/// What cargo is asked to do, one after the other. `deny check advisories` is not here: its database comes from
/// outside the package registry, which CI cannot reach. Features that tests alone switch on have steps of their own: they
/// change the program, which everything else is to see as it is.
const STEPS: [&[&str]; 9] = [
    &["fmt", "--all", "--check"],
    &["xtask", "assets", "--check"],
    &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
    &["clippy", "--workspace", "--all-targets", "--locked", "--features", TEST_ONLY, "--", "-D", "warnings"],
    &["deny", "--locked", "check", "bans", "licenses", "sources"],
    &["machete"],
    // Before the others, so that what is left in the build directory is the program.
    &[
        "test",
        "--locked",
        "--features",
        TEST_ONLY,
        "--lib",
        "--test",
        "suite",
        "--",
        "crash_points",
        "fuzz",
        "--nocapture",
    ],
    &["test", "--workspace", "--exclude", "perflock-model", "--locked"],
    // With what it counted.
    &["test", "--locked", "--package", "perflock-model", "--", "--nocapture"],
];

/// Jobs of the last step's soak.
const SOAK_JOBS: &str = "2000";

/// Runs every step.
///
/// # Errors
/// The first step that failed, or a tool that is not installed.
pub(crate) fn check() -> Result<ExitCode, Failure> {
    let missing: Vec<String> = TOOLS.iter().filter_map(|&(tool, version)| how_to_install(tool, version)).collect();
    if !missing.is_empty() {
        return Err(missing.join("\nxtask: "));
    }
    let start = Instant::now();
    let steps = STEPS.len() + 1;
    for (index, arguments) in STEPS.into_iter().enumerate() {
        step(&format!("{}/{steps}", index + 1), arguments)?;
    }
    stress(&format!("{steps}/{steps}"))?;
    println!("==> all {steps} steps passed in {}", seconds(start.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// The last step: a soak of the binaries that the tests ran, where one is possible.
fn stress(position: &str) -> Result<(), Failure> {
    let arguments = ["--jobs", SOAK_JOBS, "--bin"].map(str::to_owned);
    let arguments = [&arguments[..], &[soak::debug_binaries().display().to_string()]].concat();
    let shown = format!("cargo xtask soak {}", arguments.join(" "));
    println!("==> [{position}] {shown}");
    if let Some(missing) = soak::missing() {
        let must = if in_ci() { MUST_RUN.to_owned() } else { std::env::var("PERFLOCK_MUST_RUN").unwrap_or_default() };
        if must.split(',').any(|named| named == missing.need) {
            return Err(format!("step {position} must run, but: {}", missing.why));
        }
        println!("==> [{position}] SKIP: {}", missing.why);
        return Ok(());
    }
    let start = Instant::now();
    if soak::soak(&arguments)? != ExitCode::SUCCESS {
        return Err(format!("step {position} failed after {}: {shown}", seconds(start.elapsed())));
    }
    println!("==> [{position}] passed in {}", seconds(start.elapsed()));
    Ok(())
}

/// Whether this is CI, which can run everything.
fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Runs one step and prints how long it took.
fn step(position: &str, arguments: &[&str]) -> Result<(), Failure> {
    let mut command = cargo();
    // cargo-machete takes itself for run by `cargo run` where this is set, and reads its arguments otherwise.
    command.args(arguments).env_remove("CARGO_PKG_NAME");
    let mut shown = format!("cargo {}", arguments.join(" "));
    if in_ci() && arguments.first() == Some(&"test") {
        command.env("PERFLOCK_MUST_RUN", MUST_RUN);
        shown = format!("PERFLOCK_MUST_RUN={MUST_RUN} {shown}");
    }
    println!("==> [{position}] {shown}");
    let start = Instant::now();
    let status = command.status().map_err(|error| format!("cannot start {shown}: {error}"))?;
    let took = seconds(start.elapsed());
    if !status.success() {
        return Err(format!("step {position} failed after {took} ({status}): {shown}"));
    }
    println!("==> [{position}] passed in {took}");
    Ok(())
}

/// `None` if the tool can be run.
pub(crate) fn how_to_install(tool: &str, version: &str) -> Option<String> {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => None,
        _ => Some(format!("{tool} is not installed; to install it: cargo install --locked {tool} --version {version}")),
    }
}

/// `12.3 s`.
fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
