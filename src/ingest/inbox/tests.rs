//! When the poll thread is woken, and when it is left to sleep.

use std::{sync::Arc, time::Instant};

use super::*;

const RECORD: RecordRef = RecordRef { partition: 0, assignment: 1, offset: 0 };
/// Far longer than a wake-up takes: a sleep that reaches it was not ended.
const LONG: Duration = Duration::from_secs(10);

fn asleep(wants_reports: bool) -> Inbox {
    let inbox = Inbox::default();
    inbox.about_to_sleep(wants_reports);
    inbox
}

fn is_asleep(inbox: &Inbox) -> bool {
    inbox.asleep.load(Ordering::SeqCst)
}

fn report(inbox: &Inbox, times: usize, outcome: Outcome) {
    (0..times).for_each(|_| inbox.report(RECORD, outcome));
}

#[test]
fn settled_events_wake_a_thread_that_waits_for_credit_only_when_a_batch_is_together() {
    let inbox = asleep(true);
    report(&inbox, REPORTS_WORTH_WAKING - 1, Outcome::Settled);
    assert!(is_asleep(&inbox));
    report(&inbox, 1, Outcome::Settled);
    assert!(!is_asleep(&inbox));
}

#[test]
fn settled_events_never_wake_a_thread_that_does_not_wait_for_them() {
    let inbox = asleep(false);
    report(&inbox, 2 * REPORTS_WORTH_WAKING, Outcome::Settled);
    assert!(is_asleep(&inbox));
}

#[test]
fn an_event_that_has_to_go_again_wakes_the_thread_at_once() {
    for outcome in [Outcome::Refused, Outcome::Lost, Outcome::Crashed] {
        let inbox = asleep(false);
        report(&inbox, 1, outcome);
        assert!(!is_asleep(&inbox), "{outcome:?}");
    }
}

#[test]
fn every_report_is_taken_once_in_the_order_it_was_made() {
    let inbox = Inbox::default();
    report(&inbox, 2, Outcome::Settled);
    report(&inbox, 1, Outcome::Lost);
    let mut taken = Vec::new();
    inbox.take_reports(&mut taken);
    let outcomes: Vec<_> = taken.drain(..).map(|(_, outcome)| outcome).collect();
    assert_eq!(outcomes, [Outcome::Settled, Outcome::Settled, Outcome::Lost]);
    inbox.take_reports(&mut taken);
    assert!(taken.is_empty());
}

#[test]
fn what_arrives_between_the_last_look_and_the_sleep_ends_the_sleep() {
    let inbox = asleep(false);
    report(&inbox, 1, Outcome::Refused);
    let began = Instant::now();
    inbox.sleep(LONG);
    assert!(began.elapsed() < LONG / 2);
}

#[test]
fn a_command_ends_the_sleep_of_another_thread() {
    let inbox = Arc::new(Inbox::default());
    let sleeper = std::thread::spawn({
        let inbox = inbox.clone();
        move || {
            let began = Instant::now();
            inbox.about_to_sleep(false);
            while inbox.take_commands().is_empty() && began.elapsed() < LONG {
                inbox.sleep(LONG);
                inbox.about_to_sleep(false);
            }
            began.elapsed()
        }
    });
    // Parked, or about to be: a command that comes before that needs no wake-up.
    while !is_asleep(&inbox) {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(20));
    let (done, _) = mpsc::channel();
    inbox.command(Command::Stop { done });
    assert!(sleeper.join().unwrap() < LONG / 2);
}
