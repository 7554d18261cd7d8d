//! The map of shards: who serves which. One immutable snapshot at a time; whoever routes takes the newest.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::{ShardId, shard};
use crate::ids::Incarnation;

/// Who serves a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody, or somebody who is gone: whatever is for its users waits.
    Nobody,
    /// This node.
    Here,
    /// Another one.
    There(Incarnation),
}

/// One state of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// By shard.
    pub owners: Vec<Owner>,
}

impl Map {
    /// All shards have the same owner.
    #[must_use]
    pub fn all(owner: Owner, shards: u16) -> Self {
        Self { owners: vec![owner; usize::from(shards)] }
    }

    /// Who serves a shard.
    #[must_use]
    pub fn of(&self, shard: ShardId) -> Owner {
        self.owners.get(usize::from(shard.0)).copied().unwrap_or(Owner::Nobody)
    }

    /// How many shards this owner serves.
    #[must_use]
    pub fn count(&self, owner: Owner) -> usize {
        self.owners.iter().filter(|one| **one == owner).count()
    }
}

/// The map as all parts of a node share it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Owners {
    map: Arc<ArcSwap<Map>>,
    shards: u16,
    is_alone: bool,
}

impl Owners {
    /// Of a node that serves all shards, always.
    #[must_use]
    pub fn alone(shards: u16) -> Self {
        Self { map: Arc::new(ArcSwap::from_pointee(Map::all(Owner::Here, shards))), shards, is_alone: true }
    }

    /// Of a node among others, which serves nothing yet.
    #[must_use]
    pub fn shared(shards: u16) -> Self {
        Self { map: Arc::new(ArcSwap::from_pointee(Map::all(Owner::Nobody, shards))), shards, is_alone: false }
    }

    /// Whether no other node ever serves any.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// The shard of a user.
    #[must_use]
    pub fn shard(&self, user: &str) -> ShardId {
        shard(user, self.shards)
    }

    /// The map as it is now.
    #[must_use]
    pub fn now(&self) -> Guard<Arc<Map>> {
        self.map.load()
    }

    /// Whether this node serves any shard.
    #[must_use]
    pub fn serves_any(&self) -> bool {
        self.now().owners.contains(&Owner::Here)
    }

    /// Who serves a user.
    #[must_use]
    pub fn of(&self, user: &str) -> Owner {
        self.now().of(self.shard(user))
    }

    /// Replaces the map.
    pub fn set(&self, map: Map) {
        self.map.store(Arc::new(map));
    }

    /// Changes a few shards' owner.
    pub fn change(&self, shards: &[ShardId], owner: Owner) {
        self.map.rcu(|map| {
            let mut next = Map::clone(map);
            for shard in shards {
                next.owners[usize::from(shard.0)] = owner;
            }
            next
        });
    }
}
