//! What happens in a world: by chance, several things at once.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use turnpike::chain::Chain;
use turnpike::chain::sandbox::{Faults, InjectedFailure, RpcFault};
use turnpike::clock::Clock;
use turnpike::ledger::memory::Fault;
use turnpike::settlement::Trigger;

use crate::chance::Going;
use crate::client::{Kind, Payment, Upstream, call};
use crate::world::World;
use crate::{METERED_SECONDS, PRICE};

/// How long settlement may rest, in seconds.
const SETTLEMENT_RESTS_MAX: i64 = 300;
/// How long the work behind a request may go on when its client has left.
const BEHIND_A_REQUEST_MAX: Duration = Duration::from_secs(60);

impl World {
    /// One step: up to three things that begin together, a crash in the middle of it or after it, and the next life.
    pub async fn step(&mut self) {
        let mut going = Vec::new();
        for _ in 0..=self.random.below(3) {
            self.begin(&mut going).await;
        }
        match self.random.below(12) {
            0 => self.life.power.fails_after(1 + self.random.below(80)),
            1 => self.store.fault_at(1 + self.random.below(6), Fault::CrashBefore),
            2 => self.store.fault_at(1 + self.random.below(6), Fault::CrashAfter),
            _ => {}
        }
        self.carry(going).await;
        if self.random.one_in(3) {
            self.nothing_left_behind().await;
        }
        if !self.life.power.is_on() || self.random.one_in(24) {
            self.crash().await;
        }
        if self.now() - self.settled_at > SETTLEMENT_RESTS_MAX {
            self.chain.set_faults(Faults::default());
            self.settle(Trigger::Clock).await;
        }
    }

