//! Shards that come from another node and go to one.

use super::*;
use crate::{event::Sender, placement::owners::Owners, session::tests::outlet::Seen, store::Store as _};

const SHARD: ShardId = ShardId(0);

/// A node among others, which serves nothing yet.
async fn newcomer() -> Running {
    let store = FaultyStore::new(10_000);
    let sealed = Sealed::by(&Owners::shared(1));
    let args = Args { config: config(&store, 8), waiting: Some(Vec::new()), sealed };
    let shard = spawn(args, fakes::supervisor().await).await.unwrap();
    Running::with(store, shard)
}

impl Running {
    async fn take(&self, waiting: Vec<UserId>) {
        self.unseal(Unsealing { shards: vec![(SHARD, 1)], waiting: Some(waiting), marks: Vec::new() }).await;
    }

    async fn unseal(&self, unsealing: Unsealing) {
        let (done, taken) = oneshot::channel();
        self.shard.cast(Msg::Unseal(unsealing, done)).unwrap();
        taken.await.unwrap();
    }

    /// Takes the shard under that epoch, from whoever had it; these nodes have connections.
    async fn take_from(&self, epoch: Epoch, nodes: &[Incarnation]) {
        let waiting = Some(Vec::new());
        self.unseal(Unsealing { shards: vec![(SHARD, epoch)], waiting, marks: nodes.to_vec() }).await;
    }

    async fn marked(&self, node: Incarnation, epoch: Epoch) {
        self.shard.cast(Msg::Marked(node, vec![(SHARD, epoch)])).unwrap();
        settled().await;
    }

    /// A connection that comes back to a user who has no numbers yet.
    fn comes_back(&self) -> Arc<FakeOutlet> {
        let outlet = FakeOutlet::new();
        let from = user::Origin::Connection { passed: 0, acknowledged: 0 };
        self.shard.cast(Msg::Attach(Box::new(Attach { from, ..*attach("101", &outlet) }))).unwrap();
        outlet
    }

    fn send_one_of_each(&self, first: i64) {
        let to = fakes::user();
        self.send(first, transient(&to, "transient"), true);
        self.send(first + 1, durable(&to, "durable"), false);
    }

    fn give(&self) -> oneshot::Receiver<()> {
        let (done, given) = oneshot::channel();
        self.shard.cast(Msg::Seal(vec![SHARD], done)).unwrap();
        given
    }

