//! Compiles the protos of the gRPC conformance suite, which are part of its Go module and not of this
//! repository. `scripts/setup` sets their path in `CHASSIS_PEER_CONFORMANCE_PROTOS`; without it the server
//! has no service, and the suite is reported as not run.

use std::{env, error::Error, path::PathBuf};

use tonic_prost_build::Config;

const VARIABLE: &str = "CHASSIS_PEER_CONFORMANCE_PROTOS";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rustc-check-cfg=cfg(has_protos)");
    let Some(protos) = env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Ok(());
    };
    println!("cargo::rerun-if-changed={}", protos.display());
    let mut compiler = protox::Compiler::new([&protos])?;
    compiler.include_imports(true);
    for file in ["service.proto", "server_compat.proto"] {
        compiler.open_file(protos.join("connectrpc/conformance/v1").join(file))?;
    }
    let mut messages = Config::new();
    messages.enable_type_names().type_name_domain(["."], "type.googleapis.com");
    let stubs = tonic_prost_build::configure().build_client(false);
    stubs.compile_fds_with_config(compiler.file_descriptor_set(), messages)?;
    println!("cargo::rustc-cfg=has_protos");
    Ok(())
}
