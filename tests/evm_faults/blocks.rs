//! Blocks that come only every two seconds, as on public chains.

use super::world::{EAGER, METERED, PRICE, Setup, World};

async fn everything_on_slow_blocks(local: bool) {
    let setup = Setup { local, block_seconds: Some(2), settle_timeout_seconds: 60, settlement: EAGER };
    let mut world = World::open(&setup);
    let opened = world.pay("/quote");
    assert_ne!(opened["settlement"]["transaction"], "", "a deposit came with it: {opened}");
    for _ in 0..5 {
        let paid = world.pay("/quote");
        assert_eq!(paid["settlement"]["transaction"], "", "a voucher waits for no block: {paid}");
    }
    world.pay("/usage");
    assert_eq!(world.told, 6 * PRICE + METERED);
    world.is_settled().await;
    // It goes on after a claim, and what is new is claimed with the refund.
    world.pay("/quote");
    world.tie_out().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_the_reference_facilitator() {
    everything_on_slow_blocks(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_our_own_facilitator() {
    everything_on_slow_blocks(true).await;
}
