//! The command line of a program: checks and prints its settings, with the kinds and sections of its builder.
use std::{ffi::OsString, process};

use chassis_config::{Code, Overrides, Version};
use clap::{Arg, ArgAction, Command};

use crate::{ChassisBuilder, StartError, document::Reader};

mod fix;
mod print;
mod schema;

/// The JSON Schema of a section.
#[allow(unused_macros, reason = "a build may have no section of its own")]
macro_rules! schema_of {
    ($section:ty) => {
        chassis_core::schema::of::<$section>()
    };
}
#[allow(unused_imports, reason = "a build may have no section of its own")]
pub(crate) use schema_of;

/// The demand of the command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cli {
    /// The builder reads the command line.
    is_on: bool,
    /// `None`: the program runs.
    ask: Option<Ask>,
    /// Deprecated keys are renamed in the files.
    fixes: bool,
    set: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Check,
    Print,
    Schema,
}

/// The exit code of settings that can't be used: `EX_CONFIG` of sysexits.
const BAD_CONFIG: i32 = 78;
/// The page that explains the codes.
const PAGE: &str = include_str!("../../docs/errors.md");

/// The JSON Schema of the settings.
#[allow(dead_code, reason = "for the admin surface, which a build may be without")]
pub(crate) fn schema_of_all(reader: &Reader) -> Option<serde_json::Value> {
    Some(schema::of(&reader.tables()))
}

// === impl Cli ===

impl Cli {
    /// Reads the command line of this process, and answers at once what needs no settings: then the process exits.
    pub(crate) fn of_process(name: &str) -> Self {
        match Cli::of(name, std::env::args_os()) {
            Ok(Ok(cli)) => cli,
            Ok(Err(page)) => {
                println!("{page}");
                process::exit(0)
            }
            Err(error) => error.exit(),
        }
    }

    /// The demand of `arguments`, or the text that they ask for.
    fn of(
        name: &str,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Result<Self, String>, clap::Error> {
        let flag = |id: &'static str, help: &'static str| {
            Arg::new(id).long(id).action(ArgAction::SetTrue).help(help)
        };
        let mut command = Command::new(name.to_owned())
            .arg(flag("check-config", "Checks the settings and exits: 0 if they can be used, 78 if not"))
            .arg(flag(
                "print-config",
                "Prints the settings in force with their origins and defaults, and exits",
            ))
            .arg(flag("print-schema", "Prints the JSON Schema of the settings (draft 07), and exits"))
            .arg(
                flag("fix", "With --check-config: gives deprecated keys their new names, in the files")
                    .requires("check-config"),
            )
            .arg(
                Arg::new("set")
                    .long("set")
                    .value_name("PATH=VALUE")
                    .action(ArgAction::Append)
                    .help("Sets one setting over all sources and the environment; may be repeated"),
            )
            .arg(
                Arg::new("explain")
                    .long("explain")
                    .value_name("CODE")
                    .help("Explains the code of a problem, as C002"),
            );
        let found = command.try_get_matches_from_mut(arguments)?;
        if let Some(code) = found.get_one::<String>("explain") {
            if let Some(text) = Code::of(code).and_then(section) {
                return Ok(Err(text.to_owned()));
            }
            let all = Code::ALL.map(|code| code.to_string()).join(", ");
            let why = format!("no code `{code}`; there are {all}");
            return Err(command.error(clap::error::ErrorKind::InvalidValue, why));
        }
        let asks =
            [("print-schema", Ask::Schema), ("print-config", Ask::Print), ("check-config", Ask::Check)];
        let ask = asks.into_iter().find(|(flag, _)| found.get_flag(flag)).map(|(_, ask)| ask);
        let set: Vec<String> = found.get_many("set").into_iter().flatten().cloned().collect();
        for set in &set {
            if let Err(why) = Overrides::default().parse(set) {
                return Err(command.error(clap::error::ErrorKind::InvalidValue, why));
            }
        }
        Ok(Ok(Cli { is_on: true, ask, fixes: found.get_flag("fix"), set }))
    }

    /// `overrides`, with those of the command line.
    pub(crate) fn overrides(&self, overrides: Overrides) -> Overrides {
        // They were read before.
        self.set.iter().fold(overrides, |all, set| all.clone().parse(set).unwrap_or(all))
    }

    /// Whether the command line asks about the settings, and the program is not to run.
    pub(crate) fn is_question(&self) -> bool {
        self.ask.is_some()
    }

    /// Answers what needs no settings, and exits; returns if there is more to do.
    pub(crate) fn answer_at_once(&self, reader: &Reader) {
        if self.ask == Some(Ask::Schema) {
            println!("{:#}", schema::of(&reader.tables()));
            process::exit(0)
        }
    }

    /// Answers what was asked about settings that can be used, and exits; returns if the program is to run.
    pub(crate) fn answer<D, T>(&self, version: &Version<D, T>, reader: &Reader) {
        match self.ask {
            None => return,
            Some(Ask::Check) => {
                version.warnings.iter().for_each(|warning| eprintln!("{warning}"));
                println!("the settings can be used; their hash is {}", version.hash);
                if self.fixes {
                    let (said, has_failed) = fix::files(&version.warnings, &reader.renamed(&version.tree));
                    said.iter().for_each(|line| println!("{line}"));
                    process::exit(i32::from(has_failed));
                }
            }
            Some(Ask::Schema) => return, // it was answered
            Some(Ask::Print) => print!("{}", print::commented(&version.tree, &schema::of(&reader.tables()))),
        }
        process::exit(0)
    }

    /// Reports why a program does not start; exits if its settings are the reason.
    pub(crate) fn refuse(&self, error: &StartError) {
        if let (true, StartError::Settings(why)) = (self.is_on, error) {
            eprintln!("{why}");
            process::exit(BAD_CONFIG)
        }
    }
}

impl ChassisBuilder {
    /// Reads the command line of this process, which may ask about the settings of this program: its kinds and sections
    /// are known to it.
    ///
    /// | argument | |
    /// | --- | --- |
    /// | `--check-config` | checks the settings; exit code 0 or 78 |
    /// | `--check-config --fix` | gives deprecated keys their new names, in the files; the rest of them stays as it is |
    /// | `--print-config` | prints the settings in force as YAML, with the origin of each, and as comments those that no source sets, with their defaults; secrets are not shown |
    /// | `--print-schema` | prints the JSON Schema of the settings, draft 07, with the kinds and sections of this program |
    /// | `--set path=value` | sets one setting over all sources; may be repeated |
    /// | `--explain C002` | explains the code of a problem |
    ///
    /// The settings are checked and printed by [`build`](ChassisBuilder::build), which then exits; the program's own work begins
    /// after it. Settings that can't be used end the process with exit code 78 (`EX_CONFIG`), their problems on stderr.
    /// Other arguments are refused: a program with arguments of its own uses [`set`](ChassisBuilder::set) instead.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> chassis::Result {
    /// let app = chassis::Chassis::builder("orders").cli().build().await?;
    /// app.run().await
    /// # }
    /// ```
    pub fn cli(mut self) -> Self {
        self.cli = Cli::of_process(&self.name);
        self
    }

