//! `keyvouch key`

mod show;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use prost_types::{Duration, FieldMask, Timestamp};

use super::output::{Output, ReaderGone};
use super::{ClientArgs, arguments};
use crate::grpc::pb;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Create a key. Its secret is printed only once and can't be retrieved later.
    Create(CreateArgs),
    /// Show a key.
    Get(IdArgs),
    /// List keys, newest first.
    List(ListArgs),
    /// Update attributes of a key.
    Update(UpdateArgs),
    /// Replace a key with a successor that has a new secret.
    Rotate(RotateArgs),
    /// Revoke a key. A revocation is final.
    Revoke(RevokeArgs),
    /// Delete a key. Prefer `revoke`, which keeps the record.
    Delete(IdArgs),
}

#[derive(Debug, Args)]
pub(super) struct IdArgs {
    /// The key's id.
    id: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct ExpiryArgs {
    /// Lifetime, for example 30d, 12h or 90s. By default, a new key never expires. A successor has the lifetime
    /// of the replaced key by default, counted from now.
    #[arg(long, value_parser = arguments::duration)]
    ttl: Option<Duration>,
    /// Time of expiry, for example 2030-01-31T12:00:00Z. An alternative to --ttl.
    #[arg(long, value_parser = arguments::time, value_name = "TIME")]
    expires: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Display name.
    #[arg(long)]
    name: String,
    /// Owner on whose behalf the key acts.
    #[arg(long)]
    owner: String,
    /// Purpose of the key.
    #[arg(long, default_value = "")]
    description: String,
    /// Scope of the key. Repeatable.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Metadata of the key. Repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = arguments::pair)]
    metadata: Vec<(String, String)>,
    /// Prefix of the key string: one of the server's `keys.prefix`. Defaults to the first of them.
    #[arg(long)]
    prefix: Option<String>,
    /// Id of this request and its retries. With it, a retry never creates a second key.
    #[arg(long, default_value = "", value_name = "ID")]
    request_id: String,
    #[command(flatten)]
    expiry: ExpiryArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    Active,
    Revoked,
    Expired,
}

impl From<State> for i32 {
    fn from(state: State) -> Self {
        let state = match state {
            State::Active => pb::KeyState::Active,
            State::Revoked => pb::KeyState::Revoked,
            State::Expired => pb::KeyState::Expired,
        };
        state.into()
    }
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// List only keys of this owner. Empty lists the keys of all owners.
    #[arg(long, default_value = "")]
    owner: String,
    /// List only keys in this state. Repeatable.
    #[arg(long = "state", value_name = "STATE", value_enum)]
    states: Vec<State>,
    /// List only keys with this prefix.
    #[arg(long)]
    prefix: Option<String>,
    /// Maximum number of keys in the page. Values above 1000 are lowered to 1000.
    #[arg(long, default_value_t = 100)]
    page_size: i32,
    /// Token of the page, as printed after the previous page. Empty lists the first page.
    #[arg(long, default_value = "")]
    page_token: String,
    /// List the keys of all pages. Each is printed as it arrives.
    #[arg(long, conflicts_with_all = ["page_size", "page_token"])]
    all: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// The key's id.
    id: String,
    /// New display name.
    #[arg(long)]
    name: Option<String>,
    /// New description.
    #[arg(long)]
    description: Option<String>,
    /// New scope. Replaces all scopes of the key. Repeatable.
    #[arg(long = "scope", value_name = "SCOPE", conflicts_with = "no_scopes")]
    scopes: Vec<String>,
    /// Remove all scopes.
    #[arg(long)]
    no_scopes: bool,
    /// New metadata. Replaces all metadata of the key. Repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = arguments::pair, conflicts_with = "no_metadata")]
    metadata: Vec<(String, String)>,
    /// Remove all metadata.
    #[arg(long)]
    no_metadata: bool,
    /// New time of expiry, for example 2030-01-31T12:00:00Z.
    #[arg(long, value_parser = arguments::time, value_name = "TIME", conflicts_with = "never_expires")]
    expires: Option<Timestamp>,
    /// Remove the expiry.
    #[arg(long)]
    never_expires: bool,
    /// Update the key only if it has this revision.
    #[arg(long)]
    expected_revision: Option<i64>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// The key's id.
    id: String,
    /// Time for which the replaced key stays valid, up to 30d. 0s revokes it immediately.
    #[arg(long, value_parser = arguments::duration, default_value = "0s")]
    overlap: Duration,
    /// Id of this request and its retries. With it, a retry never creates a second successor.
    #[arg(long, default_value = "", value_name = "ID")]
    request_id: String,
    #[command(flatten)]
    expiry: ExpiryArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// The key's id.
    id: String,
    /// Reason for the revocation.
    #[arg(long, default_value = "")]
    reason: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: KeyCommand, output: &Output) -> Result<ExitCode> {
    match command {
        KeyCommand::Create(arguments) => create(arguments, output).await?,
        KeyCommand::Get(IdArgs { id, client }) => {
            let response =
                client.key_store().await?.get_key(client.call(pb::GetKeyRequest { id })).await?.into_inner();
            output.message(&response, |response| show::key(response.key.as_ref()))?;
        }
        KeyCommand::List(arguments) if arguments.all => stream(arguments, output).await?,
        KeyCommand::List(arguments) => list(arguments, output).await?,
        KeyCommand::Update(arguments) => update(arguments, output).await?,
        KeyCommand::Rotate(arguments) => rotate(arguments, output).await?,
        KeyCommand::Revoke(RevokeArgs { id, reason, client }) => {
            let request = client.call(pb::RevokeKeyRequest { id, reason });
            let response = client.key_store().await?.revoke_key(request).await?.into_inner();
            output.message(&response, |response| show::key(response.key.as_ref()))?;
        }
        KeyCommand::Delete(IdArgs { id, client }) => {
            let request = client.call(pb::DeleteKeyRequest { id, expected_revision: None });
            let response = client.key_store().await?.delete_key(request).await?.into_inner();
            output.message(&response, |_| "deleted".to_owned())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(arguments: CreateArgs, output: &Output) -> Result<()> {
    use pb::create_key_request::Expiry;
    let ExpiryArgs { ttl, expires } = arguments.expiry;
    let request = pb::CreateKeyRequest {
        name: arguments.name,
        owner_id: arguments.owner,
        description: arguments.description,
        scopes: arguments.scopes,
        metadata: arguments.metadata.into_iter().collect(),
        prefix: arguments.prefix,
        request_id: arguments.request_id,
        expiry: ttl.map(Expiry::Ttl).or(expires.map(Expiry::ExpireTime)),
    };
    let response =
        arguments.client.key_store().await?.create_key(arguments.client.call(request)).await?.into_inner();
    let printed = output.message(&response, |response| show::issued(response.key.as_ref(), &response.secret));
    printed.with_context(|| unprinted(response.key.as_ref()))
}

async fn rotate(arguments: RotateArgs, output: &Output) -> Result<()> {
    use pb::rotate_key_request::Expiry;
    let ExpiryArgs { ttl, expires } = arguments.expiry;
    let request = pb::RotateKeyRequest {
        id: arguments.id,
        overlap: Some(arguments.overlap),
        request_id: arguments.request_id,
        expiry: ttl.map(Expiry::Ttl).or(expires.map(Expiry::ExpireTime)),
    };
    let response =
        arguments.client.key_store().await?.rotate_key(arguments.client.call(request)).await?.into_inner();
    let printed = output.message(&response, |response| {
        let issued = show::issued(response.key.as_ref(), &response.secret);
        format!("{issued}\n\nReplaced key:\n{}", show::key(response.replaced.as_ref()))
    });
    printed.with_context(|| unprinted(response.key.as_ref()))
}

/// Returns the message for a new key whose secret was lost because it could not be printed.
fn unprinted(key: Option<&pb::Key>) -> String {
    let id = key.map_or("?", |key| key.id.as_str());
    format!("key {id} was created, but its secret could not be printed; delete or rotate it")
}

async fn list(arguments: ListArgs, output: &Output) -> Result<()> {
    let request = pb::ListKeysRequest {
        owner_id: arguments.owner,
        states: arguments.states.into_iter().map(i32::from).collect(),
        prefix: arguments.prefix,
        page_size: arguments.page_size,
        page_token: arguments.page_token,
    };
    let response =
        arguments.client.key_store().await?.list_keys(arguments.client.call(request)).await?.into_inner();
    output.message(&response, show::page)
}

async fn stream(arguments: ListArgs, output: &Output) -> Result<()> {
    let request = pb::StreamKeysRequest {
        owner_id: arguments.owner,
        states: arguments.states.into_iter().map(i32::from).collect(),
        prefix: arguments.prefix,
    };
    let mut keys = arguments.client.key_store().await?.stream_keys(request).await?.into_inner();
    while let Some(response) = keys.message().await? {
        match output.message(&response, show::streamed) {
            // The reader closed the pipe, for example `keyvouch key list --all | head`.
            Err(error) if error.is::<ReaderGone>() => return Ok(()),
            printed => printed?,
        }
    }
    Ok(())
}

async fn update(arguments: UpdateArgs, output: &Output) -> Result<()> {
    let mut paths = Vec::new();
    let mut key = pb::Key { id: arguments.id, ..pb::Key::default() };
    let mut name_path = |is_given: bool, path: &str| {
        if is_given {
            paths.push(path.to_owned());
        }
    };
    name_path(arguments.name.is_some(), "name");
    name_path(arguments.description.is_some(), "description");
    name_path(arguments.no_scopes || !arguments.scopes.is_empty(), "scopes");
    name_path(arguments.no_metadata || !arguments.metadata.is_empty(), "metadata");
    name_path(arguments.never_expires || arguments.expires.is_some(), "expire_time");
    if paths.is_empty() {
        bail!(
            "nothing to update; set --name, --description, --scope, --no-scopes, --metadata, --no-metadata, --expires or \
             --never-expires"
        );
    }
    key.name = arguments.name.unwrap_or_default();
    key.description = arguments.description.unwrap_or_default();
    key.scopes = arguments.scopes;
    key.metadata = arguments.metadata.into_iter().collect::<BTreeMap<_, _>>();
    key.expire_time = arguments.expires;
    let request = pb::UpdateKeyRequest {
        key: Some(key),
        update_mask: Some(FieldMask { paths }),
        expected_revision: arguments.expected_revision,
    };
    let response =
        arguments.client.key_store().await?.update_key(arguments.client.call(request)).await?.into_inner();
    output.message(&response, |response| show::key(response.key.as_ref()))
}
