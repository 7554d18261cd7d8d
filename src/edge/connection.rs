//! The connection's task: owns the reading side of the socket, keeps an attachment to a session going, and says
//! goodbye. Small, because every connected client has one.

use std::{
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Shared,
    protocol::Protocol,
    relay::{Relay, Standing, Todo},
    websocket::{Incoming, WebSocket},
};
use crate::{
    backoff::Backoff,
    ids::{Incarnation, Since},
    session::Attachment,
    user::{Attach, Origin},
    wire::{Close, CloseCode},
};

/// How long a client has to take the goodbye and to answer it.
const GOODBYE: Duration = Duration::from_secs(5);
/// Messages, or reads of 512 bytes, after its goodbye: who goes on sending is not waited for, or reading on would cost
/// more than serving it.
const GOODBYE_READS_MAX: usize = 512;
/// Messages, or reads, before others have their turn.
const READS_PER_TURN: usize = 16;
/// A session that was served for so long was not lost in a row with the one before.
const SERVED: Duration = Duration::from_secs(10);
/// Attachments lost in a row without any progress before the client is sent away.
const LOST_MAX: u32 = 8;
/// The same where users move between nodes: whoever serves them next may not know it yet.
const LOST_MAX_MOVING: u32 = 40;

/// How long the last frames of a former owner may take, which has said that it serves a connection no longer.
const LAST_FRAMES: Duration = Duration::from_millis(500);
/// How often to look whether they are there.
const LAST_FRAMES_LOOK: Duration = Duration::from_millis(5);

/// Runs a connection until it ends, and cleans up after it; `held` is dropped last.
///
/// No `async fn`: that would keep room for its arguments a second time, in every connection.
pub(super) fn run<H: Send>(
    relay: Arc<Relay>,
    shared: Arc<Shared>,
    since: Option<Since>,
    already_read: Vec<u8>,
    held: H,
) -> impl Future<Output = ()> + Send {
    let mut connection = Connection::new(relay, shared, since, already_read);
    async move {
        connection.run().await;
        drop(held);
    }
}

struct Connection {
    relay: Arc<Relay>,
    shared: Arc<Shared>,
    incoming: Option<Box<WebSocket>>,
    since: Option<Since>,
    /// Hardly any connection has lost one.
    lost: Option<Box<Lost>>,
}

/// Attachments that were lost.
struct Lost {
    backoff: Backoff,
    passed: u64,
    in_a_row: u32,
    max: u32,
    at: Instant,
}

impl Lost {
    fn new(began: Instant, max: u32) -> Self {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        Self { backoff, passed: 0, in_a_row: 0, max, at: began }
    }

    /// Another one, after so much was passed on: how long to wait before the next. `None`: no more.
    fn once_more(&mut self, passed: u64) -> Option<Duration> {
        let served = self.at.elapsed() >= SERVED;
        self.at = Instant::now();
        if passed > self.passed || served {
            self.in_a_row = 0;
            self.backoff.reset();
        }
        self.passed = passed;
        self.in_a_row += 1;
        (self.in_a_row <= self.max).then(|| self.backoff.next_wait())
    }
}

impl Connection {
    fn new(relay: Arc<Relay>, shared: Arc<Shared>, since: Option<Since>, already_read: Vec<u8>) -> Self {
        Self {
            incoming: match relay.protocol {
                Protocol::WebSocket(form) => {
                    Some(Box::new(WebSocket::new(already_read, form, shared.config.frame_bytes_max)))
                }
                Protocol::Sse(_) | Protocol::Grpc(_) => None,
            },
            relay,
            shared,
            since,
            lost: None,
        }
    }

    async fn run(&mut self) {
        let _registered = self.shared.registry.register(&self.relay);
        // It may have been ended between being looked up and being found here.
        if self.relay.client.is_started
            && !matches!(self.shared.started.find(self.relay.client.session).await, Ok(Some(_)))
        {
            self.relay.close(Close::new(CloseCode::Replaced, "ended by the API"));
        }
        self.relay.write_start(self.shared.config.reconnect);
        if !self.relay.is_echo() {
            self.attach();
        }
        if let Err(error) = self.serve().await {
            tracing::debug!(session = ?self.relay.client.session, %error, "connection lost");
        }
        self.relay.end();
        self.tell_of_end();
        self.relay.close_socket();
    }

