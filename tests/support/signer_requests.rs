//! Signing requests as a healthy proxy makes them, open to mutation before they are built.

#![allow(dead_code, reason = "each test binary uses its own part")]

use ed25519_dalek::{Signer as _, SigningKey};
use turnpike::amount::Amount;
use turnpike::policy::Policy;
use turnpike::scheme::svm::program::{self, Call, ChannelAccounts, all_to};
use turnpike::scheme::svm::transaction::{Instruction, Transaction};
use turnpike::scheme::svm::{TOKEN_PROGRAM, TREASURY_PLACEHOLDER, USDC_DEVNET};
use turnpike::signer::rules::{ComputeCaps, KINDS, Rules};
use turnpike::signer::{Approved, ClaimLine, Setup, SigningRequest};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;
use turnpike::x402::network::SOLANA_DEVNET;

pub const DEPOSIT_MAX: u64 = 10_000_000;
pub const CLAIM_MAX: u64 = 20_000_000;
pub const DEPOSIT: u64 = 1_000_000;
pub const SALT: u64 = 7;
pub const OPEN_SLOT: u64 = 341_000_000;

/// Whom the money goes to.
pub fn pay_to() -> Key {
    key(0xA0)
}

pub fn key(seed: u8) -> Key {
    Key(SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes())
}

/// The request, as a policy lets it through that pays the same recipients.
pub fn approved(request: SigningRequest) -> Approved {
    Policy::unlimited(rules().pay_to).approve(request, Amount::ZERO).unwrap()
}

pub fn rules() -> Rules {
    Rules {
        network: SOLANA_DEVNET.parse().unwrap(),
        pay_to: vec![pay_to(), key(0xA1)],
        mints: vec![(USDC_DEVNET, TOKEN_PROGRAM)],
        treasury_owner: TREASURY_PLACEHOLDER,
        deposit_max: DEPOSIT_MAX,
        claim_max: CLAIM_MAX,
        compute: ComputeCaps::default(),
        kinds: KINDS.to_vec(),
    }
}

/// Those who take part: the group and a payer with one channel for each salt.
pub struct Cast {
    pub group: Key,
    pub payer: SigningKey,
}

impl Cast {
    pub fn new(group: Key) -> Self {
        Self { group, payer: SigningKey::from_bytes(&[0x11; 32]) }
    }

    pub fn payer_key(&self) -> Key {
        Key(self.payer.verifying_key().to_bytes())
    }

    pub fn channel(&self, salt: u64) -> Key {
        program::channel_address(&self.payer_key(), &self.group, &USDC_DEVNET, &self.payer_key(), salt, OPEN_SLOT).0
    }

    pub fn accounts(&self, salt: u64) -> ChannelAccounts {
        ChannelAccounts {
            channel: self.channel(salt),
            payer: self.payer_key(),
            payee: self.group,
            rent_payer: self.group,
            mint: USDC_DEVNET,
            token_program: TOKEN_PROGRAM,
        }
    }

    pub fn open_call(&self) -> Call {
        let recipients = all_to(pay_to()).to_vec();
        Call::Open { salt: SALT, deposit: DEPOSIT, grace_period: 3600, open_slot: OPEN_SLOT, recipients }
    }

    /// The Ed25519 instruction over a voucher of the payer.
    pub fn voucher(&self, channel: &Key, cumulative: u64, expires_at: i64) -> Instruction {
        let message = program::voucher_message(channel, cumulative, expires_at);
        program::ed25519(&self.payer_key(), &Signature(self.payer.sign(&message).to_bytes()), &message)
    }

    pub fn distribution(&self, salt: u64) -> Instruction {
        program::distribute(&self.accounts(salt), &TREASURY_PLACEHOLDER, &all_to(pay_to()))
    }

    pub fn create_account(&self, owner: Key) -> Instruction {
        program::create_ata_idempotent(self.group, owner, USDC_DEVNET, TOKEN_PROGRAM)
    }

    fn setup(&self, setup: Setup, instruction: Instruction) -> Draft {
        let instructions = vec![
            program::compute_unit_limit(200_000),
            program::compute_unit_price(1_000),
            instruction,
            program::memo("0123456789abcdef0123456789abcdef"),
        ];
        Draft { body: Body::Sponsor(setup), instructions, fee_payer: self.group, payer_signs: true }
    }

    pub fn open(&self) -> Draft {
        let open = program::open(&self.accounts(SALT), self.payer_key(), &self.open_call());
        let mut draft = self.setup(Setup::Open { deposit: DEPOSIT }, open);
        draft.instructions.push(program::memo(&program::receiver_authorizer_memo(&self.group)));
        draft
    }

    /// An `open` of scheme `upto`: the key itself signs the vouchers.
    pub fn open_metered(&self) -> Draft {
        let mut accounts = self.accounts(SALT);
        let channel =
            program::channel_address(&self.payer_key(), &self.group, &USDC_DEVNET, &self.group, SALT, OPEN_SLOT).0;
        accounts.channel = channel;
        self.setup(Setup::Open { deposit: DEPOSIT }, program::open(&accounts, self.group, &self.open_call()))
    }

