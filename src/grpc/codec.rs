//! The codec of all services: that of tonic with smaller buffers, and with a limit for the fields of requests.

use std::marker::PhantomData;

use prost::bytes::Buf as _;
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::field_limit::RequestKind;
use super::status;

/// What a call's request and its answer get each, before anything is known of them; larger messages get more. That of tonic
/// is 8 KiB: for messages of a hundred bytes, making room was the dearest single thing that a call asked of the allocator.
const BUFFER_BYTES: usize = 512;

/// How much of a stream goes together at most, if so much is there; tonic's own.
const YIELD_BYTES: usize = 32 * 1024;

/// Encodes `T` and decodes `U`.
#[derive(Clone, Debug)]
pub(super) struct SmallCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Name + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = LimitedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        let settings = BufferSettings::new(BUFFER_BYTES, YIELD_BYTES);
        LimitedDecoder { inner: ProstCodec::<T, U>::raw_decoder(settings), kind: RequestKind::find(U::NAME) }
    }
}

/// Rejects requests with too many fields.
#[derive(Clone, Debug)]
pub(super) struct LimitedDecoder<U> {
    inner: ProstDecoder<U>,
    kind: Option<RequestKind>,
}

impl<U: Message + Default> Decoder for LimitedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic buffers a message in one contiguous chunk.
        if self.kind.is_some_and(|kind| !kind.is_within_limit(buffer.chunk())) {
            return Err(status::too_many_fields());
        }
        self.inner.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.inner.buffer_settings()
    }
}
