//! What deciding on cores takes, for `cargo xtask bench pins`.
//!
//! `topologycost ROOT ROUNDS` reads the machine whose `/sys` is below ROOT through perflock's library, and chooses half of its
//! cores. It prints a line for each round: nanoseconds of the reading, nanoseconds of the choice, and how many cores there are.
// A helper of the bench: what it prints is read there.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use perflock::pin::CpuList;
use perflock::pin::allocate::allocate;
use perflock::pin::topology::Topology;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("topologycost: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say.
fn measure() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, rounds] = &arguments[..] else { return Err("usage: topologycost ROOT ROUNDS".to_owned()) };
    let rounds: usize = rounds.parse().map_err(|_| format!("{rounds} is not a number"))?;
    for _ in 0..rounds {
        let start = Instant::now();
        let topology = Topology::read(Path::new(root)).map_err(|error| error.to_string())?;
        let read = start.elapsed();
        let cores = topology.cores.len();
        let free: CpuList = topology.cores.iter().flat_map(|core| core.cpus.iter()).collect();
        let start = Instant::now();
        let lease = black_box(allocate(&topology, black_box(&free), cores.div_ceil(2), false));
        let chose = start.elapsed();
        lease.ok_or("no cores were found")?;
        println!("{} {} {cores}", read.as_nanos(), chose.as_nanos());
    }
    Ok(())
}
