//! `turnpike cosigner FILE`: holds shares, checks its own policy, signs its part; and what its operator asks of it.
//!
//! The only file that names rustix: the process leaves no core file and cannot be read by a debugger of its own user, and
//! says so where the system does not allow that.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;

use super::output::Output;
use super::serve::stop_signal;
use super::{Failure, runtime};
use crate::amount::Amount;
use crate::audit::log::{AuditLog, Options};
use crate::audit::{Entry, Kind, Recorder};
use crate::clock::{Clock, SystemClock};
use crate::config::cosigner::CosignerConfig;
use crate::config::{self, ShareConfig};
use crate::signer::cosigner::server::{Access, Server};
use crate::signer::cosigner::store::{Refusal, Store};
use crate::signer::cosigner::{Cosigner, Settings};
use crate::signer::keystore::{self, Curve, KeyShare, Passphrase};
use crate::signer::tls;
use crate::telemetry::{self, LogFormat};

/// Holds one share of each key and signs what its own policy allows, until SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  turnpike cosigner cosigner.yaml\n  turnpike cosigner pending --file cosigner.yaml\n  turnpike cosigner approve 5f0c1d2e3a4b --file cosigner.yaml"
)]
pub struct Args {
    #[command(subcommand)]
    act: Option<Act>,
    /// The configuration file
    #[arg(default_value = "cosigner.yaml")]
    file: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// List what waits for an approval
    Pending(Of),
    /// List what was refused, newest first
    Refusals(Of),
    /// Approve what waits under a name of the list, once
    Approve {
        /// The name
        id: String,
        /// Up to how much, in the asset's atomic units, where it may have become more than was asked for
        #[arg(long, value_name = "AMOUNT")]
        up_to: Option<Amount>,
        #[command(flatten)]
        of: Of,
    },
}

#[derive(Debug, clap::Args)]
struct Of {
    /// The configuration file
    #[arg(long, default_value = "cosigner.yaml")]
    file: PathBuf,
    /// A JSON array instead of a table
    #[arg(long)]
    json: bool,
}

/// How many refusals are listed.
const REFUSALS_SHOWN: u32 = 100;

/// Runs the command.
///
/// # Errors
/// [`Failure`].
pub fn run(args: &Args, output: &mut Output) -> Result<(), Failure> {
    match &args.act {
        None => serve(&args.file, output),
        Some(Act::Pending(of)) => pending(of, output),
        Some(Act::Refusals(of)) => refusals(of, output),
        Some(Act::Approve { id, up_to, of }) => approve(id, *up_to, of, output),
    }
}

fn load(file: &Path, output: &mut Output) -> Result<CosignerConfig, Failure> {
    let (config, warnings) = CosignerConfig::load(file, &super::environment).map_err(Failure::unusable)?;
    for warning in warnings {
        output.error(&warning.0.to_string());
    }
    Ok(config)
}

fn serve(file: &Path, output: &mut Output) -> Result<(), Failure> {
    let mut config = load(file, output)?;
    let format = match config.log.format {
        config::LogFormat::Json => LogFormat::Json,
        config::LogFormat::Text => LogFormat::Text,
    };
    telemetry::init_logs(format, config.log.level.as_str());
    keep_memory_private();
    runtime()?.block_on(async {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let audit = open_audit(&config, &clock)?;
        if let Some(audit) = &audit {
            audit.record(Entry::new(Kind::Start).text("cosigner", &config.name)).await.map_err(Failure::failed)?;
        }
        let settings = Settings {
            name: config.name.clone(),
            // With their passphrases: these are wiped once the shares are open.
            share: config.share.take().map(open).transpose()?,
            evm_share: config.evm_share.take().map(open).transpose()?,
            policy: config.policy.clone(),
            store: config.store.clone(),
            audit: audit.clone(),
        };
        if settings.evm_share.is_some() {
            tracing::warn!(
                "the share on secp256k1 signs by DKLs23 with a library of which no audit is published: docs/cosigners.md \
                 says what that means and what is done about it"
            );
        }
        let cosigner = Cosigner::open(settings, clock).map_err(Failure::failed)?;
        let access = Access { tls: tls::server(&config.tls).map_err(Failure::failed)?, coordinators: config.coordinators };
        let server = Server::bind(config.listen).await?;
        tracing::info!(name = config.name, listen = %server.address(), coordinators = ?access.coordinators, "the cosigner is ready");
        server.run(cosigner, access, async { drop(stop_signal().await) }).await;
        if let Some(audit) = &audit {
            audit.record(Entry::new(Kind::Stop).text("cosigner", &config.name)).await.map_err(Failure::failed)?;
        }
        tracing::info!("stopped");
        Ok(())
    })
}

