//! Which address a port may keep: one that lies in a subnet of its network (contract.md 1.2, 6.7; bug 34). Pure.

use std::net::IpAddr;

/// `wanted` as the cloud writes it, if one of these ranges holds it. What is no address or no range holds nothing.
pub(super) fn kept(wanted: &str, subnets: &[String]) -> Option<String> {
    let address: IpAddr = wanted.trim().parse().ok()?;
    subnets.iter().any(|subnet| holds(subnet, address)).then(|| address.to_string())
}

fn holds(subnet: &str, address: IpAddr) -> bool {
    let Some((network, length)) = subnet.trim().split_once('/') else { return false };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let same = |bits: u32, one: u128, other: u128| {
        length <= bits && (length == 0 || (one ^ other) >> (bits - length) == 0)
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            same(32, u128::from(network.to_bits()), u128::from(address.to_bits()))
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => same(128, network.to_bits(), address.to_bits()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_only_inside_a_subnet_of_its_kind() {
        let subnets: Vec<String> = ["fd00:1::/64", "10.0.0.0/24", "172.16.4.0/22", "nonsense", "10.9.0.0/99"]
            .map(str::to_owned)
            .to_vec();
        for (wanted, kept_as) in [
            ("10.0.0.7", Some("10.0.0.7")),
            (" 10.0.0.255 ", Some("10.0.0.255")),
            ("10.0.1.7", None),
            ("172.16.7.255", Some("172.16.7.255")),
            ("172.16.8.0", None),
            ("fd00:1:0:0::0007", Some("fd00:1::7")),
            ("fd00:2::7", None),
            ("10.9.0.1", None),
            ("::ffff:10.0.0.7", None),
            ("10.0.0", None),
            ("", None),
        ] {
            assert_eq!(kept(wanted, &subnets).as_deref(), kept_as, "{wanted:?}");
        }
        assert_eq!(kept("1.2.3.4", &["0.0.0.0/0".to_owned()]).as_deref(), Some("1.2.3.4"));
        assert_eq!(kept("10.0.0.7", &[]), None);
    }
}
