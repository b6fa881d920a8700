//! The README's console blocks, run as they stand: each in a fresh world, with `/run` empty as on a new machine.

use crate::harness::{V1Group, World, source};
use crate::needs;

/// Commands that build or test the project itself: CI runs them, a test cannot.
const RUN_BY_CI: [&str; 2] =
    ["cargo run --release -- --private grep 0:: /proc/self/cgroup", "cargo test --workspace --locked"];

/// Console blocks as commands with the output that follows each.
fn blocks() -> Vec<Vec<(String, String)>> {
    let readme = source("README.md");
    let fenced = readme.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    fenced
        .map(|block| {
            let mut commands: Vec<(String, String)> = Vec::new();
            for line in block.lines() {
                match line.strip_prefix("$ ") {
                    Some(command) => commands.push((command.to_owned(), String::new())),
                    None => {
                        let output = &mut commands.last_mut().expect("a block begins with a command").1;
                        output.push_str(line);
                        output.push('\n');
                    }
                }
            }
            commands
        })
        .collect()
}

/// What differs from run to run: numbers, how wide they make a table, whether a child has executed its program yet, and who
/// else uses this machine.
fn normalise(text: &str) -> String {
    let mut normal = String::new();
    for line in text.lines().filter(|line| !line.starts_with("outside the lock: ")) {
        let mut line: String = line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        for (from, to) in [("00", "0"), ("0.0", "0"), ("  ", " "), ("process: sh (", "process: sleep (")] {
            while line.contains(from) {
                line = line.replace(from, to);
            }
        }
        normal.push_str(line.trim());
        normal.push('\n');
    }
    normal
}

#[test]
fn every_console_block_does_what_the_readme_shows() {
    needs!(Speed, Root, V2, OwnGroup, Program("make"), Program("unshare"));
    let mut tested = 0;
    for commands in blocks() {
        if commands.iter().any(|(command, _)| RUN_BY_CI.contains(&command.as_str())) {
            continue;
        }
        // In v2 nobody can limit a job below a world's group, which has processes.
        if commands.iter().any(|(command, _)| command.contains("--memory")) && V1Group::new("memory").is_none() {
            continue;
        }
        let world = World::new();
        world.write("Makefile", "all:\n\t@echo compiling\nbench:\n\t@echo running the benchmark\n");
        if commands.iter().any(|(command, _)| command.contains("-quiet")) {
            world.judge_quiet("5%");
        }
        // `sudo` may be missing, and nothing is to be gained by root. Each command's output goes to a file of its own,
        // and a job in the background has begun before the next command.
        let mut script = "mount -t tmpfs tmpfs /run\nsudo() { \"$@\"; }\n".to_owned();
        if commands.iter().any(|(command, _)| command.contains("--setup")) {
            // As on a machine with systemd, whose /etc is the test's.
            world.script("systemctl", "#!/bin/sh\n");
            script.push_str(
                "mount -t tmpfs -o mode=755 tmpfs /var/lib; rm .config/perflock/config.toml\n\
                 mkdir -p etc/tmpfiles.d /run/systemd/system; cp -L /etc/passwd /etc/group etc; mount --bind etc /etc\n\
                 PATH=$PWD:$PATH\n",
            );
        } else {
            script.push_str(
                "perflock --setup -q --lock /run/perflock.new; mv /run/perflock.new /run/perflock\n\
                 mv /run/perflock.new.d /run/perflock.d\n",
            );
        }
        for (index, (command, _)) in commands.iter().enumerate() {
            let output = world.path(&format!("out{index}"));
            script.push_str(&format!("exec >{} 2>&1\n{command}\n", output.display()));
            if command.ends_with('&') {
                script.push_str("until wholock | grep -q running; do :; done\n");
            }
        }
        script.push_str("wait\n");
        world.cmd("unshare -m bash -c").arg(&script).env_remove("PERFLOCK_LOCK").run();
        for (index, (command, expected)) in commands.iter().enumerate() {
            let printed = world.read(&format!("out{index}"));
            // The loop that waits for a job in the background prints nothing; neither does such a job.
            assert_eq!(normalise(&printed), normalise(expected), "$ {command}\n{printed}");
            tested += 1;
        }
        world.assert_clean();
    }
    assert!(tested >= 8, "only {tested} commands were found in the README");
}

#[test]
fn the_commands_that_only_ci_can_run_are_still_those_of_the_readme() {
    let all: Vec<String> = blocks().into_iter().flatten().map(|(command, _)| command).collect();
    for command in RUN_BY_CI {
        assert!(all.iter().any(|shown| shown == command), "{command} is not in the README");
    }
}
