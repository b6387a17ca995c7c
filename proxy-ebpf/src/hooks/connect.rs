//! connect(2): the destination of a socket is translated once.

super::sock_addr::sock_addr_programs!(translate, connect4 = connect4, connect6 = connect6);
