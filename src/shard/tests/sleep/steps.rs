//! Falling asleep, one task's turn after the other.

use std::task::Poll;

use super::*;

/// Lets every task that can go on have one turn.
async fn turn() {
    let mut is_over = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut is_over, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs it as a task like the actors': a test's own future has its turn only after many of theirs.
async fn as_a_task<T: Send + 'static>(steps: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(steps).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_at_any_step_of_falling_asleep_keeps_nobody_awake_and_nothing_is_left_of_it() {
    for step in 0..144 {
        as_a_task(async move {
            let shard = Running::of(|_| ()).await;
            let connected = tokio::time::Instant::now();
            let (leaver, other) = (shard.connect(), shard.connect());
            settled().await;
            // The user's timer fires in the same millisecond, just before or just after.
            let at = connected + IDLE + Duration::from_millis(step / 48) - Duration::from_millis(1);
            tokio::time::sleep_until(at).await;
            for _ in 0..step % 48 {
                turn().await;
            }
            shard.leave(&leaver);
            shard.asleep().await;
            assert!(other.is_at_rest(), "step {step}");
            assert_eq!(Arc::strong_count(&leaver), 1, "step {step}");
        })
        .await;
    }
}

/// One of its sessions would rest, the other one would not.
#[tokio::test(start_paused = true)]
async fn a_user_leaves_at_any_step_of_not_falling_asleep() {
    for step in 0..144 {
        as_a_task(async move {
            let shard = Running::of(|_| ()).await;
            let (resting, busy) = (shard.connect(), shard.connect());
            settled().await;
            shard.durable(0);
            settled().await;
            shard.acknowledge(&resting, 1);
            tokio::time::sleep(IDLE + Duration::from_millis(step / 48) - Duration::from_millis(1)).await;
            for _ in 0..step % 48 {
                turn().await;
            }
            let (done, sealed) = oneshot::channel();
            shard.shard.cast(Msg::Seal(vec![ShardId(0)], done)).unwrap();
            let sealed = tokio::time::timeout(Duration::from_secs(5), sealed).await;
            assert!(sealed.is_ok(), "step {step}: it has not left");
            settled().await;
            assert_eq!((resting.lost_count(), busy.lost_count()), (1, 1), "step {step}");
        })
        .await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Events, acknowledgements, new clients and clients that leave, at every step of falling asleep: no client misses
    /// an event, gets one twice or in another order, or learns of it.
    #[test]
    fn nothing_is_lost_however_it_meets_with_falling_asleep(
        steps in prop::collection::vec((0u64..3, 0usize..24, 0u8..7), 1..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (expected, seen, others, lost) = runtime.block_on(as_a_task(async move {
            let shard = Running::of(|config| config.sessions_max = 1000).await;
            let (client, stream) = (shard.connect(), shard.stream());
            let mut others = Vec::new();
            settled().await;
            let mut number = 0;
            for (pause, yields, what) in &steps {
                // The user's timer fires in the same millisecond, just before or just after.
                tokio::time::sleep(IDLE - Duration::from_millis(1) + Duration::from_millis(*pause)).await;
                for _ in 0..*yields {
                    turn().await;
                }
                match what {
                    0 | 1 => {
                        shard.transient(number);
                        number += 1;
                    }
                    2 | 3 => {
                        shard.durable(number);
                        number += 1;
                    }
                    4 => others.push((number, shard.connect())),
                    5 => others.pop().iter().for_each(|(_, other)| shard.leave(other)),
                    _ => shard.acknowledge(&stream, stream.numbers().len() as u64),
                }
                for _ in 0..*yields {
                    turn().await;
                }
                shard.acknowledge(&client, client.numbers().len() as u64);
                for (_, other) in &others {
                    shard.acknowledge(other, other.numbers().last().copied().unwrap_or(0));
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let expected: Vec<_> = (0..number).map(|number| (number, Outcome::Settled)).collect();
            let mut reports = shard.reports.take();
            reports.sort_by_key(|(number, _)| *number);
            assert_eq!(reports, expected);
            let ids: Vec<_> = (0..number).map(|number| number.to_string()).collect();
            let lost = client.lost_count() + stream.lost_count();
            let others: Vec<_> = others.iter().map(|(from, outlet)| (*from, outlet.ids(), outlet.lost_count())).collect();
            (ids, [client.ids(), stream.ids()], others, lost)
        }));
        for ids in &seen {
            // A transient one may overtake a durable one, which goes to the store first.
            let mut sorted = ids.clone();
            sorted.sort_by_key(|id| id.parse::<i64>().unwrap());
            prop_assert_eq!(&sorted, &expected);
        }
        for (from, ids, lost) in others {
            let missed = expected.iter().skip(from as usize).filter(|id| !ids.contains(id)).count();
            prop_assert_eq!((missed, lost), (0, 0));
        }
        prop_assert_eq!(lost, 0);
    }
}
