"""How much each field of the public contract may hold, checked on a message's bytes (`forebay.rpc.wire`).

What a value may be is checked later, by `domain.validation`, which has the bounds of the domain that are used here. A prompt is
cut out unread: it may be long, and has its bounds where it is tokenised.
"""

from __future__ import annotations

from forebay.api.router.v1 import router_pb2
from forebay.router.domain.validation import (
    MAX_CLIENT_REQUEST_ID_BYTES,
    MAX_LABEL_BYTES,
    MAX_LABELS,
    MAX_STOP_BYTES,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
)
from forebay.rpc.wire import Bound, Shape

MAX_CHOICES = 256
MAX_STRUCTURE_BYTES = 32 << 10
MAX_TEXTS = 256
MAX_IDS = 1_000
MAX_VALUES = 100

_OPTIONS = {
    "options": Bound(unnamed=True),  # as `domain.validation` has it
    "prompt": Bound(cut=True),
    "client_request_id": Bound(bytes=MAX_CLIENT_REQUEST_ID_BYTES),
    "labels": Bound(most=MAX_LABELS),
    "labels.key": Bound(bytes=MAX_LABEL_BYTES),
    "labels.value": Bound(bytes=MAX_LABEL_BYTES),
    "sampling.stop": Bound(most=MAX_STOPS, bytes=MAX_STOP_BYTES),
    "sampling.stop_token_ids": Bound(most=MAX_STOP_TOKEN_IDS),
    "sampling.structured_output.json_schema": Bound(bytes=MAX_STRUCTURE_BYTES),
    "sampling.structured_output.regex": Bound(bytes=MAX_STRUCTURE_BYTES),
    "sampling.structured_output.grammar": Bound(bytes=MAX_STRUCTURE_BYTES),
    "sampling.structured_output.choice.options": Bound(most=MAX_CHOICES),
}
_FILTER = {
    "filter.tenant_ids": Bound(most=MAX_VALUES),
    "filter.key_ids": Bound(most=MAX_VALUES),
    "filter.models": Bound(most=MAX_VALUES),
    "filter.request_ids": Bound(most=MAX_IDS),
    "filter.outcomes": Bound(most=MAX_VALUES),
    "filter.except_request_ids": Bound(most=MAX_IDS),
}

GENERATE = Shape.of(router_pb2.GenerateRequest.DESCRIPTOR, _OPTIONS)
STREAM_GENERATE = Shape.of(router_pb2.StreamGenerateRequest.DESCRIPTOR, _OPTIONS)
COUNT_TOKENS = Shape.of(router_pb2.CountTokensRequest.DESCRIPTOR, {"prompt": Bound(cut=True)})
LIST_MODELS = Shape.of(router_pb2.ListModelsRequest.DESCRIPTOR, {})
EMBED = Shape.of(router_pb2.EmbedRequest.DESCRIPTOR, {"texts": Bound(most=MAX_TEXTS, bytes=MAX_STRUCTURE_BYTES)})
STREAM_USAGE = Shape.of(router_pb2.StreamUsageRequest.DESCRIPTOR, _FILTER)
SUM_USAGE = Shape.of(router_pb2.SumUsageRequest.DESCRIPTOR, {**_FILTER, "group_by": Bound(most=16)})
