//! `keyvouch events`

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::ClientArgs;
use super::output::{Output, table};
use crate::grpc::pb;

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// List only changes of the key with this id. The key can be deleted already. Empty lists changes of all keys.
    #[arg(long, default_value = "", value_name = "ID")]
    key: String,
    /// List only changes of keys of this owner. Empty lists changes of all owners.
    #[arg(long, default_value = "")]
    owner: String,
    /// Maximum number of events in the page. Values above 1000 are lowered to 1000.
    #[arg(long, default_value_t = 100)]
    page_size: i32,
    /// Token of the page, as printed after the previous page. Empty lists the first page.
    #[arg(long, default_value = "")]
    page_token: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(arguments: EventsArgs, output: &Output) -> Result<ExitCode> {
    let request = pb::ListEventsRequest {
        key_id: arguments.key,
        owner_id: arguments.owner,
        page_size: arguments.page_size,
        page_token: arguments.page_token,
    };
    let response =
        arguments.client.key_store().await?.list_events(arguments.client.call(request)).await?.into_inner();
    output.message(&response, describe)?;
    Ok(ExitCode::SUCCESS)
}

fn describe(page: &pb::ListEventsResponse) -> String {
    if page.events.is_empty() && page.unreadable_revisions.is_empty() {
        return "no events".to_owned();
    }
    let rows = page.events.iter().map(|event| {
        let kind = event.kind().as_str_name().trim_start_matches("EVENT_KIND_").to_lowercase();
        let what = match event.changed_fields.as_slice() {
            [] => kind,
            fields => format!("{kind}: {}", fields.join(" ")),
        };
        let at = event.event_time.map(|at| at.to_string()).unwrap_or_default();
        [
            at,
            what,
            event.key_id.clone(),
            event.owner_id.clone(),
            event.actor.clone(),
            event.request_id.clone(),
        ]
    });
    let mut text = table(["TIME", "CHANGE", "KEY", "OWNER", "BY", "REQUEST"], rows);
    for revision in &page.unreadable_revisions {
        text.push_str(&format!("\nThe stored event with revision {revision} can't be read."));
    }
    if !page.next_page_token.is_empty() {
        text.push_str(&format!("\n\nNext page: --page-token {}", page.next_page_token));
    }
    text
}
