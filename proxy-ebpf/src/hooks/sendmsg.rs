//! sendmsg(2) with a destination, on a UDP socket.

super::sock_addr::sock_addr_programs!(translate, sendmsg4 = sendmsg4, sendmsg6 = sendmsg6);
