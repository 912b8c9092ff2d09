//! `turnpike check`: every problem of a configuration at once, or what it says.
//!
//! Exit status: 0 where the file is fine, 1 where it has problems, 2 where it cannot be read.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::config::cosigner::CosignerConfig;
use crate::config::{
    Config, Env, FacilitatorConfig, Family, NetworkConfig, NetworkPrice, Problems, RouteConfig, RoutePricing, RpcUrl,
    Unlisted, Warning,
};

/// The file is fine.
pub const EXIT_FINE: u8 = 0;
/// The file has problems.
pub const EXIT_PROBLEMS: u8 = 1;
/// The file cannot be read.
pub const EXIT_UNREADABLE: u8 = 2;

/// Arguments of `turnpike check`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration.
    #[arg(default_value = "turnpike.yaml")]
    pub file: PathBuf,
    /// Write one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Checks a file and says what it found on `out`.
///
/// # Errors
/// Where `out` cannot be written.
pub fn run(args: &Args, env: &Env<'_>, out: &mut dyn Write) -> io::Result<u8> {
    if CosignerConfig::is_meant(&args.file) {
        return cosigner(args, env, out);
    }
    match Config::load(&args.file, env) {
        Ok((config, warnings)) => {
            if args.json {
                writeln!(out, "{:#}", fine_json(&config, &warnings))?;
            } else {
                write_fine(&config, &warnings, out)?;
            }
            Ok(EXIT_FINE)
        }
        Err(problems) => refused(args, &problems, out),
    }
}

/// A cosigner's file.
fn cosigner(args: &Args, env: &Env<'_>, out: &mut dyn Write) -> io::Result<u8> {
    match CosignerConfig::load(&args.file, env) {
        Ok((config, warnings)) => {
            let entries: Vec<_> = config.policy.iter().map(|entry| entry.name.as_str()).collect();
            if args.json {
                let warnings: Vec<_> = warnings.iter().map(|Warning(warning)| json!(warning)).collect();
                let fine = json!({ "ok": true, "file": config.source.display().to_string(), "cosigner": config.name,
                    "policy": entries, "warnings": warnings });
                writeln!(out, "{fine:#}")?;
                return Ok(EXIT_FINE);
            }
            writeln!(out, "{} is fine.\n", config.source.display())?;
            writeln!(out, "{} listens on {} for {}.", config.name, config.listen, config.coordinators.join(", "))?;
            writeln!(out, "Signs for {}.", entries.join(", "))?;
            for Warning(warning) in &warnings {
                writeln!(out, "warning: {}{warning}", config.source.display())?;
            }
            Ok(EXIT_FINE)
        }
        Err(problems) => refused(args, &problems, out),
    }
}

fn refused(args: &Args, problems: &Problems, out: &mut dyn Write) -> io::Result<u8> {
    if args.json {
        let problems = json!({ "ok": false, "file": problems.file, "unreadable": problems.unreadable,
            "problems": problems.problems, "more": problems.more });
        writeln!(out, "{problems:#}")?;
    } else {
        write_problems(problems, out)?;
    }
    Ok(if problems.unreadable { EXIT_UNREADABLE } else { EXIT_PROBLEMS })
}

fn write_problems(problems: &Problems, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{problems}")?;
    let count = problems.problems.len().saturating_add(problems.more);
    if problems.unreadable {
        return Ok(());
    }
    writeln!(out, "\n{count} {}.", if count == 1 { "problem" } else { "problems" })
}

fn write_fine(config: &Config, warnings: &[Warning], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} is fine.\n", config.source.display())?;
    let rows: Vec<[String; 5]> = config.routes.iter().map(|route| row(config, route)).collect();
    let heads = ["METHODS", "ROUTE", "PRICE", "SCHEME", "UPSTREAM"];
    write_table(heads, &rows, out)?;
    let unlisted = match config.default {
        Unlisted::Deny => "refused",
        Unlisted::Free => "free",
    };
    writeln!(out, "\nAny other path is {unlisted}.")?;
    for network in &config.networks {
        writeln!(out, "{}", network_text(config, network))?;
    }
    let tls = if config.tls.is_some() { "https" } else { "http" };
    writeln!(out, "Listens on {tls}://{}, admin on http://{}.", config.listen, config.admin.listen)?;
    match config.replay {
        Some(replay) => writeln!(
            out,
            "A lost answer of up to {} bytes can be had again for {} s.",
            replay.body_bytes,
            replay.keep.as_secs()
        )?,
        None => writeln!(out, "A lost answer cannot be had again.")?,
    }
    if !warnings.is_empty() {
        writeln!(out)?;
    }
    for Warning(warning) in warnings {
        writeln!(out, "warning: {}{warning}", config.source.display())?;
    }
    Ok(())
}

/// Where the money goes, and by what, in a sentence.
fn network_text(config: &Config, network: &NetworkConfig) -> String {
    let all = |urls: &[RpcUrl]| urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let symbol = &network.asset.symbol;
    match &network.family {
        Family::Svm(svm) => {
            let pay_to = svm.pay_to.map_or_else(|| "a wallet of the sandbox".to_owned(), |key| key.to_string());
            let sandbox = if config.sandbox.is_some() { "the sandbox, shown as " } else { "" };
            let by = if svm.rpc_urls.is_empty() { String::new() } else { format!(", by {}", all(&svm.rpc_urls)) };
            format!("Paid in {symbol} on {sandbox}{}, to {pay_to}{by}.", network.network)
        }
        Family::Evm(evm) => {
            let name = network.network.short_name().map(|name| format!("{name} ")).unwrap_or_default();
            let by = match &evm.facilitator {
                FacilitatorConfig::Local(_) => format!("sent from here by {}", all(&evm.rpc_urls)),
                FacilitatorConfig::Remote(remotes) => {
                    let urls: Vec<_> = remotes.iter().map(|remote| remote.url.clone()).collect();
                    format!("sent by the facilitator at {}", all(&urls))
                }
            };
            format!("Paid in {symbol} on {name}{}, to {}, {by}.", network.network, evm.pay_to)
        }
    }
}

