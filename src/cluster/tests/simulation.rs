//! Many nodes at once, in a world of faults.

use proptest::prelude::*;

use super::world::{Host, World};

/// Runs until the first host, or the first few, are the only members; how long that took.
fn take_over(world: &mut World, survivors: usize) -> u64 {
    let start = world.now();
    while world.view().living().count() > survivors {
        assert!(world.now() - start < 120_000, "never");
        world.run(50);
    }
    assert!((0..survivors).all(|at| world.view().alive(world.incarnation(at)).is_some()), "the right ones");
    world.now() - start
}

/// Something that happens to a cluster; at any moment there may be several.
fn strike(world: &mut World, hosts: usize) {
    let (one, other) = (world.random().random_range(0..hosts), world.random().random_range(0..hosts));
    let now = world.now();
    match world.random().random_range(0..13) {
        0..=2 => world.link(one, other, false),
        3 => {
            world.link(one, other, false);
            world.link(other, one, false);
        }
        4 => (0..hosts).filter(|at| *at != one).for_each(|at| world.link(at, one, false)),
        5 => {
            let parts: Vec<bool> = (0..hosts).map(|_| world.random().random()).collect();
            for from in 0..hosts {
                (0..hosts).for_each(|to| world.link(from, to, parts[from] == parts[to]));
            }
        }
        6 => world.heal(),
        7 | 8 if world.runs(one) => {
            let millis = if world.random().random() { 1000 } else { 30_000 };
            let until = now + world.random().random_range(100..millis);
            world.set(one, Host::Frozen(until));
        }
        9 => {
            let reaches = world.random().random();
            world.reach_store(one, reaches);
        }
        10 if world.runs(one) => world.set(one, Host::Refuses),
        11 if world.runs(one) => world.set(one, Host::Off),
        _ => world.restart(one),
    }
}

#[test]
fn without_faults_nothing_ever_changes() {
    for hosts in [1, 2, 3, 5, 30] {
        let mut world = World::new(hosts, 1);
        let version = world.view().version;
        world.run(60_000);
        assert_eq!((world.view().version, world.has_settled()), (version, true));
    }
}

/// Rows that stand still are declared dead one by one: more of them take longer.
#[test]
fn one_survivor_takes_over_within_fifteen_seconds_of_silence_and_five_for_each_beyond_the_fifth() {
    for hosts in [2_usize, 3, 4, 5, 7, 10] {
        let most = 15_000 + 5_000 * hosts.saturating_sub(5) as u64;
        for seed in 0..10 {
            let mut world = World::new(hosts, seed);
            (1..hosts).for_each(|at| world.set(at, Host::Off));
            let took = take_over(&mut world, 1);
            assert!(took <= most, "{took} ms, {hosts} hosts, seed {seed}");
        }
    }
}

#[test]
fn one_survivor_takes_over_within_five_seconds_where_hosts_refuse() {
    for hosts in [2, 3, 5, 10, 30] {
        let mut world = World::new(hosts, 7);
        (1..hosts).for_each(|at| world.set(at, Host::Refuses));
        let took = take_over(&mut world, 1);
        assert!(took <= 5_000, "{took} ms, {hosts} hosts");
    }
}

#[test]
fn one_silent_node_among_many_is_dead_within_three_seconds() {
    for hosts in [3, 4, 5, 30] {
        for seed in 0..5 {
            let mut world = World::new(hosts, seed);
            world.set(hosts - 1, Host::Frozen(u64::MAX));
            let took = take_over(&mut world, hosts - 1);
            assert!(took <= 3_000, "{took} ms, {hosts} hosts, seed {seed}");
        }
    }
}

/// Cut from the others, it reaches the store and the store it: the greater part decides.
#[test]
fn of_a_cluster_in_two_parts_the_greater_goes_on() {
    for seed in 0..10 {
        let mut world = World::new(5, seed);
        for (one, other) in [(0, 3), (0, 4), (1, 3), (1, 4), (2, 3), (2, 4)] {
            world.link(one, other, false);
            world.link(other, one, false);
        }
        let took = take_over(&mut world, 3);
        assert!(took <= 3_000, "{took} ms, seed {seed}");
        world.run(20_000);
        assert!((0..3).all(|at| world.runs(at)) && !world.runs(3) && !world.runs(4), "the dead have ended");
    }
}

