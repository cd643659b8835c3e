"""`make chaos`: a mesh under load whose processes are killed all the time, and a referee who counts what went wrong.

`plan` decides everything by a seed, `killer` and `clients` carry it out, `records` holds what they saw, `books` reads what the
mesh wrote down, and `referee` compares both with the answers of an engine that nobody disturbs (`undisturbed`).
"""
