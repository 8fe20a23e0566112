//! Protocol violations by the peer.

use crate::error::ReplyCode;
use crate::wire::codec::WireError;
use crate::wire::method::MethodId;

/// A violation of the protocol, with the reply code for `connection.close`.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) code: ReplyCode,
    pub(super) text: String,
    pub(super) method: Option<MethodId>,
}

pub(super) fn violation(code: ReplyCode, text: impl Into<String>) -> Violation {
    Violation {
        code,
        text: text.into(),
        method: None,
    }
}

/// A violation: the method is not allowed here.
pub(super) fn invalid(text: impl Into<String>) -> Violation {
    violation(ReplyCode::COMMAND_INVALID, text)
}

impl From<WireError> for Violation {
    fn from(error: WireError) -> Self {
        let code = match error {
            WireError::UnknownMethod { .. } => ReplyCode::COMMAND_INVALID,
            WireError::UnknownFrameType(_)
            | WireError::FrameTooLarge { .. }
            | WireError::WrongFrameEnd(_) => ReplyCode::FRAME_ERROR,
            WireError::UnknownContentClass(_) => ReplyCode::UNEXPECTED_FRAME,
            _ => ReplyCode::SYNTAX_ERROR,
        };
        violation(code, error.to_string())
    }
}

pub(super) type Checked<T> = Result<T, Violation>;
