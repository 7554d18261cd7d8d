//! What becomes of a view, step by step.

use std::time::Duration;

use super::{
    super::{
        changes::Refused,
        table::Changed,
        view::{Member, Node, State, View},
        votes::VOTE_RENEWALS,
    },
    after, apply, incarnation, living, node,
    table::Table,
    table_of, view,
};

const DAY: Duration = Duration::from_secs(86_400);

fn state(view: &View, number: u64) -> Option<State> {
    view.member(incarnation(number)).map(|member| member.state)
}

#[test]
fn a_member_joins_serves_drains_and_leaves_and_never_goes_back() {
    let mut now = view(0);
    now = after(&now, now.join(node("a", 1), &[]).unwrap());
    assert_eq!((now.version, state(&now, 1)), (1, Some(State::Joining)));
    assert!(now.candidates().is_empty(), "it owns nothing before it is ready");
    now = after(&now, now.activate(incarnation(1)).unwrap());
    assert_eq!(now.candidates()[0].id, "a");
    assert_eq!(now.activate(incarnation(1)), Err(Refused::NoWay { from: State::Active, to: State::Active }));
    now = after(&now, now.drain(incarnation(1)).unwrap());
    assert!(now.candidates().is_empty() && now.alive(incarnation(1)).is_some());
    assert_eq!(now.activate(incarnation(1)), Err(Refused::NoWay { from: State::Draining, to: State::Active }));
    now = after(&now, now.leave(incarnation(1)).unwrap());
    assert_eq!((now.version, now.alive(incarnation(1))), (4, None));
    for back in [now.activate(incarnation(1)), now.drain(incarnation(1)), now.leave(incarnation(1))] {
        assert_eq!(back, Err(Refused::Dead));
    }
    assert_eq!(now.join(node("a", 1), &[]), Err(Refused::Joined), "an incarnation lives once");
    assert!(now.join(node("a", 2), &[]).is_ok());
}

#[test]
fn there_is_one_way_through_the_states() {
    use State::{Active, Dead, Draining, Joining};
    let all = [Joining, Active, Draining, Dead];
    let ways: Vec<_> = all.iter().flat_map(|a| all.iter().filter(|b| a.leads_to(**b)).map(move |b| (*a, *b))).collect();
    let there = [(Joining, Active), (Joining, Draining), (Joining, Dead), (Active, Draining), (Active, Dead)];
    assert_eq!(ways, [&there[..], &[(Draining, Dead)]].concat());
}

#[test]
fn a_change_of_another_version_does_nothing() {
    let mut table = table_of(2);
    let read = table.view(Duration::ZERO);
    let (drain, leave) = (read.drain(incarnation(0)).unwrap(), read.leave(incarnation(1)).unwrap());
    assert_eq!(table.change(&drain, Duration::ZERO), Changed::Done(5));
    assert_eq!(table.change(&leave, Duration::ZERO), Changed::Overtaken);
    assert_eq!(state(&table.view(Duration::ZERO), 1), Some(State::Active));
}

#[test]
fn a_second_node_of_the_same_name_joins_only_over_the_firsts_death() {
    let now = view(2);
    let refused = now.join(node("n1", 9), &[incarnation(0)]);
    assert_eq!(refused, Err(Refused::Rival { id: node("n1", 9).id }));
    let now = after(&now, now.join(node("n1", 9), &[incarnation(0), incarnation(1)]).unwrap());
    assert_eq!(living(&now), [incarnation(0), incarnation(9)], "n0 is no rival: it lives, whatever is said of it");
    assert_eq!(state(&now, 1), Some(State::Dead), "in the same step");
}

#[test]
fn who_shares_its_store_with_nobody_meets_nobody() {
    let alone = Node { is_alone: true, ..node("x", 9) };
    let refused = view(2).join(alone.clone(), &[incarnation(0)]);
    assert_eq!(refused, Err(Refused::Rival { id: node("n1", 1).id }));
    let now = after(&view(0), view(0).join(alone, &[]).unwrap());
    assert_eq!(now.join(node("y", 1), &[]), Err(Refused::Rival { id: node("x", 9).id }));
    assert_eq!(living(&after(&now, now.join(node("y", 1), &[incarnation(9)]).unwrap())), [incarnation(1)]);
}

#[test]
fn a_refused_member_dies_by_one_word_and_many_at_once() {
    let now = view(5);
    let change = now.declare_refused(incarnation(2), &[incarnation(0), incarnation(2), incarnation(4)]).unwrap();
    let now = after(&now, change);
    assert_eq!(living(&now), [incarnation(1), incarnation(2), incarnation(3)], "but never itself");
    assert_eq!(now.declare_refused(incarnation(0), &[incarnation(1)]), Err(Refused::Dead), "the dead have no word");
    assert_eq!(now.declare_refused(incarnation(1), &[incarnation(0)]), Err(Refused::Gone));
}

