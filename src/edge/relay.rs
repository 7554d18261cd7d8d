//! The shared half of a connection: the socket with what waits to be written, and what was passed on and
//! acknowledged. A session pushes frames, the flusher writes them; only what the socket does not take at once goes
//! through the connection's task. Outlives every session actor that serves it.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::{io::Interest, sync::Notify};

use super::{flush::Flusher, metric, protocol::Protocol, socket::Socket};
use crate::{
    event::{UnixMillis, unix_millis_now},
    ids::{DeviceId, LogEpoch, Sequence, SessionId, UserId},
    session::{self, Line},
    wire::Close,
};

mod outlet;

pub(super) use self::outlet::Standing;

/// So many chunks go into one write.
const SLICES_MAX: usize = 16;
/// A queue of so many chunks is written at once.
const FLUSH_AT_ITEMS: usize = 32;
/// Events of one user come in batches of at most this many (the router's).
const BURST_ITEMS: usize = 512;
/// An empty queue keeps room for so many chunks.
const KEPT_CAPACITY: usize = 4;
/// What a client can make us queue with its pings: nothing more is read from it until these are written.
const CONTROLS_MAX: usize = 16;

/// Where a connection's bytes go.
pub(super) enum Sink {
    /// Into a socket of its own; what it does not take at once waits in the queue.
    Socket(Socket),
    /// Nowhere by themselves: whoever writes the stream takes one message after the other out of the queue.
    Stream(AtomicWaker),
}

/// Bounds of what waits for the socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueLimits {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

/// Who is connected.
pub(super) struct Client {
    pub(super) session: SessionId,
    pub(super) user: UserId,
    pub(super) device: Option<DeviceId>,
    /// Whether the session was started ahead of its connection, and may be ended.
    pub(super) is_started: bool,
    /// When the token ends, leeway included; in ms.
    pub(super) expires_at: UnixMillis,
}

/// The shared half of a connection.
pub(super) struct Relay {
    pub(super) client: Client,
    pub(super) protocol: Protocol,
    pub(super) began: Instant,
    sink: Sink,
    limits: QueueLimits,
    epoch: LogEpoch,
    flusher: Arc<Flusher>,
    state: Mutex<State>,
    /// Wakes the connection's task.
    woken: Notify,
    /// The client said something since the last heartbeat.
    heard: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The number of the latest attachment; frames of others are dropped.
    attachment: u64,
    session: Option<Line>,
    /// The last number passed on.
    passed: Sequence,
    acknowledged: Sequence,
    greeted: bool,
    queue: VecDeque<Chunk>,
    queued_bytes: usize,
    /// How many of the chunks are the protocol's own.
    controls: usize,
    /// The flusher knows that there is something to write.
    dirty: bool,
    /// A session was told that the queue is full and waits for room.
    refused: bool,
    lost: bool,
    /// Its session has nothing to do and has no actor: whoever has news says so to the shard.
    rests: bool,
    /// There is such news.
    wake: bool,
    /// The session was told to end the connection with this.
    closing: Option<Close>,
    close: Option<Close>,
    ended: bool,
}

struct Chunk {
    bytes: Bytes,
    /// Of a notification: when its record was written.
    recorded_at: Option<UnixMillis>,
    /// The protocol's own: pongs, closes, heartbeats.
    is_control: bool,
}

/// What the connection's task has to do.
#[derive(Debug, Default)]
pub(super) struct Todo {
    /// This attachment is lost and nobody serves the connection: attach again.
    pub(super) lost: Option<u64>,
    /// Its session is at rest, and there is something for it.
    pub(super) wake: bool,
    /// Say goodbye.
    pub(super) close: Option<Close>,
    /// The socket is gone.
    pub(super) ended: bool,
}

impl Relay {
    pub(super) fn new(
        client: Client,
        protocol: Protocol,
        sink: Sink,
        limits: QueueLimits,
        epoch: LogEpoch,
        flusher: Arc<Flusher>,
    ) -> Self {
        let items = match &sink {
            Sink::Socket(_) => limits.items,
            // Nobody writes while a session pushes a burst: as much as comes at once has to fit.
            Sink::Stream(_) => limits.items.max(BURST_ITEMS),
        };
        Self {
            client,
            protocol,
            began: Instant::now(),
            sink,
            limits: QueueLimits { items, ..limits },
            epoch,
            flusher,
            state: Mutex::default(),
            woken: Notify::new(),
            heard: AtomicBool::new(true),
        }
    }

    /// Takes an acknowledgement from the client; `false`: it names what was never sent.
    pub(super) fn acknowledge(&self, seq: Sequence) -> bool {
        let mut state = self.state.lock();
        if seq > state.passed {
            return false;
        }
        if seq > state.acknowledged {
            state.acknowledged = seq;
            match &state.session {
                Some(session) => _ = session.cast(session::Msg::Acknowledged(seq)),
                None if state.rests => {
                    state.wake = true;
                    self.woken.notify_one();
                }
                // Whoever attaches asks what was acknowledged.
                None => {}
            }
        }
        true
    }