    /// The JSON Schema of the settings, draft 07, with the kinds and sections of this builder: what `--print-schema`
    /// prints.
    ///
    /// Descriptions are the doc comments; `x-reload` of each key is `live` or `restart`. A section or a kind without a
    /// schema of its own allows everything: see [`Section::schema`](crate::Section::schema).
    ///
    /// ```
    /// use chassis::{Chassis, Section, schema};
    ///
    /// #[derive(Default, serde::Deserialize, schemars::JsonSchema)]
    /// #[serde(default, deny_unknown_fields)]
    /// struct Shop {
    ///     /// Percent. Default 0.
    ///     discount: u8,
    /// }
    ///
    /// let shop = Section::<Shop>::new("shop").schema(schema::of::<Shop>());
    /// let schema = Chassis::builder("orders").section(shop).schema();
    /// let discount = &schema["properties"]["shop"]["properties"]["discount"];
    /// assert_eq!((&discount["x-reload"], &discount["description"]), (&"live".into(), &"Percent. Default 0.".into()));
    /// ```
    pub fn schema(&self) -> serde_json::Value {
        schema::of(&self.reader.tables())
    }
}

/// The section of a code.
fn section(code: Code) -> Option<&'static str> {
    let title = format!("## {code}\n");
    let start = PAGE.find(&title)?;
    let end = PAGE[start + title.len()..].find("\n## ").map_or(PAGE.len(), |end| start + title.len() + end);
    Some(PAGE[start + "## ".len()..end].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_section_and_every_section_its_code() {
        for code in Code::ALL {
            let text = section(code).unwrap_or_else(|| panic!("{code} has no section"));
            assert!(text.starts_with(&code.to_string()) && text.len() > 40, "{text}");
        }
        let titles: Vec<_> = PAGE.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(titles, Code::ALL.map(|code| code.to_string()));
    }

    #[test]
    fn the_command_line_is_read() {
        let read = |arguments: &[&str]| {
            let all = ["orders"].iter().chain(arguments).map(OsString::from);
            match Cli::of("orders", all) {
                Ok(Ok(cli)) => format!("{:?} {:?}", cli.ask, cli.set),
                Ok(Err(text)) => text.lines().next().unwrap_or_default().to_owned(),
                Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
            }
        };
        assert_eq!(read(&[]), "None []");
        assert_eq!(
            read(&["--check-config", "--set", "a=1", "--set=b.c=2"]),
            r#"Some(Check) ["a=1", "b.c=2"]"#
        );
        assert_eq!(read(&["--print-config"]), "Some(Print) []");
        assert!(
            read(&["--fix"]).starts_with("error: the following required arguments"),
            "{}",
            read(&["--fix"])
        );
        assert_eq!(read(&["--explain", "c012"]), "C012");
        assert!(read(&["--explain", "C999"]).starts_with("error: no code `C999`; there are C001, C002"));
        assert_eq!(read(&["--set", "a"]), "error: `a` is no setting; write `path=value`");
        assert!(read(&["--nonesuch"]).starts_with("error: unexpected argument '--nonesuch'"));
    }
}
