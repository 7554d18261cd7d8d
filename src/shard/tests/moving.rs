//! Shards that come from another node and go to one.

use super::*;
use crate::{event::Sender, placement::owners::Owners, store::Store as _};

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
        let (done, taken) = oneshot::channel();
        let unsealing = Unsealing { shards: vec![SHARD], waiting: Some(waiting) };
        self.shard.cast(Msg::Unseal(unsealing, done)).unwrap();
        taken.await.unwrap();
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
