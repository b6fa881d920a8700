//! Completions, in the shells that they are for: options and their words, and behind them a command line like any other.

use std::fs;

use crate::harness::{World, source, wait_until};
use crate::needs;

/// What is typed before the Tab, and the words of the line then. `zebra-stripes` is a command that its user's shell completes.
const LINES: [(&str, &str); 9] = [
    ("pls --time-", "--time-limit"),
    ("perflock --leftovers w", "--leftovers wait"),
    // Words, not files.
    ("pls -w 5 --pin so", "-w 5 --pin soft"),
    ("perflock --report-file unusual-f", "--report-file unusual-file"),
    // Both are files.
    ("perflock --diff soft-t", "--diff soft-toy"),
    ("perflock --diff soft-toy unusual-f", "--diff soft-toy unusual-file"),
    ("pls -w 5 zebra-s", "-w 5 zebra-stripes"),
    // Both have options that begin so.
    ("perflock zebra-stripes --lo", "zebra-stripes --loud"),
    ("pls -n -- zebra-stripes unusual-f", "-n -- zebra-stripes unusual-file"),
];

/// A home with the completions of one shell, each where that shell looks for it, a command, and some files.
fn home(directory: &str, name_of: impl Fn(&str) -> String, at: &str) -> World {
    let world = World::new();
    fs::create_dir_all(world.path(at)).unwrap();
    for program in ["perflock", "pls"] {
        let name = name_of(program);
        world.write(&format!("{at}/{name}"), &source(&format!("config/completions/{directory}/{name}")));
    }
    fs::create_dir(world.path("bin")).unwrap();
    world.script("bin/zebra-stripes", "#!/bin/sh\n");
    for file in ["unusual-file", "wait-for-it", "soft-toy"] {
        world.write(file, "");
    }
    world
}

/// What both interactive shells read at their start: the programs only tell what they were given.
const SETTINGS: &str = "PS1='prompt> '; PATH=$HOME/bin:$PATH
perflock() { echo \"$*\" >>said; }
pls() { echo \"$*\" >>said; }
";

/// Types each line, a Tab and Enter, and compares what the program is given then.
#[track_caller]
fn types(world: &World, shell: &str, lines: &[(&str, &str)]) {
    let cmd = world.cmd(shell).env("TERM", "dumb").env("HISTFILE", "").env("INPUTRC", "/dev/null");
    let mut terminal = cmd.env_remove("XDG_DATA_HOME").on_terminal();
    terminal.wait_screen("prompt> ");
    let mut expected = String::new();
    for (typed, words) in lines {
        expected += &format!("{words}\n");
        terminal.type_in(&format!("{typed}\t\n"));
        wait_until(&format!("{typed:?} is run:\n{}", terminal.screen()), || {
            world.read("said").lines().count() >= expected.lines().count()
        });
        // Behind a word that is complete there is a space, which the shell takes away.
        assert_eq!(world.read("said"), expected, "{typed:?}:\n{}", terminal.screen());
    }
    terminal.type_in("exit 0\n");
    assert_eq!(terminal.wait().code(), Some(0));
}

#[test]
fn in_bash() {
    needs!(Program("bash"));
    let world = home("bash", str::to_owned, "completions");
    world.write(".bashrc", &format!("{SETTINGS}. completions/perflock\n. completions/pls\n"));
    // bash alone knows commands and files; it has no function that completes another command's options.
    let lines: Vec<_> = LINES.into_iter().filter(|(typed, _)| !typed.ends_with("--lo")).collect();
    types(&world, "bash --noprofile -i", &lines);
}

#[test]
fn in_bash_with_its_completions() {
    needs!(Program("bash"), Program("/usr/share/bash-completion/bash_completion"));
    let world = home("bash", str::to_owned, ".local/share/bash-completion/completions");
    // Nothing names ours: bash-completion finds them.
    world.write(
        ".bashrc",
        &format!(
            "{SETTINGS}. /usr/share/bash-completion/bash_completion\ncomplete -W '--loud' -o default zebra-stripes\n"
        ),
    );
    // What bash takes for three words.
    let lines = [&LINES[..], &[("perflock --leftovers=w", "--leftovers=wait"), ("pls --pin=h", "--pin=hard")]].concat();
    types(&world, "bash --noprofile -i", &lines);
}

#[test]
fn in_zsh() {
    needs!(Program("zsh"));
    let world = home("zsh", |program| format!("_{program}"), "functions");
    world.write(
        ".zshrc",
        &format!(
            "{SETTINGS}fpath=(~/functions $fpath)\nautoload -U compinit\ncompinit -u -D\n\
             _zebra() {{ _arguments '--loud' '*:file:_files' }}\ncompdef _zebra zebra-stripes\n"
        ),
    );
    let lines = [&LINES[..], &[("perflock --leftovers=w", "--leftovers=wait")]].concat();
    types(&world, "zsh -d -i", &lines);
}

#[test]
fn in_fish() {
    needs!(Program("fish"));
    let world = home("fish", |program| format!("{program}.fish"), ".config/fish/completions");
    world.write(".config/fish/config.fish", "set PATH ~/bin $PATH\ncomplete -c zebra-stripes -l loud\n");
    let lines = [&LINES[..], &[("perflock --leftovers=w", "--leftovers=wait")]].concat();
    for (typed, words) in lines {
        let done = world.cmd("fish -c").arg(format!("complete -C '{typed}'")).run().exits(0).says("");
        // One for each line, with what it means behind a tab.
        let found: Vec<&str> = done.stdout.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(found, [words.rsplit(' ').next().unwrap()], "{typed:?}");
    }
}
