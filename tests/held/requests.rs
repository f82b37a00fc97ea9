//! The largest requests of every method, generated from the descriptors. For each field of variable size, there is
//! a request in which the field has a usual size, and one in which the message is as large as the server accepts.

use keyvouch::conformance::api::Api;
use keyvouch::grpc::pb;
use prost::Message as _;
use prost::bytes::Bytes;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MethodDescriptor, ReflectMessage as _,
    Value,
};
use serde_json::{Value as Json, json};

/// Size in bytes that is valid for many fields.
const USUAL: usize = 256;

/// Keys that requests can name.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// The key string of one of the keys.
    pub(crate) secret: String,
    /// The ids of the keys.
    pub(crate) ids: Vec<String>,
}

impl Keys {
    /// Creates `count` keys with `request`.
    pub(crate) async fn create(api: &Api, count: usize, request: pb::CreateKeyRequest) -> Self {
        let mut keys = Self { secret: String::new(), ids: Vec::new() };
        for _ in 0..count {
            let (key, secret) = api.create(request.clone()).await;
            keys.ids.push(key.id);
            keys.secret = secret;
        }
        keys
    }
}

/// Requests of one kind.
#[derive(Debug)]
pub(crate) struct Case {
    /// Name of the large field and its size, or a description of the keys in the request.
    pub(crate) name: String,
    /// The encoded requests, each with its length prefix. They are sent in order.
    pub(crate) requests: Vec<Bytes>,
    pub(crate) kind: CaseKind,
}

/// A kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CaseKind {
    /// The requests are valid.
    Valid,
    /// Some of the requests are valid.
    Usual,
    /// The messages have the maximum size, so no value is valid.
    Full,
}

