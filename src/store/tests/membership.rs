//! What the table of members promises, in memory and in PostgreSQL.

use std::{num::NonZeroU8, sync::Arc, time::Duration};

use sqlx::{Executor as _, PgConnection};

use super::{databases::Place, memory_membership::MemoryMembership};
use crate::{
    cluster::{
        table::Changed,
        view::{Node, State, Vote},
    },
    ids::{Incarnation, NodeId},
    store::{claims::Claims, membership::Membership, postgres::membership::PostgresMembership, schema::SchemaError},
};

/// All that a cluster keeps in a store.
pub(super) trait Table: Membership + Claims {}
impl<T: Membership + Claims> Table for T {}

/// A fresh one in each engine, with its name.
pub(super) async fn all() -> [(&'static str, Arc<dyn Table>, Place); 2] {
    let (memory, database) = (Place::Memory, Place::database().await);
    let shards = database.config().shards;
    let postgres = PostgresMembership::open(&database.config()).await.unwrap();
    [("memory", Arc::new(MemoryMembership::new(shards)), memory), ("postgres", Arc::new(postgres), database)]
}

pub(super) fn node(id: &str) -> Node {
    Node {
        id: NodeId::new(id).unwrap(),
        incarnation: Incarnation::random(),
        addresses: vec!["10.0.3.7:8003".into(), "[::1]:8003".into()],
        zone: "zone \"a\" \\ 用户".into(),
        weight: NonZeroU8::new(3).unwrap(),
        is_alone: false,
    }
}

async fn done(table: &dyn Table, change: &crate::cluster::changes::Change) {
    let changed = table.change(change).await.unwrap();
    assert_eq!(changed, Changed::Done(change.base + 1));
}

/// Joins and becomes active.
pub(super) async fn join(table: &dyn Table, id: &str) -> Incarnation {
    let newcomer = node(id);
    let me = newcomer.incarnation;
    done(table, &table.view().await.unwrap().join(newcomer, &[]).unwrap()).await;
    done(table, &table.view().await.unwrap().activate(me).unwrap()).await;
    me
}

/// Somebody says that it is dead.
pub(super) async fn bury(table: &dyn Table, dead: Incarnation) {
    done(table, &table.view().await.unwrap().leave(dead).unwrap()).await;
}

#[tokio::test]
async fn a_view_is_read_as_it_was_made() {
    for (name, table, _) in all().await {
        assert_eq!(
            (table.view().await.unwrap().version, table.view().await.unwrap().members),
            (0, Vec::new()),
            "{name}"
        );
        let newcomer = node("n 用户");
        let join = table.view().await.unwrap().join(newcomer.clone(), &[]).unwrap();
        done(&*table, &join).await;
        let read = table.view().await.unwrap();
        assert_eq!(read, crate::cluster::view::View::default().after(&join).unwrap(), "{name}");
        assert_eq!((&read.members[0].node, read.members[0].joined), (&newcomer, 1));
    }
}

#[tokio::test]
async fn of_changes_made_of_the_same_view_one_happens() {
    for (name, table, _) in all().await {
        let read = table.view().await.unwrap();
        let changes: Vec<_> = (0..8).map(|n| read.join(node(&format!("n{n}")), &[]).unwrap()).collect();
        let attempts = changes.into_iter().map(|change| {
            let table = table.clone();
            tokio::spawn(async move { table.change(&change).await.unwrap() })
        });
        let mut happened = 0;
        for attempt in attempts.collect::<Vec<_>>() {
            happened += usize::from(attempt.await.unwrap() == Changed::Done(1));
        }
        let view = table.view().await.unwrap();
        assert_eq!((happened, view.version, view.members.len()), (1, 1, 1), "{name}");
    }
}

#[tokio::test]
async fn renewals_are_counted_seen_and_refused_to_the_dead() {
    for (name, table, _) in all().await {
        let (one, other) = (join(&*table, "a").await, join(&*table, "b").await);
        table.renew(one).await.unwrap();
        let renewed = table.renew(one).await.unwrap();
        let mut counters = renewed.counters;
        counters.sort_unstable_by_key(|(_, counter)| *counter);
        assert_eq!((renewed.version, renewed.is_alive), (4, true), "{name}");
        assert_eq!(counters, [(other, 0), (one, 2)], "{name}");
        bury(&*table, one).await;
        let renewed = table.renew(one).await.unwrap();
        assert_eq!((renewed.version, renewed.is_alive, renewed.counters), (5, false, vec![(other, 0)]), "{name}");
        assert!(!table.renew(Incarnation::random()).await.unwrap().is_alive, "{name}: it was never there");
        assert_eq!(table.view().await.unwrap().member(one).unwrap().counter, 2, "{name}");
    }
}

#[tokio::test]
async fn votes_and_deaths_are_kept_and_a_change_leaves_counters_alone() {
    for (name, table, _) in all().await {
        let (a, b, c) = (join(&*table, "a").await, join(&*table, "b").await, join(&*table, "c").await);
        table.renew(a).await.unwrap();
        let read = table.view().await.unwrap();
        table.renew(b).await.unwrap();
        done(&*table, &read.vote(a, b).unwrap().unwrap()).await;
        let read = table.view().await.unwrap();
        let suspect = read.member(b).unwrap();
        assert_eq!((&suspect.votes[..], suspect.counter), (&[Vote { by: a, at: 1 }][..], 1), "{name}");
        done(&*table, &read.vote(c, b).unwrap().unwrap()).await;
        let dead = table.view().await.unwrap();
        assert_eq!(dead.member(b).unwrap().state, State::Dead, "{name}");
        assert!(dead.member(b).unwrap().dead_for < Duration::from_secs(10), "{name}");
    }
}

#[tokio::test]
async fn a_member_that_has_moved_is_not_stale() {
    for (name, table, _) in all().await {
        let (a, b) = (join(&*table, "a").await, join(&*table, "b").await);
        let change = table.view().await.unwrap().declare_stale(a, b, 0).unwrap();
        table.renew(b).await.unwrap();
        assert_eq!(table.change(&change).await.unwrap(), Changed::Overtaken, "{name}");
        done(&*table, &table.view().await.unwrap().declare_stale(a, b, 1).unwrap()).await;
        assert!(!table.renew(b).await.unwrap().is_alive, "{name}");
    }
}

#[tokio::test]
async fn what_has_been_dead_for_a_day_goes() {
    let [_, (_, table, place)] = all().await;
    let (a, b) = (join(&*table, "a").await, join(&*table, "b").await);
    bury(&*table, a).await;
    assert_eq!(table.view().await.unwrap().forget(), None);
    let age = async |hours: &'static str| {
        let mut connection: PgConnection = place.postgres().await;
        connection.execute(hours).await.unwrap();
    };
    age("update members set died_at = died_at - interval '23 hours'").await;
    assert_eq!(table.view().await.unwrap().forget(), None);
    age("update members set died_at = died_at - interval '1 hour'").await;
    done(&*table, &table.view().await.unwrap().forget().unwrap()).await;
    let view = table.view().await.unwrap();
    assert_eq!(view.members.iter().map(|member| member.node.incarnation).collect::<Vec<_>>(), [b]);
    let counted: i64 =
        sqlx::query_scalar("select count(*) from renewals").fetch_one(&mut place.postgres().await).await.unwrap();
    assert_eq!(counted, 1);
}

#[tokio::test]
async fn changes_are_announced() {
    let place = Place::database().await;
    let table = PostgresMembership::open(&place.config()).await.unwrap();
    let mut announcements = table.listen().await.unwrap();
    join(&table, "a").await;
    for version in [1, 2] {
        let heard = tokio::time::timeout(Duration::from_secs(5), announcements.next()).await;
        assert_eq!(heard.expect("at once").unwrap(), version);
    }
}

#[tokio::test]
async fn another_number_of_shards_is_refused() {
    let place = Place::database().await;
    PostgresMembership::open(&place.config()).await.unwrap();
    let other = crate::store::Config { shards: 63, ..place.config() };
    let refused = PostgresMembership::open(&other).await.err().unwrap();
    assert!(matches!(refused, SchemaError::Shards { stored: 64, configured: 63 }), "{refused}");
}
