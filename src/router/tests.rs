//! The router against model shards: real actors behind real [`Shards`] that take, hold, refuse and lose events and
//! die as a script says, while the test plays the ingest's part. Whatever happens, what a user got first is in the
//! order of reading, and everything is settled in the end.

mod model;

use std::collections::BTreeMap;

use parking_lot::Mutex;
use proptest::prelude::*;

use self::model::{Fate, Taken};
use super::*;
use crate::{event::Options, ids::NotificationId, placement::owners::Owners};

const SHARDS: u16 = 8;
/// Far above what the waits before events go again add up to.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Reports(Mutex<Vec<(RecordRef, Outcome)>>);

impl Report for Reports {
    fn report(&self, record: RecordRef, outcome: Outcome) {
        self.0.lock().push((record, outcome));
    }
}

/// What the test does next.
#[derive(Clone, Debug)]
enum Step {
    /// Reads so many events, of users in this order.
    Read(Vec<u8>),
    Flush,
    /// Lets the actors work.
    Work,
    /// Lets each actor settle what it holds.
    Settle,
    /// Passes on what was reported.
    Answers,
    /// Lets the time pass after which an event goes again, unless it crashed an actor.
    Wait,
    /// A shard is served by nobody, by this node, or by another one.
    Move(u16, u8),
}

/// Other nodes.
const NODES: u8 = 2;

/// The actors of other nodes, one each, which die and have successors as those of this node do.
struct Peers {
    nodes: Vec<Incarnation>,
    actors: Shards,
}

impl Peers {
    fn place(&self, node: Incarnation) -> usize {
        self.nodes.iter().position(|one| *one == node).expect("one of these")
    }
}

impl Links for Peers {
    fn life(&self, node: Incarnation) -> Option<u64> {
        Some(self.actors.get(self.place(node)).1)
    }

    fn send(&self, node: Incarnation, life: u64, events: Vec<InFlight>) {
        let (actor, now) = self.actors.get(self.place(node));
        assert_eq!(life, now, "nothing has happened since");
        let _ = actor.cast(Msg::Events(events));
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(0u8..4, 1..6).prop_map(Step::Read),
        3 => Just(Step::Flush),
        2 => Just(Step::Work),
        1 => Just(Step::Settle),
        2 => Just(Step::Answers),
        1 => Just(Step::Wait),
        1 => (0..SHARDS, 0..2 + NODES).prop_map(|(shard, to)| Step::Move(shard, to)),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Settle),
        6 => Just(Fate::Hold),
        2 => Just(Fate::Refuse),
        2 => Just(Fate::Lose),
        2 => (0u8..4).prop_map(|blind| Fate::StoreAndLoseUser { blind }),
        1 => (0u8..4).prop_map(|blind| Fate::Crash { blind }),
        1 => Just(Fate::KillShard),
    ]
}

fn event(user: u8, number: u64) -> Arc<Event> {
    Arc::new(Event {
        user: UserId::new(format!("u{user}")).unwrap(),
        session: None,
        id: NotificationId::new(number.to_string()).unwrap(),
        notification_type: "t".into(),
        payload: "1".into(),
        options: Options::default(),
        created_at: 0,
        recorded_at: 0,
    })
}

/// The ingest's part: numbers, unsettled events, answers.
struct Reader {
    router: Router,
    reports: Arc<Reports>,
    shards: Shards,
    peers: Arc<Peers>,
    model: model::Shared,
    unsettled: BTreeMap<i64, Arc<Event>>,
    read: BTreeMap<UserId, Vec<u64>>,
    next: u64,
}

