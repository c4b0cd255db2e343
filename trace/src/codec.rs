//! The only module that calls bincode (the vocabulary derives its traits): values to bytes and
//! back, within hard limits of size.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bincode::{Decode, Encode};
use thiserror::Error;

/// Most bytes of one encoded value: a header or a block of records.
pub const BYTES_MAX: usize = 64 << 20;

/// A value that cannot be encoded or decoded.
#[derive(Debug, Error)]
pub enum CodecError {
    /// It is too large, or writing failed.
    #[error("cannot encode: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// The bytes are no such value.
    #[error("cannot decode: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// Bytes are left over behind the value.
    #[error("{0} bytes are left over behind the value")]
    Trailing(usize),
}

type Config = Configuration<LittleEndian, Varint, Limit<BYTES_MAX>>;

const CONFIG: Config = config::standard().with_limit::<BYTES_MAX>();

/// Encodes a value behind what `out` holds.
///
/// # Errors
/// The value is too large.
pub fn encode(value: &impl Encode, out: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::encode_into_std_write(value, out, CONFIG)?;
    Ok(())
}

/// Decodes a value that takes up all the bytes.
///
/// # Errors
/// The bytes are no such value, claim more than [`BYTES_MAX`], or hold more than it.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::decode_from_slice(bytes, CONFIG)?;
    match bytes.len() - used {
        0 => Ok(value),
        more => Err(CodecError::Trailing(more)),
    }
}

/// Decodes a value at the front of the bytes.
///
/// # Errors
/// The bytes do not begin with such a value.
pub fn front<T: Decode<()>>(bytes: &[u8]) -> Result<T, CodecError> {
    Ok(bincode::decode_from_slice(bytes, CONFIG)?.0)
}

/// No limit: the state of a run is written whole and read behind its checksum.
const STATE: Configuration<LittleEndian, Varint> = config::standard();

/// Encodes the state of a run (serde's form) to a stream.
///
/// # Errors
/// The stream fails.
pub fn encode_state(
    state: &impl serde::Serialize,
    out: &mut impl std::io::Write,
) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(state, out, STATE)?;
    Ok(())
}

/// Decodes the state of a run that takes up all the bytes.
///
/// # Errors
/// The bytes are no such state, or hold more than it.
pub fn decode_state<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (state, used) = bincode::serde::decode_from_slice(bytes, STATE)?;
    match bytes.len() - used {
        0 => Ok(state),
        more => Err(CodecError::Trailing(more)),
    }
}
