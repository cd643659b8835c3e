"""The worker service: one engine, and every attempt that runs on it.

Owns: the engine and what it holds; each attempt from its payload to its end; the measurement of each attempt, and the one usage
event that tells of it, in the spool until metering has it; the salts that keep tenants apart in the prefix cache.

Does not own: who may call, what things cost, which request runs next, or what happens to a request after its attempt here ended.
"""
