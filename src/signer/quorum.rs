//! Which shares make a signer: two or three different ones of one key.
//!
//! Owns [`OpenError`] and [`check`], which both curves' signers use. Whether the shares sign together is for each of them
//! to try.

use super::keystore::{Curve, KeyShare, SHARES};

/// How many shares sign together.
pub const SIGNERS_MIN: u16 = 2;

/// Why shares make no signer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Fewer than two shares.
    #[error("no quorum: {have} of the {SIGNERS_MIN} shares that sign together are here; open one more")]
    NoQuorum {
        /// How many there are.
        have: usize,
    },
    /// More shares than a key has.
    #[error("{0} shares were given, a key has {SHARES}")]
    TooMany(usize),
    /// The same share twice.
    #[error("{first} and {second} are both share {identifier}; give two different shares")]
    SameShare {
        /// Where the one came from.
        first: String,
        /// Where the other came from.
        second: String,
        /// Which share.
        identifier: u16,
    },
    /// Shares of different keys.
    #[error("{first} belongs to the key {first_group}, {second} to {second_group}; give shares of one key")]
    DifferentGroups {
        /// Where the one came from.
        first: String,
        /// Its key, as the chain names it.
        first_group: String,
        /// Where the other came from.
        second: String,
        /// Its key, as the chain names it.
        second_group: String,
    },
    /// Shares of one key that were not made together: one of them is from before a refresh.
    #[error(
        "{older} and {newer} are shares of one key of another generation ({older_generation} and {newer_generation}): they do \
         not sign together; give the shares that the last refresh made, and destroy the older ones"
    )]
    OtherGeneration {
        /// Where the older came from.
        older: String,
        /// Its generation.
        older_generation: u32,
        /// Where the newer came from.
        newer: String,
        /// Its generation.
        newer_generation: u32,
    },
    /// A share that does not fit its own public part.
    #[error("{0} does not hold the share that it says it holds; restore it from its backup")]
    Corrupt(String),
    /// The shares do not sign together.
    #[error("the shares do not sign together: {0}; make a new key")]
    Broken(String),
}

/// Two or three different shares of one key. `name` gives a key the name by which its chain knows it.
///
/// # Errors
/// [`OpenError`], which names the shares at fault.
pub fn check<C: Curve>(shares: &[KeyShare<C>], name: impl Fn(&C::Point) -> String) -> Result<(), OpenError> {
    for (index, share) in shares.iter().enumerate() {
        for earlier in shares.iter().take(index) {
            differ(earlier, share, &name)?;
        }
    }
    match shares.len() {
        have @ ..2 => Err(OpenError::NoQuorum { have }),
        2..=SHARES => Ok(()),
        given => Err(OpenError::TooMany(given)),
    }
}

fn differ<C: Curve>(
    first: &KeyShare<C>,
    second: &KeyShare<C>,
    name: impl Fn(&C::Point) -> String,
) -> Result<(), OpenError> {
    let made_apart = first.verifying_shares != second.verifying_shares || first.generation != second.generation;
    if first.group() == second.group() && made_apart {
        let (older, newer) = if first.generation <= second.generation { (first, second) } else { (second, first) };
        return Err(OpenError::OtherGeneration {
            older: older.origin().to_owned(),
            older_generation: older.generation,
            newer: newer.origin().to_owned(),
            newer_generation: newer.generation,
        });
    }
    if first.group() != second.group() {
        return Err(OpenError::DifferentGroups {
            first: first.origin().to_owned(),
            first_group: name(&first.group()),
            second: second.origin().to_owned(),
            second_group: name(&second.group()),
        });
    }
    if first.identifier() == second.identifier() {
        let (first, identifier) = (first.origin().to_owned(), first.identifier());
        return Err(OpenError::SameShare { first, second: second.origin().to_owned(), identifier });
    }
    Ok(())
}
