//! A chain with one account: a pool, blocks that are taken back now and then, and a node that drops, delays, forgets
//! and answers late, all by one seed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use turnpike::chain::evm::revert::Revert;
use turnpike::chain::evm::transaction::Signed;
use turnpike::chain::evm::{AtBlock, Block, Call, Counted, EvmChain, EvmError, Receipt, Refusal, SendError};
use turnpike::x402::evm::{Address, B256, U256};

/// A small generator: splitmix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub async fn pause(&mut self, ms_max: u64) {
        let ms = self.below(ms_max);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

struct State {
    rng: Rng,
    misbehaves: bool,
    down: bool,
    poor: bool,
    base_fee: u128,
    pool: BTreeMap<u64, Signed>,
    /// Each block's transactions; `None` is somebody else's with the same key.
    blocks: Vec<Vec<Option<Signed>>>,
    highest_fee: u128,
}

pub struct World(Mutex<State>);

fn length<T>(list: &[T]) -> u64 {
    u64::try_from(list.len()).unwrap()
}

impl State {
    fn mined(&self) -> u64 {
        self.blocks.iter().map(|block| length(block)).sum()
    }

    fn block(&mut self) {
        let mut block = Vec::new();
        let mut next = self.mined();
        if self.misbehaves && self.rng.one_in(25) {
            self.pool.remove(&next);
            block.push(None);
            next += 1;
        }
        while let Some(signed) = self.pool.get(&next)
            && signed.unsigned().fees.max_fee_per_gas >= self.base_fee
        {
            let signed = self.pool.remove(&next);
            block.push(signed);
            next += 1;
        }
        self.blocks.push(block);
    }

    /// Takes the newest block back. Its transactions go to the pool again, or are forgotten.
    fn take_back(&mut self) {
        if self.blocks.len() < 3 {
            return;
        }
        let mut nonce = self.mined();
        for signed in self.blocks.pop().unwrap().into_iter().rev() {
            nonce -= 1;
            if let Some(signed) = signed
                && self.rng.one_in(2)
            {
                self.pool.insert(nonce, signed);
            }
        }
    }

    fn add(&mut self, signed: Signed) -> Result<(), Refusal> {
        let unsigned = signed.unsigned();
        if self.poor {
            return Err(Refusal::InsufficientFunds);
        }
        if unsigned.nonce < self.mined() {
            return Err(Refusal::NonceTooLow);
        }
        if unsigned.fees.max_fee_per_gas < self.base_fee && self.rng.one_in(3) {
            return Err(Refusal::FeeTooLow);
        }
        if let Some(old) = self.pool.get(&unsigned.nonce)
            && old.hash() != signed.hash()
        {
            let (old, new) = (old.unsigned().fees, unsigned.fees);
            let tenth_more = |old: u128, new: u128| new >= old + old / 10;
            if !tenth_more(old.max_fee_per_gas, new.max_fee_per_gas)
                || !tenth_more(old.max_priority_fee_per_gas, new.max_priority_fee_per_gas)
            {
                return Err(Refusal::Underpriced);
            }
        }
        self.highest_fee = self.highest_fee.max(unsigned.fees.max_fee_per_gas);
        self.pool.insert(unsigned.nonce, signed);
        Ok(())
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let blocks = vec![Vec::new(); 3];
        let rng = Rng::new(seed);
        let pool = BTreeMap::new();
        Self(Mutex::new(State {
            rng,
            misbehaves: false,
            down: false,
            poor: false,
            base_fee: 1_000,
            pool,
            blocks,
            highest_fee: 0,
        }))
    }

    pub fn misbehave(&self, misbehaves: bool) {
        self.0.lock().misbehaves = misbehaves;
    }

    pub fn set_down(&self, down: bool) {
        self.0.lock().down = down;
    }

    pub fn set_poor(&self, poor: bool) {
        self.0.lock().poor = poor;
    }

    pub fn set_base_fee(&self, base_fee: u128) {
        self.0.lock().base_fee = base_fee;
    }

    pub fn highest_fee(&self) -> u128 {
        self.0.lock().highest_fee
    }

    pub fn forget_all(&self) {
        self.0.lock().pool.clear();
    }

    pub fn block(&self) {
        self.0.lock().block();
    }

