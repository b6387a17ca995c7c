//! getpeername(2): the peer is the frontend.

super::sock_addr::sock_addr_programs!(show_frontend, getpeername4 = getpeername4, getpeername6 = getpeername6);
