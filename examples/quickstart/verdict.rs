//! Whether it held: what is asked of the shop, and what came of it.
use std::process::ExitCode;

use tokio::time::Instant;

use crate::{
    load::{Call, Ended},
    settings::{AFTER, BEFORE},
    story::Told,
};

/// What is asked, one by one, with whether it held.
pub(crate) struct Verdict {
    happened: Vec<String>,
    asked: Vec<(bool, String)>,
    /// What callers were told instead of an answer.
    wrong: Vec<String>,
}

/// The least share of calls that have to be answered well.
const GOOD: f64 = 0.999;
/// The shares have followed when so many calls in a row are within so much of the new ones.
const RECENT: usize = 100;
const NEAR: f64 = 0.10;
/// They have to within so many seconds.
const FOLLOWED: f64 = 5.0;
/// Draws stray by so many standard deviations once in 15,000 times.
const SIGMAS: f64 = 4.0;

/// Judges.
pub(crate) fn of(told: &Told) -> Verdict {
    let mut verdict = Verdict { happened: Vec::new(), asked: Vec::new(), wrong: Vec::new() };
    let at = |at: Instant| at.saturating_duration_since(told.began).as_secs_f64();
    verdict.happened =
        told.happened.iter().map(|(when, line)| format!("{:5.1} s  {line}", at(*when))).collect();
    verdict.answers(told);
    verdict.version(told);
    verdict.shares(told);
    verdict.header(told);
    verdict.stop(told);
    verdict
}

// === impl Verdict ===

impl Verdict {
    /// Prints all of it.
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

    /// Calls that were refused unsent after the stop had begun are no calls of the shop's any more.
    fn answers(&mut self, told: &Told) {
        let counted: Vec<&Call> = told.calls.iter().filter(|call| !is_after_the_end(call, told)).collect();
        let good = counted.iter().filter(|call| is_good(call)).count();
        let share = share(good, counted.len());
        let line = format!("{good} of {} calls answered well: {:.2} %", counted.len(), 100.0 * share);
        self.ask(share >= GOOD, format!("{line} (at least {} %)", 100.0 * GOOD));
        for call in counted {
            if let Ended::Bad(why) | Ended::Unsent(why) = &call.ended {
                let sent = call.sent.saturating_duration_since(told.began).as_secs_f64();
                self.wrong.push(format!("{sent:.3} s: {why}"));
            }
        }
    }

    /// Whoever sends a call after somebody was answered under the new version lives by it too.
    fn version(&mut self, told: &Told) {
        let old = told.calls.iter().filter(|call| call.over < told.swapped).filter_map(version).max();
        let is_new = |call: &&Call| version(call) > old;
        let Some(first) = told.calls.iter().filter(is_new).map(|call| call.over).min() else {
            return self.ask(false, "no call carried the new version".to_owned());
        };
        let later = || told.calls.iter().filter(|call| call.sent > first && is_good(call));
        let (all, new) = (later().count(), later().filter(is_new).count());
        let after = (first - told.swapped).as_secs_f64();
        let line = format!("{new} of {all} calls sent after the swap carried the new version");
        self.ask(all > 0 && new == all, format!("{line}, which took {after:.2} s to be in force"));
    }

    fn shares(&mut self, told: &Told) {
        let [wanted_before, wanted_after] =
            [BEFORE, AFTER].map(|[stable, canary]| f64::from(canary) / f64::from(stable + canary));
        let old = told.calls.iter().filter(|call| call.over < told.swapped).filter_map(version).max();
        let drawn: Vec<&Call> = told.calls.iter().filter(|call| is_good(call) && !call.asked).collect();
        let of = |is_old: bool| -> Vec<&Call> {
            drawn.iter().copied().filter(|call| (version(call) <= old) == is_old).collect()
        };
        let (before, after) = (of(true), of(false));
        let [was, is] = [&before, &after].map(|calls| canaries(calls));
        let held = is_near(was, wanted_before, before.len()) && is_near(is, wanted_after, after.len());
        let followed = drawn.windows(RECENT).find_map(|recent| {
            let last = recent[RECENT - 1].over;
            (last > told.swapped && (canaries(recent) - wanted_after).abs() <= NEAR).then_some(last)
        });
        let line = format!(
            "the canary's share was {:.1} % of {} calls, then {:.1} % of {}",
            100.0 * was,
            before.len(),
            100.0 * is,
            after.len()
        );
        match followed.map(|at| (at - told.swapped).as_secs_f64()) {
            None => self.ask(false, format!("{line}; it never followed")),
            Some(seconds) => {
                let line = format!("{line}; it followed in {seconds:.2} s (at most {FOLLOWED} s)");
                self.ask(held && seconds <= FOLLOWED, line);
            }
        }
    }

    fn header(&mut self, told: &Told) {
        let asked = told.calls.iter().filter(|call| call.asked && is_good(call));
        let all = asked.clone().count();
        let got = asked.filter(|call| matches!(call.ended, Ended::Good { canary: true, .. })).count();
        self.ask(got == all, format!("{got} of {all} calls that asked for the canary by a header got it"));
    }

    fn stop(&mut self, told: &Told) {
        let late: Vec<&Call> = told.calls.iter().filter(|call| call.over >= told.stopped).collect();
        let good = late.iter().filter(|call| is_good(call)).count();
        let refused = late.iter().filter(|call| is_after_the_end(call, told)).count();
        let lost = late.len() - good - refused;
        let line = format!(
            "{good} calls answered after SIGTERM, {lost} lost, {refused} refused unsent when orders was gone; \
             it took {:.2} s to stop, {}",
            (told.left - told.stopped).as_secs_f64(),
            told.status
        );
        self.ask(good > 0 && lost == 0 && told.status.success(), line);
    }
}

fn is_good(call: &Call) -> bool {
    matches!(call.ended, Ended::Good { .. })
}

fn is_after_the_end(call: &Call, told: &Told) -> bool {
    matches!(call.ended, Ended::Unsent(_)) && call.over >= told.stopped
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

/// Could `seen` of `calls` draws come of the share `wanted`?
fn is_near(seen: f64, wanted: f64, calls: usize) -> bool {
    (seen - wanted).abs() <= SIGMAS * (wanted * (1.0 - wanted) / calls.max(1) as f64).sqrt()
}
