//! `pls CMD`: run a job that shares the machine, and never overlaps an exclusive one.
fn main() {
    perflock::run::main(perflock::job::Mode::Shared);
}
