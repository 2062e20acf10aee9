//! Compiles the proto in pure Rust, so that a machine needs no `protoc`.
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file("bench/v1/echo.proto")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("echo.bin"), compiler.encode_file_descriptor_set())?;
    // Payloads as `Bytes`, which saves all sides a copy; hops are also serialized for REST.
    tonic_prost_build::configure()
        .bytes(".bench.v1.CallRequest.payload")
        .bytes(".bench.v1.CallReply.payload")
        .type_attribute("bench.v1.Hop", "#[derive(serde::Serialize, serde::Deserialize)]")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
