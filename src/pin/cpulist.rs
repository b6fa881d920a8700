//! Sets of processors or memory nodes, in the kernel's list format: cpuset(7), "List format".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// No kernel is built for more processors (`NR_CPUS` on x86), or more memory nodes.
pub const MOST: u32 = 8192;

/// No list of every other processor, four digits and a comma each, is longer.
const LONGEST: usize = MOST as usize / 2 * 5;

/// Bits of one word.
const BITS: u32 = u64::BITS;

/// A set of processors or memory nodes, written like `0-3,8`. One bit each, the lowest number in the lowest bit of the first
/// word, and no word of zeros at the end: a list that somebody else wrote costs no more than a machine's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CpuList(Vec<u64>);

/// Why a text is no list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAList {
    /// Nothing between two commas.
    #[error("a number is missing")]
    Missing,
    /// Neither a number nor a range.
    #[error("{} is no number and no range such as 0-3", crate::text::escape(.0))]
    Word(String),
    /// A range that ends before it begins.
    #[error("the range {0}-{1} ends before it begins")]
    Backwards(u32, u32),
    /// Higher than any kernel has.
    #[error("{0} is higher than any machine has")]
    TooHigh(u32),
}

impl CpuList {
    /// Reads one word of a list: `3` or `0-3`.
    ///
    /// # Errors
    /// See [`NotAList`].
    pub fn parse_word(word: &str) -> Result<Self, NotAList> {
        let mut list = Self::default();
        list.add_word(word)?;
        Ok(list)
    }

    fn add_word(&mut self, word: &str) -> Result<(), NotAList> {
        let digits = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let number = if plain { text.parse::<u32>().ok() } else { None };
            number.ok_or_else(|| NotAList::Word(word.to_owned()))
        };
        if word.is_empty() {
            return Err(NotAList::Missing);
        }
        let (first, last) = match word.split_once('-') {
            Some((first, last)) => (digits(first)?, digits(last)?),
            None => (digits(word)?, digits(word)?),
        };
        if last < first {
            return Err(NotAList::Backwards(first, last));
        }
        if last >= MOST {
            return Err(NotAList::TooHigh(last));
        }
        // By words: a text may name the whole range thousands of times.
        let (low, high) = ((first / BITS) as usize, (last / BITS) as usize);
        self.0.resize(self.0.len().max(high + 1), 0);
        for index in low..=high {
            let from = if index == low { u64::MAX << (first % BITS) } else { u64::MAX };
            let to = if index == high { u64::MAX >> (BITS - 1 - last % BITS) } else { u64::MAX };
            self.0[index] |= from & to;
        }
        Ok(())
    }

    fn of_words(mut words: Vec<u64>) -> Self {
        let length = words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
        words.truncate(length);
        Self(words)
    }

    fn word(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or(0)
    }

    fn combined(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        let length = self.0.len().max(other.0.len());
        Self::of_words((0..length).map(|index| with(self.word(index), other.word(index))).collect())
    }

    /// Whether it has this one.
    pub fn contains(&self, number: u32) -> bool {
        self.word((number / BITS) as usize) >> (number % BITS) & 1 == 1
    }

    /// Adds one, unless no machine has so many.
    pub fn insert(&mut self, number: u32) {
        let index = (number / BITS) as usize;
        if number < MOST {
            self.0.resize(self.0.len().max(index + 1), 0);
            self.0[index] |= 1 << (number % BITS);
        }
    }

    /// All of them, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..MOST.min(self.0.len() as u32 * BITS)).filter(|&number| self.contains(number))
    }

    /// The lowest.
    pub fn first(&self) -> Option<u32> {
        self.iter().next()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `other` has all of these.
    pub fn is_within(&self, other: &Self) -> bool {
        self.without(other).is_empty()
    }

    /// Whether both have one in common.
    pub fn meets(&self, other: &Self) -> bool {
        !self.shared_with(other).is_empty()
    }

    /// Those of either.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a | b)
    }

    /// Those that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a & !b)
    }

    /// Those of both.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a & b)
    }

    /// The set as bytes, the lowest number in the lowest bit of the first: what systemd takes for
    /// `AllowedCPUs`.
    pub fn mask_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The set in words, the lowest number in the lowest bit of the first: what sched_setaffinity(2) and set_mempolicy(2)
    /// take where a `long` has 64 bits.
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// The set that such words stand for.
    pub fn from_words(words: &[u64]) -> Self {
        Self::of_words(words.iter().copied().take((MOST / BITS) as usize).collect())
    }
}

