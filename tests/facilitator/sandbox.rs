//! The same facilitator over the JSON-RPC client and the sandbox: the program itself decides, and the network fails.

use turnpike::chain::sandbox::{Faults, InjectedFailure, Options, Sandbox};
use turnpike::chain::svm::{SvmRpc, SvmRpcOptions};
use turnpike::clock::SystemClock;

use super::*;

struct Life {
    sandbox: Sandbox,
    rpc: SvmRpc,
    facilitator: LocalFacilitator,
    terms: Terms,
    scheme: DepositScheme,
}

impl Life {
    async fn start(scheme: DepositScheme) -> Self {
        let sandbox = Sandbox::start(Options::new(network::SOLANA_DEVNET.parse().unwrap())).await.unwrap();
        let seller = Arc::new(Seller { treasury_owner: sandbox.treasury_owner(), ..seller() });
        sandbox.airdrop(&seller.fee_payer, 1_000_000_000).unwrap();
        sandbox.mint_to(&public(PAYER), 1_000_000).unwrap();
        sandbox.mint_to(&seller.pay_to, 0).unwrap();
        let rpc = SvmRpc::new(SvmRpcOptions::sandbox(sandbox.rpc_url().to_owned())).unwrap();
        let (chain, signer) = (Arc::new(rpc.clone()), Arc::new(FakeSigner::default()));
        let policy = Arc::new(Policy::unlimited(vec![seller.pay_to]));
        let facilitator =
            LocalFacilitator::new(chain, signer, policy, Arc::clone(&seller), Arc::new(SystemClock)).unwrap();
        let authorizer = public(if scheme == DepositScheme::Upto { GROUP } else { AUTHORIZER });
        let slot = rpc.slot().await.unwrap();
        let terms = Terms::derive(seller, public(PAYER), authorizer, 42, slot);
        Self { sandbox, rpc, facilitator, terms, scheme }
    }

    async fn accept(&self, opens: bool) -> Result<AcceptedDeposit, FacilitatorError> {
        let blockhash = self.rpc.latest_blockhash().await.unwrap();
        let request = deposit_request(&self.terms, self.scheme, opens, blockhash.hash);
        self.facilitator.accept_deposit(request).await
    }

    async fn settle(&self, opens: bool) -> Result<turnpike::facilitator::SettledDeposit, FacilitatorError> {
        self.facilitator.settle_deposit(self.accept(opens).await.unwrap()).await
    }

    async fn close(&self, cumulative: u64) -> SettledClose {
        let voucher = Some(voucher(&self.terms, cumulative));
        let request = CloseRequest { terms: self.terms.clone(), voucher, voucher_expires_at: 0 };
        self.facilitator.close(request).await.unwrap()
    }

    async fn meter(&self, charge: u64) -> SettledClose {
        let (charge, deposit) = (Amount::from(charge), Amount::from(DEPOSIT));
        let expires_at = self.sandbox.unix_time() + 60;
        self.facilitator.close_metered(&self.terms, charge, deposit, expires_at).await.unwrap()
    }

    /// What the payer and the seller hold.
    fn balances(&self) -> (u64, u64) {
        (self.sandbox.token_balance(&self.terms.payer), self.sandbox.token_balance(&self.terms.seller.pay_to))
    }
}

#[tokio::test]
async fn a_channel_lives_from_open_to_close() {
    let life = Life::start(DepositScheme::BatchSettlement).await;
    life.settle(true).await.unwrap();
    assert_refused(life.accept(true).await, Reason::BatchChannelState, "exists");
    life.settle(false).await.unwrap();
    assert_eq!(life.balances(), (1_000_000 - 2 * DEPOSIT, 0));
    let ours = life.rpc.channels_by(program::RENT_PAYER_OFFSET, &life.terms.seller.fee_payer).await.unwrap();
    assert_eq!(ours.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [life.terms.id]);

    // The cached blockhash has run out without the client knowing.
    life.sandbox.expire_blockhashes();
    let close = life.close(70_000).await;
    assert_eq!((close.claimed, close.returned), (Amount::from(70_000), Amount::from(2 * DEPOSIT - 70_000)));
    assert_eq!(life.balances(), (930_000, 70_000));
    let channel = life.facilitator.read_channel(&life.terms).await.unwrap();
    assert_eq!(channel.map(|channel| channel.status), Some(ChannelStatus::Distributed));
}

#[tokio::test]
async fn metered_requests_take_their_charge_and_no_more() {
    for charge in [0, 1_858, DEPOSIT] {
        let life = Life::start(DepositScheme::Upto).await;
        life.settle(true).await.unwrap();
        let close = life.meter(charge).await;
        assert_eq!(close.returned, Amount::from(DEPOSIT - charge));
        assert_eq!(life.balances(), (1_000_000 - charge, charge));
    }
}

#[tokio::test]
async fn a_lost_answer_or_a_dropped_transaction_still_settles_once() {
    for faults in [Faults { lose_answers: 1, ..Faults::default() }, Faults { drop_next: 1, ..Faults::default() }] {
        let life = Life::start(DepositScheme::BatchSettlement).await;
        life.sandbox.set_faults(faults.clone());
        let settled = life.settle(true).await.unwrap();
        assert_eq!(settled.channel.deposit, Amount::from(DEPOSIT));
        life.sandbox.set_faults(faults);
        life.close(5).await;
        assert_eq!(life.balances(), (999_995, 5));
    }
}

#[tokio::test]
async fn a_transaction_that_waits_is_pending_and_shows_when_it_has_landed() {
    let mut life = Life::start(DepositScheme::Upto).await;
    life.facilitator = life.facilitator.confirm_within(Duration::from_millis(50));
    let accepted = life.accept(true).await.unwrap();
    life.sandbox.set_faults(Faults { hold: true, ..Faults::default() });
    let settled = life.facilitator.settle_deposit(accepted).await;
    let Err(FacilitatorError::Pending { transaction }) = settled else { panic!("{settled:?}") };
    assert_eq!(life.facilitator.read_channel(&life.terms).await, Ok(None));
    life.sandbox.set_faults(Faults::default());
    life.sandbox.release_held();
    let statuses = life.rpc.statuses(&[transaction]).await.unwrap();
    assert!(statuses[0].as_ref().is_some_and(|status| status.confirmed && status.error.is_none()), "{statuses:?}");
    let channel = life.facilitator.read_channel(&life.terms).await.unwrap();
    assert_eq!(channel.map(|channel| channel.deposit), Some(Amount::from(DEPOSIT)));
}

#[tokio::test]
async fn a_failure_on_chain_and_a_stale_blockhash_are_refusals() {
    let life = Life::start(DepositScheme::Upto).await;
    let accepted = life.accept(true).await.unwrap();
    let fails = InjectedFailure { count: 1, instruction: 0, code: 2003 };
    life.sandbox.set_faults(Faults { fail_next: Some(fails), ..Faults::default() });
    assert_refused(life.facilitator.settle_deposit(accepted).await, Reason::UptoChannelBroadcast, "2003");
    life.sandbox.expire_blockhashes();
    assert_refused(life.accept(true).await, Reason::UptoSettlementSimulation, "fresh blockhash");
    assert_eq!(life.balances(), (1_000_000, 0));
}
