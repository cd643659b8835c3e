"""What gRPC says of a broken connection, as errors that say what happened.

A router that refuses sends an error of its own, and that stays as it is. Here are the cases in which no router spoke.
"""

from __future__ import annotations

import grpc

from forebay.errors import Code, MeshError
from forebay.rpc.status import from_rpc_error

# A connection that is lost under a call shows as any of these.
_LOST = (Code.UNAVAILABLE, Code.UNKNOWN, Code.INTERNAL)

# Reasons of `unreachable` that do not pass by waiting.
FOR_GOOD = frozenset({"TLS_UNTRUSTED", "TLS_WRONG_NAME", "TLS_NOT_SPOKEN"})


def of_call(error: grpc.RpcError, address: str, timeout: float | None) -> MeshError:
    """Returns the error of a call that failed after a router was reached.

    Args:
        error: what gRPC raised.
        address: the router's.
        timeout: the call's deadline in seconds.
    """
    told = from_rpc_error(error)
    if not told.reason.startswith("GRPC_"):
        return told
    if told.code in _LOST:
        message = (
            f"the connection to the router at {address} broke off before the answer came ({told.message}); try again"
        )
        return _failure(Code.UNAVAILABLE, "CONNECTION_LOST", message, address)
    if told.code is Code.DEADLINE_EXCEEDED and timeout is not None:
        message = f"no whole answer came within the client's timeout of {timeout:g} s; give it more, or ask for less"
        return _failure(told.code, "TIMEOUT", message, address)
    if told.code is Code.UNIMPLEMENTED:
        message = f"what answers at {address} is no router of forebay, or one of another version; check the address"
        return _failure(told.code, "NOT_A_ROUTER", message, address)
    if told.code is Code.RESOURCE_EXHAUSTED:
        return _failure(told.code, "MESSAGE_TOO_LARGE", f"a message is too large: {told.message}; send less", address)
    return told


def of_stream(error: grpc.RpcError, address: str, timeout: float, request_id: str, tokens: int) -> MeshError:
    """Returns the error of an answer's stream that ended before the answer.

    Args:
        error: what gRPC raised.
        address: the router's.
        timeout: the call's deadline in seconds.
        request_id: the request's id; empty if the router had not admitted it yet.
        tokens: how many tokens of the answer had come.
    """
    told = of_call(error, address, timeout)
    return cut(address, request_id, tokens) if told.reason == "CONNECTION_LOST" else told


def cut(address: str, request_id: str, tokens: int) -> MeshError:
    """Returns the error of an answer that stops in the middle without a word; arguments as of `of_stream`."""
    where = f"the connection to the router at {address} broke off"
    if not request_id:
        message = (
            f"{where} before it had answered; try again. "
            "The request may have been admitted, and is then billed for what was generated"
        )
    else:
        count = "1 token" if tokens == 1 else f"{tokens:,} tokens"
        message = f"{where} after {count} of the answer. What was generated is billed; ask again for a whole answer"
    metadata = {"request_id": request_id, "tokens": str(tokens)}
    return _failure(Code.UNAVAILABLE, "STREAM_CUT", message, address, **metadata)


def unreachable(details: str, address: str, encrypted: bool) -> MeshError:
    """Returns why no router was reached.

    Args:
        details: what gRPC says of the last try to connect; empty if nothing.
        address: the router's.
        encrypted: whether the client spoke TLS.
    """
    if "CERTIFICATE_VERIFY_FAILED" in details:
        reason = "TLS_UNTRUSTED"
        message = (
            f"the certificate of what answers at {address} comes from no authority that is trusted here, or has expired; "
            "name its authority with tls=Tls(ca_file=...)"
        )
    elif "Hostname Verification" in details:
        reason = "TLS_WRONG_NAME"
        message = (
            f"the certificate of what answers at {address} is for another name; "
            "use that name in the address, or give it with tls=Tls(server_name=...)"
        )
    elif "handshake failed" in details:
        reason = "TLS_NOT_SPOKEN"
        message = (
            f"what answers at {address} does not speak TLS; "
            "give tls=False if the key may travel in plaintext, where others can read it"
        )
    elif not encrypted and ("Socket closed" in details or "SETTINGS" in details):
        reason = "TLS_EXPECTED"
        message = f"what answers at {address} takes no plaintext; give tls=True, or tls=Tls(ca_file=...)"
    elif "resolving" in details or "lookup" in details:
        reason, message = "NO_ROUTER", f"no machine is known by the name in {address}; check the address"
    else:
        reason, message = "NO_ROUTER", f"no router answers at {address}; is the mesh running there?"
    return _failure(Code.UNAVAILABLE, reason, message, address)


def _failure(code: Code, reason: str, message: str, address: str, **metadata: str) -> MeshError:
    return MeshError(code, reason, message, metadata={"address": address, **metadata})
