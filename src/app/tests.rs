//! Tests of the order of the startup.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;

use super::*;
use crate::config::{Config, StoreUrl};
use crate::repository::MemoryRepository;

/// Returns settings whose token file is in `folder`. The backend of the settings is not opened.
fn config(folder: &Path) -> Config {
    let mut config = Config::default();
    config.server.listen = vec!["127.0.0.1:0".into()];
    config.store.url = StoreUrl::from(format!("sqlite://{}", folder.join("kv.db").display()));
    config
}

/// Returns the error of a startup that has to fail before it opens the backend.
async fn early_error(config: &Config) -> String {
    let is_opened = AtomicBool::new(false);
    let opened = async {
        is_opened.store(true, Ordering::SeqCst);
        bail!("opened")
    };
    let error = App::assemble(&config.parse().unwrap(), Surroundings::default(), opened).await.unwrap_err();
    assert!(!is_opened.load(Ordering::SeqCst), "opened before: {error:#}");
    format!("{error:#}")
}

#[tokio::test]
async fn what_is_wrong_without_the_backend_is_found_before_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();

    let mut occupied = config(folder.path());
    occupied.server.listen.push(taken.clone());
    let error = early_error(&occupied).await;
    assert!(error.contains(&format!("can't listen on {taken} (server.listen)")), "{error}");

    let mut occupied = config(folder.path());
    occupied.telemetry.listen.clone_from(&taken);
    let error = early_error(&occupied).await;
    assert!(error.contains(&format!("can't listen on {taken} (telemetry.listen)")), "{error}");

    let mut tokens = config(folder.path());
    tokens.admin.tokens_file = folder.path().join("no-such-file");
    let error = early_error(&tokens).await;
    assert!(error.contains("admin.tokens_file"), "{error}");

    let mut certificates = config(folder.path());
    certificates.server.tls.cert_file = folder.path().join("no-such-file");
    certificates.server.tls.key_file = folder.path().join("no-such-file");
    let error = early_error(&certificates).await;
    assert!(error.contains("server.tls.cert_file"), "{error}");

    let names = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(names, 0, "neither a database nor a token");
}

/// The startup that generates the token reports it, so it has to be the one that succeeds.
#[tokio::test]
async fn a_token_is_generated_only_after_the_backend_was_opened() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let opened = async { bail!("the database is down") };
    App::assemble(&config.parse().unwrap(), Surroundings::default(), opened).await.unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let app = App::with_backend(&config.parse().unwrap(), Surroundings::default(), MemoryRepository::new())
        .await
        .unwrap();
    let AdminAccess::FirstStart { file, is_new: true, .. } = app.admin_access() else {
        panic!("no new token: {:?}", app.admin_access());
    };
    assert!(file.exists());
}

#[tokio::test]
async fn connections_are_refused_until_the_backend_is_open() {
    let folder = tempfile::tempdir().unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (calls, probes) = (free(), free());
    let mut config = config(folder.path());
    config.server.listen = vec![calls.to_string()];
    config.telemetry.listen = probes.to_string();
    let connect = |address: SocketAddr| TcpStream::connect(address);
    let opened = async {
        for address in [calls, probes] {
            assert_eq!(connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        Ok(OpenedBackend { backend: MemoryRepository::new().into(), pools: None })
    };
    let app = App::assemble(&config.parse().unwrap(), Surroundings::default(), opened).await.unwrap();
    for address in [calls, probes] {
        connect(address).unwrap();
    }
    drop(app);
}