    async fn serve(&mut self) -> io::Result<()> {
        loop {
            self.relay.ready().await?;
            let Todo { lost, wake, close, ended } = self.relay.todo()?;
            if ended {
                return Ok(());
            }
            if let Some(close) = close {
                self.tell_of_end();
                // Boxed, as below: every connection would keep room for what rarely happens.
                return Box::pin(self.goodbye(&close)).await;
            }
            if let Some(lost) = lost {
                Box::pin(self.attach_again(lost)).await;
            }
            if wake {
                self.shared.shards.wake(&self.relay.client.user);
            }
            match self.read()? {
                Turn::Left => return Ok(()),
                Turn::Done => {}
                // A client that talks without end has its turn like all others.
                Turn::MoreToRead => tokio::task::yield_now().await,
            }
        }
    }

    /// An actor hears of the end from the relay; a session at rest has none.
    fn tell_of_end(&self) {
        if self.relay.ended_at_rest() {
            self.shared.shards.ended(&self.relay.client.user);
        }
    }

    /// Reads what the client said.
    fn read(&mut self) -> io::Result<Turn> {
        for _ in 0..READS_PER_TURN {
            match self.next()? {
                None => return Ok(Turn::Done),
                Some(Incoming::Heard) => self.relay.heard(),
                Some(Incoming::Left) => {
                    // The answer to its close may stand behind frames that the flusher has not come to yet.
                    self.relay.flush();
                    return Ok(Turn::Left);
                }
                Some(Incoming::Said(ack)) => {
                    self.relay.heard();
                    if !ack.is_some_and(|ack| self.relay.acknowledge(ack)) {
                        self.relay.close(Close::new(CloseCode::BadFrame, "not an acknowledgement of what was sent"));
                        return Ok(Turn::Done);
                    }
                }
                Some(Incoming::Broken(close)) => {
                    self.relay.close(close);
                    return Ok(Turn::Done);
                }
            }
        }
        Ok(Turn::MoreToRead)
    }

    fn next(&mut self) -> io::Result<Option<Incoming>> {
        match &mut self.incoming {
            Some(websocket) => websocket.next(&self.relay),
            None => discard(&self.relay),
        }
    }

    /// Where the client said that it begins.
    fn origin(&self) -> Origin {
        self.since.clone().map_or(Origin::Cursor, Origin::Since)
    }

    /// Asks the shard for a session.
    fn attach(&self) {
        let (number, ..) = self.relay.next_attachment();
        attach(&self.shared, &self.relay, number, self.origin());
    }

    /// The session's actor, or one above it, is gone; the client notices nothing.
    async fn attach_again(&mut self, lost: u64) {
        let max = if self.shared.shards.owners().is_alone() { LOST_MAX } else { LOST_MAX_MOVING };
        let lost_before = self.lost.get_or_insert_with(|| Box::new(Lost::new(self.relay.began, max)));
        let Some(wait) = lost_before.once_more(self.relay.passed()) else {
            let wait = self.shared.config.reconnect;
            return self.relay.close(Close::come_back(CloseCode::TryAgainLater, "the session cannot be served", wait));
        };
        tokio::time::sleep(wait).await;
        // Whoever serves the user by now may have asked for it meanwhile.
        let Some((number, passed, acknowledged)) = self.relay.next_attachment_after(lost) else { return };
        // A connection that was never served has no numbers yet: it starts as it first did, and is greeted.
        let from = if self.relay.is_greeted() { Origin::Connection { passed, acknowledged } } else { self.origin() };
        attach(&self.shared, &self.relay, number, from);
    }

