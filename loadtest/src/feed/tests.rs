use rdkafka::mocking::MockCluster;

use super::*;
use crate::event::Durability;
use crate::kafka::Topic;
use crate::workload::Users;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_hot_user_s_events_come_between_the_others_from_its_time_on() {
    let plan = Plan::of(Schedule::constant(10.0, 2 * SECOND)).with_more_for(
        vec![0],
        SECOND,
        Schedule::constant(100.0, SECOND),
    );
    let due: Vec<_> = plan.due().collect();
    assert_eq!(due.len(), 120);
    assert!(due.is_sorted_by_key(|(due, _)| *due));
    assert_eq!(due.iter().filter(|(_, user)| *user == Some(0)).count(), 100);
    assert!(due.iter().all(|(due, user)| user.is_none() || *due >= SECOND));
}

#[test]
fn several_users_get_their_additional_events_in_turn() {
    let more = Schedule::constant(6.0, SECOND);
    let plan = Plan::of(Schedule::constant(1.0, SECOND)).with_more_for(vec![4, 9], Duration::ZERO, more);
    let users: Vec<_> = plan.due().filter_map(|(_, user)| user).collect();
    assert_eq!(users, [4, 9, 4, 9, 4, 9]);
}

fn fed(lateness: &[u64], confirmation: &[u64]) -> Vec<String> {
    let of = |values: &[u64]| {
        let mut histogram = histogram().unwrap();
        values.iter().for_each(|value| histogram.saturating_record(*value));
        histogram
    };
    let fed = Fed { lateness: of(lateness), confirmation: of(confirmation), ..Fed::nothing(String::new()).unwrap() };
    let mut report = Report::new("test");
    fed.honesty(&mut report, Limits { lateness: Duration::from_millis(10), confirmation: SECOND }, SECOND);
    report.faults().to_vec()
}

#[test]
fn a_rate_that_the_generator_or_the_broker_did_not_make_is_refused() {
    let mut values = vec![5_000; 100];
    assert_eq!(fed(&values, &values), [""; 0]);
    values.extend([50_000; 2]);
    assert!(fed(&values, &values)[0].starts_with("the schedule slipped: 5"), "{:?}", fed(&values, &values));
    let mut slow = vec![900_000; 100];
    assert_eq!(fed(&[1], &slow), [""; 0]);
    slow.extend([2_000_000; 2]);
    assert!(fed(&[1], &slow)[0].starts_with("Kafka took the events too slowly: 2"), "{:?}", fed(&[1], &slow));
}

/// Feeds a broker that lives in this process; `meanwhile` is called with it when the first second has passed.
fn feed(
    start: Instant,
    seconds: u32,
    meanwhile: impl FnOnce(&MockCluster<'_, rdkafka::producer::DefaultProducerContext>),
) -> Fed {
    let cluster = MockCluster::new(1).expect("a broker");
    cluster.create_topic("t", 3, 1).expect("a topic");
    let topic = Topic { brokers: cluster.bootstrap_servers(), name: "t".to_owned(), partitions: Vec::new() };
    let producer = topic.producer(Duration::from_millis(5)).expect("a producer");
    let generator = Generator::new(1, Users::at_random(10), 100, Durability::Transient);
    let plan = Plan::of(Schedule::constant(100.0, seconds * SECOND));
    let feeding = thread::spawn(move || run(producer, generator, &plan, start, &Progress::default()));
    thread::sleep(SECOND);
    meanwhile(&cluster);
    feeding.join().expect("no panic").expect("an answer")
}

#[test]
fn what_the_broker_takes_is_confirmed_in_time() {
    let fed = feed(Instant::now(), 1, |_| {});
    assert_eq!((fed.error, fed.unconfirmed, fed.sent.iter().sum::<u32>()), (None, 0, 100));
    assert_eq!(fed.confirmation.len(), 100);
    assert!(fed.confirmation.max() < 5_000_000, "{}", fed.confirmation.max());
}

#[test]
fn a_generator_that_is_hopelessly_late_gives_up() {
    let start = Instant::now().checked_sub(HOPELESS + SECOND).expect("a machine that has run for a while");
    let fed = feed(start, 1, |_| {});
    assert!(fed.error.as_ref().is_some_and(|error| error.contains("slipped by 6")), "{:?}", fed.error);
    assert_eq!((fed.unconfirmed, fed.sent.iter().sum::<u32>()), (0, 0));
}

#[test]
fn a_broker_that_dies_ends_the_feeding_and_what_was_fed_is_kept() {
    let started = Instant::now();
    let fed = feed(started, 60, |cluster| cluster.broker_down(1).expect("down"));
    assert!(fed.error.as_ref().is_some_and(|error| error.contains("Kafka kept records waiting")), "{:?}", fed.error);
    assert!(started.elapsed() < 20 * SECOND, "{:?}", started.elapsed());
    assert!(fed.confirmation.len() >= 50 && fed.unconfirmed >= 300, "{}, {}", fed.confirmation.len(), fed.unconfirmed);
    let sent: u32 = fed.sent.iter().sum();
    assert_eq!(u64::from(sent), fed.confirmation.len() + fed.unconfirmed);
}
