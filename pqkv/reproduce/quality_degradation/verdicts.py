"""Whether a measure tells a faulty backend from a sound one, and whether there was damage to tell: from one record.

A figure of some windows stands for others within an interval only. Where all of the interval lies beyond a bound the
measure has seen the fault, where none of it does it has not, else it is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pqkv.quality.summary import bootstrap
from pqkv.record import Record

# of a position's largest logit. Part d holds float32 to float64, and finds a hundredth of it
LOGIT_TOLERANCE = 1e-4
# what the report's test of the softmax sum notices: allclose(sum, 1, atol=1e-5), whose rtol of 1e-5 comes on top
REPORTED_MASS = 2e-5
# fewer windows have no interval: two figures, drawn with replacement, come to one of three means
FEWEST_WINDOWS = 4
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure, and between which bounds its gap to a sound cell may lie: outside them it has seen a fault.

    The gap is the difference; that of a ratio is the quotient less 1. `counted` are figures that nothing is inferred
    from: a largest error, or answers to the same questions.
    """

    metric: str
    label: str
    rule: str
    lowest: float = -math.inf
    highest: float = math.inf
    ratio: bool = False
    counted: bool = False


# A point of agreement and a hundredth of perplexity are what is quoted as no loss of quality; 0.001 nats is less than
# the codes of 4 bits cost (0.0015 to 0.003) and far more than rounding does (4e-8); a largest error of the
# log-sum-exp of 0.001 is a thousandth of the mass, of which float32 is off by 1e-5
MEASURES: tuple[Measure, ...] = (
    Measure("perplexity_ratio", "perplexity", "off by over 1%", -0.01, 0.01, ratio=True),
    Measure("agreement_at_1", "top-1", "over 1 point lost", lowest=-0.01),
    Measure("agreement_at_5", "top-5", "over 1 point lost", lowest=-0.01),
    Measure("agreement_at_10", "top-10", "over 1 point lost", lowest=-0.01),
    Measure("kld_mean", "KLD", "over 0.001 nats more", highest=1e-3),
    Measure("recall", "recall", "an answer lost", lowest=0, counted=True),
    Measure("softmax_mass_error", "softmax sum", "off by over 2e-5", highest=REPORTED_MASS, counted=True),
    Measure("lse_mass_error", "log-sum-exp", "off by over 0.001", highest=1e-3, counted=True),
)
BY_METRIC = {measure.metric: measure for measure in MEASURES}
# what a figure is where nothing is lost, which is what exact pages without a fault come to; agreement is 1
_SOUND = {"kld_mean": 0.0, "softmax_mass_error": 0.0, "lse_mass_error": 0.0}
_OF_THE_BACKEND = ("softmax_mass_error", "lse_mass_error")  # whatever it attends to: codes too


def taken(measure: Measure, record: Record, twin: Record | None) -> bool:
    """Whether there is a figure and something to hold it to: the exact cache, or for codes `twin`, the same codes
    without a fault.
    """
    return measure.metric in record.metrics and not (record.config["bits"] and twin is None)


def sees(measure: Measure, record: Record, twin: Record | None = None, comparisons: int = 1) -> bool | None:
    """Whether the measure tells this cell, of which it was `taken`, from a sound one; None where it is not known. What
    is no number always does. `comparisons` are the cells that one verdict rests on.
    """
    if record.metrics[measure.metric].value is None:
        return True
    low, high = gap(measure, record, twin, comparisons)
    if low > measure.highest or high < measure.lowest:
        return True
    return False if measure.lowest <= low and high <= measure.highest else None


def gap(measure: Measure, record: Record, twin: Record | None, comparisons: int) -> Interval:
    """The interval of the gap between a cell and a sound one.

    KLD and perplexity have their windows: paired resamples. Agreement has the interval of its record, widened as a
    normal one is by the correction, and beside a twin that of two which are not paired: too wide, never too narrow.
    Fewer than `FEWEST_WINDOWS` have to say the same one by one: what holds them all stands for the interval.
    """
    name = measure.metric
    if measure.counted:
        value = _value(record, name) - (0.0 if name in _OF_THE_BACKEND else _sound_value(measure, record, twin))
        return value, value
    if twin is not None and twin.digest == record.digest:  # codes without a fault are what they are held to
        return 0.0, 0.0
    by_window = _by_window(name, record)
    if by_window is not None:
        beside = None if twin is None else _by_window(name, twin)
        paired = beside is not None and len(beside) == len(by_window)
        low, high = mean_interval(by_window - beside if paired else by_window, comparisons)
        if paired or twin is None:
            return (math.expm1(low), math.expm1(high)) if measure.ratio else (low, high)
    low, high = _widened(record, name, comparisons)
    floor, top = (_sound_value(measure, record, None),) * 2 if twin is None else _widened(twin, name, comparisons)
    return (low / top - 1, high / floor - 1) if measure.ratio else (low - top, high - floor)


def mean_interval(values: np.ndarray, comparisons: int) -> Interval:
    """Of a mean over windows; of fewer than `FEWEST_WINDOWS`, from the least to the largest of them."""
    if len(values) < FEWEST_WINDOWS:
        return float(values.min()), float(values.max())
    low, high = bootstrap([values], lambda x: x.mean(-1), seed=0, comparisons=comparisons)
    assert low is not None
    assert high is not None
    return low, high


def few(records: Sequence[Record]) -> bool:
    """Whether some have too few windows for a verdict on what others would say."""
    return any(record.config["windows"] < FEWEST_WINDOWS for record in records)


def damaged(record: Record, comparisons: int = 1) -> bool | None:
    """Whether a cell on exact pages changed what the model says, by more than rounding: by its logits, whatever any
    measure of quality makes of that; by the KLD where a record is older than the error of logits. None: not known.
    """
    if not finite(record):
        return True
    if by_logits(record):
        return _value(record, "logit_error") > LOGIT_TOLERANCE
    return sees(BY_METRIC["kld_mean"], record, comparisons=comparisons)


def by_logits(record: Record) -> bool:
    """Whether a record holds the error of its logits."""
    return "logit_error" in record.metrics


def finite(record: Record) -> bool:
    """Whether every figure of a record is a number."""
    return all(metric.value is not None for metric in record.metrics.values())


def _by_window(name: str, record: Record) -> np.ndarray | None:
    """What the mean is of; of perplexity the logarithms of its ratio to that of the exact cache."""
    wanted = ("nll", "nll_exact") if name == "perplexity_ratio" else (name,)
    found = [np.array(record.samples[one]) for one in wanted if one in record.samples]
    return None if len(found) < len(wanted) else found[0] - found[1] if len(found) == 2 else found[0]


def _widened(record: Record, name: str, comparisons: int) -> Interval:
    metric, value = record.metrics[name], _value(record, name)
    if metric.low is None or metric.high is None:
        return value, value
    wider = NormalDist().inv_cdf(1 - 0.025 / comparisons) / NormalDist().inv_cdf(0.975)
    # percentiles of two or three windows are the windows themselves
    wider = 1.0 if record.config["windows"] < FEWEST_WINDOWS else wider
    return value - wider * (value - metric.low), value + wider * (metric.high - value)


def _sound_value(measure: Measure, record: Record, twin: Record | None) -> float:
    if twin is not None:
        return _value(twin, measure.metric)
    return _value(record, "recall_exact") if measure.metric == "recall" else _SOUND.get(measure.metric, 1.0)


def _value(record: Record, name: str) -> float:
    value = record.metrics[name].value
    return math.inf if value is None else value
