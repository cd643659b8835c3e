"""The quota service.

Owns tenants, plans, keys (as hashes) and limits, and the counters in Redis that hold every tenant to them: a request's worst case
is reserved before it runs and settled once when it has ended.

Where tenants, plans and keys are kept is a choice of two. Without a `policy_url` they are what the files say: the files are
watched, and administrators may look but not change. With one, the database is the truth and `TenantService` changes it; of the
files given besides, each version is imported once: tenants are set to what the tenants file says of them, plans and keys are
added where their name is new. Nothing is removed because a file does not name it.

Does not own requests in flight beyond their reservation (the router's), nor what things cost (metering's).
"""
