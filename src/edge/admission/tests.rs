//! Counting, without sockets.

use super::*;

fn admission(limits: Limits) -> Admission {
    Admission::new(limits)
}

const NONE: Limits = Limits {
    connects_per_second: 0,
    connections_max: 100,
    handshakes_max: 0,
    handshakes_per_address: 0,
    connections_per_address: 0,
    handshake_deadline: Duration::from_secs(1),
};

fn address(last: u8) -> IpAddr {
    [127, 0, 0, last].into()
}

fn admit(admission: &Admission, last: u8) -> Result<Admitted, Refusal> {
    admission.admit(address(last), Some(address(last)))
}

#[test]
fn half_open_connections_of_one_address_do_not_count_for_another() {
    let admission = admission(Limits { handshakes_per_address: 2, handshakes_max: 3, ..NONE });
    let mut first = admit(&admission, 1).ok().unwrap();
    let _second = admit(&admission, 1).ok().unwrap();
    assert_eq!(admit(&admission, 1).err(), Some(Refusal::HandshakesPerAddress));
    let _other = admit(&admission, 2).ok().unwrap();
    assert_eq!(admit(&admission, 3).err(), Some(Refusal::Handshakes));
    first.handshake_done();
    assert!(admit(&admission, 1).is_ok());
}

#[test]
fn connections_are_counted_until_they_end() {
    let admission = admission(Limits { connections_max: 3, connections_per_address: 1, ..NONE });
    let first = admit(&admission, 1).ok().unwrap();
    assert_eq!(admit(&admission, 1).err(), Some(Refusal::ConnectionsPerAddress));
    let _others = [2, 3].map(|last| admit(&admission, last).ok().unwrap());
    assert_eq!(admit(&admission, 4).err(), Some(Refusal::Connections));
    drop(first);
    assert!(admit(&admission, 1).is_ok());
    assert_eq!(admission.counts.lock().by_address.len(), 2, "an address without connections is forgotten");
}

#[test]
fn streams_count_as_connections_until_they_end() {
    let admission = admission(Limits { connections_max: 3, ..NONE });
    let _carrier = admit(&admission, 1).ok().unwrap();
    let streams = [1, 2].map(|_| admission.admit_stream(None).ok().unwrap());
    assert_eq!(admission.admit_stream(None).err(), Some(Refusal::Connections));
    assert_eq!(admit(&admission, 2).err(), Some(Refusal::Connections));
    drop(streams);
    assert!(admission.admit_stream(None).is_ok() && admit(&admission, 2).is_ok());
}

#[test]
fn streams_that_a_proxy_carries_count_where_they_come_from() {
    let admission = admission(Limits { connections_per_address: 2, handshakes_per_address: 1, ..NONE });
    let _proxy = admission.admit(address(9), None).ok().unwrap();
    let stream = |last| admission.admit_stream(Some(address(last)));
    let streams = [stream(1), stream(1), stream(2)].map(|stream| stream.ok().unwrap());
    assert_eq!(stream(1).err(), Some(Refusal::ConnectionsPerAddress));
    assert_eq!(admit(&admission, 1).err(), Some(Refusal::ConnectionsPerAddress), "by whatever way it comes");
    assert!(admission.admit_stream(None).is_ok(), "the proxy's own");
    drop(streams);
    assert!(admission.counts.lock().by_address.is_empty());
    assert!(stream(1).is_ok());
}

#[test]
fn a_connection_behind_a_proxy_counts_where_it_comes_from() {
    let admission = admission(Limits { connections_per_address: 1, handshakes_per_address: 1, ..NONE });
    let from_proxy = || admission.admit(address(9), None).ok().unwrap();
    let (mut first, mut second, _third) = (from_proxy(), from_proxy(), from_proxy());
    first.came_from(address(1), Some(address(1))).unwrap();
    assert_eq!(second.came_from(address(1), Some(address(1))), Err(Refusal::ConnectionsPerAddress));
    assert_eq!(second.client(), address(9), "a refusal changes nothing");
    assert_eq!(admit(&admission, 1).err(), Some(Refusal::ConnectionsPerAddress));
    // The next request on the proxy's connection is another client's.
    first.handshake_done();
    first.came_from(address(2), Some(address(2))).unwrap();
    second.came_from(address(1), Some(address(1))).unwrap();
    drop((first, second));
    assert!(admission.counts.lock().by_address.is_empty());
    assert_eq!(admission.counts.lock().handshakes, 1, "only the third is left");
}

#[test]
fn nobody_is_let_in_while_memory_is_full() {
    let admission = admission(NONE);
    admission.memory_full(true);
    assert_eq!(admit(&admission, 1).err(), Some(Refusal::Memory));
    assert_eq!(admission.admit_stream(None).err(), Some(Refusal::Memory), "nor on a connection that is there");
    admission.memory_full(false);
    assert!(admit(&admission, 1).is_ok() && admission.admit_stream(None).is_ok());
}

#[test]
fn a_second_has_so_many_connects_and_says_how_long_to_wait() {
    let start = Instant::now();
    let mut bucket = Bucket::new(10.0, start);
    (0..10).for_each(|_| bucket.take(start).unwrap());
    let wait = bucket.take(start).unwrap_err();
    assert!(wait <= Duration::from_millis(100) && bucket.take(start + wait * 2).is_ok());
    let later = start + Duration::from_secs(3600);
    assert_eq!((0..20).filter(|_| bucket.take(later).is_ok()).count(), 10, "what was not used is not saved up");
}

#[test]
fn without_a_limit_some_descriptors_are_left_for_everything_else() {
    let admission = admission(Limits { connections_max: 0, ..NONE });
    let (descriptors, _) = rlimit::Resource::NOFILE.get().unwrap();
    let most = usize::try_from(descriptors.saturating_sub(100).max(16)).unwrap();
    assert!((1..=most).contains(&admission.limits.connections_max), "{}", admission.limits.connections_max);
}
