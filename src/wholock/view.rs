//! Showing a snapshot as text.

use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::cores::CoreMap;
use super::load::{Busy, Load, UserLoad};
use super::snapshot::{Inner, Job, Snapshot, State};
use super::tree::{self, Process};
use crate::history::expect;
use crate::lock::outsiders::Outsider;
use crate::procfs::Proc;
use crate::report::facts::{UNKNOWN, known};
use crate::text;

/// What is shown when there is nothing to show.
pub const FREE: &str = "the machine is free\n";

/// The columns of the table.
pub const COLUMNS: [&str; 11] =
    ["JOB", "USER", "MODE", "STATE", "AGE", "CPU NOW", "CPU AVG", "CPU TIME", "MEMORY", "PROCS", "COMMAND"];

/// Columns with numbers.
pub const RIGHT: [usize; 7] = [0, 4, 5, 6, 7, 8, 9];

/// No process is indented further.
const DEEPEST: usize = 20;

/// Of so many waiters it is told when they may start: each is more of a guess than the one before it.
const EXPECTED: usize = 5;

/// The least that is left of a command line in a narrow terminal.
const SHORTEST_COMMAND: usize = 12;

/// The width of the terminal on stdout; `None` if it is none.
pub fn terminal_width() -> Option<u16> {
    rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| size.ws_col).filter(|&columns| columns > 0)
}

/// Holders, waiters, outsiders, who is on which processors, and what is used outside of jobs if that was watched; with the processes of each job if `tree`
/// says where they are to be read.
pub fn table(
    snapshot: &Snapshot,
    load: Option<&Load>,
    cores: Option<&CoreMap>,
    width: Option<u16>,
    tree: Option<&Proc>,
) -> String {
    let load = cores.map(CoreMap::to_string).unwrap_or_default() + &load.map(load_outside).unwrap_or_default();
    if snapshot.free() {
        return FREE.to_owned() + &load;
    }
    let with_processes = |job: &Job| {
        let processes = tree.map(|proc| tree::read(proc, &job.members)).unwrap_or_default();
        rows(job).into_iter().chain(processes.iter().map(process_row)).collect::<Vec<_>>()
    };
    let jobs = snapshot.holders.iter().chain(&snapshot.waiters).flat_map(with_processes);
    let outsiders = snapshot.outsiders.iter().map(|(outsider, job)| outsider_row(outsider, *job));
    lay_out(&COLUMNS, &RIGHT, jobs.chain(outsiders).collect(), width) + &expected(snapshot) + &load
}

/// When the first few of those who wait may start, a line each, as far as that can be guessed.
fn expected(snapshot: &Snapshot) -> String {
    let known = snapshot.waiters.iter().filter_map(|job| Some((job.number, job.expected_start?)));
    known.take(EXPECTED).map(|(number, start)| format!("job {number} starts in {}\n", expect::shown(&start))).collect()
}

/// Who uses the machine outside of jobs, a line each; empty if nobody does.
pub fn load_outside(load: &Load) -> String {
    let hidden = load.own_only.then(|| "outside the lock: processes of others are hidden from you\n".to_owned());
    load.users.iter().map(user_line).chain(hidden).collect()
}

fn user_line(load: &UserLoad) -> String {
    let busiest: Vec<String> = load.busiest.iter().map(busy_process).collect();
    let more = load.busy - load.busiest.len();
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let name = text::escape(&crate::user::name(load.uid));
    format!("outside the lock: {name} uses {:.0}% of a core: {}{more}\n", load.percent, busiest.join(", "))
}

fn busy_process(busy: &Busy) -> String {
    // Quoted where it would not stand for itself: a name with a comma cannot pose as two processes.
    let name = text::command_line(std::slice::from_ref(&busy.comm));
    let children = if 2.0 * busy.ended_children_percent > busy.percent { " with ended children" } else { "" };
    format!("{name} ({}){children} {:.0}%", busy.pid, busy.percent)
}

/// A job's processes alone, read from `proc`.
pub fn processes_table(job: &Job, width: Option<u16>, proc: &Proc) -> String {
    lay_out(&COLUMNS, &RIGHT, tree::read(proc, &job.members).iter().map(process_row).collect(), width)
}

/// Some jobs.
pub fn jobs_table(jobs: &[&Job], width: Option<u16>) -> String {
    lay_out(&COLUMNS, &RIGHT, jobs.iter().flat_map(|job| rows(job)).collect(), width)
}

/// One line of the table.
pub type Row = [String; COLUMNS.len()];

/// A job, and those inside it.
pub fn rows(job: &Job) -> Vec<Row> {
    let inner = job.inner.iter().map(|inner| inner_row(inner, job.number));
    let more = (job.inner_more > 0).then(|| {
        let mut row = Row::default().map(|_: String| UNKNOWN.to_owned());
        row[3] = format!("inside {}", job.number);
        row[COLUMNS.len() - 1] = format!("and {} more", job.inner_more);
        row
    });
    [row(job)].into_iter().chain(inner).chain(more).collect()
}

