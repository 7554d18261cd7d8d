//! Both ends of a link without a network: what one has to say is handed to the other.

use std::{future::Future, pin::Pin, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Held, Limits, Watched,
    client::Order,
    mirror::{Far, Mirror},
    under_way::Link,
    wire::{Attached, Lost, OpenResponse, Outcome, Push, ToEdge, to_edge, to_owner},
};
use crate::{
    event::{InFlight, Notification},
    fakes::{self, Collector, Reports, durable, transient},
    ids::{Incarnation, SessionId},
    session::{
        Attachment, FarSession, Kind, Line, Msg, Outgoing, Outlet as _, Pushed,
        tests::outlet::{FakeOutlet, Seen},
    },
    settlement,
    shard::{self, Shards},
    user::{self, Attach},
    wire::{Close, CloseCode, Frame},
};

const LINE: u64 = 1;

/// Nobody listens.
#[derive(Default)]
struct Unheard {
    looks: Mutex<usize>,
}

impl Watched for Unheard {
    fn heard(&self, _: Incarnation) {}
    fn called(&self, _: Incarnation) {}
    fn refused(&self, _: Incarnation) {}
    fn told(&self, _: Incarnation, _: Incarnation, _: u64, _: bool) {}
    fn hears(&self, _: Incarnation) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        Box::pin(async { false })
    }
    fn look(&self) {
        *self.looks.lock() += 1;
    }
    fn wants(&self, _: Incarnation, _: Vec<Held>) {}
    fn is_dead(&self, _: Incarnation) -> bool {
        false
    }
    fn dead(&self) {}
}

/// The end that has the connections.
struct Edge {
    link: Link,
    watched: Arc<Unheard>,
    /// What connections say to their sessions.
    orders: mpsc::UnboundedReceiver<Order>,
    alive: mpsc::UnboundedSender<Order>,
}

impl Edge {
    fn new() -> Self {
        let watched = Arc::new(Unheard::default());
        let (sender, orders) = mpsc::unbounded_channel();
        let link = Link::new(Incarnation::random(), (1, 0), sender.downgrade(), watched.clone());
        Self { link, watched, orders, alive: sender }
    }

    /// The link breaks, and there is another one.
    fn again(&mut self) {
        let (life, last) = (3, self.link.last);
        self.link = Link::new(Incarnation::random(), (life, last), self.alive.downgrade(), self.watched.clone());
    }

    /// A connection asks for a session.
    fn attach(&mut self) -> Arc<FakeOutlet> {
        let outlet = FakeOutlet::new();
        self.link.order(wish(Attachment::new(outlet.clone(), 1)));
        outlet
    }

    fn take(&mut self, kinds: impl IntoIterator<Item = to_edge::Kind>) {
        let messages = kinds.into_iter().map(|kind| ToEdge { kind: Some(kind) }).collect();
        self.link.take(OpenResponse { messages }).unwrap();
    }

    /// What it has to say, once.
    fn said(&mut self) -> Vec<to_owner::Kind> {
        self.link.out.drain(..).filter_map(|message| message.kind).collect()
    }
}

fn wish(attachment: Attachment) -> Order {
    Order::Attach(Box::new(Attach {
        user: fakes::user(),
        session: SessionId::random(),
        device: None,
        from: user::Origin::Cursor,
        began: Instant::now(),
        counts_acknowledgements: true,
        attachment,
    }))
}

fn push(line: u64, seq: u64) -> to_edge::Kind {
    to_edge::Kind::Push(Push { line, seq, event: Some((&*durable(&fakes::user(), &seq.to_string())).into()) })
}

/// Frames that were said to be taken, by line.
fn taken(said: &[to_owner::Kind]) -> Vec<(u64, u64)> {
    let taken = |kind: &to_owner::Kind| match kind {
        to_owner::Kind::Taken(taken) => Some((taken.line, taken.frames)),
        _ => None,
    };
    said.iter().filter_map(taken).collect()
}

fn is_over(said: &[to_owner::Kind]) -> bool {
    said.iter().any(|kind| matches!(kind, to_owner::Kind::Disconnected(over) if over.line == LINE))
}

