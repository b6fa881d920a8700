//! `cargo xtask package`: the .deb and the .rpm of the last commit, built from a tree that has nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use crate::check::how_to_install;
use crate::{Failure, cargo, top};

/// What makes the packages: programs and the versions that CI has.
const TOOLS: [(&str, &str); 2] = [("cargo-deb", "3.8.0"), ("cargo-generate-rpm", "0.21.1")];

const USAGE: &str = "usage: cargo xtask package [--profile NAME] [--deb-version VERSION] [--out DIR]";

/// What was asked for.
struct Wanted {
    profile: String,
    deb_version: Option<String>,
    out: PathBuf,
}

/// Builds both.
///
/// # Errors
/// A tool is missing, or a step failed.
pub(crate) fn package(arguments: &[String]) -> Result<ExitCode, Failure> {
    let wanted = parse(arguments)?;
    let missing: Vec<String> = TOOLS.iter().filter_map(|&(tool, version)| how_to_install(tool, version)).collect();
    if !missing.is_empty() {
        return Err(missing.join("\nxtask: "));
    }
    let tree = tempfile::tempdir().map_err(|error| format!("cannot make a directory for the tree: {error}"))?;
    let committed_sec = check_out(tree.path())?;
    fs::create_dir_all(&wanted.out).map_err(|error| format!("cannot create {}: {error}", wanted.out.display()))?;
    // Dependencies that are built already serve here, too.
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), PathBuf::from);
    let step = |arguments: &[&str]| -> Result<(), Failure> {
        let mut command = cargo();
        command.args(arguments).current_dir(tree.path());
        // Files have the commit's time, not today's.
        command.env("CARGO_TARGET_DIR", &target).env("SOURCE_DATE_EPOCH", &committed_sec);
        // cargo names this one's package to what it runs.
        command.env_remove("CARGO_MANIFEST_DIR");
        let shown = format!("cargo {}", arguments.join(" "));
        println!("==> {shown}");
        match command.status().map_err(|error| format!("cannot start {shown}: {error}"))? {
            status if status.success() => Ok(()),
            status => Err(format!("{shown} failed ({status})")),
        }
    };
    let profile = &*wanted.profile;
    step(&["build", "--locked", "--bins", "--profile", profile])?;
    let out = format!("{}/", wanted.out.display());
    let mut deb = vec!["deb", "--no-build", "--locked", "--profile", profile, "--output", &out];
    if let Some(version) = &wanted.deb_version {
        deb.extend(["--deb-version", version]);
    }
    step(&deb)?;
    // It takes the name of the directory.
    let built = if profile == "dev" { "debug" } else { profile };
    let shown = target.display().to_string();
    step(&["generate-rpm", "--profile", built, "--target-dir", &shown, "--output", &out])?;
    Ok(ExitCode::SUCCESS)
}

fn parse(arguments: &[String]) -> Result<Wanted, Failure> {
    let mut wanted =
        Wanted { profile: "release".to_owned(), deb_version: None, out: top().join("target").join("packages") };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or(USAGE)?;
        match word.as_str() {
            "--profile" => value.clone_into(&mut wanted.profile),
            "--deb-version" => wanted.deb_version = Some(value.clone()),
            "--out" => {
                wanted.out = std::path::absolute(value).map_err(|error| format!("cannot use {value}: {error}"))?;
            }
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(wanted)
}

/// Puts what the last commit has into a directory, and says when it was committed. What is not committed is told, since it is
/// not packaged.
fn check_out(directory: &Path) -> Result<String, Failure> {
    let said = |arguments: &[&str]| -> Result<String, Failure> {
        let output = Command::new("git").args(arguments).current_dir(top()).stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| format!("cannot start git: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        if output.status.success() { Ok(text) } else { Err(format!("git {} failed", arguments.join(" "))) }
    };
    let changed = said(&["status", "--porcelain"])?;
    if !changed.is_empty() {
        println!("==> not committed, so not packaged:\n{changed}");
    }
    let mut archive = Command::new("git")
        .args(["archive", "--format=tar", "HEAD"])
        .current_dir(top())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start git: {error}"))?;
    let pipe = archive.stdout.take().expect("it was asked for");
    let unpacked = Command::new("tar").arg("-x").current_dir(directory).stdin(pipe).status();
    let archived = archive.wait();
    let fine = |status: std::io::Result<std::process::ExitStatus>| status.is_ok_and(|status| status.success());
    if !fine(unpacked) || !fine(archived) {
        return Err("git archive HEAD | tar -x failed".to_owned());
    }
    said(&["log", "-1", "--format=%ct"])
}
