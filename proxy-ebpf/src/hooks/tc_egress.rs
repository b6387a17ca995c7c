//! tc egress of every interface: packets that leave the node's network namespace.

use super::packet::{Direction, PacketFamily, tc_program};
use crate::tables::KernelTables;
use proxy_common::lb::{Env, Verdict, Work, decide_egress};

struct Egress;

impl Direction for Egress {
    const EGRESS: bool = true;
    #[inline(always)]
    fn decide<F: PacketFamily>(tables: &KernelTables, env: &Env, work: &mut Work<F>) -> Verdict {
        decide_egress(tables, env, work)
    }
}

tc_program!(tc_egress, Egress);