impl FromIterator<u32> for CpuList {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut list = Self::default();
        numbers.into_iter().for_each(|number| list.insert(number));
        list
    }
}

/// Reads what the kernel writes; an empty text is an empty set.
impl FromStr for CpuList {
    type Err = NotAList;

    fn from_str(text: &str) -> Result<Self, NotAList> {
        let text = text.trim();
        let mut list = Self::default();
        if !text.is_empty() {
            text.split(',').try_for_each(|word| list.add_word(word))?;
        }
        Ok(list)
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for number in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        let words = ranges.iter().map(|&(first, last)| match last - first {
            0 => first.to_string(),
            _ => format!("{first}-{last}"),
        });
        f.pad(&words.collect::<Vec<_>>().join(","))
    }
}

impl Serialize for CpuList {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuList {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text.len() > LONGEST {
            return Err(serde::de::Error::custom("the list is longer than any machine's"));
        }
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    #[test]
    fn a_list_is_read_and_written_as_the_kernel_does() {
        for (text, written) in
            [("0-3,8", "0-3,8"), ("8,0,1,2,3\n", "0-3,8"), ("", ""), ("\n", ""), ("5", "5"), ("0-1,1-2", "0-2")]
        {
            assert_eq!(list(text).to_string(), written);
        }
    }

    #[test]
    fn what_is_no_list_is_refused_by_its_word() {
        let why = |text: &str| text.parse::<CpuList>().unwrap_err().to_string();
        assert_eq!(why("0-3,x"), "x is no number and no range such as 0-3");
        assert_eq!(why("0,,1"), "a number is missing");
        assert_eq!(why("3-1"), "the range 3-1 ends before it begins");
        assert_eq!(why("0-99999"), "99999 is higher than any machine has");
        for text in ["-1", "1-", "+1", "0x1", "1 2", "1-2-3", "4294967296"] {
            assert!(text.parse::<CpuList>().is_err(), "{text}");
        }
    }

    #[test]
    fn masks_begin_with_the_lowest() {
        assert_eq!(list("0,9").mask_bytes(), [1, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(list("1,64").words(), [2, 1]);
        assert_eq!(CpuList::from_words(&[2, 1, 0]), list("1,64"));
        assert!(list("").mask_bytes().is_empty());
    }

    proptest! {
        #[test]
        fn a_set_survives_its_own_spelling(numbers in proptest::collection::btree_set(0..MOST, 0..40)) {
            let set: CpuList = numbers.iter().copied().collect();
            prop_assert_eq!(&set.to_string().parse::<CpuList>().unwrap(), &set);
            let bits = |bytes: Vec<u8>| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
            prop_assert_eq!(bits(set.mask_bytes()) as usize, set.len());
        }

        #[test]
        fn a_range_has_every_number_in_it_and_no_other(first in 0..MOST, length in 0..300_u32, other in 0..MOST) {
            let last = (first + length).min(MOST - 1);
            let range = format!("{other},{first}-{last}").parse::<CpuList>().unwrap();
            let numbers: CpuList = (first..=last).chain([other]).collect();
            prop_assert_eq!(range, numbers);
        }

        #[test]
        fn any_text_is_read_without_panic(text in "[0-9,-]{0,20}|\\PC{0,20}") {
            if let Ok(set) = text.parse::<CpuList>() {
                prop_assert_eq!(set.to_string().parse::<CpuList>().unwrap(), set);
            }
        }
    }
}
