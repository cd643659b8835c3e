"""The scheduler's configuration: its defaults are the core's, and what cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from forebay.config import ConfigError
from forebay.scheduler.config import SchedulerConfig
from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.request import ServiceClass


def config(**values: Any) -> SchedulerConfig:
    return SchedulerConfig.model_validate({"id": "scheduler-1", **values})


def test_the_defaults_are_the_cores() -> None:
    assert config().limits() == Limits()


def test_a_file_names_pools_and_adapters(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.yaml"
    file.write_text("""
id: scheduler-1
room: {alpha: 0.9}
locality: {tenants: 3, slack_tenths: 50}
pressure: {shed_silver_from: 0.85, paced_s: 2}
pools:
  - {name: gold, lends: true}
  - {name: batch, room: {alpha: 0.8}, eviction: {enabled: false}}
adapters:
  - {name: acme-support, model: m, tenant: acme}
""")
    limits = SchedulerConfig.load(file).limits()
    assert (limits.pool.lends, limits.pools["gold"].lends, limits.pools["batch"].lends) == (False, True, False)
    assert (limits.pool.room.alpha, limits.pools["gold"].room.alpha, limits.pools["batch"].room.alpha) == (
        0.9,
        0.9,
        0.8,
    )
    assert limits.pools["batch"].eviction.patience_s(0.0) == float("inf")
    assert limits.pools["gold"].eviction == limits.pool.eviction == Limits().pool.eviction
    assert {(rules.near, rules.near_tenths) for rules in (limits.pool, *limits.pools.values())} == {(3, 50)}
    assert (limits.pressure.shed_from[ServiceClass.SILVER], limits.pressure.paced_s) == (0.85, 2.0)
    assert limits.adapters == {("m", "acme-support", "acme")}


@pytest.mark.parametrize(
    ("values", "about"),
    [
        ({"room": {"alpha": 1.5}}, "room.alpha"),
        ({"room": {"alpha": 0.4}}, "lowest_alpha, alpha and favoured_alpha"),
        ({"pressure": {"shed_bronze_from": 0.95}}, "measures must follow each other"),
        ({"eviction": {"margin": 0.5}}, "eviction.margin"),
        ({"pools": [{"name": "gold"}, {"name": "gold"}]}, "gold: a pool is named once"),
        ({"pools": [{"name": ""}]}, "pools.0.name"),
        ({"pools": [{"name": "gold", "lend": True}]}, "pools.0.lend"),
        ({"adapters": [{"name": "a", "model": "m"}]}, "adapters.0.tenant"),
        ({"listen": "0.0.0.0:7001", "redis_url": "redis://r:6379"}, "advertise must be given"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, values: dict[str, Any], about: str) -> None:
    file = tmp_path / "scheduler.yaml"
    file.write_text(yaml.safe_dump({"id": "scheduler-1", **values}))
    with pytest.raises(ConfigError, match=about.replace(".", r"\.")):
        SchedulerConfig.load(file)
