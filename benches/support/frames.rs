//! AMQP frames, as far as the sink and the limit need them.

pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;
pub(crate) const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

const HEAD: usize = 7;
const END: u8 = 0xce;

pub(crate) const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
/// The largest frame of both sides in bytes: RabbitMQ's default.
pub(crate) const FRAME_MAX: u32 = 128 << 10;

/// A method's class and its number within the class.
pub(crate) type MethodId = (u16, u16);

pub(crate) const CONNECTION_START: MethodId = (10, 10);
pub(crate) const CONNECTION_START_OK: MethodId = (10, 11);
pub(crate) const CONNECTION_TUNE: MethodId = (10, 30);
pub(crate) const CONNECTION_TUNE_OK: MethodId = (10, 31);
pub(crate) const CONNECTION_OPEN: MethodId = (10, 40);
pub(crate) const CONNECTION_OPEN_OK: MethodId = (10, 41);
pub(crate) const CONNECTION_CLOSE: MethodId = (10, 50);
pub(crate) const CONNECTION_CLOSE_OK: MethodId = (10, 51);
pub(crate) const CHANNEL_OPEN: MethodId = (20, 10);
pub(crate) const QUEUE_DECLARE: MethodId = (50, 10);
pub(crate) const QUEUE_DECLARE_OK: MethodId = (50, 11);
pub(crate) const BASIC_QOS: MethodId = (60, 10);
pub(crate) const BASIC_CONSUME: MethodId = (60, 20);
pub(crate) const BASIC_PUBLISH: MethodId = (60, 40);
pub(crate) const BASIC_DELIVER: MethodId = (60, 60);
pub(crate) const BASIC_GET: MethodId = (60, 70);
pub(crate) const BASIC_ACK: MethodId = (60, 80);
pub(crate) const CONFIRM_SELECT: MethodId = (85, 10);

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    size: usize,
}

impl Head {
    /// Returns `None` if bytes are missing.
    #[inline]
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let head: [u8; HEAD] = bytes.get(..HEAD)?.try_into().unwrap();
        let [kind, channel @ .., a, b, c, d] = head;
        assert!(
            kind <= BODY || kind == HEARTBEAT,
            "not a frame header: {head:?}"
        );
        Some(Self {
            kind,
            channel: u16::from_be_bytes(channel),
            size: u32::from_be_bytes([a, b, c, d]) as usize,
        })
    }

    /// The length of the whole frame in bytes.
    #[inline]
    pub(crate) fn frame_length(self) -> usize {
        HEAD + self.size + 1
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) payload: &'a [u8],
    /// The length of the whole frame in bytes.
    pub(crate) length: usize,
}

impl<'a> Frame<'a> {
    /// Returns `None` if bytes are missing.
    #[inline]
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let head = Head::read(bytes)?;
        let length = head.frame_length();
        let frame = bytes.get(..length)?;
        assert_eq!(frame[length - 1], END);
        Some(Self {
            kind: head.kind,
            channel: head.channel,
            payload: &frame[HEAD..length - 1],
            length,
        })
    }

    #[inline]
    pub(crate) fn method(&self) -> MethodId {
        (self.u16_at(0), self.u16_at(2))
    }

    #[inline]
    pub(crate) fn arguments(&self) -> Arguments<'a> {
        Arguments(&self.payload[4..])
    }

    /// The size of the message's body. For header frames only.
    #[inline]
    pub(crate) fn body_size(&self) -> u64 {
        u64::from_be_bytes(self.payload[4..12].try_into().unwrap())
    }

    #[inline]
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.payload[at..at + 2].try_into().unwrap())
    }
}

/// Reads the arguments of a method in order.
pub(crate) struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }

    pub(crate) fn short_string(&mut self) -> &'a str {
        let length = self.u8();
        std::str::from_utf8(self.bytes(length.into())).unwrap()
    }
}

fn write_frame(out: &mut Vec<u8>, kind: u8, channel: u16, pieces: &[&[u8]]) {
    let size: usize = pieces.iter().map(|piece| piece.len()).sum();
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&(size as u32).to_be_bytes());
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    out.push(END);
}

pub(crate) fn write_method(out: &mut Vec<u8>, channel: u16, id: MethodId, arguments: &[&[u8]]) {
    let (class, method) = (id.0.to_be_bytes(), id.1.to_be_bytes());
    let pieces = [&[&class[..], &method], arguments].concat();
    write_frame(out, METHOD, channel, &pieces);
}

/// Writes header and body of a message without properties.
pub(crate) fn write_content(out: &mut Vec<u8>, channel: u16, body: &[u8]) {
    let size = (body.len() as u64).to_be_bytes();
    write_frame(out, HEADER, channel, &[&[0, 60, 0, 0], &size, &[0, 0]]);
    for piece in body.chunks(FRAME_MAX as usize - HEAD - 1) {
        write_frame(out, BODY, channel, &[piece]);
    }
}

pub(crate) fn short_string(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    [&[length], text.as_bytes()].concat()
}

pub(crate) fn long_string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}
