"""How services meet on the wire: server and client builders, interceptors, sessions, and errors to and from statuses."""
