//! Probes, polls, counters and solitude, each alone.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::{
    super::{
        probe::{self, PROBE_EVERY, Prober},
        solitude::Solitude,
        stale::Staleness,
        view::View,
        votes::{self, Poll},
        watch::{Question, Watch},
    },
    after, incarnation, living, view,
};
use crate::ids::Incarnation;

const SECOND: Duration = Duration::from_secs(1);

fn some(numbers: impl IntoIterator<Item = u64>) -> HashSet<Incarnation> {
    numbers.into_iter().map(incarnation).collect()
}

#[test]
fn each_is_probed_by_as_many_as_it_probes() {
    for members in 1..=30 {
        let view = view(members);
        let mut probed: Vec<Incarnation> = Vec::new();
        for me in living(&view) {
            let targets = probe::targets(&view, me);
            assert!(!targets.contains(&me));
            assert_eq!(targets.iter().collect::<HashSet<_>>().len(), targets.len(), "each once");
            probed.extend(targets);
        }
        let expected = 3.min(members as usize - 1);
        for one in living(&view) {
            assert_eq!(probed.iter().filter(|target| **target == one).count(), expected, "of {members}");
        }
    }
}

#[test]
fn who_has_a_vote_against_it_is_probed_by_all() {
    let view = view(20);
    let suspect = incarnation(7);
    let view = after(&view, view.vote(incarnation(3), suspect).unwrap().unwrap());
    for me in living(&view).into_iter().filter(|me| *me != suspect) {
        let targets = probe::targets(&view, me);
        assert_eq!(targets.iter().filter(|target| **target == suspect).count(), 1);
    }
    assert!(!probe::targets(&view, suspect).contains(&suspect));
}

#[test]
fn three_probes_without_an_answer_are_silence() {
    let (mut prober, mut now, targets) = (Prober::default(), Instant::now(), [incarnation(1), incarnation(2)]);
    for misses in 0..=3 {
        assert!(!prober.is_silent(targets[0]) && !prober.is_silent(targets[1]), "{misses}");
        prober.turn(now, &targets);
        prober.heard(targets[1]);
        now += PROBE_EVERY;
    }
    assert!(prober.is_silent(targets[0]) && !prober.is_silent(targets[1]));
    assert!(!prober.is_heard(targets[0]) && prober.is_heard(targets[1]));
    prober.heard(targets[0]);
    assert!(!prober.is_silent(targets[0]), "an answer ends it at once");
}

#[test]
fn a_late_turn_forgets_what_was_missed() {
    let (mut prober, mut now, target) = (Prober::default(), Instant::now(), [incarnation(1)]);
    for _ in 0..3 {
        prober.turn(now, &target);
        now += PROBE_EVERY;
    }
    now += PROBE_EVERY / 2 + Duration::from_millis(1);
    prober.turn(now, &target);
    assert!(!prober.is_silent(target[0]), "this node stood still");
    for _ in 0..2 {
        now += PROBE_EVERY;
        prober.turn(now, &target);
        assert!(!prober.is_silent(target[0]));
    }
    now += PROBE_EVERY;
    prober.turn(now, &target);
    assert!(prober.is_silent(target[0]), "three more");
}

#[test]
fn more_than_half_or_half_with_the_oldest_may_vote() {
    let view = view(5);
    assert!(!votes::may_vote(&view, &some([0, 1])) && votes::may_vote(&view, &some([2, 3, 4])));
    let view = after(&view, view.leave(incarnation(0)).unwrap());
    assert!(votes::may_vote(&view, &some([1, 4])), "half, with the oldest");
    assert!(!votes::may_vote(&view, &some([2, 3])), "half, without");
    assert!(!votes::may_vote(&view, &some([0, 1])), "the dead do not count");
    let view = after(&view, view.leave(incarnation(1)).unwrap());
    assert!(votes::may_vote(&view, &some([2, 3])) && !votes::may_vote(&view, &some([2])));
    let view = after(&view, view.leave(incarnation(2)).unwrap());
    assert!(votes::may_vote(&view, &some([3])) && votes::may_vote(&view, &some([4])), "of two, each may");
}

#[test]
fn votes_needed_are_two_where_there_are_two_voters() {
    let needed = |members| votes::votes_needed(&view(members));
    assert_eq!([needed(2), needed(3), needed(4), needed(100)], [1, 2, 2, 2]);
}

#[test]
fn a_poll_counts_only_those_that_say_that_they_do_not_hear() {
    let (view, now) = (view(5), Instant::now());
    let mut poll = Poll::new(incarnation(0), now);
    poll.answer(incarnation(1), false);
    poll.answer(incarnation(2), true);
    assert!(!poll.is_won(&view), "two of five");
    poll.answer(incarnation(3), false);
    assert!(poll.is_won(&view));
    poll.answer(incarnation(3), true);
    assert!(!poll.is_won(&view), "it hears after all");
    assert!(!poll.is_over(now + Duration::from_millis(899)) && poll.is_over(now + Duration::from_millis(900)));
}

fn counters(moving: &[(u64, u64)]) -> Vec<(Incarnation, u64)> {
    moving.iter().map(|(number, counter)| (incarnation(*number), *counter)).collect()
}

