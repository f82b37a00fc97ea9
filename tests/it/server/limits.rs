//! Tests that no client can use up all resources.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::{Api, new_key, refusal, wrong_field};
use keyvouch::domain::{KeyPrefix, SecretKey, SystemEntropy};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use super::faulty::{Faulty, Mode};
use super::ops::count;
use super::slow_clients::{raw_call, raw_client};
use crate::support::{TOKEN, TestServer, config, uncached, until};

/// Returns the secrets of `count` new keys. Concurrent calls for one key can share a lookup.
async fn secrets(api: &Api, count: usize) -> Vec<String> {
    let mut secrets = Vec::new();
    for _ in 0..count {
        secrets.push(api.create(new_key()).await.1);
    }
    secrets
}

#[tokio::test]
async fn connections_above_the_limit_are_closed_at_once() {
    let mut config = uncached();
    config.server.max_connections = 2;
    let store = Faulty::new();
    let server = TestServer::start_with(store.clone(), &config).await;
    let (first, second) = (server.api().await, server.api().await);
    let secrets = secrets(&first, 2).await;
    // Both connections are busy, so neither is closed to make room.
    store.set(Mode::Hang);
    let lookups = store.lookups();
    let calls: Vec<_> = [first, second]
        .into_iter()
        .zip(secrets)
        .map(|(api, secret)| tokio::spawn(async move { api.reason(&secret).await }))
        .collect();
    until("both calls", async || store.lookups() == lookups + 2).await;
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(refused.read(&mut [0; 64]).await.unwrap(), 0, "closed by the server");
    store.set(Mode::Work);
    for call in calls {
        assert_eq!(call.await.unwrap(), pb::Reason::Valid);
    }
}

/// A client that opens all connections and does not use them locks no other client out.
#[tokio::test]
async fn idle_connections_give_way_to_new_ones() {
    let mut config = uncached();
    config.server.max_connections = 3;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            .await
            .unwrap();
        silent.push(stream);
    }
    until("a place", async || {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let Ok(channel) = endpoint.connect().await else { return false };
        let request = pb::ListKeysRequest::default();
        Api::new(channel, TOKEN).key_store().list_keys(request).await.is_ok()
    })
    .await;
    let mut ended = 0;
    for mut stream in silent {
        let mut frames = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut frames));
        ended += usize::from(end.await.is_ok());
    }
    assert!((1..=2).contains(&ended), "{ended}");
}

/// Returns a well-formed key string that is not stored.
fn unknown() -> String {
    let prefix = KeyPrefix::parse("prefix", "kv_").unwrap();
    SecretKey::generate(&prefix, &SystemEntropy).unwrap().expose().to_owned()
}

/// While calls wait for the backend, cached keys are answered, and administrators have slots of their own.
#[tokio::test]
async fn calls_that_wait_for_the_store_take_no_place_of_others() {
    let mut config = config();
    config.server.max_calls = 10;
    let store = Faulty::new();
    let server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    store.set(Mode::Hang);
    let overloaded = (Code::ResourceExhausted, "OVERLOADED".to_owned());
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..11 {
        let mut validator = api.validator();
        waiting.spawn(async move {
            let request = pb::ValidateRequest { secret: unknown(), ..pb::ValidateRequest::default() };
            refusal(validator.validate(request).await)
        });
    }
    assert_eq!(waiting.join_next().await.unwrap().unwrap(), overloaded, "one too many");
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid, "cached");
    let get = pb::GetKeyRequest { id: "nonsense".into() };
    assert_eq!(wrong_field(api.key_store().get_key(get).await), "id");
    assert!(waiting.try_join_next().is_none());
    store.set(Mode::Work);
}

/// Random credentials use no slots of validations, nor of credentials that are cached.
#[tokio::test]
async fn credentials_that_are_looked_up_have_places_of_their_own() {
    let store = Faulty::new();
    let server = TestServer::start_with(store.clone(), &config()).await;
    let api = server.api().await;
    let (_, reader) =
        api.create(pb::CreateKeyRequest { scopes: vec!["keyvouch.read".into()], ..new_key() }).await;
    let list = async |secret: &str| {
        let api = Api::new(server.channel().await, secret);
        api.key_store().get_key(pb::GetKeyRequest { id: "nonsense".into() }).await
    };
    assert_eq!(wrong_field(list(&reader).await), "id");
    store.set(Mode::Hang);
    let mut calls = Vec::new();
    for _ in 0..40 {
        let caller = Api::new(server.channel().await, &unknown());
        calls.push(tokio::spawn(async move {
            refusal(caller.key_store().get_key(pb::GetKeyRequest { id: "nonsense".into() }).await)
        }));
    }
    until("refusals", async || calls.iter().filter(|call| call.is_finished()).count() == 8).await;
    assert_eq!(wrong_field(list(&reader).await), "id", "cached");
    assert_eq!(wrong_field(list(TOKEN).await), "id");
    store.set(Mode::Work);
    let mut reasons = HashMap::<_, usize>::new();
    for call in calls {
        *reasons.entry(call.await.unwrap().1).or_default() += 1;
    }
    assert_eq!((reasons["OVERLOADED"], reasons["CREDENTIAL_INVALID"]), (8, 32));
}

