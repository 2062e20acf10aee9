//! Runs a row under callgrind and reads its counts.
use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

use super::child::Job;
use crate::Result;

/// The cost of one execution.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub instructions: f64,
    pub allocations: f64,
}

/// The counts of callgrind in one lap.
#[derive(Debug, Default, PartialEq)]
struct Lap {
    instructions: u64,
    allocations: u64,
}

/// Each call of these is an allocation, as memcheck and dhat count them.
const ALLOCATORS: [&str; 6] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];

/// Whether this machine has valgrind.
pub fn is_there() -> bool {
    let asked =
        Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// Measures the cost of one execution of each of `jobs`: the difference of its two laps. All jobs run in one
/// process, so only the first one pays for the start. The profiles stay in `out`, with a number appended:
/// three of each job, the third for `callgrind_annotate`.
pub fn count(jobs: &[Job], out: &Path) -> Result<Vec<Counts>> {
    let program = std::env::current_exe()?;
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--quiet", "--read-inline-info=no"])
        .arg("--dump-before=*chassis_bench_lap*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .arg("layers");
    for job in jobs {
        valgrind.args(["--child", &job.to_string()]);
    }
    let output = valgrind.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => "valgrind is not installed: it counts the instructions".into(),
        _ => crate::Error::from(error),
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} under valgrind\n{said}", output.status).into());
    }
    let lap = |number: usize| -> Result<Lap> {
        let path = format!("{}.{number}", out.display());
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        Lap::read(&text).ok_or_else(|| format!("{path} is not what callgrind used to write").into())
    };
    let counts = jobs.iter().enumerate().map(|(index, job)| {
        // The first part is the end of the job before, the start and the warm-up.
        let (short, long) = (lap(3 * index + 2)?, lap(3 * index + 3)?);
        let times = (job.laps.long - job.laps.short) as f64;
        let each = |short: u64, long: u64| (long as f64 - short as f64) / times;
        Ok(Counts {
            instructions: each(short.instructions, long.instructions),
            allocations: each(short.allocations, long.allocations),
        })
    });
    counts.collect()
}

// === impl Lap ===

impl Lap {
    /// Parses a profile: `totals:` has the instructions, each `calls=` below a `cfn=` the number of its
    /// calls. Each name is written once and then referenced by number.
    fn read(profile: &str) -> Option<Lap> {
        let mut names: HashMap<&str, &str> = HashMap::new();
        let (mut called, mut allocations, mut instructions) = ("", 0, None);
        for line in profile.lines() {
            let Some((key, value)) = line.split_once('=').or_else(|| line.split_once(": ")) else { continue };
            match key {
                "fn" | "cfn" => {
                    let (number, name) = value.split_once(' ').unwrap_or((value, ""));
                    if !name.is_empty() {
                        names.insert(number, name);
                    }
                    if key == "cfn" {
                        called = names.get(number).copied().unwrap_or("");
                    }
                }
                "calls" if ALLOCATORS.contains(&called) => {
                    allocations += value.split(' ').next()?.parse::<u64>().ok()?;
                }
                "totals" | "summary" => instructions = value.trim().parse().ok().or(instructions),
                _ => {}
            }
        }
        Some(Lap { instructions: instructions?, allocations })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read() {
        let profile = "\
version: 1
creator: callgrind-3.19.0
events: Ir
fn=(1) main
16 400
cfn=(2) malloc
calls=3 0
16 30
fn=(3) other
cfn=(2)
calls=2 +4
20 9
cfn=(4) free
calls=5 0
20 9
totals: 448
";
        assert_eq!(Lap::read(profile), Some(Lap { instructions: 448, allocations: 5 }));
        assert_eq!(Lap::read("events: Ir\n"), None);
    }
}
