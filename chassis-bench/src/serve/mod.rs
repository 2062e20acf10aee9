//! `chassis-bench serve`: an ordinary chassis service, over gRPC and REST, with an adjustable behaviour.
//!
//! It calls its upstreams and answers with the hops of the call, one for each service. Its behaviour can be
//! read and changed while it runs: `GET` and `PUT /behaviour`.
mod behaviour;
mod grpc;
mod rest;
mod slots;
mod upstream;
mod work;

use std::path::PathBuf;

use chassis::Chassis;
use lexopt::prelude::*;

pub use self::{
    behaviour::{Behaviour, Errors, Latency, Share},
    grpc::Echo,
    rest::EchoReply,
    slots::Slots,
    upstream::Upstream,
    work::{Status, Work},
};
use crate::{Result, echo};

/// The options of a server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The service's name.
    pub name: String,
    /// The file of its settings.
    pub config: PathBuf,
    /// Its initial behaviour.
    pub behaviour: Behaviour,
    /// The services it calls before it answers.
    pub upstreams: Vec<Upstream>,
    /// Whether to print a line on standard output when it takes calls.
    pub print_ready: bool,
}

const USAGE: &str = "\
chassis-bench serve --name N --config FILE [options]

  --name N            the service's name
  --config FILE       its settings: chassis.yaml, TOML or JSON
  --latency L         5ms | 2ms..20ms | lognormal:5ms,0.5 (median, sigma); default 0s
  --errors SHARE:CODE as in 10%:UNAVAILABLE; default none
  --hang SHARE        calls never answered, as in 1%; default none
  --slots N           work on N calls at once, the others wait in line; default 0: all at once
  --upstream S:P      calls service S over protocol P, grpc or http, before it answers; any number of them
  --print-ready       print `ready instance=ID grpc=ADDRESS http=ADDRESS` once calls are taken

gRPC: bench.v1.Echo. REST: POST /call, GET /call/{id}, GET /download/{repeat}, POST /upload, POST /chat.
While it runs: GET /behaviour returns its behaviour and the number of executed calls, PUT /behaviour changes
what the document names, as in {\"latency\": \"50ms\", \"errors\": \"100%:UNAVAILABLE\"}.
";

/// Runs the subcommand.
pub fn run(mut args: lexopt::Parser) -> Result {
    let mut options = Options::default();
    while let Some(arg) = args.next()? {
        match arg {
            Long("name") => options.name = args.value()?.string()?,
            Long("config") => options.config = args.value()?.into(),
            Long("latency") => options.behaviour.latency = args.value()?.parse()?,
            Long("errors") => options.behaviour.errors = args.value()?.parse()?,
            Long("hang") => options.behaviour.hang = args.value()?.parse()?,
            Long("slots") => options.behaviour.slots = args.value()?.parse()?,
            Long("upstream") => options.upstreams.push(args.value()?.parse()?),
            Long("print-ready") => options.print_ready = true,
            Long("help") | Short('h') => {
                print!("{USAGE}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if options.name.is_empty() || options.config.as_os_str().is_empty() {
        return Err(format!("--name and --config are needed\n\n{USAGE}").into());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(options))
}

/// Serves until SIGTERM or SIGINT.
pub async fn serve(options: Options) -> Result {
    let (ready, print_ready) = (options.name.clone(), options.print_ready);
    let app = Chassis::builder(&options.name)
        .config_file(&options.config)
        .descriptors(echo::FILE_DESCRIPTOR_SET)
        .build()
        .await?;
    let work = Work::new(&app, options.behaviour, &options.upstreams);
    let instance = app.instance().to_owned();
    let app = app.serve_grpc(Echo::service(work.clone())).serve_http(rest::router(work));
    let mut end = Ends::new()?;
    let running = app.start().await?;
    if print_ready {
        let at = |name| running.address(name).unwrap_or("-");
        println!("ready service={ready} instance={instance} grpc={} http={}", at("grpc"), at("http"));
    }
    end.next().await;
    running.stop().await;
    Ok(())
}

/// SIGTERM and SIGINT.
pub(crate) struct Ends([tokio::signal::unix::Signal; 2]);

// === impl Ends ===

impl Ends {
    pub(crate) fn new() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Ends([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]))
    }

    pub(crate) async fn next(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    }
}
