//! Text for people: escaping what other users wrote, durations, sizes, counts.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Makes hostile text safe for a terminal: every control or invisible formatting character becomes a visible
/// escape, so that another user's command line can neither move the cursor nor hide a part of itself.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\\' || !(c.is_control() || is_formatting(c)) {
            safe.push(c);
        } else {
            let _ = write!(safe, "{}", c.escape_default());
        }
    }
    safe
}

/// A path, escaped for a terminal: in a ticket it is another user's text.
pub fn path(path: &Path) -> String {
    escape(&path.display().to_string())
}

/// Characters that change how others are shown: bidirectional controls, zero-width marks, line separators.
fn is_formatting(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// A command line as one would type it, escaped for a terminal.
pub fn command_line(argv: &[String]) -> String {
    let words: Vec<String> = argv.iter().map(|word| quote(word)).collect();
    escape(&words.join(" "))
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Cuts a text to `columns` terminal cells, with `…` as the last one where something was cut.
pub fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut used = 0;
    for c in text.chars() {
        // A variation selector has no width, but the character before it may be wider with it.
        used += c.width().unwrap_or(0) + usize::from(matches!(c, '\u{fe00}'..='\u{fe0f}'));
        if used + 1 > columns {
            break;
        }
        short.push(c);
    }
    if columns > 0 {
        short.push('…');
    }
    short
}

/// A duration to two units, as precise as a person wants it: `0.4s`, `12s`, `2h 3m`.
pub fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        return format!("{:.1}s", duration.as_secs_f64());
    }
    let whole = Duration::from_secs(duration.as_secs());
    let spelled = humantime::format_duration(whole).to_string();
    spelled.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A duration that was measured, as precise as time(1)'s while that says anything: `0.043s`, `12.34s`, `1m 28.1s`, `2h 3m 4s`.
pub fn measured(duration: Duration) -> String {
    // Rounded first, so that 59.996 s is not 60.00 s.
    let (unit, digits) = match duration.as_millis() {
        0..9_999 => (1, 3),
        9_999..59_995 => (10, 2),
        59_995..3_599_950 => (100, 1),
        _ => (1000, 0),
    };
    let rounded = (duration.as_millis() + unit / 2) / unit * unit;
    let (minutes, millis) = (rounded / 60_000, rounded % 60_000);
    let seconds = format!("{:.digits$}s", millis as f64 / 1000.0);
    match minutes {
        0 => seconds,
        1..60 => format!("{minutes}m {seconds}"),
        _ => format!("{}h {}m {seconds}", minutes / 60, minutes % 60),
    }
}

/// A duration that somebody chose, to the last digit: `10s`, `1.5s`, `250ms`.
pub fn exact_duration(duration: Duration) -> String {
    if duration.as_secs() > 0 && duration.subsec_nanos() > 0 && duration.as_secs() < 60 {
        return format!("{}s", duration.as_secs_f64());
    }
    humantime::format_duration(duration).to_string()
}

/// A size in the largest binary unit that keeps it above 1: `512B`, `1.4G`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "K", "M", "G", "T", "P"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// A size that somebody chose, to the last byte: `512M`, `1536K`, `1048577B`.
pub fn exact_bytes(bytes: u64) -> String {
    let unit = SIZES.into_iter().rev().find(|&(_, unit)| bytes > 0 && bytes.is_multiple_of(unit));
    unit.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{}", bytes / unit, name.to_ascii_uppercase()))
}

/// Units of a size, each 1024 of the one before, in lower case.
const SIZES: [(char, u64); 4] = [('k', 1 << 10), ('m', 1 << 20), ('g', 1 << 30), ('t', 1 << 40)];

/// Reads a size as systemd, docker and dd take it: bytes, or with decimals and a binary unit (`512M`, `1.5GiB`, `64kb`). `None`
/// also for what no kernel can count.
pub fn parse_size(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, name) = text.split_at(unit_at);
    let name = name.to_ascii_lowercase();
    let bytes = match ["ib", "b", "i"].into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name) {
        "" if name.starts_with('i') => return None,
        "" => 1,
        letter => SIZES.into_iter().find(|(unit, _)| letter.chars().eq([*unit]))?.1,
    };
    let (whole, decimals) = number.trim_end().split_once('.').map_or((number.trim_end(), None), |(a, b)| (a, Some(b)));
    let digits = |text: &str| (1..=15).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    // There is no part of a byte.
    if !digits(whole) || decimals.is_some_and(|decimals| bytes == 1 || !digits(decimals)) {
        return None;
    }
    let decimals = decimals.unwrap_or("0");
    let part = decimals.parse::<u128>().ok()? * u128::from(bytes) / 10_u128.pow(u32::try_from(decimals.len()).ok()?);
    let size = whole.parse::<u128>().ok()? * u128::from(bytes) + part;
    i64::try_from(size).ok().map(i64::cast_unsigned)
}

