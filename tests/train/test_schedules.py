"""Every learning-rate schedule equals transformers' schedule of the same name."""

import numpy as np
import pytest

from qa_flax.train.schedules import SCHEDULES, make_schedule

RATE, TOTAL = 3e-4, 40
FORMULA_KWARGS = {
    "cosine": [{}, {"num_cycles": 1.5}],
    "cosine_with_restarts": [{}, {"num_cycles": 3}],
    "polynomial": [{}, {"lr_end": 1e-5, "power": 2.0}],
    "inverse_sqrt": [{}, {"timescale": 5}],
    "cosine_with_min_lr": [{"min_lr": 1e-5}, {"min_lr_rate": 0.2, "num_cycles": 1.0}],
    "cosine_warmup_with_min_lr": [
        {"min_lr": 1e-5},
        {"min_lr_rate": 0.2, "warmup_lr_rate": 0.3, "num_cycles": 1.0},
    ],
    "warmup_stable_decay": [
        {"num_decay_steps": 10},
        {"num_decay_steps": 12, "decay_type": "1-sqrt", "warmup_type": "1-sqrt"},
        {"num_decay_steps": 9, "decay_type": "linear", "warmup_type": "cosine"},
        {"num_decay_steps": 9, "num_stable_steps": 5, "min_lr_ratio": 0.1, "num_cycles": 1.0},
    ],
}
METRIC_KWARGS = {
    "reduce_lr_on_plateau": [
        {"patience": 1},
        {"patience": 0, "factor": 0.5, "cooldown": 2, "min_lr": 2e-5, "mode": "max"},
        {"patience": 1, "factor": 0.3, "threshold": 0.05, "threshold_mode": "abs"},
        {"patience": 1, "factor": 0.3, "threshold": 0.05, "mode": "max"},
    ],
    "greedy": [
        {"patience": 1, "min_lr": 1e-6},
        {"patience": 0, "factor": 0.5, "cooldown": 1, "warmup": 2, "min_lr": 1e-5, "max_lr": 1e-2},
        {"patience": 0, "factor": 0.2, "min_lr": 1e-5, "reset_start": 2, "mode": "max"},
        {"patience": 1, "min_lr": 1e-6, "smooth": True, "window_size": 3, "threshold_mode": "rel"},
    ],
}


def transformers_schedule(kind, warmup, kwargs):
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=RATE)
    counts = {"num_warmup_steps": warmup, "num_training_steps": TOTAL}
    return optimizer, get_scheduler(kind, optimizer, **counts, scheduler_specific_kwargs=kwargs)


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (kind, k)
        for kind in SCHEDULES
        if kind not in METRIC_KWARGS
        for k in FORMULA_KWARGS.get(kind, [{}])
    ],
)
def test_formulas_equal_those_of_transformers(kind, kwargs, warmup):
    optimizer, scheduler = transformers_schedule(kind, warmup, kwargs)
    schedule = make_schedule(kind, RATE, warmup, TOTAL, kwargs)
    for step in range(TOTAL):
        rate = schedule.rate(step)
        np.testing.assert_allclose(rate, scheduler.get_last_lr()[0], rtol=1e-12, atol=1e-18)
        assert schedule.get_last_lr() == [rate]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("kind", "kwargs"), [(k, kwargs) for k, v in METRIC_KWARGS.items() for kwargs in v]
)
def test_metric_schedules_equal_those_of_transformers(rng, kind, kwargs):
    """Also with NaN metrics, and when the state is saved and loaded every 50 evaluations."""
    optimizer, scheduler = transformers_schedule(kind, 0, dict(kwargs))
    schedule = make_schedule(kind, RATE, 0, TOTAL, kwargs)
    rates = set()
    metrics = np.round(rng.normal(3.0, 1.0, 300) + np.sin(np.arange(300) / 20), 1)
    if "smooth" not in kwargs:  # with smoothing, transformers' average stays NaN
        metrics[[20, 150]] = np.nan
    for step, metric in enumerate(metrics.tolist()):
        np.testing.assert_allclose(schedule.rate(step), optimizer.param_groups[0]["lr"], rtol=1e-12)
        rates.add(schedule.rate(step))
        schedule.observe(metric)
        scheduler.step(metric)
        if step % 50 == 49:
            state, schedule = schedule.state_dict(), make_schedule(kind, RATE, 0, TOTAL, kwargs)
            schedule.load_state_dict(state)
    assert len(rates) > 2


def test_greater_is_better_keeps_the_rate_while_the_metric_grows():
    schedule = make_schedule(
        "reduce_lr_on_plateau", RATE, 0, TOTAL, {"patience": 0}, greater_is_better=True
    )
    for metric in (10.0, 20.0, 30.0):
        schedule.observe(metric)
    assert schedule.rate(3) == RATE
    schedule.observe(5.0)
    assert schedule.rate(4) == pytest.approx(RATE / 10)


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("triangle", {}, r"lr_scheduler_type='triangle'.*linear, cosine"),
        ("cosine", {"num_cycle": 1}, r"'cosine' does not accept num_cycle; it accepts: num_cycles"),
        ("linear", {"power": 1}, "'linear' does not accept power; it accepts: none"),
        ("warmup_stable_decay", {}, "needs num_decay_steps"),
        ("warmup_stable_decay", {"num_decay_steps": 3, "decay_type": "x"}, "decay_type is 'x'"),
        ("cosine_with_min_lr", {}, "set exactly one of min_lr and min_lr_rate"),
        ("polynomial", {"lr_end": 1.0}, "lr_end is 1.0; it must be below"),
        ("greedy", {"factor": 1.0}, "factor is 1.0; it must be below 1"),
        ("reduce_lr_on_plateau", {"mode": "up"}, "mode is 'up'; it must be min or max"),
    ],
)
def test_invalid_kwargs_are_refused_by_name(kind, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(kind, RATE, 0, TOTAL, kwargs)
