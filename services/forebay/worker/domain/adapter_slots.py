"""Which adapters an engine has loaded: a few slots, filled on demand; the least recently used that nobody uses goes first."""

from collections import OrderedDict


class AdapterSlots:
    """Counts who uses which adapter; the bare model, an empty name, needs no slot."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._users: OrderedDict[str, int] = OrderedDict()  # of each loaded adapter, least recently taken first

    @property
    def loaded(self) -> tuple[str, ...]:
        """The adapters that are loaded, in order of name."""
        return tuple(sorted(self._users))

    def has_room_for(self, adapter: str) -> bool:
        """Whether an adapter is loaded or can be."""
        return (
            not adapter
            or adapter in self._users
            or len(self._users) < self._slots
            or any(not users for users in self._users.values())
        )

    def take(self, adapter: str) -> bool:
        """Uses an adapter that there is room for; returns whether it had to be loaded."""
        if not adapter:
            return False
        loads = adapter not in self._users
        if loads and len(self._users) >= self._slots:
            del self._users[next(name for name, users in self._users.items() if not users)]
        self._users[adapter] = self._users.get(adapter, 0) + 1
        self._users.move_to_end(adapter)
        return loads

    def release(self, adapter: str) -> None:
        """Ends one use; the adapter stays until its slot is needed."""
        if adapter:
            self._users[adapter] -= 1
