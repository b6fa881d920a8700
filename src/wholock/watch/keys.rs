//! What was typed, from the bytes that a terminal sends for it. Pure.

/// A key that does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `q`, Esc; ^C too where the terminal makes no signal of it.
    Quit,
    /// Up, `k`.
    Up,
    /// Down, `j`.
    Down,
    /// PgUp.
    PageUp,
    /// PgDn.
    PageDown,
    /// Enter.
    Enter,
}

const ESC: u8 = 0x1b;

/// No key sends more. What goes on for longer is none.
const LONGEST: usize = 16;

/// Takes bytes as they come: a key may be several, and come in pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a key: ESC, and what followed so far.
    begun: Vec<u8>,
}

impl Decoder {
    /// The keys that some more bytes complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Key> {
        bytes.iter().filter_map(|&byte| self.byte(byte)).collect()
    }

    /// Something was begun: if nothing follows soon, it was the Esc key.
    pub fn is_open(&self) -> bool {
        !self.begun.is_empty()
    }

    /// Nothing followed.
    pub fn close(&mut self) -> Option<Key> {
        let alone = self.begun == [ESC];
        self.begun.clear();
        alone.then_some(Key::Quit)
    }

    fn byte(&mut self, byte: u8) -> Option<Key> {
        if self.begun.is_empty() {
            if byte == ESC {
                self.begun.push(byte);
            }
            return plain(byte);
        }
        self.begun.push(byte);
        let ended = match self.begun[..] {
            // Esc pressed twice.
            [ESC, ESC] => return self.close_as(Key::Quit),
            // More follows: an intermediate byte, or parameters and then one final byte.
            [ESC, b'[' | b'O'] => false,
            [ESC, b'[' | b'O', .., last] => (0x40..=0x7e).contains(&last),
            // Alt and a key.
            _ => true,
        };
        if !ended && self.begun.len() < LONGEST {
            return None;
        }
        let key = match &self.begun[1..] {
            b"[A" | b"OA" => Some(Key::Up),
            b"[B" | b"OB" => Some(Key::Down),
            b"[5~" => Some(Key::PageUp),
            b"[6~" => Some(Key::PageDown),
            b"OM" => Some(Key::Enter),
            _ => None,
        };
        self.begun.clear();
        key
    }

    fn close_as(&mut self, key: Key) -> Option<Key> {
        self.begun.clear();
        Some(key)
    }
}

fn plain(byte: u8) -> Option<Key> {
    match byte {
        b'q' | 0x03 => Some(Key::Quit),
        b'k' => Some(Key::Up),
        b'j' => Some(Key::Down),
        b'\r' | b'\n' => Some(Key::Enter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_read_however_they_come() {
        let typed = b"kj\x1b[A\x1bOB\r\x1b[5~\x1b[6~x\x1b[1;5Cq";
        let keys = [Key::Up, Key::Down, Key::Up, Key::Down, Key::Enter, Key::PageUp, Key::PageDown, Key::Quit];
        assert_eq!(Decoder::default().feed(typed), keys);
        let mut decoder = Decoder::default();
        let one_by_one: Vec<Key> = typed.iter().flat_map(|&byte| decoder.feed(&[byte])).collect();
        assert_eq!(one_by_one, keys);
    }

    #[test]
    fn esc_is_a_key_when_nothing_follows() {
        let mut decoder = Decoder::default();
        assert_eq!((decoder.feed(b"\x1b"), decoder.is_open()), (vec![], true));
        assert_eq!((decoder.close(), decoder.is_open()), (Some(Key::Quit), false));
        assert_eq!(decoder.feed(b"\x1b\x1b"), [Key::Quit]);
        // The beginning of another key is not Esc, and Alt-q is not q.
        assert_eq!((decoder.feed(b"\x1b["), decoder.close()), (vec![], None));
        assert_eq!(decoder.feed(b"\x1bqj"), [Key::Down]);
    }

    proptest! {
        #[test]
        fn whatever_is_typed_the_next_key_is_understood(mut bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            decoder.close();
            prop_assert_eq!(decoder.feed(b"j"), [Key::Down]);
            bytes.extend([b'x'; LONGEST]);
            decoder.feed(&bytes);
            prop_assert!(!decoder.is_open());
        }
    }
}
