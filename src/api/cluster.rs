//! `GET /v1/cluster`: who takes part, and who serves and reads what, as this node knows it.

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::Inner;
use crate::{
    auth::Scope,
    cluster::view::{self, View},
    credential,
    document::Refusals,
    edge::Carrier,
    ids::Incarnation,
    link::Standing,
    member,
    placement::{
        ShardId,
        owners::{Map, Owner},
    },
    problem::Problem,
};

/// When to come back while the node starts, in seconds.
const RETRY_START: u64 = 1;

/// What there is to see.
pub trait Observed: Send + Sync + 'static {
    /// Looks, and asks others for a short time. Cancel safe.
    fn look(&self) -> Pin<Box<dyn Future<Output = Seen> + Send + '_>>;
}

/// What was seen.
pub struct Seen {
    /// Who looked.
    pub me: Incarnation,
    /// Whether there can be others.
    pub is_enabled: bool,
    /// Who takes part.
    pub view: Arc<View>,
    /// Who serves which shard.
    pub map: Arc<Map>,
    /// How those stand that have answered.
    pub standings: Vec<(Incarnation, Standing)>,
}

/// A cluster, as one of its nodes knows it.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Cluster {
    /// Whether this node works with others (`cluster.enabled`). If not, it is the only member.
    enabled: bool,
    /// The node that answers.
    #[schema(example = "notifier-0")]
    node: String,
    /// Each change of the members makes the next one. 0: the cluster is not enabled.
    version: u64,
    /// Into how many parts the users are divided.
    #[schema(example = 1024)]
    shards: usize,
    /// Those that nobody serves at the moment: what is for their users waits.
    unowned: usize,
    /// In the order in which they joined. One that is dead stays for a while.
    members: Vec<Member>,
    /// Shards that another node serves than the one that should.
    moves: Vec<Move>,
}

/// A node of the cluster.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
struct Member {
    /// Its name.
    #[schema(example = "notifier-0")]
    id: String,
    /// This life of it.
    #[schema(example = "3f0d5a7c9b1e4c6d8a2f4e6b8d0c2a4e")]
    incarnation: String,
    /// What it is about to do.
    state: MemberState,
    /// Where other nodes reach it.
    #[schema(example = json!(["10.0.3.7:8003"]))]
    addresses: Vec<String>,
    /// What fails together; absent: not said.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    zone: String,
    /// The version that it joined with.
    joined: u64,
    /// Shards whose users it serves.
    shards: usize,
    /// Clients that are connected to it. Absent: it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u64>,
    /// Partitions that it reads. Absent: it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<Vec<i32>>,
}

/// What a member is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum MemberState {
    /// It has started, and serves nobody yet.
    Joining,
    /// It takes its share.
    Active,
    /// It gives away what it has.
    Draining,
    /// It is gone.
    Dead,
}

/// Shards on their way.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
struct Move {
    /// The node that serves them; absent: nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "notifier-0")]
    from: Option<String>,
    /// The node that should.
    #[schema(example = "notifier-1")]
    to: String,
    /// How many.
    shards: usize,
}

/// Look at the cluster
///
/// Its members, what each serves and reads, and what moves, as the node that answers knows it. Without a cluster that
/// node is the only member. With an API key with the scope `read`.
#[utoipa::path(
    get,
    path = "/v1/cluster",
    tag = "node",
    security(("api_key" = []), ("api_key_header" = [])),
    responses(
        (status = 200, description = "The cluster.", body = Cluster),
        Refusals,
    ),
)]
pub(super) async fn look(
    State(api): State<Arc<Inner>>,
    carrier: Option<Extension<Carrier>>,
    headers: HeaderMap,
) -> Result<Json<Cluster>, Problem> {
    api.authenticator.service(credential::shown(&headers).unwrap_or_default(), Scope::Read)?;
    if let Some(Extension(carrier)) = carrier {
        carrier.identify();
    }
    let starting = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this node is starting").retry_after(RETRY_START);
    let observed = api.cluster.get().ok_or_else(starting)?;
    Ok(Json(observed.look().await.into()))
}

impl From<Seen> for Cluster {
    fn from(Seen { me, is_enabled, view, map, standings }: Seen) -> Self {
        let owner = |owner: Owner| match owner {
            Owner::Nobody => None,
            Owner::Here => Some(me),
            Owner::There(node) => Some(node),
        };
        let member = |member: &view::Member| {
            let node = &member.node;
            let standing = standings.iter().find(|(one, _)| *one == node.incarnation).map(|(_, standing)| standing);
            Member {
                id: node.id.to_string(),
                incarnation: node.incarnation.to_string(),
                state: member.state.into(),
                addresses: node.addresses.clone(),
                zone: node.zone.clone(),
                joined: member.joined,
                shards: map.owners.iter().filter(|one| owner(**one) == Some(node.incarnation)).count(),
                sessions: standing.map(|standing| standing.connections),
                partitions: standing.map(|standing| standing.partitions.clone()),
            }
        };
        let name = |one| view.member(one).map_or_else(|| one.to_string(), |member| member.node.id.to_string());
        Self {
            enabled: is_enabled,
            node: name(me),
            version: view.version,
            shards: map.owners.len(),
            unowned: map.count(Owner::Nobody),
            members: view.members.iter().map(member).collect(),
            moves: moves(&view, &map, owner)
                .into_iter()
                .map(|((from, to), shards)| Move { from: from.map(name), to: name(to), shards })
                .collect(),
        }
    }
}

type Way = (Option<Incarnation>, Incarnation);

/// How many shards are served by another node than the one that should, in an order that stays the same.
fn moves(view: &View, map: &Map, owner: impl Fn(Owner) -> Option<Incarnation>) -> Vec<(Way, usize)> {
    let shards = u16::try_from(map.owners.len()).unwrap_or(u16::MAX);
    let mut moves: BTreeMap<(usize, usize), (Way, usize)> = BTreeMap::new();
    let place = |one| view.members.iter().position(|member| Some(member.node.incarnation) == one);
    for (shard, to) in (0..shards).zip(member::target(view, shards)) {
        let from = owner(map.of(ShardId(shard)));
        if from != Some(to) {
            let key = (place(from).unwrap_or(usize::MAX), place(Some(to)).unwrap_or(usize::MAX));
            moves.entry(key).or_insert(((from, to), 0)).1 += 1;
        }
    }
    moves.into_values().collect()
}

impl From<view::State> for MemberState {
    fn from(state: view::State) -> Self {
        match state {
            view::State::Joining => Self::Joining,
            view::State::Active => Self::Active,
            view::State::Draining => Self::Draining,
            view::State::Dead => Self::Dead,
        }
    }
}

#[cfg(test)]
mod tests;