fn open<C: Curve>(share: ShareConfig) -> Result<KeyShare<C>, Failure> {
    let passphrase = Passphrase::new(share.passphrase.expose().to_owned());
    keystore::open(&share.file, &passphrase).map_err(Failure::failed)
}

fn open_audit(config: &CosignerConfig, clock: &Arc<dyn Clock>) -> Result<Option<Arc<dyn Recorder>>, Failure> {
    let Some(directory) = &config.audit else {
        tracing::warn!("audit: off. Nothing proves what was signed");
        return Ok(None);
    };
    let options = Options { clock: Arc::clone(clock), ..Options::default() };
    let log = AuditLog::open(directory, options).map_err(Failure::failed)?;
    Ok(Some(Arc::new(log)))
}

/// No core file, and no other process of the same user that reads this one's memory.
fn keep_memory_private() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    if let Err(error) = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }) {
        tracing::warn!(%error, "core files cannot be turned off: a crash may leave the shares on a disk");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the process cannot be hidden from debuggers of the same user");
    }
}

fn store(of: &Of, output: &mut Output) -> Result<Store, Failure> {
    let config = load(&of.file, output)?;
    Store::open(&config.store).map_err(Failure::failed)
}

fn pending(of: &Of, output: &mut Output) -> Result<(), Failure> {
    let approvals = store(of, output)?.approvals(SystemClock.now()).map_err(Failure::failed)?;
    if of.json {
        output.line(serde_json::to_string(&approvals).map_err(Failure::failed)?);
        return Ok(());
    }
    if approvals.is_empty() {
        output.line("Nothing waits for an approval.");
    }
    for approval in approvals {
        let state = approval.approved.map_or_else(String::new, |most| format!("  approved up to {most}"));
        output.line(format_args!(
            "{}  {}  {}  {} atomic units  {}{state}",
            approval.id, approval.entry, approval.kind, approval.amount, approval.channels
        ));
    }
    Ok(())
}

fn refusals(of: &Of, output: &mut Output) -> Result<(), Failure> {
    let refusals = store(of, output)?.refusals(REFUSALS_SHOWN).map_err(Failure::failed)?;
    if of.json {
        output.line(serde_json::to_string(&refusals).map_err(Failure::failed)?);
        return Ok(());
    }
    if refusals.is_empty() {
        output.line("Nothing was refused.");
    }
    for Refusal { at, network, kind, rule, detail } in refusals {
        output.line(format_args!("{at}  {network}  {kind}  {rule}: {detail}"));
    }
    Ok(())
}

fn approve(id: &str, up_to: Option<Amount>, of: &Of, output: &mut Output) -> Result<(), Failure> {
    let approved = store(of, output)?.approve(id, up_to, SystemClock.now()).map_err(Failure::failed)?;
    match approved {
        Some(most) if of.json => output.line(serde_json::json!({ "id": id, "upTo": most })),
        Some(most) => output.line(format_args!("{id} may be signed once, up to {most} atomic units, within a day.")),
        None => {
            return Err(Failure::failed(format_args!(
                "nothing waits under {id}: turnpike cosigner pending lists what does"
            )));
        }
    }
    Ok(())
}
