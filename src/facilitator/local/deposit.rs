//! Deposits: the chain's word on a transaction that passed the acceptance policy, then its settlement.
//!
//! Accepting reads all accounts, simulates and asks for rents at the same time; settling signs while the block height
//! is read.

use sha2::{Digest, Sha256};

use super::in_flight::Job;
use super::token::{TOKEN_2022_ACCOUNT_BYTES, TOKEN_ACCOUNT_BYTES};
use super::{Codes, Fate, LocalFacilitator, channel_in, not_taken, nothing_sent, refused};
use crate::amount::Amount;
use crate::chain::{Account, ChainError, Simulation};
use crate::facilitator::{AcceptedDeposit, DepositRequest, DepositScheme, FacilitatorError, SettledDeposit};
use crate::ledger::channel::OnChain;
use crate::scheme::svm::TOKEN_2022_PROGRAM;
use crate::scheme::svm::acceptance::{self, AcceptanceRequest, Form};
use crate::scheme::svm::program::{CHANNEL_ACCOUNT_BYTES, ChannelStatus};
use crate::signer::{Setup, SigningRequest};
use crate::x402::Reason;

/// For how many blocks a blockhash is taken, and what a node may lag behind the one that the client asked.
const BLOCKHASH_BLOCKS_MAX: u64 = 150 + 32;
/// How many of a failed simulation's log lines are told, and how much of each.
const LOG_LINES_SHOWN: usize = 3;
const LOG_LINE_CHARS_SHOWN: usize = 200;

impl LocalFacilitator {
    pub(super) async fn accept(&self, request: DepositRequest) -> Result<AcceptedDeposit, FacilitatorError> {
        self.is_ours(&request.terms)?;
        let DepositRequest { amount, scheme, .. } = request;
        let reason = match scheme {
            DepositScheme::BatchSettlement => Reason::BatchSetupTransaction,
            DepositScheme::Upto => Reason::UptoOpenTransaction,
        };
        let transaction = acceptance::decode(&request.transaction, reason)?;
        // The transaction says what it means to be; whether the channel is in a state for it is the chain's to say.
        let form = match scheme {
            DepositScheme::Upto => Form::UptoOpen { deposit: amount },
            DepositScheme::BatchSettlement if acceptance::opens(&transaction) => Form::BatchOpen { deposit: amount },
            DepositScheme::BatchSettlement => Form::BatchTopUp { amount },
        };
        let opens = !matches!(form, Form::BatchTopUp { .. });
        let accepted = acceptance::accept(&AcceptanceRequest {
            transaction: &transaction,
            terms: &request.terms,
            form,
            memo: request.memo.as_deref(),
        })?;
        let candidate = Candidate {
            facilitator: self,
            request: &request,
            codes: scheme.codes(),
            opens,
            fee_lamports: accepted.fee_lamports(),
        };
        let bytes = transaction.encode();
        let (accounts, rent, simulation) =
            tokio::join!(candidate.read(), self.open_rent(opens), self.chain.simulate(&bytes));
        let accounts = accounts.map_err(|error| nothing_sent(&error))?;
        let deposit_after = candidate.judge(&accounts, rent.map_err(|error| nothing_sent(&error))?)?;
        candidate.simulated(simulation)?;
        Ok(AcceptedDeposit { request, transaction, opens, deposit_after })
    }

    pub(super) async fn settle(&self, mut deposit: AcceptedDeposit) -> Result<SettledDeposit, FacilitatorError> {
        self.is_ours(&deposit.request.terms)?;
        let codes = deposit.request.scheme.codes();
        let (job, setup) = if deposit.opens {
            let deposit_max = deposit.request.amount.to_u64().unwrap_or(u64::MAX);
            (Job::Open(deposit.request.terms.id), Setup::Open { deposit: deposit_max })
        } else {
            (Job::TopUp(Sha256::digest(deposit.transaction.message()).into()), Setup::TopUp)
        };
        let mut turn = self.take(job).map_err(|taken| not_taken(&taken))?;
        let request = SigningRequest::Sponsor { setup, transaction: deposit.transaction.clone() };
        let (signature, height) = tokio::join!(self.sign(request, Amount::ZERO), self.chain.block_height());
        let signature = signature?;
        let height = height.map_err(|error| nothing_sent(&error))?;
        let set = deposit.transaction.set_signature(&self.seller.fee_payer, signature);
        set.map_err(|error| FacilitatorError::Unavailable(error.to_string()))?;
        turn.hold(self.clock.now());
        // The client chose the blockhash: it can live no longer than one that is new now.
        match self.broadcast(&deposit.transaction, height.saturating_add(BLOCKHASH_BLOCKS_MAX)).await {
            Fate::Confirmed => {}
            Fate::Unknown => return Err(FacilitatorError::Pending { transaction: deposit.transaction.id() }),
            Fate::Unfunded { detail } => {
                turn.free();
                return Err(FacilitatorError::Unavailable(detail));
            }
            Fate::Dead { detail, .. } => {
                turn.free();
                return Err(refused(codes.broadcast, detail));
            }
        }
        let channel = self.deposited(&deposit).await?;
        Ok(SettledDeposit { transaction: deposit.transaction.id(), channel })
    }

