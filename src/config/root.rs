//! The whole file: every part is read, whatever is wrong with the others, and then they are put together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use sha2::{Digest, Sha256};

use super::money::Assets;
use super::network::{self, Networks};
use super::problem::{Problems, Warning};
use super::reader::{Complaint, Map, Value, document};
use super::route::RouteConfig;
use super::routes::{self, Surroundings};
use super::server::{self, Server, or};
use super::{Config, Env, SettlementConfig, SignerConfig, Unlisted, audit, policy, settlement, signer, yaml};

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60 * MINUTE;
/// The longest memo (`scheme_batch_settlement_svm.md`, section 4.1).
const MEMO_BYTES_MAX: usize = 256;
/// The default store.
const STORE: &str = "turnpike.db";

/// Reads a file's text.
pub(super) fn read(path: &Path, text: &str, env: &Env<'_>) -> Result<(Config, Vec<Warning>), Problems> {
    let want = "a mapping that begins with upstream, network and routes";
    document(path, text, env, want, |root| whole(root, path, text))
}

/// Reads every part, then puts them together where all are there.
fn whole(root: &mut Map<'_, '_>, path: &Path, text: &str) -> Option<Config> {
    let networks = network::read(root);
    let families = networks.as_ref().map(Networks::families);
    // Where the networks are wrong, prices are checked as if they were in USDC.
    let stand_in: Vec<_> = network::stand_in().into_iter().collect();
    let assets = Assets::of(networks.as_ref().map_or(&stand_in, |networks| &networks.networks));
    check_assets(root, &assets);
    let withdraw_delay = or(root.take("withdraw_delay"), Duration::from_secs(DAY), |value| {
        value.whole_seconds(Duration::from_secs(15 * MINUTE), Duration::from_secs(30 * DAY))
    });
    let delay = withdraw_delay.unwrap_or(Duration::from_secs(DAY));
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(60 * MINUTE));
    let max_timeout =
        or(root.take("max_timeout"), Duration::from_secs(MINUTE), |value| value.whole_seconds(second, hour.min(delay)));
    let client_waits = max_timeout.unwrap_or(Duration::from_secs(MINUTE));
    if families.is_some_and(|families| !families.svm) {
        root.inert("memo", "without a Solana network: transactions on EVM networks have none", "Leave it out.");
    }
    let memo = or(root.take("memo"), None, |value| value.line(MEMO_BYTES_MAX).map(|memo| Some(Arc::<str>::from(memo))));
    let signer = signer::read(root, &assets, families);
    let settling = settlement::Around { assets: &assets, delay, families };
    let settlement = settlement::read(root, &settling);
    if let (Some(settlement), Some(networks)) = (&settlement, &networks) {
        check_settlement(root, &assets, networks, signer.as_ref().and_then(Option::as_ref), settlement);
    }
    let default = or(root.take("default"), Unlisted::Deny, |value| {
        value.choice(&[("deny", Unlisted::Deny), ("free", Unlisted::Free)])
    });
    let store = store(root, families.is_some_and(|families| families.sandbox));
    let audit = audit::read(root, store.as_ref().and_then(|store| store.as_deref()));
    let server = server::read(root, client_waits);
    let policing = policy::Around { assets: &assets, families };
    let policy = policy::read(root, policing);
    // Where it is wrong, routes are checked as if there were none.
    let no_policy = policy::Top::default();
    let upstreams = Upstreams::take(root);
    let around = Surroundings {
        assets: &assets,
        upstreams: &upstreams.names,
        max_timeout: client_waits,
        memo: memo.clone().flatten(),
        deposit_max: signer.as_ref().and_then(Option::as_ref).map(|signer| signer.deposit_max),
        channel_exposure_max: settlement.as_ref().map(|settlement| settlement.channel_exposure_max),
        default: default.unwrap_or_default(),
        policy: policy.as_ref().unwrap_or(&no_policy),
        policing,
    };
    let routes = routes::read(root, &around);
    if let (Some(policy), Some(routes)) = (&policy, &routes) {
        policy.check(root, routes);
    }
    upstreams.check(root, routes.as_deref(), default, server.as_ref());
    let (networks, server) = (networks?, server?);
    check_listeners(root, &networks, &server);
    Some(Config {
        source: path.to_owned(),
        sha256: Sha256::digest(text).into(),
        upstream: upstreams.default?,
        upstreams: upstreams.named?,
        networks: networks.networks,
        sandbox: networks.sandbox,
        routes: routes?,
        default: default?,
        listen: server.listen,
        admin: server.admin,
        tls: server.tls,
        store: store?,
        audit: audit?,
        signer: signer?,
        withdraw_delay: withdraw_delay?,
        max_timeout: max_timeout?,
        memo: memo?,
        settlement: settlement?,
        policy: policy?.global,
        queue: server.queue,
        replay: server.replay,
        limits: server.limits,
        timeouts: server.timeouts,
        cors: server.cors,
        log: server.log,
        public_url: server.public_url,
    })
}

/// Refuses assets that no limit could hold over together.
fn check_assets(root: &Map<'_, '_>, assets: &Assets<'_>) {
    if !assets.alike() {
        root.whole.cx.problem(
            root.line_of("networks"),
            "networks".to_owned(),
            "hold assets that do not count alike, so that no limit can hold over all of them.".to_owned(),
            "Serve them from two files; dollar tokens with the same decimals may stand together.".to_owned(),
        );
    }
}

