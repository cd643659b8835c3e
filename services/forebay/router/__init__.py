"""The router: the public API, and the life of every request that comes in by it.

Owns: who is calling; the prompt as rendered and tokenised; the state of a request from admission to settlement (rule P1); what
the engine has yielded and the client has not been sent yet; the choice to go on elsewhere when a worker is lost.

Does not own: counters and limits (quota), queues and placement (scheduler), the engine (worker), prices and the ledger
(metering).
"""
