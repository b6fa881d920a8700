//! A job's counters as named lines, for whoever shows them: what the kernel does not tell is a dash, or left out in brackets.

use std::time::Duration;

use crate::cgroup::Usage;
use crate::limit::Limits;
use crate::text;

/// A name, and what is known of it.
pub type Fact = (&'static str, String);

/// What stands where the kernel does not say.
pub const UNKNOWN: &str = "-";

/// The value, or what stands for one that is not known.
pub fn known(value: Option<String>) -> String {
    value.unwrap_or_else(|| UNKNOWN.to_owned())
}

/// CPU time, and what it was short of.
pub fn cpu(usage: &Usage) -> Vec<Fact> {
    let parts = [("user", time(usage.user_usec)), ("system", time(usage.system_usec))];
    vec![
        ("CPU time", with_parts(time(usage.cpu_usec), &parts)),
        ("CPU held back", known(time(usage.throttled_usec))),
        ("CPU awaited", known(time(usage.cpu_stall_usec))),
    ]
}

/// Memory of a group that lives.
pub fn memory(usage: &Usage) -> Vec<Fact> {
    let parts = [
        ("at most", bytes(usage.memory_peak_bytes)),
        ("its own", bytes(usage.memory_anon_bytes)),
        ("page cache", bytes(usage.memory_file_bytes)),
        ("swap", bytes(usage.swap_bytes)),
    ];
    vec![
        ("memory", with_parts(bytes(usage.memory_bytes), &parts)),
        ("memory awaited", known(time(usage.memory_stall_usec))),
        ("page faults", with_parts(number(usage.faults), &[("from disk", number(usage.major_faults))])),
        ("out of memory", known(number(usage.oom_kills))),
    ]
}

/// What it may have at most, where that is limited.
pub fn limits(limits: Limits) -> Vec<Fact> {
    let memory = limits.memory_bytes.map(|bytes| ("memory limit", text::exact_bytes(bytes)));
    let processes = limits.processes.map(|count| ("processes limit", format!("{count}, threads included")));
    memory.into_iter().chain(processes).collect()
}

/// What went to and came from block devices.
pub fn disk(usage: &Usage) -> Vec<Fact> {
    vec![
        ("read", with_parts(bytes(usage.read_bytes), &[("reads", number(usage.reads))])),
        ("written", with_parts(bytes(usage.written_bytes), &[("writes", number(usage.writes))])),
        ("disk awaited", known(time(usage.io_stall_usec))),
    ]
}

/// `12.3s (user 10s, system 2.3s)`; parts that the kernel does not tell are left out.
pub fn with_parts(whole: Option<String>, parts: &[(&str, Option<String>)]) -> String {
    let told: Vec<String> =
        parts.iter().filter_map(|(name, part)| part.as_ref().map(|part| format!("{name} {part}"))).collect();
    let whole = known(whole);
    if told.is_empty() { whole } else { format!("{whole} ({})", told.join(", ")) }
}

/// A time for a person.
pub fn time(usec: Option<u64>) -> Option<String> {
    usec.map(|usec| text::measured(Duration::from_micros(usec)))
}

/// A size for a person.
pub fn bytes(bytes: Option<u64>) -> Option<String> {
    bytes.map(text::bytes)
}

/// A count.
pub fn number(number: Option<u64>) -> Option<String> {
    number.map(|number| number.to_string())
}

/// The lines of a block: names in one column, values in the next, `indent` spaces before each.
pub fn block(facts: &[Fact], indent: usize) -> String {
    /// Where the values begin.
    const VALUES_AT: usize = 18;
    facts.iter().map(|(name, value)| format!("{:indent$}{name:VALUES_AT$}{value}\n", "")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_not_known_are_left_out() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(with_parts(some("3s"), &[("user", some("2s")), ("system", None)]), "3s (user 2s)");
        assert_eq!(with_parts(None, &[("at most", None)]), "-");
    }

    #[test]
    fn values_stand_below_each_other() {
        let facts = [("read", "3.0M".to_owned()), ("disk awaited", "-".to_owned())];
        assert_eq!(block(&facts, 2), "  read              3.0M\n  disk awaited      -\n");
    }
}
