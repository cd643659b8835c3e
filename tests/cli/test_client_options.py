"""What the Python client refuses before anything is sent, and what its errors say."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.client import ForebayClient, Message
from forebay.client.messages import to_pb_options

from .conftest import KEY, ScriptedRouter


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_tokns": 5}, "'max_tokns' is no option of a request; did you mean 'max_tokens'?"),
        ({"Temperature": 1}, "'Temperature' is no option of a request; did you mean 'temperature'?"),
        ({"colour": "red"}, "'colour' is no option of a request; there are model, max_tokens, "),
        ({"max_tokens": "5"}, "max_tokens must be a whole number, not str"),
        ({"max_tokens": 5.0}, "max_tokens must be a whole number, not float"),
        ({"max_tokens": True}, "max_tokens must be a whole number, not bool"),
        ({"temperature": "hot"}, "temperature must be a number, not str"),
        ({"temperature": False}, "temperature must be a number, not bool"),
        ({"temperature": 1j}, "temperature must be a number, not complex"),
        ({"model": b"m"}, "model must be a string, not bytes"),
        ({"model": 7}, "model must be a string, not int"),
        ({"stop": 7}, "stop must be a list of strings, not int"),
        ({"stop": b"x"}, "stop must be a list of strings, not bytes"),
        ({"stop": ["a", 7]}, "each of stop must be a string, not int"),
        ({"stop_token_ids": "12"}, "stop_token_ids must be a list of whole numbers, not str"),
        ({"stop_token_ids": [1.5]}, "each of stop_token_ids must be a whole number, not float"),
        ({"ignore_eos": "no"}, "ignore_eos must be True or False, not str"),
        ({"labels": ["team"]}, "labels must be a dict of strings, not list"),
        ({"labels": {"team": 7}}, "each value of labels must be a string, not int"),
        ({"labels": {7: "team"}}, "each name of labels must be a string, not int"),
        ({"queue_timeout": "1s"}, "queue_timeout must be a number, not str"),
    ],
)
def test_an_unknown_option_or_a_wrong_type_is_a_type_error(options: Any, problem: str) -> None:
    with pytest.raises(TypeError) as caught:
        to_pb_options("hello", options)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number from 1 to 4,294,967,295, not 0"),
        ({"max_tokens": -1}, "max_tokens must be a whole number from 1 to 4,294,967,295, not -1"),
        ({"max_tokens": 2**32}, "max_tokens must be a whole number from 1 to 4,294,967,295, not 4294967296"),
        ({"min_tokens": -1}, "min_tokens must be a whole number from 0 to"),
        ({"seed": -1}, "seed must be a whole number from 0 to 18,446,744,073,709,551,615, not -1"),
        ({"seed": 10**22}, "seed must be a whole number from 0 to 18,446,744,073,709,551,615, not 1000"),
        (
            {"seed": 10**5000},
            "seed must be a whole number from 0 to 18,446,744,073,709,551,615, not a number of 5,001 digits",
        ),
        ({"temperature": float("nan")}, "temperature must be a finite number, not nan"),
        ({"temperature": float("inf")}, "temperature must be a finite number, not inf"),
        ({"temperature": 10**400}, "temperature must be a finite number, not a number of 401 digits"),
        ({"temperature": 2.1}, "temperature must be at least 0 and at most 2, not 2.1"),
        ({"temperature": -0.1}, "temperature must be at least 0 and at most 2, not -0.1"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0 and at most 2, not 0.0"),
        ({"model": "\ud83d"}, "model cannot be sent as UTF-8: the character at 0 is half of a pair"),
        ({"stop": ["a\udc00"]}, "each of stop cannot be sent as UTF-8"),
        ({"labels": {"a": "\udc00"}}, "each value of labels cannot be sent as UTF-8"),
        ({"stop_token_ids": [-1]}, "each of stop_token_ids must be a whole number from 0"),
        ({"queue_timeout": 0}, "queue_timeout must be above 0 and at most 31,536,000 seconds, not 0"),
        ({"queue_timeout": 1e300}, "queue_timeout must be above 0 and at most"),
    ],
)
def test_a_value_out_of_its_range_is_a_value_error(options: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=r"must|cannot") as caught:
        to_pb_options("hello", options)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("prompt", [None, 7, b"hello", {"role": "user"}, ["hello"], [{"role": "user", "content": "x"}]])
def test_a_prompt_is_a_string_or_messages(prompt: Any) -> None:
    with pytest.raises(TypeError, match=r"prompt must be a string or a list of Message\(role, content\), not "):
        to_pb_options(prompt, {})


def test_text_of_messages_is_checked() -> None:
    with pytest.raises(TypeError, match="content of a message must be a string, not None"):
        to_pb_options([Message("user", None)], {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="content of a message cannot be sent as UTF-8: the character at 3"):
        to_pb_options("abc\ud800", {})


def test_what_is_given_is_what_is_sent() -> None:
    sent = to_pb_options(
        "hello",
        {
            "model": "m", "max_tokens": 2**32 - 1, "seed": 2**64 - 1, "stop": "END", "stop_token_ids": [7], "top_k": 5,
            "top_p": 1, "temperature": 0, "labels": {"team": "a"}, "queue_timeout": 1.5, "ignore_eos": True, "adapter": None,
        },
    )  # fmt: skip
    sampling = sent.sampling
    assert (sampling.max_tokens, sampling.seed, list(sampling.stop)) == (2**32 - 1, 2**64 - 1, ["END"])
    assert (sampling.top_k, sampling.HasField("min_p"), sampling.ignore_eos) == (5, False, True)
    assert (sent.model, sent.adapter, dict(sent.labels)) == ("m", "", {"team": "a"})
    assert sent.queue_timeout.ToMilliseconds() == 1_500


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        (("127.0.0.1", KEY), {}, "address must be HOST:PORT, such as 127.0.0.1:20001, not '127.0.0.1'"),
        (("127.0.0.1:0", KEY), {}, "address must be HOST:PORT"),
        (("127.0.0.1:70000", KEY), {}, "address must be HOST:PORT"),
        (("", KEY), {}, "address must be HOST:PORT"),
        (("unix:", KEY), {}, "address must be HOST:PORT"),
        (
            ("https://mesh:443", KEY),
            {},
            "address must be HOST:PORT, such as 127.0.0.1:20001, without https://; TLS is asked for apart",
        ),
        (("http://mesh:80", KEY), {}, "address must be HOST:PORT, such as 127.0.0.1:20001, without http://"),
        ((None, KEY), {}, "address must be a string, not None"),
        (("127.0.0.1:1", None), {}, "key must be a string, not None"),
        (("127.0.0.1:1", KEY), {"timeout": 0}, "timeout must be above 0"),
        (("127.0.0.1:1", KEY), {"timeout": None}, "timeout must be a number, not None"),
        (("127.0.0.1:1", KEY), {"timeout": 1e300}, "timeout must be above 0 and at most 31,536,000 seconds"),
        (("127.0.0.1:1", KEY), {"connect_timeout": -1}, "connect_timeout must be above 0"),
        (("127.0.0.1:1", KEY), {"tls": "yes"}, "tls must be True, False or a Tls(...), not str"),
    ],
)
async def test_a_client_that_cannot_be_made(arguments: Any, options: Any, problem: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ForebayClient(*arguments, **options)
    assert str(caught.value).startswith(problem)


async def test_every_method_checks_before_it_sends(router: ScriptedRouter) -> None:
    async with ForebayClient(router.address, KEY) as client:
        calls: Any = client
        with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
            await calls.generate("hello", max_tokns=5)
        with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
            calls.stream("hello", max_tokns=5)
        with pytest.raises(TypeError, match="model must be a string"):
            await calls.count_tokens("hello", model=7)
        with pytest.raises(TypeError, match="cursor must be a string"):
            await anext(calls.usage(7))
        with pytest.raises(TypeError, match="request_ids must be a list of strings"):
            await anext(calls.usage(request_ids=7))
        with pytest.raises(TypeError, match="by must be a list of strings"):
            await calls.sum_usage(7)
        with pytest.raises(ValueError, match="each dimension can be named once"):
            await calls.sum_usage(["model", "model"])
        assert await client.sum_usage("model")
    assert router.options is None
