"""The settings of a training, the presets, and the learning rate at each step."""

import math
from dataclasses import asdict

import pytest

from dcae_lib import TrainConfig
from dcae_lib.config import PRESETS, learning_rate

REFUSED = [
    (dict(epochs=0), "epochs must be a whole number, 1 or more and below 2⁶³, got 0"),
    (dict(batch_size=32.0), "batch_size must be a whole number, 1 or more and below 2⁶³, got 32.0"),
    (dict(seed=2**63), "seed must be a whole number, 0 or more and below 2⁶³, got 9223372036854775808"),
    (dict(lr=math.nan), "lr must be above 0"),
    (dict(warmup=1.1), r"warmup in \[0, 1\], got 0.01 and 1.1"),
    (dict(optimizer="adamw"), "must be SOAP or a name in torch.optim, got 'adamw'"),
    (dict(optimizer="lr_scheduler"), "must be SOAP or a name in torch.optim"),  # a module
    (dict(schedule="linear"), "schedule must be one of cosine, constant, got 'linear'"),
    (dict(precision="float16"), "precision must be one of float32, bfloat16, got 'float16'"),
]


@pytest.mark.parametrize("changes, message", REFUSED)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_preset_document_is_the_recipe_of_notebook_05():
    document = TrainConfig.preset("document")
    assert (document.optimizer, document.lr, document.batch_size, document.epochs) == ("SOAP", 5e-4, 512, 40)
    assert document.optimizer_args == dict(betas=(0.95, 0.95), weight_decay=0.01, precondition_frequency=10)
    assert document.model == dict(dropout=0.01, stage_dropout=0.05, groups=32)
    rate = learning_rate(document, 40 * 98)
    assert {rate(step) for step in range(40 * 98)} == {5e-4}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_takes_changes_and_shares_no_dict(name):
    preset = asdict(TrainConfig.preset(name))
    TrainConfig.preset(name).model["groups"] = 7
    changed = TrainConfig.preset(name, seed=3, model=dict(channels=[16, 32, 64]))
    assert asdict(changed) == preset | dict(seed=3, model=preset["model"] | dict(channels=[16, 32, 64]))


def test_learning_rate_rises_then_falls_on_a_cosine():
    rate = learning_rate(TrainConfig(lr=0.1, warmup=0.25), 20)
    assert [rate(step) for step in range(5)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    cosine = [0.05 * (1 + math.cos(math.pi * k / 15)) for k in range(15)]
    assert [rate(step) for step in range(5, 20)] == pytest.approx(cosine)


def test_constant_learning_rate_stays_after_the_warm_up():
    rate = learning_rate(TrainConfig(lr=0.3, warmup=0.25, schedule="constant"), 8)
    assert [rate(step) for step in range(8)] == [0.15] + 7 * [0.3]


@pytest.mark.parametrize("steps, warmup", [(1, 0.0), (1, 1.0), (7, 0.0), (7, 1.0), (100, 0.05)])
def test_learning_rate_is_never_0_and_reaches_its_peak(steps, warmup):
    rates = [learning_rate(TrainConfig(lr=0.3, warmup=warmup), steps)(step) for step in range(steps)]
    assert all(0 < rate <= 0.3 for rate in rates) and max(rates) == 0.3
