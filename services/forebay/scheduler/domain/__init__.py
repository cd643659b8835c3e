"""The scheduler's decisions: pure, synchronous, the time always an argument.

The same code is driven by the gRPC sessions and by a discrete-event simulator, so nothing here waits, reads a clock or knows
how a message looks on the wire. Times are seconds on one clock that never goes back; only their differences matter.

    request           what a router submits, and its place while it waits
    indexed_heap      the one ordered structure: flows by counter, requests by deadline, timers by time
    flow              a class, a tenant or a key: what it was served, is owed, and has waiting
    flow_tree         who is owed the next service
    length_model      how many more tokens a request will generate
    peak              the most KV cache that running requests will hold
    room              how much of a worker may be spoken for
    prefixes          what a worker's cache is likely to hold
    worker            what a worker holds, has been promised, and has room for
    claims            what routers hold on workers that have not spoken
    promises          what is in flight, and what flows are charged for it
    eviction          who gives way to a request that has waited long enough
    pool              which waiting request goes to which worker next
    pools             which pools there are, and which lends to which
    pressure          what gives way when too much waits
    limits            the bounds and rules of all of it
    queue             who may wait, in which place, and for how long
    decisions         what a tick yields
    refusals          why a request does not run
    scheduler         the core that holds all of it together
    overview          what operators want to know of it
    lease             who leads, and may rely on it
    takeover          whom a new leader hears first, and what it takes over
"""
