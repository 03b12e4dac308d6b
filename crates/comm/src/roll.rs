//! What the members of a meeting say of themselves, compared: who may not start together, and why. Pure.

use crate::member::Member;
use crate::rendezvous::{MeetingLimits, Stop};
use std::collections::BTreeMap;
use std::fmt::Write;

const RECIPE: u8 = 64;
const PREFLIGHT: u8 = 78;

/// `rank 3`, `ranks 0 and 1`, `ranks 0-4,6`. In ascending order.
pub fn name_ranks(ranks: &[u32]) -> String {
    match ranks {
        [one] => return format!("rank {one}"),
        [a, b] => return format!("ranks {a} and {b}"),
        _ => {}
    }
    let mut out = "ranks ".to_owned();
    for (k, run) in ranks.chunk_by(|a, b| a + 1 == *b).enumerate() {
        let comma = if k > 0 { "," } else { "" };
        match run {
            [first, .., last] => write!(out, "{comma}{first}-{last}"),
            _ => write!(out, "{comma}{}", run[0]),
        }
        .expect("writing to a string");
    }
    out
}

/// Whether the meeting cannot end well any more, whoever else comes.
pub(crate) fn is_wrong(own: &Member, guest: &Member) -> bool {
    let recipes = own.trouble.is_none() && own.recipe != guest.recipe;
    guest.trouble.is_some()
        || guest.world_size != own.world_size
        || guest.rank >= own.world_size
        || guest.program != own.program
        || recipes
}

/// The first reason not to start among those present, who stand in rank order with rank 0 first. `doubles` came after another
/// of the same rank.
pub(crate) fn refusal(present: &[&Member], doubles: &[Member], limits: &MeetingLimits) -> Option<Stop> {
    double(present, doubles)
        .or_else(|| troubles(present))
        .or_else(|| world_sizes(present))
        .or_else(|| programs(present))
        .or_else(|| recipes(present))
        .or_else(|| local_ranks(present))
        .or_else(|| if limits.share_gpu { None } else { gpus(present) })
        .or_else(|| nccl(present))
}

fn preflight(text: String) -> Option<Stop> {
    Some(Stop { code: PREFLIGHT, text })
}

fn whom(member: &Member) -> String {
    format!("rank {} (host {}, pid {})", member.rank, member.host, member.pid)
}

/// Of those whose key is not rank 0's: the ranks that share the first such key, and one of them.
fn others<'a, K: PartialEq>(present: &[&'a Member], key: impl Fn(&Member) -> K) -> Option<(String, &'a Member)> {
    let own = key(present.first()?);
    let first = present.iter().find(|m| key(m) != own)?;
    let same: Vec<u32> = present.iter().filter(|m| key(m) == key(first)).map(|m| m.rank).collect();
    Some((name_ranks(&same), first))
}

fn double(present: &[&Member], doubles: &[Member]) -> Option<Stop> {
    let second = doubles.first()?;
    let first = present.iter().find(|m| m.rank == second.rank)?;
    let place = |m: &Member| format!("host {}, pid {}", m.host, m.pid);
    preflight(format!(
        "two processes are rank {} of this job: {} and {}; each rank is started once",
        second.rank,
        place(first),
        place(second)
    ))
}

fn world_sizes(present: &[&Member]) -> Option<Stop> {
    let own = present.first()?;
    if let Some((ranks, other)) = others(present, |m| m.world_size) {
        return preflight(format!(
            "world sizes differ: {ranks} of {}, {} of {}; one launcher command starts all ranks",
            other.world_size,
            whom(own),
            own.world_size
        ));
    }
    let outside = present.iter().find(|m| m.rank >= own.world_size)?;
    preflight(format!(
        "{} is outside the world of {} ranks, 0 to {}",
        whom(outside),
        own.world_size,
        own.world_size - 1
    ))
}

fn hex(hash: &[u8; 32]) -> String {
    hash[..4].iter().map(|b| format!("{b:02x}")).collect()
}

