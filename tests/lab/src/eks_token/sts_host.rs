//! The hosts of STS, by partition.

use super::Refusal;

const GLOBAL: &str = "sts.amazonaws.com";

/// A partition of AWS: the prefix of its regions' names, and its domains.
type Partition = (&'static str, &'static [&'static str]);

/// The commercial partition comes last, as it takes regions of an unknown name.
const PARTITIONS: [Partition; 8] = [
    ("cn-", &["amazonaws.com.cn", "api.amazonwebservices.com.cn"]),
    ("us-gov-", &["amazonaws.com", "api.aws"]),
    ("eusc-", &["amazonaws.eu", "api.amazonwebservices.eu"]),
    ("us-iso-", &["c2s.ic.gov"]),
    ("us-isob-", &["sc2s.sgov.gov"]),
    ("eu-isoe-", &["cloud.adc-e.uk"]),
    ("us-isof-", &["csp.hci.ic.gov"]),
    ("", &["amazonaws.com", "api.aws"]),
];

fn partition(region: &str) -> Partition {
    let own = PARTITIONS.into_iter().find(|(prefix, _)| region.starts_with(prefix));
    own.expect("the last partition takes every region")
}

/// Rule 6: the host is STS, in the partition of the verifier's own region.
pub(super) fn check(host: &str, own_region: &str) -> Result<(), Refusal> {
    let (prefix, domains) = partition(own_region);
    if host == GLOBAL {
        return if prefix.is_empty() { Ok(()) } else { Err(Refusal::GlobalHost) };
    }
    let parts: Vec<_> = host.splitn(3, '.').collect();
    match parts[..] {
        ["sts" | "sts-fips", region, domain]
            if is_region(region) && partition(region).1.contains(&domain) && domains.contains(&domain) =>
        {
            Ok(())
        }
        _ => Err(Refusal::Host(host.to_owned())),
    }
}

/// The region that a host is in; the global one signs as `us-east-1`.
pub(super) fn region(host: &str) -> &str {
    if host == GLOBAL { "us-east-1" } else { host.split('.').nth(1).unwrap_or_default() }
}

fn is_region(name: &str) -> bool {
    let alphanumeric = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    alphanumeric(name.bytes().next())
        && alphanumeric(name.bytes().last())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
