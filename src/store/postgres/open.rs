//! Opening logs, many users' in one query. What is kept of devices that were not seen before is a write like any other:
//! it has the fence. It stands beside the statements that give numbers, and waits for none of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{PostgresStore, ask, queries};
use crate::{
    event::unix_millis_now,
    ids::{DeviceId, UserId},
    store::{DEVICES_PER_USER_MAX, Error, Opened, Opening, row::number},
};

/// Devices that have no cursor of their own, with their users' shared ones. Each once, in the order of rows' locks.
type NewDevices<'a> = BTreeMap<(&'a UserId, &'a DeviceId), i64>;

/// Where a device of a user starts.
type Start = (String, String, i64);

/// A claim that was found, or a device that is kept now: its user, itself, its cursor, and whether its user has too many.
type Seen = (Option<i32>, Option<String>, Option<String>, Option<i64>, Option<bool>);

impl PostgresStore {
    pub(super) async fn open_logs(&self, opening: &[Opening]) -> Result<Vec<Opened>, Error> {
        let users: Vec<&str> = opening.iter().map(|one| &*one.user).collect();
        let devices: Vec<&str> = opening.iter().map(|one| one.device.as_deref().unwrap_or_default()).collect();
        let found: Vec<(i64, i64, Option<i64>, i64)> = ask!(self.reads, |connection| {
            sqlx::query_as(queries::OPEN).bind(&users).bind(&devices).fetch_all(connection)
        })?;
        let mut new = NewDevices::new();
        for (Opening { user, device }, (_, shared, own, _)) in opening.iter().zip(&found) {
            if let (Some(device), None) = (device, own) {
                new.insert((user, device), *shared);
            }
        }
        let starts = self.see(new).await?;
        let starts: HashMap<(&str, &str), i64> =
            starts.iter().map(|(user, device, cursor)| ((&**user, &**device), *cursor)).collect();
        let opened = |(Opening { user, device }, (head, shared, own, highest)): (&Opening, (_, _, Option<i64>, _))| {
            let start = |device: &DeviceId| starts.get(&(&**user, &**device)).copied();
            let cursor = own.or_else(|| start(device.as_ref()?)).unwrap_or(shared);
            Opened { head: number(head), cursor: number(cursor), acknowledged: number(highest) }
        };
        Ok(opening.iter().zip(found).map(opened).collect())
    }

    /// A device that was seen keeps the cursor it started with, even when the shared one moves on. An attempt that
    /// happens after its retry changes no cursor, so its epochs need not be raised.
    ///
    /// Nothing is kept for users whose shards were given away meanwhile: they have stopped here, and nobody reads the
    /// answer.
    async fn see(&self, mut new: NewDevices<'_>) -> Result<Vec<Start>, Error> {
        new.retain(|(user, _), _| self.holds(user));
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let fence = self.fence_held(new.keys().map(|(user, _)| *user)).await?;
        let seen: Vec<Seen> = ask!(self.reads, |connection| {
            sqlx::query_as(queries::NEW_DEVICES)
                .bind(fence.shards())
                .bind(&fence.epochs)
                .bind(&self.owner)
                .bind(fence.shard_of())
                .bind(new.keys().map(|(user, _)| &***user).collect::<Vec<_>>())
                .bind(new.keys().map(|(_, device)| &***device).collect::<Vec<_>>())
                .bind(new.values().copied().collect::<Vec<_>>())
                .bind(unix_millis_now())
                .bind(DEVICES_PER_USER_MAX)
                .fetch_all(connection)
        })?;
        self.check_fence(&fence, seen.iter().filter_map(|row| row.0)).await?;
        let (mut starts, mut have_many) = (Vec::with_capacity(new.len()), BTreeSet::new());
        for (_, user, device, cursor, has_many) in seen {
            let (Some(user), Some(device), Some(cursor)) = (user, device, cursor) else { continue };
            if has_many == Some(true) {
                have_many.insert(user.clone());
            }
            starts.push((user, device, cursor));
        }
        for (user, _) in new.keys().filter(|(user, _)| have_many.remove(&***user)) {
            self.forget_devices(user).await?;
        }
        Ok(starts)
    }

    async fn forget_devices(&self, user: &UserId) -> Result<(), Error> {
        let fence = self.fence_held([user].into_iter()).await?;
        let found: Vec<i32> = ask!(self.reads, |connection| {
            sqlx::query_scalar(queries::FORGET_DEVICES)
                .bind(fence.shards())
                .bind(&fence.epochs)
                .bind(&self.owner)
                .bind(&**user)
                .bind(DEVICES_PER_USER_MAX)
                .fetch_all(connection)
        })?;
        self.check_fence(&fence, found).await
    }
}
