//! One short conversation on a D-Bus, in the D-Bus specification's words: messages are zbus's, the stream is read and
//! written here. zbus's own connection makes threads, and waits for the answer to each step; here everything between
//! being accepted and the one answer that counts is sent at once.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use zbus::Message;
use zbus::message::{Flags, Type};
use zbus::zvariant::serialized::{Context, Data};
use zbus::zvariant::{DynamicType, Endian};

/// The bus itself: `org.freedesktop.DBus`.
pub(super) const BUS: Peer<'static> =
    Peer { destination: "org.freedesktop.DBus", object: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// Longer messages are not for us.
pub(crate) const LONGEST: usize = 1 << 20;

/// Whom a call is for.
#[derive(Clone, Copy)]
pub(super) struct Peer<'a> {
    pub(super) destination: &'a str,
    pub(super) object: &'a str,
    pub(super) interface: &'a str,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// The other side says so: the error's name and its words.
    #[error("{1}")]
    Refused(String, String),
    /// The connection is of no use.
    #[error("the bus failed: {0}")]
    Broken(String),
}

impl From<io::Error> for BusError {
    fn from(error: io::Error) -> Self {
        Self::Broken(crate::error::reason(&error))
    }
}

impl From<zbus::Error> for BusError {
    fn from(error: zbus::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A connection that may have more to send than it has sent.
pub(super) struct Bus {
    stream: UnixStream,
    unsent: Vec<u8>,
    /// Came while an answer was waited for.
    signals: VecDeque<Message>,
}

impl Bus {
    /// Says who we are, and waits until that is accepted: a bus that hangs is known before it was asked for anything.
    pub(super) fn new(stream: UnixStream) -> Result<Self, BusError> {
        stream.set_nonblocking(false)?;
        // SASL's EXTERNAL: the kernel tells the bus who we are; the name, in hexadecimal digits, is only compared.
        let uid = rustix::process::geteuid().as_raw().to_string();
        let name: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        let unsent = format!("\0AUTH EXTERNAL {name}\r\nBEGIN\r\n").into_bytes();
        let mut bus = Self { stream, unsent, signals: VecDeque::new() };
        bus.tell(BUS, "Hello", &())?;
        bus.send()?;
        let line = bus.line()?;
        if line.starts_with("OK ") {
            return Ok(bus);
        }
        Err(BusError::Broken(format!("it does not accept us: {}", crate::text::escape(line.trim()))))
    }

    /// A call whose answer is not waited for. It goes out with the next that is.
    pub(super) fn tell(
        &mut self,
        peer: Peer<'_>,
        method: &str,
        body: &(impl serde::Serialize + DynamicType),
    ) -> Result<(), BusError> {
        self.unsent.extend_from_slice(request(peer, method)?.with_flags(Flags::NoReplyExpected)?.build(body)?.data());
        Ok(())
    }

    /// A call, and its answer.
    pub(super) fn call(
        &mut self,
        peer: Peer<'_>,
        method: &str,
        body: &(impl serde::Serialize + DynamicType),
    ) -> Result<Message, BusError> {
        let request = request(peer, method)?.build(body)?;
        self.unsent.extend_from_slice(request.data());
        let serial = request.primary_header().serial_num();
        loop {
            let message = self.receive()?;
            let ours = message.header().reply_serial() == Some(serial);
            match message.message_type() {
                Type::MethodReturn if ours => return Ok(message),
                Type::Error if ours => {
                    let name = message.header().error_name().map(ToString::to_string).unwrap_or_default();
                    let words = message.body().deserialize::<String>().unwrap_or_else(|_| name.clone());
                    return Err(BusError::Refused(name, words));
                }
                Type::Signal => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// The next signal.
    pub(super) fn signal(&mut self) -> Result<Message, BusError> {
        loop {
            if let Some(message) = self.signals.pop_front() {
                return Ok(message);
            }
            let message = self.receive()?;
            if message.message_type() == Type::Signal {
                self.signals.push_back(message);
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let unsent = std::mem::take(&mut self.unsent);
        self.stream.write_all(&unsent)
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        self.send()?;
        let mut bytes = vec![0; FIXED];
        self.stream.read_exact(&mut bytes)?;
        let (endian, length) = frame(&bytes)?;
        bytes.resize(length, 0);
        self.stream.read_exact(&mut bytes[FIXED..])?;
        // SAFETY: this is what a connection does with what it reads; bytes that are no message are an error, or a panic that
        // ends the process that asks.
        let message = unsafe { Message::from_bytes(Data::new(bytes, Context::new_dbus(endian, 0))) };
        Ok(message?)
    }

    /// A line of the authentication. Byte by byte: what follows it is not of its kind.
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") && line.len() < 1024 {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            line.extend_from_slice(&byte);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

fn request<'a>(peer: Peer<'a>, method: &'a str) -> zbus::Result<zbus::message::Builder<'a>> {
    Message::method_call(peer.object, method)?.destination(peer.destination)?.interface(peer.interface)
}

/// The part of a message that tells its length: byte order, kind, flags, version, the length of the body, the serial, and
/// the length of the header's fields, which end at a multiple of 8.
pub(crate) const FIXED: usize = 16;

pub(crate) fn frame(fixed: &[u8]) -> Result<(Endian, usize), BusError> {
    let word = |at: usize| -> [u8; 4] { fixed[at..at + 4].try_into().unwrap_or_default() };
    let (endian, body, fields) = match fixed[0] {
        b'l' => (Endian::Little, u32::from_le_bytes(word(4)), u32::from_le_bytes(word(12))),
        b'B' => (Endian::Big, u32::from_be_bytes(word(4)), u32::from_be_bytes(word(12))),
        _ => return Err(BusError::Broken("what it sends is no message".to_owned())),
    };
    let length = FIXED as u64 + u64::from(fields).next_multiple_of(8) + u64::from(body);
    match usize::try_from(length) {
        Ok(length) if length <= LONGEST => Ok((endian, length)),
        _ => Err(BusError::Broken("a message is too long".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A conversation, and its other end, which has said this.
    fn talk(answers: &[&[u8]]) -> (Result<Bus, BusError>, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for answer in answers {
            theirs.write_all(answer).unwrap();
        }
        if answers.len() < 2 {
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
        }
        (Bus::new(ours), theirs)
    }

    #[test]
    fn everything_up_to_the_answer_that_counts_is_sent_at_once() {
        let (bus, mut theirs) = talk(&[b"OK 1234\r\n"]);
        let mut bus = bus.unwrap();
        bus.tell(BUS, "AddMatch", &"type='signal'").unwrap();
        let error = bus.call(BUS, "ListNames", &()).unwrap_err();
        assert!(matches!(&error, BusError::Broken(_)), "{error}");
        drop(bus);
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).unwrap();
        let text = String::from_utf8_lossy(&sent);
        let order = ["AUTH EXTERNAL ", "BEGIN\r\n", "Hello", "AddMatch", "ListNames"];
        let places: Vec<_> = order.iter().map(|word| text.find(word).unwrap()).collect();
        assert!(places.is_sorted(), "{text:?}");
    }

    #[test]
    fn an_answer_and_a_refusal_are_told_from_signals() {
        let signal = Message::signal("/a", "b.c", "D").unwrap().build(&7u32).unwrap();
        let request = Message::method_call("/a", "M").unwrap().build(&()).unwrap();
        let next = request.primary_header().serial_num().get();
        for refuse in [false, true] {
            // The serial of our own next call but one: Hello takes one.
            let (bus, mut theirs) = talk(&[b"OK 1234\r\n", signal.data()]);
            let mut bus = bus.unwrap();
            let call = std::thread::spawn(move || {
                let answer = bus.call(BUS, "GetId", &());
                (answer, bus.signal())
            });
            // Reads what was asked, to answer it.
            let mut bytes = Vec::new();
            let asked = loop {
                let mut chunk = [0; 4096];
                let length = theirs.read(&mut chunk).unwrap();
                bytes.extend_from_slice(&chunk[..length]);
                let begin = bytes.windows(7).position(|window| window == b"BEGIN\r\n");
                let Some(start) = begin.map(|at| at + 7) else { continue };
                let Some(hello) = bytes.get(start..start + FIXED) else { continue };
                let call = start + frame(hello).unwrap().1;
                let Some(fixed) = bytes.get(call..call + FIXED) else { continue };
                let (endian, length) = frame(fixed).unwrap();
                let Some(message) = bytes.get(call..call + length) else { continue };
                // SAFETY: zbus made it.
                let message = unsafe { Message::from_bytes(Data::new(message.to_vec(), Context::new_dbus(endian, 0))) };
                break message.unwrap();
            };
            assert!(asked.primary_header().serial_num().get() > next);
            let answer = if refuse {
                Message::error(&asked.header(), "x.Y").unwrap().build(&"no").unwrap()
            } else {
                Message::method_return(&asked.header()).unwrap().build(&"yes").unwrap()
            };
            theirs.write_all(answer.data()).unwrap();
            let (answer, came) = call.join().unwrap();
            match answer {
                Ok(answer) => assert!(!refuse && answer.body().deserialize::<String>().unwrap() == "yes"),
                Err(error) => {
                    assert!(
                        refuse && matches!(&error, BusError::Refused(name, words) if name == "x.Y" && words == "no")
                    );
                }
            }
            assert_eq!(came.unwrap().body().deserialize::<u32>().unwrap(), 7);
        }
    }

    #[test]
    fn a_bus_that_does_not_accept_us_or_talks_nonsense_is_an_error() {
        for nonsense in
            [&b"REJECTED EXTERNAL\r\n"[..], b"HTTP/1.1 400\r\n\r\n", b"OK 1\r\nxxxxxxxxxxxxxxxxxxxxxxxx", b""]
        {
            let (bus, _theirs) = talk(&[nonsense]);
            let answer = bus.and_then(|mut bus| bus.call(BUS, "GetId", &()));
            assert!(matches!(answer, Err(BusError::Broken(_))), "{nonsense:?}");
        }
    }

    proptest! {
        #[test]
        fn any_frame_is_read_without_panic(bytes: [u8; FIXED]) {
            if let Ok((_, length)) = frame(&bytes) {
                prop_assert!((FIXED..=LONGEST).contains(&length));
            }
        }

        /// The first bytes of every message tell where it ends.
        #[test]
        fn a_message_is_as_long_as_its_frame_says(body: (String, Vec<u64>), member in "[A-Z][A-Za-z]{0,40}") {
            let message = Message::signal("/a/b", "c.d", &*member).unwrap().build(&body).unwrap();
            let bytes: &[u8] = message.data();
            prop_assert_eq!(frame(&bytes[..FIXED]).unwrap().1, bytes.len());
        }

        /// Of another bus than the one that it is meant for: an error, never a wait for more than it may send.
        #[test]
        fn any_conversation_ends_when_the_other_end_hangs_up(accepted: bool, said: Vec<u8>) {
            let first = if accepted { &b"OK 1234\r\n"[..] } else { b"" };
            let (bus, theirs) = talk(&[&[first, &said].concat()]);
            // What is no frame is never taken for a message.
            if frame(&[&said[..], &[0; FIXED]].concat()[..FIXED]).is_err() {
                prop_assert!(bus.and_then(|mut bus| bus.call(BUS, "GetId", &())).is_err());
            }
            drop(theirs);
        }
    }
}
