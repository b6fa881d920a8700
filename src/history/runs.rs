//! How long commands took before, by their users' histories.

use std::collections::BTreeMap;
use std::time::Duration;

use super::line::{Line, command_in, command_text, kept_of};
use super::{Commands, Keeping, Size, read};

/// How much of a file is read, from its end: a few hundred jobs.
const LOOKED_AT: u64 = 128 << 10;

/// How many earlier runs count: the last ones.
const COUNTED: usize = 50;

/// A command, as a line of a history may have it.
struct Known {
    short: (Vec<String>, usize),
    full: (Vec<String>, usize),
    /// How the two begin.
    texts: [Vec<u8>; 2],
}

impl Known {
    fn of(command: &[String]) -> Self {
        let [short, full] = [Commands::Short, Commands::Full].map(|commands| kept_of(command, commands));
        let texts = [&short, &full].map(|(kept, _)| command_text(kept));
        Self { short, full, texts }
    }

    /// Whether a line may be one of this command, whose text from there on is this.
    fn may_be(&self, rest: &[u8]) -> bool {
        self.texts.iter().any(|text| rest.starts_with(text))
    }

    fn is(&self, line: &Line) -> bool {
        let has = |(words, left_out): &(Vec<String>, usize)| *words == line.command && *left_out == line.words_left_out;
        has(&self.short) || has(&self.full)
    }
}

/// For each user's command how long the machine was held for it, in ascending order, where it ended well. Each history is read once;
/// of more than so many users nothing is known.
pub fn of_commands(keeping: &Keeping, asked: &[(u32, &[String])], most_users: usize) -> Vec<Vec<Duration>> {
    let mut commands: BTreeMap<(u32, &[String]), Vec<Duration>> =
        asked.iter().map(|&command| (command, Vec::new())).collect();
    let mut users: Vec<u32> = Vec::new();
    for &(uid, _) in asked {
        if keeping.size != Size::Nothing && !users.contains(&uid) && users.len() < most_users {
            users.push(uid);
        }
    }
    for uid in users {
        let of_user = commands.iter_mut().filter(|((whose, _), _)| *whose == uid);
        let (known, mut runs): (Vec<Known>, Vec<&mut Vec<Duration>>) =
            of_user.map(|((_, command), runs)| (Known::of(command), runs)).unzip();
        let is_wanted = |text: &[u8]| command_in(text).is_some_and(|rest| known.iter().any(|known| known.may_be(rest)));
        let mut note = |line: Line| {
            if line.exit.is_success()
                && let Some(index) = known.iter().position(|known| known.is(&line))
            {
                runs[index].push(Duration::from_micros(line.held_usec));
            }
        };
        for source in read::of_user(keeping, uid) {
            // What cannot be read is not known.
            let _ = source.read_some(Some(LOOKED_AT), &is_wanted, &mut note);
        }
    }
    for runs in commands.values_mut() {
        runs.drain(..runs.len().saturating_sub(COUNTED));
        runs.sort_unstable();
    }
    asked.iter().map(|command| commands.get(command).cloned().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::Exit;
    use crate::history::line::End;
    use crate::history::line::tests::line;
    use crate::report::document::Reason;
    use std::fs;

    #[test]
    fn runs_are_those_of_the_same_command_and_user_that_ended_well() {
        let root = tempfile::tempdir().unwrap();
        let keeping = Keeping { directory: root.path().to_owned(), own_file: None, ..Keeping::default() };
        let uid = rustix::process::geteuid().as_raw();
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let of = |text: &str, seconds: u64, commands, code| {
            let (command, words_left_out) = kept_of(&words(text), commands);
            let exit = End::new(Reason::Exited, Exit::Code(code));
            Line { command, words_left_out, held_usec: seconds * 1_000_000, exit, ..line() }.to_text()
        };
        let lines = [
            of("make -j 8 all", 9, Commands::Short, 0),
            of("make -j 8 all", 7, Commands::Full, 0),
            of("make -j 8 all", 1, Commands::Short, 2),
            of("make -j 8 other", 2, Commands::Full, 0),
            of("make -j 8 all more", 3, Commands::Short, 0),
            of("make test", 4, Commands::Short, 0),
        ];
        fs::write(root.path().join(format!("{uid}.jsonl")), lines.concat()).unwrap();
        let (all, test) = (words("make -j 8 all"), words("make test"));
        let asked = [(uid, &all[..]), (uid, &test[..]), (uid + 1, &all[..])];
        let seconds = |seconds: &[u64]| seconds.iter().map(|&it| Duration::from_secs(it)).collect::<Vec<_>>();
        assert_eq!(of_commands(&keeping, &asked, 4), [seconds(&[7, 9]), seconds(&[4]), vec![]]);
        assert_eq!(of_commands(&keeping, &asked, 0), [vec![], vec![], vec![]]);
        // The last ones count.
        let many: Vec<u8> = (0..200).flat_map(|seconds| of("make test", seconds, Commands::Short, 0)).collect();
        fs::write(root.path().join(format!("{uid}.jsonl")), many).unwrap();
        let runs = of_commands(&keeping, &asked[1..2], 1).remove(0);
        assert_eq!(runs, seconds(&(150..200).collect::<Vec<_>>()));
    }
}
