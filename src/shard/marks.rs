//! Shards that were taken just now, until every node has marked the end of the list of its connections. What would miss
//! a connection that has not come yet waits: transient events, and new connections, which may be of a started session
//! whose former connection is still on its way.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{
    event::{InFlight, Sender},
    ids::Incarnation,
    placement::{ShardId, shard},
    store::claims::Epoch,
    user::Attach,
};

/// A node that has not marked the end by then is not waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Whose marks are still to come.
#[derive(Default)]
pub(super) struct Marks {
    shards: HashMap<ShardId, Missing>,
    /// Into how many shards users are divided.
    count: u16,
}

/// What one shard waits for, and what waits for that.
struct Missing {
    epoch: Epoch,
    nodes: Vec<Incarnation>,
    until: Instant,
    held: Held,
}

/// What has waited, in order.
#[derive(Default)]
pub(super) struct Held {
    #[expect(clippy::vec_box, reason = "they come in boxes, and go on in them")]
    pub(super) attaches: Vec<Box<Attach>>,
    pub(super) events: Vec<InFlight>,
}

impl Extend<Held> for Held {
    fn extend<T: IntoIterator<Item = Held>>(&mut self, more: T) {
        for Held { attaches, events } in more {
            self.attaches.extend(attaches);
            self.events.extend(events);
        }
    }
}

impl Marks {
    /// Of so many shards.
    pub(super) fn of(count: u16) -> Self {
        Self { shards: HashMap::new(), count }
    }

    /// These shards are served from here on; these nodes may have connections of theirs.
    pub(super) fn expect(&mut self, shards: &[(ShardId, Epoch)], nodes: &[Incarnation], now: Instant) {
        if nodes.is_empty() {
            return;
        }
        for (shard, epoch) in shards {
            let missing =
                Missing { epoch: *epoch, nodes: nodes.to_vec(), until: now + PATIENCE, held: Held::default() };
            self.shards.insert(*shard, missing);
        }
    }

    fn missing(&mut self, user: &str) -> Option<&mut Missing> {
        if self.shards.is_empty() {
            return None;
        }
        self.shards.get_mut(&shard(user, self.count))
    }

    /// Keeps those that must not miss a connection, and gives the others back.
    pub(super) fn hold_events<C: Extend<InFlight> + FromIterator<InFlight> + IntoIterator<Item = InFlight>>(
        &mut self,
        user: &str,
        events: C,
    ) -> C {
        let Some(missing) = self.missing(user) else { return events };
        let pass = |in_flight: InFlight| {
            if in_flight.event.is_stored() {
                return Some(in_flight);
            }
            // When it goes on, its sender may have begun again, with others that come before it.
            missing.held.events.push(InFlight { first: false, ..in_flight });
            None
        };
        events.into_iter().filter_map(pass).collect()
    }

    /// Keeps a connection that nobody has served yet, and gives others back: they are what is waited for.
    pub(super) fn hold_attach(&mut self, attach: Box<Attach>) -> Option<Box<Attach>> {
        if !attach.from.is_new() {
            return Some(attach);
        }
        match self.missing(&attach.user) {
            Some(missing) => missing.held.attaches.push(attach),
            None => return Some(attach),
        }
        None
    }

    /// All connections of a node have come: what has waited for the last of the nodes.
    pub(super) fn marked(&mut self, node: Incarnation, shards: &[(ShardId, Epoch)]) -> Held {
        let mut held = Held::default();
        for (shard, epoch) in shards {
            // A mark of the time before this node gave the shard away says nothing.
            let Some(missing) = self.shards.get_mut(shard).filter(|missing| missing.epoch == *epoch) else { continue };
            missing.nodes.retain(|one| *one != node);
            if missing.nodes.is_empty() {
                held.extend(self.shards.remove(shard).map(|missing| missing.held));
            }
        }
        held
    }

    /// A node is gone, and its connections with it: what has waited for no other one.
    pub(super) fn gone(&mut self, node: Incarnation) -> Held {
        let complete = self.shards.extract_if(|_, missing| {
            missing.nodes.retain(|one| *one != node);
            missing.nodes.is_empty()
        });
        let mut held = Held::default();
        held.extend(complete.map(|(_, missing)| missing.held));
        held
    }

    /// Nothing comes from that sender any more: what has come from it is lost with the rest, and comes by another way.
    pub(super) fn sender_gone(&mut self, sender: Sender) {
        for missing in self.shards.values_mut() {
            missing.held.events.retain(|in_flight| in_flight.sender != sender);
        }
    }

    /// What nobody waits for any more, and how many shards that were.
    pub(super) fn overdue(&mut self, now: Instant) -> (usize, Held) {
        let overdue: Vec<_> = self.shards.extract_if(|_, missing| missing.until <= now).collect();
        let (count, mut held) = (overdue.len(), Held::default());
        held.extend(overdue.into_iter().map(|(_, missing)| missing.held));
        (count, held)
    }

    /// Somebody else serves these shards.
    pub(super) fn forget(&mut self, shards: &[ShardId]) -> Held {
        let mut held = Held::default();
        held.extend(shards.iter().filter_map(|shard| self.shards.remove(shard)).map(|missing| missing.held));
        held
    }
}
