//! The checker finds each kind of fault, and nothing in a good history.

use std::time::{Duration, Instant};

use super::{Connection, Fault, History, Row, Saw, Writers, Written, shard};

const USER: &str = "u";

fn got(seq: u64) -> Saw {
    Saw::Notification { seq: Some(seq), n: seq - 1, id: format!("id{seq}") }
}

/// Three durable events and a transient one; a client that came back after two, and one that stayed.
fn good() -> History {
    let at = Instant::now();
    let written = |n, durable| Written { user: USER.into(), n, durable, at };
    let connection = |client, begins_after, saw: Vec<Saw>| Connection {
        client,
        user: USER.into(),
        begins_after,
        cursor: begins_after,
        since: at,
        saw: saw.into_iter().map(|saw| (at, saw)).collect(),
    };
    let passing = Saw::Notification { seq: None, n: 3, id: "passing".into() };
    let closed = Saw::Closed { code: None, excused: true };
    History {
        written: vec![written(0, true), written(1, true), written(2, true), written(3, false)],
        connections: vec![
            connection(0, 0, vec![got(1), Saw::Acknowledged(1), got(2), closed]),
            connection(0, 2, vec![passing, got(3)]),
            connection(1, 0, vec![got(1), got(2), got(3)]),
        ],
        rows: (1..=3).map(|seq| Row { user: USER.into(), seq, id: format!("id{seq}"), n: seq - 1 }).collect(),
        writers: writers(),
    }
}

/// One has owned the shard while it wrote two rows, then another one, which wrote the third.
fn writers() -> Writers {
    let shards = 64;
    let shard = i32::from(shard(USER, shards).0);
    let took = |at, owner: &str| (at, shard, Some(owner.to_owned()));
    let wrote = |at, seq, writer: &str| (at, USER.to_owned(), seq, writer.to_owned());
    Writers {
        shards,
        takes: vec![took(1, "one"), took(4, "other")],
        writes: vec![wrote(2, 1, "one"), wrote(3, 2, "one"), wrote(5, 3, "other")],
    }
}

fn faults(spoil: impl FnOnce(&mut History)) -> Vec<Fault> {
    let mut history = good();
    spoil(&mut history);
    history.faults()
}

fn user() -> String {
    USER.into()
}

/// What the client that stayed saw instead.
fn saw(instead: Vec<Saw>) -> Vec<Fault> {
    faults(|history| {
        let at = Instant::now();
        history.connections[2].saw = instead.into_iter().map(|saw| (at, saw)).collect();
    })
}

#[test]
fn a_good_history_has_no_fault() {
    assert_eq!(good().faults(), []);
    assert!(good().is_complete());
}

#[test]
fn what_a_client_never_got_is_lost_even_at_the_end() {
    assert_eq!(saw(vec![got(1), got(2)]), [Fault::Lost { client: 1, user: user(), n: 2 }]);
}

#[test]
fn a_number_that_is_left_out_is_found_unless_a_gap_names_it_and_is_lost_in_any_case() {
    let lost = Fault::Lost { client: 1, user: user(), n: 1 };
    let skipped = Fault::Skipped { client: 1, user: user(), from: 2, to: 2 };
    assert_eq!(saw(vec![got(1), got(3)]), [skipped.clone(), lost.clone()]);
    assert_eq!(saw(vec![got(1), Saw::Gap { from: 2, to: 2 }, got(3)]), std::slice::from_ref(&lost));
    assert_eq!(
        saw(vec![got(1), Saw::Gap { from: 3, to: 3 }]),
        [skipped, lost, Fault::Lost { client: 1, user: user(), n: 2 }]
    );
}

#[test]
fn a_number_that_comes_later_on_another_connection_does_not_hide_what_was_left_out() {
    let found = faults(|history| history.connections[0].saw.retain(|(_, saw)| *saw != got(1)));
    let skipped = Fault::Skipped { client: 0, user: user(), from: 1, to: 1 };
    assert_eq!(found, [skipped, Fault::Lost { client: 0, user: user(), n: 0 }]);
}

#[test]
fn a_repetition_is_found_under_its_number_and_under_another_one() {
    let repeated = |seq| Fault::Repeated { client: 1, user: user(), seq };
    assert_eq!(saw(vec![got(1), got(2), got(2), got(3)]), [repeated(2)]);
    let renumbered = Saw::Notification { seq: Some(4), n: 2, id: "id3".into() };
    let not_stored = Fault::NotAsStored { client: 1, user: user(), seq: 4 };
    assert_eq!(saw(vec![got(1), got(2), got(3), renumbered]), [repeated(4), not_stored]);
}

#[test]
fn a_number_after_a_higher_one_is_out_of_order() {
    let found = saw(vec![got(1), got(3), got(2)]);
    assert!(found.contains(&Fault::OutOfOrder { client: 1, user: user(), seq: 2, after: 3 }), "{found:?}");
}

#[test]
fn nothing_comes_again_that_the_connection_began_after_or_that_was_acknowledged_on_it() {
    let again = |up_to| Fault::Acknowledged { client: 0, user: user(), seq: 2, up_to };
    let found = faults(|history| history.connections[1].saw.insert(0, (Instant::now(), got(2))));
    assert_eq!(found, [again(2)]);
    let early = faults(|history| {
        history.connections[0].saw.insert(2, (Instant::now(), Saw::Acknowledged(3)));
    });
    assert_eq!(early, [again(3)]);
}

