//! Units of systemd's, as far as it takes to run a service under `pls`: systemd.service(5), systemd.syntax(7).

use std::path::Path;

/// What a drop-in has to say so that the service of this unit file, with its other drop-ins behind it, runs its commands under
/// `pls`. `None` if it does so already.
///
/// Such a service can be stopped in the middle of something that must not be torn, as `apt-daily-upgrade.service` can: its
/// `KillMode=process` ends a shell and lets dpkg go on. So what outlives the main process is waited for, not ended, and all of it
/// stays in the service's own group (`Delegate=`), where systemd treats it as it did before.
///
/// # Errors
/// Why it cannot, as a sentence fragment.
pub fn under_pls(unit: &str, pls: &Path) -> Result<Option<String>, String> {
    let (mut commands, mut kept_out) = (Vec::new(), [None, None, None]);
    for (key, value) in service_lines(unit) {
        match (&*key, &*value) {
            // What was before does not count.
            ("ExecStart", "") => commands.clear(),
            ("ExecStart", _) => commands.extend(split(&value).ok_or("it has a quote that does not end")?),
            ("Type", "oneshot" | "simple" | "exec" | "idle" | "") => kept_out[0] = None,
            // Its main process is not the one that is started, or says when it is ready: pls would end it as a leftover.
            ("Type", kind) => kept_out[0] = Some(format!("it is a daemon (Type={kind}), and no job that ends")),
            ("ProtectSystem", value) => {
                let why = "it may not write to /run (ProtectSystem=strict), and so cannot use the lock";
                kept_out[1] = (value == "strict").then(|| why.to_owned());
            }
            ("RootDirectory" | "RootImage", value) => {
                let why = format!("it has a root directory of its own ({key}=), without the lock");
                kept_out[2] = (!value.is_empty()).then_some(why);
            }
            _ => {}
        }
    }
    if let Some(why) = kept_out.into_iter().flatten().next() {
        return Err(why);
    }
    if commands.is_empty() {
        return Err("it has no command".to_owned());
    }
    let mut tamed = Vec::new();
    for command in commands {
        // What runs is not the first word with "@", and is a shell's with "|".
        let rest = command.trim_start_matches(['-', ':', '+', '!', '@', '|']);
        let prefix = &command[..command.len() - rest.len()];
        if prefix.contains(['@', '|']) {
            return Err(format!("its command begins with {prefix:?}, which pls cannot do"));
        }
        let program = rest.split_ascii_whitespace().next().unwrap_or_default();
        if Path::new(program).file_name().is_some_and(|name| name == "pls" || name == "perflock") {
            return Ok(None);
        }
        tamed.push(format!("ExecStart={prefix}{} --quiet --leftovers wait -- {rest}\n", pls.display()));
    }
    Ok(Some(format!(
        "# Runs under pls: it waits while somebody has the machine alone, and no such job starts before it has ended.\n\
         [Service]\nExecStart=\n{}# The wait may take any time.\nTimeoutStartSec=infinity\n\
         # It stays in the service's own group, with its limits, and ends with the service as before.\nDelegate=yes\n",
        tamed.concat()
    )))
}

/// Whether a drop-in says what the service's commands are.
pub fn has_command(drop_in: &str) -> bool {
    service_lines(drop_in).iter().any(|(key, _)| key == "ExecStart")
}

/// The commands of one `ExecStart=`, which a `;` between two words separates. `None` if a quote does not end.
fn split(value: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' if quote.is_none() => words.push(std::mem::take(&mut word)),
            '\\' => {
                word.push(letter);
                word.extend(letters.next());
            }
            _ => {
                match quote {
                    Some(open) if open == letter => quote = None,
                    None if matches!(letter, '"' | '\'') => quote = Some(letter),
                    _ => {}
                }
                word.push(letter);
            }
        }
    }
    words.push(word);
    let commands = words.split(|word| word == ";").map(|words| words.join(" ").trim().to_owned());
    quote.is_none().then(|| commands.filter(|command| !command.is_empty()).collect())
}