/// What `settlement` says has to fit the signer and the networks.
fn check_settlement(
    root: &Map<'_, '_>,
    assets: &Assets<'_>,
    networks: &Networks,
    signer: Option<&SignerConfig>,
    settlement: &SettlementConfig,
) {
    let families = networks.families();
    if let Some(signer) = signer {
        // On EVM networks a batch ends where the next channel would be too much; on Solana it is counted.
        signer::check_claim(root, assets, signer, if families.svm { settlement.batch_channels } else { 1 });
    }
    network::check_gas_price(root, &networks.networks, settlement.min_worth);
}

/// The database's path: beside the working directory where none is written, and none on the sandbox.
fn store(root: &mut Map<'_, '_>, sandbox: bool) -> Option<Option<std::path::PathBuf>> {
    let default = if sandbox { None } else { Some(STORE.into()) };
    or(root.take("store"), default, |value| {
        let read = value.map("a mapping such as {path: turnpike.db}", |map| {
            map.require("path", "Write the path of the database, or leave store out.").and_then(|value| value.path())
        });
        read.flatten().map(Some)
    })
}

/// `upstream` and `upstreams`.
struct Upstreams<'c, 'n> {
    default: Option<Vec<Uri>>,
    default_value: Option<Value<'c, 'n>>,
    named: Option<BTreeMap<Arc<str>, Vec<Uri>>>,
    named_value: Option<Value<'c, 'n>>,
    /// Also of those that are wrong, so that routes may name them.
    names: BTreeSet<String>,
}

impl<'c, 'n> Upstreams<'c, 'n> {
    fn take(root: &mut Map<'c, 'n>) -> Self {
        let (default_value, named_value) = (root.take("upstream"), root.take("upstreams"));
        Self {
            default: or(default_value.clone(), Vec::new(), server::upstream),
            named: or(named_value.clone(), BTreeMap::new(), server::upstreams),
            names: named_value.iter().flat_map(Value::names).collect(),
            default_value,
            named_value,
        }
    }

    /// Every upstream must serve something, every route must have one, and none may be this process.
    fn check(
        &self,
        root: &mut Map<'_, '_>,
        routes: Option<&[RouteConfig]>,
        default: Option<Unlisted>,
        server: Option<&Server>,
    ) {
        if let (Some(routes), Some(unlisted)) = (routes, default) {
            let needed = unlisted == Unlisted::Free || routes.iter().any(|route| route.upstream.is_none());
            match &self.default_value {
                None if needed && !root.has("upstream") => {
                    let _ = root.require("upstream", "Write the URL of your API, such as http://127.0.0.1:3000.");
                }
                Some(value) if !needed => {
                    value.problem("does nothing where every route names its own upstream.", "Leave it out.");
                }
                _ => {}
            }
            for name in &self.names {
                if !routes.iter().any(|route| route.upstream.as_deref() == Some(name)) {
                    let remedy = "Leave it out, or write upstream: and its name in a route.";
                    self.problem_of(name, "does nothing: no route names it.".to_owned(), remedy);
                }
            }
        } else if self.default_value.is_none() && self.named_value.is_none() && !root.has("upstream") {
            let _ = root.require("upstream", "Write the URL of your API, such as http://127.0.0.1:3000.");
        }
        let Some(server) = server else { return };
        let of_default = self.default_value.iter().zip(&self.default);
        let own = of_default.filter(|(_, urls)| urls.iter().any(|url| server::is_self(url, server.listen)));
        for (value, _) in own {
            value.reject(Complaint::new(
                format!("is where Turnpike itself listens ({})", server.listen),
                "Write where your API listens, or change listen.",
            ));
        }
        let named = self.named.iter().flatten();
        for (name, _) in named.filter(|(_, urls)| urls.iter().any(|url| server::is_self(url, server.listen))) {
            let message = format!("is where Turnpike itself listens ({}).", server.listen);
            self.problem_of(name, message, "Write where your API listens, or change listen.");
        }
    }

    /// Notes a problem of one of the named upstreams.
    fn problem_of(&self, name: &str, message: String, remedy: &str) {
        if let Some(value) = &self.named_value {
            let place = yaml::join(&value.key, name);
            value.cx.problem(value.line_of(name), place, message, remedy.to_owned());
        }
    }
}

/// Refuses two listeners on one port.
fn check_listeners(root: &Map<'_, '_>, networks: &Networks, server: &Server) {
    let mut listeners = vec![("listen", "listen", server.listen), ("admin", "admin.listen", server.admin.listen)];
    if let Some(sandbox) = networks.sandbox {
        listeners.push(("sandbox", "sandbox.rpc_listen", sandbox.rpc_listen));
    }
    for (i, (key, name, address)) in listeners.iter().enumerate() {
        for (_, other, taken) in listeners.iter().take(i) {
            if server::collide(*address, *taken) {
                let message = format!("({address}) has the port of {other} ({taken}).");
                let remedy = "Write different ports.".to_owned();
                root.whole.cx.problem(root.line_of(key), (*name).to_owned(), message, remedy);
            }
        }
    }
}