    /// Reads the channel after a deposit and compares it with what was agreed (phase 1, last paragraph).
    async fn deposited(&self, deposit: &AcceptedDeposit) -> Result<OnChain, FacilitatorError> {
        let DepositRequest { terms, scheme, .. } = &deposit.request;
        let wrong = |what: &str| refused(scheme.codes().state, format!("after the confirmation, {what}"));
        let pending = |_| FacilitatorError::Pending { transaction: deposit.transaction.id() };
        let account = self.chain.account(&terms.id).await.map_err(pending)?;
        let channel = channel_in(account.as_ref()).map_err(wrong)?.ok_or_else(|| wrong("there is no channel"))?;
        if !terms.matches(&channel) {
            return Err(wrong("the channel has other terms"));
        }
        if channel.status != ChannelStatus::Open {
            return Err(wrong("the channel is not open"));
        }
        let held = Amount::from(channel.deposit);
        let right = match scheme {
            DepositScheme::Upto => held == deposit.deposit_after,
            DepositScheme::BatchSettlement => held >= deposit.deposit_after,
        };
        if !right {
            return Err(wrong(&format!("the deposit is {held}, not {}", deposit.deposit_after)));
        }
        Ok(OnChain::of(&channel, self.clock.now()))
    }

    /// Lamports that an `open` takes from the fee payer beside the fee.
    async fn open_rent(&self, opens: bool) -> Result<u64, ChainError> {
        if !opens {
            return Ok(0);
        }
        let is_new = self.seller.token_program == TOKEN_2022_PROGRAM;
        let escrow = if is_new { TOKEN_2022_ACCOUNT_BYTES } else { TOKEN_ACCOUNT_BYTES };
        let (channel, escrow) = tokio::join!(self.chain.rent(CHANNEL_ACCOUNT_BYTES), self.chain.rent(escrow));
        Ok(channel?.saturating_add(escrow?))
    }
}

/// What a deposit's checks are made of: the accounts in the order that they are asked for.
struct DepositAccounts {
    mint: Option<Account>,
    payer: Option<Account>,
    pay_to: Option<Account>,
    treasury: Option<Account>,
    channel: Option<Account>,
    fee_payer: Option<Account>,
}

/// A deposit that passed the static policy and waits for the chain's word.
struct Candidate<'a> {
    facilitator: &'a LocalFacilitator,
    request: &'a DepositRequest,
    codes: Codes,
    opens: bool,
    fee_lamports: u64,
}

