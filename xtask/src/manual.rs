//! Manual pages, in roff's man macros: what the command lines know comes from them, exit codes from the README, keys from the
//! configuration that is shipped, and the rest from `xtask/man`.

use std::fs;

use clap::Command;

use crate::{Failure, top};

/// Sections that the command lines do not know, by program. The first stands before the options.
const SECTIONS: [(&str, &str); 3] = [
    ("perflock", include_str!("../man/perflock.roff")),
    ("pls", include_str!("../man/perflock.roff")),
    ("wholock", include_str!("../man/wholock.roff")),
];

/// The page of the configuration file.
const CONFIGURATION: &str = include_str!("../man/perflock.toml.roff");

/// The page of a program.
///
/// # Errors
/// The README has no exit codes.
pub(crate) fn of_program(command: &Command) -> Result<String, Failure> {
    let name = command.get_name();
    let page = clap_mangen::Man::new(with_aliases(command));
    let (mut head, mut options) = (Vec::new(), Vec::new());
    let written = page
        .render_name_section(&mut head)
        .and_then(|()| page.render_synopsis_section(&mut head))
        .and_then(|()| page.render_options_section(&mut options));
    written.expect("a buffer takes everything");
    let [head, options] = [head, options].map(|part| String::from_utf8(part).expect("a page is text"));
    let sections = SECTIONS.iter().find(|(program, _)| *program == name).map_or("", |(_, text)| text);
    // No page refers to itself.
    let sections = sections.replace(&format!(".BR {name} (1),\n"), "");
    let (description, rest) = sections.split_at(sections[1..].find(".SH ").map_or(sections.len(), |at| at + 1));
    // The pages have one table of exit codes; wholock has its own.
    let codes = if rest.contains(".SH EXIT STATUS") { String::new() } else { exit_codes()? };
    let title = title(&name.to_uppercase(), 1, "User Commands", command.get_version().unwrap_or_default());
    let text = [title, head, description.to_owned(), options, codes, rest.to_owned()].concat();
    // clap_mangen ends some lines with a space.
    Ok(text.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// A page's first line. No date: the page would change with the day it is made on.
fn title(name: &str, section: u8, kind: &str, version: &str) -> String {
    format!(".TH {name} {section} \"\" \"perflock {version}\" \"{kind}\"\n")
}

/// The command line with the other names of its options in their help, where clap_mangen leaves them out.
fn with_aliases(command: &Command) -> Command {
    command.clone().mut_args(|arg| {
        let names = arg.get_visible_aliases().unwrap_or_default();
        match (names.is_empty(), arg.get_help()) {
            (false, Some(help)) => {
                let names: Vec<String> = names.iter().map(|name| format!("--{name}")).collect();
                let help = format!("{help} [aliases: {}]", names.join(", "));
                arg.help(help)
            }
            _ => arg,
        }
    })
}

/// The README's table of exit codes as a section.
fn exit_codes() -> Result<String, Failure> {
    let readme = read("README.md")?;
    let table = readme.split("## Exit codes\n").nth(1).and_then(|rest| rest.split("|---|---|\n").nth(1));
    let rows = table.ok_or("the README has no table of exit codes")?.lines().take_while(|line| line.starts_with('|'));
    let mut text = ".SH EXIT STATUS\n".to_owned();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [code, meaning] = cells[..] else { return Err(format!("not a code and its meaning: {row}")) };
        text += &format!(".TP\n{}\n{}\n", marked(code), marked(&sentence(meaning)));
    }
    Ok(text)
}

/// The page of the configuration file.
///
/// # Errors
/// The shipped one has another form.
pub(crate) fn of_configuration() -> Result<String, Failure> {
    let version = perflock::cli::commands()[0].get_version().unwrap_or_default().to_owned();
    let title = title("PERFLOCK.TOML", 5, "File Formats", &version);
    Ok(title + &CONFIGURATION.replace("@KEYS@\n", &keys(&read("config/perflock.toml")?)?))
}

/// Every key of the shipped configuration, with its default and what stands above it.
fn keys(configuration: &str) -> Result<String, Failure> {
    // The first is about the file itself.
    configuration.trim_end().split("\n\n").skip(1).map(key).collect()
}

/// One key: some lines that begin with `# `, and one that is `#key = default`.
fn key(block: &str) -> Result<String, Failure> {
    let wrong = || format!("config/perflock.toml: not a comment and a key at its default:\n{block}");
    let (comment, key) = block.rsplit_once('\n').ok_or_else(wrong)?;
    let key = key.strip_prefix('#').filter(|key| key.contains(" = ")).ok_or_else(wrong)?;
    let lines: Option<Vec<&str>> = comment.lines().map(|line| line.strip_prefix("# ")).collect();
    let text = lines.ok_or_else(wrong)?.join(" ");
    Ok(format!(".TP\n\\fB{}\\fR\n{}\n", escaped(key), escaped(&text)))
}

/// With a capital, and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    // A program's name is written as it is typed.
    let first = if text.starts_with("perflock") { "p".to_owned() } else { first };
    format!("{first}{}.", chars.as_str())
}

/// Markdown's `code` is bold in a manual.
fn marked(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts
        .map(|(index, part)| if index % 2 == 1 { format!("\\fB{}\\fR", escaped(part)) } else { escaped(part) })
        .collect()
}

/// Text as roff prints it, none of it a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('~', "\\(ti").replace('"', "\\(dq");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn read(path: &str) -> Result<String, Failure> {
    fs::read_to_string(top().join(path)).map_err(|error| format!("cannot read {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_default_and_what_stands_above_it() {
        let text = key("# How long. A \\ and\n# -w win.\n#wait = \"none\"").unwrap();
        assert_eq!(text, ".TP\n\\fBwait = \\(dqnone\\(dq\\fR\nHow long. A \\e and \\-w win.\n");
        for wrong in ["#wait = 1", "# text\n#wait", "text\n#wait = 1", "# text\nwait = 1"] {
            assert!(key(wrong).is_err(), "{wrong}");
        }
    }

    /// A key that the program has and the page does not, or the other way, is told by the name.
    #[test]
    fn the_page_has_every_key_of_the_configuration() {
        let page = of_configuration().unwrap();
        let shown: Vec<String> = page
            .lines()
            .filter_map(|line| Some(line.strip_prefix("\\fB")?.split_once(" = ")?.0.replace("\\-", "-")))
            .collect();
        let mut keys = perflock::config::KEYS.map(str::to_owned).to_vec();
        keys.sort();
        let mut sorted = shown.clone();
        sorted.sort();
        assert_eq!(sorted, keys);
    }

    #[test]
    fn what_markdown_has_as_code_is_bold() {
        assert_eq!(marked(&sentence("it ended (`-n`)")), "It ended (\\fB\\-n\\fR).");
        assert_eq!(marked(&sentence("perflock itself")), "perflock itself.");
        assert_eq!(escaped(".so x"), "\\&.so x");
    }
}
