//! `turnpike serve FILE`: the proxy, until it is asked to stop.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::output::Output;
use super::{Failure, runtime};
use crate::app::Running;
use crate::config::{self, Config};
use crate::telemetry::{self, LogFormat};

/// Serves the routes of a configuration file until SIGTERM or SIGINT, then drains.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  turnpike serve turnpike.yaml\n  RUST_LOG=turnpike=debug turnpike serve turnpike.yaml"
)]
pub struct Args {
    /// The configuration file
    #[arg(default_value = "turnpike.yaml")]
    file: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`].
pub fn run(args: Args, output: &mut Output) -> Result<(), Failure> {
    let (config, warnings) = Config::load(&args.file, &super::environment).map_err(Failure::unusable)?;
    for warning in warnings {
        output.error(&warning.0.to_string());
    }
    let format = match config.log.format {
        config::LogFormat::Json => LogFormat::Json,
        config::LogFormat::Text => LogFormat::Text,
    };
    telemetry::init_logs(format, config.log.level.as_str());
    runtime()?.block_on(async {
        let running = Running::start(config).await.map_err(Failure::failed)?;
        tracing::info!(
            listen = %running.address(),
            admin = %running.merchant().admin_address(),
            sandbox_rpc = running.merchant().sandbox().map(|sandbox| sandbox.rpc_url()),
            "turnpike is ready"
        );
        stop_signal().await?;
        tracing::info!("asked to stop: no new connections, requests in flight are finished");
        running.drain().await;
        tracing::info!("stopped");
        Ok(())
    })
}

/// Resolves on SIGTERM or SIGINT.
pub(super) async fn stop_signal() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
