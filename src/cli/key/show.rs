//! Human-readable output of keys.

use crate::cli::output::{pairs, table};
use crate::grpc::pb;

/// Formats all fields of a key.
pub(super) fn key(key: Option<&pb::Key>) -> String {
    let key = key.cloned().unwrap_or_default();
    let metadata: Vec<_> = key.metadata.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs([
        ("id", key.id.clone()),
        ("state", state(&key)),
        ("name", key.name.clone()),
        ("owner", key.owner_id.clone()),
        ("description", key.description.clone()),
        ("prefix", key.prefix.clone()),
        ("scopes", key.scopes.join(" ")),
        ("metadata", metadata.join("\n")),
        ("created", time(key.create_time)),
        ("updated", time(key.update_time)),
        ("expires", key.expire_time.map_or_else(|| "never".to_owned(), |at| at.to_string())),
        ("revoked", time(key.revoke_time)),
        ("reason", key.revoke_reason.clone()),
        ("last used", time(key.last_used_time)),
        ("rotated from", key.rotated_from.clone()),
        ("replaced by", key.replaced_by.clone()),
        ("revision", key.revision.to_string()),
    ])
}

/// Formats a new key with its secret.
pub(super) fn issued(issued: Option<&pb::Key>, secret: &str) -> String {
    format!(
        "{}\n\nsecret: {secret}\nStore it now: it is not stored by the server and can't be shown again.",
        key(issued)
    )
}

/// Formats a page of keys.
pub(super) fn page(page: &pb::ListKeysResponse) -> String {
    if page.keys.is_empty() && page.unreadable_ids.is_empty() {
        return "no keys".to_owned();
    }
    let rows = page.keys.iter().map(|key| {
        let expires = key.expire_time.map_or_else(|| "never".to_owned(), |at| at.to_string());
        [key.id.clone(), state(key), key.name.clone(), key.owner_id.clone(), key.scopes.join(" "), expires]
    });
    let mut text = table(["ID", "STATE", "NAME", "OWNER", "SCOPES", "EXPIRES"], rows);
    for id in &page.unreadable_ids {
        text.push_str(&format!("\n{}", unreadable(id)));
    }
    if !page.next_page_token.is_empty() {
        text.push_str(&format!("\n\nNext page: --page-token {}", page.next_page_token));
    }
    text
}

/// Formats an item of a stream as one line.
pub(super) fn streamed(response: &pb::StreamKeysResponse) -> String {
    let Some(key) = response.key.clone() else { return unreadable(&response.unreadable_id) };
    [key.id.clone(), state(&key), key.owner_id, key.name].join("\t")
}

fn unreadable(id: &str) -> String {
    format!("{id}\tunreadable: the stored record is invalid; it can be revoked and deleted")
}

fn state(key: &pb::Key) -> String {
    key.state().as_str_name().trim_start_matches("KEY_STATE_").to_lowercase()
}

fn time(time: Option<prost_types::Timestamp>) -> String {
    time.map(|time| time.to_string()).unwrap_or_default()
}
