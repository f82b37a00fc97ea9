//! Compiles `proto/` with protox, so that `protoc` is not needed. Writes the descriptor set that reflection and the JSON
//! output of the command line use.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;

const PROTO_ROOT: &str = "proto";
/// Third-party protocols. Their Rust types come from `tonic_types`. Their descriptors are needed to print error details.
const THIRD_PARTY_ROOT: &str = "third_party";

/// Messages that carry a secret or its hash. They get a hand-written, redacting `Debug` in `src/grpc/pb.rs`.
const SECRET_MESSAGES: [&str; 4] = [
    "keyvouch.v1.ValidateRequest",
    "keyvouch.v1.CreateKeyResponse",
    "keyvouch.v1.RotateKeyResponse",
    "keyvouch.v1.ImportKeysRequest",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    for (root, package) in [(PROTO_ROOT, "keyvouch/v1"), (THIRD_PARTY_ROOT, "google/rpc")] {
        println!("cargo:rerun-if-changed={root}");
        files.extend(proto_files(&Path::new(root).join(package))?);
    }
    let descriptors = protox::compile(&files, [PROTO_ROOT, THIRD_PARTY_ROOT])?;

    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("keyvouch_descriptor.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .btree_map(".")
        .codec_path("crate::grpc::codec::SmallCodec")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .skip_debug(SECRET_MESSAGES)
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn proto_files(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
