//! tc ingress of every interface: packets that come into the node's network namespace.

use super::packet::{Direction, PacketFamily, tc_program};
use crate::tables::KernelTables;
use proxy_common::lb::{Env, Verdict, Work, decide_ingress};

struct Ingress;

impl Direction for Ingress {
    const EGRESS: bool = false;
    #[inline(always)]
    fn decide<F: PacketFamily>(tables: &KernelTables, env: &Env, work: &mut Work<F>) -> Verdict {
        decide_ingress(tables, env, work)
    }
}

tc_program!(tc_ingress, Ingress);
