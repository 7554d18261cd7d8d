//! Compiles `proto/` into Rust without a `protoc` program: protox parses, prost generates messages, tonic servers.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;
use tonic_build::manual::{Builder, Method, MethodBuilder, Service};

const ROOT: &str = "proto";
const PACKAGE_DIR: &str = "proto/atlas/notifier/v1";
const LINK: &str = "proto/atlas/notifier/link/v1/link.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={PACKAGE_DIR}");

    let mut files: Vec<PathBuf> =
        fs::read_dir(PACKAGE_DIR)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    // The directory's order is not fixed; generated code should be.
    files.sort();

    let descriptors = protox::compile(&files, [ROOT])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.binpb"), descriptors.encode_to_vec())?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Builder::new().build_client(false).build_transport(false).compile(&services());
    link(&out)
}

/// What nodes of one cluster say to each other: not part of the contract, nor of what reflection shows.
fn link(out: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={LINK}");
    let mut config = prost_build::Config::new();
    config.bytes(["."]).compile_fds(protox::compile([LINK], [ROOT])?)?;
    let link = Method::builder()
        .name("open")
        .route_name("Open")
        .input_type("crate::link::wire::OpenRequest")
        .output_type("crate::link::wire::OpenResponse")
        .codec_path("tonic_prost::ProstCodec")
        .client_streaming()
        .server_streaming()
        .build();
    let service = Service::builder().name("Link").package("atlas.notifier.link.v1").method(link).build();
    let dir = out.join("link");
    fs::create_dir_all(&dir)?;
    Builder::new().build_transport(false).out_dir(dir).compile(&[service]);
    Ok(())
}

/// The contract's services. By hand, because `Connect` streams notifications that are encoded already.
fn services() -> [Service; 2] {
    let service = |name: &str| Service::builder().name(name).package("atlas.notifier.v1");
    [
        service("Notifier")
            .method(
                method("connect", "Connect", "ConnectionRequest")
                    .output_type("bytes::Bytes")
                    .server_streaming()
                    .codec_path("crate::edge::grpc::Encoded")
                    .build(),
            )
            .method(unary("acknowledge", "Acknowledge"))
            .build(),
        service("CommandHandler")
            .method(unary("start_user_session", "StartUserSession"))
            .method(unary("end_user_session", "EndUserSession"))
            .build(),
    ]
}

fn method(name: &str, route: &str, input: &str) -> MethodBuilder {
    Method::builder().name(name).route_name(route).input_type(format!("crate::proto::{input}"))
}

fn unary(name: &str, route: &str) -> Method {
    method(name, route, &format!("{route}Request"))
        .output_type(format!("crate::proto::{route}Response"))
        .codec_path("tonic_prost::ProstCodec")
        .build()
}
