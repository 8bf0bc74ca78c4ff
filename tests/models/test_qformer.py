"""The Q-Former: number format and configuration."""

from __future__ import annotations

import pytest
import torch

from minigpt4.common.errors import ConfigError
from minigpt4.models.loading import build_model
from tests.models.parity import CPU, Case, build_with, model_config


def test_ln_vision_is_never_rounded(parity_a: Case) -> None:
    model = build_model(model_config(parity_a.folder), CPU, torch.bfloat16)
    assert model.qformer is not None
    assert torch.equal(model.qformer.ln_vision.weight, parity_a.model.qformer.ln_vision.weight)
    assert {tensor.dtype for tensor in model.qformer.bert.parameters()} == {torch.bfloat16}


def test_an_unknown_field_of_the_configuration(parity_a: Case) -> None:
    with pytest.raises(ConfigError, match="has no field 'hiden_size'"):
        build_with(parity_a, q_former_args={"hiden_size": 48})
