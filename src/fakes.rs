//! What stands around actors in tests of every floor: a supervisor, an actor that keeps what it hears, events and
//! what becomes of them.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use parking_lot::Mutex;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};

use crate::{
    event::{Durability, Event, InFlight, Options, unix_millis_now},
    ids::{NotificationId, UserId},
    settlement::{Outcome, Permit, RecordRef, Report},
};

/// Keeps every message of type `T`, and outlives the actors below it.
pub(crate) struct Collector<T>(PhantomData<fn() -> T>);

/// What a collector has heard.
pub(crate) type Heard<T> = Arc<Mutex<Vec<T>>>;

impl<T: Send + 'static> Collector<T> {
    pub(crate) async fn spawn() -> (ActorRef<T>, Heard<T>) {
        let heard = Heard::<T>::default();
        let (actor, _) = Actor::spawn(None, Self(PhantomData), heard.clone()).await.unwrap();
        (actor, heard)
    }
}

impl<T: Send + 'static> Actor for Collector<T> {
    type Msg = T;
    type State = Heard<T>;
    type Arguments = Heard<T>;

    async fn pre_start(&self, _: ActorRef<T>, heard: Heard<T>) -> Result<Heard<T>, ActorProcessingErr> {
        Ok(heard)
    }

    async fn handle(&self, _: ActorRef<T>, msg: T, heard: &mut Heard<T>) -> Result<(), ActorProcessingErr> {
        heard.lock().push(msg);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<T>,
        _: SupervisionEvent,
        _: &mut Heard<T>,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

/// A supervisor that lets its actors end as they like.
pub(crate) async fn supervisor() -> ActorCell {
    Collector::<()>::spawn().await.0.get_cell()
}

/// Waits until nobody has anything to do any more, and what is noted in the store is gathered and written. (The clock is
/// paused: it moves only when all wait.)
pub(crate) async fn settled() {
    tokio::time::sleep(Duration::from_millis(35)).await;
}

pub(crate) fn user() -> UserId {
    UserId::new("101").unwrap()
}

/// A durable event.
pub(crate) fn durable(user: &UserId, id: &str) -> Arc<Event> {
    event(user, id, "update_channel", Durability::Durable)
}

/// One that is not stored.
pub(crate) fn transient(user: &UserId, id: &str) -> Arc<Event> {
    event(user, id, "update_channel", Durability::Transient)
}

pub(crate) fn event(user: &UserId, id: &str, notification_type: &str, durability: Durability) -> Arc<Event> {
    Arc::new(Event {
        user: user.clone(),
        session: None,
        id: NotificationId::new(id).unwrap(),
        notification_type: notification_type.into(),
        payload: r#"{"n":1}"#.into(),
        options: Options { durability, ..Options::default() },
        created_at: 0,
        recorded_at: unix_millis_now(),
    })
}

/// What became of the events sent in a test, by their running numbers.
#[derive(Default)]
pub(crate) struct Reports(Mutex<Vec<(i64, Outcome)>>);

impl Report for Reports {
    fn report(&self, record: RecordRef, outcome: Outcome) {
        self.0.lock().push((record.offset, outcome));
    }
}

impl Reports {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The event with a permit that reports here.
    pub(crate) fn in_flight(self: &Arc<Self>, offset: i64, event: Arc<Event>) -> InFlight {
        let record = RecordRef { partition: 0, assignment: 1, offset };
        InFlight { event, permit: Permit::new(self.clone(), record), first: false, sender: 0 }
    }

    /// Takes what was reported since the last time.
    pub(crate) fn take(&self) -> Vec<(i64, Outcome)> {
        std::mem::take(&mut *self.0.lock())
    }
}
