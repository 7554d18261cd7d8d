use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SHARDS: u16 = 1024;

fn candidates(nodes: &BTreeMap<String, u8>) -> Vec<Candidate<'_>> {
    nodes.iter().map(|(id, weight)| Candidate { id, weight: NonZeroU8::new(*weight).unwrap() }).collect()
}

fn owners(nodes: &BTreeMap<String, u8>) -> Vec<&str> {
    let candidates = candidates(nodes);
    shards(&candidates, SHARDS).into_iter().map(|at| candidates[at].id).collect()
}

fn nodes(ids: impl IntoIterator<Item = usize>, name: &str) -> BTreeMap<String, u8> {
    ids.into_iter().map(|n| (format!("{name}{n}"), 1)).collect()
}

/// How many have another owner, without those that `node` has in either.
fn moved_between_others(before: &[&str], after: &[&str], node: &str) -> usize {
    before.iter().zip(after).filter(|(from, to)| from != to && **from != node && **to != node).count()
}

fn of(owners: &[&str], node: &str) -> usize {
    owners.iter().filter(|owner| **owner == node).count()
}

/// True in every version of the program. From an implementation of its own, in Python, on XXH3's reference.
#[test]
fn an_assignment_never_changes() {
    let named = |ids: &[(&'static str, u8)]| -> Vec<Candidate<'static>> {
        ids.iter().map(|(id, weight)| Candidate { id, weight: NonZeroU8::new(*weight).unwrap() }).collect()
    };
    let three = named(&[("notifier-0", 1), ("notifier-1", 1), ("notifier-2", 1)]);
    let weighted = named(&[("a", 1), ("b", 2), ("c", 5), ("用户", 1)]);
    let digest = |owners: Vec<usize>| {
        assert!(!owners.is_empty());
        format!("{:016x}", xxh3_64(&owners.into_iter().map(|owner| owner as u8).collect::<Vec<_>>()))
    };
    assert_eq!(shards(&three, 1024)[..16], [2, 1, 2, 2, 1, 0, 1, 1, 2, 1, 1, 0, 2, 2, 2, 2]);
    assert_eq!(partitions(&three, "notifier.events.v1", 12), [0, 0, 1, 0, 0, 1, 0, 2, 2, 1, 2, 2]);
    assert_eq!(shards(&weighted, 16), [3, 1, 2, 1, 2, 2, 1, 2, 2, 2, 0, 2, 1, 2, 2, 2]);
    assert_eq!(digest(shards(&three, 1024)), "a3184427e93df27e");
    assert_eq!(digest(shards(&weighted, 1024)), "63b13f842c11b19b");
    let ids: Vec<String> = (0..100).map(|n| format!("node-{n}")).collect();
    let hundred: Vec<_> = ids.iter().map(|id| Candidate { id, weight: NonZeroU8::MIN }).collect();
    assert_eq!(digest(shards(&hundred, 1024)), "2d853692f4eeb9b2");
    assert_eq!(digest(partitions(&hundred, "t", 500)), "2409f7ff754d88e4");
}

#[test]
fn without_a_node_nobody_owns_and_alone_one_owns_all() {
    assert!(shards(&[], 1024).is_empty());
    let alone = [Candidate { id: "a", weight: NonZeroU8::MAX }];
    assert_eq!(shards(&alone, 1024), [0; 1024]);
    assert!(partitions(&alone, "t", 0).is_empty());
}

#[test]
fn the_order_of_nodes_does_not_matter() {
    let nodes = nodes(0..7, "n");
    let mut turned = candidates(&nodes);
    turned.reverse();
    let reversed: Vec<_> = shards(&turned, SHARDS).into_iter().map(|at| turned[at].id).collect();
    assert_eq!(reversed, owners(&nodes));
}

/// Fewer partitions than nodes: each is somebody's, and nobody has two.
#[test]
fn few_partitions_go_to_different_nodes() {
    let nodes = nodes(0..100, "n");
    for count in 0..=80 {
        let mut owners = partitions(&candidates(&nodes), "t", count);
        owners.sort_unstable();
        owners.dedup();
        assert_eq!(owners.len(), count as usize);
    }
}

#[test]
fn four_times_the_weight_takes_four_times_as_much() {
    let all: BTreeMap<String, u8> = (0..20).map(|n| (format!("n{n}"), if n < 10 { 1 } else { 4 })).collect();
    let owners = owners(&all);
    let light: usize = all.iter().filter(|(_, weight)| **weight == 1).map(|(node, _)| of(&owners, node)).sum();
    assert!((170..=240).contains(&light), "{light} of 1024, a fifth expected");
}

/// One node after the other, up to a hundred: what joins moves what leaves would.
#[test]
fn a_join_moves_little_between_others() {
    let mut before: Option<Vec<String>> = None;
    for count in 1..=100 {
        let nodes = nodes(0..count, "notifier-");
        let after = owners(&nodes);
        if let Some(before) = before {
            let before: Vec<&str> = before.iter().map(String::as_str).collect();
            let node = format!("notifier-{}", count - 1);
            let moved = moved_between_others(&before, &after, &node);
            assert!(moved * 50 <= usize::from(SHARDS), "{moved} moved when {count} were there");
            // Whoever joins cannot do without these.
            println!("{count} nodes: {} shards move to the last one, {moved} between others", of(&after, &node));
        }
        before = Some(after.into_iter().map(str::to_owned).collect());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The two promises of the design.
    #[test]
    fn loads_are_bounded_and_one_that_leaves_moves_its_own(count in 2..=100usize, name in "[a-z]{1,12}", gone in any::<prop::sample::Index>()) {
        let all = nodes(0..count, &name);
        let before = owners(&all);
        let bound = (usize::from(SHARDS) * 5).div_ceil(count * 4);
        for node in all.keys() {
            prop_assert!(of(&before, node) <= bound, "{} of {bound}", of(&before, node));
        }
        let gone = all.keys().nth(gone.index(count)).unwrap();
        let mut rest = all.clone();
        rest.remove(gone);
        let after = owners(&rest);
        let others = before.len() - of(&before, gone);
        let moved = moved_between_others(&before, &after, gone);
        prop_assert!(moved * 50 <= others, "{moved} of {others} moved between others");
        // Whoever comes back under its name gets back what it had.
        prop_assert_eq!(owners(&all), before);
    }

    /// The same bound for each one's share, where shares differ.
    #[test]
    fn loads_are_bounded_by_weight(weights in prop::collection::vec(1..=8u8, 1..=40)) {
        let all: BTreeMap<String, u8> = weights.iter().enumerate().map(|(n, weight)| (format!("n{n}"), *weight)).collect();
        let owners = owners(&all);
        let sum: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
        for (node, weight) in &all {
            let bound = (usize::from(SHARDS) * usize::from(*weight) * 5).div_ceil(sum * 4);
            prop_assert!(of(&owners, node) <= bound);
        }
    }
}
