//! Who may join, and who may own something then.

use std::time::Duration;

use super::{
    super::{
        arrival::{Answered, Arrival, Verdict, may_own},
        view::Node,
    },
    apply, incarnation, living, node, table_of,
};

#[test]
fn a_second_live_node_of_the_same_name_is_refused() {
    let mut table = table_of(3);
    let newcomer = node("n1", 9);
    let look = |arrival: &mut Arrival, table: &super::Table, answered| {
        arrival.look(&table.view(Duration::ZERO), &newcomer, |_| answered)
    };
    let occupied = Verdict::Occupied(newcomer.id.clone());
    assert_eq!(look(&mut Arrival::default(), &table, Answered::Rival), occupied, "it answers");
    let mut arrival = Arrival::default();
    assert_eq!(look(&mut arrival, &table, Answered::Nobody), Verdict::Wait);
    table.renew(incarnation(1));
    assert_eq!(look(&mut arrival, &table, Answered::Nobody), occupied, "it renews its row");
    let mut arrival = Arrival::default();
    assert_eq!(look(&mut arrival, &table, Answered::Nobody), Verdict::Wait);
    table.renew(incarnation(1));
    assert_eq!(look(&mut arrival, &table, Answered::NotTheRival), occupied, "at another address, it seems");
}

#[test]
fn a_node_that_comes_back_declares_its_former_self_dead() {
    let mut table = table_of(3);
    let newcomer = node("n1", 9);
    let read = table.view(Duration::ZERO);
    let mut asked = Vec::new();
    let verdict = Arrival::default().look(&read, &newcomer, |rival| {
        assert_eq!(rival.node.incarnation, incarnation(1));
        Answered::NotTheRival
    });
    asked.push(verdict);
    let Some(Verdict::Join(change)) = asked.pop() else { panic!("at once") };
    apply(&mut table, &change);
    assert_eq!(living(&table.view(Duration::ZERO)), [incarnation(0), incarnation(2), incarnation(9)]);
    let again = Arrival::default().look(&table.view(Duration::ZERO), &newcomer, |_| Answered::Rival);
    assert_eq!(again, Verdict::Joined, "the first attempt's answer was lost");
}

#[test]
fn where_nobody_answers_a_counter_that_stands_still_is_enough() {
    let table = table_of(2);
    let mut arrival = Arrival::default();
    for _ in 0..5 {
        let verdict = arrival.look(&table.view(Duration::ZERO), &node("n1", 9), |_| Answered::Nobody);
        assert_eq!(verdict, Verdict::Wait);
    }
    let verdict = arrival.look(&table.view(Duration::ZERO), &node("n1", 9), |_| Answered::Nobody);
    assert!(matches!(verdict, Verdict::Join(_)));
}

#[test]
fn one_that_is_not_even_connected_is_dead_as_soon_as_it_should_have_renewed() {
    let mut table = table_of(2);
    let look = |arrival: &mut Arrival, table: &super::Table, answered| {
        arrival.look(&table.view(Duration::ZERO), &node("n1", 9), |_| answered)
    };
    let mut arrival = Arrival::default();
    for _ in 0..2 {
        assert_eq!(look(&mut arrival, &table, Answered::Gone), Verdict::Wait);
    }
    assert!(matches!(look(&mut arrival, &table, Answered::Gone), Verdict::Join(_)));
    // Its connections were cut, and it is back.
    let mut arrival = Arrival::default();
    assert_eq!(look(&mut arrival, &table, Answered::Gone), Verdict::Wait);
    table.renew(incarnation(1));
    let occupied = Verdict::Occupied(node("n1", 9).id);
    assert_eq!(look(&mut arrival, &table, Answered::Gone), occupied);
}

#[test]
fn who_shares_its_store_with_nobody_is_met_by_all() {
    let mut table = table_of(0);
    let alone = Node { is_alone: true, addresses: Vec::new(), ..node("x", 1) };
    let read = table.view(Duration::ZERO);
    let Verdict::Join(change) = Arrival::default().look(&read, &alone, |_| unreachable!("nobody is there")) else {
        panic!("nobody is there");
    };
    apply(&mut table, &change);
    let mut arrival = Arrival::default();
    assert_eq!(arrival.look(&table.view(Duration::ZERO), &node("y", 2), |_| Answered::Nobody), Verdict::Wait);
    table.renew(incarnation(1));
    let verdict = arrival.look(&table.view(Duration::ZERO), &node("y", 2), |_| Answered::Nobody);
    assert_eq!(verdict, Verdict::Occupied(alone.id));
}

#[test]
fn a_newcomer_owns_nothing_until_it_is_linked_with_more_than_half() {
    for elders in 0..8 {
        let mut table = table_of(elders);
        let newcomer = incarnation(9);
        let change = table.view(Duration::ZERO).join(node("n9", 9), &[]).unwrap();
        apply(&mut table, &change);
        for linked in 0..=elders {
            let is_linked = |one| (0..linked).any(|number| one == incarnation(number));
            let may = may_own(&table.view(Duration::ZERO), newcomer, is_linked);
            assert_eq!(may, 2 * (linked + 1) > elders + 1, "{linked} of {elders}");
        }
    }
}

#[test]
fn a_newcomer_waits_for_those_that_leave_and_for_no_other_newcomers_and_no_dead() {
    let mut table = table_of(2);
    for newcomer in [8, 9] {
        let change = table.view(Duration::ZERO).join(node(&format!("n{newcomer}"), newcomer), &[]).unwrap();
        apply(&mut table, &change);
    }
    let may =
        |table: &super::Table, linked| may_own(&table.view(Duration::ZERO), incarnation(9), |one| Some(one) == linked);
    assert!(may(&table, Some(incarnation(0))), "two of three that count");
    for leaves in 0..2 {
        let change = table.view(Duration::ZERO).drain(incarnation(leaves)).unwrap();
        apply(&mut table, &change);
        assert!(!may(&table, None) && may(&table, Some(incarnation(1))), "it owns something yet");
    }
    for leaves in 0..2 {
        assert!(!may(&table, None), "{leaves} have left");
        let change = table.view(Duration::ZERO).leave(incarnation(leaves)).unwrap();
        apply(&mut table, &change);
    }
    assert!(may(&table, None), "there are only newcomers");
}
