//! A link between ranks as numbers: how long an all-reduce takes, and how large a bucket of gradients should be.
//!
//! t = α + 2 (n − 1)/n · bytes / B: the latency, and the time of a ring at the bus bandwidth B that large messages reach (as nccl-tests
//! counts it: 460 to 480 GB/s among 8 H100s behind NVSwitch, 430 over 2 nodes of 8 NICs of 400 Gb/s each, 320 over more, 45 with one NIC).

use std::str::FromStr;
use thiserror::Error;

/// What an all-reduce costs on a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// α: seconds of an all-reduce of nothing.
    pub latency_s: f64,
    /// B: bus bandwidth of large messages.
    pub bytes_per_s: f64,
}

impl Link {
    /// Ranks of one node, 8 H100s behind NVSwitch.
    pub const IN_NODE: Link = Link { latency_s: 20e-6, bytes_per_s: 460e9 };
    /// Ranks of several nodes, 8 NICs of 400 Gb/s each.
    pub const ACROSS_NODES: Link = Link { latency_s: 50e-6, bytes_per_s: 320e9 };

    /// Seconds of an all-reduce of so many bytes among `world` ranks; 0 for one rank, which reduces nothing.
    pub fn all_reduce_s(&self, world: usize, bytes: usize) -> f64 {
        if world < 2 { 0.0 } else { self.latency_s + passes(world) * bytes as f64 / self.bytes_per_s }
    }
}

/// How often a byte passes the bus: once to add it up and once to hand it out, but for the rank's own share.
fn passes(world: usize) -> f64 {
    2.0 * (world - 1) as f64 / world as f64
}

/// Least and most bytes of a bucket: below, launches cost more than they hide; above, there is one bucket for most networks.
const LEAST: usize = 1 << 20;
const MOST: usize = 256 << 20;
/// A bucket is so many times what the link moves in the latency: a full one spends 1 / (1 + 3.5) = 22 % of its time on latency.
const LATENCIES: f64 = 3.5;

/// Gradient bytes after which a bucket is closed, for a link of `alpha` seconds and `bandwidth` bytes per second: whole MiB, a pure
/// function, hence equal on all ranks.
///
/// A bucket must be much larger than α B n / (2 (n − 1)), what the link moves in the time α (8 MB for 50 µs and 320 GB/s among many ranks);
/// but the last one cannot be hidden behind the backward pass, so it must not be larger than that. Hence 3.5 times: 26 to 30 MiB there.
pub fn bucket_bytes(alpha: f64, bandwidth: f64, world: usize) -> usize {
    if world < 2 {
        return MOST;
    }
    let in_latency = alpha * bandwidth / passes(world);
    let mib = (LATENCIES * in_latency / LEAST as f64) as usize;
    mib.saturating_mul(LEAST).clamp(LEAST, MOST)
}

/// A text that is no bandwidth or no latency.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum LinkError {
    #[error(
        "expected a bandwidth above 0 such as 450GB/s, 46.5GB/s, 800MB/s (bytes) or 400Gb/s, 400Gbit/s (bits), got {0:?}"
    )]
    Bandwidth(String),
    #[error("expected a time of at least 0 such as 20us, 20µs, 0.05ms or 1s, got {0:?}")]
    Latency(String),
}

/// Bytes per second, from `450GB/s` (bytes) or `400Gb/s` (bits).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth(pub f64);

impl FromStr for Bandwidth {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Bandwidth, LinkError> {
        const UNITS: [(&str, f64); 9] = [
            ("TB/s", 1e12),
            ("GB/s", 1e9),
            ("MB/s", 1e6),
            ("Tb/s", 1e12 / 8.0),
            ("Gb/s", 1e9 / 8.0),
            ("Mb/s", 1e6 / 8.0),
            ("Tbit/s", 1e12 / 8.0),
            ("Gbit/s", 1e9 / 8.0),
            ("Mbit/s", 1e6 / 8.0),
        ];
        let found = quantity(text, &UNITS).filter(|&x| x > 0.0);
        found.map(Bandwidth).ok_or_else(|| LinkError::Bandwidth(text.to_string()))
    }
}

