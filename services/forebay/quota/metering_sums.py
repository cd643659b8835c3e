"""The ledger's sums, asked for at metering."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice

import grpc

from forebay.api.metering.v1 import metering_pb2, metering_pb2_grpc
from forebay.quota.usage_sums import By, Used
from forebay.rpc.status import from_rpc_error

# Of the days at either end of a time metering reads the rows; nobody waits for it who has not the time.
CALL_S = 60.0
# As many as metering takes. Of a request beyond it, in a tenant that has no limits to be kept, its attempts count twice.
MAX_WITHOUT = 100_000

_DIMENSIONS = {
    By.TENANT: (),
    By.KEY: (metering_pb2.USAGE_DIMENSION_KEY,),
    By.MODEL: (metering_pb2.USAGE_DIMENSION_MODEL,),
}


class MeteringSums:
    """`UsageSums` over metering's rpc."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: metering_pb2_grpc.MeteringServiceAsyncStub = metering_pb2_grpc.MeteringServiceStub(channel)

    async def used(
        self,
        tenant_id: str,
        since_ms: int = 0,
        before_ms: int | None = None,
        *,
        by: By = By.TENANT,
        without: Collection[str] = (),
    ) -> Mapping[str, Used]:
        """Returns what a tenant used in attempts that ended in a time."""
        request = metering_pb2.SumUsageRequest(group_by=_DIMENSIONS[by])
        request.filter.tenant_ids.append(tenant_id)
        request.filter.except_request_ids.extend(islice(without, MAX_WITHOUT))
        request.filter.finished_from.FromMilliseconds(since_ms)
        if before_ms is not None:
            request.filter.finished_before.FromMilliseconds(before_ms)
        try:
            response = await self._stub.SumUsage(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return {
            "".join(total.group): Used(
                total.attempts, total.prompt_tokens + total.completion_tokens, total.cost_nano_usd
            )
            for total in response.totals
        }
