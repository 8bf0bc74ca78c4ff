"""The schedules against the original implementation's tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minigpt4.common.registry import schedules
from minigpt4.common.schema import RunConfig
from minigpt4.runners.optim import LrSettings, Plan, linear_warmup_cosine_lr, linear_warmup_step_lr, warn_of_long_warmup

TABLES = Path(__file__).parents[1] / "fixtures" / "lr_schedule.npz"
FLICKR = LrSettings.of(RunConfig(), steps_per_epoch=500)
LONG_WARMUP = LrSettings(
    init_lr=3e-5, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=250, total_steps=400, steps_per_epoch=100
)
NO_WARMUP_LR = LrSettings(
    init_lr=1e-4, min_lr=8e-5, warmup_lr=-1, warmup_steps=20, total_steps=200, steps_per_epoch=100
)
STEPS = LrSettings(
    init_lr=1e-4, min_lr=2e-5, warmup_lr=1e-6, warmup_steps=20, total_steps=200, steps_per_epoch=50, decay_rate=0.5
)


@pytest.mark.parametrize(
    ("table", "schedule", "settings"),
    [
        ("cosine", linear_warmup_cosine_lr, FLICKR),
        ("cosine_no_warmup_lr", linear_warmup_cosine_lr, NO_WARMUP_LR),
        ("step", linear_warmup_step_lr, STEPS),
    ],
)
def test_every_step_of_the_original_tables(table, schedule, settings) -> None:
    expected = np.load(TABLES)[table]
    rates = [schedule(step, settings) for step in range(settings.total_steps)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_warmup_longer_than_an_epoch_has_no_saw_tooth() -> None:
    """The original counted warm-up within the epoch: the tables agree in the first epoch and after warm-up."""
    expected = np.load(TABLES)["cosine_warmup_longer_than_epoch"]
    rates = np.array([linear_warmup_cosine_lr(step, LONG_WARMUP) for step in range(400)])
    np.testing.assert_allclose(rates[:100], expected[:100], rtol=1e-12)
    np.testing.assert_allclose(rates[250:], expected[250:], rtol=1e-12)
    assert (np.diff(rates[:250]) > 0).all()
    assert rates[100] > expected[100]


def test_key_values_of_the_flickr_recipe() -> None:
    assert linear_warmup_cosine_lr(0, FLICKR) == 1e-6
    assert linear_warmup_cosine_lr(100, FLICKR) == pytest.approx(1.55e-5)
    assert linear_warmup_cosine_lr(200, FLICKR) == pytest.approx(2.9685831611286e-05)
    assert linear_warmup_cosine_lr(1250, FLICKR) == pytest.approx(2e-5)
    assert linear_warmup_cosine_lr(2500, FLICKR) == pytest.approx(1e-5)


def test_schedules_are_found_by_name() -> None:
    assert schedules.get("linear_warmup_cosine_lr") is linear_warmup_cosine_lr
    assert schedules.get("linear_warmup_step_lr") is linear_warmup_step_lr


@pytest.mark.parametrize(("warmup_steps", "warned"), [(19, False), (20, True)])
def test_a_run_that_is_all_warmup_is_warned_of(
    warmup_steps: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan(max_epoch=2, steps_per_epoch=10, batch_size=1, accumulation=1, world_size=1)
    with caplog.at_level("WARNING"):
        warn_of_long_warmup(plan, RunConfig(warmup_steps=warmup_steps))
    assert ("never reaches 3e-05" in caplog.text) == warned
