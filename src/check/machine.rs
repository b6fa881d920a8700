//! How the machine is set, as far as that spoils measurements: Documentation/admin-guide/pm/cpufreq.rst,
//! Documentation/admin-guide/mm/transhuge.rst, proc(5). Pure. None of it is promised.

use super::facts::Facts;
use super::row::{Row, as_root};
use crate::text;

/// The governor that keeps the clock up.
const STEADY: &str = "performance";

/// Of what it does not set, or does not know.
const SILENT: &str = "the kernel does not say, as in a virtual machine";

/// What is known of the machine.
pub(super) fn rows(facts: &Facts) -> Vec<Row> {
    [governor(facts), turbo(facts), smt(facts), huge_pages(facts), swap(facts)].map(Row::not_promised).into()
}

/// Writes a word to files of the kernel's.
fn write(facts: &Facts, word: &str, files: &str) -> String {
    format!("echo {word} | {} >/dev/null", as_root(facts.uid, &format!("tee {files}")))
}

fn governor(facts: &Facts) -> Row {
    let (id, name) = ("governor", "governor");
    match facts.machine.governor.as_deref() {
        None => Row::unknown(id, name, SILENT),
        Some(STEADY) => Row::works(id, name, STEADY),
        Some(other) => Row::weaker(id, name, other)
            .lost("the clock follows the load, and a short run never gets to the highest")
            .fix(write(facts, STEADY, "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor")),
    }
}

fn turbo(facts: &Facts) -> Row {
    let (id, name) = ("turbo", "turbo");
    let (word, file) = match facts.is_intel_pstate {
        true => ("1", "/sys/devices/system/cpu/intel_pstate/no_turbo"),
        false => ("0", "/sys/devices/system/cpu/cpufreq/boost"),
    };
    match facts.machine.turbo {
        None => Row::unknown(id, name, SILENT),
        Some(false) => Row::works(id, name, "off"),
        Some(true) => Row::weaker(id, name, "on")
            .lost("the clock depends on the temperature, and on how many cores are busy")
            .fix(write(facts, word, file)),
    }
}

fn smt(facts: &Facts) -> Row {
    let (id, name) = ("smt", "SMT");
    match facts.machine.smt {
        None => Row::unknown(id, name, SILENT),
        Some(false) => Row::works(id, name, "off"),
        Some(true) => Row::weaker(id, name, "on")
            .lost("two threads share a core, and what one does slows the other down (not so with --cores)")
            .fix(write(facts, "off", "/sys/devices/system/cpu/smt/control")),
    }
}

fn huge_pages(facts: &Facts) -> Row {
    let (id, name) = ("huge-pages", "huge pages");
    match facts.machine.transparent_huge_pages.as_deref() {
        None => Row::unknown(id, name, SILENT),
        Some("always") => Row::weaker(id, name, "always")
            .lost("whether memory is in huge pages depends on what ran before")
            .fix(write(facts, "madvise", "/sys/kernel/mm/transparent_hugepage/enabled")),
        Some(other) => Row::works(id, name, other),
    }
}

fn swap(facts: &Facts) -> Row {
    let (id, name) = ("swap", "swap");
    match (facts.machine.swap_bytes, facts.machine.swap_used_bytes) {
        (None, _) => Row::unknown(id, name, SILENT),
        (Some(0), _) => Row::works(id, name, "none"),
        (Some(total), used) => {
            let used = used.map_or_else(String::new, |used| format!(", {} used", text::bytes(used)));
            Row::weaker(id, name, format!("{}{used}", text::bytes(total)))
                .lost("what is read from it again takes a disk's time")
                .fix(as_root(facts.uid, "swapoff -a"))
        }
    }
}
