//! Methods.

use crate::encoded::round_trip;
use crate::wire::codec::WireResult;
use crate::wire::frame::{self, Cut};
use crate::wire::method::{Encode, Method};

/// The crate itself never encodes a method that it does not know.
macro_rules! any_method {
    ($($name:ident)*) => {
        fn write_payload(method: &Method<'_>, buffer: &mut Vec<u8>) -> WireResult<()> {
            match method { $(Method::$name(method) => method.encode(buffer),)* }
        }

        fn write_frame(method: &Method<'_>, buffer: &mut Vec<u8>, limit: usize) -> WireResult<()> {
            match method {
                $(Method::$name(method) => frame::write_method(buffer, 7, method, limit),)*
            }
        }
    };
}

any_method! {
    ConnectionStart ConnectionStartOk ConnectionSecure ConnectionSecureOk ConnectionTune
    ConnectionTuneOk ConnectionOpen ConnectionOpenOk ConnectionClose ConnectionCloseOk
    ConnectionBlocked ConnectionUnblocked ConnectionUpdateSecret ConnectionUpdateSecretOk
    ChannelOpen ChannelOpenOk ChannelFlow ChannelFlowOk ChannelClose ChannelCloseOk
    AccessRequest AccessRequestOk ExchangeDeclare ExchangeDeclareOk ExchangeDelete
    ExchangeDeleteOk ExchangeBind ExchangeBindOk ExchangeUnbind ExchangeUnbindOk
    QueueDeclare QueueDeclareOk QueueBind QueueBindOk QueuePurge QueuePurgeOk QueueDelete
    QueueDeleteOk QueueUnbind QueueUnbindOk BasicQos BasicQosOk BasicConsume BasicConsumeOk
    BasicCancel BasicCancelOk BasicPublish BasicReturn BasicDeliver BasicGet BasicGetOk
    BasicGetEmpty BasicAck BasicReject BasicRecoverAsync BasicRecover BasicRecoverOk
    BasicNack TxSelect TxSelectOk TxCommit TxCommitOk TxRollback TxRollbackOk ConfirmSelect
    ConfirmSelectOk
}

pub(crate) fn run(input: &[u8]) {
    let decode = |bytes: &[u8]| Method::decode(bytes).map(Method::into_owned);
    let Some(method) = round_trip(input, decode, write_payload) else {
        return;
    };
    assert!(method.id().name().is_some(), "{method:?}");
    let [class, id] = [0, 2].map(|at| u16::from_be_bytes([input[at], input[at + 1]]));
    assert_eq!((method.id().class, method.id().method), (class, id));
    in_a_frame(&method);
}

/// A frame has the payload, or nothing at all.
fn in_a_frame(method: &Method<'_>) {
    let mut payload = Vec::new();
    let is_encoded = write_payload(method, &mut payload).is_ok();
    let size = payload.len();
    for limit in [size.saturating_sub(1), size] {
        let mut buffer = vec![0xaa];
        if write_frame(method, &mut buffer, limit).is_err() {
            assert!(!is_encoded || limit < size, "{method:?} is refused");
            assert_eq!(buffer, [0xaa], "{method:?} leaves a part of itself");
            continue;
        }
        assert!(is_encoded && limit == size, "{method:?} at {limit}");
        let Ok(Cut::Frame(cut, length)) = frame::cut(&buffer[1..], limit) else {
            panic!("{method:?} cannot be cut out");
        };
        assert_eq!((cut.channel, cut.payload), (7, payload.as_slice()));
        assert_eq!(length, buffer.len() - 1);
    }
}