    /// Ends the connection with a goodbye. The first close counts.
    pub(super) fn close(&self, close: Close) {
        let mut state = self.state.lock();
        state.close.get_or_insert(close);
        if let Some(session) = state.session.take() {
            let _ = session.cast(session::Msg::Disconnected);
        }
        drop(state);
        self.woken.notify_one();
    }

    /// Ends the connection behind everything that its session has been given so far.
    pub(super) fn close_in_order(&self, close: Close) {
        let mut state = self.state.lock();
        // Under the lock, so that the session does not rest with this unread.
        state.closing = Some(close.clone());
        let session = state.session.as_ref();
        if session.is_none_or(|session| !session.cast(session::Msg::Close(close.clone()))) {
            drop(state);
            self.close(close);
        }
    }

    /// The socket is gone, or must go without a goodbye.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.queue = VecDeque::new();
        state.controls = 0;
        state.queued_bytes = 0;
        if let Some(session) = state.session.take() {
            let _ = session.cast(session::Msg::Disconnected);
        }
        self.woken.notify_one();
        if let Sink::Stream(reader) = &self.sink {
            reader.wake();
        }
    }

    pub(super) fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// One heartbeat; ends the connection when the client answered nothing since the last one.
    pub(super) fn beat(&self) {
        let is_answered = self.protocol.answers_heartbeats();
        if is_answered && !self.heard.swap(false, Ordering::Relaxed) {
            tracing::debug!(session = ?self.client.session, "the peer is silent");
            return self.end();
        }
        let mut state = self.state.lock();
        // What waits shows that we are here, but nobody has to answer it: silence counts only after a ping.
        if is_answered || state.queue.is_empty() {
            self.enqueue(&mut state, Bytes::from_static(self.protocol.heartbeat()));
        }
    }

    /// Waits until there is something to do, or the socket can be read or written.
    ///
    /// # Errors
    /// When the socket is gone. Cancel safe.
    pub(super) async fn ready(&self) -> io::Result<()> {
        let (is_empty, is_flooded) = {
            let state = self.state.lock();
            (!self.waits_for_socket(&state), state.controls >= CONTROLS_MAX)
        };
        let Sink::Socket(socket) = &self.sink else {
            self.woken.notified().await;
            return Ok(());
        };
        let interest = match (is_empty, is_flooded) {
            (_, true) => Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            (false, false) => Interest::READABLE | Interest::WRITABLE,
        };
        tokio::select! {
            biased;
            () = self.woken.notified() => Ok(()),
            ready = socket.ready(interest) => ready,
        }
    }

    /// What there is to do, beside reading; writes what the socket takes.
    ///
    /// # Errors
    /// When the socket is gone.
    pub(super) fn todo(&self) -> io::Result<Todo> {
        let mut state = self.state.lock();
        self.write_queue(&mut state)?;
        let close = state.close.clone();
        let is_lost = state.lost && close.is_none() && !state.ended;
        state.lost &= !is_lost;
        let lost = is_lost.then_some(state.attachment);
        let wake = std::mem::take(&mut state.wake) && state.rests;
        Ok(Todo { lost, wake, close, ended: state.ended })
    }

    /// Queues what the protocol wants before the first frame.
    pub(super) fn write_start(&self, reconnect: Duration) {
        if let Protocol::Sse(sse) = self.protocol {
            self.enqueue(&mut self.state.lock(), sse.retry(reconnect.as_millis()));
        }
    }

    /// Queues the last frame before a close.
    pub(super) fn write_goodbye(&self, close: &Close) {
        let mut state = self.state.lock();
        self.enqueue(&mut state, self.protocol.goodbye(&self.epoch, close));
    }

    /// Queues the end of a body, where the protocol has one.
    pub(super) fn write_end(&self) {
        if let Protocol::Sse(sse) = self.protocol {
            self.enqueue(&mut self.state.lock(), Bytes::from_static(sse.end()));
        }
    }

    /// Whether all that was queued is written.
    pub(super) fn is_flushed(&self) -> bool {
        let has_unsent = matches!(&self.sink, Sink::Socket(socket) if socket.has_unsent());
        self.state.lock().queue.is_empty() && !has_unsent
    }

    /// Test builds only: a WebSocket of the device `fault.echo` has no session and gets back what it sends.
    pub(super) fn is_echo(&self) -> bool {
        cfg!(feature = "faults") && self.client.device.as_deref() == Some("fault.echo")
    }

    /// Gives a message back. Who reads no answers is not read: see [`Self::ready`].
    #[cfg(feature = "faults")]
    pub(super) fn echo(&self, message: &tokio_tungstenite::tungstenite::Message) {
        let mut state = self.state.lock();
        self.enqueue(&mut state, crate::wire::echo(&message.clone().into_data(), message.is_text()));
    }

    /// Queues bytes of the protocol itself, whole frames only.
    ///
    /// # Errors
    /// `WouldBlock` when too much of that waits already.
    pub(super) fn write_control(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.controls >= CONTROLS_MAX {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.enqueue(&mut state, Bytes::copy_from_slice(bytes));
        Ok(bytes.len())
    }

    /// Writes what is the protocol's own to the socket, or queues what it does not take.
    fn enqueue(&self, state: &mut State, mut bytes: Bytes) {
        if state.ended {
            return;
        }
        if let (Sink::Socket(socket), true) = (&self.sink, state.queue.is_empty()) {
            match socket.try_write(&bytes) {
                Ok(written) if written == bytes.len() => {
                    if socket.has_unsent() {
                        self.woken.notify_one();
                    }
                    return;
                }
                Ok(written) => drop(bytes.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The connection's task meets the same error and ends the connection.
                Err(_) => {}
            }
        }
        state.queued_bytes += bytes.len();
        state.controls += 1;
        state.queue.push_back(Chunk { bytes, recorded_at: None, is_control: true });
        match &self.sink {
            Sink::Socket(_) => self.woken.notify_one(),
            Sink::Stream(reader) => reader.wake(),
        }
    }

    fn write_queue(&self, state: &mut State) -> io::Result<()> {
        let socket = match &self.sink {
            Sink::Socket(socket) => socket,
            Sink::Stream(reader) => {
                reader.wake();
                return Ok(());
            }
        };
        match socket.try_flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        while let Some(chunk) = state.queue.front() {
            let written = if state.queue.len() == 1 {
                socket.try_write(&chunk.bytes)
            } else {
                let slices: SmallVec<[io::IoSlice<'_>; SLICES_MAX]> =
                    state.queue.iter().take(SLICES_MAX).map(|chunk| io::IoSlice::new(&chunk.bytes)).collect();
                socket.try_write_vectored(&slices)
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(state, written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.note_room(state);
        Ok(())
    }

    /// Says so, if a session waits for room and there is some now.
    fn note_room(&self, state: &mut State) {
        let has_room = state.queue.len() * 2 <= self.limits.items && state.queued_bytes * 2 <= self.limits.bytes;
        if state.refused && has_room {
            state.refused = false;
            if let Some(session) = &state.session {
                let _ = session.cast(session::Msg::Drained);
            }
        }
        if state.queue.is_empty() && state.queue.capacity() > KEPT_CAPACITY {
            state.queue = VecDeque::new();
        }
    }

    /// The next message of a stream, for whoever writes it; `None`: the stream has ended.
    pub(super) fn poll_message(&self, cx: &Context<'_>) -> Poll<Option<Bytes>> {
        if let Sink::Stream(reader) = &self.sink {
            reader.register(cx.waker());
        }
        let mut state = self.state.lock();
        let Some(chunk) = state.queue.pop_front() else {
            return if state.ended { Poll::Ready(None) } else { Poll::Pending };
        };
        state.queued_bytes -= chunk.bytes.len();
        state.controls -= usize::from(chunk.is_control);
        self.written(chunk.recorded_at);
        self.note_room(&mut state);
        if state.queue.is_empty() && state.close.is_some() {
            // The goodbye is on its way.
            self.woken.notify_one();
        }
        Poll::Ready(Some(chunk.bytes))
    }

    /// Why the connection was ended, if by a decision.
    pub(super) fn close_reason(&self) -> Option<Close> {
        self.state.lock().close.clone()
    }

    /// Says on the socket that nothing more comes, where it has a word for that.
    pub(super) fn close_socket(&self) {
        if let Sink::Socket(socket) = &self.sink {
            socket.close();
        }
    }

    /// Reads what the client said.
    ///
    /// # Errors
    /// `WouldBlock` when it said nothing, or has no way to.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.sink {
            Sink::Socket(socket) => socket.try_read(buffer),
            Sink::Stream(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Writes what is queued, as far as the socket takes it.
    pub(super) fn flush(&self) {
        let mut state = self.state.lock();
        state.dirty = false;
        // The connection's task waits until the socket takes the rest, or meets the same error and ends.
        if self.write_queue(&mut state).is_err() || self.waits_for_socket(&state) {
            drop(state);
            self.woken.notify_one();
        }
    }

    /// The socket took so many bytes from the front of the queue.
    fn advance(&self, state: &mut State, mut written: usize) {
        state.queued_bytes -= written;
        while let Some(chunk) = state.queue.front_mut() {
            if written < chunk.bytes.len() {
                return drop(chunk.bytes.split_to(written));
            }
            written -= chunk.bytes.len();
            self.written(chunk.recorded_at);
            state.controls -= usize::from(chunk.is_control);
            state.queue.pop_front();
        }
    }

    /// Whether something is there that only the socket can take.
    fn waits_for_socket(&self, state: &State) -> bool {
        match &self.sink {
            Sink::Socket(socket) => !state.queue.is_empty() || socket.has_unsent(),
            Sink::Stream(_) => false,
        }
    }

    fn written(&self, recorded_at: Option<UnixMillis>) {
        if let Some(recorded_at) = recorded_at {
            metric::delivered(self.protocol, unix_millis_now() - recorded_at);
        }
    }
}

#[cfg(test)]
mod tests;
