//! `wholock`: show who holds the machine, who waits, and what each job uses.
fn main() {
    perflock::wholock::main();
}
