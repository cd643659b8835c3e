"""How services meet on the wire: server and client builders, interceptors, sessions, and errors to and from statuses."""

import os

# Services start other programs. gRPC prepares each fork for a child that uses gRPC, too; a busy process skips that, and then
# the child fails one of gRPC's checks and dies before it becomes the other program. gRPC reads this when it is first used.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
