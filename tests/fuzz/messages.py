"""Messages that no well-behaved peer sends, made from a method's descriptor alone."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

MAX_MESSAGE_BYTES = 16 << 20
MANY = 100_000

_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (0.0, -0.0, -1.0, 0.5, 1.0, 2.0, 1e-40, 1e38, 1e300, math.nan, math.inf, -math.inf)
# As many bytes as what stands in for it once the message is serialised, which no protobuf library would write.
_MARK, _NO_UTF8 = "MARKMARK", b"\xff\xfe\xc0\xaf\xed\xa0\x80\xfe"
_TEXTS = (
    "",
    "a",
    "no such name",
    "-",
    "\x00",
    "a\x00b",
    "\r\n\x1b[2J\x07",
    "x" * 64,
    "x" * 300,
    "ÿ" * 5_000,
    "\u202e\ufeff\U0001f9e8",
    "e\u0301" * 50,
    "%s%n{0}{{}}",
    "../../../etc/passwd",
    "'; DROP TABLE entries; --",
    "forebay:{acme}",
    "v1:99999999999999999999",
    "-1",
    "NaN",
    _MARK,
)


class Generator:
    """A seeded source of hostile messages.

    Args:
        random: decides everything.
        plausible: by field name, values that pass a first look, so that others behind them are reached as well.
    """

    def __init__(self, random: random.Random, plausible: Mapping[str, Sequence[Any]]) -> None:
        self._random = random
        self._plausible = plausible

    def message(self, kind: Descriptor, *, opening: bool = False) -> Message:
        """Returns a message of the right shape with hostile values.

        Args:
            kind: the message's descriptor.
            opening: whether it is the first of a session, where fields that introduce the peer most often belong.
        """
        # How many of the fields are there, and how many of these are as they should be, differs by message.
        filled, sane = self._random.choice((0.1, 0.5, 0.9, 1.0)), self._random.choice((0.0, 0.5, 0.9, 1.0))
        message: Message = message_factory.GetMessageClass(kind)()
        self._fill(message, filled, sane)
        for field in kind.fields:
            if field.name in ("hello", "register"):
                message.ClearField(field.name)
                if self._random.random() < (0.9 if opening else 0.05):
                    part = getattr(message, field.name)
                    part.SetInParent()
                    self._fill(part, 1.0, sane)
        return message

    def _fill(self, message: Message, filled: float, sane: float) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._random.random() >= filled:
                continue
            if not field.is_repeated:
                self._set(message, field, filled, sane)
            elif field.message_type and field.message_type.GetOptions().map_entry:
                self._fill_map(message, field, sane)
            else:
                self._fill_list(message, field, filled, sane)

    def _set(self, message: Message, field: FieldDescriptor, filled: float, sane: float) -> None:
        if field.message_type:
            part = getattr(message, field.name)
            part.SetInParent()
            self._fill(part, filled, sane)
        else:
            setattr(message, field.name, self._value(field, sane))

    def _fill_list(self, message: Message, field: FieldDescriptor, filled: float, sane: float) -> None:
        values = getattr(message, field.name)
        length = self._random.choice((1, 1, 1, 2, 3, 20))
        if field.message_type is None:
            values.extend(self._value(field, sane) for _ in range(length))
            return
        for _ in range(length):
            self._fill(values.add(), filled, sane)

    def _fill_map(self, message: Message, field: FieldDescriptor, sane: float) -> None:
        assert field.message_type is not None
        key, value = field.message_type.fields
        values = getattr(message, field.name)
        for _ in range(self._random.choice((1, 3, 40))):
            if value.message_type:
                self._fill(values[self._value(key, sane)], 0.5, sane)
            else:
                values[self._value(key, sane)] = self._value(value, sane)

    def _value(self, field: FieldDescriptor, sane: float) -> Any:
        random, ordinary = self._random, self._random.random() < sane
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return random.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return random.choice((0.5, 1.0)) if ordinary else random.choice(_FLOATS)
            case FieldDescriptor.CPPTYPE_ENUM:
                numbers = [value.number for value in field.enum_type.values]
                return random.choice(numbers if ordinary else [*numbers, -1, 99, 2**31 - 1, -(2**31)])
            case FieldDescriptor.CPPTYPE_STRING:
                if field.type == FieldDescriptor.TYPE_BYTES:
                    return random.randbytes(random.choice((0, 1, 32, 5_000)))
                if ordinary:
                    return random.choice(self._plausible.get(field.name, ("fuzz",)))
                return random.choice(_TEXTS)
            case _:
                low, high = _BITS[field.cpp_type]
                if ordinary:
                    return random.choice(self._plausible.get(field.name, (1, 1, 2, 7, 20)))
                numbers = [low, low + 1, -1, 0, 1, 2, 1_000, 10**6, 2**31 - 1, 2**31, 2**53 + 1, high - 1, high]
                return random.choice([number for number in numbers if low <= number <= high])

    def many(self, kind: Descriptor) -> Message:
        """Returns a message of which one repeated field has 100,000 elements, within the bound of a message."""
        message = self.message(kind, opening=True)
        fields = [
            field
            for field in kind.fields
            if field.is_repeated and not (field.message_type and field.message_type.GetOptions().map_entry)
        ]
        if fields:
            field = self._random.choice(fields)
            message.ClearField(field.name)
            element = message_factory.GetMessageClass(kind)()
            self._fill_list(element, field, 0.5, 0.5)
            first = getattr(element, field.name)[:1]
            if field.message_type and first[0].ByteSize() > 120:
                first = [message_factory.GetMessageClass(field.message_type)()]
            elif isinstance(first[0], (str, bytes)) and len(first[0]) > 100:
                first = [first[0][:20]]
            getattr(message, field.name).extend(first * MANY)
        return message

    def parts(self, kind: Descriptor) -> bytes:
        """Returns one field of a message 100,000 times, as protobuf's encoding allows even for one that comes once."""
        fields = [field for field in kind.fields if field.message_type or field.type == FieldDescriptor.TYPE_STRING]
        if not fields:
            return b""
        field = self._random.choice(fields)
        if field.message_type and not field.message_type.GetOptions().map_entry and self._random.random() < 0.5:
            inner = self.parts(field.message_type)
            return _varint(field.number << 3 | 2) + _varint(len(inner)) + inner
        element = b""
        if field.message_type:
            part: Message = message_factory.GetMessageClass(field.message_type)()
            self._fill(part, 0.5, 0.5)
            element = part.SerializeToString()
        element = element if len(element) <= 100 else b""
        return (_varint(field.number << 3 | 2) + _varint(len(element)) + element) * MANY

    def spoil(self, data: bytes) -> bytes:
        """Returns the bytes with the texts that are marked for it no longer UTF-8."""
        return data.replace(_MARK.encode(), _NO_UTF8)

    def truncated(self, data: bytes) -> bytes:
        """Returns the beginning of a message."""
        return data[: self._random.randrange(len(data))] if data else b"\x0a"

    def flipped(self, data: bytes) -> bytes:
        """Returns a message with some bits wrong."""
        damaged = bytearray(data or b"\x00")
        for _ in range(self._random.randint(1, 8)):
            damaged[self._random.randrange(len(damaged))] ^= 1 << self._random.randrange(8)
        return bytes(damaged)

    def noise(self) -> bytes:
        """Returns bytes that never were a message."""
        return self._random.randbytes(self._random.choice((1, 2, 10, 100, 10_000)))

    def unknown_fields(self, data: bytes) -> bytes:
        """Returns a message of a release that has thousands of fields more."""
        return data + b"".join(
            _varint((number << 3) | 2) + b"\x03abc"
            for number in range(5_000, 5_000 + self._random.choice((1, 50, 5_000)))
        )

    def nested(self) -> bytes:
        """Returns groups in groups, deeper than any parser follows, or messages within field 1 of messages."""
        depth = self._random.choice((90, 200, 10_000))
        if self._random.random() < 0.5:
            return b"\x0b" * depth + b"\x0c" * depth
        data = b""
        for _ in range(min(depth, 2_000)):
            data = b"\x0a" + _varint(len(data)) + data
        return data

    def oversized(self) -> bytes:
        """Returns one unknown field that makes the message larger than any may be."""
        size = MAX_MESSAGE_BYTES + self._random.choice((1, 1 << 20))
        return _varint((4_000 << 3) | 2) + _varint(size) + bytes(size)


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*data, number))