/// `a, b, c and 3 more`: the first `most` of them, each as `one` has it.
pub fn listed<T>(all: &[T], most: usize, one: impl Fn(&T) -> String) -> String {
    let shown: Vec<String> = all.iter().take(most).map(one).collect();
    match all.len().saturating_sub(most) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `1 job`, `2 jobs`; `1 process`, `2 processes`.
pub fn count(n: usize, thing: &str) -> String {
    match (n, thing.ends_with('s')) {
        (1, _) => format!("1 {thing}"),
        (_, true) => format!("{n} {thing}es"),
        (_, false) => format!("{n} {thing}s"),
    }
}

/// Reads a duration as the command line and the configuration take it: seconds with decimals, or humantime's
/// units (`1h 30m`, `250ms`).
///
/// # Errors
/// A sentence fragment that says what a duration looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let parsed = if plain {
        text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    } else if let Some(decimal) = decimal_with_unit(text) {
        Some(decimal)
    } else {
        humantime::parse_duration(text).ok()
    };
    let longest = Duration::from_secs(100 * 366 * 24 * 3600);
    parsed
        .map(|duration| duration.min(longest))
        .ok_or_else(|| "a duration is seconds (90, 0.5) or has units (1h 30m, 250ms)".to_owned())
}

/// `1.5s`, `0.5m`, `2.5h`: humantime takes whole numbers only.
fn decimal_with_unit(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let number: f64 = number.trim_end().parse().ok()?;
    if number.is_finite() && number >= 0.0 { Duration::try_from_secs_f64(number * seconds).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_like_a_clock() {
        let cases =
            [(0.04, "0.0s"), (0.44, "0.4s"), (9.96, "10.0s"), (59.0, "59s"), (7384.0, "2h 3m"), (93_784.0, "1day 2h")];
        for (seconds, text) in cases {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn measured_durations_keep_what_was_measured() {
        let cases = [
            (0.0432, "0.043s"),
            (9.9984, "9.998s"),
            (9.9996, "10.00s"),
            (12.344, "12.34s"),
            (59.9949, "59.99s"),
            (59.9999, "1m 0.0s"),
            (88.14, "1m 28.1s"),
            (3599.99, "1h 0m 0s"),
            (7384.6, "2h 3m 5s"),
            (93_784.0, "26h 3m 4s"),
        ];
        for (seconds, text) in cases {
            assert_eq!(measured(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn both_spellings_of_a_duration_are_read() {
        let millis = |ms| Ok(Duration::from_millis(ms));
        assert_eq!(parse_duration("90"), millis(90_000));
        assert_eq!(parse_duration("0.5"), millis(500));
        assert_eq!(parse_duration("1h 30m"), millis(5_400_000));
        assert_eq!(parse_duration("250ms"), millis(250));
        assert_eq!(parse_duration("1.5s"), millis(1500));
        assert_eq!(parse_duration("0"), millis(0));
        // What nobody waits for fits every clock.
        assert!(parse_duration("9999999999999999999").unwrap() < Duration::from_secs(1 << 32));
        for bad in ["", "-1", "abc", "1e99999s", "5 parsecs", "1..2", "NaN", "infs"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_use_the_largest_unit_that_fits() {
        let cases = [(0, "0B"), (999, "999B"), (1024, "1.0K"), (1_503_238_553, "1.4G"), (123 << 20, "123M")];
        for (size, text) in cases {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases: [(&str, u64); 12] = [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("1048576", 1 << 20),
            ("64kb", 64 << 10),
            ("64KiB", 64 << 10),
            ("7B", 7),
            ("1T", 1 << 40),
            ("2 G", 2 << 30),
            ("0.25Gi", 1 << 28),
            ("1.3K", 1331),
            ("0", 0),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for bad in
            ["", "M", ".5G", "1.G", "-1", "+1", "1.5", "1.5B", "1iB", "1MM", "1P", "1i", "9999999999T", "1 2M", "٣M"]
        {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
        for (bytes, text) in
            [(0, "0B"), (512 << 20, "512M"), (3 << 19, "1536K"), (1_048_577, "1048577B"), (2 << 40, "2T")]
        {
            assert_eq!(exact_bytes(bytes), text);
        }
    }

    #[test]
    fn hostile_text_cannot_reach_the_terminal() {
        assert_eq!(escape("a\x1b[2Jb\n\r\u{202e}é漢"), r"a\u{1b}[2Jb\n\r\u{202e}é漢");
        assert_eq!(command_line(&["rm".into(), "a b".into(), "it's".into(), String::new()]), r"rm 'a b' 'it'\''s' ''");
    }

    #[test]
    fn a_cut_text_fits() {
        assert_eq!(cut("漢字漢字", 5), "漢字…");
        assert_eq!(cut("make", 4), "make");
        assert_eq!(cut("make", 0), "");
        // Shown as a picture, it is wider than without the selector.
        for wide in ["\u{2764}\u{fe0f}", "\u{2018}\u{fe01}"] {
            for columns in 0..20 {
                let short = cut(&wide.repeat(30), columns);
                assert!(short.width() <= columns, "{columns}: {short}");
            }
        }
    }

    proptest! {
        #[test]
        fn escaped_text_has_no_control_character(text: String) {
            let safe = escape(&text);
            prop_assert!(!safe.chars().any(|c| c.is_control() || is_formatting(c)));
        }

        /// Made of what a terminal acts upon, which is rare in any text.
        #[test]
        fn escaped_text_stays_escaped_and_keeps_what_is_harmless(
            text in "([\\x00-\\x1f\\x7f-\\x9f\u{ad}\u{200b}-\u{200f}\u{2028}-\u{202e}\u{feff}]|[a-z\\\\é漢 ]){0,40}",
        ) {
            let safe = escape(&text);
            prop_assert!(!safe.chars().any(|c| c.is_control() || is_formatting(c)), "{:?}", safe);
            prop_assert_eq!(&escape(&safe), &safe);
            let harmless: String = text.chars().filter(|&c| !c.is_control() && !is_formatting(c)).collect();
            if harmless == text {
                prop_assert_eq!(safe, text);
            }
        }

        #[test]
        fn a_command_line_is_one_harmless_line(argv in proptest::collection::vec(any::<String>(), 0..6), columns in 0usize..80) {
            let line = command_line(&argv);
            prop_assert!(!line.chars().any(|c| c.is_control() || is_formatting(c)));
            prop_assert!(!cut(&line, columns).chars().any(|c| c.is_control() || is_formatting(c)));
        }

        #[test]
        fn a_duration_that_is_read_fits_every_clock(number in "[0-9]{1,25}([.][0-9]{1,5})?", unit in "(|ms|s|m|h)") {
            if let Ok(duration) = parse_duration(&format!("{number}{unit}")) {
                prop_assert!(std::time::Instant::now().checked_add(duration).is_some());
            }
        }

        #[test]
        fn a_size_survives_its_own_spelling(bytes in 0..1_u64 << 49, unit in prop::sample::select(&["", "K", "M"][..])) {
            prop_assert_eq!(parse_size(&exact_bytes(bytes)), Some(bytes));
            prop_assert_eq!(parse_size(&format!("{}{unit}", bytes >> 20)).is_some(), true);
        }

        #[test]
        fn any_size_is_read_without_panic(text: String, like in "[0-9]{0,20}[.]?[0-9]{0,20} ?[kKmMgGtTx]?(iB|B|b)?") {
            let _ = parse_size(&text);
            prop_assert!(parse_size(&like).is_none_or(|bytes| bytes <= i64::MAX as u64));
        }

        #[test]
        fn parsing_any_duration_never_panics(text: String) {
            let _ = parse_duration(&text);
        }

        #[test]
        fn a_cut_text_never_exceeds_its_columns(text: String, columns in 0usize..40) {
            prop_assert!(cut(&escape(&text), columns).width() <= columns);
        }
    }
}
