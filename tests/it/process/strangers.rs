//! Tests with clients of other projects.

use std::process::{Command, Output};

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

#[test]
fn reflection_is_all_that_a_client_needs() {
    let home = Home::new();
    let server = home.serve(&[]);
    for version in ["grpc-v1", "grpc-v1alpha"] {
        let listed = stdout(&curl(&server, &["--list-services", "--reflect-protocol", version], ""));
        for service in ["keyvouch.v1.Validator", "keyvouch.v1.KeyStore", "grpc.health.v1.Health"] {
            assert!(listed.lines().any(|line| line == service), "{version}: {listed}");
        }
    }
    let method = "/keyvouch.v1.Validator/Validate";
    let answer = stdout(&curl(&server, &["-d", "{\"secret\": \"nonsense\"}"], method));
    assert!(answer.contains("REASON_MALFORMED"), "{answer}");

    let create = "/keyvouch.v1.KeyStore/CreateKey";
    let body = "{\"name\": \"n\", \"owner_id\": \"o\"}";
    let refused = curl(&server, &["-d", body], create);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("unauthenticated"));
    let header = format!("authorization: Bearer {}", home.read("keyvouch.admin-token").trim());
    let created: serde_json::Value =
        serde_json::from_str(&stdout(&curl(&server, &["-H", &header, "-d", body], create))).unwrap();
    let ask = serde_json::json!({ "secret": created["secret"] }).to_string();
    let answer = stdout(&curl(&server, &["-d", &ask], method));
    assert!(answer.contains("REASON_VALID"), "{answer}");
}