impl Candidate<'_> {
    async fn read(&self) -> Result<DepositAccounts, ChainError> {
        let facilitator = self.facilitator;
        let terms = &self.request.terms;
        let keys = [
            facilitator.seller.mint,
            facilitator.payer_ata(terms),
            facilitator.pay_to_ata,
            facilitator.treasury_ata,
            terms.id,
            facilitator.seller.fee_payer,
        ];
        let accounts: Result<[Option<Account>; 6], _> = facilitator.chain.accounts(&keys).await?.try_into();
        let [mint, payer, pay_to, treasury, channel, fee_payer] = accounts
            .map_err(|_| ChainError::Malformed { method: "accounts", what: "another number of accounts".into() })?;
        Ok(DepositAccounts { mint, payer, pay_to, treasury, channel, fee_payer })
    }

    /// Every check that needs the chain's accounts; returns the deposit that the channel will have.
    fn judge(&self, accounts: &DepositAccounts, rent: u64) -> Result<Amount, FacilitatorError> {
        let deposit_after = self.channel(accounts.channel.as_ref())?;
        let admitted = self.facilitator.policy.admit_deposit(self.request.amount, deposit_after);
        admitted.map_err(|error| refused(self.codes.setup, error.to_string()))?;
        self.token_accounts(accounts)?;
        let held = accounts.fee_payer.as_ref().map_or(0, |account| account.lamports);
        let needed = self.fee_lamports.saturating_add(rent);
        if held < needed {
            let fee_payer = self.facilitator.seller.fee_payer;
            return Err(FacilitatorError::Unavailable(format!(
                "the fee payer {fee_payer} holds {held} lamports and needs {needed}: send it some"
            )));
        }
        Ok(deposit_after)
    }

    fn channel(&self, account: Option<&Account>) -> Result<Amount, FacilitatorError> {
        let DepositRequest { terms, amount, scheme, .. } = self.request;
        let found = channel_in(account).map_err(|what| refused(self.codes.state, what))?;
        match (self.opens, found) {
            (true, None) => Ok(*amount),
            (true, Some(_)) => Err(match scheme {
                DepositScheme::BatchSettlement => refused(Reason::BatchChannelState, "the channel exists: top it up"),
                DepositScheme::Upto => refused(Reason::UptoChannelAlreadyOpen, "the channel exists already"),
            }),
            (false, None) => Err(refused(self.codes.state, "there is no channel to top up: open one")),
            (false, Some(channel)) if !terms.matches(&channel) => {
                Err(refused(self.codes.state, "the channel on chain has other terms"))
            }
            (false, Some(channel)) => match channel.status {
                ChannelStatus::Open => (Amount::from(channel.deposit).checked_add(*amount))
                    .filter(|after| after.to_u64().is_some())
                    .ok_or_else(|| refused(self.codes.state, "the deposit would be more than a channel can hold")),
                ChannelStatus::Closing => {
                    Err(refused(Reason::BatchChannelClosing, "the payer has asked to close the channel"))
                }
                ChannelStatus::Sealed | ChannelStatus::Distributed => {
                    Err(refused(self.codes.state, "the channel is closed"))
                }
            },
        }
    }

    /// Settlement readiness: an account that cannot be paid is found before money is escrowed.
    fn token_accounts(&self, accounts: &DepositAccounts) -> Result<(), FacilitatorError> {
        let facilitator = self.facilitator;
        let seller = &facilitator.seller;
        if accounts.mint.as_ref().map(|mint| mint.owner) != Some(seller.token_program) {
            let reason = match self.request.scheme {
                DepositScheme::BatchSettlement => Reason::BatchTokenProgram,
                DepositScheme::Upto => self.codes.simulation,
            };
            return Err(refused(reason, format!("{} does not own the mint {}", seller.token_program, seller.mint)));
        }
        let usable = |whose, owner, account: &Option<Account>| {
            facilitator.usable(whose, owner, account.as_ref()).map_err(|what| refused(self.codes.simulation, what))
        };
        usable("recipient's", seller.pay_to, &accounts.pay_to)?;
        usable("treasury's", seller.treasury_owner, &accounts.treasury)?;
        let balance = usable("payer's", self.request.terms.payer, &accounts.payer)?;
        if Amount::from(balance) < self.request.amount {
            let detail = format!("the payer holds {balance} and deposits {}", self.request.amount);
            return Err(refused(Reason::InsufficientFunds, detail));
        }
        Ok(())
    }

    fn simulated(&self, simulation: Result<Simulation, ChainError>) -> Result<(), FacilitatorError> {
        let (error, logs) = match simulation {
            Ok(Simulation { error: None, .. }) => return Ok(()),
            Ok(Simulation { error: Some(error), logs }) => (error, logs),
            Err(ChainError::Refused(error)) => (error, Vec::new()),
            Err(error) => return Err(nothing_sent(&error)),
        };
        if let Some(detail) = self.facilitator.unfunded(&error) {
            return Err(FacilitatorError::Unavailable(detail));
        }
        let hint = if error.contains("BlockhashNotFound") { ": build it again with a fresh blockhash" } else { "" };
        let mut detail = format!("the transaction would fail: {error}{hint}");
        for line in logs.iter().skip(logs.len().saturating_sub(LOG_LINES_SHOWN)) {
            detail.push_str("; ");
            detail.extend(line.chars().take(LOG_LINE_CHARS_SHOWN));
        }
        Err(refused(self.codes.simulation, detail))
    }
}
