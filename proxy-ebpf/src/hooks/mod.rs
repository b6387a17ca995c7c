//! One attach point per file.

mod connect;
mod getpeername;
mod packet;
mod recvmsg;
mod sendmsg;
mod sock_addr;
mod sock_release;
mod tc_egress;
mod tc_ingress;
