//! How fast the ranks exchange data, against what the link should do.
//!
//! Between GPUs NCCL is measured: all ranks at once, and neighbours by communicators of two. Otherwise the collectives of the run, which
//! go through the hosts, and TCP from process to process, which is not what the run does but what the network between the hosts gives.

use crate::device::Device;
use crate::doctor::Finding;
use crate::doctor_pairs::{ALL_PAIRS, Measured, by_tcp};
use crate::doctor_reduce::{Gpus, Whole, by_hosts};
use crate::error::TrainError;
use crate::joined::{Joined, shares_gpu, shares_gpu_by_nccl};
use crate::link::Link;
use crate::recipe::Recipe;
use comm::discover::Environment;
use comm::{Communicator, Library, listening_addresses, name_ranks};
use std::time::Duration;

/// Slower than this part of what is expected is a finding.
const ENOUGH: f64 = 0.7;
/// Most time for pairs; one that fails may take two seconds more.
const PAIRS: Duration = Duration::from_secs(3);
const AREA: &str = "bandwidth";

/// Measures between the ranks, all of them together, within `left` if nothing hangs. The expectation is the given link, or between GPUs
/// that of the recipe. What all found is the same on all ranks. Errors: a rank is gone.
pub fn bandwidth(
    joined: &Joined,
    given: Option<Link>,
    recipe: Option<&Recipe>,
    left: Duration,
) -> Result<Vec<Finding>, TrainError> {
    let comm = joined.comm()?;
    let environment = Environment::of_process();
    let by_host = shares_gpu(&environment) && !shares_gpu_by_nccl(&environment);
    let own = match joined.device {
        Device::Cuda(ordinal) if !by_host => Library::open().ok().map(|library| Gpus { joined, ordinal, library }),
        Device::Cuda(_) | Device::Cpu => None,
    };
    let limit = PAIRS.min(left);
    let without = comm.all_reduce_or(u32::from(own.is_none()))?;
    if let (Some(gpus), 0) = (own, without) {
        let link = given.or_else(|| recipe?.ranks.link());
        return between_gpus(&gpus, &comm, link, limit);
    }
    let world = comm.world_size();
    let wanted = environment.get("RETORT_IFNAME");
    let pairs = by_tcp(&comm, &listening_addresses(wanted).unwrap_or_default(), limit)?;
    let at_once = if world <= ALL_PAIRS { "one pair at a time" } else { "neighbours of a ring, many at a time" };
    let reference = given.map(|link| link.bytes_per_s);
    let mut found = of_pairs(&pairs, reference, &format!("TCP from process to process, both ways, {at_once}"));
    let whole = by_hosts(&comm)?;
    found.push(of_whole(&whole, world, given, "by the collectives of the run, through the hosts"));
    Ok(found)
}

fn between_gpus(
    gpus: &Gpus<'_>,
    comm: &dyn Communicator,
    link: Option<Link>,
    limit: Duration,
) -> Result<Vec<Finding>, TrainError> {
    let whole = match gpus.whole(comm)? {
        Ok(whole) => whole,
        Err(why) => {
            let remedy = "NCCL_DEBUG=INFO says more; NCCL_SOCKET_IFNAME or NCCL_IB_HCA may name the right network";
            return Ok(vec![Finding::warn(AREA, format!("NCCL was not measured: {why}"), remedy)]);
        }
    };
    let world = comm.world_size();
    let mut found = vec![of_whole(&whole, world, link, "by NCCL")];
    if world > 2 {
        let pairs = gpus.pairs(comm, whole.bytes, limit)?;
        // A pair may have one NIC where all ranks have eight: it is slow if it is also slower than others.
        let expected = link.map(|link| whole.bytes as f64 / link.all_reduce_s(2, whole.bytes));
        let reference = expected.zip(median(&pairs)).map(|(expected, median)| expected.min(median));
        found.extend(of_pairs(&pairs, reference, "all-reduce of two by NCCL, neighbours of a ring, many at a time"));
    }
    Ok(found)
}