/// One caller leaves streams for others.
#[tokio::test]
async fn watches_of_one_caller_are_limited() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let (_, reader) =
        api.create(pb::CreateKeyRequest { scopes: vec!["keyvouch.read".into()], ..new_key() }).await;
    let reader = Api::new(server.channel().await, &reader);
    let watch =
        async |api: &Api| api.admin_validator().watch_changes(pb::WatchChangesRequest::default()).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(watch(&reader).await.unwrap());
    }
    assert_eq!(refusal(watch(&reader).await), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
    open.push(watch(&api).await.unwrap());
    drop(open);
    until("a place", async || watch(&reader).await.is_ok()).await;
}

/// The number of streams that hold several keys is limited per caller.
#[tokio::test]
async fn listings_and_imports_of_one_caller_are_limited() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let scopes = ["keyvouch.read", "keyvouch.write"].map(str::to_owned).into();
    let (_, other) = api.create(pb::CreateKeyRequest { scopes, ..new_key() }).await;
    let other = Api::new(server.channel().await, &other);
    // A client with small windows keeps listings open.
    let slow = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let slow = slow.initial_connection_window_size(1 << 16).initial_stream_window_size(1 << 10);
    let slow = Api::new(slow.connect().await.unwrap(), TOKEN);
    let metadata: BTreeMap<_, _> =
        (0..32).map(|number| (format!("name {number}"), "value".repeat(100))).collect();
    for _ in 0..20 {
        api.create(pb::CreateKeyRequest { metadata: metadata.clone(), ..new_key() }).await;
    }
    let list = async |api: &Api| api.key_store().stream_keys(pb::StreamKeysRequest::default()).await;
    // A stream ends when its sender is dropped.
    let import = async |api: &Api| {
        let (sender, requests) = tokio::sync::mpsc::channel::<pb::ImportKeysRequest>(1);
        api.key_store()
            .import_keys(ReceiverStream::new(requests))
            .await
            .map(|answers| answers.map(|_| sender))
    };
    let overloaded = (Code::ResourceExhausted, "OVERLOADED".to_owned());
    let (mut listings, mut imports) = (Vec::new(), Vec::new());
    for _ in 0..16 {
        listings.push(list(&slow).await.unwrap());
        imports.push(import(&api).await.unwrap());
    }
    assert_eq!(refusal(list(&api).await), overloaded);
    assert_eq!(refusal(import(&api).await), overloaded);
    list(&other).await.unwrap();
    import(&other).await.unwrap();
    drop((listings, imports, slow));
    until("a slot", async || list(&api).await.is_ok() && import(&api).await.is_ok()).await;
}

/// A call that has only begun counts as a stream.
#[tokio::test]
async fn streams_above_the_limit_are_refused() {
    let mut config = config();
    config.server.max_streams = 8;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let ask = || pb::ValidateRequest { secret: "nonsense".into(), ..pb::ValidateRequest::default() };
    api.validator().validate(ask()).await.unwrap();
    let mut client = raw_client(&server).await;
    let mut begun = Vec::new();
    for _ in 0..4 {
        client = client.ready().await.unwrap();
        let head = raw_call(&server, "/grpc.health.v1.Health/Check").body(()).unwrap();
        begun.push(client.send_request(head, false).unwrap());
    }
    // When a later call has completed, the server has accepted these.
    let later = raw_call(&server, "/grpc.health.v1.Health/Check").body(()).unwrap();
    client.ready().await.unwrap().send_request(later, true).unwrap().0.await.unwrap();
    let overloaded = (Code::ResourceExhausted, "OVERLOADED".to_owned());
    assert_eq!(refusal(api.validator().validate(ask()).await), overloaded);
    drop(begun);
    until("their end", async || api.validator().validate(ask()).await.is_ok()).await;
}