fn programs(present: &[&Member]) -> Option<Stop> {
    let (ranks, other) = others(present, |m| m.program)?;
    let own = present[0];
    preflight(format!(
        "different programs: {ranks} (host {}) {}, rank 0 (host {}) {}; install one build on all hosts",
        other.host,
        hex(&other.program),
        own.host,
        hex(&own.program)
    ))
}

/// Equal troubles are one line. They come before what differs: who is in trouble may not know the rest of itself.
fn troubles(present: &[&Member]) -> Option<Stop> {
    let troubled = || present.iter().filter_map(|m| Some((m.rank, m.trouble.as_ref()?)));
    let (_, (code, _)) = troubled().next()?;
    let mut lines: Vec<(&str, Vec<u32>)> = Vec::new();
    for (rank, (_, text)) in troubled() {
        match lines.iter_mut().find(|(line, _)| line == text) {
            Some((_, ranks)) => ranks.push(rank),
            None => lines.push((text, vec![rank])),
        }
    }
    let lines: Vec<_> = lines.into_iter().map(|(text, ranks)| format!("{}: {text}", name_ranks(&ranks))).collect();
    Some(Stop { code: *code, text: lines.join("\n") })
}

fn recipes(present: &[&Member]) -> Option<Stop> {
    let (ranks, other) = others(present, |m| m.recipe)?;
    let own = present[0];
    let text = format!(
        "different recipes: {ranks} (host {}) {}, rank 0 (host {}) {}; give all ranks one recipe and equal --set",
        other.host,
        hex(&other.recipe),
        own.host,
        hex(&own.recipe)
    );
    Some(Stop { code: RECIPE, text })
}

/// The first key that two or more have, and who.
fn shared<K: Ord>(present: &[&Member], key: impl Fn(&Member) -> Option<K>) -> Option<(K, Vec<u32>)> {
    let mut users: BTreeMap<K, Vec<u32>> = BTreeMap::new();
    present
        .iter()
        .filter_map(|m| Some((key(m)?, m.rank)))
        .for_each(|(key, rank)| users.entry(key).or_default().push(rank));
    users.into_iter().find(|(_, ranks)| ranks.len() > 1)
}

fn local_ranks(present: &[&Member]) -> Option<Stop> {
    let ((host, local), ranks) = shared(present, |m| Some((m.host.clone(), m.local_rank?)))?;
    let who = name_ranks(&ranks);
    preflight(format!("local rank {local} on host {host} is that of {who}; check RETORT_LOCAL_RANK and the launcher"))
}

fn gpus(present: &[&Member]) -> Option<Stop> {
    let used = |m: &Member| (!m.uuid.is_empty()).then(|| (m.host.clone(), m.uuid.clone()));
    let ((host, uuid), ranks) = shared(present, used)?;
    let who = name_ranks(&ranks);
    preflight(format!("{uuid} is used by {who} on host {host}; unset CUDA_VISIBLE_DEVICES or set RETORT_SHARE_GPU=1"))
}

fn nccl(present: &[&Member]) -> Option<Stop> {
    let version = |m: &Member| match m.nccl {
        0 => "none".to_owned(),
        v => format!("{}.{}.{}", v / 10_000, v / 100 % 100, v % 100),
    };
    let (ranks, other) = others(present, |m| m.nccl)?;
    let own = present[0];
    preflight(format!(
        "NCCL versions differ: {ranks} (host {}) {}, rank 0 (host {}) {}; install one, or point RETORT_NCCL_LIB to it",
        other.host,
        version(other),
        own.host,
        version(own)
    ))
}