/// Of all ranks.
fn of_whole(whole: &Whole, world: usize, link: Option<Link>, how: &str) -> Finding {
    let Whole { bytes, seconds, latency_s } = *whole;
    // As nccl-tests counts: each byte passes the bus 2 (n - 1) / n times.
    let bus = |seconds: f64| 2.0 * (world - 1) as f64 / world as f64 * bytes as f64 / seconds;
    let what = format!(
        "all-reduce of {} among {world} ranks {how}: {} in {}, 8 bytes in {}, bus bandwidth",
        size(bytes),
        rate(bytes as f64 / seconds),
        time(seconds),
        time(latency_s),
    );
    let Some(link) = link else { return shown(Finding::ok(AREA, what), bus(seconds), bus(seconds)) };
    let expected = bus(link.all_reduce_s(world, bytes));
    let of_link = format!("expected {} of a link of {}", rate(expected), rate(link.bytes_per_s));
    let finding = if bus(seconds) < ENOUGH * expected {
        let remedy = "NCCL_DEBUG=INFO and nvidia-smi topo -m show which way the data go; correct ranks.link, or --link, if the link is slower";
        Finding::warn(AREA, format!("{what} ({of_link})"), remedy)
    } else {
        Finding::ok(AREA, format!("{what} ({of_link})"))
    };
    shown(finding, bus(seconds), bus(seconds))
}

fn shown(finding: Finding, least: f64, most: f64) -> Finding {
    let (unit, factor) = if least >= 1e9 { ("GB/s", 1e9) } else { ("MB/s", 1e6) };
    finding.measured_from(least / factor, most / factor, unit)
}

fn sorted(pairs: &Measured) -> Vec<f64> {
    let mut rates: Vec<f64> = pairs.pairs.iter().map(|p| p.1.bytes_per_s).collect();
    rates.sort_by(f64::total_cmp);
    rates
}

fn median(pairs: &Measured) -> Option<f64> {
    let rates = sorted(pairs);
    rates.get(rates.len() / 2).copied()
}

/// Of pairs: the worst and the median, what failed, what was left out.
fn of_pairs(pairs: &Measured, reference: Option<f64>, how: &str) -> Vec<Finding> {
    let mut found = vec![];
    let rates = sorted(pairs);
    let slowest = pairs.pairs.iter().min_by(|a, b| a.1.bytes_per_s.total_cmp(&b.1.bytes_per_s));
    if let (Some(&((a, b), worst)), Some(median)) = (slowest, median(pairs)) {
        let latency = pairs.pairs.iter().map(|p| p.1.latency_s).fold(0.0, f64::max);
        let between = name_ranks(&[a as u32, b as u32]);
        let count = rates.len();
        let what = format!(
            "{count} pair{} of ranks ({how}): median {}, worst {} between {between}, latency at most {}; they reach",
            if count == 1 { "" } else { "s" },
            rate(median),
            rate(worst.bytes_per_s),
            time(latency),
        );
        let slow = |r: &f64| pairs.pairs.iter().filter(|p| p.1.bytes_per_s < ENOUGH * r).count();
        let finding = match reference.filter(|r| slow(r) > 0) {
            Some(r) => {
                let what = format!("{} below {ENOUGH} of {}: {what}", slow(&r), rate(r));
                let remedy = "look at cables, ports and the switch between these hosts; RETORT_IFNAME or NCCL_SOCKET_IFNAME name another \
                              interface, --link another expectation";
                Finding::warn(AREA, what, remedy)
            }
            None => Finding::ok(AREA, what),
        };
        found.push(shown(finding, rates[0], rates[count - 1]));
    }
    if let Some(first) = pairs.troubles.first() {
        let more = pairs.troubles.len() - 1;
        let more = if more == 0 { String::new() } else { format!(" (and {more} other ranks say such)") };
        let remedy = "a firewall between the hosts, or an interface that they do not share: open it, or name another by RETORT_IFNAME";
        found.push(Finding::warn(AREA, format!("not measured {first}{more}"), remedy));
    }
    if pairs.left_out > 0 {
        found.push(Finding::ok(AREA, format!("{} pairs were left out, the time was over", pairs.left_out)));
    }
    found
}