    /// Sends the goodbye, and waits a little for the client to take it and to answer.
    async fn goodbye(&mut self, close: &Close) -> io::Result<()> {
        let until = Instant::now() + GOODBYE;
        if !matches!(close.code, CloseCode::ProtocolError | CloseCode::NotUtf8 | CloseCode::TooBig) {
            self.relay.write_goodbye(close);
        }
        match &mut self.incoming {
            Some(websocket) => websocket.close(&self.relay, close)?,
            None => self.relay.write_end(),
        }
        let relay = self.relay.clone();
        let mut reads_left = GOODBYE_READS_MAX;
        let finish = async {
            loop {
                if self.relay.todo()?.ended || !self.read_on(&mut reads_left)? {
                    return Ok(());
                }
                self.relay.ready().await?;
                // What is read here is thrown away; it must not keep others from their turn.
                tokio::task::yield_now().await;
            }
        };
        match tokio::time::timeout_at(until.into(), finish).await {
            Ok(result) => result,
            Err(_) => {
                tracing::debug!(session = ?relay.client.session, "the client did not take the goodbye in time");
                Ok(())
            }
        }
    }

    /// Reads on only to see the end: the client's close, or that all is written where there is no such answer.
    fn read_on(&mut self, reads_left: &mut usize) -> io::Result<bool> {
        for _ in 0..READS_PER_TURN {
            match self.next()? {
                None => return Ok(self.incoming.is_some() || !self.relay.is_flushed()),
                Some(Incoming::Left) => return Ok(false),
                Some(_) => *reads_left = reads_left.saturating_sub(1),
            }
        }
        Ok(*reads_left > 0)
    }
}

/// Asks the shard for a session.
fn attach(shared: &Shared, relay: &Arc<Relay>, number: u64, from: Origin) {
    let client = &relay.client;
    shared.shards.attach(Box::new(Attach {
        user: client.user.clone(),
        session: client.session,
        device: client.device.clone(),
        from,
        began: relay.began.into(),
        counts_acknowledgements: relay.protocol.counts_acknowledgements(),
        attachment: Attachment::new(Arc::new(relay.clone()), number),
    }));
}

/// Has connections ask for their sessions again, without the pause after a loss: this owner serves their users from here
/// on (`None`: this node). Those ask at once that nobody serves any more. The others do when they have got what the
/// former owner had still sent, or have waited for it long enough; the future ends with the last of them. Connections
/// that nobody has served yet ask by themselves.
pub(super) fn attach_again(
    shared: Arc<Shared>,
    relays: Vec<Arc<Relay>>,
    owner: Option<Incarnation>,
) -> impl Future<Output = ()> + Send + 'static {
    let standing = |relay: Arc<Relay>| match relay.standing() {
        Standing::Served(attachment, by) if by != owner => Some((relay, attachment)),
        Standing::Lost(attachment) => {
            attach_where_it_was(&shared, &relay, attachment);
            None
        }
        Standing::Served(..) | Standing::Apart => None,
    };
    let mut served: Vec<(Arc<Relay>, u64)> = relays.into_iter().filter_map(standing).collect();
    let until = tokio::time::Instant::now() + LAST_FRAMES;
    async move {
        while !served.is_empty() {
            tokio::time::sleep(LAST_FRAMES_LOOK).await;
            let is_over = tokio::time::Instant::now() >= until;
            served.retain(|(relay, attachment)| match relay.standing() {
                Standing::Served(now, _) if now == *attachment && !is_over => true,
                Standing::Served(now, _) | Standing::Lost(now) if now == *attachment => {
                    attach_where_it_was(&shared, relay, now);
                    false
                }
                // Whatever came after it is the new owner's.
                Standing::Served(..) | Standing::Lost(_) | Standing::Apart => false,
            });
        }
    }
}

fn attach_where_it_was(shared: &Shared, relay: &Arc<Relay>, attachment: u64) {
    if let Some((number, passed, acknowledged)) = relay.next_attachment_after(attachment) {
        attach(shared, relay, number, Origin::Connection { passed, acknowledged });
    }
}

/// What a turn of reading came to.
enum Turn {
    /// All that was there is read.
    Done,
    /// There may be more.
    MoreToRead,
    /// The client is gone.
    Left,
}

/// A client of server-sent events has nothing to say; only its end matters.
pub(super) fn discard(relay: &Relay) -> io::Result<Option<Incoming>> {
    let mut nowhere = [0; 512];
    match relay.try_read(&mut nowhere) {
        Ok(0) => Ok(Some(Incoming::Left)),
        Ok(_) => Ok(Some(Incoming::Heard)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