#[test]
fn each_outcome_ends_the_permit_of_its_number_once_and_a_link_that_ends_loses_the_rest() {
    use settlement::Outcome::{Buried, Crashed, Lost, Refused, Settled};
    let (mut edge, reports) = (Edge::new(), Reports::new());
    let events = (0..6).map(|number| {
        let event = transient(&fakes::user(), &number.to_string());
        InFlight { first: number == 0, ..reports.in_flight(number, event) }
    });
    edge.link.order(Order::Events(1, events.collect()));
    let forwarded = edge.said().into_iter().map(|kind| match kind {
        to_owner::Kind::Event(forwarded) => (forwarded.number, forwarded.first),
        other => panic!("{other:?}"),
    });
    assert!(forwarded.eq((1..=6).map(|number| (number, number == 1))), "in order, and the first is marked");
    // Answered in any order; what nobody asked is not looked at.
    let outcomes = [(3, 0), (1, 1), (3, 1), (99, 0), (2, 2), (5, 3), (4, 4)];
    edge.take(outcomes.map(|(number, outcome)| to_edge::Kind::Outcome(Outcome { number, outcome })));
    assert_eq!(reports.take(), [(2, Settled), (0, Refused), (1, Buried), (4, Lost), (3, Crashed)]);
    drop(edge);
    assert_eq!(reports.take(), [(5, Lost)]);
}

/// They waited in the queue, behind events that went out and are lost.
#[test]
fn events_that_were_meant_for_a_former_link_are_lost_with_it() {
    let (mut edge, reports) = (Edge::new(), Reports::new());
    let event = |number| vec![reports.in_flight(number, transient(&fakes::user(), &number.to_string()))];
    edge.link.order(Order::Events(1, event(0)));
    edge.again();
    edge.link.order(Order::Events(1, event(1)));
    assert_eq!(edge.said(), []);
    edge.link.order(Order::Events(3, event(2)));
    assert_eq!(edge.said().len(), 1);
    assert_eq!(reports.take(), [(0, settlement::Outcome::Lost), (1, settlement::Outcome::Lost)]);
}

/// The connections before it were lost with the former one, and attach again behind it.
#[test]
fn a_mark_goes_out_on_the_link_of_what_it_marks_or_not_at_all() {
    let mut edge = Edge::new();
    let marks =
        |said: Vec<to_owner::Kind>| said.iter().filter(|kind| matches!(kind, to_owner::Kind::Listed(_))).count();
    edge.link.order(Order::Listed(1, Vec::new()));
    assert_eq!(marks(edge.said()), 1);
    edge.again();
    edge.link.order(Order::Listed(1, Vec::new()));
    assert_eq!(marks(edge.said()), 0);
}

/// What was said for a line of the former link must not reach the session of whoever has a line now.
#[tokio::test]
async fn what_a_connection_said_on_a_former_link_meets_no_line_of_another() {
    let mut edge = Edge::new();
    let _former = edge.attach();
    edge.again();
    let now = edge.attach();
    edge.said();
    for late in [Msg::Acknowledged(50), Msg::Drained, Msg::Disconnected] {
        edge.link.order(Order::Line(LINE, late));
    }
    assert_eq!((edge.said(), now.lost_count()), (vec![], 0));
}

#[test]
fn what_cannot_be_read_is_an_error_of_the_peer_s() {
    for kind in [
        to_edge::Kind::Outcome(Outcome { number: 1, outcome: 5 }),
        to_edge::Kind::Push(Push { line: LINE, seq: 1, event: None }),
    ] {
        let mut edge = Edge::new();
        let _outlet = edge.attach();
        let response = OpenResponse { messages: vec![ToEdge { kind: Some(kind) }] };
        assert!(edge.link.take(response).is_err());
    }
}

#[tokio::test]
async fn a_full_connection_gets_the_rest_in_order_and_only_what_it_took_is_said_to_be_taken() {
    let mut edge = Edge::new();
    let outlet = edge.attach();
    edge.said();
    outlet.room(2);
    edge.take([to_edge::Kind::Attached(Attached { line: LINE, begins_after: 7 })]);
    assert!(outlet.is_attached() && outlet.begins_after() == 7);
    edge.take((8..=11).map(|seq| push(LINE, seq)));
    assert_eq!(taken(&edge.said()), [(LINE, 2)]);
    // There is room, but nothing goes past those that wait.
    outlet.room(10);
    edge.take([push(LINE, 12)]);
    assert_eq!((outlet.numbers(), taken(&edge.said())), (vec![8, 9], vec![]));
    edge.link.order(Order::Line(LINE, Msg::Drained));
    assert_eq!((outlet.numbers(), taken(&edge.said())), (vec![8, 9, 10, 11, 12], vec![(LINE, 3)]));
    // What the connection says goes to its session, under its line.
    outlet.acknowledge(12);
    let mut last = None;
    while let Ok(order) = edge.orders.try_recv() {
        edge.link.order(order);
        last = edge.said().pop();
    }
    assert!(
        matches!(&last, Some(to_owner::Kind::Acknowledged(acknowledged)) if (acknowledged.line, acknowledged.seq) == (LINE, 12)),
        "{last:?}"
    );
}

