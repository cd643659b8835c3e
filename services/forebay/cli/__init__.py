"""The `forebay` command: the launcher of a whole mesh on one machine, and a client for people.

Owns: the processes of a mesh started by `forebay up`, their data directory, and what is printed on a terminal.
Does not own: anything that a service decides. It speaks to services over their contracts alone.
"""
