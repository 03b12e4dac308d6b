//! The ranks of a job find each other: rank 0 listens, the others come, and all start together or nobody does.
//!
//! Every rank opens two connections to rank 0, for control and for data, and both ends of each prove that they belong to the job
//! (`auth`). Rank 0 compares what the members say of themselves (`roll`) and tells all of them the outcome, so errors are equal
//! on all ranks. Strangers are counted and logged; they can neither join the meeting nor stop it.

use crate::door::Open;
use crate::hosting;
use crate::invitation::Invitation;
use crate::joining::{self, Find};
use crate::member::Member;
pub use crate::rendezvous::{By, Carry, Links, MeetingError, MeetingLimits, Met, ports_of_job};
use crate::rendezvous::{PREFLIGHT, Stop, UNREACHABLE, USAGE, port};
use crate::sockets::Sockets;

/// Returns when all ranks of `own`'s world are there, have proved to be of `job`, and fit together; or tells why not, at the latest
/// after `limits.rendezvous`. Blocks.
pub fn meet(own: Member, job: &str, by: By, limits: &MeetingLimits) -> Result<Met, MeetingError> {
    let rank = own.rank;
    let refuse = |code, text| Err(MeetingError::shared(Stop { code, text }, rank));
    if own.rank >= own.world_size {
        return refuse(PREFLIGHT, format!("rank {rank} is outside the world of {} ranks", own.world_size));
    }
    if own.world_size == 1 {
        return alone(own);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|e| MeetingError::own(UNREACHABLE, format!("rank {rank} cannot use the network: {e}")))?;
    let met = match (rank, by) {
        (_, By::Known { address, .. }) if port(&address).is_none() => {
            let text = format!("rendezvous address `{address}` is not host:port with a port of 1 to 65535");
            return refuse(USAGE, text);
        }
        (0, by) => {
            let open = Open::new(job, by, limits)?;
            runtime.block_on(hosting::host(own, open, limits))
        }
        (_, by) => {
            let find = match by {
                By::File(path) => Find::File(path),
                By::Known { address, secret } => Find::Known(address, secret),
                By::Ports { host, ports, secret } => Find::Ports { host, ports, secret },
                By::Carried(carry) => Find::Fixed(carried(carry)?),
            };
            runtime.block_on(joining::join(own, job, find, limits))
        }
    };
    // A look-up of a name may still hang in a thread of its own.
    runtime.shutdown_background();
    met
}

fn alone(mut own: Member) -> Result<Met, MeetingError> {
    if let Some((code, text)) = own.trouble {
        return Err(MeetingError::own(code, text));
    }
    own.local_rank.get_or_insert(0);
    Ok(Met { members: vec![own], links: Links::Hub(Vec::new()), world: Sockets::hub(Vec::new()) })
}

/// A member's share of carrying.
fn carried(carry: Box<Carry>) -> Result<Invitation, MeetingError> {
    let trouble = |text| MeetingError::own(UNREACHABLE, text);
    let bytes = carry(None).map_err(|e| trouble(format!("the invitation of rank 0 did not come: {e}")))?;
    if bytes.is_empty() {
        let text = "rank 0 cannot listen".to_owned();
        return Err(MeetingError::of_rank_0(UNREACHABLE, text));
    }
    Invitation::decode(&bytes).map_err(|e| trouble(format!("what came from rank 0 is no invitation: {e}")))
}
