//! What the machine does, by itself.

use super::*;
use Population::{Empty, Populated};
use proptest::prelude::*;

const POLICY: Policy = Policy { grace: Duration::from_secs(10), leftovers: Leftovers::Kill, time_limit: None };

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn term(origin: Origin) -> Event {
    Event::Signal(libc::SIGTERM, origin)
}

fn left_over(policy: Policy) -> Machine {
    let mut machine = Machine::new(policy);
    assert_eq!(machine.step(ms(100), Event::MainEnded), []);
    assert_eq!(machine.step(ms(101), Event::Looked(Populated)), []);
    let prepares = if policy.leftovers == Leftovers::Kill { vec![Act::Prepare] } else { vec![] };
    assert_eq!(machine.step(ms(110), Event::Looked(Populated)), prepares);
    assert_eq!(machine.step(ms(111), Event::Looked(Populated)), []);
    machine
}

#[test]
fn a_job_that_others_had_to_end_for_its_limit_has_timed_out() {
    let policy = Policy { time_limit: Some(ms(500)), ..POLICY };
    assert_eq!(policy.overdue(), Some(ms(11_000)));
    let mut in_time = Machine::new(policy);
    // Killed by somebody, before the guard would have done it.
    assert_eq!(in_time.step(ms(499), Event::MainKilled), []);
    assert!(!in_time.timed_out());
    // The same between limit and kill, seen before the limit was: what killed it was not the limit.
    let mut killed = Machine::new(policy);
    assert_eq!(killed.step(ms(501), Event::MainKilled), []);
    assert_eq!(killed.step(ms(501), Event::MainEnded), []);
    assert!(!killed.timed_out());
    let mut late = Machine::new(policy);
    assert_eq!(late.step(ms(11_000), Event::MainKilled), [Act::Tell(News::TimeLimit)]);
    assert_eq!(late.step(ms(11_000), Event::MainEnded), []);
    assert_eq!(late.step(ms(11_001), Event::Looked(Empty)), []);
    assert!(late.done() && late.timed_out());
}

#[test]
fn a_job_that_leaves_nothing_is_done_without_a_word() {
    let mut machine = Machine::new(POLICY);
    assert_eq!(machine.wake_at(), None);
    assert!(!machine.looks());
    assert_eq!(machine.step(ms(100), Event::MainEnded), []);
    assert!(machine.looks());
    assert_eq!(machine.step(ms(100), Event::Looked(Empty)), []);
    assert!(machine.done());
}

#[test]
fn a_child_that_ends_while_the_group_settles_is_no_leftover() {
    let mut machine = left_over(POLICY);
    assert_eq!(machine.step(ms(119), Event::Looked(Empty)), []);
    assert!(machine.done());
}

#[test]
fn leftovers_get_term_then_a_word_then_kill() {
    let mut machine = left_over(POLICY);
    assert_eq!(machine.wake_at(), Some(ms(120)));
    assert_eq!(machine.step(ms(120), Event::Time), [Act::Tell(News::Releasing), Act::Terminate]);
    assert_eq!(machine.wake_at(), Some(ms(220)));
    assert_eq!(machine.step(ms(220), Event::Time), [Act::Continue]);
    assert_eq!(machine.step(ms(1119), Event::Looked(Populated)), []);
    assert_eq!(machine.step(ms(1120), Event::Time), [Act::Tell(News::KillsIn(ms(9000)))]);
    assert_eq!(machine.step(ms(10_120), Event::Time), [Act::Kill]);
    assert_eq!(machine.step(ms(10_140), Event::Looked(Populated)), [Act::Kill]);
    assert_eq!(machine.step(ms(10_141), Event::Looked(Empty)), []);
    assert!(machine.done());
}

#[test]
fn a_group_that_does_not_die_is_killed_again_less_and_less_often_and_named_once() {
    let mut machine = left_over(Policy { grace: Duration::ZERO, ..POLICY });
    let mut now = ms(120);
    let (mut kills, mut others, mut told) = (0, 0, 0);
    while now < ms(20_000) {
        for act in machine.step(now, Event::Looked(Populated)) {
            kills += usize::from(act == Act::Kill);
            others += usize::from(act == Act::KillSurvivors);
            told += usize::from(act == Act::TellStuck);
            assert!(act != Act::KillSurvivors || now >= ms(220), "{now:?}");
        }
        now = machine.wake_at().unwrap().max(now + ms(1));
    }
    assert!((10..40).contains(&kills), "{kills}");
    assert_eq!((kills - others, told), (3, 1));
    assert!(!machine.done());
}

#[test]
fn of_members_that_others_have_frozen_it_is_told_at_once_and_once() {
    let mut machine = left_over(Policy { grace: Duration::ZERO, ..POLICY });
    machine.step(ms(120), Event::Time);
    assert_eq!(machine.step(ms(140), Event::Looked(Populated)), [Act::Kill]);
    assert_eq!(machine.step(ms(180), Event::Looked(Populated)), [Act::Kill]);
    assert_eq!(machine.step(ms(260), Event::Looked(Populated)), [Act::Kill, Act::KillSurvivors]);
    assert_eq!(machine.step(ms(260), Event::Frozen), [Act::TellStuck]);
    assert_eq!(machine.step(ms(261), Event::Frozen), []);
    assert_eq!(machine.step(ms(6000), Event::Looked(Populated)), [Act::Kill, Act::KillSurvivors]);
    assert_eq!(machine.step(ms(6001), Event::Looked(Empty)), []);
    assert!(machine.done());
}

