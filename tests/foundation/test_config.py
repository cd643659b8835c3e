"""Configuration: file and environment, and every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import BaseModel, Field

from forebay.config import ConfigError, ServiceConfig, exposed


class Engine(BaseModel):
    kind: str = "simulated"
    seats: int = Field(8, ge=1)


class ExampleConfig(ServiceConfig):
    service: ClassVar[str] = "example"

    size: int = Field(3, ge=1, description="how large")
    engine: Engine = Engine()


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "example.yaml"
    file.write_text("id: example-1\nsize: 5\nengine: {kind: vllm, seats: 2}\n")
    monkeypatch.setenv("FOREBAY_EXAMPLE_SIZE", "7")
    monkeypatch.setenv("FOREBAY_EXAMPLE_ENGINE__SEATS", "4")
    config = ExampleConfig.load(file)
    assert (config.id, config.size, config.engine) == ("example-1", 7, Engine(kind="vllm", seats=4))


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "example.yaml"
    file.write_text("id: Example One\nsize: 0\nlisten: nowhere\nsieze: 4\n")
    with pytest.raises(ConfigError) as caught:
        ExampleConfig.load(file)
    message = str(caught.value)
    assert str(file) in message
    assert all(f"  {field}: " in message for field in ("id", "size", "listen", "sieze"))


@pytest.mark.parametrize(
    "text",
    [
        "- a list",
        "a: b: c",
        "a: 2026-13-45",
        "a: !!bool x",
        "a: !!timestamp x",
        pytest.param("a: " + "[" * 1_000, id="deep"),
        None,
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "example.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=r"example\.yaml"):
        ExampleConfig.load(file)


def test_help_explains_each_field() -> None:
    lines = ExampleConfig.explain_fields().splitlines()
    assert "  size: how large (default 3)" in lines
    assert any(line.startswith("  id: this replica's name") for line in lines)
    assert "  tls: mutual TLS with the other services; none is for development alone (default none)" in lines
    assert any(line.startswith("    certificate") for line in lines), "what a field is made of stands below it"


def problems(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "example.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        ExampleConfig.load(file)
    return [line.strip().replace(str(file), "FILE") for line in str(caught.value).splitlines()]


def test_each_problem_names_its_line_in_plain_words(tmp_path: Path) -> None:
    assert problems(
        tmp_path,
        "id: Example One\n"
        "size: none\n"
        "sieze: 4\n"
        "engine:\n"
        "  seats: 0\n"
        "log_level: loud\n"
        "tls: {ca_file: /nowhere/ca.pem}\n"
        "drain_s: 4000\n"
        "channelz: perhaps\n"
        "listen: 5\n",
    ) == [
        "11 problems in the configuration of example:",
        "id: must be 1 to 63 of a-z, 0-9 and -, with a letter or a digit at either end (FILE:1)",
        "listen: must be a text; put it in quotes if it is one (FILE:10)",
        "log_level: must be debug, info, warning or error (FILE:6)",
        "drain_s: must be at most 3,600 (FILE:8)",
        "tls.ca_file: there is no such file (FILE:7)",
        "tls.certificate_file: must be given (FILE:7)",
        "tls.key_file: must be given (FILE:7)",
        "channelz: must be true or false (FILE:9)",
        "size: must be a whole number (FILE:2)",
        "engine.seats: must be at least 1 (FILE:5)",
        "sieze: there is no such field; did you mean size? (FILE:3)",
    ]


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("FOREBAY_EXAMPLE_SIZE", "0", "size: must be at least 1 (FOREBAY_EXAMPLE_SIZE)"),
        ("forebay_example_size", "many", "size: must be a whole number (FOREBAY_EXAMPLE_SIZE)"),
        ("FOREBAY_EXAMPLE_ENGINE__SEATS", "0", "engine.seats: must be at least 1 (FOREBAY_EXAMPLE_ENGINE__SEATS)"),
        ("FOREBAY_EXAMPLE_ENGINE", "{", "engine: must be JSON, such as [] or {} (FOREBAY_EXAMPLE_ENGINE)"),
        ("FOREBAY_EXAMPLE_ENGINE", '{"seats": 0}', "engine.seats: must be at least 1 (FOREBAY_EXAMPLE_ENGINE)"),
        (
            "FOREBAY_EXAMPLE_SIEZE",
            "4",
            "FOREBAY_EXAMPLE_SIEZE: there is no such variable; did you mean FOREBAY_EXAMPLE_SIZE?",
        ),
        (
            "FOREBAY_EXMPLE_SIZE",
            "4",
            "FOREBAY_EXMPLE_SIZE: there is no such variable; did you mean FOREBAY_EXAMPLE_SIZE?",
        ),
        ("FOREBAY_DTAA", "x", "FOREBAY_DTAA: there is no such variable; did you mean FOREBAY_DATA?"),
    ],
)
def test_a_variable_that_is_wrong_or_unknown_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert problems(tmp_path, "id: example-1\nsize: 3\n") == ["1 problem in the configuration of example:", problem]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FOREBAY_DATA", "/somewhere"),
        ("FOREBAY_KEY", "fb_x"),
        ("FOREBAY_TEST_MODEL", "x"),
        ("FOREBAY_ROUTER_LISTEN", "another service's"),
        ("FOREBAY_EXAMPLE_SERVICE_HOST", "10.0.0.1"),
        ("FOREBAY_EXAMPLE_SERVICE_PORT_GRPC", "7001"),
        ("FOREBAY_EXAMPLE_PORT", "tcp://10.0.0.1:7001"),
        ("FOREBAY_EXAMPLE_PORT_7001_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_variables_of_others_are_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    file = tmp_path / "example.yaml"
    file.write_text("id: example-1\n")
    assert ExampleConfig.load(file).size == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id: e\nsize: 3\nsize: 4\n", "FILE:2: size: is given a second time, on line 3"),
        ("id: e\nsize: 010\n", "FILE:2: size: 010 begins with 0, which makes it octal for some readers"),
        ("id: e\ndrain_s: 1:30\n", "FILE:2: drain_s: 1:30 counts in sixties for some readers"),
        ("id: e\n  size: 3\n", "FILE:2: is not YAML: look here for a wrong indent"),
        ("id: e\n_env_prefix: OTHER_\n", "_env_prefix: there is no such field (FILE:2)"),
    ],
)
def test_what_a_file_says_in_two_ways_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    assert any(line.startswith(problem) for line in problems(tmp_path, text))


@pytest.mark.parametrize("text", ["id: e\ndrain_seconds: 7\n", "id: e\ndrain_s: 7\n"])
def test_a_field_is_known_by_its_old_name_as_well(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(text)
    assert ExampleConfig.load(file).drain_s == 7
    monkeypatch.setenv("FOREBAY_EXAMPLE_DRAIN_SECONDS", "8")
    assert ExampleConfig.load(file).drain_s == 8
    monkeypatch.setenv("FOREBAY_EXAMPLE_DRAIN_S", "9")
    assert ExampleConfig.load(file).drain_s == 9


@pytest.mark.parametrize(
    ("listen", "reached"),
    [
        ("127.0.0.1:1", False),
        ("127.9.9.9:1", False),
        ("[::1]:1", False),
        ("localhost:1", False),
        ("[::ffff:127.0.0.1]:1", False),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("*:1", True),
        ("10.0.0.1:1", True),
        ("quota.example:1", True),
        ("[fe80::1%eth0]:1", True),
    ],
)
def test_an_internal_port_without_tls_is_for_this_machine_unless_it_is_said_otherwise(
    tmp_path: Path, listen: str, reached: bool
) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(f'id: example-1\nlisten: "{listen}"\n')
    assert exposed(listen) is reached
    if not reached:
        assert ExampleConfig.load(file).warnings() == []
        return
    with pytest.raises(ConfigError, match=r"allow_plaintext: true.*example\.yaml:2"):
        ExampleConfig.load(file)
    file.write_text(file.read_text() + "allow_plaintext: true\n")
    (warning,) = ExampleConfig.load(file).warnings()
    assert f"{listen} is served without TLS" in warning


def test_every_kind_of_problem_has_words_of_our_own(tmp_path: Path) -> None:
    """The library's own wording never reaches an operator, whatever is wrong with whichever field."""
    for value in ("[]", "{a: b}", "null", "1.5", "-1", "'x'", ".nan", "1e400", "2026-01-01", "[[1]]", "true"):
        for field in [*ExampleConfig.model_fields, "engine.seats", "tls.ca_file"]:
            outer, _, inner = field.partition(".")
            text = f"{outer}: {{{inner}: {value}}}\n" if inner else f"{outer}: {value}\n"
            file = tmp_path / "example.yaml"
            file.write_text(text if outer == "id" else "id: example-1\n" + text)
            said = ""
            try:
                ExampleConfig.load(file)
            except ConfigError as error:
                said = str(error)
            assert not any(word in said for word in ("Input should", "Value error", "pydantic", "cannot be used"))
