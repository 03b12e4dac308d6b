//! Messages as bytes: the only place that knows the codec (bincode 2, little endian, fixed-width integers).
//!
//! A frame is a length, u32 little endian, and so many bytes: one message. Lengths over the limit, messages that do not decode
//! and bytes after a message are errors; nothing a peer sends makes this program panic, or reserve more than the limit.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most bytes of a message of somebody who has not shown who they are.
pub const STRANGER: usize = 256;
/// Most bytes of any other message. Bulk data follows its message as plain bytes.
pub const MEMBER: usize = 1 << 20;

/// A frame that is no message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a message of {got} bytes, at most {limit} are expected here")]
    TooLong { got: usize, limit: usize },
    #[error("{0} bytes that are no message of this program")]
    Garbled(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn codec() -> impl bincode::config::Config {
    bincode::config::standard().with_fixed_int_encoding().with_little_endian().with_limit::<MEMBER>()
}

/// A message with its length in front. Errors: it is longer than [`MEMBER`].
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, WireError> {
    let too_long = |got| WireError::TooLong { got, limit: MEMBER };
    let mut frame = vec![0; 4];
    bincode::serde::encode_into_std_write(message, &mut frame, codec()).map_err(|_| too_long(usize::MAX))?;
    let length = frame.len() - 4;
    if length > MEMBER {
        return Err(too_long(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// A message from the bytes of a frame, without its length.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match bincode::serde::decode_from_slice(bytes, codec()) {
        Ok((message, used)) if used == bytes.len() => Ok(message),
        _ => Err(WireError::Garbled(bytes.len())),
    }
}

fn length(head: [u8; 4], limit: usize) -> Result<usize, WireError> {
    let got = u32::from_le_bytes(head) as usize;
    if got > limit { Err(WireError::TooLong { got, limit }) } else { Ok(got) }
}

/// The next message of at most `limit` bytes.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read, limit: usize) -> Result<T, WireError> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let mut body = vec![0; length(head, limit)?];
    from.read_exact(&mut body)?;
    decode(&body)
}

pub fn send(to: &mut impl Write, message: &impl Serialize) -> Result<(), WireError> {
    Ok(to.write_all(&encode(message)?)?)
}

/// As [`receive`]. Not to be dropped between two messages: what was read of one is lost then.
pub async fn receive_async<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<T, WireError> {
    let mut head = [0; 4];
    from.read_exact(&mut head).await?;
    let mut body = vec![0; length(head, limit)?];
    from.read_exact(&mut body).await?;
    decode(&body)
}

pub async fn send_async(to: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> Result<(), WireError> {
    Ok(to.write_all(&encode(message)?).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Message {
        Empty,
        Text { rank: u32, text: String },
        Many(Vec<u64>),
    }

    #[test]
    fn messages_come_back_one_by_one() {
        let all = [Message::Empty, Message::Text { rank: 3, text: "é".into() }, Message::Many(vec![u64::MAX, 1])];
        let mut bytes = Vec::new();
        all.iter().for_each(|m| send(&mut bytes, m).unwrap());
        let mut from = bytes.as_slice();
        let back: Vec<Message> = (0..3).map(|_| receive(&mut from, MEMBER).unwrap()).collect();
        assert_eq!(back, all);
        assert!(from.is_empty());
    }

    #[test]
    fn the_layout_is_pinned() {
        let frame = encode(&Message::Text { rank: 0x0102_0304, text: "ab".into() }).unwrap();
        let expected = [18, 0, 0, 0, 1, 0, 0, 0, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b'];
        assert_eq!(frame, expected);
    }

    #[test]
    fn long_and_garbled_frames_are_errors() {
        let long = encode(&Message::Many(vec![0; 100])).unwrap();
        let error = receive::<Message>(&mut long.as_slice(), STRANGER).unwrap_err().to_string();
        assert_eq!(error, "a message of 812 bytes, at most 256 are expected here");
        assert!(encode(&Message::Many(vec![0; MEMBER / 8])).is_err());
        let announced = [&u32::MAX.to_le_bytes()[..], &[0; 8]].concat();
        assert!(matches!(receive::<Message>(&mut announced.as_slice(), MEMBER), Err(WireError::TooLong { .. })));
        let mut trailing = encode(&Message::Empty).unwrap();
        trailing.push(0);
        trailing[0] += 1;
        assert!(matches!(receive::<Message>(&mut trailing.as_slice(), MEMBER), Err(WireError::Garbled(5))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = decode::<Message>(&bytes) {
                prop_assert_eq!(&encode(&message).unwrap()[4..], &bytes[..]);
            }
            let _ = receive::<Message>(&mut bytes.as_slice(), STRANGER);
        }
    }
}
