//! The encoding of entries: format, revision and nonce of the applied revision, revision, record as JSON.

use crate::domain::{ApiKey, ChangeId, KeyHash, Revision};
use crate::repository::{Result, StoredKey};

/// The format that this release writes. Entries of other formats are misses.
const FORMAT: &str = "2";

/// Encodes a record and its applied revision.
pub(super) fn encode(applied_revision: ChangeId, key: &ApiKey) -> Result<String> {
    let document = StoredKey::new(key).to_json()?;
    Ok(format!(
        "{FORMAT} {} {} {} {document}",
        applied_revision.revision, applied_revision.nonce, key.revision
    ))
}

/// Decodes the value that was stored for `hash`. `None` if it has another format, is damaged, or is the record of
/// another key.
pub(super) fn decode(stored: &str, hash: &KeyHash) -> Option<(ChangeId, ApiKey)> {
    let mut fields = stored.splitn(5, ' ');
    if fields.next()? != FORMAT {
        return None;
    }
    let applied_revision =
        ChangeId::new(Revision::new(fields.next()?.parse().ok()?), fields.next()?.parse().ok()?);
    let revision = Revision::new(fields.next()?.parse().ok()?);
    let key = StoredKey::from_json(fields.next()?.as_bytes()).ok()?.into_key_at(revision).ok()?;
    (key.hash == *hash).then_some((applied_revision, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::sample_key;

    #[test]
    fn an_entry_makes_the_round_trip_and_what_is_odd_is_a_miss() {
        let key = ApiKey { revision: Revision::new(3), ..sample_key() };
        let applied_revision = ChangeId::new(Revision::new(7), 70);
        let stored = encode(applied_revision, &key).unwrap();
        assert_eq!(decode(&stored, &key.hash), Some((applied_revision, key.clone())));
        assert_eq!(decode(&stored, &KeyHash::of("another")), None);
        for odd in [
            "",
            "2",
            "2 2",
            "3 7 1 3 {}",
            "2 7 1 3 {}",
            "2 x 1 3 {}",
            "2 7 x 3 {}",
            &stored.replacen('2', "1", 1),
        ] {
            assert_eq!(decode(odd, &key.hash), None, "{odd}");
        }
    }
}
