"""The workload simulator: the scheduler's own core, and others to compare it with, against a model of vLLM's scheduler.

It owns the model of an engine, a loop of events, the baselines, workloads and measures. It owns no policy: what it drives is
`forebay.scheduler.domain` as it runs in the service. Nothing here reads a clock, so a simulated hour takes seconds and the same
input gives the same figures.
"""
