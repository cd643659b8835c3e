"""Bounds on bytes: what is within them is parsed as before, what is above is named, and neither costs more than it may."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.api.common.v1 import common_pb2
from forebay.api.router.v1 import router_pb2
from forebay.errors import Code, MeshError
from forebay.router import bounds
from forebay.rpc.wire import MAX_FIELDS, Bound, Shape, scan

CHAT = router_pb2.Prompt(chat={"messages": [{"role": "user", "content": "hello"}]})
short = st.text(st.characters(codec="utf-8"), max_size=16)
requests = st.builds(
    lambda model, labels, stop, ids, seed, prompt: router_pb2.GenerateRequest(
        options=router_pb2.GenerateOptions(
            model=model,
            labels=labels,
            prompt=prompt,
            sampling=common_pb2.Sampling(stop=stop, stop_token_ids=ids, seed=seed, temperature=0.5),
        )
    ),
    short,
    st.dictionaries(short, short, max_size=8),
    st.lists(short, max_size=16),
    st.lists(st.integers(0, 2**32 - 1), max_size=64),
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.just(CHAT) | st.just(router_pb2.Prompt()) | short.map(lambda text: router_pb2.Prompt(text=text)),
)


@settings(max_examples=40)
@given(requests)
def test_a_message_within_its_bounds_comes_through_whole(request: router_pb2.GenerateRequest) -> None:
    scanned = scan(request.SerializeToString(), bounds.GENERATE)
    read = router_pb2.GenerateRequest.FromString(scanned.data)
    assert not read.options.HasField("prompt")
    assert (scanned.cut is not None) == request.options.HasField("prompt")
    if scanned.cut is not None:
        read.options.prompt.ParseFromString(scanned.cut)
    assert read == request


@given(st.binary(max_size=200))
def test_no_bytes_end_in_anything_but_a_typed_error(data: bytes) -> None:
    end = outcome(data)
    assert end in ("within", "INVALID_ARGUMENT MALFORMED_MESSAGE", "INVALID_ARGUMENT BAD_REQUEST")


def outcome(data: bytes) -> str:
    try:
        scan(data, bounds.GENERATE)
    except MeshError as error:
        return f"{error.code.name} {error.reason}"
    return "within"


def part(number: int, data: bytes) -> bytes:
    """A field with a length."""
    size, encoded = len(data), bytearray((number << 3 | 2,))
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*encoded, size)) + data


def refused(data: bytes, shape: Shape = bounds.GENERATE) -> str:
    with pytest.raises(MeshError) as caught:
        scan(data, shape)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "BAD_REQUEST")
    (violation,) = caught.value.field_violations
    return violation.field


def options(**fields: object) -> bytes:
    request = router_pb2.GenerateRequest(options=router_pb2.GenerateOptions(**fields))  # type: ignore[arg-type]
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (options(labels={str(number): "x" for number in range(9)}), "labels"),
        (options(labels={"a" * 65: "x"}), "labels.key"),
        (options(labels={"a": "x" * 65}), "labels.value"),
        (options(sampling={"stop": ["x"] * 17}), "sampling.stop"),
        (options(sampling={"stop": ["x" * 257]}), "sampling.stop"),
        (options(sampling={"stop_token_ids": [300] * 65}), "sampling.stop_token_ids"),
        (options(client_request_id="x" * 129), "client_request_id"),
        (options(model="x" * 2_000), "model"),
        (options(adapter="x" * 2_000), "adapter"),
        (
            options(sampling={"structured_output": {"choice": {"options": ["x"] * 257}}}),
            "sampling.structured_output.choice.options",
        ),
        (part(1, b"") * 2, "options"),
        (part(1, part(2, b"") * 2), "prompt"),
        (part(1, part(3, b"") * 2), "sampling"),
        (b"\xf8\x7f\x01" * (MAX_FIELDS + 1), "message"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_above_its_bound_is_named(data: bytes, field: str) -> None:
    assert refused(data) == field


def test_elements_that_come_one_by_one_count_as_those_in_one_piece() -> None:
    data = part(1, part(3, b"\x48\x05" * 65))
    assert len(router_pb2.GenerateRequest.FromString(data).options.sampling.stop_token_ids) == 65
    assert refused(data) == "sampling.stop_token_ids"


@pytest.mark.parametrize("field", ["tenant_ids", "key_ids", "models", "request_ids", "except_request_ids"])
def test_a_filter_is_bounded(field: str) -> None:
    request = router_pb2.SumUsageRequest(filter={field: ["x"] * 1_001})
    assert refused(request.SerializeToString(), bounds.SUM_USAGE) == f"filter.{field}"


def test_dimensions_are_bounded() -> None:
    request = router_pb2.SumUsageRequest(group_by=[2] * 17)
    assert refused(request.SerializeToString(), bounds.SUM_USAGE) == "group_by"


def test_a_repeated_field_without_a_bound_is_found_when_the_service_starts() -> None:
    with pytest.raises(ValueError, match="is repeated and has no bound"):
        Shape.of(router_pb2.GenerateRequest.DESCRIPTOR, {"options.prompt": Bound(cut=True)})


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (part(1, part(7, b"\x0a\x01a\x12\x01b") * 200_000), "INVALID_ARGUMENT BAD_REQUEST"),
        (part(1, part(3, part(9, b"\x05" * 2_000_000))), "INVALID_ARGUMENT BAD_REQUEST"),
        (part(1, b"") * 1_000_000, "INVALID_ARGUMENT BAD_REQUEST"),
        (b"\xf8\x7f\x01" * 600_000, "INVALID_ARGUMENT BAD_REQUEST"),
        (part(1, part(2, part(2, b"x" * 2_000_000))), "within"),
    ],
    ids=["labels", "ids", "parts", "unknown", "prompt"],
)
def test_no_message_is_looked_at_for_long(data: bytes, end: str) -> None:
    steps = 0

    class Counted(bytes):
        def __getitem__(self, key: object) -> object:  # type: ignore[override]
            nonlocal steps
            steps += 1
            return super().__getitem__(key)  # type: ignore[index]

    assert outcome(Counted(data)) == end
    assert steps < 10 * MAX_FIELDS
