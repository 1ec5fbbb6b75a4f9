"""Fits delay models to a trace, and measures how well each model fits.

Lognormal: maximum likelihood. Pareto: maximum likelihood (Hill 1975, with the minimum as
threshold). Bimodal: a mixture of two normal distributions with equal variance on the logarithms, by
expectation-maximisation. Markov: the same mixture, in which neighbouring requests depend on each
other: the most likely path (Viterbi 1967) marks each request as slow or not, and the length and
share of slow periods are counted along the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from collage_mpi.errors import DataFault

LEAST = 20  # service times; fewer show no tail
_EM_STEPS = 500
_VITERBI_ROUNDS = 5

Cdf = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class FittedModel:
    """A delay model with the parameters that fit a trace best.

    Attributes:
        model: its name.
        settings: RunSettings field -> value, for a run that uses the model.
        ks: Kolmogorov-Smirnov distance between the distributions of model and trace, 0 to 1.
    """

    model: str
    settings: Mapping[str, float | str]
    ks: float

    def flags(self) -> str:
        """The flags for `run` or `simulate`."""
        return " ".join(
            f"--{name.replace('_', '-')} {value if isinstance(value, str) else f'{value:.4g}'}"
            for name, value in self.settings.items()
        )


def fit_trace(times_s: np.ndarray) -> list[FittedModel]:
    """Fit all models, and sort them by `ks`. Bimodal and markov are left out if the trace has no
    second mode.

    Args:
        times_s: (machines, requests) float64, seconds, positive.

    Raises:
        DataFault: there are fewer than LEAST times.
    """
    if times_s.size < LEAST:
        raise DataFault(f"{times_s.size} service times; a fit needs at least {LEAST}")
    fits = [fit_lognormal(times_s), fit_pareto(times_s)]
    mixture = fit_mixture(np.log(times_s.ravel()))
    if mixture is not None:
        fits += [fit_bimodal(times_s, mixture), *fit_markov(times_s, mixture)]
    return sorted(fits, key=lambda fit: fit.ks)


def fit_lognormal(times_s: np.ndarray) -> FittedModel:
    """Fit a lognormal distribution by the mean and standard deviation of the logarithms."""
    logs = np.log(times_s.ravel())
    median_s, sigma = math.exp(logs.mean()), float(logs.std())
    cdf = _normal_cdf(math.log(median_s), sigma)
    return _fitted(times_s, cdf, "lognormal", median_s, straggler_sigma=sigma)


def fit_pareto(times_s: np.ndarray) -> FittedModel:
    """Fit a Pareto distribution: the scale is the minimum, and the tail index is the reciprocal of
    the mean logarithm of the ratio to the minimum."""
    x = times_s.ravel()
    least = float(x.min())
    spread = float(np.log(x / least).mean())
    tail = min(1 / spread, 1000.0) if spread > 0 else 1000.0
    below = lambda t: 1 - (least / np.maximum(t, least)) ** tail  # noqa: E731
    return _fitted(x, below, "pareto", least * 2 ** (1 / tail), straggler_tail=tail)


@dataclass(frozen=True)
class Mixture:
    """A mixture of two normal distributions with equal variance, on the logarithms.

    Attributes:
        low, high: means.
        sigma: standard deviation of both.
        share: weight of the distribution with the mean `high`.
    """

    low: float
    high: float
    sigma: float
    share: float

    def log_odds(self, logs: np.ndarray) -> np.ndarray:
        """The logarithm of the density ratio of the high to the low mode, without the weights."""
        width = max(self.sigma, 1e-9)
        return ((logs - self.low) ** 2 - (logs - self.high) ** 2) / (2 * width**2)


def fit_mixture(logs: np.ndarray) -> Mixture | None:
    """The most likely mixture, from several starts; None if one normal distribution is as good, or
    the two modes are less than a standard deviation apart.

    Args:
        logs: (n,) float64, logarithms of service times.
    """
    best: tuple[float, Mixture] | None = None
    for split in (0.5, 0.75, 0.9, 0.97):
        found = _expectation_maximisation(logs, float(np.quantile(logs, split)))
        if found is not None and (best is None or found[0] > best[0]):
            best = found
    if best is None:
        return None
    mixture = best[1]
    one = _log_likelihood(logs, float(logs.mean()), float(logs.std()))
    # The Bayesian information criterion for two more parameters.
    worth = best[0] - one > math.log(len(logs))
    apart = mixture.high - mixture.low > mixture.sigma
    return mixture if worth and apart else None


def _expectation_maximisation(logs: np.ndarray, split: float) -> tuple[float, Mixture] | None:
    weight = (logs > split).astype(np.float64)  # (n,) probability of belonging to the high mode
    likelihood = -math.inf
    for _ in range(_EM_STEPS):
        share = float(weight.mean())
        if not 0.5 / len(logs) < share < 1 - 0.5 / len(logs):
            return None
        high = float((weight * logs).sum() / weight.sum())
        low = float(((1 - weight) * logs).sum() / (1 - weight).sum())
        scatter = weight * (logs - high) ** 2 + (1 - weight) * (logs - low) ** 2
        sigma = max(math.sqrt(scatter.mean()), 1e-6)
        up = math.log(share) - ((logs - high) / sigma) ** 2 / 2
        down = math.log(1 - share) - ((logs - low) / sigma) ** 2 / 2
        total = np.logaddexp(up, down)
        weight = np.exp(up - total)
        now = float(total.sum()) - len(logs) * (math.log(sigma) + math.log(2 * math.pi) / 2)
        if now - likelihood < 1e-6 * abs(now):
            break
        likelihood = now
    return (now, Mixture(low, high, sigma, share)) if high > low else None


def _log_likelihood(logs: np.ndarray, mean: float, sigma: float) -> float:
    sigma = max(sigma, 1e-6)
    return float(
        -(((logs - mean) / sigma) ** 2 / 2).sum()
        - len(logs) * (math.log(sigma) + math.log(2 * math.pi) / 2)
    )


def fit_bimodal(times_s: np.ndarray, mixture: Mixture) -> FittedModel:
    """Fit the bimodal model, in which each request is slow independently."""
    return _fitted_mixture(times_s, mixture, "bimodal", mixture.share)


def fit_markov(times_s: np.ndarray, mixture: Mixture) -> list[FittedModel]:
    """Fit the markov model, with slow periods along the rows; [] if no request is slow, or all are.

    A machine is assumed to serve one request after another without a pause.
    """
    odds = mixture.log_odds(np.log(times_s))  # (machines, requests)
    slow = odds + math.log(mixture.share / (1 - mixture.share)) > 0
    for _ in range(_VITERBI_ROUNDS):
        before, slow = slow, _viterbi(odds, *_switches(slow))
        if (slow == before).all():
            break
    spells = int(slow[:, 0].sum() + (slow[:, 1:] & ~slow[:, :-1]).sum())
    if spells == 0 or slow.all():
        return []
    slow_s = float(times_s[slow].sum())
    share, spell = slow_s / float(times_s.sum()), {"straggler_spell_s": slow_s / spells}
    requests = replace(mixture, share=float(slow.mean()))
    return [_fitted_mixture(times_s, requests, "markov", share, **spell)]


def _switches(slow: np.ndarray) -> tuple[float, float]:
    """The transition probabilities usual -> slow and slow -> usual between requests, smoothed so
    that none is 0."""
    before, after = slow[:, :-1], slow[:, 1:]
    up = (float((~before & after).sum()) + 0.5) / (float((~before).sum()) + 1)
    down = (float((before & ~after).sum()) + 0.5) / (float(before.sum()) + 1)
    return up, down


def _viterbi(odds: np.ndarray, up: float, down: float) -> np.ndarray:
    """The most likely states along each row (Viterbi 1967).

    Args:
        odds: (machines, requests), logarithm of the density ratio of slow to usual.
        up, down: transition probabilities usual -> slow and slow -> usual.

    Returns:
        (machines, requests) bool, whether a request is slow.
    """
    machines, requests = odds.shape
    stay_down, stay_up = math.log(1 - up), math.log(1 - down)
    go_up, go_down = math.log(up), math.log(down)
    usual = np.full(machines, math.log(down / (up + down)))
    slow = math.log(up / (up + down)) + odds[:, 0]
    from_slow = np.zeros((2, requests, machines), bool)  # previous state: [0] of usual, [1] of slow
    for i in range(1, requests):
        from_slow[0, i] = slow + go_down > usual + stay_down
        from_slow[1, i] = slow + stay_up > usual + go_up
        usual, slow = (
            np.maximum(slow + go_down, usual + stay_down),
            np.maximum(slow + stay_up, usual + go_up) + odds[:, i],
        )
    path = np.empty((requests, machines), bool)
    path[-1] = slow > usual
    for i in range(requests - 1, 0, -1):
        path[i - 1] = np.where(path[i], from_slow[1, i], from_slow[0, i])
    found: np.ndarray = path.T
    return found


def ks_distance(times_s: np.ndarray, cdf: Cdf) -> float:
    """The Kolmogorov-Smirnov distance between a sample and a distribution function, 0 to 1."""
    x = np.sort(times_s.ravel())
    model = cdf(x)
    n = len(x)
    above = np.arange(1, n + 1) / n - model
    below = model - np.arange(n) / n
    return float(max(above.max(), below.max()))


def _normal_cdf(mean: float, sigma: float) -> Cdf:
    law = NormalDist(mean, max(sigma, 1e-9))
    return lambda t: np.array([law.cdf(v) for v in np.log(t)])


def _fitted(
    times_s: np.ndarray, cdf: Cdf, model: str, median_s: float, **more: float
) -> FittedModel:
    return FittedModel(
        model,
        {"straggler": model, "straggler_median_ms": median_s * 1e3, **more},
        ks_distance(times_s, cdf),
    )


def _fitted_mixture(
    times_s: np.ndarray, mixture: Mixture, model: str, share: float, **more: float
) -> FittedModel:
    """`share`: of the tasks (bimodal) or of the time (markov) that is slow."""
    low, high = (_normal_cdf(mean, mixture.sigma) for mean in (mixture.low, mixture.high))
    return _fitted(
        times_s,
        lambda t: (1 - mixture.share) * low(t) + mixture.share * high(t),
        model,
        math.exp(mixture.low),
        straggler_sigma=mixture.sigma,
        straggler_slow_share=share,
        straggler_slow_factor=math.exp(mixture.high - mixture.low),
        **more,
    )
