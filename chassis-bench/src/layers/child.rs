//! The child processes of this program: rows under callgrind, and timed rows, on one thread without sockets.
use std::{
    fmt,
    process::Command,
    str::FromStr,
    time::{Duration, Instant},
};

use super::{
    case::{Case, Laps, chassis_bench_lap},
    rows,
};
use crate::Result;

/// One row to run, with its number of callers and repetitions.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    pub row: String,
    pub callers: usize,
    pub laps: Laps,
}

/// The work of a child process.
pub enum Child {
    /// The three laps of each job, one job after the other, for callgrind.
    Laps(Vec<Job>),
    /// The nanoseconds of a job minus those of another, in batches for about this time.
    Time(Job, Option<Job>, Duration),
}

// === impl Child ===

impl Child {
    /// Runs it in this process.
    pub fn run(&self) -> Result {
        match self {
            Child::Laps(jobs) => jobs.iter().try_for_each(|job| {
                job.stage(async |case| {
                    for (number, times) in
                        [job.laps.warm, job.laps.short, job.laps.long].into_iter().enumerate()
                    {
                        case.run(times, job.callers).await;
                        chassis_bench_lap(number);
                    }
                })
            })?,
            Child::Time(job, None, time) => job.stage(async |case| {
                let [ns] = quickest([(job, case)], *time).await;
                println!("{ns}");
            })?,
            Child::Time(job, Some(base), time) => job.stage(async |case| {
                let base_case = base.make().await;
                let [ns, base] = quickest([(job, case), (base, &*base_case)], *time).await;
                println!("{}", ns - base);
            })?,
        }
        // Ends without dropping the row's state: that would take long and is not measured.
        std::process::exit(0);
    }
}

// === impl Job ===

impl Job {
    /// The job's nanoseconds minus those of `base`, measured alone in a process.
    pub fn time(&self, base: Option<&Job>, time: Duration) -> Result<f64> {
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["layers", "--time", &self.to_string(), "--millis", &time.as_millis().to_string()]);
        if let Some(base) = base {
            child.args(["--beyond", &base.to_string()]);
        }
        let output = child.output()?;
        if !output.status.success() {
            return Err(format!("{self}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    }

    /// Gives `play` the case, on a runtime of its own.
    fn stage(&self, play: impl AsyncFn(&dyn Case)) -> Result {
        if rows::all().iter().all(|row| row.name != self.row) {
            return Err(format!("there is no row `{}`", self.row).into());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async { play(&*self.make().await).await });
        Ok(())
    }

    async fn make(&self) -> Box<dyn Case> {
        let row = rows::all().into_iter().find(|row| row.name == self.row);
        row.expect("its name was looked up before").make().await
    }
}

/// Nanoseconds of one repetition of each, in the fastest batch of about ten milliseconds; batches alternate.
async fn quickest<const N: usize>(jobs: [(&Job, &dyn Case); N], time: Duration) -> [f64; N] {
    const BATCH: Duration = Duration::from_millis(10);
    let mut best = [f64::INFINITY; N];
    let mut times = jobs.map(|(job, _)| job.laps.short.max(job.callers));
    for (job, case) in jobs {
        case.run(job.laps.warm, job.callers).await;
    }
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        let mut all_are_long = true;
        for (at, (job, case)) in jobs.into_iter().enumerate() {
            let begun = Instant::now();
            case.run(times[at], job.callers).await;
            let took = begun.elapsed();
            best[at] = best[at].min(took.as_nanos() as f64 / times[at] as f64);
            if took < BATCH / 2 && times[at] < 1 << 24 {
                times[at] *= 2;
                all_are_long = false;
            }
        }
        if end.is_none() && all_are_long {
            end = Some(Instant::now() + time);
        }
    }
    best
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Job { row, callers, laps: Laps { warm, short, long } } = self;
        write!(f, "{row},{callers},{warm},{short},{long}")
    }
}

impl FromStr for Job {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let no_job = || format!("`{text}` is no job; write ROW,CALLERS,WARM,SHORT,LONG");
        let mut parts = text.split(',');
        let row = parts.next().unwrap_or_default().to_owned();
        let numbers: Vec<usize> = parts.map(str::parse).collect::<Result<_, _>>().map_err(|_| no_job())?;
        match numbers[..] {
            [callers, warm, short, long] if short < long => {
                Ok(Job { row, callers, laps: Laps { warm, short, long } })
            }
            _ => Err(no_job()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_as_it_was_written() {
        let job = Job { row: "bare_tonic".to_owned(), callers: 64, laps: Laps::CALLS };
        assert_eq!(job.to_string().parse(), Ok(job));
        for wrong in ["bare_tonic", "bare_tonic,1,2,3", "bare_tonic,1,2,3,x", "bare_tonic,1,2,4,4"] {
            assert!(wrong.parse::<Job>().is_err(), "{wrong}");
        }
    }
}
