//! Amounts of CPU and memory as Kubernetes writes them: `500m`, `2`, `1.5Gi`, `1e9`.
//!
//! Grammar: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>. Amounts below zero are
//! refused, since no container can have one.

/// An amount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// Kubernetes keeps nothing finer than a billionth, and rounds up to it.
    nanos: u128,
    /// How its author wrote it.
    pub text: String,
}

impl Quantity {
    /// Reads an amount. `None` for what is not written as Kubernetes writes amounts, or is more than any machine has.
    pub fn parse(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let decimals = i64::try_from(fraction.len()).ok()?;

        let (factor, exponent) = multiplier(suffix)?;
        let amount = digits.checked_mul(factor)?;
        // As a power of ten, in billionths.
        let power = i64::from(exponent) - decimals + 9;
        let scale = u32::try_from(power.unsigned_abs()).ok().and_then(|power| 10_u128.checked_pow(power));
        let nanos = match scale {
            _ if amount == 0 => 0,
            Some(scale) if power >= 0 => amount.checked_mul(scale)?,
            Some(scale) => amount.div_ceil(scale),
            None if power >= 0 => return None,
            None => 1,
        };
        Some(Self { nanos, text: text.to_owned() })
    }

    /// Whether it is more than the limit, however both are written.
    pub fn exceeds(&self, limit: &Self) -> bool {
        self.nanos > limit.nanos
    }

    /// Nothing at all.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
}

/// A suffix as a factor and a power of ten.
fn multiplier(suffix: &str) -> Option<(u128, i32)> {
    const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let place = |suffixes: &[&str]| suffixes.iter().position(|known| *known == suffix);
    match (place(&DECIMAL), place(&BINARY)) {
        (Some(place), _) => Some((1, 3 * i32::try_from(place).ok()? - 9)),
        (None, Some(place)) => Some((1 << (10 * place), 0)),
        (None, None) => Some((1, suffix.strip_prefix(['e', 'E'])?.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NANOS: u128 = 1_000_000_000;

    fn nanos(text: &str) -> Option<u128> {
        Quantity::parse(text).map(|quantity| quantity.nanos)
    }

    #[test]
    fn every_form_that_kubernetes_knows_is_read_exactly() {
        let cases: [(&str, u128); 26] = [
            ("0", 0),
            ("1", NANOS),
            ("+1", NANOS),
            ("001", NANOS),
            ("1.", NANOS),
            (".5", NANOS / 2),
            ("0.5", NANOS / 2),
            ("500m", NANOS / 2),
            ("500000u", NANOS / 2),
            ("500000000n", NANOS / 2),
            ("1.5n", 2),
            ("0.1n", 1),
            ("1e-400", 1),
            ("0e400", 0),
            ("2k", 2_000 * NANOS),
            ("2M", 2_000_000 * NANOS),
            ("2G", 2_000_000_000 * NANOS),
            ("2T", 2_000_000_000_000 * NANOS),
            ("2P", 2_000_000_000_000_000 * NANOS),
            ("2E", 2_000_000_000_000_000_000 * NANOS),
            ("2e3", 2_000 * NANOS),
            ("2E3", 2_000 * NANOS),
            ("2e-3", NANOS / 500),
            ("1.5Ki", 1_536 * NANOS),
            ("3Gi", (3 << 30) * NANOS),
            ("4Ei", (4 << 60) * NANOS),
        ];
        for (text, expected) in cases {
            assert_eq!(nanos(text), Some(expected), "{text}");
        }
        for (suffix, power) in [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)] {
            assert_eq!(nanos(&format!("1{suffix}")), Some((1 << power) * NANOS), "{suffix}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            ".",
            "+",
            "-1",
            "1 Gi",
            " 1",
            "1gi",
            "1GI",
            "1K",
            "1KiB",
            "1Gb",
            "1.2.3",
            "1e",
            "1e1.5",
            "1mm",
            "Gi",
            "٣",
            "1e40",
            "999999999999999999999999999999999999999999",
            "4000000000000Ei",
        ] {
            assert_eq!(nanos(text), None, "{text:?}");
        }
    }

    #[test]
    fn amounts_are_compared_by_value() {
        let exceeds = |more, less| Quantity::parse(more).unwrap().exceeds(&Quantity::parse(less).unwrap());
        for (more, less) in [("1001m", "1"), ("1Gi", "1G"), ("1025Mi", "1Gi"), ("1.0000000001", "1"), ("1e1", "9")] {
            assert!(exceeds(more, less) && !exceeds(less, more), "{more} is more than {less}");
        }
        for (one, same) in [("1000m", "1"), ("1024Mi", "1Gi"), ("1e3", "1k")] {
            assert!(!exceeds(one, same) && !exceeds(same, one), "{one} is {same}");
        }
    }

    #[test]
    fn zero_is_zero_however_written_and_every_amount_keeps_its_text() {
        for (text, zero) in [("512m", false), ("1.5Ki", false), ("0.0", true), ("0Gi", true), ("1n", false)] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!(quantity.is_zero(), zero, "{text}");
            assert_eq!(quantity.text, text);
        }
    }
}
