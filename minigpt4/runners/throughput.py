"""Work and seconds -> how fast a run is, and how near to what its devices can do."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt4.models.work import Work


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of all processes together.

    Attributes:
        samples_per_second: Trained on.
        tokens_per_second: Images included, padding not.
        padded_tokens_per_second: The same with padding.
        mfu: Model FLOP utilisation: operations a second over what a large matrix product reaches, measured.
    """

    samples_per_second: float
    tokens_per_second: float
    padded_tokens_per_second: float
    mfu: float

    @classmethod
    def of(cls, work: Work, seconds: float, peak: float) -> Throughput:
        """From work done in so many seconds.

        Args:
            work: Of all processes.
            seconds: It took.
            peak: FLOP/s of all devices.
        """
        seconds = max(seconds, 1e-9)
        return cls(
            work.samples / seconds, work.tokens / seconds, work.padded_tokens / seconds, work.flops / seconds / peak
        )

    def __str__(self) -> str:
        return "  ".join(
            [
                f"samples/s: {self.samples_per_second:.2f}",
                f"tokens/s: {self.tokens_per_second:.0f}",
                f"padded tokens/s: {self.padded_tokens_per_second:.0f}",
                f"mfu: {self.mfu:.3f}",
            ]
        )