    pub fn top_up(&self) -> Draft {
        self.setup(Setup::TopUp, program::top_up(&self.accounts(SALT), DEPOSIT))
    }

    pub fn request_close(&self) -> Draft {
        self.setup(Setup::RequestClose, program::request_close(self.payer_key(), self.channel(SALT)))
    }

    fn own(&self, body: Body, rest: Vec<Instruction>) -> Draft {
        let mut instructions = vec![program::compute_unit_limit(300_000)];
        instructions.extend(rest);
        Draft { body, instructions, fee_payer: self.group, payer_signs: false }
    }

    /// A claim of `count` channels: the one of salt `n` is claimed up to `1000 * n`.
    pub fn claim(&self, count: u64) -> Draft {
        let lines: Vec<_> =
            (1..=count).map(|salt| ClaimLine { channel: self.channel(salt), cumulative: 1000 * salt }).collect();
        let pairs = lines
            .iter()
            .flat_map(|line| [self.voucher(&line.channel, line.cumulative, 0), program::settle(line.channel)]);
        let pairs = pairs.collect();
        self.own(Body::Claim(lines), pairs)
    }

    pub fn distribute(&self, count: u64) -> Draft {
        let channels = (1..=count).map(|salt| self.channel(salt)).collect();
        self.own(Body::Distribute(channels), (1..=count).map(|salt| self.distribution(salt)).collect())
    }

    /// No channel, only token accounts.
    pub fn prepare(&self) -> Draft {
        self.own(
            Body::Distribute(Vec::new()),
            vec![self.create_account(pay_to()), self.create_account(TREASURY_PLACEHOLDER)],
        )
    }

    pub fn close_with_voucher(&self, cumulative: u64, expires_at: i64) -> Draft {
        let channel = self.channel(SALT);
        self.own(
            Body::Close(channel, Some(cumulative)),
            vec![
                self.voucher(&channel, cumulative, expires_at),
                program::settle_and_seal(self.group, channel, true),
                self.distribution(SALT),
            ],
        )
    }

    pub fn close_without_voucher(&self) -> Draft {
        let channel = self.channel(SALT);
        let seal = program::settle_and_seal(self.group, channel, false);
        self.own(Body::Close(channel, None), vec![seal, self.distribution(SALT)])
    }

    /// The same without its last instruction.
    pub fn without_last(&self, mut draft: Draft) -> Draft {
        draft.instructions.pop();
        draft
    }

    pub fn seal(&self) -> Draft {
        let channel = self.channel(SALT);
        self.own(Body::Close(channel, None), vec![program::seal(channel), self.distribution(SALT)])
    }

    pub fn distribute_closed(&self) -> Draft {
        self.own(Body::Close(self.channel(SALT), None), vec![self.create_account(pay_to()), self.distribution(SALT)])
    }

    pub fn reclaim(&self) -> Draft {
        let channel = self.channel(SALT);
        self.own(Body::Close(channel, None), vec![program::reclaim(channel, self.group)])
    }

    pub fn sol_transfer(&self, from: Key, to: Key, lamports: u64) -> Instruction {
        use turnpike::scheme::svm::SYSTEM_PROGRAM;
        use turnpike::scheme::svm::transaction::AccountMeta;
        let data = [&2_u32.to_le_bytes()[..], &lamports.to_le_bytes()].concat();
        let accounts = vec![AccountMeta::writable(from).signer(), AccountMeta::writable(to)];
        Instruction { program: SYSTEM_PROGRAM, accounts, data }
    }

    pub fn build(&self, draft: &Draft) -> SigningRequest {
        let mut transaction = Transaction::build(draft.fee_payer, &draft.instructions, [9; 32]).unwrap();
        if draft.payer_signs {
            let signature = Signature(self.payer.sign(transaction.message()).to_bytes());
            let _ = transaction.set_signature(&self.payer_key(), signature);
        }
        draft.body.request(transaction)
    }
}

/// What a request says that its transaction is.
#[derive(Clone)]
pub enum Body {
    Sponsor(Setup),
    Claim(Vec<ClaimLine>),
    Distribute(Vec<Key>),
    Close(Key, Option<u64>),
}

impl Body {
    pub fn request(&self, transaction: Transaction) -> SigningRequest {
        match self.clone() {
            Self::Sponsor(setup) => SigningRequest::Sponsor { setup, transaction },
            Self::Claim(lines) => SigningRequest::Claim { lines, transaction },
            Self::Distribute(channels) => SigningRequest::Distribute { channels, transaction },
            Self::Close(channel, cumulative) => SigningRequest::Close { channel, cumulative, transaction },
        }
    }
}

/// A request before it is built.
#[derive(Clone)]
pub struct Draft {
    pub body: Body,
    pub instructions: Vec<Instruction>,
    pub fee_payer: Key,
    pub payer_signs: bool,
}

impl Draft {
    /// The first call of the channel program.
    pub fn main(&mut self) -> &mut Instruction {
        use turnpike::scheme::svm::PAYMENT_CHANNELS;
        self.instructions.iter_mut().find(|instruction| instruction.program == PAYMENT_CHANNELS).unwrap()
    }
}