fn row(config: &Config, route: &RouteConfig) -> [String; 5] {
    let methods: Vec<_> = route.methods.iter().map(|method| method.as_str()).collect();
    [
        if methods.is_empty() { "all".to_owned() } else { methods.join(" ") },
        format!("{}{}", route.host.as_deref().unwrap_or_default(), route.path),
        priced(route),
        schemes(&route.pricing).join(" or "),
        route.upstream.as_deref().map_or_else(|| origins(config), str::to_owned),
    ]
}

fn origins(config: &Config) -> String {
    let origins: Vec<_> = config.upstream.iter().map(|uri| uri.to_string().trim_end_matches('/').to_owned()).collect();
    origins.join(" ")
}

fn prices(pricing: &RoutePricing) -> &[NetworkPrice] {
    match pricing {
        RoutePricing::Free => &[],
        RoutePricing::Fixed(prices) | RoutePricing::Metered { prices, .. } => prices,
    }
}

/// The schemes by which a price is paid, each once.
fn schemes(pricing: &RoutePricing) -> Vec<&'static str> {
    let mut schemes = Vec::new();
    for scheme in prices(pricing).iter().map(|price| price.scheme.as_str()) {
        if !schemes.contains(&scheme) {
            schemes.push(scheme);
        }
    }
    schemes
}

/// A route's price, and that of its pack.
fn priced(route: &RouteConfig) -> String {
    let one = price_text(&route.pricing);
    let Some(pack) = &route.pack else { return one };
    let mut texts: Vec<_> = pack.prices.iter().map(decimal).collect();
    texts.dedup();
    format!("{one}; {} calls {}", pack.calls, texts.join(" or "))
}

fn price_text(pricing: &RoutePricing) -> String {
    let most = match pricing {
        RoutePricing::Free => return "free".to_owned(),
        RoutePricing::Fixed(_) => "",
        RoutePricing::Metered { .. } => "up to ",
    };
    let mut texts: Vec<_> = prices(pricing).iter().map(decimal).collect();
    texts.dedup();
    format!("{most}{}", texts.join(" or "))
}

/// A price in its asset, such as `0.001 USDC`.
fn decimal(price: &NetworkPrice) -> String {
    format!("{} {}", price.asset.format_decimal(price.amount), price.asset.symbol)
}

/// Writes rows in columns as wide as they need.
fn write_table<const N: usize>(heads: [&str; N], rows: &[[String; N]], out: &mut dyn Write) -> io::Result<()> {
    let mut widths = heads.map(|head| head.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heads = heads.map(str::to_owned);
    for row in std::iter::once(&heads).chain(rows) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "  {}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn fine_json(config: &Config, warnings: &[Warning]) -> Value {
    let price = |price: &NetworkPrice| {
        json!({ "network": price.network, "asset": &*price.asset.address, "scheme": price.scheme.as_str(),
            "amount": price.amount, "text": decimal(price), "minDeposit": price.min_deposit })
    };
    let routes: Vec<_> = config
        .routes
        .iter()
        .map(|route| {
            let methods: Vec<_> = route.methods.iter().map(|method| method.as_str()).collect();
            let prices: Vec<_> = prices(&route.pricing).iter().map(price).collect();
            let pack = route.pack.as_ref().map(|pack| {
                json!({ "calls": pack.calls, "expiresAfterSeconds": pack.lifetime.as_secs(),
                    "prices": pack.prices.iter().map(price).collect::<Vec<_>>() })
            });
            json!({ "line": route.line, "host": route.host.as_deref(), "methods": methods, "path": &*route.path,
                "schemes": schemes(&route.pricing), "prices": prices, "pack": pack, "upstream": route.upstream.as_deref() })
        })
        .collect();
    let networks: Vec<_> = config.networks.iter().map(network_json).collect();
    json!({ "ok": true, "file": config.source, "sandbox": config.sandbox.is_some(), "networks": networks,
        "routes": routes, "unlisted": if config.default == Unlisted::Deny { "deny" } else { "free" },
        "listen": config.listen, "admin": config.admin.listen, "warnings": warnings })
}

fn network_json(network: &NetworkConfig) -> Value {
    let (pay_to, facilitator) = match &network.family {
        Family::Svm(svm) => (json!(svm.pay_to), json!("local")),
        Family::Evm(evm) => {
            let facilitator = match &evm.facilitator {
                FacilitatorConfig::Local(_) => json!("local"),
                FacilitatorConfig::Remote(remotes) => {
                    remotes.iter().map(|remote| remote.url.to_string()).collect::<Vec<_>>().into()
                }
            };
            (json!(evm.pay_to), facilitator)
        }
    };
    json!({ "network": network.network, "asset": &*network.asset.address, "symbol": &*network.asset.symbol,
        "decimals": network.asset.decimals, "payTo": pay_to, "facilitator": facilitator })
}
