"""Logs, traces and metrics: one way for all five services."""
