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
    /// Make a key. Its secret is printed once and can't be had again.
    Create(CreateArgs),
    /// Show a key.
    Get(IdArgs),
    /// List keys, newest first.
    List(ListArgs),
    /// Change attributes of a key.
    Update(UpdateArgs),
    /// Replace a key by a successor with a new secret.
    Rotate(RotateArgs),
    /// Refuse a key from now on, for good.
    Revoke(RevokeArgs),
    /// Remove a key. To end one, revoke it: a revoked key can still be explained.
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
    /// How long it lives: 30d, 12h, 90s.
    #[arg(long, value_parser = arguments::duration)]
    ttl: Option<Duration>,
    /// When it ends: 2030-01-31T12:00:00Z.
    #[arg(long, value_parser = arguments::time, value_name = "TIME")]
    expires: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// A label.
    #[arg(long)]
    name: String,
    /// Whom the key acts for.
    #[arg(long)]
    owner: String,
    /// What it is for.
    #[arg(long, default_value = "")]
    description: String,
    /// A scope; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Free data; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = arguments::pair)]
    metadata: Vec<(String, String)>,
    /// One of the configured prefixes.
    #[arg(long)]
    prefix: Option<String>,
    /// An id for this request and its retries: a retry then makes no second key.
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
    /// Only keys of this owner.
    #[arg(long, default_value = "")]
    owner: String,
    /// Only keys in this state; may be given several times.
    #[arg(long = "state", value_name = "STATE", value_enum)]
    states: Vec<State>,
    /// Only keys with this prefix.
    #[arg(long)]
    prefix: Option<String>,
    /// How many keys at most.
    #[arg(long, default_value_t = 100)]
    page_size: i32,
    /// Where to read on: the token that the page before ended with.
    #[arg(long, default_value = "")]
    page_token: String,
    /// All keys, however many: each is printed as it comes.
    #[arg(long, conflicts_with_all = ["page_size", "page_token"])]
    all: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// The key's id.
    id: String,
    /// A new label.
    #[arg(long)]
    name: Option<String>,
    /// A new description.
    #[arg(long)]
    description: Option<String>,
    /// All new scopes; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE", conflicts_with = "no_scopes")]
    scopes: Vec<String>,
    /// Take away all scopes.
    #[arg(long)]
    no_scopes: bool,
    /// All new metadata; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = arguments::pair, conflicts_with = "no_metadata")]
    metadata: Vec<(String, String)>,
    /// Take away all metadata.
    #[arg(long)]
    no_metadata: bool,
    /// When it ends: 2030-01-31T12:00:00Z.
    #[arg(long, value_parser = arguments::time, value_name = "TIME", conflicts_with = "never_expires")]
    expires: Option<Timestamp>,
    /// It never ends.
    #[arg(long)]
    never_expires: bool,
    /// Change it only if this is still its revision.
    #[arg(long)]
    expected_revision: Option<i64>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// The key's id.
    id: String,
    /// How long the old key stays valid: up to 30d. 0s revokes it at once.
    #[arg(long, value_parser = arguments::duration, default_value = "0s")]
    overlap: Duration,
    /// An id for this request and its retries: a retry then makes no second successor.
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
    /// Why, for the audit trail.
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
        format!("{issued}\n\nIt replaces:\n{}", show::key(response.replaced.as_ref()))
    });
    printed.with_context(|| unprinted(response.key.as_ref()))
}

/// What to do when the only copy of a secret went nowhere.
fn unprinted(key: Option<&pb::Key>) -> String {
    let id = key.map_or("?", |key| key.id.as_str());
    format!("key {id} was made, but its secret could not be printed: delete or rotate it")
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
            // Who reads the list has seen enough: `keyvouch key list --all | head`.
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
            "nothing to change: give --name, --description, --scope, --metadata, --expires or --never-expires"
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
