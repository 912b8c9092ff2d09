//! The SPL Memo program: text that every given account has signed.

use solana_instruction_error::InstructionError;

use crate::chain::sandbox::runtime::{Frame, Outcome};

/// Accepts UTF-8 that every account of the call has signed.
pub(in crate::chain::sandbox) fn run(frame: &mut Frame<'_, '_>, data: &[u8]) -> Outcome {
    for place in 0..frame.len() {
        frame.require_signer(place)?;
    }
    let text = std::str::from_utf8(data).map_err(|_| InstructionError::InvalidInstructionData)?;
    let line = format!("Memo (len {}): {text:?}", text.len());
    frame.log(line);
    Ok(())
}
