//! Validates a key with a running Keyvouch server, through the client that this library exports:
//!
//! ```sh
//! API_KEY=kv_… cargo run --example validate
//! ```

use std::env;
use std::error::Error;
use std::time::Duration;

use keyvouch::grpc::pb::ValidateRequest;
use keyvouch::grpc::pb::validator_client::ValidatorClient;
use tonic::Request;
use tonic::transport::Endpoint;

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("KEYVOUCH_URL").unwrap_or_else(|_| "http://127.0.0.1:50051".to_owned());
    // One channel serves all calls of a process. Create it once and clone it.
    let channel = Endpoint::from_shared(url)?.connect_timeout(Duration::from_secs(2)).connect().await?;
    let mut validator = ValidatorClient::new(channel);

    let mut request = Request::new(ValidateRequest {
        secret: env::var("API_KEY")?,
        required_scopes: vec!["read".to_owned()],
        ..ValidateRequest::default()
    });
    request.set_timeout(Duration::from_millis(500));

    // After an error the key is neither allowed nor denied. Reject the request at hand, and report a failure
    // of the service rather than a fault of the caller.
    let answer = validator.validate(request).await?.into_inner();
    if !answer.valid {
        println!("denied: {}", answer.reason().as_str_name());
        return Err("the key may not do this".into());
    }
    let key = answer.key.unwrap_or_default();
    println!("allowed: key {} of {}", key.id, key.owner_id);
    Ok(())
}
