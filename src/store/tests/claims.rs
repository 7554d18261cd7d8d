//! Who gets which claim, in memory and in PostgreSQL.

use std::time::Duration;

use sqlx::{Connection as _, Executor as _};

use super::{
    contract::events,
    faults::until,
    membership::{all, bury, join},
};
use crate::{
    ids::Incarnation,
    placement::ShardId,
    store::{
        Error,
        claims::{Beginning, Epoch, ShardClaim},
        positions::LogName,
    },
};

fn shards(epoch: Epoch, numbers: impl IntoIterator<Item = u16>) -> Vec<(ShardId, Epoch)> {
    numbers.into_iter().map(|number| (ShardId(number), epoch)).collect()
}

fn sorted(mut taken: Vec<(ShardId, Epoch)>) -> Vec<(ShardId, Epoch)> {
    taken.sort_unstable();
    taken
}

fn log(topic: &str) -> LogName {
    LogName { cluster: "c".into(), topic: topic.into() }
}

#[tokio::test]
async fn claims_go_from_nobody_to_the_active_and_from_the_dead_to_the_living() {
    for (name, table, _) in all().await {
        let (a, b) = (join(&*table, "a").await, join(&*table, "b").await);
        let read = table.shards().await.unwrap();
        assert_eq!(read.len(), 64, "{name}");
        assert_eq!(read[5], ShardClaim { shard: ShardId(5), owner: None, epoch: 0 }, "{name}");
        let taken = table.take_shards(a, &shards(0, 0..10)).await.unwrap();
        assert_eq!(sorted(taken), shards(1, 0..10), "{name}");
        assert_eq!(table.take_shards(b, &shards(1, 0..10)).await.unwrap(), [], "{name}: its owner lives");
        assert_eq!(table.take_shards(b, &shards(0, 0..12)).await.unwrap().len(), 2, "{name}: others are free");
        let again = table.take_shards(a, &shards(1, [3])).await.unwrap();
        assert_eq!(again, shards(2, [3]), "{name}: its own, where an answer was lost");
        bury(&*table, a).await;
        assert_eq!(table.take_shards(a, &shards(0, [40])).await.unwrap(), [], "{name}: the dead take nothing");
        assert_eq!(table.take_shards(b, &shards(0, [4])).await.unwrap(), [], "{name}: another epoch");
        let taken = table.take_shards(b, &shards(1, 0..10)).await.unwrap();
        assert_eq!(taken.len(), 9, "{name}: of the dead");
        let strangers = table.take_shards(Incarnation::random(), &shards(0, [41])).await.unwrap();
        assert_eq!(strangers, [], "{name}: who is no member takes nothing");
    }
}

#[tokio::test]
async fn only_the_active_take() {
    for (name, table, _) in all().await {
        let a = join(&*table, "a").await;
        let newcomer = super::membership::node("b");
        let b = newcomer.incarnation;
        let joining = table.view().await.unwrap().join(newcomer, &[]).unwrap();
        table.change(&joining).await.unwrap();
        assert_eq!(table.take_shards(b, &shards(0, [1])).await.unwrap(), [], "{name}: joining");
        let draining = table.view().await.unwrap().drain(a).unwrap();
        table.change(&draining).await.unwrap();
        assert_eq!(table.take_shards(a, &shards(0, [1])).await.unwrap(), [], "{name}: draining");
        assert_eq!(table.begin_partitions(a, &log("t"), &[beginning(0, 0, 9)]).await.unwrap(), [], "{name}");
    }
}

#[tokio::test]
async fn what_is_released_is_anybodys() {
    for (name, table, _) in all().await {
        let (a, b) = (join(&*table, "a").await, join(&*table, "b").await);
        table.take_shards(a, &shards(0, 0..3)).await.unwrap();
        assert_eq!(table.release_shards(b, &shards(1, 0..3)).await.unwrap(), [], "{name}: not its own");
        assert_eq!(table.release_shards(a, &shards(0, 0..3)).await.unwrap(), [], "{name}: not any more");
        let mut released = table.release_shards(a, &shards(1, 0..2)).await.unwrap();
        released.sort_unstable();
        assert_eq!(released, [ShardId(0), ShardId(1)], "{name}");
        assert_eq!(sorted(table.take_shards(b, &shards(1, 0..3)).await.unwrap()), shards(2, 0..2), "{name}");
    }
}

