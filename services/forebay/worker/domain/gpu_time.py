"""How the measured time of an engine step is divided among the attempts computed in it."""


def equal_shares(total_ns: int, parts: int) -> list[int]:
    """Divides a step's time into equal shares that sum to it exactly (law 6: attribution conserves).

    Integer nanoseconds, so that no sum over a day drifts. Of the remainder, below one nanosecond for each part, the first
    parts get one each (largest remainder: all remainders are equal here, so that order decides).

    Args:
        total_ns: the step's time, 0 or more.
        parts: how many attempts took part, 0 or more; with none of them there is nobody to charge and the list is empty.
    """
    if parts == 0:
        return []
    share, rest = divmod(total_ns, parts)
    return [share + 1] * rest + [share] * (parts - rest)
