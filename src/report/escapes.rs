//! What left a job's group, in words.

use std::time::Duration;

use crate::escape::{Escaped, Escapes, Possible};
use crate::text;

/// How many are named.
const NAMED: usize = 5;

/// How much of a command line stands in a line.
const COMMAND_COLUMNS: usize = 40;

/// What is said though nobody asked: a job's processes that run on beside the next one.
pub fn warnings(found: &Escapes) -> Vec<String> {
    let escaped = (!found.escaped.is_empty()).then(|| {
        let them: Vec<String> = found.escaped.iter().take(NAMED).map(|it| it.pid.to_string()).collect();
        format!(
            "warning: {} that the job started left its group and run on: {}; to end them: kill {}",
            text::count(found.escaped.len(), "process"),
            escaped(&found.escaped),
            them.join(" "),
        )
    });
    let notable: Vec<Possible> = found.possible.iter().filter(|it| it.is_notable()).cloned().collect();
    let perhaps = (!notable.is_empty()).then(|| {
        format!(
            "warning: while the job ran, perhaps started by it, and running on outside of its group: {}",
            possible(&notable)
        )
    });
    escaped.into_iter().chain(perhaps).collect()
}

/// `sleep 300 (4312, in run-u3.scope), cc1 (4313, in /x) and 3 more`.
pub fn escaped(found: &[Escaped]) -> String {
    let one = |it: &Escaped| {
        let place = it.unit.as_ref().or(it.group.as_ref());
        let place = place.map(|place| format!(", in {}", text::escape(place))).unwrap_or_default();
        format!("{} ({}{place})", command(&it.command, &it.name), it.pid)
    };
    text::listed(found, NAMED, one)
}

/// `run-u3.service (make -j8, 4312; used 12.3s of CPU time), /docker/0123 (…) and 3 more`.
pub fn possible(found: &[Possible]) -> String {
    let one = |it: &Possible| {
        let used =
            it.cpu_usec.map(|usec| format!("; used {} of CPU time", text::measured(Duration::from_micros(usec))));
        let kind = if it.container { "container " } else { "" };
        let more = match it.processes {
            0 | 1 => String::new(),
            many => format!(" and {} more", many - 1),
        };
        let name = text::escape(it.unit.as_ref().unwrap_or(&it.group));
        let first = command(&it.command, "process");
        format!("{kind}{name} ({first}, {}{more}{})", it.pid, used.unwrap_or_default())
    };
    text::listed(found, NAMED, one)
}

fn command(argv: &[String], name: &str) -> String {
    match argv {
        [] => text::escape(name),
        argv => text::cut(&text::command_line(argv), COMMAND_COLUMNS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runaway(pid: i32, command: &[&str]) -> Escaped {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        Escaped {
            pid,
            name: "x\n".to_owned(),
            command,
            unit: Some("run-u3.scope".to_owned()),
            group: Some("/user.slice/run-u3.scope".to_owned()),
        }
    }

    fn maybe(cpu_usec: Option<u64>, processes: usize) -> Possible {
        Possible {
            group: "/a/b\x1b".to_owned(),
            unit: None,
            container: false,
            processes,
            pid: 9,
            command: vec!["make".to_owned(), "-j8".to_owned()],
            cpu_usec,
        }
    }

    #[test]
    fn what_escaped_is_named_with_its_place_and_how_to_end_it() {
        let found = Escapes { escaped: vec![runaway(7, &["sleep", "300"]), runaway(8, &[])], possible: vec![] };
        assert_eq!(
            warnings(&found),
            [
                "warning: 2 processes that the job started left its group and run on: sleep 300 (7, in run-u3.scope), x\\n (8, in \
                run-u3.scope); to end them: kill 7 8"
            ]
        );
        let many = Escapes { escaped: (1..=9).map(|pid| runaway(pid, &["a"])).collect(), possible: vec![] };
        let line = warnings(&many).concat();
        assert!(line.contains("a (5, in run-u3.scope) and 4 more; to end them: kill 1 2 3 4 5"), "{line}");
    }

    #[test]
    fn only_what_used_cpu_time_is_suspected_aloud() {
        let quiet = [maybe(Some(1_000_000), 1), maybe(None, 1)];
        assert_eq!(warnings(&Escapes { escaped: vec![], possible: quiet.to_vec() }), Vec::<String>::new());
        let loud = Escapes { escaped: vec![], possible: vec![maybe(Some(12_300_000), 3), maybe(Some(5), 1)] };
        assert_eq!(
            warnings(&loud),
            [
                "warning: while the job ran, perhaps started by it, and running on outside of its group: /a/b\\u{1b} (make -j8, 9 and \
                2 more; used 12.30s of CPU time)"
            ]
        );
        let container = Possible { container: true, unit: Some("docker-01.scope".to_owned()), ..maybe(None, 1) };
        assert_eq!(possible(&[container]), "container docker-01.scope (make -j8, 9)");
    }
}