impl Reader {
    async fn new(fates: Vec<Fate>, actors: usize) -> Self {
        let model = model::Shared::new(fates);
        let mut refs = Vec::new();
        for _ in 0..actors {
            refs.push(model::spawn(&model).await);
        }
        let owners = Owners::shared(SHARDS);
        owners.set(Map::all(Owner::Here, SHARDS));
        let shards = Shards::of(refs, owners);
        let (mut nodes, mut others) = (Vec::new(), Vec::new());
        for _ in 0..NODES {
            nodes.push(Incarnation::random());
            others.push(model::spawn(&model).await);
        }
        let peers = Arc::new(Peers { nodes, actors: Shards::new(others, SHARDS) });
        let reports = Arc::new(Reports::default());
        let router = Router::new(shards.clone(), reports.clone()).with(Some(peers.clone()));
        Self { router, reports, shards, peers, model, unsettled: BTreeMap::new(), read: BTreeMap::new(), next: 0 }
    }

    fn read(&mut self, user: u8) {
        let (number, event) = (self.next, event(user, self.next));
        self.next += 1;
        let offset = i64::try_from(number).unwrap();
        self.read.entry(event.user.clone()).or_default().push(number);
        self.unsettled.insert(offset, event.clone());
        let record = RecordRef { partition: 0, assignment: 1, offset };
        let permit = Permit::new(self.reports.clone(), record);
        self.router.route(number, InFlight { event, permit, first: false, sender: 0 });
    }

    fn answers(&mut self) {
        for (record, outcome) in std::mem::take(&mut *self.reports.0.lock()) {
            let event = self
                .unsettled
                .get(&record.offset)
                .expect("an event is settled once and then never reported again")
                .clone();
            if outcome == Outcome::Settled {
                self.unsettled.remove(&record.offset);
            }
            let number = u64::try_from(record.offset).unwrap();
            let unsettled = &self.unsettled;
            let answer = Answer { record, number, event: &event, outcome };
            self.router.answered(&answer, || unsettled.values().filter(|other| other.user == event.user).count() - 1);
        }
    }

    /// Puts successors in the place of the dead, as the node's root does.
    async fn bury(&self) {
        for dead in self.model.take_dead() {
            let places = [&self.shards, &self.peers.actors];
            let place = places.into_iter().find_map(|shards| Some((shards, shards.index_of(dead)?)));
            let (shards, index) = place.expect("each actor dies once");
            shards.replace(index, model::spawn(&self.model).await);
        }
    }