/// Fills in the local ranks that no launcher gave: the smallest free on the host, in rank order.
pub(crate) fn place(members: &mut [Member]) {
    for k in 0..members.len() {
        if members[k].local_rank.is_none() {
            let used = |local| members.iter().any(|m| m.host == members[k].host && m.local_rank == Some(local));
            let free = (0..).find(|&local| !used(local));
            members[k].local_rank = free;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(size: u32, change: impl Fn(&mut Member)) -> Vec<Member> {
        let member = |rank| {
            let host = format!("n{:02}", 1 + rank / 4);
            let mut m = Member { rank, world_size: size, host, pid: 100 + rank, ..Member::default() };
            change(&mut m);
            m
        };
        (0..size).map(member).collect()
    }

    fn refused(members: &[Member]) -> Option<(u8, String)> {
        let present: Vec<&Member> = members.iter().collect();
        refusal(&present, &[], &MeetingLimits::default()).map(|stop| (stop.code, stop.text))
    }

    #[test]
    fn ranks_have_names() {
        assert_eq!(name_ranks(&[3]), "rank 3");
        assert_eq!(name_ranks(&[0, 1]), "ranks 0 and 1");
        assert_eq!(name_ranks(&[0, 1, 2, 3, 4, 6, 8, 9]), "ranks 0-4,6,8-9");
    }

    #[test]
    fn a_world_of_equals_starts_and_gets_local_ranks() {
        let mut members = world(6, |m| m.uuid = format!("GPU-{}", m.rank % 4));
        assert_eq!(refused(&members), None);
        members[1].local_rank = Some(0);
        place(&mut members);
        let locals: Vec<_> = members.iter().map(|m| m.local_rank.unwrap()).collect();
        assert_eq!(locals, [1, 0, 2, 3, 0, 1]);
    }

    #[test]
    fn equal_troubles_are_one_line_and_the_lowest_rank_gives_the_code() {
        let members = world(8, |m| m.trouble = Some(if m.rank == 0 { (71, "b".into()) } else { (65, "a".into()) }));
        assert_eq!(refused(&members), Some((71, "rank 0: b\nranks 1-7: a".into())));
        let members = world(4, |m| {
            m.trouble = (m.rank == 2).then(|| (65, "no data".into()));
            m.recipe = [m.rank as u8; 32];
        });
        assert_eq!(refused(&members), Some((65, "rank 2: no data".into())), "before what may follow from it");
    }

    #[test]
    fn what_differs_is_told_with_ranks_and_values() {
        let (code, text) = refused(&world(8, |m| m.recipe = [u8::from(m.rank > 5); 32])).unwrap();
        assert_eq!(code, 64);
        assert_eq!(
            text,
            "different recipes: ranks 6 and 7 (host n02) 01010101, rank 0 (host n01) 00000000; \
             give all ranks one recipe and equal --set"
        );
        let (code, text) = refused(&world(3, |m| m.program[0] = u8::from(m.rank == 1))).unwrap();
        assert!(code == 78 && text.starts_with("different programs: rank 1 (host n01) 01000000, rank 0"), "{text}");
        let (code, text) = refused(&world(3, |m| m.world_size -= u32::from(m.rank == 2))).unwrap();
        assert!(code == 78 && text.starts_with("world sizes differ: rank 2 of 2, rank 0 (host n01, pid 100) of 3"));
        let (code, text) = refused(&world(8, |m| m.nccl = if m.rank < 4 { 22809 } else { 22705 })).unwrap();
        assert!(
            code == 78
                && text.starts_with("NCCL versions differ: ranks 4-7 (host n02) 2.27.5, rank 0 (host n01) 2.28.9")
        );
    }

    #[test]
    fn a_gpu_or_a_local_rank_belongs_to_one_rank_of_a_host() {
        let members = world(8, |m| m.uuid = "GPU-3f".into());
        let text = "GPU-3f is used by ranks 0-3 on host n01; unset CUDA_VISIBLE_DEVICES or set RETORT_SHARE_GPU=1";
        assert_eq!(refused(&members), Some((78, text.into())));
        let present: Vec<&Member> = members.iter().collect();
        assert_eq!(refusal(&present, &[], &MeetingLimits { share_gpu: true, ..MeetingLimits::default() }), None);
        let (code, text) =
            refused(&world(8, |m| m.local_rank = Some(if m.rank == 7 { 0 } else { m.rank % 4 }))).unwrap();
        assert_eq!(code, 78);
        assert!(text.starts_with("local rank 0 on host n02 is that of ranks 4 and 7"), "{text}");
    }
}
