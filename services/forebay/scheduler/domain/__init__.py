"""The scheduler's decisions: pure, synchronous, the time always an argument.

The same code is driven by the gRPC sessions and by a discrete-event simulator, so nothing here waits, reads a clock or knows
how a message looks on the wire. Times are seconds on one clock that never goes back; only their differences matter.

    request           what a router submits, and its place while it waits
    indexed_heap      the one ordered structure: flows by counter, requests by age, timers by time
    virtual_counters  who is owed the next service
    worker            what a worker can hold, has been promised, and has free
    promises          what is in flight, and what flows are charged for it
    pool              which waiting request goes to which worker next
    decisions         what a tick yields
    refusals          why a request does not run
    scheduler         the core that holds all of it together
    lease             who leads, and may rely on it
    takeover          whom a new leader hears first, and what it takes over
"""
