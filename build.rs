//! Compiles `proto/` into Rust without a `protoc` program: protox parses, prost generates.

use std::{error::Error, fs, path::PathBuf};

const ROOT: &str = "proto";
const PACKAGE_DIR: &str = "proto/atlas/notifier/v1";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={PACKAGE_DIR}");

    let mut files: Vec<PathBuf> =
        fs::read_dir(PACKAGE_DIR)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    // The directory's order is not fixed; generated code should be.
    files.sort();

    let descriptors = protox::compile(&files, [ROOT])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
