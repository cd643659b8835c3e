"""`make chaos`: a mesh under load that is struck all the time, and a referee who counts what went wrong.

`plan` decides everything by a seed, `killer` and `clients` carry it out, `lives` and `pools` watch, `records` holds what they all
saw, `books` reads what the mesh wrote down, and `referee` compares it with the answers of an engine that nobody disturbs
(`undisturbed`). The strikes are kill -9, pauses, steps of the clock, a full disk (`disk`), and keys that Redis loses.
"""
