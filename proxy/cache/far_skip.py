"""The far-skip policy: skips the look-up in far (Redis) while it is slower than the model. Pure.

Measurements and clock are given. A look-up that takes longer than the model only delays the answer. It is skipped while
far's mean is above a fixed limit and more than twice the model's. The model's time includes its queue: if the extra
requests slow the model down, far is used again. Twice a second one look-up is made anyway, to notice a recovery.
"""

from __future__ import annotations

SLOW_SECONDS = 0.02
"""A far tier faster than this is always used: it saves the model work, however fast the model is."""
TIMES = 2.0
LEAST_LOOKS = 8
TRY_SECONDS = 0.5
UP, DOWN = 0.2, 0.7
"""Weight of a reading that is above and below the mean: slow to give far up, quick to take it back."""


class FarSkipPolicy:
    """The measurements and the decision of one worker."""

    def __init__(self) -> None:
        self._far = 0.0
        self._looks = 0
        self._models: dict[str, float] = {}
        self._tried = 0.0

    def far_took(self, seconds: float) -> None:
        self._looks += 1
        self._far += (seconds - self._far) * (UP if seconds > self._far else DOWN)

    def model_took(self, model: str, seconds: float) -> None:
        mean = self._models.get(model, seconds)
        self._models[model] = mean + (seconds - mean) * UP

    def model_failed(self, model: str) -> None:
        """Nothing is known of a model that does not answer: far may be all there is."""
        self._models.pop(model, None)

    def skips(self, model: str, now: float) -> bool:
        """Whether to go straight to the model. `now` in seconds."""
        mean = self._models.get(model)
        if mean is None or self._looks < LEAST_LOOKS or self._far < max(SLOW_SECONDS, TIMES * mean):
            return False
        if now - self._tried >= TRY_SECONDS:
            self._tried = now
            return False
        return True
