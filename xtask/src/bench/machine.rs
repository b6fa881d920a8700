//! Which machine the numbers come from.

use std::fs;

use crate::Failure;

/// What a process of the spawner takes, with the kernel's part: page tables, stacks and its own structures.
const KIB_PER_PROCESS: u64 = 160;

/// CPU, cores, kernel, cgroup layout, and what was measured, in one line.
pub(crate) fn description() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let model = field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "Model")).unwrap_or("unknown CPU");
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    let virtual_machine = if cpuinfo.contains(" hypervisor") { ", virtual machine" } else { "" };
    format!(
        "{model}, {cpus} CPUs{virtual_machine}; Linux {}; {}; perflock {}; {}",
        kernel.trim(),
        cgroup_layout(&read("/proc/self/mountinfo")),
        commit(),
        load()
    )
}

/// Whether there is room for so many more processes, of little memory each.
///
/// # Errors
/// There is not; or the kernel does not say.
pub(super) fn check_room(count: usize) -> Result<(), Failure> {
    let loadavg = read("/proc/loadavg");
    let running: usize = loadavg.split([' ', '/']).nth(4).and_then(|text| text.parse().ok()).unwrap_or(0);
    let wanted = running + count;
    for file in ["pid_max", "threads-max"] {
        let limit: usize = read(&format!("/proc/sys/kernel/{file}")).trim().parse().unwrap_or(usize::MAX);
        if limit < wanted {
            return Err(format!("{count} processes more are too many: kernel.{file} is {limit}, {running} run now"));
        }
    }
    // SAFETY: plain numbers, for which zero is a value.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: a valid place for the answer.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) } == 0;
    if known && limit.rlim_cur < wanted as u64 {
        return Err(format!("{count} processes more are too many: `ulimit -u` is {}", limit.rlim_cur));
    }
    let meminfo = read("/proc/meminfo");
    let free_kib = super::idle::value(&meminfo, "MemAvailable:").unwrap_or(u64::MAX);
    let needed_kib = count as u64 * KIB_PER_PROCESS;
    if free_kib < needed_kib {
        return Err(format!("{count} processes more need {needed_kib} KiB of memory, and {free_kib} KiB are free"));
    }
    Ok(())
}

/// How busy the machine is.
pub(super) fn load() -> String {
    let load = read("/proc/loadavg");
    format!("load average now {}", load.split(' ').next().unwrap_or("unknown"))
}

/// Which hierarchies are mounted.
fn cgroup_layout(mountinfo: &str) -> &'static str {
    let mounted = |kind: &str| mountinfo.lines().any(|line| line.contains(&format!(" - {kind} ")));
    match (mounted("cgroup"), mounted("cgroup2")) {
        (true, true) => "cgroup v1 + v2 (hybrid)",
        (false, true) => "cgroup v2",
        (true, false) => "cgroup v1",
        (false, false) => "no cgroups",
    }
}

/// The commit that was measured.
fn commit() -> String {
    let mut command = std::process::Command::new("git");
    command.args(["describe", "--always", "--dirty"]).current_dir(crate::top());
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|| "of an unknown commit".to_owned())
}

/// The value of the first line `key : value`.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.split_once(':')?.1.trim()))
}

/// A file's text, or nothing.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_told_from_the_mounts() {
        let (one, two) = ("21 20 0:21 / /a rw - cgroup cgroup rw,cpu", "22 20 0:22 / /b rw - cgroup2 cgroup2 rw");
        assert_eq!(cgroup_layout(&format!("{one}\n{two}")), "cgroup v1 + v2 (hybrid)");
        assert_eq!(cgroup_layout(two), "cgroup v2");
        assert_eq!(cgroup_layout(""), "no cgroups");
    }
}
