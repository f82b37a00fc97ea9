//! The epoch of the backend to which the entries in Redis belong, on which all replicas agree.

use std::sync::{Arc, PoisonError, RwLockWriteGuard};

use data_encoding::HEXLOWER;
use fred::interfaces::LuaInterface as _;

use super::RedisCache;

/// Sets the epoch to `ARGV[2]` if it is `ARGV[1]` or unset, and returns the resulting epoch. `KEYS`: epoch.
const MOVE_EPOCH: &str = "
local epoch = redis.call('GET', KEYS[1])
if not epoch or epoch == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  return ARGV[2]
end
return epoch";

/// The epoch of the backend to which the entries belong.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    /// `None` while it is unknown. Nothing is read or written then.
    pub(super) current: Option<Arc<str>>,
    /// The epoch that this replica is leaving.
    left: Option<Arc<str>>,
}

impl RedisCache {
    /// Reads the current epoch from Redis. `is_over` leaves the known epoch first, because its entries may
    /// belong to an epoch that was lost. Returns whether another replica left the epoch, which means that the
    /// backend was rewound.
    ///
    /// All replicas that leave an epoch get the same next one, which the first of them names.
    pub async fn follow_epoch(&self, is_over: bool) -> bool {
        if is_over {
            // Leave before waiting for other reads of the epoch, so that no entry of it is read any more.
            let mut epoch = self.lock_epoch();
            if let Some(current) = epoch.current.take() {
                epoch.left = Some(current);
            }
        }
        let _one_at_a_time = self.following.lock().await;
        let Some(name) = self.namespaced("epoch") else { return false };
        let (old, is_left) = {
            let epoch = self.lock_epoch();
            let old = epoch.left.clone().or_else(|| epoch.current.clone());
            (old.unwrap_or_else(|| Arc::from("")), epoch.left.is_some())
        };
        // If the epoch is missing in Redis, it was flushed or evicted, with or without the entries. This
        // replica writes its own again.
        let next = if is_left || old.is_empty() {
            let mut random = [0; 8];
            if self.entropy.fill(&mut random).is_err() {
                return false;
            }
            HEXLOWER.encode(&random)
        } else {
            old.to_string()
        };
        let arguments = vec![old.to_string(), next];
        let answer: Result<String, _> = self.client.eval(MOVE_EPOCH, vec![name], arguments).await;
        let Some(now) = self.checked(answer) else { return false };
        let mut epoch = self.lock_epoch();
        if epoch.left.is_some() && !is_left {
            // The epoch was left meanwhile. The call that left it reads the next one.
            return false;
        }
        *epoch = Epoch { current: Some(now.as_str().into()), left: None };
        !is_left && !old.is_empty() && *now != *old
    }

    pub(super) fn epoch(&self) -> Option<Arc<str>> {
        self.epoch.read().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    fn lock_epoch(&self) -> RwLockWriteGuard<'_, Epoch> {
        self.epoch.write().unwrap_or_else(PoisonError::into_inner)
    }
}
