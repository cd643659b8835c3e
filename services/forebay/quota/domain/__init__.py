"""Limits, reservations and policies as pure values and functions; time is an argument everywhere."""
