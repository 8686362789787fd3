"""Learning rate and first decay rate of Adam as pure functions of the step: no state, so resuming cannot shift them."""

import math

from simcast_hpc.config import OptimizerConfig

_START_DIVISOR = 25.0
_END_DIVISOR = 1e4
_MAX_MOMENTUM, _BASE_MOMENTUM = 0.95, 0.85


def learning_rate(step: int, *, max_steps: int, config: OptimizerConfig, global_size: int | None = None) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0.

    ``one_cycle``: cosine from peak / 25 up to the peak over the warm-up, cosine down to peak / 10^4 / 25 (Smith and
    Topin 2018; the shape of OpenSTL's SimVP recipe). ``cosine``: linear from 0, then cosine to peak / 10^3
    (Earthformer's recipe). ``constant``: linear from 0, then the peak. ``final_fraction`` of the peak replaces the
    end of the first two. The peak for ``global_size`` samples per step follows ``optimizer.batch_rule``, by default it
    is ``optimizer.learning_rate``.

    Sources of the rules: Goyal et al., "Accurate, Large Minibatch SGD" (arXiv 1706.02677), section 2.1; Malladi et al.,
    "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms" (arXiv 2205.10287), section 5.
    """
    peak = config.learning_rate if global_size is None else config.peak(global_size)
    last = None if config.final_fraction is None else peak * config.final_fraction
    warm_up = config.warmup_steps(max_steps)
    if config.schedule == "one_cycle":
        bottom = peak / _START_DIVISOR
        return _one_cycle(step, max_steps, warm_up, values=(bottom, peak, last or bottom / _END_DIVISOR))
    if step < warm_up:
        return peak * (step + 1) / max(1.0, math.ceil(warm_up))
    if config.schedule == "constant":
        return peak
    return _cosine(peak, last or peak * 1e-3, _decay_fraction(step, warm_up, max_steps))


def adam_betas(step: int, *, max_steps: int, config: OptimizerConfig) -> tuple[float, float]:
    """Return the decay rates of Adam's moments in optimizer step ``step``, counted from 0.

    With ``cycle_momentum`` the first one goes from 0.95 to 0.85 while the learning rate rises, and back while it falls,
    as in ``torch.optim.lr_scheduler.OneCycleLR`` with its default settings.
    """
    if not config.cycle_momentum:
        return config.betas
    values = (_MAX_MOMENTUM, _BASE_MOMENTUM, _MAX_MOMENTUM)
    return _one_cycle(step, max_steps, config.warmup_steps(max_steps), values=values), config.betas[1]


def _one_cycle(step: int, max_steps: int, warm_up: float, *, values: tuple[float, float, float]) -> float:
    """Return the value at ``step`` on cosines between start, end of the warm-up, and last step."""
    start, middle, end = values
    if step < warm_up:
        return _cosine(start, middle, step / warm_up)
    return _cosine(middle, end, _decay_fraction(step, warm_up, max_steps))


def _decay_fraction(step: int, warm_up: float, max_steps: int) -> float:
    """Return the position of ``step`` between the end of the warm-up, 0, and the last step, 1."""
    last = max_steps - 1
    return 1.0 if last <= warm_up else (step - warm_up) / (last - warm_up)


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * min(1.0, max(0.0, fraction)))) / 2.0
