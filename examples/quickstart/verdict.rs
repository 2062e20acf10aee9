//! The checks of the run, and their results.
use std::process::ExitCode;

use tokio::time::Instant;

use crate::{
    load::{Call, Ended},
    settings::{AFTER, BEFORE},
    story::Record,
};

/// The checks, each with whether it passed.
pub(crate) struct Verdict {
    happened: Vec<String>,
    asked: Vec<(bool, String)>,
    /// The errors that callers received.
    wrong: Vec<String>,
}

/// The smallest share of calls that must be answered well.
const GOOD: f64 = 0.999;
/// The shares have followed the change when the share over `RECENT` calls in a row is within `NEAR` of the
/// new one.
const RECENT: usize = 100;
const NEAR: f64 = 0.10;
/// Seconds within which the shares must follow.
const FOLLOWED: f64 = 5.0;
/// A random share deviates by this many standard deviations once in 15,000 runs.
const SIGMAS: f64 = 4.0;

/// Runs all checks.
pub(crate) fn of(record: &Record) -> Verdict {
    let mut verdict = Verdict { happened: Vec::new(), asked: Vec::new(), wrong: Vec::new() };
    let at = |at: Instant| at.saturating_duration_since(record.began).as_secs_f64();
    verdict.happened =
        record.happened.iter().map(|(when, line)| format!("{:5.1} s  {line}", at(*when))).collect();
    verdict.answers(record);
    verdict.version(record);
    verdict.shares(record);
    verdict.header(record);
    verdict.stop(record);
    verdict
}

// === impl Verdict ===

impl Verdict {
    /// Prints the record and the checks; the exit code is a failure if a check failed.
    pub(crate) fn print(&self) -> ExitCode {
        println!("\nwhat happened");
        self.happened.iter().for_each(|line| println!("  {line}"));
        println!("what held");
        for (held, line) in &self.asked {
            println!("  {}  {line}", if *held { "yes" } else { "NO " });
        }
        self.wrong.iter().for_each(|line| println!("       {line}"));
        match self.asked.iter().all(|(held, _)| *held) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }

    fn ask(&mut self, held: bool, line: String) {
        self.asked.push((held, line));
    }

    /// Calls that were refused unsent after the stop began do not count as calls of the shop.
    fn answers(&mut self, record: &Record) {
        let counted: Vec<&Call> =
            record.calls.iter().filter(|call| !is_after_the_end(call, record)).collect();
        let good = counted.iter().filter(|call| is_good(call)).count();
        let share = share(good, counted.len());
        let line = format!("{good} of {} calls answered well: {:.2} %", counted.len(), 100.0 * share);
        self.ask(share >= GOOD, format!("{line} (at least {} %)", 100.0 * GOOD));
        for call in counted {
            if let Ended::Bad(why) | Ended::Unsent(why) = &call.ended {
                let sent = call.sent.saturating_duration_since(record.began).as_secs_f64();
                self.wrong.push(format!("{sent:.3} s: {why}"));
            }
        }
    }

    /// Once an answer carries the new version, every call that is sent later must carry it too.
    fn version(&mut self, record: &Record) {
        let old = record.calls.iter().filter(|call| call.over < record.swapped).filter_map(version).max();
        let is_new = |call: &&Call| version(call) > old;
        let Some(first) = record.calls.iter().filter(is_new).map(|call| call.over).min() else {
            return self.ask(false, "no call carried the new version".to_owned());
        };
        let later = || record.calls.iter().filter(|call| call.sent > first && is_good(call));
        let (all, new) = (later().count(), later().filter(is_new).count());
        let after = (first - record.swapped).as_secs_f64();
        let line = format!("{new} of {all} calls sent after the swap carried the new version");
        self.ask(all > 0 && new == all, format!("{line}, which took {after:.2} s to be in force"));
    }

    fn shares(&mut self, record: &Record) {
        let [wanted_before, wanted_after] =
            [BEFORE, AFTER].map(|[stable, canary]| f64::from(canary) / f64::from(stable + canary));
        let old = record.calls.iter().filter(|call| call.over < record.swapped).filter_map(version).max();
        let drawn: Vec<&Call> = record.calls.iter().filter(|call| is_good(call) && !call.asked).collect();
        let of = |is_old: bool| -> Vec<&Call> {
            drawn.iter().copied().filter(|call| (version(call) <= old) == is_old).collect()
        };
        let (before, after) = (of(true), of(false));
        let [was, is] = [&before, &after].map(|calls| canaries(calls));
        let held = is_near(was, wanted_before, before.len()) && is_near(is, wanted_after, after.len());
        let followed = drawn.windows(RECENT).find_map(|recent| {
            let last = recent[RECENT - 1].over;
            (last > record.swapped && (canaries(recent) - wanted_after).abs() <= NEAR).then_some(last)
        });
        let line = format!(
            "the canary's share was {:.1} % of {} calls, then {:.1} % of {}",
            100.0 * was,
            before.len(),
            100.0 * is,
            after.len()
        );
        match followed.map(|at| (at - record.swapped).as_secs_f64()) {
            None => self.ask(false, format!("{line}; it never followed")),
            Some(seconds) => {
                let line = format!("{line}; it followed in {seconds:.2} s (at most {FOLLOWED} s)");
                self.ask(held && seconds <= FOLLOWED, line);
            }
        }
    }

    fn header(&mut self, record: &Record) {
        let asked = record.calls.iter().filter(|call| call.asked && is_good(call));
        let all = asked.clone().count();
        let got = asked.filter(|call| matches!(call.ended, Ended::Good { canary: true, .. })).count();
        self.ask(got == all, format!("{got} of {all} calls that asked for the canary by a header got it"));
    }

    fn stop(&mut self, record: &Record) {
        let late: Vec<&Call> = record.calls.iter().filter(|call| call.over >= record.stopped).collect();
        let good = late.iter().filter(|call| is_good(call)).count();
        let refused = late.iter().filter(|call| is_after_the_end(call, record)).count();
        let lost = late.len() - good - refused;
        let line = format!(
            "{good} calls answered after SIGTERM, {lost} lost, {refused} refused unsent when orders was gone; \
             it took {:.2} s to stop, {}",
            (record.left - record.stopped).as_secs_f64(),
            record.status
        );
        self.ask(good > 0 && lost == 0 && record.status.success(), line);
    }
}

fn is_good(call: &Call) -> bool {
    matches!(call.ended, Ended::Good { .. })
}

fn is_after_the_end(call: &Call, record: &Record) -> bool {
    matches!(call.ended, Ended::Unsent(_)) && call.over >= record.stopped
}

fn version(call: &Call) -> Option<u64> {
    match call.ended {
        Ended::Good { version, .. } => Some(version),
        _ => None,
    }
}

/// The share of calls that the canary answered.
fn canaries(calls: &[&Call]) -> f64 {
    let canaries = calls.iter().filter(|call| matches!(call.ended, Ended::Good { canary: true, .. }));
    share(canaries.count(), calls.len())
}

fn share(some: usize, all: usize) -> f64 {
    some as f64 / all.max(1) as f64
}

/// Whether `seen` of `calls` random draws is plausible for the share `wanted`.
fn is_near(seen: f64, wanted: f64, calls: usize) -> bool {
    (seen - wanted).abs() <= SIGMAS * (wanted * (1.0 - wanted) / calls.max(1) as f64).sqrt()
}
