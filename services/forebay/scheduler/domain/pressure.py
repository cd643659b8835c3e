"""What gives way when too much waits, and in which order.

Pressure is how full the scheduler's queue is. As it grows, the measures are, each in force from its threshold on:

1. pace: a tenant that has more than its part of what waits is made to wait a moment before each further request counts;
2. shorten: max_tokens is lowered to what the client said would do;
3. shed bronze, then silver; gold is turned away only when the queue is full.

Each measure that a request met is told with its grant or its refusal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from forebay.scheduler.domain.request import ServiceClass


@dataclass(frozen=True, slots=True)
class PressureRules:
    """From which part of the queue's limit on each measure is taken, 0 to 1.

    Attributes:
        paced_s: how long a paced request waits before it counts.
    """

    pace_from: float = 0.5
    shorten_from: float = 0.7
    shed_from: Mapping[ServiceClass, float] = field(
        default_factory=lambda: {ServiceClass.BRONZE: 0.8, ServiceClass.SILVER: 0.9, ServiceClass.GOLD: 1.0}
    )
    paced_s: float = 1.0

    def paces(self, pressure: float, part: float, tenants: int) -> bool:
        """Whether a tenant that has `part` of what waits is paced, when so many tenants wait."""
        return pressure >= self.pace_from and tenants > 1 and part > 1 / tenants

    def shortens(self, pressure: float) -> bool:
        """Whether max_tokens is lowered where that is allowed."""
        return pressure >= self.shorten_from

    def sheds(self, pressure: float, service_class: ServiceClass) -> bool:
        """Whether a new request of the class is turned away."""
        return pressure >= self.shed_from[service_class]