    /// No request is under way: whatever became of those that were, none holds its channel once the work behind it has
    /// ended, long before its reservation would expire. It is simulated time that passes here, as much as that work takes.
    async fn nothing_left_behind(&self) {
        let held = || self.life.power.is_on() && self.life.ledger.counts().1 > 0;
        for _ in 0..BEHIND_A_REQUEST_MAX.as_secs() {
            if !held() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(!held(), "a reservation is held that no request stands behind");
    }

    /// A round of settlement that nobody drops.
    async fn settle(&mut self, trigger: Trigger) {
        let round = self.round(trigger);
        self.carry(vec![self.going("settlement".into(), round, false)]).await;
        if self.life.power.is_on() {
            self.settled_at = self.now();
        } else {
            self.crash().await;
        }
    }

    fn round(&self, trigger: Trigger) -> impl Future<Output = ()> + use<> {
        let settlement = Arc::clone(&self.life.settlement);
        async move { drop(settlement.step(trigger).await) }
    }

    fn going(&self, name: String, work: impl Future<Output = ()> + 'static, may_leave: bool) -> Going {
        let leaves = may_leave && self.random.one_in(5);
        Going { name, work: Box::pin(work), polls_left: leaves.then(|| 1 + self.random.below(50)) }
    }

    async fn begin(&mut self, going: &mut Vec<Going>) {
        let n = self.random.index(self.clients.len());
        match self.random.below(24) {
            0..=6 => self.call(n, going).await,
            7..=9 => self.burst(n, going).await,
            10..=12 => self.metered(n, going).await,
            13 => self.again(n, going),
            14 | 15 => {
                let round =
                    self.round(if self.random.one_in(2) { Trigger::Demand(self.clock.now()) } else { Trigger::Clock });
                going.push(self.going("settlement".into(), round, true));
            }
            16 => {
                let settlement = Arc::clone(&self.life.settlement);
                let watch = async move { drop(settlement.watch().await) };
                going.push(self.going("watch".into(), watch, true));
            }
            17 => {
                if let Some((terms, _, charged)) = self.open_channel(n) {
                    let payment = self.clients[n].refund(&terms, charged);
                    self.send(n, payment, going);
                }
            }
            18 => self.request_close(n).await,
            19 | 20 => self.go_wrong(),
            _ => {
                let seconds = 1 + self.random.below(if self.random.one_in(8) { 700 } else { 100 });
                let pass = tokio::time::sleep(Duration::from_secs(seconds));
                going.push(self.going(format!("{seconds} seconds"), pass, false));
            }
        }
    }

    /// Sends a payment.
    fn send(&mut self, n: usize, payment: Payment, going: &mut Vec<Going>) {
        let metered = matches!(payment.kind, Kind::Metered);
        let (route, accepted) =
            if metered { (&self.shop.metered, &self.metered) } else { (&self.shop.fixed, &self.fixed) };
        let upstream = self.upstream(metered);
        let channel = payment.channel.to_string();
        let name = format!(
            "client {n}: {:?} on {}, upstream {} after {:?}",
            payment.kind,
            &channel[..6],
            upstream.status.as_u16(),
            upstream.takes
        );
        self.tell(name.clone());
        self.clients[n].sent = Some(payment.clone());
        let books = Rc::clone(&self.books);
        let work = call(Arc::clone(&self.life.gate), Arc::clone(route), accepted.clone(), payment, upstream, books);
        going.push(self.going(name, work, true));
    }

    fn upstream(&self, metered: bool) -> Upstream {
        let status = if self.random.one_in(6) { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
        let takes = match self.random.below(16) {
            0..=7 => Duration::ZERO,
            8..=12 => Duration::from_millis(self.random.below(400)),
            13 | 14 => Duration::from_secs(self.random.below(20)),
            // Longer than a reservation, and than a metered channel, may live.
            _ => Duration::from_secs(self.random.below(700)),
        };
        let reports = [
            (Some("0.0042"), 4_200),
            (Some("0.000001"), 1),
            (Some("0"), 0),
            (Some("7"), crate::CEILING),
            (Some("free"), 0),
            (None, crate::CEILING),
        ];
        let (report, cost) = if metered { reports[self.random.index(reports.len())] } else { (None, 0) };
        Upstream { status, takes, report, cost }
    }

    /// A client's next payment: a deposit where it has no channel, else a voucher or a top-up.
    async fn call(&mut self, n: usize, going: &mut Vec<Going>) {
        let blockhash = self.blockhash().await;
        let payment = match self.open_channel(n) {
            None => self.clients[n].open(PRICE, &blockhash),
            Some((terms, deposit, charged)) if charged + PRICE > deposit || self.random.one_in(12) => {
                self.clients[n].top_up(&terms, charged + PRICE, &blockhash)
            }
            Some((terms, _, charged)) => self.clients[n].pay(&terms, charged + PRICE),
        };
        self.books.borrow_mut().open(payment.channel);
        self.send(n, payment, going);
    }

    /// Several vouchers of one channel at once, in any order, some of them twice, the last perhaps above the deposit.
    async fn burst(&mut self, n: usize, going: &mut Vec<Going>) {
        let Some((terms, _, charged)) = self.open_channel(n) else { return self.call(n, going).await };
        let mut totals: Vec<_> = (1..=2 + self.random.below(3)).map(|i| charged + i * PRICE).collect();
        if self.random.one_in(2) {
            totals.push(totals[self.random.index(totals.len())]);
        }
        if self.random.one_in(2) {
            self.random.shuffle(&mut totals);
        }
        for total in totals {
            let payment = self.clients[n].pay(&terms, total);
            self.send(n, payment, going);
        }
    }

    /// A metered call; sometimes its payment is sent twice at once.
    async fn metered(&mut self, n: usize, going: &mut Vec<Going>) {
        let (now, blockhash) = (self.now(), self.blockhash().await);
        let expires_at =
            now + i64::try_from(METERED_SECONDS).unwrap() / i64::try_from(1 + self.random.below(4)).unwrap();
        let payment = self.clients[n].metered(now, expires_at, &blockhash);
        self.books.borrow_mut().open_metered(payment.channel, expires_at);
        if self.random.one_in(6) {
            self.send(n, payment.clone(), going);
        }
        self.send(n, payment, going);
    }

    /// The last payment again, which was charged, refused or dropped before.
    fn again(&mut self, n: usize, going: &mut Vec<Going>) {
        if let Some(payment) = self.clients[n].sent.clone() {
            self.send(n, payment, going);
        }
    }

    async fn request_close(&mut self, n: usize) {
        let Some((terms, ..)) = self.open_channel(n) else { return };
        let transaction = self.clients[n].request_close(terms.id, &self.blockhash().await);
        let sent = self.chain.send(&transaction).await;
        self.books.borrow_mut().counts.forced += u64::from(sent.is_ok());
        self.tell(format!("client {n} begins to close {}: {sent:?}", terms.id));
    }

    /// The chain goes wrong, or comes right again.
    fn go_wrong(&mut self) {
        let unanswered = |method: &str, count| Faults {
            rpc_errors: vec![RpcFault { method: method.into(), count, code: -32005, message: "behind".into() }],
            ..Faults::default()
        };
        let faults = match self.random.below(8) {
            0 => Faults { drop_next: 1, ..Faults::default() },
            1 => Faults { lose_answers: 1, ..Faults::default() },
            2 => Faults { fail_next: Some(InjectedFailure { count: 1, instruction: 1, code: 2 }), ..Faults::default() },
            3 => Faults { hold: true, ..Faults::default() },
            4 => unanswered("getSignatureStatuses", 12),
            5 => unanswered(["getMultipleAccounts", "getLatestBlockhash", "sendTransaction"][self.random.index(3)], 3),
            6 => {
                self.chain.expire_blockhashes();
                self.chain.faults()
            }
            _ => Faults::default(),
        };
        self.tell(format!("faults: {faults:?}"));
        let held = !faults.hold;
        self.chain.set_faults(faults);
        if held {
            self.chain.release_held();
        }
    }
}
