"""What an engine step costs: an affine model, fitted to measurements.

    step = fixed + per_sequence · sequences + per_context_token · context + per_prefill_token · prefill

The same form divides a measured step among its requests later (DESIGN section 6); here it drives the simulated engine.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepCost:
    """Coefficients of the model, all in seconds."""

    fixed: float
    per_sequence: float  # for each sequence that decodes
    per_context_token: float  # for each token that a decoding sequence attends to
    per_prefill_token: float

    def seconds(self, sequences: int, context_tokens: int, prefill_tokens: int) -> float:
        """Returns the time of one step that decodes `sequences` over `context_tokens` in all, and prefills."""
        return (
            self.fixed
            + self.per_sequence * sequences
            + self.per_context_token * context_tokens
            + self.per_prefill_token * prefill_tokens
        )


# An 8-billion-parameter model on one A10G.
A10G = StepCost(fixed=15.29e-3, per_sequence=0.254e-3, per_context_token=2.155e-6, per_prefill_token=0.210e-3)
FREE = StepCost(fixed=0.0, per_sequence=0.0, per_context_token=0.0, per_prefill_token=0.0)
