//! Exactly once and in order: what a connected user is promised, checked frame by frame.

use std::time::Duration;

use super::{Event, Feed, Node, frame::Frame, wait::DEADLINE, ws::WsClient};

/// Checks one user's numbered notifications as they come.
#[derive(Debug, Default)]
pub struct Order {
    next: u64,
    last_seq: u64,
}

impl Order {
    /// Takes the next frame; panics on a loss, a repetition or a wrong order.
    #[track_caller]
    pub fn take(&mut self, user: &str, frame: &Frame) {
        assert_eq!(frame.n(), self.next, "user {user}: lost, repeated or out of order: {frame:?}");
        let seq = frame.number();
        assert!(seq > self.last_seq, "user {user}: seq {seq} after {}", self.last_seq);
        self.next += 1;
        self.last_seq = seq;
    }

    /// How many came.
    pub fn count(&self) -> u64 {
        self.next
    }

    /// The highest sequence number seen.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }
}

/// Several connected users who get numbered events while a test does damage.
pub struct Crowd {
    users: Vec<Member>,
    sent: u64,
}

struct Member {
    name: String,
    client: WsClient,
    order: Order,
}

impl Crowd {
    /// Connects `count` users named `crowd-0` and so on.
    pub async fn connect(node: &Node, count: usize) -> Self {
        let mut users = Vec::with_capacity(count);
        for index in 0..count {
            let name = format!("crowd-{index}");
            let client = node.connect(&name).await;
            users.push(Member { name, client, order: Order::default() });
        }
        Self { users, sent: 0 }
    }

    /// Writes `each` further events for every user, and acknowledges what has arrived meanwhile.
    pub async fn send(&mut self, feed: &Feed, each: u64) {
        let mut events = Vec::new();
        for n in self.sent..self.sent + each {
            events.extend(self.users.iter().map(|member| Event::numbered(&member.name, n)));
        }
        feed.send_all(&events).await;
        self.sent += each;
        self.take(Duration::ZERO).await;
    }

    /// Writes `each` events per user in the background: a load that goes on during a fault.
    pub fn load(&mut self, feed: &Feed, each: u64, pause: Duration) -> tokio::task::JoinHandle<()> {
        let names: Vec<String> = self.users.iter().map(|member| member.name.clone()).collect();
        let (feed, first) = (feed.clone(), self.sent);
        self.sent += each;
        tokio::spawn(async move {
            for n in first..first + each {
                let events: Vec<_> = names.iter().map(|name| Event::numbered(name, n)).collect();
                feed.send_all(&events).await;
                tokio::time::sleep(pause).await;
            }
        })
    }

    /// Takes what has arrived, waiting up to `patience` for each user.
    pub async fn take(&mut self, patience: Duration) {
        for member in &mut self.users {
            while member.order.count() < self.sent {
                let Some(frame) = member.client.poll(patience).await else {
                    break;
                };
                // A crashing event that a test put in may be delivered in the end.
                if frame.kind.starts_with("fault.") {
                    continue;
                }
                member.order.take(&member.name, &frame);
                member.client.ack(member.order.last_seq()).await;
            }
        }
    }

    /// Waits until every user has had every event, and checks that nothing follows.
    pub async fn complete(&mut self, feed: &Feed) {
        self.complete_within(feed, DEADLINE).await;
    }

    /// As [`Self::complete`] where a broker has to come back first.
    pub async fn complete_within(&mut self, feed: &Feed, patience: Duration) {
        self.take(patience).await;
        for member in &self.users {
            let (name, count) = (&member.name, member.order.count());
            assert_eq!(count, self.sent, "user {name} got {count} of {}", self.sent);
        }
        // One more of each: a repetition would stand before it.
        self.send(feed, 1).await;
        self.take(patience).await;
        for member in &self.users {
            assert_eq!(member.order.count(), self.sent, "user {}: the last event", member.name);
        }
    }

    /// Whether every user has had at least `count` events.
    pub fn all_have(&self, count: u64) -> bool {
        self.users.iter().all(|member| member.order.count() >= count)
    }
}