/// A process of a job.
pub fn process_row(process: &Process) -> Row {
    let command = text::command_line(&process.command);
    let name = text::escape(&process.stat.comm);
    let state = match process.stat.state {
        'R' => "running",
        'S' | 'I' => "sleeping",
        'D' => "in the kernel",
        'T' => "stopped",
        't' => "traced",
        'Z' | 'X' => "ended",
        _ => UNKNOWN,
    };
    let mut row = Row::default();
    row[1] = process.uid.map_or_else(|| UNKNOWN.to_owned(), |uid| text::escape(&crate::user::name(uid)));
    row[3] = state.to_owned();
    row[7] = text::duration(process.cpu());
    row[8] = text::bytes(process.memory_bytes());
    row[COLUMNS.len() - 1] = format!(
        "{}{} {}",
        "  ".repeat(process.depth.min(DEEPEST)),
        process.stat.pid,
        if command.is_empty() { name } else { command }
    );
    row
}

fn inner_row(inner: &Inner, outer: u64) -> Row {
    let unknown = || UNKNOWN.to_owned();
    let command = text::command_line(&inner.command);
    let command = if command.is_empty() { format!("process {} of another pid namespace", inner.pid) } else { command };
    [
        unknown(),
        inner.uid.map_or_else(unknown, |uid| text::escape(&crate::user::name(uid))),
        unknown(),
        format!("inside {outer}"),
        known(inner.age.map(text::duration)),
        unknown(),
        unknown(),
        known(inner.usage.cpu_usec.map(|usec| text::duration(Duration::from_micros(usec)))),
        known(inner.usage.memory_bytes.map(text::bytes)),
        known(inner.processes.map(|processes| processes.to_string())),
        command,
    ]
}

/// What a job is doing, in a word or two.
pub fn state(job: &Job) -> String {
    match job.state {
        State::Running => "running".to_owned(),
        State::Stopped | State::StoppedWaiter => "stopped".to_owned(),
        State::Releasing => "releasing".to_owned(),
        State::Guarded => "supervisor lost".to_owned(),
        State::WaitingFor(number) => format!("waiting for {number}"),
        State::Waiting => "waiting".to_owned(),
        State::WaitingForCores => "waiting for cores".to_owned(),
        State::Orphan => "orphan".to_owned(),
        State::MaybeOrphan => "orphan?".to_owned(),
    }
}

fn row(job: &Job) -> Row {
    let command = text::command_line(&job.command);
    let place = job.elsewhere.is_some().then(|| "in another container".to_owned());
    let notes = place.into_iter().chain(job.message.as_ref().map(|message| text::escape(message)));
    let command = notes.fold(command, |command, note| format!("{command}  # {note}"));
    let (usage, living) = (&job.usage, job.living);
    let cpu_time = |usec| text::duration(Duration::from_micros(usec));
    // Of the living alone: more was used, and memory that several have in common is counted for each.
    let cpu_of_living = || Some(format!("≥{}", cpu_time(living?.cpu_usec)));
    let memory_of_living = || Some(format!("~{}", text::bytes(living?.memory_bytes)));
    [
        job.number.to_string(),
        text::escape(&crate::user::label(job.uid, job.login_uid)),
        job.mode.to_string(),
        state(job),
        text::duration(job.age),
        percent(job.cpu_now_percent),
        percent(job.cpu_average_percent()),
        known(usage.cpu_usec.map(cpu_time).or_else(cpu_of_living)),
        known(usage.memory_bytes.map(text::bytes).or_else(memory_of_living)),
        known(job.processes.map(|processes| processes.to_string())),
        command,
    ]
}

/// Somebody without a ticket. `own_job`: it waits for the job that it is a part of.
pub fn outsider_row(outsider: &Outsider, own_job: Option<u64>) -> Row {
    let unknown = || UNKNOWN.to_owned();
    let state = match (outsider.waiting, own_job) {
        (_, Some(job)) => format!("waits for its own job {job}"),
        (true, None) => "waiting (flock)".to_owned(),
        (false, None) => "flock".to_owned(),
    };
    let command = text::command_line(&outsider.command);
    let ended = if command.is_empty() { "a process that ended".to_owned() } else { command };
    [
        unknown(),
        outsider.uid.map_or_else(unknown, |uid| text::escape(&crate::user::name(uid))),
        outsider.mode.to_string(),
        state,
        unknown(),
        unknown(),
        unknown(),
        unknown(),
        unknown(),
        unknown(),
        format!("{ended}  # process {}", outsider.pid),
    ]
}