#[test]
fn whoever_stands_still_for_five_renewals_is_stale() {
    let (view, mut staleness, mut now) = (view(3), Staleness::default(), Instant::now());
    let me = incarnation(0);
    for renewal in 1..=4 {
        staleness.renewed(now, &counters(&[(0, renewal), (1, 7), (2, renewal)]));
        assert_eq!(staleness.stale(&view, me), None);
        now += SECOND;
    }
    staleness.renewed(now, &counters(&[(0, 5), (1, 7), (2, 5)]));
    assert_eq!(staleness.stale(&view, me), Some((incarnation(1), 7)));
    now += SECOND;
    staleness.renewed(now, &counters(&[(0, 6), (1, 8), (2, 5)]));
    assert_eq!(staleness.stale(&view, me), None, "it has moved");
}

#[test]
fn stale_members_die_one_per_five_renewals() {
    let (view, mut staleness, mut now) = (view(4), Staleness::default(), Instant::now());
    let (me, mut declared) = (incarnation(0), Vec::new());
    for renewal in 1..=16 {
        staleness.renewed(now, &counters(&[(0, renewal), (1, 7), (2, 7), (3, 7)]));
        if staleness.stale(&view, me).is_some() {
            staleness.declared();
            declared.push(renewal);
        }
        now += SECOND;
    }
    assert_eq!(declared, [5, 10, 15]);
}

#[test]
fn renewals_that_follow_each_other_at_once_count_as_one() {
    let (view, mut staleness, start) = (view(2), Staleness::default(), Instant::now());
    for renewal in 0..20 {
        staleness.renewed(start + Duration::from_millis(100 * renewal), &counters(&[(0, renewal), (1, 7)]));
    }
    assert_eq!(staleness.stale(&view, incarnation(0)), None, "three seconds at the most");
}

#[test]
fn solitude_lasts_ten_seconds_and_never_ends_one_that_is_alone() {
    let start = Instant::now();
    let mut solitude = Solitude::new(start);
    solitude.contact(start + SECOND);
    assert!(!solitude.is_over(start + 10 * SECOND, 3) && solitude.is_over(start + 11 * SECOND, 3));
    assert!(!solitude.is_over(start + 100 * SECOND, 1));
}

/// The questions of a member that hears nobody, until it has asked about a silent one.
fn ask(watch: &mut Watch, view: &View, now: &mut Instant) -> Vec<(Incarnation, u64)> {
    let mut asked = Vec::new();
    for _ in 0..4 {
        let questions = watch.turn(*now, view);
        asked = questions
            .into_iter()
            .filter_map(|question| match question {
                Question::Hears { whom, about, poll } if about == incarnation(1) => Some((whom, poll)),
                _ => None,
            })
            .collect();
        *now += PROBE_EVERY;
    }
    asked
}

#[test]
fn a_silent_member_is_asked_about_before_it_is_voted_against() {
    let (view, mut now) = (view(4), Instant::now());
    let mut watch = Watch::new(incarnation(0));
    let asked = ask(&mut watch, &view, &mut now);
    assert_eq!(asked.iter().map(|(whom, _)| *whom).collect::<HashSet<_>>(), some([2, 3]));
    assert_eq!(watch.wants(now, &view), None, "one of four");
    let poll = asked[0].1;
    watch.told(incarnation(2), incarnation(1), poll + 100, false);
    watch.told(incarnation(3), incarnation(1), poll, true);
    assert_eq!(watch.wants(now, &view), None, "an answer to another question, and one that hears");
    watch.told(incarnation(2), incarnation(1), poll, false);
    let vote = watch.wants(now, &view).expect("two of four, with the oldest");
    assert_eq!(Some(vote), view.vote(incarnation(0), incarnation(1)).unwrap());
    assert_eq!(watch.wants(now + SECOND, &view), None, "too old to act upon");
    watch.heard(incarnation(1));
    assert_eq!(watch.wants(now, &view), None);
}

#[test]
fn a_member_that_stood_still_votes_against_nobody() {
    let (view, mut now) = (view(3), Instant::now());
    let mut watch = Watch::new(incarnation(0));
    let poll = ask(&mut watch, &view, &mut now)[0].1;
    now += SECOND;
    let _ = watch.turn(now, &view);
    watch.told(incarnation(2), incarnation(1), poll, false);
    assert_eq!(watch.wants(now, &view), None);
}

#[test]
fn whoever_declares_a_death_the_next_stale_one_has_its_time() {
    let (view, mut now) = (view(4), Instant::now());
    let mut watch = Watch::new(incarnation(0));
    for renewal in 1..=5 {
        watch.renewed(now, &counters(&[(0, renewal), (1, 7), (2, 7), (3, renewal)]));
        now += SECOND;
    }
    let change = watch.wants(now, &view).unwrap();
    assert_eq!(change.unmoved, Some((incarnation(1), 7)));
    let view = after(&view, view.declare_stale(incarnation(3), incarnation(2), 7).unwrap());
    assert_eq!(watch.wants(now, &view), None, "another one was faster");
    for renewal in 6..=10 {
        assert_eq!(watch.wants(now, &view), None);
        watch.renewed(now, &counters(&[(0, renewal), (1, 7), (3, renewal)]));
        now += SECOND;
    }
    assert!(watch.wants(now, &view).is_some());
}