    fn send_as(&self, sender: Sender, number: i64, first: bool) {
        let event = durable(&fakes::user(), &number.to_string());
        let in_flight = InFlight { first, sender, ..self.reports.in_flight(number, event) };
        self.shard.cast(Msg::Events(vec![in_flight])).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_comes_before_what_follows_it_however_late_the_shard_is_taken() {
    let shard = newcomer().await;
    shard.send_as(0, 0, false);
    settled().await;
    shard.take(Vec::new()).await;
    // Sent before its sender knew that the first was refused.
    shard.send_as(0, 1, false);
    settled().await;
    assert_eq!(shard.reports.take(), [(0, Outcome::Refused), (1, Outcome::Refused)]);
    shard.send_as(0, 0, true);
    shard.send_as(0, 1, false);
    settled().await;
    assert_eq!(shard.reports.take(), [(0, Outcome::Settled), (1, Outcome::Settled)]);
}

/// Each of these ways to come back to a sender, and then the shard goes and comes back before the next event does.
#[tokio::test(start_paused = true)]
async fn what_came_back_is_missed_also_when_the_shard_has_been_away_meanwhile() {
    let refused = async |shard: &Running| {
        shard.give().await.unwrap();
        shard.send_as(7, 1, false);
        settled().await;
        shard.take(Vec::new()).await;
        Outcome::Refused
    };
    let crashed = async |shard: &Running| {
        shard.send(1, faulty(&fakes::user()), false);
        settled().await;
        Outcome::Crashed
    };
    let crashed_leaving = async |shard: &Running| {
        shard.send(1, faulty(&fakes::user()), false);
        Outcome::Crashed
    };
    let stopping = async |shard: &Running| {
        shard.idle(1);
        shard.send_as(7, 1, false);
        Outcome::Refused
    };
    comes_back(refused).await;
    comes_back(crashed).await;
    comes_back(crashed_leaving).await;
    comes_back(stopping).await;
}

async fn comes_back(way: impl AsyncFn(&Running) -> Outcome) {
    let shard = newcomer().await;
    shard.take(Vec::new()).await;
    shard.send_as(7, 0, false);
    settled().await;
    assert_eq!(shard.reports.take(), [(0, Outcome::Settled)]);
    let outcome = way(&shard).await;
    shard.give().await.unwrap();
    shard.take(Vec::new()).await;
    shard.send_as(7, 2, false);
    settled().await;
    assert_eq!(shard.reports.take(), [(1, outcome), (2, Outcome::Refused)]);
    shard.send_as(7, 1, true);
    shard.send_as(7, 2, false);
    settled().await;
    assert_eq!(shard.reports.take(), [(1, Outcome::Settled), (2, Outcome::Settled)]);
}

/// Who has something waiting does not wait for its former sender, which may have nothing more for it.
#[tokio::test(start_paused = true)]
async fn a_user_that_was_refused_is_served_when_the_shard_is_taken() {
    let shard = newcomer().await;
    shard.send_as(7, 0, false);
    settled().await;
    shard.take(vec![fakes::user()]).await;
    settled().await;
    assert_eq!(shard.store.made(Call::Backlog), 1);
}

#[tokio::test(start_paused = true)]
async fn one_sender_that_begins_again_does_not_begin_for_another() {
    let shard = newcomer().await;
    shard.send_as(7, 0, false);
    shard.send_as(8, 10, false);
    settled().await;
    shard.take(Vec::new()).await;
    shard.send_as(7, 0, true);
    shard.send_as(8, 11, false);
    settled().await;
    shard.send_as(8, 10, true);
    shard.send_as(8, 11, false);
    settled().await;
    let refused = [(0, Outcome::Refused), (10, Outcome::Refused), (11, Outcome::Refused), (0, Outcome::Settled)];
    let begun = [(10, Outcome::Settled), (11, Outcome::Settled)];
    assert_eq!(shard.reports.take(), [&refused[..], &begun].concat());
}

#[tokio::test(start_paused = true)]
async fn a_shard_is_given_away_when_all_that_was_written_for_its_users_is_answered() {
    let shard = newcomer().await;
    shard.take(Vec::new()).await;
    shard.store.delay(Call::Append, Duration::from_secs(3));
    shard.send_as(0, 0, false);
    settled().await;
    let mut given = shard.give();
    shard.send_as(0, 1, false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(given.try_recv().is_err(), "a write is under way");
    assert_eq!(shard.reports.take(), [(1, Outcome::Refused)], "nothing more is taken");
    given.await.unwrap();
    assert_eq!((shard.reports.take(), shard.users()), (vec![(0, Outcome::Settled)], 0));
    assert_eq!(shard.store.open(&fakes::user(), None).await.unwrap().head, 1);
}

#[tokio::test(start_paused = true)]
async fn clients_of_a_shard_that_goes_hear_that_nobody_serves_them_awake_or_asleep() {
    let shard = newcomer().await;
    shard.take(Vec::new()).await;
    let outlets = ["101", "102"].map(|user| {
        let outlet = FakeOutlet::new();
        shard.shard.cast(Msg::Attach(attach(user, &outlet))).unwrap();
        outlet
    });
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(shard.users(), 0, "asleep");
    shard.send_as(0, 0, false);
    settled().await;
    assert_eq!(shard.users(), 1, "one of them is awake");
    shard.give().await.unwrap();
    settled().await;
    assert_eq!(outlets.each_ref().map(|outlet| outlet.lost_count()), [1, 1]);
    // Nobody else's business any more.
    let late = FakeOutlet::new();
    shard.shard.cast(Msg::Attach(attach("101", &late))).unwrap();
    settled().await;
    assert_eq!((late.lost_count(), shard.users()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_has_something_waiting_is_served_as_soon_as_the_shard_is_taken() {
    let shard = newcomer().await;
    shard.take(vec![fakes::user()]).await;
    settled().await;
    assert_eq!(shard.store.made(Call::Backlog), 1);
}

#[tokio::test(start_paused = true)]
async fn until_every_node_has_sent_its_connections_what_would_miss_one_waits() {
    let shard = newcomer().await;
    let nodes = [Incarnation::random(), Incarnation::random()];
    shard.take_from(7, &nodes).await;
    let early = shard.comes_back();
    shard.marked(nodes[0], 7).await;
    let new = FakeOutlet::new();
    shard.shard.cast(Msg::Attach(attach("101", &new))).unwrap();
    shard.send_one_of_each(0);
    settled().await;
    assert_eq!(shard.reports.take(), [(1, Outcome::Settled)], "what is stored does not wait");
    assert_eq!((early.seen(), new.seen()), (vec![Seen::Numbered(1)], vec![]));
    let late = shard.comes_back();
    // Of the time before it was given away: it says nothing.
    shard.marked(nodes[1], 6).await;
    assert_eq!((shard.reports.take(), new.is_attached()), (vec![], false));
    shard.marked(nodes[1], 7).await;
    assert_eq!(shard.reports.take(), [(0, Outcome::Settled)]);
    for outlet in [early, late] {
        assert_eq!(outlet.seen(), [Seen::Numbered(1), Seen::Transient("transient".into())]);
    }
    assert!(new.is_attached());
    shard.send(2, transient(&fakes::user(), "next"), true);
    settled().await;
    assert_eq!(shard.reports.take(), [(2, Outcome::Settled)], "nothing waits any more");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_says_nothing_is_not_waited_for_longer_than_two_seconds() {
    let shard = newcomer().await;
    shard.take_from(7, &[Incarnation::random()]).await;
    let (outlet, new) = (shard.comes_back(), FakeOutlet::new());
    shard.shard.cast(Msg::Attach(attach("101", &new))).unwrap();
    shard.send_one_of_each(0);
    tokio::time::sleep(Duration::from_millis(1900)).await;
    assert_eq!((outlet.seen(), new.is_attached()), (vec![Seen::Numbered(1)], false));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(outlet.seen(), [Seen::Numbered(1), Seen::Transient("transient".into())]);
    assert!(new.is_attached());
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_connections_goes_back_when_the_shard_goes_on_to_another_node() {
    let shard = newcomer().await;
    shard.take_from(7, &[Incarnation::random()]).await;
    let new = FakeOutlet::new();
    shard.shard.cast(Msg::Attach(attach("101", &new))).unwrap();
    shard.send_one_of_each(0);
    settled().await;
    shard.give().await.unwrap();
    assert_eq!(shard.reports.take(), [(1, Outcome::Settled), (0, Outcome::Refused)]);
    assert_eq!(new.lost_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_has_waited_does_not_begin_for_what_was_lost_meanwhile() {
    let shard = newcomer().await;
    let node = Incarnation::random();
    shard.take_from(7, &[node]).await;
    let to = fakes::user();
    shard.send(0, transient(&to, "transient"), true);
    shard.send(1, faulty(&to), false);
    settled().await;
    assert_eq!(shard.reports.take(), [(1, Outcome::Crashed)]);
    shard.marked(node, 7).await;
    shard.send(2, durable(&to, "2"), false);
    settled().await;
    let refused = [(0, Outcome::Refused), (2, Outcome::Refused)];
    assert_eq!(shard.reports.take(), refused, "its sender sends all three again, the crashed one before the last");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_is_not_waited_for() {
    let shard = newcomer().await;
    let nodes = [Incarnation::random(), Incarnation::random()];
    shard.take_from(7, &nodes).await;
    let outlet = shard.comes_back();
    shard.send_one_of_each(0);
    shard.marked(nodes[0], 7).await;
    assert_eq!(outlet.seen(), [Seen::Numbered(1)]);
    shard.shard.cast(Msg::NodeGone(nodes[1])).unwrap();
    settled().await;
    assert_eq!(outlet.seen(), [Seen::Numbered(1), Seen::Transient("transient".into())]);
}

#[tokio::test(start_paused = true)]
async fn what_was_handed_to_sessions_reaches_their_clients_before_the_shard_goes() {
    let shard = newcomer().await;
    shard.take(Vec::new()).await;
    let outlets = [FakeOutlet::new(), FakeOutlet::new()];
    for outlet in &outlets {
        shard.shard.cast(Msg::Attach(attach("101", outlet))).unwrap();
    }
    settled().await;
    for number in 0..50 {
        shard.send(number, transient(&fakes::user(), &number.to_string()), number == 0);
    }
    shard.give().await.unwrap();
    for outlet in outlets {
        assert_eq!((outlet.ids().len(), outlet.lost_count()), (50, 1));
    }
}

/// It sleeps, or the store has not said what waits for it: what it was given meanwhile is taken, and must not be lost
/// unnoticed.
#[tokio::test(start_paused = true)]
async fn what_a_leaving_user_holds_back_is_done_before_it_leaves() {
    let shard = newcomer().await;
    shard.take(Vec::new()).await;
    let outlet = FakeOutlet::new();
    shard.shard.cast(Msg::Attach(attach("101", &outlet))).unwrap();
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(shard.users(), 0, "asleep");
    shard.send_as(0, 0, false);
    shard.give().await.unwrap();
    assert_eq!((shard.reports.take(), outlet.numbers()), (vec![(0, Outcome::Settled)], vec![1]));

    let shard = newcomer().await;
    shard.store.delay(Call::Backlog, Duration::from_secs(1));
    shard.take(vec![fakes::user()]).await;
    shard.send_as(0, 0, false);
    shard.give().await.unwrap();
    assert_eq!(shard.reports.take(), [(0, Outcome::Settled)]);
}

/// A shard actor that crashes as it is told, and its successor.
#[tokio::test(start_paused = true)]
async fn shards_that_go_or_come_while_their_actor_crashes_do_so_with_its_successor() {
    for comes in [true, false] {
        let (dead, _) = fakes::Collector::<Msg>::spawn().await;
        let shards = Shards::new(vec![dead.clone()], 1);
        dead.stop_and_wait(None, None).await.unwrap();
        let told = tokio::spawn({
            let shards = shards.clone();
            async move {
                if comes {
                    shards.unseal(Unsealing { shards: vec![(SHARD, 1)], ..Unsealing::default() }).await;
                } else {
                    shards.seal(&[SHARD]).await;
                }
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!told.is_finished());
        let successor = newcomer().await;
        shards.replace(0, successor.shard.clone());
        told.await.unwrap();
        successor.send_as(0, 0, false);
        settled().await;
        let outcome = if comes { Outcome::Settled } else { Outcome::Refused };
        assert_eq!(successor.reports.take(), [(0, outcome)]);
    }
}