fn size(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

fn rate(bytes_per_s: f64) -> String {
    if bytes_per_s >= 1e9 { format!("{:.1} GB/s", bytes_per_s / 1e9) } else { format!("{:.1} MB/s", bytes_per_s / 1e6) }
}

fn time(seconds: f64) -> String {
    if seconds >= 1e-3 { format!("{:.1} ms", 1e3 * seconds) } else { format!("{:.1} µs", 1e6 * seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use crate::doctor_pairs::Speed;

    fn pairs(rates: &[f64]) -> Measured {
        let pair = |(i, &bytes_per_s): (usize, &f64)| ((i, i + 1), Speed { bytes_per_s, latency_s: 12e-6 });
        Measured { pairs: rates.iter().enumerate().map(pair).collect(), ..Measured::default() }
    }

    #[test]
    fn the_worst_pair_is_named_and_held_to_the_expectation() {
        let slow = pairs(&[11e9, 12e9, 3e9]);
        let found = of_pairs(&slow, None, "by pigeon");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].state, State::Ok, "nothing is expected");
        assert_eq!(
            found[0].found,
            "3 pairs of ranks (by pigeon): median 11.0 GB/s, worst 3.0 GB/s between ranks 2 and 3, latency at most 12.0 µs; they reach"
        );
        assert_eq!(found[0].measured.as_ref().unwrap().to_string(), "3.0 to 12.0 GB/s");
        let warned = &of_pairs(&slow, Some(12.5e9), "by pigeon")[0];
        assert!(
            warned.state == State::Warn && warned.found.starts_with("1 below 0.7 of 12.5 GB/s: 3 pairs"),
            "{warned:?}"
        );
        assert_eq!(of_pairs(&slow, Some(4.2e9), "by pigeon")[0].state, State::Ok);
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let nothing =
            Measured { troubles: vec!["from rank 1: no".into(), "b".into()], left_out: 4, ..Measured::default() };
        let found = of_pairs(&nothing, Some(1e9), "by pigeon");
        let said: Vec<_> = found.iter().map(|f| (f.state, f.found.as_str())).collect();
        let first = "not measured from rank 1: no (and 1 other ranks say such)";
        assert_eq!(said, [(State::Warn, first), (State::Ok, "4 pairs were left out, the time was over")]);
    }

    #[test]
    fn an_all_reduce_is_held_to_the_link_at_its_size() {
        // 4 ranks: 1.5 times 64 MiB in 1 ms is 100.7 GB/s on the bus.
        let whole = Whole { bytes: 64 << 20, seconds: 1e-3, latency_s: 30e-6 };
        let link = |gb: f64| Some(Link { latency_s: 0.0, bytes_per_s: gb * 1e9 });
        let found = of_whole(&whole, 4, None, "by NCCL");
        assert_eq!(
            (found.state, found.found.as_str(), found.measured.clone().unwrap().to_string().as_str()),
            (
                State::Ok,
                "all-reduce of 64 MiB among 4 ranks by NCCL: 67.1 GB/s in 1.0 ms, 8 bytes in 30.0 µs, bus bandwidth",
                "101 GB/s"
            )
        );
        assert_eq!(of_whole(&whole, 4, link(140.0), "by NCCL").state, State::Ok);
        let slow = of_whole(&whole, 4, link(150.0), "by NCCL");
        assert!(
            slow.state == State::Warn && slow.found.contains("(expected 150.0 GB/s of a link of 150.0 GB/s)"),
            "{slow:?}"
        );
        // In a link with latency a small message is not expected to be fast.
        let few = Whole { bytes: 1 << 20, seconds: 1e-3, latency_s: 1e-3 };
        let far = Some(Link { latency_s: 0.99e-3, bytes_per_s: 460e9 });
        assert_eq!(of_whole(&few, 4, far, "by NCCL").state, State::Ok);
    }
}