#[tokio::test]
async fn of_many_takers_each_claim_has_one() {
    for (name, table, _) in all().await {
        let mut takes = Vec::new();
        for n in 0..6_u16 {
            let (table, me) = (table.clone(), join(&*table, &format!("n{n}")).await);
            // Each in an order of its own: nobody waits for somebody who waits for it.
            let mut wanted = shards(0, 0..64);
            wanted.rotate_left(usize::from(n) * 10);
            takes.push(tokio::spawn(async move { (me, table.take_shards(me, &wanted).await.unwrap()) }));
        }
        let mut taken = Vec::new();
        for take in takes {
            let (me, mine) = take.await.unwrap();
            taken.extend(mine.into_iter().map(|(shard, epoch)| ShardClaim { shard, owner: Some(me), epoch }));
        }
        taken.sort_unstable_by_key(|claim| claim.shard);
        assert_eq!(taken, table.shards().await.unwrap(), "{name}: each once, and as they were told");
    }
}

fn beginning(partition: i32, epoch: Epoch, position: i64) -> Beginning {
    Beginning { partition, epoch, position }
}

#[tokio::test]
async fn partitions_are_begun_once_and_move_with_their_positions() {
    for (name, table, _) in all().await {
        let (a, b) = (join(&*table, "a").await, join(&*table, "b").await);
        assert_eq!(table.partitions("t").await.unwrap(), [], "{name}");
        let begun = table.begin_partitions(a, &log("t"), &[beginning(0, 0, 7), beginning(1, 0, 8)]).await.unwrap();
        assert_eq!(begun, [(0, 1), (1, 1)], "{name}");
        assert_eq!(
            table.begin_partitions(b, &log("t"), &[beginning(0, 0, 99)]).await.unwrap(),
            [],
            "{name}: the first has it"
        );
        assert_eq!(table.begin_partitions(b, &log("u"), &[beginning(0, 0, 1)]).await.unwrap(), [(0, 1)], "{name}");
        assert_eq!(table.take_partitions(b, "t", &[(0, 1), (1, 1)]).await.unwrap(), [], "{name}: its owner lives");
        assert_eq!(table.release_partitions(a, "t", &[(0, 1)]).await.unwrap(), [0], "{name}");
        let taken = table.take_partitions(b, "t", &[(0, 1), (1, 1)]).await.unwrap();
        let shown: Vec<_> = taken.iter().map(|it| (it.partition, it.owner, it.epoch, it.position)).collect();
        assert_eq!(shown, [(0, Some(b), 2, 7)], "{name}");
        assert_eq!(
            table.begin_partitions(a, &log("t"), &[beginning(0, 1, 99)]).await.unwrap(),
            [],
            "{name}: a former owner"
        );
        let moved = LogName { cluster: "another".into(), topic: "t".into() };
        assert_eq!(table.begin_partitions(b, &moved, &[beginning(0, 2, 3)]).await.unwrap(), [(0, 3)], "{name}");
        bury(&*table, a).await;
        table.take_partitions(b, "t", &[(1, 1)]).await.unwrap();
        let read = table.partitions("t").await.unwrap();
        let shown: Vec<_> =
            read.iter().map(|it| (it.partition, it.owner, it.epoch, it.position, &*it.cluster)).collect();
        assert_eq!(shown, [(0, Some(b), 3, 3, "another"), (1, Some(b), 2, 8, "c")], "{name}");
    }
}

/// A take that is under way holds its member's row: the death comes after it. A death that is under way comes first,
/// and the take gets nothing.
#[tokio::test]
async fn a_taker_that_is_being_declared_dead_gets_nothing() {
    let [_, (_, table, place)] = all().await;
    let (a, b) = (join(&*table, "a").await, join(&*table, "b").await);
    let mut other = place.postgres().await;
    let mut declaring = other.begin().await.unwrap();
    sqlx::query("update members set state = 3, died_at = now() where incarnation = $1")
        .bind(a.to_string())
        .execute(&mut *declaring)
        .await
        .unwrap();
    let take = tokio::spawn({
        let table = table.clone();
        async move { table.take_shards(a, &shards(0, 0..4)).await }
    });
    waits_for_a_lock(&place, 1).await;
    declaring.commit().await.unwrap();
    assert_eq!(take.await.unwrap().unwrap(), []);
    assert!(table.shards().await.unwrap().iter().all(|claim| claim.owner.is_none()));
    assert_eq!(table.take_shards(b, &shards(0, 0..4)).await.unwrap().len(), 4);
}

async fn waits_for_a_lock(place: &super::databases::Place, count: i64) {
    let mut watching = place.postgres().await;
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
    until(async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watching).await.unwrap() == count).await;
}

/// What a former owner notes (cursors, the journal) has a weak lock, and is over before somebody else begins all the same:
/// or a client could be given again what it has acknowledged.
#[tokio::test]
async fn a_take_waits_for_notes_that_are_under_way() {
    let [_, (_, table, place)] = all().await;
    let (former, b) = (join(&*table, "a").await, join(&*table, "b").await);
    table.take_shards(former, &shards(0, 0..1)).await.unwrap();
    let mut other = place.postgres().await;
    let mut noting = other.begin().await.unwrap();
    noting.execute("select from shard_claims where shard = 0 for key share").await.unwrap();
    bury(&*table, former).await;
    let take = tokio::spawn({
        let table = table.clone();
        async move { table.take_shards(b, &shards(1, 0..1)).await }
    });
    waits_for_a_lock(&place, 1).await;
    noting.commit().await.unwrap();
    assert_eq!(take.await.unwrap().unwrap(), shards(2, 0..1));
}

