//! Rows that a database refuses for what is in them. One spoils the whole statement: the group is split in halves
//! until it stands alone.

use std::{collections::VecDeque, future::Future};

use super::{Error, row::Outcome};

/// What one attempt came to, when the database answered.
pub(super) enum Attempt<T> {
    /// One outcome for each row.
    Done(Vec<T>),
    /// Something in these rows is not accepted.
    Poison(String),
}

/// Writes `rows` with as few attempts as it takes; the answer has one outcome for each, in order.
///
/// What was written before an attempt failed stays: whoever tries again finds it as duplicates.
pub(super) async fn isolate<'r, R, T, F>(
    rows: &'r [R],
    attempt: impl Fn(&'r [R]) -> F,
    name: impl Fn(&R) -> String,
) -> Result<Vec<T>, Error>
where
    T: Outcome,
    F: Future<Output = Result<Attempt<T>, Error>>,
{
    let mut outcomes = Vec::with_capacity(rows.len());
    let mut left = VecDeque::from([rows]);
    while let Some(part) = left.pop_front() {
        if part.is_empty() {
            continue;
        }
        match attempt(part).await? {
            Attempt::Done(done) => outcomes.extend(done),
            Attempt::Poison(why) if part.len() == 1 => {
                tracing::error!(event = name(&part[0]), why, "the store refuses this event for what is in it");
                outcomes.push(T::REFUSED);
            }
            Attempt::Poison(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                left.push_front(second);
                left.push_front(first);
            }
        }
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::store::Appended;

    #[tokio::test]
    async fn poison_is_found_alone_and_all_others_are_written_in_order() {
        let rows: Vec<u64> = (1..=500).collect();
        let (attempts, last) = (Cell::new(0), Cell::new(0));
        let attempt = async |part: &[u64]| {
            attempts.set(attempts.get() + 1);
            if part.iter().any(|row| [7, 400].contains(row)) {
                return Ok(Attempt::Poison("bad".into()));
            }
            assert!(part[0] > last.replace(part[part.len() - 1]), "in order");
            Ok(Attempt::Done(part.iter().map(|row| Appended::Stored(*row)).collect()))
        };
        let outcomes = isolate(&rows, attempt, u64::to_string).await.unwrap();
        let expected = |row: &u64| if [7, 400].contains(row) { Appended::Refused } else { Appended::Stored(*row) };
        assert_eq!(outcomes, rows.iter().map(expected).collect::<Vec<_>>());
        assert!(attempts.get() <= 40, "{}", attempts.get());
    }
}