#[test]
fn no_later_connection_of_a_client_may_hear_of_a_lower_cursor() {
    // Whatever it says that it has seen.
    let fell = |cursor, named| Fault::CursorFell { client: 0, user: user(), cursor, named };
    let found = faults(|history| (history.connections[0].cursor, history.connections[1].cursor) = (2, 1));
    assert_eq!(found, [fell(1, 2)]);
    let found = faults(|history| {
        let ended = Connection { cursor: 3, saw: Vec::new(), ..history.connections[1].clone() };
        let next = Connection { cursor: 1, saw: Vec::new(), ..history.connections[1].clone() };
        history.connections.extend([ended, next]);
    });
    assert_eq!(found, [fell(1, 3)]);
    let other = faults(|history| (history.connections[1].cursor, history.connections[2].cursor) = (3, 0));
    assert_eq!(other, [], "another client has a cursor of its own");
}

#[test]
fn a_connection_that_a_good_node_ends_is_a_fault() {
    let closed = Saw::Closed { code: Some(1001), excused: false };
    let found = saw(vec![got(1), got(2), got(3), closed]);
    assert_eq!(found, [Fault::Closed { client: 1, user: user(), code: Some(1001) }]);
}

#[test]
fn what_nobody_wrote_is_invented_and_a_transient_one_is_not_durable() {
    let strange = |seq| Saw::Notification { seq, n: 9, id: "strange".into() };
    assert_eq!(saw(vec![got(1), got(2), got(3), strange(None)]), [Fault::Invented { user: user(), n: 9 }]);
    let passing = Saw::Notification { seq: Some(4), n: 3, id: "passing".into() };
    let found = saw(vec![got(1), got(2), got(3), passing]);
    assert!(found.contains(&Fault::Invented { user: user(), n: 3 }), "{found:?}");
}

#[test]
fn what_was_pushed_and_is_not_what_was_stored_is_found() {
    let other = Saw::Notification { seq: Some(2), n: 1, id: "other".into() };
    assert_eq!(saw(vec![got(1), other, got(3)]), [Fault::NotAsStored { client: 1, user: user(), seq: 2 }]);
}

#[test]
fn rows_are_one_for_each_notification_with_numbers_without_holes_in_the_producers_order() {
    let found = faults(|history| drop(history.rows.remove(1)));
    assert!(found.contains(&Fault::NotStored { user: user(), n: 1 }), "{found:?}");
    assert!(found.contains(&Fault::Numbers { user: user(), seq: 3 }), "{found:?}");

    let row = |seq, id: &str, n| Row { user: user(), seq, id: id.into(), n };
    let twice = faults(|history| history.rows.push(row(4, "id2", 1)));
    assert_eq!(twice, [Fault::StoredTwice { user: user(), seq: 4, id: "id2".into() }]);

    let numbers = faults(|history| history.rows.push(row(3, "id4", 2)));
    assert!(numbers.contains(&Fault::Numbers { user: user(), seq: 3 }), "{numbers:?}");

    let vain = faults(|history| history.rows.push(row(4, "passing", 3)));
    assert_eq!(vain, [Fault::StoredInVain { user: user(), seq: 4 }]);

    let order = faults(|history| {
        history.rows[1].n = 2;
        history.rows[2].n = 1;
    });
    assert!(order.contains(&Fault::StoredOutOfOrder { user: user(), seq: 3 }), "{order:?}");
}

#[test]
fn who_writes_and_is_not_the_owner_is_found() {
    let late = faults(|history| history.writers.writes[1].0 = 6);
    let stranger = Fault::Stranger { user: user(), seq: 2, writer: "one".into(), owner: Some("other".into()) };
    assert_eq!(late, [stranger]);
    let nobody = faults(|history| history.writers.takes[0].2 = None);
    assert_eq!(nobody.len(), 2, "{nobody:?}");
}

#[test]
fn a_delay_is_what_an_event_took_to_a_connection_that_was_there() {
    let mut history = good();
    let at = history.connections[0].since + Duration::from_secs(1);
    history.written.push(Written { user: user(), n: 4, durable: true, at });
    let seen = at + Duration::from_millis(700);
    let saw = (seen, Saw::Notification { seq: Some(4), n: 4, id: "id4".into() });
    // One came back later.
    history.connections[1].since = at + Duration::from_millis(1);
    history.connections[1].saw.push(saw.clone());
    history.connections[2].saw.push(saw);
    let [delay] = history.delays()[..] else { panic!("{:?}", history.delays()) };
    assert_eq!((delay.client, delay.n, delay.took(), delay.closed), (1, 4, Duration::from_millis(700), None));
}

#[test]
fn silence_is_measured_where_the_connection_has_stayed() {
    let mut history = good();
    let fault = history.connections[0].since + Duration::from_secs(1);
    history.written.push(Written { user: user(), n: 4, durable: true, at: fault + Duration::from_millis(1) });
    let late = (fault + Duration::from_millis(700), Saw::Notification { seq: Some(4), n: 4, id: "id4".into() });
    history.connections[2].saw.push(late);
    assert_eq!(history.silence_after(fault), Some(Duration::from_millis(700)));
    let closed = Saw::Closed { code: None, excused: true };
    history.connections[2].saw.push((fault, closed));
    assert_eq!(history.silence_after(fault), None);
}
