//! Units of systemd's, as far as it takes to run a service under `pls`: systemd.service(5), systemd.syntax(7).

use std::path::Path;

/// What a drop-in has to say so that the service whose unit file this is runs its commands under `pls`. `None` if it does so
/// already.
///
/// # Errors
/// Why it cannot, as a sentence fragment.
pub fn under_pls(unit: &str, pls: &Path) -> Result<Option<String>, String> {
    let mut commands = Vec::new();
    for (key, value) in service_lines(unit) {
        match (&*key, &*value) {
            // What was before does not count.
            ("ExecStart", "") => commands.clear(),
            ("ExecStart", _) => commands.push(value),
            ("Type", "oneshot" | "simple" | "exec" | "") => {}
            // Its main process is not the one that is started, or says when it is ready: pls would end it as a leftover.
            ("Type", kind) => return Err(format!("it is a daemon (Type={kind}), and no job that ends")),
            _ => {}
        }
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
        tamed.push(format!("ExecStart={prefix}{} --quiet -- {rest}\n", pls.display()));
    }
    Ok(Some(format!(
        "# Runs under pls: it waits while somebody has the machine alone, and no such job starts before it has ended.\n\
         [Service]\nExecStart=\n{}TimeoutStartSec=infinity\n",
        tamed.concat()
    )))
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
                "ExecStart=-+/usr/bin/pls --quiet -- /bin/first a    b",
                "ExecStart=!/usr/bin/pls --quiet -- /bin/second %i ${X}",
                "TimeoutStartSec=infinity"
            ]
        );
    }

    #[test]
    fn what_cannot_run_under_pls_says_why() {
        for (unit, why) in [
            ("[Service]\nExecStart=@/bin/sh sh -c x\n", "begins with \"@\""),
            ("[Service]\nType=forking\nExecStart=/bin/daemon\n", "it is a daemon (Type=forking)"),
            ("[Service]\nType=notify\nExecStart=/bin/daemon\n", "it is a daemon (Type=notify)"),
            ("[Service]\nExecStart=/x\nExecStart=\n", "it has no command"),
            ("", "it has no command"),
        ] {
            let error = under_pls(unit, Path::new("/usr/bin/pls")).unwrap_err();
            assert!(error.contains(why), "{unit}: {error}");
        }
        let done = "[Service]\nExecStart=-/usr/bin/pls make\n";
        assert_eq!(under_pls(done, Path::new("/usr/bin/pls")), Ok(None));
    }

    proptest! {
        #[test]
        fn any_unit_is_read_without_panic(text: String, command in "[-@+!:]{0,3}/[a-z ]{0,9}\\\\?") {
            let _ = under_pls(&text, Path::new("/usr/bin/pls"));
            let unit = format!("[Service]\nExecStart={command}\n{text}");
            if let Ok(Some(drop_in)) = under_pls(&unit, Path::new("/usr/bin/pls")) {
                prop_assert!(drop_in.contains("/usr/bin/pls --quiet -- "));
            }
        }
    }
}
