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
    let shop = shop.renamed("discont", "discount");
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
        line(
            "    timeout: 2s",
            "--set; The time that a call may take to the head of its answer; local, not sent with the call",
        ),
        line("    #   attempts: 2", "default; The most attempts at a call, the first included, from 1 to 5"),
        line("# shutdown:", "Time limits of a stop"),
        line(
            "#   deadline: 25s",
            "default; How long running calls may still take once no new ones are accepted",
        ),
    ] {
        assert!(out.contains(&line), "{line} in\n{out}");
    }
    assert!(!out.contains("hunter2"), "{out}");

    // The output has the same settings, also where defaults become settings.
    write("shop: { discount: 5 }\noutbound: { services: { stock: { timeout: 1s } } }\n");
    let hash = run(&["--check-config"]).1;
    let (_, out, _) = run(&["--print-config"]);
    write(&out);
    assert_eq!(run(&["--check-config"]), (0, hash, String::new()));
    write(
        &out.lines()
            .map(|line| line.replacen("# ", "", usize::from(line.trim_start().starts_with("# "))) + "\n")
            .collect::<String>(),
    );
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

    deprecated_keys_are_renamed(dir.path());

    // The schema needs no settings that can be used.
    let (code, out, _) = run(&["--print-schema", "--set", "shop.discount=x"]);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    let discount = &schema["properties"]["shop"]["properties"]["discount"];
    let discont = &schema["properties"]["shop"]["properties"]["discont"];
    assert_eq!((&discont["deprecated"], &discont["x-reload"]), (&true.into(), &"live".into()), "{discont}");
    assert_eq!(discount.get("deprecated"), None);
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

/// A deprecated key works, with a warning; `--fix` renames it in the files and leaves the rest of them as it is.
fn deprecated_keys_are_renamed(dir: &Path) {
    let run = |arguments: &[&str]| run(dir, arguments);
    let (file, more) = (dir.join("chassis.yaml"), dir.join("chassis.d/more.json"));
    std::fs::create_dir_all(dir.join("chassis.d")).unwrap();
    std::fs::write(&file, "# our shop\nshop:\n  token: a   # discont\n  discont: 5 # percent\n").unwrap();
    std::fs::write(&more, "{ \"shop\": { \"discont\" : 6 } }").unwrap();
    assert_eq!(run(&["--set", "shop.discont=7"]).1, "runs with 7\n");
    let (code, out, error) = run(&["--check-config"]);
    assert!(code == 0 && out.starts_with("the settings can be used; their hash is "), "{out}");
    for place in ["chassis.yaml:4:3", "chassis.d/more.json:1:13"] {
        let head = format!("warning[C015]: {place}  shop.discont\n");
        assert!(error.contains(&head) && error.contains("is now called `discount`"), "{error}");
    }
    assert_eq!(error.matches("warning[").count(), 2, "{error}");
    // A file that is refused for another reason is not written.
    assert_eq!(run(&["--check-config", "--fix", "--set", "shop.discount=x"]).0, 78);
    assert!(std::fs::read_to_string(&file).unwrap().contains("discont: 5"));

    let (code, fixed, error) = run(&["--check-config", "--fix", "--set", "shop.discont=7"]);
    assert_eq!(code, 0, "{fixed}{error}");
    let lines: Vec<_> = fixed.lines().skip(1).collect();
    let files =
        ["chassis.d/more.json", "chassis.yaml"].map(|file| format!("{file}: keys have their new names"));
    let set = "--set: not a file: write `discount` there in place of `shop.discont`";
    assert_eq!(lines, [set, &files[0], &files[1]]);
    let now = std::fs::read_to_string(&file).unwrap();
    assert_eq!(now, "# our shop\nshop:\n  token: a   # discont\n  discount: 5 # percent\n");
    assert_eq!(std::fs::read_to_string(&more).unwrap(), "{ \"shop\": { \"discount\" : 6 } }");
    assert_eq!(run(&["--check-config"]), (0, out, String::new()), "the same settings, without a warning");

    std::fs::write(&file, "shop: { discont: 5, discount: 6 }").unwrap();
    let (code, _, error) = run(&["--check-config", "--fix"]);
    assert!(
        code == 78 && error.contains("`discont` is the former name of `discount`, and both are here"),
        "{error}"
    );
    std::fs::remove_file(&more).unwrap();
    std::fs::remove_dir(dir.join("chassis.d")).unwrap();
    std::fs::remove_file(&file).unwrap();
}
