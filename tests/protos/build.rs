//! Compiles the protos in pure Rust, so that a machine needs no `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The sets to compile: the name of the module's descriptors, and the file that holds its services.
const SETS: [(&str, &str); 3] = [
    ("echo", "chassis/test/v1/echo.proto"),
    ("interop", "grpc/testing/test.proto"),
    ("shop", "shop/v1/stock.proto"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for (name, file) in SETS {
        compile(name, file, &out)?;
    }
    Ok(())
}

/// Writes the stubs of `file` and its encoded descriptors, `<name>.bin`, to `out`.
fn compile(name: &str, file: &str, out: &Path) -> Result<(), Box<dyn Error>> {
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file(file)?;
    fs::write(out.join(name).with_extension("bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