#[test]
fn leftovers_may_be_waited_for() {
    let mut machine = left_over(Policy { leftovers: Leftovers::Wait, ..POLICY });
    assert_eq!(machine.step(ms(120), Event::Time), [Act::Tell(News::Releasing)]);
    assert_eq!(machine.step(ms(1120), Event::Time), [Act::Tell(News::Lingering)]);
    assert_eq!(machine.wake_at(), None);
    assert_eq!(machine.step(ms(60_000), Event::Signal(libc::SIGINT, Origin::Terminal)), [Act::Kill]);
}

#[test]
fn the_time_limit_ends_leftovers_that_are_waited_for_as_well() {
    let limited = Policy { leftovers: Leftovers::Wait, time_limit: Some(ms(5000)), ..POLICY };
    let mut machine = left_over(limited);
    machine.step(ms(120), Event::Time);
    machine.step(ms(1120), Event::Time);
    assert_eq!(machine.wake_at(), Some(ms(5000)));
    assert_eq!(machine.step(ms(5000), Event::Time), [Act::Tell(News::TimeLimit), Act::Terminate]);
}

#[test]
fn the_time_limit_ends_the_command_and_then_kills() {
    let mut machine = Machine::new(Policy { time_limit: Some(ms(500)), ..POLICY });
    assert_eq!(machine.wake_at(), Some(ms(500)));
    assert_eq!(machine.step(ms(500), Event::Time), [Act::Tell(News::TimeLimit), Act::Terminate]);
    assert_eq!(machine.step(ms(10_500), Event::Time), [Act::Tell(News::KillsIn(ms(0))), Act::Kill].as_slice()[1..]);
    assert!(machine.timed_out());
    assert_eq!(machine.step(ms(10_501), Event::MainEnded), []);
    assert_eq!(machine.step(ms(10_502), Event::Looked(Empty)), []);
    assert!(machine.done());
}

#[test]
fn a_signal_goes_on_once_and_its_copy_is_dropped() {
    let mut machine = Machine::new(POLICY);
    assert_eq!(machine.step(ms(10), term(Origin::Outside)), [Act::Forward(libc::SIGTERM)]);
    assert_eq!(machine.step(ms(11), term(Origin::Outside)), []);
    assert_eq!(machine.step(ms(11), Event::Signal(libc::SIGUSR1, Origin::Outside)), [Act::Forward(libc::SIGUSR1)]);
}

#[test]
fn a_second_term_kills_the_group() {
    let mut machine = Machine::new(POLICY);
    machine.step(ms(10), term(Origin::Outside));
    assert_eq!(machine.step(ms(1010), term(Origin::Outside)), [Act::Kill]);
    assert!(machine.cut_short());
}

#[test]
fn a_job_s_own_signals_and_the_terminal_s_are_not_doubled() {
    let mut machine = Machine::new(POLICY);
    assert_eq!(machine.step(ms(10), term(Origin::Member)), []);
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        assert_eq!(machine.step(ms(10), Event::Signal(signal, Origin::Terminal)), []);
    }
}

#[test]
fn an_interrupt_while_leftovers_are_ended_kills_at_once() {
    for event in [Event::Signal(libc::SIGINT, Origin::Terminal), term(Origin::Outside)] {
        let mut machine = left_over(POLICY);
        machine.step(ms(120), Event::Time);
        assert_eq!(machine.step(ms(500), event), [Act::Kill], "{event:?}");
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::MainEnded),
        Just(Event::Time),
        Just(Event::Frozen),
        Just(Event::Looked(Empty)),
        Just(Event::Looked(Populated)),
        (
            prop_oneof![Just(libc::SIGTERM), Just(libc::SIGINT), Just(libc::SIGHUP), Just(libc::SIGUSR1)],
            prop_oneof![Just(Origin::Terminal), Just(Origin::Member), Just(Origin::Outside)]
        )
            .prop_map(|(signal, origin)| Event::Signal(signal, origin)),
    ]
}

proptest! {
    /// Done means that the main process was reaped and the last look found nobody; nothing is done after it.
    #[test]
    fn it_is_done_exactly_when_main_ended_and_the_group_was_seen_empty(
        events in proptest::collection::vec((0u64..3000, any_event()), 0..40),
        wait: bool,
        limit in proptest::option::of(0u64..5000),
    ) {
        let leftovers = if wait { Leftovers::Wait } else { Leftovers::Kill };
        let mut machine = Machine::new(Policy { leftovers, time_limit: limit.map(ms), ..POLICY });
        let (mut now, mut main_ended, mut emptied) = (Duration::ZERO, false, false);
        for (pause, event) in events {
            now += ms(pause);
            let was_done = machine.done();
            let acts = machine.step(now, event);
            main_ended |= event == Event::MainEnded;
            emptied |= main_ended && event == Event::Looked(Empty);
            prop_assert_eq!(machine.done(), emptied);
            prop_assert!(!was_done || acts.is_empty());
        }
    }
}
