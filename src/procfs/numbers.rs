//! How process numbers are given away: proc_loadavg(5), proc_sys_kernel(5).

use std::io;
use std::str::FromStr;

use super::{Proc, read};

impl Proc {
    /// The process number that the kernel gave away last in our pid namespace: the end of `/proc/loadavg`.
    ///
    /// # Errors
    /// The file could not be read, or does not end as the kernel writes it.
    pub fn last_pid(&self) -> io::Result<i32> {
        last_word(&read(&self.root.join("loadavg"))?)
    }

    /// One more than the highest process number that it may give away: `/proc/sys/kernel/pid_max`.
    ///
    /// # Errors
    /// The file could not be read, or is no number.
    pub fn highest_pid(&self) -> io::Result<u32> {
        last_word(&read(&self.root.join("sys/kernel/pid_max"))?)
    }
}

fn last_word<N: FromStr>(file: &[u8]) -> io::Result<N> {
    let text = String::from_utf8_lossy(file);
    let number = text.split_ascii_whitespace().next_back().and_then(|word| word.parse().ok());
    number.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_the_last_word() {
        assert_eq!(last_word::<i32>(b"0.20 0.18 0.12 1/80 11206\n").unwrap(), 11206);
        for odd in ["", "\n", "0.20 0.18 0.12 1/80", "1 -", "1 99999999999"] {
            assert!(last_word::<i32>(odd.as_bytes()).is_err(), "{odd:?}");
        }
    }
}
