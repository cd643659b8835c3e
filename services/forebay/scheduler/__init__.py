"""The scheduler: decides which request runs where and when.

It owns the queues, the fairness between tenants, the registry of workers, placement, and the batches and grants that follow. It
sees sizes and names, never prompts or tokens. It does not own a request (its router does), does not carry tokens
(they go from worker to router) and holds nothing that a restart could lose: routers and workers tell it again. Of several
schedulers one leads; the others have no state and say who does.

Import rules: `domain` is pure; `service` drives it with the clock and the event loop for one term; `leadership` begins and ends
terms by the lease in a `lease_store`; `servicer` speaks gRPC; `main` wires.
"""
