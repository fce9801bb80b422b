//! The hosts of STS, by partition.

use super::Refusal;

const GLOBAL: &str = "sts.amazonaws.com";

/// A partition of AWS, with its own domain.
struct Partition {
    /// Prefix of its regions' names.
    regions: &'static str,
    domain: &'static str,
    dual_stack_domain: Option<&'static str>,
}

const CHINA: Partition = partition("cn-", "amazonaws.com.cn", Some("api.amazonwebservices.com.cn"));
const GOVERNMENT: Partition = partition("us-gov-", "amazonaws.com", Some("api.aws"));
const SOVEREIGN: Partition = partition("eusc-", "amazonaws.eu", Some("api.amazonwebservices.eu"));
const ISOLATED: Partition = partition("us-iso-", "c2s.ic.gov", None);
const ISOLATED_B: Partition = partition("us-isob-", "sc2s.sgov.gov", None);
const ISOLATED_E: Partition = partition("eu-isoe-", "cloud.adc-e.uk", None);
const ISOLATED_F: Partition = partition("us-isof-", "csp.hci.ic.gov", None);
/// Comes last, as a region of an unknown name is commercial.
const COMMERCIAL: Partition = partition("", "amazonaws.com", Some("api.aws"));

const PARTITIONS: [Partition; 8] =
    [CHINA, GOVERNMENT, SOVEREIGN, ISOLATED, ISOLATED_B, ISOLATED_E, ISOLATED_F, COMMERCIAL];

const fn partition(regions: &'static str, domain: &'static str, dual_stack_domain: Option<&'static str>) -> Partition {
    Partition { regions, domain, dual_stack_domain }
}

impl Partition {
    fn of(region: &str) -> &'static Self {
        PARTITIONS.iter().find(|partition| region.starts_with(partition.regions)).unwrap_or(&COMMERCIAL)
    }
}

/// Rule 6: the host is STS, in the partition of the verifier's own region.
pub(super) fn check(host: &str, own_region: &str) -> Result<(), Refusal> {
    let own = Partition::of(own_region);
    if host == GLOBAL {
        return if own.regions.is_empty() { Ok(()) } else { Err(Refusal::GlobalHost) };
    }
    let refusal = || Refusal::Host(host.to_owned());
    let region = region(host);
    let domain = host.splitn(3, '.').nth(2).ok_or_else(refusal)?;
    let theirs = Partition::of(region);
    let known = [Some(theirs.domain), theirs.dual_stack_domain];
    let service = host.split('.').next().unwrap_or_default();
    if matches!(service, "sts" | "sts-fips")
        && is_region(region)
        && known.contains(&Some(domain))
        && [Some(own.domain), own.dual_stack_domain].contains(&Some(domain))
    {
        Ok(())
    } else {
        Err(refusal())
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
