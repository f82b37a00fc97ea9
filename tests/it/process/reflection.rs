//! Tests that a generic client, `buf curl`, can call the server with nothing but its reflection service.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::program::{Home, Server, tool};

fn curl(server: &Server, arguments: &[&str], path: &str) -> Output {
    let url = format!("http://{}{path}", server.address);
    let base = ["curl", "--protocol", "grpc", "--http2-prior-knowledge"];
    Command::new(tool("buf")).args(base).args(arguments).arg(url).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Calls a method that has to succeed. Returns the response.
fn call(server: &Server, arguments: &[&str], path: &str) -> Value {
    serde_json::from_str(&stdout(&curl(server, arguments, path))).unwrap()
}

#[test]
fn buf_curl_calls_methods_by_reflection() {
    let home = Home::new();
    let server = home.serve(&[]);
    for version in ["grpc-v1", "grpc-v1alpha"] {
        let listed = stdout(&curl(&server, &["--list-services", "--reflect-protocol", version], ""));
        for service in ["keyvouch.v1.Validator", "keyvouch.v1.KeyStore", "grpc.health.v1.Health"] {
            assert!(listed.lines().any(|line| line == service), "{version}: {listed}");
        }
    }
    let validate = "/keyvouch.v1.Validator/Validate";
    let denied = call(&server, &["-d", "{\"secret\": \"nonsense\"}"], validate);
    assert_eq!(denied["reason"], "REASON_MALFORMED");

    let create = "/keyvouch.v1.KeyStore/CreateKey";
    let body = "{\"name\": \"n\", \"owner_id\": \"o\"}";
    let rejected = curl(&server, &["-d", body], create);
    assert!(!rejected.status.success());
    let error: Value = serde_json::from_slice(&rejected.stderr).unwrap();
    assert_eq!(error["code"], "unauthenticated");
    let header = format!("authorization: Bearer {}", home.read("keyvouch.admin-token").trim());
    let created = call(&server, &["-H", &header, "-d", body], create);
    let request = json!({ "secret": created["secret"] }).to_string();
    assert_eq!(call(&server, &["-d", &request], validate)["reason"], "REASON_VALID");
}
