//! What a thread made lately, for whoever needs the same again: texts of keys, addresses of keys, keys as points.
//!
//! A paid request asks for a handful of these several times, and most requests come from payers who came before. What
//! is kept changes no outcome, for each is made of nothing but the bytes that it is kept by.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Things made of `N` bytes. One that falls on another's place takes it.
pub(crate) struct Recent<const N: usize, V> {
    places: usize,
    kept: RefCell<Vec<Option<Kept<N, V>>>>,
}

#[derive(Clone, Copy)]
struct Kept<const N: usize, V> {
    of: [u8; N],
    made: V,
}

impl<const N: usize, V: Copy> Recent<N, V> {
    /// A memory of so many places, which takes their room when the first is kept.
    pub(crate) const fn new(places: usize) -> Self {
        Self { places, kept: RefCell::new(Vec::new()) }
    }

    fn place(&self, of: &[u8; N]) -> usize {
        // Most keys and addresses are digests, or as good as random; what is not has its zeros at an end.
        let middle = of.get(N / 2..).and_then(<[u8]>::first_chunk::<2>).copied().unwrap_or_default();
        usize::from(u16::from_le_bytes(middle)).checked_rem(self.places).unwrap_or_default()
    }

    fn find(&self, of: &[u8; N]) -> Option<V> {
        let kept = self.kept.borrow();
        let kept = kept.get(self.place(of))?.as_ref()?;
        (kept.of == *of).then_some(kept.made)
    }

    fn keep(&self, of: &[u8; N], made: V) {
        let mut kept = self.kept.borrow_mut();
        if kept.is_empty() {
            kept.resize(self.places, None);
        }
        if let Some(place) = kept.get_mut(self.place(of)) {
            *place = Some(Kept { of: *of, made });
        }
    }
}

/// What this thread keeps of `of`, or else what `make` makes of it, which it keeps then.
pub(crate) fn recent<const N: usize, V: Copy>(
    memory: &'static LocalKey<Recent<N, V>>,
    of: &[u8; N],
    make: impl FnOnce() -> Option<V>,
) -> Option<V> {
    // A thread that is about to end remembers nothing.
    if let Ok(Some(found)) = memory.try_with(|memory| memory.find(of)) {
        return Some(found);
    }
    let made = make()?;
    let _kept = memory.try_with(|memory| memory.keep(of, made));
    Some(made)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACES: usize = 3;

    thread_local! {
        static SUMS: Recent<4, u16> = const { Recent::new(PLACES) };
    }

    fn sum(of: &[u8; 4]) -> Option<u16> {
        let sum = of.iter().map(|byte| u16::from(*byte)).sum();
        (sum > 0).then_some(sum)
    }

    proptest! {
        /// In few places, so that most take another's.
        #[test]
        fn what_is_kept_is_what_is_made(all in proptest::collection::vec(proptest::array::uniform4(0..3_u8), 0..50)) {
            for of in all {
                prop_assert_eq!(recent(&SUMS, &of, || sum(&of)), sum(&of));
            }
        }
    }

    #[test]
    fn the_same_is_made_once_until_another_takes_its_place() {
        let mut made = 0;
        let mut ask = |of: [u8; 4]| {
            recent(&SUMS, &of, || {
                made += 1;
                sum(&of)
            })
        };
        let (one, other) = ([1, 0, 7, 0], [2, 0, 7, 0]);
        assert_eq!([ask(one), ask(one), ask(other), ask(one)], [Some(8), Some(8), Some(9), Some(8)]);
        // What cannot be made is not kept.
        assert_eq!([ask([0; 4]), ask([0; 4])], [None, None]);
        assert_eq!(made, 5);
    }
}