    async fn work(&self) {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    async fn act(&mut self, step: Step) {
        match step {
            Step::Read(users) => users.into_iter().for_each(|user| self.read(user)),
            Step::Flush => self.router.flush(),
            Step::Work => self.work().await,
            Step::Settle => self.settle_held().await,
            Step::Answers => self.answers(),
            Step::Wait => tokio::time::sleep(AGAIN_AFTER + Duration::from_millis(1)).await,
            Step::Move(shard, to) => {
                let owner = match to {
                    0 => Owner::Nobody,
                    1 => Owner::Here,
                    node => Owner::There(self.peers.nodes[usize::from(node) - 2]),
                };
                self.shards.owners().change(&[ShardId(shard)], owner);
            }
        }
    }

    async fn settle_held(&self) {
        for shards in [&self.shards, &self.peers.actors] {
            for index in 0..shards.actors() {
                let _ = shards.get(index).0.cast(model::settle_one());
            }
        }
        self.work().await;
    }

    /// Goes on until everything is settled.
    async fn finish(&mut self) -> Result<(), TestCaseError> {
        let until = Instant::now() + PATIENCE;
        while !self.unsettled.is_empty() {
            prop_assert!(Instant::now() < until, "never settled: {:?}", self.unsettled.keys());
            self.bury().await;
            self.router.flush();
            self.settle_held().await;
            self.answers();
            if self.router.is_recovering() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    }
}

async fn run(steps: Vec<Step>, fates: Vec<Fate>, actors: usize) -> Result<(), TestCaseError> {
    let mut reader = Reader::new(fates, actors).await;
    for step in steps {
        reader.act(step).await;
        reader.bury().await;
    }
    // Somebody serves them in the end.
    let served = |owner: &Owner| if *owner == Owner::Nobody { Owner::Here } else { *owner };
    let map = Map { owners: reader.shards.owners().now().owners.iter().map(served).collect() };
    reader.shards.owners().set(map);
    reader.finish().await?;
    let mut got: BTreeMap<UserId, Vec<u64>> = BTreeMap::new();
    for Taken { user, number } in reader.model.taken() {
        got.entry(user).or_default().push(number);
    }
    prop_assert_eq!(&got, &reader.read, "what each user got, and what was read for it");
    prop_assert!(reader.reports.0.lock().is_empty(), "every event is answered once");
    prop_assert!(!reader.router.is_recovering() && reader.router.recovering.is_empty());
    let unanswered: Vec<usize> = reader.router.lanes.iter().map(|lane| lane.unanswered).collect();
    prop_assert_eq!(unanswered.iter().sum::<usize>(), 0);
    prop_assert_eq!(reader.router.ways.iter().map(|way| way.out).sum::<usize>(), 0);
    Ok(())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_time: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn each_users_events_keep_the_order_of_reading_whatever_the_shards_do(
        steps in prop::collection::vec(step(), 1..60),
        fates in prop::collection::vec(fate(), 0..40),
        actors in 1usize..4,
    ) {
        block_on(run(steps, fates, actors))?;
    }
}

/// Reads two events and flushes, kills the actor under them, and reads a third before anything is answered.
#[test]
fn a_successor_gets_nothing_new_before_what_its_predecessor_lost() {
    let steps = vec![Step::Read(vec![0, 0]), Step::Flush, Step::Work, Step::Read(vec![0]), Step::Flush, Step::Work];
    block_on(run(steps, vec![Fate::KillShard], 1)).unwrap();
}

#[test]
fn the_next_owner_gets_nothing_before_the_former_one_has_answered() {
    use Step::{Answers, Flush, Move, Read, Work};
    let everywhere = |to| (0..SHARDS).map(move |shard| Move(shard, to));
    // The former owner holds the first two; the third must not be delivered by the next one meanwhile.
    let mut steps = vec![Read(vec![0, 0]), Flush, Work];
    steps.extend(everywhere(2));
    steps.extend([Read(vec![0]), Flush, Work, Answers, Flush, Work]);
    steps.extend(everywhere(0));
    steps.extend([Read(vec![0]), Flush, Work]);
    block_on(run(steps, vec![Fate::Hold, Fate::Hold], 1)).unwrap();
}

#[test]
fn nothing_of_a_user_is_sent_while_earlier_events_of_it_are_under_way_or_wait() {
    use Step::{Answers, Flush, Read, Work};
    // The second of three is lost; the third is still held when that is known, and a fourth comes in.
    let steps = vec![Read(vec![0, 0, 0]), Flush, Work, Answers, Read(vec![0]), Flush, Work];
    block_on(run(steps, vec![Fate::Hold, Fate::StoreAndLoseUser { blind: 1 }, Fate::Hold], 1)).unwrap();
}

#[test]
fn nothing_goes_again_before_everything_that_was_sent_is_answered() {
    use Step::{Answers, Flush, Read, Wait, Work};
    // The second was refused, which is not known yet, when the first could go again; the third must not overtake it.
    let steps =
        vec![Read(vec![0]), Flush, Work, Read(vec![0]), Flush, Answers, Wait, Flush, Read(vec![0]), Flush, Work];
    block_on(run(steps, vec![Fate::Lose], 1)).unwrap();
}

#[test]
fn an_unsent_event_waits_behind_one_of_its_user_that_was_lost() {
    use Step::{Answers, Flush, Read, Work};
    // The second is read, and in the batch, when the loss of the first becomes known.
    let steps = vec![Read(vec![0]), Flush, Work, Read(vec![0]), Answers, Flush, Work];
    block_on(run(steps, vec![Fate::Lose], 1)).unwrap();
}