/// Keys and values of the section `[Service]`, with lines that go on joined.
fn service_lines(unit: &str) -> Vec<(String, String)> {
    let (mut found, mut within, mut line) = (Vec::new(), false, String::new());
    for part in unit.lines() {
        let is_comment = part.trim_start().starts_with(['#', ';']);
        if is_comment {
            // Also between two parts of a line.
            continue;
        }
        match part.strip_suffix('\\') {
            Some(part) => {
                line.push_str(part);
                line.push(' ');
                continue;
            }
            None => line.push_str(part),
        }
        let whole = std::mem::take(&mut line);
        let whole = whole.trim();
        if whole.starts_with('[') {
            within = whole == "[Service]";
        } else if within && let Some((key, value)) = whole.split_once('=') {
            found.push((key.trim_end().to_owned(), value.trim_start().to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drop_in(unit: &str) -> String {
        under_pls(unit, Path::new("/usr/bin/pls")).unwrap().unwrap()
    }

    /// As Debian 12 and 13 have them: apt, plocate. What a package ships is what is written.
    #[test]
    fn the_services_of_debian_run_under_pls() {
        let apt = "[Unit]\nDescription=Daily apt download activities\nConditionACPower=true\nAfter=network.target\n\n\
                   [Service]\nType=oneshot\nExecStartPre=-/usr/lib/apt/apt-helper wait-online\n\
                   ExecStart=/usr/lib/apt/apt.systemd.daily update\n";
        assert_eq!(drop_in(apt), include_str!("../../config/systemd/apt-daily.service.d/perflock.conf"));
        let upgrade = "[Service]\nType=oneshot\nExecCondition=-/usr/lib/apt/apt-helper wait-online\n\
                       ExecStart=/usr/lib/apt/apt.systemd.daily install\nKillMode=process\nTimeoutStopSec=900\n";
        assert_eq!(drop_in(upgrade), include_str!("../../config/systemd/apt-daily-upgrade.service.d/perflock.conf"));
        let locate = "[Service]\nType=oneshot\nExecStart=/usr/sbin/updatedb.plocate\nLimitNOFILE=131072\n\
                      IOSchedulingClass=idle\n";
        assert_eq!(drop_in(locate), include_str!("../../config/systemd/plocate-updatedb.service.d/perflock.conf"));
    }

    #[test]
    fn prefixes_and_long_lines_are_kept_and_what_does_not_count_is_not() {
        let unit = "[Install]\nExecStart=/no\n[Service]\nExecStart=/gone\nExecStart=\n# ExecStart=/commented\n\
                    ExecStart = -+/bin/first a \\\n# between\n  b\nExecStart=!/bin/second %i ${X}\n";
        let text = drop_in(unit);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "ExecStart=",
                "ExecStart=-+/usr/bin/pls --quiet --leftovers wait -- /bin/first a    b",
                "ExecStart=!/usr/bin/pls --quiet --leftovers wait -- /bin/second %i ${X}",
                "# The wait may take any time.",
                "TimeoutStartSec=infinity",
                "# It stays in the service's own group, with its limits, and ends with the service as before.",
                "Delegate=yes"
            ]
        );
    }

    #[test]
    fn every_command_of_a_line_runs_under_pls() {
        let unit = "[Service]\nExecStart=-/bin/a 'x ; y' \\; ; /bin/b \"it's\" ;\n";
        let text = drop_in(unit);
        let commands: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).collect();
        let pls = "/usr/bin/pls --quiet --leftovers wait --";
        assert_eq!(commands, ["", &format!("-{pls} /bin/a 'x ; y' \\;"), &format!("{pls} /bin/b \"it's\"")]);
    }

    #[test]
    fn what_cannot_run_under_pls_says_why() {
        for (unit, why) in [
            ("[Service]\nExecStart=@/bin/sh sh -c x\n", "begins with \"@\""),
            ("[Service]\nType=forking\nExecStart=/bin/daemon\n", "it is a daemon (Type=forking)"),
            ("[Service]\nType=notify\nExecStart=/bin/daemon\n", "it is a daemon (Type=notify)"),
            ("[Service]\nExecStart=/x\nExecStart=\n", "it has no command"),
            ("", "it has no command"),
            ("[Service]\nExecStart=/x 'y\n", "it has a quote that does not end"),
            ("[Service]\nProtectSystem=strict\nExecStart=/x\n", "it may not write to /run (ProtectSystem=strict)"),
            ("[Service]\nRootDirectory=/srv\nExecStart=/x\n", "it has a root directory of its own (RootDirectory=)"),
        ] {
            let error = under_pls(unit, Path::new("/usr/bin/pls")).unwrap_err();
            assert!(error.contains(why), "{unit}: {error}");
        }
        // The last one counts.
        let again = "[Service]\nType=notify\nProtectSystem=strict\nExecStart=/x\nType=\nProtectSystem=full\n";
        assert!(drop_in(again).contains(" -- /x\n"));
        let done = "[Service]\nExecStart=-/usr/bin/pls make\n";
        assert_eq!(under_pls(done, Path::new("/usr/bin/pls")), Ok(None));
    }

    proptest! {
        #[test]
        fn any_unit_is_read_without_panic(text: String, command in "[-@+!:]{0,3}/[a-z ]{0,9}\\\\?") {
            let _ = under_pls(&text, Path::new("/usr/bin/pls"));
            let unit = format!("[Service]\nExecStart={command}\n{text}");
            if let Ok(Some(drop_in)) = under_pls(&unit, Path::new("/usr/bin/pls")) {
                prop_assert!(drop_in.contains("/usr/bin/pls --quiet --leftovers wait -- "));
            }
        }
    }
}
