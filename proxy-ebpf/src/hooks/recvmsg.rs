//! recvmsg(2) on a UDP socket: the sender is the frontend.

super::sock_addr::sock_addr_programs!(show_frontend, recvmsg4 = recvmsg4, recvmsg6 = recvmsg6);
