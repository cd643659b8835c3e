"""Every scheduler that can be simulated, by name."""

from collections.abc import Callable

from forebay.simulator.baselines import (
    Baseline,
    EngineWaiting,
    Fcfs,
    InFlight,
    InputDrr,
    LeastServed,
    PushAll,
    RoundRobin,
    Vtc,
)
from forebay.simulator.dispatcher import Dispatcher
from forebay.simulator.forebay_dispatcher import ForebayDispatcher
from forebay.simulator.scenarios import Scenario

ENGINE_MAY_QUEUE = 2
"""How many the engine has waiting at most for those that ask it: one to admit next, and one on its way."""

FOREBAY = "forebay"

SCHEDULERS: dict[str, Callable[[Scenario], Dispatcher]] = {
    "push-everything": lambda scenario: Baseline(Vtc(), PushAll(), scenario.setting.workers),
    "64-in-flight": lambda scenario: Baseline(Vtc(), InFlight(64), scenario.setting.workers),
    "fcfs": lambda scenario: Baseline(Fcfs(), EngineWaiting(ENGINE_MAY_QUEUE), scenario.setting.workers),
    "round-robin": lambda scenario: Baseline(RoundRobin(), EngineWaiting(ENGINE_MAY_QUEUE), scenario.setting.workers),
    "input-drr": lambda scenario: Baseline(InputDrr(), EngineWaiting(ENGINE_MAY_QUEUE), scenario.setting.workers),
    "least-served": lambda scenario: Baseline(LeastServed(), EngineWaiting(ENGINE_MAY_QUEUE), scenario.setting.workers),
    "vtc": lambda scenario: Baseline(Vtc(), EngineWaiting(ENGINE_MAY_QUEUE), scenario.setting.workers),
    FOREBAY: lambda scenario: ForebayDispatcher(scenario.setting.shape, scenario.setting.workers, scenario.standings),
}