fn percent(percent: Option<f64>) -> String {
    known(percent.map(|percent| format!("{percent:.0}%")))
}

/// A table whose last column is the widest: it is cut to what a terminal of this width has room for. Numbers are in the columns
/// `right`.
pub(super) fn lay_out<const N: usize>(
    columns: &[&str; N],
    right: &[usize],
    mut rows: Vec<[String; N]>,
    width: Option<u16>,
) -> String {
    if let Some(width) = width {
        shorten_last(columns, &mut rows, width.into());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(columns);
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Cuts command lines to what the other columns leave of the terminal.
fn shorten_last<const N: usize>(columns: &[&str; N], rows: &mut [[String; N]], width: usize) {
    use unicode_width::UnicodeWidthStr;
    let last = N - 1;
    let widest = |column: usize| {
        let cells = rows.iter().map(|row| row[column].width());
        cells.chain([columns[column].width()]).max().unwrap_or(0)
    };
    let others: usize = (0..last).map(|column| widest(column) + 2).sum();
    let left = width.saturating_sub(others).max(SHORTEST_COMMAND);
    for row in rows {
        row[last] = text::cut(&row[last], left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Usage;
    use crate::job::{JobId, Mode};

    fn job(number: u64, state: State, command: &str) -> Job {
        Job {
            number,
            id: JobId { number, inode: 1, boot: 1, joined_usec: 1 },
            uid: 0,
            login_uid: None,
            mode: Mode::Exclusive,
            state,
            age: Duration::from_secs(750),
            usage: Usage::default(),
            read_at: std::time::Instant::now(),
            cpu_now_percent: None,
            processes: None,
            expected_start: None,
            command: vec![command.to_owned()],
            message: None,
            pinned: None,
            cores_asked: None,
            reserved: None,
            limits: Default::default(),
            elsewhere: None,
            keepers: vec![],
            group: None,
            cpuacct: None,
            living: None,
            members: Vec::new(),
            inner: Vec::new(),
            inner_more: 0,
        }
    }

    #[test]
    fn a_free_machine_is_said_to_be_free() {
        assert_eq!(table(&Snapshot::default(), None, None, None, None), "the machine is free\n");
    }

    #[test]
    fn holders_come_before_waiters_and_the_unknown_is_a_dash() {
        let mut holder = job(7, State::Running, "make");
        holder.usage.cpu_usec = Some(1_500_000_000);
        holder.usage.memory_bytes = Some(3 << 30);
        holder.cpu_now_percent = Some(399.6);
        holder.processes = Some(12);
        let snapshot = Snapshot {
            holders: vec![holder],
            waiters: vec![job(8, State::WaitingFor(7), "\x1b[31mred")],
            ..Snapshot::default()
        };
        let expected = "\
JOB  USER  MODE       STATE              AGE  CPU NOW  CPU AVG  CPU TIME  MEMORY  PROCS  COMMAND
  7  root  exclusive  running        12m 30s     400%     200%       25m    3.0G     12  make
  8  root  exclusive  waiting for 7  12m 30s        -        -         -       -      -  '\\u{1b}[31mred'
";
        assert_eq!(table(&snapshot, None, None, None, None), expected);
    }

    #[test]
    fn who_uses_the_machine_outside_of_jobs_has_a_line() {
        let busy = |pid, comm: &str, percent, ended_children_percent| Busy {
            pid,
            comm: comm.to_owned(),
            command: vec![],
            percent,
            ended_children_percent,
        };
        let busiest =
            vec![busy(7, "cc1plus", 99.4, 1.0), busy(8, "sh", 80.0, 79.0), busy(9, "x (1) 9%,\x1b", 30.0, 0.0)];
        let user = UserLoad { uid: 4_000_000, percent: 211.6, busy: 5, busiest };
        let load = Load { elapsed: Duration::from_millis(200), own_only: true, users: vec![user] };
        let expected = "\
the machine is free
outside the lock: 4000000 uses 212% of a core: cc1plus (7) 99%, sh (8) with ended children 80%, 'x (1) 9%,\\u{1b}' (9) 30%, and 2 more
outside the lock: processes of others are hidden from you
";
        assert_eq!(table(&Snapshot::default(), Some(&load), None, None, None), expected);
    }

    #[test]
    fn a_line_fits_the_terminal_as_far_as_it_can() {
        use unicode_width::UnicodeWidthStr;
        let snapshot = Snapshot { holders: vec![job(7, State::Running, &"漢字".repeat(200))], ..Snapshot::default() };
        for width in [0, 80, 120, 200] {
            let text = table(&snapshot, None, None, Some(width), None);
            let widest = text.lines().map(UnicodeWidthStr::width).max().unwrap();
            assert!(widest <= usize::from(width).max(95), "{width}: {widest}\n{text}");
        }
    }
}
