//! This node and the others: how its edge and its API ask about them, and what it says of itself when they ask.

use std::{future::Future, num::NonZeroU8, pin::Pin, sync::Arc, time::Duration};

use futures_util::future::join_all;

use crate::{
    api::cluster::{Observed, Seen},
    cluster::view::{self, View},
    edge::{
        Peers,
        peers::{self, Connections, Heard},
    },
    ids::{Incarnation, NodeId},
    ingest::Ingest,
    link::{Answer, Answering, Links, Question, Standing},
    member::Member,
    placement::owners::Owners,
};

/// How long the others may take to answer. Who asks waits for the slowest.
const ANSWER: Duration = Duration::from_secs(1);

/// The other nodes of the view. Cheap to clone.
#[derive(Clone)]
pub(super) struct Others {
    pub(super) me: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) member: Arc<Member>,
    pub(super) links: Links,
}

impl Others {
    /// Asks all of them at once. Whoever is alive may have connections, whatever else it does.
    async fn ask_all(&self, question: Question) -> Vec<(Incarnation, NodeId, Option<Answer>)> {
        let view = self.member.view();
        let asked = self.member.others(&view).map(|member| async {
            let (one, id) = (member.node.incarnation, member.node.id.clone());
            let answer = tokio::time::timeout(ANSWER, self.links.query(one, question.clone())).await;
            (one, id, answer.ok().flatten())
        });
        join_all(asked).await
    }
}

impl Peers for Others {
    fn me(&self) -> String {
        self.me.to_string()
    }

    fn ask(&self, question: peers::Question) -> Pin<Box<dyn Future<Output = Vec<Heard>> + Send + '_>> {
        Box::pin(async {
            let answers = self.ask_all(Question::Sessions(question)).await;
            let heard = answers.into_iter().map(|(_, id, answer)| match answer {
                Some(Answer::Sessions(answer)) => (id.to_string(), Some(answer)),
                Some(Answer::Standing(_)) | None => (id.to_string(), None),
            });
            heard.collect()
        })
    }
}

/// What this node says of itself.
pub(super) struct Here {
    pub(super) connections: Connections,
    pub(super) ingest: Arc<Ingest>,
}

impl Here {
    fn standing(&self) -> Standing {
        Standing { connections: self.connections.count() as u64, partitions: self.ingest.partitions() }
    }
}

impl Answering for Here {
    fn answer(&self, question: Question) -> Option<Answer> {
        Some(match question {
            Question::Standing => Answer::Standing(self.standing()),
            Question::Sessions(question) => Answer::Sessions(self.connections.answer(&question)),
        })
    }
}

/// The cluster, as the API shows it.
pub(super) struct Overview {
    here: Arc<Here>,
    owners: Owners,
    /// The others, or the view of a node that has none.
    around: Result<Others, Arc<View>>,
}

impl Overview {
    /// Of a node among others.
    pub(super) fn among(here: Arc<Here>, owners: Owners, others: Others) -> Self {
        Self { here, owners, around: Ok(others) }
    }

    /// Of a node that works with no others.
    pub(super) fn alone(here: Arc<Here>, owners: Owners, (id, zone): (NodeId, String)) -> Self {
        let node = view::Node {
            id,
            incarnation: Incarnation::random(),
            addresses: Vec::new(),
            zone,
            weight: NonZeroU8::MIN,
            is_alone: true,
        };
        let (state, votes, dead_for) = (view::State::Active, Vec::new(), Duration::ZERO);
        let member = view::Member { node, state, joined: 0, counter: 0, votes, dead_for };
        Self { here, owners, around: Err(Arc::new(View { version: 0, members: vec![member] })) }
    }
}

impl Observed for Overview {
    fn look(&self) -> Pin<Box<dyn Future<Output = Seen> + Send + '_>> {
        Box::pin(async {
            let (me, view, answers) = match &self.around {
                Ok(others) => (others.incarnation, others.member.view(), others.ask_all(Question::Standing).await),
                Err(alone) => (alone.members[0].node.incarnation, alone.clone(), Vec::new()),
            };
            let told = answers.into_iter().filter_map(|(one, _, answer)| match answer? {
                Answer::Standing(standing) => Some((one, standing)),
                Answer::Sessions(_) => None,
            });
            let standings = told.chain([(me, self.here.standing())]).collect();
            let map = Arc::clone(&self.owners.now());
            Seen { me, is_enabled: self.around.is_ok(), view, map, standings }
        })
    }
}
