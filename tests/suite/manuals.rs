//! Manual pages, as those who read them get them.

use crate::harness::{World, source};
use crate::needs;

const PAGES: [&str; 4] = ["perflock.1", "pls.1", "wholock.1", "perflock.toml.5"];

/// Every warning that groff has.
#[test]
fn nothing_in_them_puzzles_groff() {
    needs!(Program("groff"));
    let world = World::new();
    for page in PAGES {
        world.write(page, &source(&format!("config/man/{page}")));
        world.cmd(&format!("groff -ww -man -Tutf8 -z {page}")).run().exits(0).prints("").says("");
    }
}

/// What a reader sees is what was written: no character was taken for a request or an escape.
#[test]
fn they_are_shown_as_they_were_written() {
    needs!(Program("groff"));
    let world = World::new();
    let shown = |page: &str| {
        world.write(page, &source(&format!("config/man/{page}")));
        let done = world.cmd(&format!("groff -man -Tascii -P-cbou -rLL=400n {page}")).run().exits(0);
        done.stdout
    };
    let page = shown("perflock.1");
    for text in [
        "-w, --wait <DURATION>",
        "[aliases: --timeout]",
        "75, or -E CODE",
        "The lock was not obtained (-n, -w), or with --undo the machine is in use.",
        "perflock -n true || echo busy",
    ] {
        assert!(page.contains(text), "{text:?}:\n{page}");
    }
    let sections: Vec<&str> = page.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase())).collect();
    let wanted =
        ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"];
    assert_eq!(sections[1..], wanted, "{page}");
    let page = shown("perflock.toml.5");
    for text in ["lock = \"/run/perflock\"", "time-limit = \"none\"", "~/.config/perflock/config.toml"] {
        assert!(page.contains(text), "{text:?}:\n{page}");
    }
}