#[test]
fn a_silent_member_dies_by_two_votes() {
    let mut now = view(4);
    now = after(&now, now.vote(incarnation(0), incarnation(3)).unwrap().unwrap());
    assert_eq!(state(&now, 3), Some(State::Active), "one is not enough");
    assert_eq!(now.vote(incarnation(0), incarnation(3)), Ok(None), "and counts once");
    assert_eq!(now.vote(incarnation(0), incarnation(0)), Err(Refused::Gone), "nobody votes against itself");
    now = after(&now, now.vote(incarnation(1), incarnation(3)).unwrap().unwrap());
    assert_eq!(state(&now, 3), Some(State::Dead));
    assert_eq!(now.vote(incarnation(3), incarnation(1)), Err(Refused::Dead));
    assert_eq!(now.vote(incarnation(1), incarnation(3)), Err(Refused::Gone));
}

#[test]
fn in_a_view_of_two_one_vote_is_all_there_is() {
    let now = view(2);
    let now = after(&now, now.vote(incarnation(1), incarnation(0)).unwrap().unwrap());
    assert_eq!(living(&now), [incarnation(1)]);
}

#[test]
fn a_dead_members_vote_counts_no_more() {
    let mut now = view(5);
    now = after(&now, now.vote(incarnation(0), incarnation(3)).unwrap().unwrap());
    now = after(&now, now.leave(incarnation(0)).unwrap());
    now = after(&now, now.vote(incarnation(1), incarnation(3)).unwrap().unwrap());
    assert_eq!(state(&now, 3), Some(State::Active));
    now = after(&now, now.vote(incarnation(2), incarnation(3)).unwrap().unwrap());
    assert_eq!(state(&now, 3), Some(State::Dead));
}

#[test]
fn a_vote_ages_with_its_voters_renewals() {
    let mut table = table_of(4);
    let vote = |table: &mut Table, by| {
        let change = table.view(Duration::ZERO).vote(incarnation(by), incarnation(3)).unwrap();
        change.inspect(|change| apply(table, change)).is_some()
    };
    assert!(vote(&mut table, 0));
    for _ in 1..VOTE_RENEWALS {
        table.renew(incarnation(0));
    }
    assert!(!vote(&mut table, 0), "it stands");
    table.renew(incarnation(0));
    assert!(vote(&mut table, 1), "the first one has gone");
    assert_eq!(state(&table.view(Duration::ZERO), 3), Some(State::Active));
    assert!(vote(&mut table, 0), "and is given anew");
    assert_eq!(state(&table.view(Duration::ZERO), 3), Some(State::Dead));
}

#[test]
fn a_vote_is_withdrawn_when_its_subject_is_heard_again() {
    let mut now = view(4);
    assert_eq!(now.withdraw(incarnation(0), incarnation(3)), Ok(None));
    now = after(&now, now.vote(incarnation(0), incarnation(3)).unwrap().unwrap());
    assert_eq!(now.withdraw(incarnation(1), incarnation(3)), Ok(None), "not somebody else's");
    now = after(&now, now.withdraw(incarnation(0), incarnation(3)).unwrap().unwrap());
    now = after(&now, now.vote(incarnation(1), incarnation(3)).unwrap().unwrap());
    assert_eq!(state(&now, 3), Some(State::Active));
}

#[test]
fn a_stale_member_that_has_moved_after_all_lives() {
    let mut table = table_of(3);
    let change = table.view(Duration::ZERO).declare_stale(incarnation(0), incarnation(2), 0).unwrap();
    table.renew(incarnation(2));
    assert_eq!(table.change(&change, Duration::ZERO), Changed::Overtaken);
    let change = table.view(Duration::ZERO).declare_stale(incarnation(0), incarnation(2), 1).unwrap();
    apply(&mut table, &change);
    assert!(!table.renew(incarnation(2)).is_alive, "it reads itself dead");
    assert!(table.renew(incarnation(0)).counters.iter().all(|(one, _)| *one != incarnation(2)));
}

#[test]
fn dead_rows_go_after_a_day_by_the_stores_clock() {
    let mut table = table_of(2);
    let leave = table.view(DAY).leave(incarnation(0)).unwrap();
    assert_eq!(table.change(&leave, DAY), Changed::Done(5));
    // Later changes of others do not make it younger.
    let drain = table.view(DAY).drain(incarnation(1)).unwrap();
    assert_eq!(table.change(&drain, DAY + DAY / 2), Changed::Done(6));
    assert_eq!(table.view(2 * DAY - Duration::from_millis(1)).forget(), None);
    let forget = table.view(2 * DAY).forget().unwrap();
    assert_eq!(table.change(&forget, 2 * DAY), Changed::Done(7));
    let now = table.view(2 * DAY);
    assert_eq!(now.members.iter().map(|member| member.node.incarnation).collect::<Vec<_>>(), [incarnation(1)]);
    assert!(now.alive(incarnation(0)).is_none(), "who is not there is dead");
}

#[test]
fn a_change_keeps_the_counters_that_moved_meanwhile() {
    let mut table = table_of(2);
    let drain = table.view(Duration::ZERO).drain(incarnation(1)).unwrap();
    table.renew(incarnation(1));
    apply(&mut table, &drain);
    let counters: Vec<u64> = table.view(Duration::ZERO).members.iter().map(|member: &Member| member.counter).collect();
    assert_eq!(counters, [0, 1]);
}
