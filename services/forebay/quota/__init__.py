"""The quota service.

Owns tenants, plans, keys (as hashes) and limits, and the counters in Redis that hold every tenant to them: a request's worst case
is reserved before it runs and settled once when it has ended.

Does not own requests in flight beyond their reservation (the router's), nor what things cost (metering's).
"""
