"""forebay: a multi-tenant LLM inference mesh.

Five services that meet only on the wire: `router`, `quota`, `scheduler`, `worker` and `metering`. ARCHITECTURE.md tells the
ten steps of a request and the file of each.
"""

__version__ = "0.1.0"
