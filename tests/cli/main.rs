//! The command line of a program. The test starts this binary again, as the program.
#![allow(clippy::unwrap_used)] // clippy treats helpers of integration tests as library code
use std::{path::Path, process::Command};

use chassis::{Chassis, Section};

/// Set where this binary is the program.
const PROGRAM: &str = "CLI_TEST_PROGRAM";

#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    /// Percent. Default 0.
    discount: u8,
    token: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> chassis::Result {
    if std::env::var_os(PROGRAM).is_none() {
        the_command_line_answers();
        return Ok(());
    }
    let shop = Section::<Shop>::new("shop").schema(chassis::schema::of::<Shop>());
    let builder = Chassis::builder("shop").section(shop);
    let app = builder.settings(serde_json::json!({ "registry": { "kind": "memory" } })).cli().build().await?;
    println!("runs with {}", app.settings::<Shop>("shop")?.get().discount);
    Ok(())
}

/// The exit code, stdout and stderr of the program in a directory.
fn run(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.env_clear().env(PROGRAM, "1").env("LOGIN", "hunter2").current_dir(dir).args(arguments);
    let done = program.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
}

fn the_command_line_answers() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| run(dir.path(), arguments);
    let write = |text: &str| std::fs::write(dir.path().join("chassis.yaml"), text).unwrap();

    write("shop: { discount: 5, token: \"${env:LOGIN}\" }\n");
    assert_eq!(run(&[]).1, "runs with 5\n");
    assert_eq!(run(&["--set", "shop.discount=6"]).1, "runs with 6\n");

    let (code, out, _) = run(&["--check-config"]);
    assert!(code == 0 && out.starts_with("the settings can be used; their hash is "), "{code} {out}");

    let (code, out, _) = run(&["--print-config", "--set", "outbound.defaults.timeout=2s"]);
    let line = |value: &str, origin: &str| format!("{value:48} # {origin}\n");
    assert_eq!(code, 0);
    for line in [
        line("  kind: \"memory\"", "builder; The kind"),
        line("  discount: 5", "chassis.yaml:1:19; Percent"),
        line("  token: \"***\"", "chassis.yaml:1:29"),
        line("    timeout: 2s", "--set; The time that a call may take to the head of its answer; local, not sent with the call"),
        line("      # attempts: 2", "default; The most attempts at a call, the first included, from 1 to 5"),
        line("# shutdown:", "Time limits of a stop"),
        line("#   deadline: 25s", "default; How long running calls may still take once no new ones are accepted"),
    ] {
        assert!(out.contains(&line), "{line} in\n{out}");
    }
    assert!(!out.contains("hunter2"), "{out}");

    // What is printed are the same settings, also where defaults become settings.
    write("shop: { discount: 5 }\noutbound: { services: { stock: { timeout: 1s } } }\n");
    let hash = run(&["--check-config"]).1;
    let (_, out, _) = run(&["--print-config"]);
    write(&out);
    assert_eq!(run(&["--check-config"]), (0, hash, String::new()));
    write(&out.lines().map(|line| line.replacen("# ", "", usize::from(line.trim_start().starts_with("# "))) + "\n").collect::<String>());
    let (code, out, error) = run(&["--check-config"]);
    assert!(code == 0 && error.is_empty(), "{out}{error}");
    write("shop: { discount: 5, token: \"${env:LOGIN}\" }\n");

    write("shop: { dicount: 5 }\noutbound: { defaults: { timeout: 300 } }\n");
    for arguments in [&["--check-config"][..], &["--print-config"], &[]] {
        let (code, out, error) = run(arguments);
        assert_eq!((code, &*out), (78, ""), "{error}");
        assert!(error.contains("error[C002]: chassis.yaml:1:9  shop.dicount"), "{error}");
        assert!(error.contains("did you mean `discount`?") && error.contains("error[C006]"), "{error}");
    }
    std::fs::create_dir(dir.path().join("away")).unwrap();
    std::fs::rename(dir.path().join("chassis.yaml"), dir.path().join("away/chassis.yaml")).unwrap();
    assert_eq!(run(&["--set", "shop.discount=x"]).0, 78);

    // The schema needs no settings that can be used.
    let (code, out, _) = run(&["--print-schema", "--set", "shop.discount=x"]);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    let discount = &schema["properties"]["shop"]["properties"]["discount"];
    assert_eq!((code, &discount["description"]), (0, &"Percent. Default 0.".into()), "{discount}");
    assert_eq!(
        (&discount["x-reload"], &schema["properties"]["listen"]["x-reload"]),
        (&"live".into(), &"restart".into())
    );

    let (code, out, _) = run(&["--explain", "C002"]);
    assert!(code == 0 && out.starts_with("C002\n\nThe key is not known"), "{out}");
    assert_eq!(run(&["--explain", "C999"]).0, 2);
    assert_eq!(run(&["--nonesuch"]).0, 2);
    println!("the command line answers: ok");
}