/// Returns all methods of a server.
pub(crate) fn methods() -> Vec<MethodDescriptor> {
    let sets = [
        pb::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let pools = sets.map(|set| DescriptorPool::decode(set).unwrap());
    let services = pools.iter().flat_map(DescriptorPool::services);
    services.flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

/// Returns the path of a method.
pub(crate) fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// Returns the server's size limit for a message of the service, in bytes.
fn limit(method: &MethodDescriptor) -> usize {
    match method.parent_service().full_name() {
        "keyvouch.v1.KeyStore" => 128 * 1024,
        "keyvouch.v1.Validator" => 16 * 1024,
        _ => 4 * 1024,
    }
}

/// Returns ordinary requests of `method`, about `keys`.
pub(crate) fn plain(method: &MethodDescriptor, keys: &Keys) -> Vec<Bytes> {
    plain_messages(method, keys).iter().map(framed).collect()
}

/// Returns all other requests of `method`: those about the `large` keys, and those with large fields.
pub(crate) fn cases(method: &MethodDescriptor, keys: &Keys, large: &Keys) -> Vec<Case> {
    let valid = |name: &str, requests| Case { name: name.into(), requests, kind: CaseKind::Valid };
    let mut cases = vec![valid("large keys", plain(method, large))];
    if let Some(largest) = largest(method, keys, large) {
        cases.push(valid("the largest valid request", vec![framed(&largest)]));
    }
    let (message, limit) = (plain_messages(method, keys).remove(0), limit(method));
    for (name, grown) in grown(&message, limit) {
        let request = framed(&grown);
        let kind = if request.len() > limit / 2 { CaseKind::Full } else { CaseKind::Usual };
        cases.push(Case { name, kind, requests: vec![request] });
    }
    cases
}

/// Returns a valid request with all fields at their maximum size.
fn largest(method: &MethodDescriptor, keys: &Keys, large: &Keys) -> Option<DynamicMessage> {
    let mut message = DynamicMessage::new(method.input());
    let key = |id: &str| {
        let pb::CreateKeyRequest { name, owner_id, description, scopes, metadata, .. } = largest_key();
        pb::Key { id: id.into(), name, owner_id, description, scopes, metadata, ..pb::Key::default() }
    };
    let filled = match method.full_name() {
        "keyvouch.v1.KeyStore.CreateKey" => message.transcode_from(&largest_key()),
        "keyvouch.v1.KeyStore.UpdateKey" => {
            let paths = ["name", "description", "scopes", "metadata", "expire_time"].map(str::to_owned);
            message.transcode_from(&pb::UpdateKeyRequest {
                key: Some(key(&keys.ids[0])),
                update_mask: Some(prost_types::FieldMask { paths: paths.into() }),
                expected_revision: None,
            })
        }
        "keyvouch.v1.KeyStore.ImportKeys" => message.transcode_from(&pb::ImportKeysRequest {
            key: Some(key("")),
            hash: vec![7; 32],
            allow_revoked_hash: false,
        }),
        "keyvouch.v1.KeyStore.RevokeKey" => {
            message.transcode_from(&pb::RevokeKeyRequest { id: large.ids[0].clone(), reason: wide(256) })
        }
        "keyvouch.v1.Validator.Validate" => message.transcode_from(&pb::ValidateRequest {
            secret: large.secret.clone(),
            required_scopes: largest_key().scopes,
            ..pb::ValidateRequest::default()
        }),
        _ => return None,
    };
    filled.unwrap();
    Some(message)
}

/// Returns an ordinary request, in the JSON form of protobuf.
fn plain_json(method: &str, secret: &str, id: &str) -> Json {
    let key = json!({ "name": "name", "ownerId": "owner" });
    match method {
        "keyvouch.v1.Validator.Validate" => json!({ "secret": secret }),
        "keyvouch.v1.KeyStore.CreateKey" => key,
        "keyvouch.v1.KeyStore.UpdateKey" => {
            json!({ "key": { "id": id, "description": "changed" }, "updateMask": "description" })
        }
        "keyvouch.v1.KeyStore.RotateKey" => json!({ "id": id, "overlap": "3600s" }),
        "keyvouch.v1.KeyStore.GetKey"
        | "keyvouch.v1.KeyStore.RevokeKey"
        | "keyvouch.v1.KeyStore.DeleteKey" => json!({ "id": id }),
        "keyvouch.v1.KeyStore.ImportKeys" => json!({ "key": key, "hash": "AAAA" }),
        "keyvouch.v1.KeyStore.ListKeys"
        | "keyvouch.v1.KeyStore.StreamKeys"
        | "keyvouch.v1.KeyStore.ListEvents"
        | "keyvouch.v1.Validator.WatchChanges"
        | "grpc.health.v1.Health.Check"
        | "grpc.health.v1.Health.Watch" => json!({}),
        _ if method.starts_with("grpc.reflection.") => {
            json!({ "fileContainingSymbol": "keyvouch.v1.KeyStore" })
        }
        _ => panic!("{method}: unknown method; add its plain request here"),
    }
}

fn plain_messages(method: &MethodDescriptor, keys: &Keys) -> Vec<DynamicMessage> {
    let message = |id: &String| {
        let json = plain_json(method.full_name(), &keys.secret, id);
        DynamicMessage::deserialize(method.input(), json).unwrap()
    };
    let messages: Vec<_> = keys.ids.iter().map(message).collect();
    let are_same = messages.iter().all(|message| *message == messages[0]);
    if are_same { messages.into_iter().take(1).collect() } else { messages }
}

fn framed(message: &DynamicMessage) -> Bytes {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &message].concat().into()
}

/// Returns copies of `message` in each of which one field, or one field of a nested message, is large.
fn grown(message: &DynamicMessage, limit: usize) -> Vec<(String, DynamicMessage)> {
    let room = limit - message.encoded_len() - 16;
    let mut all = Vec::new();
    for field in message.descriptor().fields() {
        if let Kind::Message(inner) = field.kind()
            && !field.is_list()
            && !field.is_map()
        {
            // Times and durations are numbers.
            if matches!(inner.full_name(), "google.protobuf.Timestamp" | "google.protobuf.Duration") {
                continue;
            }
            let inside = message.get_field(&field).as_message().cloned();
            let inside = inside.unwrap_or_else(|| DynamicMessage::new(inner));
            for (name, inside) in grown(&inside, limit - message.encoded_len()) {
                let mut copy = message.clone();
                copy.set_field(&field, Value::Message(inside));
                all.push((format!("{}.{name}", field.name()), copy));
            }
            continue;
        }
        for bytes in [USUAL, room] {
            for (kind, value) in values(&field, bytes) {
                let mut copy = message.clone();
                copy.set_field(&field, value);
                if copy.encoded_len() <= limit {
                    all.push((format!("{} of {bytes} bytes{kind}", field.name()), copy));
                }
            }
        }
    }
    all
}

/// Returns values of `field` that take about `bytes`, with a name for each.
fn values(field: &FieldDescriptor, bytes: usize) -> Vec<(&'static str, Value)> {
    if field.is_map() {
        let pairs =
            (0..bytes / 12).map(|at| (MapKey::String(format!("k{at:05}")), Value::String(String::new())));
        let pair = (MapKey::String("k".into()), Value::String("v".repeat(bytes.saturating_sub(8))));
        return vec![
            (", many pairs", Value::Map(pairs.collect())),
            (", one pair", Value::Map([pair].into_iter().collect())),
        ];
    }
    if field.is_list() {
        let list =
            |count: usize, value: &dyn Fn(usize) -> Value| Value::List((0..count).map(value).collect());
        return match field.kind() {
            Kind::String => vec![
                (", the same", list(bytes / 3, &|_| Value::String("a".into()))),
                (", distinct", list(bytes / 8, &|at| Value::String(format!("s{at:05}")))),
                (", long ones", list((bytes / 131).max(1), &|at| Value::String(format!("{at:0128}")))),
            ],
            Kind::Enum(_) => vec![("", list(bytes, &|_| Value::EnumNumber(1)))],
            kind => panic!("{}: a list of {kind:?}; add values for it here", field.full_name()),
        };
    }
    match field.kind() {
        Kind::String => vec![("", Value::String("a".repeat(bytes)))],
        Kind::Bytes => vec![("", Value::Bytes(vec![7; bytes].into()))],
        // The size of a page.
        Kind::Int32 if bytes == USUAL => vec![(" of answers", Value::I32(i32::MAX))],
        _ => Vec::new(),
    }
}

/// Returns the request for the largest valid key.
pub(crate) fn largest_key() -> pb::CreateKeyRequest {
    pb::CreateKeyRequest {
        name: wide(128),
        owner_id: wide(128),
        description: wide(1024),
        scopes: (0..64).map(|at| format!("{at:0128}")).collect(),
        metadata: (0..32).map(|at| (format!("{at:064}"), wide(512))).collect(),
        ..pb::CreateKeyRequest::default()
    }
}

/// Returns a text of this number of characters, of four bytes each.
fn wide(characters: usize) -> String {
    "\u{1D50E}".repeat(characters)
}