/// Seconds, from `20us`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency(pub f64);

impl FromStr for Latency {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Latency, LinkError> {
        // The micro sign and the Greek letter.
        const UNITS: [(&str, f64); 6] =
            [("ns", 1e-9), ("us", 1e-6), ("\u{b5}s", 1e-6), ("\u{3bc}s", 1e-6), ("ms", 1e-3), ("s", 1.0)];
        quantity(text, &UNITS).map(Latency).ok_or_else(|| LinkError::Latency(text.to_string()))
    }
}

/// A finite number of at least 0 with one of the units, a space between or not.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    let factor = units.iter().find(|u| u.0 == unit.trim_start())?.1;
    let value = number.parse::<f64>().ok()? * factor;
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_and_latencies_are_read_with_their_units() {
        for (text, bytes) in [
            ("450GB/s", 450e9),
            ("46.5 GB/s", 46.5e9),
            ("400Gb/s", 50e9),
            ("400Gbit/s", 50e9),
            ("800MB/s", 800e6),
            ("3.2Tb/s", 400e9),
        ] {
            let Bandwidth(found) = text.parse().unwrap();
            assert!((found / bytes - 1.0).abs() < 1e-15, "{text}: {found}");
        }
        for (text, seconds) in [("20us", 20e-6), ("20µs", 20e-6), ("20μs", 20e-6), ("0.05ms", 50e-6), ("0s", 0.0)] {
            let Latency(found) = text.parse().unwrap();
            assert!((found - seconds).abs() < 1e-18, "{text}: {found}");
        }
        for text in ["", "450", "GB/s", "450gb/s", "450GiB/s", "-1GB/s", "0GB/s", "nanGB/s", "4.5.0GB/s", "450GB/sx"] {
            let error = text.parse::<Bandwidth>().unwrap_err().to_string();
            assert!(error.contains("450GB/s") && error.contains("400Gb/s") && error.contains(text), "{error}");
        }
        for text in ["20", "us", "-1us", "20 m", "20US"] {
            assert!(text.parse::<Latency>().unwrap_err().to_string().contains("20us"), "{text}");
        }
    }

    #[test]
    fn an_all_reduce_takes_its_latency_and_twice_the_bytes_of_the_other_ranks() {
        let link = Link { latency_s: 1e-3, bytes_per_s: 1e9 };
        assert_eq!(link.all_reduce_s(1, 1_000_000), 0.0);
        assert!((link.all_reduce_s(2, 1_000_000) - 2e-3).abs() < 1e-12);
        assert!((link.all_reduce_s(4, 1_000_000) - 2.5e-3).abs() < 1e-12);
    }

    #[test]
    fn a_bucket_is_large_against_what_the_link_moves_in_its_latency() {
        let of = |link: Link, world| bucket_bytes(link.latency_s, link.bytes_per_s, world);
        // 8 MB in the latency: 25 to 32 MB at any number of nodes.
        for world in [8, 16, 32, 256, 4096] {
            let bytes = of(Link::ACROSS_NODES, world);
            assert!((25_000_000..=32_000_000).contains(&bytes), "{world}: {bytes}");
            assert!(bytes.is_multiple_of(1 << 20));
        }
        // One NIC: small buckets are cheap, and the last should be small.
        assert!((3_000_000..=5_000_000).contains(&bucket_bytes(50e-6, 45e9, 8)));
        assert!(of(Link::IN_NODE, 8) < of(Link::ACROSS_NODES, 8));
        assert_eq!(bucket_bytes(0.0, 450e9, 8), 1 << 20);
        assert_eq!(bucket_bytes(1.0, 450e9, 8), 256 << 20);
        assert_eq!(of(Link::IN_NODE, 1), 256 << 20);
    }
}