/// A newcomer waits for a claim that somebody has locked; meanwhile another one takes it.
#[tokio::test]
async fn a_take_that_waited_while_others_took_gets_what_is_left() {
    let [_, (_, table, place)] = all().await;
    let (former, b, newcomer) = (join(&*table, "a").await, join(&*table, "b").await, join(&*table, "c").await);
    table.take_shards(former, &shards(0, 0..4)).await.unwrap();
    bury(&*table, former).await;
    let mut other = place.postgres().await;
    let mut taking = other.begin().await.unwrap();
    let taken_by_another = format!("update shard_claims set owner = '{b}', epoch = epoch + 1 where shard in (1, 2)");
    taking.execute(sqlx::AssertSqlSafe(taken_by_another)).await.unwrap();
    let take = tokio::spawn({
        let table = table.clone();
        async move { table.take_shards(newcomer, &shards(1, 0..4)).await }
    });
    waits_for_a_lock(&place, 1).await;
    taking.commit().await.unwrap();
    assert_eq!(sorted(take.await.unwrap().unwrap()), shards(2, [0, 3]));
    let owners: Vec<_> = table.shards().await.unwrap()[..4].iter().map(|claim| claim.owner).collect();
    assert_eq!(owners, [Some(newcomer), Some(b), Some(b), Some(newcomer)]);
}

/// A client that stands still in a transaction holds up what it has locked, and nothing else.
#[tokio::test]
async fn what_stays_locked_does_not_hold_up_the_rest() {
    let [_, (_, table, place)] = all().await;
    let (a, b) = (join(&*table, "a").await, join(&*table, "b").await);
    table.begin_partitions(a, &log("t"), &[beginning(0, 0, 0), beginning(1, 0, 0)]).await.unwrap();
    table.release_partitions(a, "t", &[(0, 1), (1, 1)]).await.unwrap();
    let mut other = place.postgres().await;
    let mut frozen = other.begin().await.unwrap();
    frozen.execute("select * from shard_claims where shard = 2 for update").await.unwrap();
    frozen.execute("select * from partition_claims where partition = 1 for update").await.unwrap();
    let taken = table.take_shards(b, &shards(0, 0..4)).await.unwrap();
    assert_eq!(sorted(taken), shards(1, [0, 1, 3]));
    let taken = table.take_partitions(b, "t", &[(0, 1), (1, 1)]).await.unwrap();
    assert_eq!(taken.iter().map(|claim| claim.partition).collect::<Vec<_>>(), [0]);
    frozen.rollback().await.unwrap();
    assert_eq!(table.take_shards(b, &shards(0, 0..4)).await.unwrap(), shards(1, [2]), "when it is gone");
}

/// While a member takes, it renews, and others change the view.
#[tokio::test]
async fn renewals_do_not_wait_for_takes() {
    let [_, (_, table, place)] = all().await;
    let (a, b) = (join(&*table, "a").await, join(&*table, "b").await);
    let mut other = place.postgres().await;
    let mut locking = other.begin().await.unwrap();
    locking.execute("select * from shard_claims where shard = 0 for update").await.unwrap();
    let take = tokio::spawn({
        let table = table.clone();
        async move { table.take_shards(a, &shards(0, 0..1)).await }
    });
    waits_for_a_lock(&place, 1).await;
    let renewed = tokio::time::timeout(Duration::from_millis(500), table.renew(a)).await;
    assert!(renewed.expect("at once").unwrap().is_alive);
    let drain = table.view().await.unwrap().drain(b).unwrap();
    table.change(&drain).await.unwrap();
    locking.rollback().await.unwrap();
    assert_eq!(take.await.unwrap().unwrap().len(), 1);
}

/// The fence of one node's writes and the takes of a cluster are the same rows.
#[tokio::test]
async fn an_owner_whose_shards_were_taken_writes_nothing() {
    let [_, (_, table, place)] = all().await;
    let owner = place.open().await;
    owner.log.append(&events("u", ["a"])).await.unwrap();
    let me = join(&*table, "a").await;
    let held: Vec<_> = table.shards().await.unwrap().iter().map(|claim| (claim.shard, claim.epoch)).collect();
    assert_eq!(table.take_shards(me, &held).await.unwrap().len(), 64, "its owner is no member");
    let refused = owner.log.append(&events("u", ["b"])).await;
    assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
}
