//! Durations as Go writes them, and the agent reads them: `1m30s`, `1.5h`, `0`. Grammar: <https://pkg.go.dev/time#ParseDuration>.

use std::time::Duration;

/// The longest that Go has: some 292 years.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Reads a duration that is not negative. `None` for what Go refuses.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let parsed = is_safe(unsigned).then(|| unsigned.parse::<kube::core::Duration>());
    parsed?.ok().map(Duration::from).filter(|duration| duration.as_nanos() <= MAX_NANOS)
}

/// kube accepts a text without a number, several signs and a `0` without a unit at the end, and panics where numbers are
/// negative or overflow.
fn is_safe(text: &str) -> bool {
    const MAX_BYTES: usize = 100;
    const MAX_DIGITS: usize = 14;
    let whole = |number: &str| number.split('.').next().unwrap_or_default().len();
    let ends_in_unit = text.ends_with(char::is_alphabetic);
    let mut numbers = text.split(char::is_alphabetic);
    text.len() <= MAX_BYTES
        && (ends_in_unit || text == "0")
        && numbers.all(|number| whole(number) <= MAX_DIGITS && !number.contains(['+', '-']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let cases = [
            ("0", Some(0)),
            ("+0", Some(0)),
            ("0s", Some(0)),
            ("15ns", Some(15)),
            ("10s", Some(10_000_000_000)),
            ("+10s", Some(10_000_000_000)),
            ("010s", Some(10_000_000_000)),
            ("10.s", Some(10_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("30s1m", Some(90_000_000_000)),
            ("1.5h", Some(5_400_000_000_000)),
            (".5s", Some(500_000_000)),
            ("0.100000000000000000000h", Some(360_000_000_000)),
            ("0.3333333333333333333h", Some(1_200_000_000_000)),
            ("100ms1µs", Some(100_001_000)),
            ("1μs", Some(1_000)),
            ("39h9m14.425s", Some(140_954_425_000_000)),
            ("2562047h47m16s", Some(9_223_372_036_000_000_000)),
            ("", None),
            ("+", None),
            ("-", None),
            (".", None),
            ("10", None),
            ("s", None),
            (".s", None),
            ("+.s", None),
            ("10 s", None),
            (" 10s", None),
            ("10s ", None),
            ("10s\n", None),
            ("1..5s", None),
            ("1.5.5s", None),
            ("-1s", None),
            ("-0", None),
            ("+-5s", None),
            ("++5s", None),
            ("-+5s", None),
            ("5s+3s", None),
            ("5s-3s", None),
            ("10s5", None),
            ("10s0", None),
            ("1d", None),
            ("1S", None),
            ("1e5s", None),
            ("infs", None),
            ("inf", None),
            ("NaNs", None),
            ("٣s", None),
            ("3000000h", None),
            ("2562047h47m17s", None),
            ("9223372036854775808ns", None),
            ("99999999999999999999999999999h", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).map(|duration| duration.as_nanos()), expected, "{text:?}");
        }
        for text in ["9".repeat(100_000) + "h", "9".repeat(14) + "h", "99999999999999h".repeat(6), "1h".repeat(100_000)]
        {
            assert_eq!(parse(&text), None);
        }
    }
}
