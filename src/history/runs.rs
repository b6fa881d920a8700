//! How long commands took before, by their users' histories.

use std::collections::BTreeMap;
use std::time::Duration;

use super::line::{Line, command_in, command_text, kept_of};
use super::{Commands, Keeping, Size, read};
use crate::job::Mode;

/// How much of a file is read, from its end: a few hundred jobs.
const LOOKED_AT: u64 = 128 << 10;

/// How many earlier runs count: the last ones.
const COUNTED: usize = 50;

/// A job whose like is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked<'a> {
    /// Whose.
    pub uid: u32,
    /// How it holds the machine: a command takes another time beside others.
    pub mode: Mode,
    /// Its command line.
    pub command: &'a [String],
}

/// A job, as a line of a history may have it.
struct Known {
    mode: Mode,
    short: (Vec<String>, usize),
    full: (Vec<String>, usize),
    /// How the two begin.
    texts: [Vec<u8>; 2],
}

impl Known {
    fn of(asked: &Asked<'_>) -> Self {
        let [short, full] = [Commands::Short, Commands::Full].map(|commands| kept_of(asked.command, commands));
        let texts = [&short, &full].map(|(kept, _)| command_text(kept));
        Self { mode: asked.mode, short, full, texts }
    }

    /// Whether a line may be one of this command, whose text from there on is this.
    fn may_be(&self, rest: &[u8]) -> bool {
        self.texts.iter().any(|text| rest.starts_with(text))
    }

    fn is(&self, line: &Line) -> bool {
        let has = |(words, left_out): &(Vec<String>, usize)| *words == line.command && *left_out == line.words_left_out;
        self.mode == line.mode && (has(&self.short) || has(&self.full))
    }
}

/// For each job how long the machine was held for its like before, in ascending order, where that ended well: the same user's
/// command, in the same mode, under this lock ([`lock_text`](super::line::lock_text)). Each history is read once; of more than so
/// many users nothing is known.
pub fn of_jobs(keeping: &Keeping, lock: &str, asked: &[Asked<'_>], most_users: usize) -> Vec<Vec<Duration>> {
    let mut jobs: BTreeMap<Asked<'_>, Vec<Duration>> = asked.iter().map(|&job| (job, Vec::new())).collect();
    let mut users: Vec<u32> = Vec::new();
    for &Asked { uid, .. } in asked {
        if keeping.size != Size::Nothing && !users.contains(&uid) && users.len() < most_users {
            users.push(uid);
        }
    }
    for uid in users {
        let of_user = jobs.iter_mut().filter(|(job, _)| job.uid == uid);
        let (known, mut runs): (Vec<Known>, Vec<&mut Vec<Duration>>) =
            of_user.map(|(job, runs)| (Known::of(job), runs)).unzip();
        let is_wanted = |text: &[u8]| command_in(text).is_some_and(|rest| known.iter().any(|known| known.may_be(rest)));
        let mut note = |line: Line| {
            if !line.exit.is_success() || line.lock != lock {
                return;
            }
            // Of several whose short form is one, each.
            for (_, runs) in known.iter().zip(&mut runs).filter(|(known, _)| known.is(&line)) {
                runs.push(Duration::from_micros(line.held_usec));
            }
        };
        for source in read::of_user(keeping, uid) {
            // What cannot be read is not known.
            let _ = source.read_some(Some(LOOKED_AT), &is_wanted, &mut note);
        }
    }
    for runs in jobs.values_mut() {
        runs.drain(..runs.len().saturating_sub(COUNTED));
        runs.sort_unstable();
    }
    asked.iter().map(|job| jobs.get(job).cloned().unwrap_or_default()).collect()
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
        let job = |uid, command| Asked { uid, mode: Mode::Exclusive, command };
        let asked = [job(uid, &all[..]), job(uid, &test[..]), job(uid + 1, &all[..])];
        let seconds = |seconds: &[u64]| seconds.iter().map(|&it| Duration::from_secs(it)).collect::<Vec<_>>();
        assert_eq!(of_jobs(&keeping, &line().lock, &asked, 4), [seconds(&[7, 9]), seconds(&[4]), vec![]]);
        assert_eq!(of_jobs(&keeping, &line().lock, &asked, 0), [vec![], vec![], vec![]]);
        // The last ones count.
        let many: Vec<u8> = (0..200).flat_map(|seconds| of("make test", seconds, Commands::Short, 0)).collect();
        fs::write(root.path().join(format!("{uid}.jsonl")), many).unwrap();
        let runs = of_jobs(&keeping, &line().lock, &asked[1..2], 1).remove(0);
        assert_eq!(runs, seconds(&(150..200).collect::<Vec<_>>()));
    }

    #[test]
    fn a_line_is_of_every_job_like_it_and_of_no_other_mode_or_lock() {
        let root = tempfile::tempdir().unwrap();
        let keeping = Keeping { directory: root.path().to_owned(), own_file: None, ..Keeping::default() };
        let uid = rustix::process::geteuid().as_raw();
        let [first, second] = ["--n=1", "--n=1000"].map(|option| vec!["./bench".to_owned(), option.to_owned()]);
        let (command, words_left_out) = kept_of(&first, Commands::Short);
        assert_eq!((command.clone(), words_left_out), kept_of(&second, Commands::Short));
        let of = |seconds: u64, mode, lock: &str| {
            let (command, lock) = (command.clone(), lock.to_owned());
            Line { command, words_left_out, held_usec: seconds * 1_000_000, mode, lock, ..line() }.to_text()
        };
        let lines = [of(1, Mode::Exclusive, "/a"), of(2, Mode::Shared, "/a"), of(3, Mode::Exclusive, "/b")];
        fs::write(root.path().join(format!("{uid}.jsonl")), lines.concat()).unwrap();
        let job = |mode, command| Asked { uid, mode, command };
        let asked =
            [job(Mode::Exclusive, &first[..]), job(Mode::Exclusive, &second[..]), job(Mode::Shared, &second[..])];
        let seconds = |lock| {
            let runs = of_jobs(&keeping, lock, &asked, 1);
            runs.iter().map(|runs| runs.iter().map(Duration::as_secs).collect()).collect::<Vec<Vec<u64>>>()
        };
        assert_eq!(seconds("/a"), [[1], [1], [2]]);
        assert_eq!(seconds("/b"), [vec![3], vec![3], vec![]]);
        assert!(seconds("/c").iter().all(Vec::is_empty));
    }
}
