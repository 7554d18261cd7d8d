//! Members that act on any view they ever read, in any order, against one table.

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;

use super::{incarnation, node, table::Table};
use crate::{
    cluster::{
        changes::Change,
        table::Changed,
        view::{State, Version, View},
    },
    ids::Incarnation,
};

#[derive(Clone, Debug)]
enum Deed {
    Read,
    Renew,
    Join,
    Activate,
    Drain,
    Leave,
    Refuse(usize),
    Vote(usize),
    Withdraw(usize),
    Stale(usize),
    Forget,
    Restart,
}

fn deeds() -> impl Strategy<Value = Vec<(usize, Deed)>> {
    let other = 0..4usize;
    let deed = prop_oneof![
        4 => Just(Deed::Read),
        2 => Just(Deed::Renew),
        3 => Just(Deed::Join),
        2 => Just(Deed::Activate),
        1 => Just(Deed::Drain),
        1 => Just(Deed::Leave),
        1 => other.clone().prop_map(Deed::Refuse),
        3 => other.clone().prop_map(Deed::Vote),
        1 => other.clone().prop_map(Deed::Withdraw),
        1 => other.prop_map(Deed::Stale),
        1 => Just(Deed::Forget),
        1 => Just(Deed::Restart),
    ];
    prop::collection::vec((0..4usize, deed), 1..200)
}

struct Actor {
    me: Incarnation,
    number: u64,
    read: View,
}

impl Actor {
    fn wants(&self, at: usize, deed: &Deed, others: &[Incarnation]) -> Option<Change> {
        let read = &self.read;
        match deed {
            Deed::Join => {
                let newcomer = node(&format!("n{at}"), self.number);
                let rivals: Vec<_> = read.rivals(&newcomer).iter().map(|rival| rival.node.incarnation).collect();
                read.join(newcomer, &rivals).ok()
            }
            Deed::Activate => read.activate(self.me).ok(),
            Deed::Drain => read.drain(self.me).ok(),
            Deed::Leave => read.leave(self.me).ok(),
            Deed::Refuse(other) => read.declare_refused(self.me, &[others[*other]]).ok(),
            Deed::Vote(other) => read.vote(self.me, others[*other]).ok().flatten(),
            Deed::Withdraw(other) => read.withdraw(self.me, others[*other]).ok().flatten(),
            Deed::Stale(other) => {
                let counter = read.member(others[*other])?.counter;
                read.declare_stale(self.me, others[*other], counter).ok()
            }
            Deed::Forget => read.forget(),
            Deed::Read | Deed::Renew | Deed::Restart => None,
        }
    }
}

proptest! {
    /// All that anybody reads is one sequence. In it states only go forward, a name lives once, nobody has joined
    /// twice, and only the living have changed anything.
    #[test]
    fn any_interleaving_leaves_one_sequence_of_views(deeds in deeds()) {
        let mut table = Table::default();
        let mut started = 4;
        let mut actors: Vec<Actor> =
            (0..4).map(|number| Actor { me: incarnation(number), number, read: View::default() }).collect();
        let mut history: HashMap<Version, View> = HashMap::from([(0, View::default())]);
        let mut clock = Duration::ZERO;
        for (at, deed) in deeds {
            clock += Duration::from_secs(3600);
            let others: Vec<Incarnation> = actors.iter().map(|actor| actor.me).collect();
            let actor = &mut actors[at];
            match deed {
                Deed::Read => {
                    let view = table.view(clock);
                    prop_assert!(view.version >= actor.read.version);
                    let states = |view: &View| view.members.iter().map(|it| (it.node.incarnation, it.state, it.votes.clone())).collect::<Vec<_>>();
                    prop_assert_eq!(states(&view), states(&history[&view.version]), "the one that this version is");
                    actor.read = view;
                }
                Deed::Renew => {
                    let is_alive = table.view(clock).alive(actor.me).is_some();
                    prop_assert_eq!(table.renew(actor.me).is_alive, is_alive);
                }
                Deed::Restart => {
                    *actor = Actor { me: incarnation(started), number: started, read: View::default() };
                    started += 1;
                }
                _ => {
                    let Some(change) = actor.wants(at, &deed, &others) else { continue };
                    let before = table.view(clock);
                    let Changed::Done(version) = table.change(&change, clock) else { continue };
                    let view = table.view(clock);
                    prop_assert_eq!(version, before.version + 1);
                    prop_assert_eq!(view.version, version);
                    let joins = matches!(deed, Deed::Join);
                    prop_assert!(matches!(deed, Deed::Forget) || joins || before.alive(actor.me).is_some(), "the dead change nothing");
                    for member in &view.members {
                        let one = member.node.incarnation;
                        match before.member(one) {
                            Some(was) => prop_assert!(was.state == member.state || was.state.leads_to(member.state)),
                            None => prop_assert!(joins && member.state == State::Joining && member.joined == version),
                        }
                        if member.is_alive() {
                            let named = view.living().filter(|other| other.node.id == member.node.id).count();
                            prop_assert_eq!(named, 1);
                        }
                    }
                    let gone = before.members.iter().filter(|was| view.member(was.node.incarnation).is_none());
                    for was in gone {
                        prop_assert!(!was.is_alive() && was.dead_for >= Duration::from_secs(86_400));
                    }
                    prop_assert!(view.members.is_sorted_by_key(|member| member.joined));
                    prop_assert!(history.insert(version, view).is_none());
                }
            }
        }
    }
}
