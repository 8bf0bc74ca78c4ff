"""The Q-Former: number format and configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minigpt4.common.errors import ConfigError
from minigpt4.models.loading import build_model
from minigpt4.models.qformer import query_width
from tests.models.parity import CPU, Case, build_with, model_config


def test_ln_vision_is_never_rounded(parity_a: Case) -> None:
    model = build_model(model_config(parity_a.folder), CPU, torch.bfloat16)
    assert model.bridge is not None
    assert torch.equal(model.bridge.ln_vision.weight, parity_a.model.bridge.ln_vision.weight)
    assert {tensor.dtype for tensor in model.bridge.bert.parameters()} == {torch.bfloat16}


def test_an_unknown_field_of_the_configuration(parity_a: Case) -> None:
    with pytest.raises(ConfigError, match="has no field 'hiden_size'"):
        build_with(parity_a, q_former_args={"hiden_size": 48})


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -48},
        {"hidden_size": None},
        {"hidden_size": 47},
        {"num_attention_heads": 0},
        {"num_attention_heads": "four"},
        {"num_hidden_layers": [2]},
        {"cross_attention_frequency": 0},
        {"intermediate_size": -1},
        {"hidden_act": "no such function"},
        {"encoder_hidden_size": 3},
    ],
)
def test_values_that_transformers_cannot_take(parity_a: Case, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.q_former_args: no Q-Former can be built") as caught:
        build_with(parity_a, q_former_args=model_config(parity_a.folder).q_former_args | options)
    assert "\n" not in str(caught.value)


def test_a_width_is_refused_where_only_the_language_model_is_built() -> None:
    with pytest.raises(ConfigError, match=r"model\.q_former_args"):
        query_width({"hidden_size": "wide"})
