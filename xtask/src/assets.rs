//! `cargo xtask assets`: manual pages and completions, made from the command lines themselves and kept in `config/man` and
//! `config/completions`. `--check` fails if what is there is not what would be made.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, Command, ValueHint};
use clap_complete::Shell;

use crate::{Failure, manual, top};

/// Makes all of it, or with `--check` compares.
///
/// # Errors
/// A file could not be written or is not current.
pub(crate) fn assets(arguments: &[String]) -> Result<ExitCode, Failure> {
    let check = match arguments {
        [] => false,
        [word] if word == "--check" => true,
        _ => return Err("usage: cargo xtask assets [--check]".to_owned()),
    };
    let mut stale = Vec::new();
    for (path, text) in made()? {
        let shown = path.display().to_string();
        let path = top().join(&path);
        if check {
            if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                stale.push(shown);
            }
            continue;
        }
        let directory = path.parent().expect("a file is in a directory");
        fs::create_dir_all(directory).map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
        fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    match stale.is_empty() {
        true => Ok(ExitCode::SUCCESS),
        false => Err(format!("not current: {}; to make them anew: cargo xtask assets", stale.join(", "))),
    }
}

/// Every file, by its path in the repository.
fn made() -> Result<Vec<(PathBuf, String)>, Failure> {
    let mut files = vec![("config/man/perflock.toml.5".into(), manual::of_configuration()?)];
    for command in perflock::cli::commands() {
        let name = command.get_name().to_owned();
        files.push((format!("config/man/{name}.1").into(), manual::of_program(&command)?));
        for (shell, directory, file) in [
            (Shell::Bash, "bash", name.clone()),
            (Shell::Zsh, "zsh", format!("_{name}")),
            (Shell::Fish, "fish", format!("{name}.fish")),
        ] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut with_words(&command), &*name, &mut text);
            let mut text = String::from_utf8(text).expect("completions are text");
            if name != "wholock" {
                if shell == Shell::Fish {
                    // Behind the command these are not ours.
                    text = text.replace(
                        &format!("complete -c {name} "),
                        &format!("complete -c {name} -n __fish_{name}_options "),
                    );
                }
                text.push_str(&of_the_command(shell, &command, &name));
            }
            files.push((format!("config/completions/{directory}/{file}").into(), text));
        }
    }
    Ok(files)
}

/// The command line with what its options can be given, for shells: the program reads the words by functions of its own, which
/// name them only in the help.
fn with_words(command: &Command) -> Command {
    command.clone().mut_args(|arg| {
        let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        // clap wants words that stay.
        let words: Vec<&'static str> = name.to_owned().leak().split('|').collect();
        if words.len() > 1 && words.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase())) {
            arg.value_parser(clap::builder::PossibleValuesParser::new(words))
        } else if arg.get_action().takes_values() && arg.get_value_hint() == ValueHint::Unknown {
            // Numbers, times and notes are no files.
            arg.value_hint(ValueHint::Other)
        } else {
            arg
        }
    })
}

/// The options that take so many words of their own: `-w` and `--wait` one, `--diff` two.
fn options_with_words(command: &Command, words: usize) -> Vec<String> {
    let words_of = |arg: &Arg| arg.get_num_args().map_or(1, |range| range.max_values());
    let takes = |arg: &&Arg| !arg.is_positional() && arg.get_action().takes_values() && words_of(arg) == words;
    let names = |arg: &Arg| {
        let short = arg.get_short_and_visible_aliases().into_iter().flatten().map(|name| format!("-{name}"));
        let long = arg.get_long_and_visible_aliases().into_iter().flatten().map(|name| format!("--{name}"));
        short.chain(long).collect::<Vec<_>>()
    };
    command.get_arguments().filter(takes).flat_map(names).collect()
}

/// What makes a shell complete the command that is to be run, as it does behind nice(1).
fn of_the_command(shell: Shell, command: &Command, name: &str) -> String {
    let [options, with_two] = [1, 2].map(|words| options_with_words(command, words));
    match shell {
        Shell::Bash => format!(
            r#"
# What follows the options is a command line of its own.
_{name}_or_command() {{
    local i=1 files=0
    while ((i < COMP_CWORD)); do
        case ${{COMP_WORDS[i]}} in
            --) ((i += 1)); break ;;
            {0}) ((i += 2)); [[ ${{COMP_WORDS[i - 1]}} != "=" ]] || ((i += 1)) ;;
            {1}) ((i += 3)); files=$((i > COMP_CWORD && i < COMP_CWORD + 3)) ;;
            -*) ((i += 1)) ;;
            *) break ;;
        esac
    done
    if ((files)); then
        mapfile -t COMPREPLY < <(compgen -f -- "$2")
    elif ((i > COMP_CWORD)) || [[ ${{COMP_WORDS[i]}} == -* && ${{COMP_WORDS[i - 1]}} != -- ]]; then
        # bash takes --option=word for three words.
        if [[ $2 == "=" ]]; then
            _{name} "$1" "" "$3"
        elif [[ $3 == "=" ]]; then
            _{name} "$1" "$2" "${{COMP_WORDS[COMP_CWORD - 2]}}"
        else
            _{name} "$@"
        fi
    elif declare -F _comp_command_offset >/dev/null; then
        _comp_command_offset "$i"
    elif declare -F _command_offset >/dev/null; then
        _command_offset "$i"
    elif ((i == COMP_CWORD)); then
        mapfile -t COMPREPLY < <(compgen -c -- "${{COMP_WORDS[COMP_CWORD]}}")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}")
    fi
}}
complete -F _{name}_or_command -o bashdefault -o default {name}
"#,
            options.join("|"),
            with_two.join("|")
        ),
        // A "--" before these, as nice(1) has it, would be one of them; they begin with a short one, since that function takes
        // long ones at the beginning for its own.
        Shell::Fish => format!(
            r#"
# Whether the command has not come yet.
function __fish_{name}_options
    set -l words (commandline -opc)
    while set -q words[2]
        set -e words[1]
        switch $words[1]
            case --
                return 1
            case {0}
                set -q words[2]; and set -e words[1]
            case {1}
                set -e words[1]
                set -q words[2]; and set -e words[1]
            case '-*'
            case '*'
                return 1
        end
    end
    return 0
end

# Whether this is the second file of two.
function __fish_{name}_second
    set -l words (commandline -opc)
    contains -- "$words[-2]" {1}; and __fish_{name}_options
end
complete -c {name} -n __fish_{name}_second -F

# What follows the options is a command line of its own.
complete -c {name} -n 'not __fish_{name}_second' -x -a '(__fish_complete_subcommand {0})'
"#,
            options.join(" "),
            with_two.join(" ")
        ),
        // clap_complete does it there.
        _ => String::new(),
    }
}