#[tokio::test]
async fn a_connection_that_does_not_begin_is_closed() {
    let mut config = uncached();
    config.server.handshake_timeout = HumanDuration(Duration::from_millis(200));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"PRI * HTTP/2.0").await.unwrap();
    for stream in [&mut silent, &mut slow] {
        // The server closes the connection, whatever it sends before.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    api.create(new_key()).await;
}

#[tokio::test]
async fn messages_above_the_limit_are_refused() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let request = |bytes| pb::ValidateRequest { secret: "x".repeat(bytes), ..pb::ValidateRequest::default() };
    let response = api.validator().validate(request(15 * 1024)).await.unwrap().into_inner();
    assert_eq!(response.reason(), pb::Reason::Malformed);
    let expected = (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned());
    assert_eq!(refusal(api.validator().validate(request(17 * 1024)).await), expected);
    let large = pb::CreateKeyRequest { description: "x".repeat(150 * 1024), ..new_key() };
    assert_eq!(refusal(api.key_store().create_key(large).await), expected);
    let mut health = HealthClient::new(server.channel().await);
    let service = HealthCheckRequest { service: "x".repeat(5 * 1024) };
    assert_eq!(refusal(health.check(service.clone()).await), expected);
    assert_eq!(refusal(health.watch(service).await), expected);
    api.create(new_key()).await;
}

/// An error of reflection can only end its stream.
#[tokio::test]
async fn reflection_has_a_limit_and_can_be_switched_off() {
    let ask = |size| {
        let name = "x".repeat(size);
        let message_request = Some(MessageRequest::FileContainingSymbol(name));
        tokio_stream::iter([ServerReflectionRequest { host: String::new(), message_request }])
    };
    let server = TestServer::start(MemoryRepository::new()).await;
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let mut answers = reflection.server_reflection_info(ask(3 * 1024)).await.unwrap().into_inner();
    assert!(answers.message().await.is_err_and(|unknown| unknown.code() == Code::NotFound));
    let mut answers = reflection.server_reflection_info(ask(5 * 1024)).await.unwrap().into_inner();
    // tonic's service ends its stream without an error.
    assert!(!matches!(answers.message().await, Ok(Some(_))));

    let mut config = config();
    config.server.reflection = false;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let unknown = refusal(reflection.server_reflection_info(ask(1)).await);
    assert_eq!(unknown, (Code::Unimplemented, "METHOD_UNKNOWN".to_owned()));
    server.api().await.create(new_key()).await;
}

/// Repeated values cost as much as distinct ones, so they are counted before they are deduplicated.
#[tokio::test]
async fn repeated_fields_are_counted_before_they_are_looked_at() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let (key, secret) = api.create(new_key()).await;
    let validate = |scopes: usize| {
        let required_scopes = vec!["a".to_owned(); scopes];
        pb::ValidateRequest { secret: secret.clone(), required_scopes, ..pb::ValidateRequest::default() }
    };
    let answer = api.validator().validate(validate(64)).await.unwrap().into_inner();
    assert_eq!(answer.reason(), pb::Reason::InsufficientScope);
    assert_eq!(wrong_field(api.validator().validate(validate(65)).await), "required_scopes");
    let too_many = (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned());
    assert_eq!(refusal(api.validator().validate(validate(1_000)).await), too_many);
    let update = pb::UpdateKeyRequest {
        key: Some(key),
        update_mask: Some(prost_types::FieldMask { paths: vec!["scopes".into(); 1_500] }),
        expected_revision: None,
    };
    assert_eq!(refusal(api.key_store().update_key(update).await), too_many);
    let list = |states| pb::ListKeysRequest { states: vec![1; states], ..pb::ListKeysRequest::default() };
    assert_eq!(wrong_field(api.key_store().list_keys(list(4)).await), "states");
    assert_eq!(refusal(api.key_store().list_keys(list(10_000)).await), too_many);
}

/// Each header field takes more memory than its length.
#[tokio::test]
async fn header_fields_above_the_limit_are_refused() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let mut validator = server.api().await.validator();
    let mut ask = async |fields: usize| {
        let mut request = tonic::Request::new(pb::ValidateRequest::default());
        for number in 0..fields {
            let name = format!("x-{number}").parse::<tonic::metadata::AsciiMetadataKey>().unwrap();
            request.metadata_mut().insert(name, "v".parse().unwrap());
        }
        validator.validate(request).await
    };
    ask(50).await.unwrap();
    assert_eq!(refusal(ask(70).await), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
}