#[test]
fn links_cut_between_pairs_cost_no_life() {
    for seed in 0..10 {
        let mut world = World::new(5, seed);
        let version = world.view().version;
        for (one, other) in [(0, 4), (1, 4), (0, 2)] {
            world.link(one, other, false);
            world.link(other, one, false);
        }
        world.run(60_000);
        assert_eq!((world.view().version, world.has_settled()), (version, true), "4 is heard by 2, 3 and itself");
    }
}

/// A host whose node has ended and was declared dead; it comes back, and none of these links of its works.
fn comes_back_without(world: &mut World, at: usize, links: impl IntoIterator<Item = usize>) {
    world.set(at, Host::Refuses);
    take_over(world, at);
    for other in links {
        world.link(at, other, false);
        world.link(other, at, false);
    }
    world.restart(at);
}

/// As one is whose certificate nobody trusts.
#[test]
fn a_newcomer_that_nobody_reaches_owns_nothing_and_ends_and_harms_nobody() {
    for hosts in 2..=5 {
        for seed in 0..5 {
            let mut world = World::new(hosts, seed);
            let others: Vec<_> = (0..hosts - 1).map(|at| world.incarnation(at)).collect();
            comes_back_without(&mut world, hosts - 1, 0..hosts - 1);
            let newcomer = world.incarnation(hosts - 1);
            for _ in 0..400 {
                world.run(50);
                assert_eq!(world.view().candidates().len(), hosts - 1, "{hosts} hosts, seed {seed}");
            }
            assert!(world.view().member(newcomer).is_some() && !world.runs(hosts - 1), "it was there, and has ended");
            assert!(others.iter().all(|one| world.view().alive(*one).is_some()), "{hosts} hosts, seed {seed}");
        }
    }
}

#[test]
fn a_newcomer_that_one_of_several_does_not_reach_becomes_active() {
    for hosts in 3..=5 {
        for seed in 0..5 {
            let mut world = World::new(hosts, seed);
            comes_back_without(&mut world, hosts - 1, [0]);
            world.run(6_000);
            let view = world.view();
            assert!(view.candidates().len() == hosts && world.has_settled(), "{hosts} hosts, seed {seed}: {view:?}");
        }
    }
}

/// Nobody is left whom a newcomer could be linked with: the table says so in time.
#[test]
fn a_newcomer_after_the_death_of_all_becomes_active() {
    for hosts in 2..=5 {
        for seed in 0..5 {
            let mut world = World::new(hosts, seed);
            (0..hosts).for_each(|at| world.set(at, Host::Off));
            world.run(1_000);
            world.restart(0);
            let took = take_over(&mut world, 1);
            world.run(1_500);
            assert_eq!(world.view().candidates().len(), 1, "{hosts} hosts, seed {seed}");
            assert!(took <= 8_000 * (hosts as u64 - 1), "{took} ms, {hosts} hosts, seed {seed}");
        }
    }
}

#[test]
fn a_node_that_froze_ends_when_it_goes_on_and_harms_nobody() {
    for seed in 0..10 {
        let mut world = World::new(3, seed);
        let until = world.now() + 30_000;
        world.set(0, Host::Frozen(until));
        world.run(29_000);
        assert!(world.view().alive(world.incarnation(0)).is_none());
        world.run(2_500);
        assert!(!world.runs(0) && world.runs(1) && world.runs(2), "seed {seed}");
        world.restart(0);
        world.run(5_000);
        assert!(world.has_settled() && world.view().candidates().len() == 3);
    }
}

#[test]
fn without_the_store_all_go_on_with_the_view_they_have() {
    let mut world = World::new(3, 3);
    (0..3).for_each(|at| world.reach_store(at, false));
    let version = world.view().version;
    world.run(60_000);
    world.heal();
    world.run(20_000);
    assert_eq!((world.view().version, world.has_settled()), (version, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens: one sequence of views, nobody dead who renews and is heard by more than half (the world checks
    /// both), and, when it is over, all that run are members, and nobody else.
    #[test]
    fn through_all_faults_the_living_stay_and_the_dead_go(seed in any::<u64>(), hosts in 2..=6usize, strikes in 1..60usize) {
        let mut world = World::new(hosts, seed);
        for _ in 0..strikes {
            strike(&mut world, hosts);
            let pause = world.random().random_range(10..3000);
            world.run(pause);
        }
        world.heal();
        for _ in 0..9 {
            world.run(10_000);
            (0..hosts).for_each(|at| world.restart(at));
        }
        world.run(10_000);
        prop_assert!(world.has_settled(), "{:?}", world.view());
        prop_assert_eq!(world.view().candidates().len(), hosts);
    }
}
