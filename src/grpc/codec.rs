//! The codec of all services: tonic's codec with smaller buffers, and with a limit for the number of fields of a
//! request.

use std::marker::PhantomData;

use prost::bytes::Buf as _;
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use super::field_limit::RequestKind;
use super::status;

/// Initial capacity of the buffers for a request and for a response; they grow for larger messages. tonic's default is
/// 8 KiB. For messages of a hundred bytes, these buffers were the most expensive allocations of a call.
const BUFFER_BYTES: usize = 512;

/// Maximum size of the messages of a stream that are sent in one chunk. The same as tonic's default.
const YIELD_BYTES: usize = 32 * 1024;

/// Codec that encodes `T` and decodes `U`.
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

/// Decoder that rejects requests with too many fields.
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