#[tokio::test]
async fn calls_above_the_limit_of_a_connection_wait_in_the_client() {
    let mut config = uncached();
    config.server.max_streams_per_connection = 4;
    let store = Faulty::new();
    let server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let secrets = secrets(&api, 10).await;
    store.set(Mode::Hang);
    let lookups = store.lookups();
    let calls: Vec<_> = secrets
        .into_iter()
        .map(|secret| {
            let api = api.clone();
            tokio::spawn(async move { api.reason(&secret).await })
        })
        .collect();
    until("four lookups", async || store.lookups() == lookups + 4).await;
    // Another connection is served, and the fifth call of this one has had enough time.
    let other = server.api().await;
    assert_eq!(other.reason("nonsense").await, pb::Reason::Malformed);
    assert_eq!(store.lookups(), lookups + 4);
    store.set(Mode::Work);
    for call in calls {
        assert_eq!(call.await.unwrap(), pb::Reason::Valid);
    }
}

#[tokio::test]
async fn connections_are_spread_evenly_over_the_workers() {
    let mut config = config();
    config.server.workers = 4;
    config.telemetry.listen = "127.0.0.1:0".into();
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut connections = Vec::new();
    for _ in 0..8 {
        let api = server.api().await;
        // Once the call is answered, the worker has the connection.
        assert_eq!(api.reason("nonsense").await, pb::Reason::Malformed);
        connections.push(api);
    }
    for worker in 0..4 {
        let name = format!(r#"keyvouch_connections{{worker="{worker}"}}"#);
        assert!((count(server.ops.unwrap(), &name).await - 2.0).abs() < f64::EPSILON, "{name}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_served_too() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kv.sock");
    let mut config = uncached();
    config.server.listen.push(format!("unix:{}", socket.display()));
    // The socket that a killed server left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    let over_socket = Api::new(endpoint.connect().await.unwrap(), TOKEN);
    let (_, secret) = over_socket.create(new_key()).await;
    assert_eq!(server.api().await.reason(&secret).await, pb::Reason::Valid);
    drop(over_socket);
    server.begin_stop();
    tokio::time::timeout(Duration::from_secs(30), server.ended()).await.unwrap().unwrap();
    assert!(!socket.exists(), "the socket is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_above_the_limit_are_refused_at_once_and_health_is_not() {
    let store = Faulty::new();
    let mut config = uncached();
    config.server.max_calls = 2;
    let server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let secrets = secrets(&api, 2).await;
    store.set(Mode::Hang);
    let before = store.lookups();
    let hanging: Vec<_> = secrets
        .into_iter()
        .map(|secret| {
            let api = api.clone();
            tokio::spawn(async move { api.reason(&secret).await })
        })
        .collect();
    until("two lookups", async || store.lookups() == before + 2).await;
    let request = pb::ValidateRequest { secret: secret.clone(), ..pb::ValidateRequest::default() };
    let refused = api.validator().validate(request.clone()).await.unwrap_err();
    assert!(tonic_types::StatusExt::get_details_retry_info(&refused).is_some(), "{refused:?}");
    assert_eq!(
        refusal(Err::<tonic::Response<()>, _>(refused)),
        (Code::ResourceExhausted, "OVERLOADED".to_owned())
    );
    let mut health = HealthClient::new(server.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    store.set(Mode::Work);
    for call in hanging {
        assert_eq!(call.await.unwrap(), pb::Reason::Valid);
    }
    api.validator().validate(request).await.unwrap();
}

#[tokio::test]
async fn a_call_ends_by_its_deadline() {
    let store = Faulty::new();
    let mut config = uncached();
    config.server.call_timeout = HumanDuration(Duration::from_millis(200));
    let server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    store.set(Mode::Hang);
    let request = || {
        let message = pb::ValidateRequest { secret: secret.clone(), ..pb::ValidateRequest::default() };
        tonic::Request::new(message)
    };
    let exceeded = (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned());
    assert_eq!(refusal(api.validator().validate(request()).await), exceeded, "the server's");
    let mut config = config.clone();
    config.server.call_timeout = HumanDuration(Duration::from_mins(1));
    store.set(Mode::Work);
    let server = TestServer::start_with(store.clone(), &config).await;
    assert_eq!(status_by_raw_http(&server, &secret, "10S").await, "0");
    store.set(Mode::Hang);
    assert_eq!(status_by_raw_http(&server, &secret, "20m").await, "4", "the caller's");
}

/// Returns the status code of a `Validate` call with `timeout`. tonic's own client would time out by itself.
async fn status_by_raw_http(server: &TestServer, secret: &str, timeout: &str) -> String {
    let request = raw_call(server, "/keyvouch.v1.Validator/Validate").header("grpc-timeout", timeout);
    let mut client = raw_client(server).await;
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let message = pb::ValidateRequest { secret: secret.to_owned(), ..pb::ValidateRequest::default() };
    let message = prost::Message::encode_to_vec(&message);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    body.send_data([&[0][..], &length, &message].concat().into(), true).unwrap();
    let answer = answer.await.unwrap();
    let status = answer.headers().get("grpc-status");
    // A response with a body has its status in the trailers.
    status.map_or("0", |status| status.to_str().unwrap()).to_owned()
}

#[tokio::test]
async fn one_address_can_not_take_all_places() {
    let mut config = uncached();
    config.server.max_connections_per_peer = 1;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    api.create(new_key()).await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(second.read(&mut [0; 64]).await.unwrap(), 0, "closed by the server");
    api.create(new_key()).await;
}

/// Returns the bytes that the server sends to a client that only acknowledges settings.
async fn last_frames(server: &TestServer) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frames = Vec::new();
    let mut buffer = [0; 1_024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        for ping in buffer[..read].windows(17).filter(|bytes| bytes.starts_with(b"\0\0\x08\x06\0")) {
            let mut answer = ping.to_vec();
            answer[4] = 1;
            stream.write_all(&answer).await.unwrap();
        }
        frames.extend(&buffer[..read]);
    }
    frames
}

#[tokio::test]
async fn idle_and_old_connections_are_told_to_go() {
    for is_by_age in [true, false] {
        let mut config = uncached();
        let time = HumanDuration(Duration::from_millis(200));
        if is_by_age {
            config.server.max_connection_age = time;
        } else {
            config.server.idle_timeout = time;
        }
        let server = TestServer::start_with(MemoryRepository::new(), &config).await;
        let frames = tokio::time::timeout(Duration::from_mins(1), last_frames(&server)).await.unwrap();
        // GOAWAY without an error: the last stream's number, and NO_ERROR.
        let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert!(frames.ends_with(goaway), "{frames:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_in_flight_survives_its_connection_s_age() {
    let store = Faulty::new();
    let mut config = uncached();
    config.server.max_connection_age = HumanDuration(Duration::from_millis(200));
    let server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    store.set(Mode::Hang);
    let call = tokio::spawn(async move { api.reason(&secret).await });
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!call.is_finished());
    store.set(Mode::Work);
    assert_eq!(call.await.unwrap(), pb::Reason::Valid);
}

#[tokio::test]
async fn a_watch_ends_with_its_credential_and_with_its_connection() {
    let mut config = uncached();
    config.server.max_connection_age = HumanDuration(Duration::from_secs(2));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let admin = server.api().await;
    let reader = pb::CreateKeyRequest { scopes: vec!["keyvouch.read".into()], ..new_key() };
    let (key, secret) = admin.create(reader).await;
    let watch = async |token: &str| {
        let api = Api::new(server.channel().await, token);
        api.admin_validator().watch_changes(pb::WatchChangesRequest::default()).await.unwrap().into_inner()
    };
    let last = async |mut stream: tonic::Streaming<pb::WatchChangesResponse>| {
        let end = async {
            loop {
                if let Err(end) = stream.message().await {
                    return refusal(Err::<tonic::Response<()>, _>(end));
                }
            }
        };
        tokio::time::timeout(Duration::from_mins(1), end).await.unwrap()
    };
    let stream = watch(&secret).await;
    admin.revoke(&key.id, "leaked").await;
    assert_eq!(last(stream).await, (Code::Unauthenticated, "CREDENTIAL_INVALID".to_owned()));
    let reader = pb::CreateKeyRequest { scopes: vec!["keyvouch.read".into()], ..new_key() };
    let (key, secret) = admin.create(reader).await;
    let stream = watch(&secret).await;
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { scopes: Vec::new(), ..key }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["scopes".into()] }),
        ..pb::UpdateKeyRequest::default()
    };
    admin.key_store().update_key(update).await.unwrap();
    assert_eq!(last(stream).await, (Code::PermissionDenied, "PERMISSION_DENIED".to_owned()));
    let of_age = last(watch(TOKEN).await).await;
    assert_eq!(of_age, (Code::Unavailable, "CONNECTION_ENDS".to_owned()));
}
