//! The loop: connect, print, acknowledge, and come back after a loss. The same for every protocol.

use std::{future::Future, io, pin::Pin, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{
    io::AsyncWrite,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Protocol,
    connection::{Connection, FAREWELL, Received, Wanted},
    frame::{Bye, Control, Frame, Hello},
    http::Server,
    output::{Printer, status},
    position::Position,
    retry::{self, Closed, Decision, Failure, Wait},
};
use crate::{
    backoff::{Backoff, jitter},
    ids::{DeviceId, Sequence, UserId},
};

/// The first wait where the server names none, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Acknowledgements go out this far apart; each covers all before it.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(200);
/// How long the first frame may take.
const HELLO: Duration = Duration::from_secs(30);
/// How long the connection may take to end after `$bye`.
const AFTER_BYE: Duration = Duration::from_secs(5);
/// An acknowledgement that is not taken for so long shows a dead connection.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// So many heartbeats without a sign of life, and the connection is dead.
const HEARTBEATS_MISSED: u32 = 3;

/// As whom to connect.
pub(super) struct Identity {
    pub(super) user: UserId,
    pub(super) device: Option<DeviceId>,
}

/// Follows a user's notifications.
pub(super) struct Follower<W> {
    server: Arc<Server>,
    protocol: Protocol,
    identity: Identity,
    position: Position,
    printer: Printer<W>,
    backoff: Backoff,
}

/// What is known of the connection at hand.
struct Session {
    /// From `$hello`.
    hello: Option<Hello>,
    /// The server has said that it will end the connection, and when to come back.
    bye: Option<Bye>,
    /// Printed, and not acknowledged yet.
    pending: Option<Sequence>,
    /// When to acknowledge it.
    due: Option<Instant>,
    /// Without a sign of life until then, the connection is dead.
    dead_at: Option<Instant>,
}

/// How a connection came to its end.
enum End {
    /// Nobody wants more.
    Stopped,
    Failed(Failure),
}

impl<W: AsyncWrite + Unpin> Follower<W> {
    pub(super) fn new(
        server: Arc<Server>,
        protocol: Protocol,
        identity: Identity,
        position: Position,
        printer: Printer<W>,
    ) -> Self {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        Self { server, protocol, identity, position, printer, backoff }
    }

    /// Follows until `stop`, or until nobody reads the output.
    ///
    /// # Errors
    /// When the server does not want this client any more, or the output fails.
    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut stop = pin!(stop);
        loop {
            let mut session = Session::new();
            let failure = match self.connect(&mut session, stop.as_mut()).await? {
                End::Stopped => return Ok(()),
                End::Failed(failure) => session.explain(failure),
            };
            let reconnect = session.hello.as_ref().and_then(Hello::reconnect);
            let wait = match retry::decide(&failure, self.server.credentials.are_renewed(), reconnect) {
                Decision::GiveUp => bail!("{failure}"),
                Decision::Again(Wait::Exactly(wait)) => wait,
                Decision::Again(Wait::UpTo(ceiling)) => jitter(ceiling),
                Decision::Again(Wait::Backoff) => self.backoff.next_wait(),
            };
            status(&format!("{failure}; connecting again in {:.1} s", wait.as_secs_f64()));
            tokio::select! {
                () = stop.as_mut() => return Ok(()),
                () = sleep(wait) => {}
            }
        }
    }

    /// One connection, from its beginning to its end.
    async fn connect(
        &mut self,
        session: &mut Session,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> anyhow::Result<End> {
        let since = self.position.since();
        let resuming = since.as_ref().map(|since| format!(", resuming after {since}")).unwrap_or_default();
        status(&format!("connecting to {} as {}{resuming}", self.server.endpoint.host(), self.identity.user));
        let wanted = Wanted { device: self.identity.device.as_ref(), since: since.as_deref() };
        let opened = tokio::select! {
            () = stop.as_mut() => return Ok(End::Stopped),
            opened = Connection::open(self.protocol, &self.server, &wanted) => opened,
        };
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(failure) => return Ok(End::Failed(failure)),
        };
        let end = self.serve(&mut connection, session, stop).await;
        // Nothing can be said on a connection that is lost.
        if !matches!(end, Ok(End::Failed(Failure::Lost(_)))) {
            let _ = timeout(FAREWELL, session.acknowledge(&mut connection)).await;
            connection.close().await;
        }
        end
    }

    async fn serve(
        &mut self,
        connection: &mut Connection,
        session: &mut Session,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> anyhow::Result<End> {
        loop {
            let received = tokio::select! {
                // Stopping and acknowledging do not wait until a busy stream has a pause.
                biased;
                () = stop.as_mut() => return Ok(End::Stopped),
                () = at(session.due) => {
                    let acknowledged = timeout(ACKNOWLEDGE, session.acknowledge(connection)).await;
                    let dead = |_| Err(Failure::Lost("an acknowledgement was not taken".to_owned()));
                    match acknowledged.unwrap_or_else(dead) {
                        Ok(()) => continue,
                        Err(failure) => return Ok(End::Failed(failure)),
                    }
                }
                received = connection.next() => received,
                () = at(session.dead_at) => return Ok(End::Failed(Failure::Lost("no sign of life".to_owned()))),
            };
            session.heard();
            let text = match received {
                Ok(Received::Frame(text)) => text,
                Ok(Received::SignOfLife) => continue,
                Ok(Received::Closed(closed)) => return Ok(End::Failed(Failure::Closed(closed))),
                Err(failure) => return Ok(End::Failed(failure)),
            };
            let printed = tokio::select! {
                // A reader that takes nothing must not keep us from stopping.
                () = stop.as_mut() => return Ok(End::Stopped),
                printed = self.take(&text, session) => printed,
            };
            match printed {
                Ok(()) => {}
                Err(Taking::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::Stopped),
                Err(Taking::Output(error)) => return Err(error).context("cannot write to standard output"),
                Err(Taking::OtherUser(user)) => bail!("--user is {}, but the token is for {user}", self.identity.user),
            }
        }
    }

    /// Prints a frame and does what it asks for.
    async fn take(&mut self, text: &str, session: &mut Session) -> Result<(), Taking> {
        let frame = Frame::parse(text);
        let seq = frame.as_ref().and_then(|frame| frame.seq);
        if seq.is_some_and(|seq| !self.position.is_new(seq)) {
            return Ok(());
        }
        let control = frame.as_ref().and_then(Frame::control);
        if let Some(Control::Hello(hello)) = &control
            && *hello.user != *self.identity.user
        {
            return Err(Taking::OtherUser(hello.user.clone()));
        }
        self.printer.print(text, frame.as_ref()).await.map_err(Taking::Output)?;
        if let Some(seq) = seq {
            self.position.printed(seq);
            session.printed(seq, self.position.acknowledges());
        }
        match control {
            Some(Control::Hello(hello)) => {
                let Hello { session: id, epoch, head, cursor, .. } = &hello;
                status(&format!("connected: session {id}, epoch {epoch}, head {head}, cursor {cursor}"));
                self.position.greeted(epoch);
                self.backoff.reset();
                session.greeted(hello);
            }
            Some(Control::Bye(bye)) => session.parting(bye),
            None => {}
        }
        Ok(())
    }
}

/// Why a frame ends everything.
enum Taking {
    Output(io::Error),
    OtherUser(String),
}

impl Session {
    fn new() -> Self {
        Self { hello: None, bye: None, pending: None, due: None, dead_at: Some(Instant::now() + HELLO) }
    }

    fn greeted(&mut self, hello: Hello) {
        self.hello = Some(hello);
        self.heard();
    }

    fn parting(&mut self, bye: Bye) {
        self.bye = Some(bye);
        self.dead_at = Some(Instant::now() + AFTER_BYE);
    }

    /// A sign of life. Only `$hello` is one before it, and none counts after `$bye`.
    fn heard(&mut self) {
        if let (Some(hello), None) = (&self.hello, &self.bye) {
            self.dead_at = hello.heartbeat().map(|heartbeat| Instant::now() + heartbeat * HEARTBEATS_MISSED);
        }
    }

    fn printed(&mut self, seq: Sequence, acknowledges: bool) {
        if acknowledges {
            self.pending = Some(seq);
            self.due.get_or_insert_with(|| Instant::now() + ACKNOWLEDGE_EVERY);
        }
    }

    /// Acknowledges what was printed, if there is something new.
    async fn acknowledge(&mut self, connection: &mut Connection) -> Result<(), Failure> {
        self.due = None;
        match (self.pending.take(), &self.hello) {
            (Some(seq), Some(hello)) => connection.acknowledge(&hello.session, seq).await,
            _ => Ok(()),
        }
    }

    /// What the server said in `$bye` is the reason for an end that came after it.
    fn explain(&self, failure: Failure) -> Failure {
        let Some(bye) = &self.bye else { return failure };
        match failure {
            Failure::Closed(Closed { code: Some(code), reason, .. }) => {
                Failure::Closed(Closed { code: Some(code), reason, wait: bye.wait() })
            }
            _ => Failure::Closed(Closed { code: Some(bye.code), reason: bye.reason.clone(), wait: bye.wait() }),
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(heartbeat_ms: u64) -> Hello {
        let payload = format!(r#"{{"session":"s","user":"101","epoch":"k3f9","heartbeat_ms":{heartbeat_ms}}}"#);
        serde_json::from_str(&payload).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn until_hello_and_after_bye_no_sign_of_life_counts() {
        let mut session = Session::new();
        let left = |session: &Session| session.dead_at.map(|at| at - Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(left(&session), Some(HELLO));
        sleep(second).await;
        session.heard();
        assert_eq!(left(&session), Some(HELLO - second));

        session.greeted(hello(25_000));
        sleep(second).await;
        session.heard();
        assert_eq!(left(&session), Some(HEARTBEATS_MISSED * Duration::from_secs(25)));

        session.parting(serde_json::from_str(r#"{"code":1001}"#).unwrap());
        sleep(second).await;
        session.heard();
        assert_eq!(left(&session), Some(AFTER_BYE - second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_heartbeats_has_a_deadline_for_hello_and_for_its_end() {
        let mut session = Session::new();
        session.greeted(hello(0));
        assert_eq!(session.dead_at, None);
        session.parting(serde_json::from_str(r#"{"code":1001}"#).unwrap());
        assert_eq!(session.dead_at, Some(Instant::now() + AFTER_BYE));
    }
}