#[tokio::test]
async fn frames_of_a_former_attachment_reach_nobody_and_end_the_line() {
    let mut edge = Edge::new();
    let outlet = edge.attach();
    edge.take([to_edge::Kind::Attached(Attached { line: LINE, begins_after: 0 }), push(LINE, 1)]);
    outlet.next_attachment();
    edge.said();
    edge.take([push(LINE, 2), push(LINE, 3)]);
    assert_eq!(outlet.numbers(), [1]);
    let said = edge.said();
    assert!(is_over(&said) && taken(&said).is_empty(), "{said:?}");
    // Of a line that is over nothing is looked at, be it readable or not.
    edge.take([push(LINE, 4), to_edge::Kind::Push(Push { line: LINE, seq: 5, event: None })]);
    edge.link.order(Order::Line(LINE, Msg::Acknowledged(1)));
    assert_eq!((outlet.numbers(), edge.said()), (vec![1], vec![]));
    assert_eq!(outlet.lost_count(), 0, "a former attachment is not missed");
}

#[tokio::test]
async fn a_connection_hears_that_nobody_serves_it_any_more() {
    let mut edge = Edge::new();
    let outlet = edge.attach();
    edge.take([to_edge::Kind::Lost(Lost { line: LINE })]);
    assert_eq!((outlet.lost_count(), *edge.watched.looks.lock()), (1, 1));
    // The link breaks.
    let outlet = edge.attach();
    drop(edge);
    assert_eq!(outlet.lost_count(), 1);
}

#[tokio::test]
async fn a_wish_that_another_one_has_replaced_is_not_sent() {
    let mut edge = Edge::new();
    let outlet = FakeOutlet::new();
    let attachment = Attachment::new(outlet.clone(), 1);
    outlet.next_attachment();
    edge.link.order(wish(attachment));
    assert_eq!(edge.said(), []);
}

/// A session that writes down what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl FarSession for Told {
    fn tell(&self, msg: Msg) -> bool {
        self.0.lock().push(match msg {
            Msg::Acknowledged(seq) => format!("acknowledged {seq}"),
            Msg::Drained => "drained".into(),
            Msg::Close(close) => format!("close {}", close.code as u16),
            Msg::Disconnected => "disconnected".into(),
            _ => "something else".into(),
        });
        true
    }
    fn node(&self) -> Incarnation {
        unreachable!("nobody asks")
    }
}

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// The end that has the session.
struct Owner {
    mirror: Arc<Mirror>,
    far: Far,
    to_edge: mpsc::UnboundedReceiver<ToEdge>,
    shard: fakes::Heard<shard::Msg>,
    session: Arc<Told>,
}

impl Owner {
    async fn new(limits: Limits) -> Self {
        let (actor, shard) = Collector::spawn().await;
        let (sender, to_edge) = mpsc::unbounded_channel();
        let mirror = Mirror::new((LINE, fakes::user()), limits, Shards::new(vec![actor], 1), sender);
        Self { far: Far(mirror.clone()), mirror, to_edge, shard, session: Arc::default() }
    }

    fn attached(&self, attachment: u64) -> bool {
        self.far.attached(attachment, Line::There(self.session.clone()), 0)
    }

    fn push(&self, attachment: u64, seq: u64) -> Pushed {
        let notification = Notification { seq: Some(seq), event: durable(&fakes::user(), &seq.to_string()) };
        let frame = Frame::notification(&notification);
        self.far.push(attachment, &Outgoing { frame: &frame, kind: Kind::Notification(Some(seq), &notification.event) })
    }

    fn said(&mut self) -> Vec<to_edge::Kind> {
        std::iter::from_fn(|| self.to_edge.try_recv().ok()?.kind).collect()
    }

    /// What its shard's actor was told.
    async fn shard(&self) -> Vec<&'static str> {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let name = |msg| match msg {
            shard::Msg::Wake(_) => "wake",
            shard::Msg::Ended(_) => "ended",
            _ => "something else",
        };
        self.shard.lock().drain(..).map(name).collect()
    }
}

const ROOM: Limits = Limits { frames: 4, bytes: u64::MAX / 4 };

