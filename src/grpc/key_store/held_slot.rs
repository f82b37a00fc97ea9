//! Streams that hold a slot of their caller.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tonic::Status;

use crate::domain::Stopwatch;
use crate::grpc::status;
use crate::service::CallerSlot;

/// Returns `responses` as a stream that holds `slot` until it ends. It ends with an error if it loses the slot.
pub(super) fn holding<T: Send + 'static>(
    slot: CallerSlot,
    stopwatch: Arc<dyn Stopwatch>,
    responses: BoxStream<'static, Result<T, Status>>,
) -> BoxStream<'static, Result<T, Status>> {
    let held = stream::unfold(Some((responses, slot, stopwatch)), |state| async {
        let (mut responses, slot, stopwatch) = state?;
        tokio::select! {
            response = responses.next() => {
                slot.record_read(stopwatch.moment());
                Some((response?, Some((responses, slot, stopwatch))))
            }
            () = slot.lost() => Some((Err(status::overloaded()), None)),
        }
    });
    held.boxed()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::ManualStopwatch;
    use crate::service::{Caller, CallerSlots};

    #[tokio::test]
    async fn a_stream_that_is_not_read_loses_its_slot() {
        let silent_for = Duration::from_secs(15);
        let (slots, stopwatch) =
            (CallerSlots::new(2, 1, Some(silent_for)), Arc::new(ManualStopwatch::default()));
        let open = |name: &str| {
            let slot = slots.take(&Caller::admin(name.to_owned(), "r"), stopwatch.moment())?;
            let responses = stream::repeat_with(|| Ok(())).chain(stream::pending()).boxed();
            Some(holding(slot, Arc::<ManualStopwatch>::clone(&stopwatch), responses))
        };
        let (mut silent, mut read) = (open("a").unwrap(), open("b").unwrap());
        stopwatch.advance(silent_for);
        read.next().await.unwrap().unwrap();
        let _third = open("c").unwrap();
        assert!(open("d").is_none(), "all streams are read");
        let lost = async {
            loop {
                if let Err(status) = silent.next().await.unwrap() {
                    return status;
                }
            }
        };
        assert_eq!(lost.await.code(), tonic::Code::ResourceExhausted);
        assert!(silent.next().await.is_none());
        read.next().await.unwrap().unwrap();
    }
}
