//! What it takes to read a large machine and to choose cores of it.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use super::super::area::Inside;
use super::super::stats::{Line, Sample};
use crate::Failure;

/// Readings that are not counted.
const WARM_UP: usize = 3;

/// Cores of the large machine, with two threads each.
const CORES: usize = 128;

/// Its cores that share a cache.
const SHARE_A_CACHE: usize = 8;

/// Its sockets, with a memory node each.
const SOCKETS: usize = 2;

/// Measures `rounds` readings.
///
/// # Errors
/// The machine cannot be made up or read.
pub(super) fn measure(place: &Inside, rounds: usize) -> Result<Vec<Line>, Failure> {
    let root = place.file("large-machine");
    make_up(&root).map_err(|error| format!("cannot make up a machine in {}: {error}", root.display()))?;
    let (read, chose, cores) = decide(place, &root, rounds)?;
    let (here, _, cores_here) = decide(place, Path::new("/"), rounds)?;
    if cores != CORES {
        return Err(format!("a machine of {CORES} cores was read as one of {cores}"));
    }
    Ok(vec![Line {
        what: format!("reading a machine of {CORES} cores with two threads (files in memory, not the kernel's)"),
        own: read.show_msec(),
        other: format!("this machine, {cores_here} cores: {} ms", here.show(3)),
        difference: format!("choosing {} cores: {} ms", CORES / 2, chose.show(3)),
        target: None,
    }])
}

/// Milliseconds of each reading and choice, and how many cores were found.
fn decide(place: &Inside, root: &Path, rounds: usize) -> Result<(Sample, Sample, usize), Failure> {
    let mut command = place.program("topologycost")?;
    command.arg(root).arg((WARM_UP + rounds).to_string()).stdout(Stdio::piped());
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Option<Vec<[u64; 3]>> = text.lines().skip(WARM_UP).map(parse).collect();
    let Some(lines) = lines.filter(|lines| output.status.success() && lines.len() == rounds) else {
        return Err(place.failed(&format!("topologycost failed ({})", output.status)));
    };
    let (mut read, mut chose, mut found) = (Sample::default(), Sample::default(), 0);
    for [read_nsec, chose_nsec, cores] in lines {
        read.push(read_nsec as f64 / 1e6);
        chose.push(chose_nsec as f64 / 1e6);
        found = cores as usize;
    }
    Ok((read, chose, found))
}

/// The three numbers of a line.
fn parse(line: &str) -> Option<[u64; 3]> {
    let numbers: Option<Vec<u64>> = line.split(' ').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// Writes the files of `/sys` that perflock reads, as a server of two sockets has them: core N has the processors N and
/// [`CORES`] + N.
fn make_up(root: &Path) -> std::io::Result<()> {
    let devices = root.join("sys/devices/system");
    let write = |path: String, text: String| {
        let path = devices.join(path);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, text + "\n")
    };
    // Processors of so many cores from this one on.
    let of = |first: usize, count: usize| {
        format!("{}-{},{}-{}", first, first + count - 1, CORES + first, CORES + first + count - 1)
    };
    write("cpu/online".to_owned(), format!("0-{}", 2 * CORES - 1))?;
    write("node/has_memory".to_owned(), format!("0-{}", SOCKETS - 1))?;
    let per_socket = CORES / SOCKETS;
    for socket in 0..SOCKETS {
        write(format!("node/node{socket}/cpulist"), of(socket * per_socket, per_socket))?;
    }
    for cpu in 0..2 * CORES {
        let core = cpu % CORES;
        let dir = format!("cpu/cpu{cpu}");
        write(format!("{dir}/topology/core_cpus_list"), format!("{core},{}", CORES + core))?;
        write(format!("{dir}/topology/physical_package_id"), (core / per_socket).to_string())?;
        // Two of the first level, one of the second, and one that several cores share.
        for (index, level) in [1, 1, 2, 3].into_iter().enumerate() {
            let first = core - core % SHARE_A_CACHE;
            let shared = if level == 3 { of(first, SHARE_A_CACHE) } else { format!("{core},{}", CORES + core) };
            write(format!("{dir}/cache/index{index}/level"), level.to_string())?;
            write(format!("{dir}/cache/index{index}/shared_cpu_list"), shared)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use perflock::pin::topology::Topology;
    use std::collections::BTreeSet;

    #[test]
    fn the_large_machine_is_read_as_what_it_is() {
        let root = tempfile::tempdir().unwrap();
        make_up(root.path()).unwrap();
        let topology = Topology::read(root.path()).unwrap();
        assert_eq!((topology.cores.len(), topology.nodes.len()), (CORES, SOCKETS));
        assert!(topology.cores.iter().all(|core| core.cpus.len() == 2));
        let caches: BTreeSet<u32> = topology.cores.iter().map(|core| core.cache).collect();
        assert_eq!(caches.len(), CORES / SHARE_A_CACHE);
    }

    #[test]
    fn a_line_has_three_numbers() {
        assert_eq!(parse("80000 900 128"), Some([80000, 900, 128]));
        for line in ["", "1 2", "1 2 3 4", "1 2 x"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