#[tokio::test(start_paused = true)]
async fn no_more_is_under_way_than_the_bounds_allow_and_there_is_room_again_at_half() {
    let mut owner = Owner::new(ROOM).await;
    assert!(owner.attached(1));
    assert_eq!((1..=5).map(|seq| owner.push(1, seq)).filter(|pushed| *pushed == Pushed::Taken).count(), 4);
    assert_eq!(owner.push(1, 5), Pushed::Full);
    assert_eq!(owner.said().len(), 1 + 4);
    owner.mirror.taken(1, 1);
    assert_eq!(owner.session.take(), ["acknowledged 0"]);
    owner.mirror.taken(1, 1);
    assert_eq!(owner.session.take(), ["drained"]);
    assert_eq!(owner.push(1, 5), Pushed::Taken);
    // Nobody was refused since.
    owner.mirror.taken(3, 1);
    assert!(owner.session.take().is_empty());

    let bytes = Owner::new(Limits { frames: 100, bytes: 1 }).await;
    assert!(bytes.attached(1));
    assert_eq!((bytes.push(1, 1), bytes.push(1, 2)), (Pushed::Taken, Pushed::Full));
}

#[tokio::test(start_paused = true)]
async fn who_rests_is_woken_by_what_the_client_says_and_ends_without() {
    let mut owner = Owner::new(ROOM).await;
    assert!(owner.attached(1));
    assert_eq!(owner.push(1, 1), Pushed::Taken);
    assert_eq!(owner.far.rest(1, 0), None, "something is under way");
    owner.mirror.taken(1, 1);
    owner.mirror.acknowledged(1);
    assert_eq!(owner.far.rest(1, 0), None, "it has news");
    let later = owner.far.rest(1, 1).expect("it has nothing to do");
    assert!(owner.far.rests(later) && !owner.far.is_latest(1));
    assert_eq!(owner.push(1, 2), Pushed::Gone);
    // Said before: nobody is woken by it.
    owner.mirror.acknowledged(1);
    assert!(owner.shard().await.is_empty());
    owner.mirror.acknowledged(2);
    assert_eq!(owner.shard().await, ["wake"]);
    owner.session.take();
    owner.said();
    assert!(owner.attached(later) && !owner.far.rests(later));
    assert_eq!(owner.session.take(), ["acknowledged 2"]);
    assert_eq!(owner.said(), [], "the other node knows of one attachment");

    let again = owner.far.rest(later, 2).expect("it has nothing to do");
    owner.mirror.end();
    assert_eq!(owner.shard().await, ["ended"]);
    assert!(!owner.far.rests(again) && !owner.attached(again));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_is_closed_behind_what_its_session_has() {
    let close = || Close { code: CloseCode::GoingAway, reason: "drain".into(), reconnect: None };
    let mut owner = Owner::new(ROOM).await;
    assert!(owner.attached(1));
    owner.said();
    owner.mirror.close(close());
    assert_eq!((owner.session.take().last().map(String::as_str), owner.said()), (Some("close 1001"), vec![]));
    assert_eq!(owner.far.rest(1, 0), None, "it is ending");
    owner.far.close(1, close());
    assert!(matches!(&owner.said()[..], [to_edge::Kind::Close(close)] if close.line == LINE));

    // Before it has a session, it ends at once.
    let mut alone = Owner::new(ROOM).await;
    alone.mirror.close(close());
    assert!(matches!(&alone.said()[..], [to_edge::Kind::Close(close)] if close.line == LINE));
    assert!(!alone.attached(1) && alone.push(1, 1) == Pushed::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_lost_is_told_of_once_and_of_a_former_attachment_never() {
    let mut owner = Owner::new(ROOM).await;
    assert!(owner.attached(1));
    let later = owner.far.rest(1, 0).expect("it has nothing to do");
    owner.said();
    owner.far.lost(1);
    assert_eq!(owner.said(), []);
    owner.far.lost(later);
    owner.far.lost(later);
    assert_eq!(owner.said(), [to_edge::Kind::Lost(Lost { line: LINE })]);
    assert_eq!(owner.push(later, 1), Pushed::Gone);
}

#[tokio::test]
async fn what_the_owner_pushes_is_what_the_client_gets() {
    let mut edge = Edge::new();
    let outlet = edge.attach();
    let mut owner = Owner::new(ROOM).await;
    assert!(owner.attached(1));
    let hello = Frame::of_json(br#"{"type":"$hello"}"#);
    let sent = Outgoing { frame: &hello, kind: Kind::Control("$hello", Some(3)) };
    assert_eq!(owner.far.push(1, &sent), Pushed::Taken);
    assert_eq!(owner.push(1, 4), Pushed::Taken);
    let event = transient(&fakes::user(), "passing");
    let frame = Frame::notification(&Notification { seq: None, event: event.clone() });
    owner.far.push(1, &Outgoing { frame: &frame, kind: Kind::Notification(None, &event) });
    edge.take(owner.said());
    assert_eq!(outlet.seen(), [Seen::Hello, Seen::Numbered(4), Seen::Transient("passing".into())]);
    let events = outlet.events();
    assert_eq!(events.last(), Some(&*event), "nothing of it is changed on the way");
    assert_eq!(events.len(), 2);
}
