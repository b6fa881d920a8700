//! `perflock CMD`: run a job with the machine to itself.
fn main() {
    perflock::run::main(perflock::job::Mode::Exclusive);
}
