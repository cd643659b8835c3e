"""Bounds on a protobuf message, held against its bytes before anything parses them.

Parsing is not cheap: a map with 380,000 labels holds the interpreter for a second or more, before the first line that could count
them. The scan here reads tags and lengths only. It ends at the first field that is above its bound, and after `MAX_FIELDS` fields
in any case, so its cost is bounded, too: some microseconds for an ordinary request, two milliseconds at the most.

A field without a bound of its own may come once, and a text with at most MAX_TEXT_BYTES. `Shape.of` refuses a repeated field that
has no bound, so a new one in a contract is bounded before it is served.

One field can be cut out: its bytes come back beside the message and are not looked into. The router hands a long prompt on in
this way without parsing it.

Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from forebay.errors import Code, FieldViolation, MeshError
from forebay.rpc.unread import malformed

# What no public message needs: each field here costs about a microsecond, known or not.
MAX_FIELDS = 2_048
MAX_TEXT_BYTES = 1_024

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
# All bytes of a varint but its last one.
_CONTINUED = bytes(range(0x80, 0x100))
_LONGEST_VARINT = 10


@dataclass(frozen=True, slots=True)
class Bound:
    """How much a field may hold.

    Attributes:
        most: elements; 1 for a field that is not repeated.
        bytes: of each element.
        cut: whether the field is cut out; it then has no other bound than the message.
        unnamed: whether errors name the fields within it as if they were beside it.
    """

    most: int = 1
    bytes: int = MAX_TEXT_BYTES
    cut: bool = False
    unnamed: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """What a message may look like.

    Attributes:
        name: of the field that holds it, as in filter; empty for the message itself.
        bounds: by field number, the field's path and its bound.
        messages: by field number, the shapes of fields that are messages.
        packed: numbers of fields whose elements may come in one piece of bytes.
    """

    name: str
    bounds: Mapping[int, tuple[str, Bound]]
    messages: Mapping[int, Shape]
    packed: frozenset[int]

    @classmethod
    def of(cls, kind: Descriptor, bounds: Mapping[str, Bound], path: str = "") -> Shape:
        """Returns the shape of a contract's message.

        Args:
            kind: the message's descriptor.
            bounds: by path, such as filter.models, bounds that differ from the default.
            path: of the field that holds the message.

        Raises:
            ValueError: a repeated field has no bound.
        """
        own: dict[int, tuple[str, Bound]] = {}
        messages: dict[int, Shape] = {}
        packed: set[int] = set()
        for part in kind.fields:
            name = f"{path}.{part.name}" if path else part.name
            bound = bounds.get(name)
            if bound is None and part.is_repeated and not kind.GetOptions().map_entry:
                raise ValueError(f"{kind.full_name}: {name} is repeated and has no bound")
            own[part.number] = name, bound or Bound()
            if part.message_type is not None and not (bound and bound.cut):
                messages[part.number] = cls.of(part.message_type, bounds, path if bound and bound.unnamed else name)
            elif part.is_repeated and part.type not in _TEXTS:
                packed.add(part.number)
        return cls(path, own, messages, frozenset(packed))


@dataclass(slots=True)
class Scanned:
    """A message that is within its bounds.

    Attributes:
        data: its bytes, without what was cut out.
        cut: the bytes of the field that was cut out; None when the message has none.
    """

    data: bytes
    cut: bytes | None
    fields: int = field(default=0, repr=False)


def scan(data: bytes, shape: Shape) -> Scanned:
    """Returns a message's bytes once every field is known to be within its bound.

    Raises:
        MeshError: INVALID_ARGUMENT BAD_REQUEST with the first field that is not, or MALFORMED_MESSAGE.
    """
    scanned = Scanned(data, None)
    scanned.data = _scan(data, 0, len(data), shape, scanned)
    return scanned


def _scan(data: bytes, at: int, end: int, shape: Shape, scanned: Scanned) -> bytes:
    """Scans data[at:end]; returns it, without what is cut out."""
    counts: dict[int, int] = {}
    kept: list[bytes] = []
    kept_to = begin = at
    while at < end:
        scanned.fields += 1
        if scanned.fields > MAX_FIELDS:
            raise _violation(shape.name or "message", f"must have at most {MAX_FIELDS} fields in all")
        tag_at = at
        tag, at = _varint(data, at, end)
        number, form = tag >> 3, tag & 7
        if form == _VARINT:
            _, at = _varint(data, at, end)
            value_at = at
        elif form == _BYTES:
            size, value_at = _varint(data, at, end)
            at = value_at + size
        elif form in (_FIXED64, _FIXED32):
            value_at = at
            at += 8 if form == _FIXED64 else 4
        else:  # groups, which no proto3 contract has
            raise malformed()
        if at > end or number == 0:
            raise malformed()
        if number not in shape.bounds:
            continue
        name, bound = shape.bounds[number]
        packed = form == _BYTES and number in shape.packed
        elements = _varints(data, value_at, at, bound.most) if packed else 1
        counts[number] = count = counts.get(number, 0) + elements
        if count > bound.most:
            raise _violation(name, "must be sent once" if bound.most == 1 else f"must hold at most {bound.most}")
        if form != _BYTES or packed:
            continue
        if bound.cut:
            scanned.cut = data[value_at:at]
            kept.append(data[kept_to:tag_at])
            kept_to = at
        elif number in shape.messages:
            inner = _scan(data, value_at, at, shape.messages[number], scanned)
            if len(inner) != at - value_at:
                kept += (data[kept_to:tag_at], _to_varint(number << 3 | _BYTES), _to_varint(len(inner)), inner)
                kept_to = at
        elif at - value_at > bound.bytes:
            raise _violation(name, f"must have at most {bound.bytes} bytes")
    return b"".join((*kept, data[kept_to:end])) if kept else data[begin:end]


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Returns the number at `at` and where it ends."""
    number = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise malformed()


def _varints(data: bytes, at: int, end: int, most: int) -> int:
    """Returns how many varints there are; some number above `most` when there are so many that counting them would take long."""
    if end - at > _LONGEST_VARINT * most:
        return most + 1
    return len(data[at:end].translate(None, _CONTINUED))


def _to_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _violation(name: str, description: str) -> MeshError:
    return MeshError(
        Code.INVALID_ARGUMENT,
        "BAD_REQUEST",
        f"{name} {description}",
        field_violations=[FieldViolation(name, description)],
    )
