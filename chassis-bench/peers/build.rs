//! Compiles the proto again, for volo.

fn main() {
    println!("cargo::rerun-if-changed=../proto");
    volo_build::Builder::protobuf()
        .add_service("../proto/bench/v1/echo.proto")
        .include_dirs(vec!["../proto".into()])
        .write()
        .expect("the proto is sound");
}