    /// How often a call with this data ran, whether or not it reverted.
    pub fn runs(&self, data: &[u8]) -> usize {
        let state = self.0.lock();
        let mined = state.blocks.iter().flatten().flatten();
        mined.filter(|signed| signed.unsigned().call.data == data).count()
    }

    /// A block every two seconds, now and then one taken back, and fees that wander.
    pub async fn make_blocks(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let mut state = self.0.lock();
            if state.misbehaves {
                if state.rng.one_in(8) {
                    state.take_back();
                }
                if state.rng.one_in(6)
                    && let Some(nonce) = state.pool.keys().next().copied()
                {
                    state.pool.remove(&nonce);
                }
                let percent = 80 + u128::from(state.rng.below(50));
                state.base_fee = (state.base_fee * percent / 100).clamp(100, 1 << 40);
            }
            state.block();
        }
    }

    /// Delays or drops an answer.
    async fn answer(&self) -> Result<(), EvmError> {
        let (down, pause, drops) = {
            let mut state = self.0.lock();
            let misbehaves = state.misbehaves;
            let pause = if misbehaves && state.rng.one_in(3) { state.rng.below(2_000) } else { 0 };
            (state.down, pause, misbehaves && state.rng.one_in(10))
        };
        if pause > 0 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        if down || drops { Err(EvmError::Unavailable("dropped".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl EvmChain for World {
    fn chain_id(&self) -> u64 {
        84_532
    }

    async fn head(&self) -> Result<Block, EvmError> {
        self.answer().await?;
        let state = self.0.lock();
        let number = length(&state.blocks) - 1;
        Ok(Block { number, timestamp: 0, base_fee_per_gas: Some(state.base_fee), gas_limit: 30_000_000 })
    }

    async fn call(&self, _: Address, _: &Call) -> Result<Vec<u8>, EvmError> {
        unreachable!("nothing is called here")
    }

    async fn call_many(&self, _: &[Call]) -> Result<AtBlock<Vec<Result<Vec<u8>, Revert>>>, EvmError> {
        unreachable!("nothing is read here")
    }

    async fn code_bytes(&self, _: Address) -> Result<usize, EvmError> {
        Ok(0)
    }

    async fn coin_balance(&self, _: Address) -> Result<U256, EvmError> {
        Ok(U256::ZERO)
    }

    async fn estimate_gas(&self, _: Address, _: &Call) -> Result<u64, EvmError> {
        Ok(50_000)
    }

    async fn priority_fee(&self) -> Result<u128, EvmError> {
        self.answer().await.map(|()| 10)
    }

    async fn transaction_count(&self, _: Address, counted: Counted) -> Result<u64, EvmError> {
        self.answer().await?;
        let mut state = self.0.lock();
        let mut count = state.mined();
        // A node that is a block behind.
        if state.misbehaves && state.rng.one_in(5) {
            count -= state.blocks.last().map_or(0, |block| length(block));
        }
        if counted == Counted::Known {
            while state.pool.contains_key(&count) {
                count += 1;
            }
        }
        Ok(count)
    }

    async fn send(&self, transaction: &[u8]) -> Result<(), SendError> {
        let (signed, _) = Signed::decode(transaction).unwrap();
        let doubtful = |_| SendError::Doubtful("dropped".into());
        self.answer().await.map_err(doubtful)?;
        let added = self.0.lock().add(signed);
        added.map_err(|refusal| SendError::Refused { refusal, text: format!("{refusal:?}") })?;
        self.answer().await.map_err(doubtful)
    }

    async fn receipt(&self, transaction: &B256) -> Result<Option<Receipt>, EvmError> {
        self.answer().await?;
        let state = self.0.lock();
        let receipts: HashMap<B256, Receipt> = (0_u64..)
            .zip(&state.blocks)
            .flat_map(|(number, block)| block.iter().flatten().map(move |signed| (number, signed)))
            .map(|(block_number, signed)| {
                let succeeded = signed.unsigned().call.data.first() != Some(&0xFF);
                let transaction = signed.hash();
                let receipt = Receipt { transaction, block_number, succeeded, gas_used: 21_000, logs: Vec::new() };
                (transaction, receipt)
            })
            .collect();
        Ok(receipts.get(transaction).cloned())
    }
}
