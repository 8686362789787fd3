"""Diffusion as pure functions: noise schedule, forward process, samplers, guidance, ensemble products.

Notation: x_t = alpha_t x_0 + sigma_t epsilon with alpha_t^2 = alpha_bar_t and alpha_t^2 + sigma_t^2 = 1, with timestep
t from 0 (almost clean) to T - 1 (almost noise). Schedule values are Python floats or float64 tensors, never buffers
that an engine could cast. Random numbers are functions of counters (``counter_noise.py``).
"""

from .counter_noise import BatchNoise, stream_key
from .ensemble_products import exceedance_probability, probability_matched_mean
from .forward_process import add_noise, clean_from_prediction, training_target
from .noise_levels import NoiseLevel, noise_levels, spaced_timesteps
from .noise_schedule import NoiseSchedule, make_schedule
from .samplers import SAMPLERS, SamplerStep, plan_steps
from .sampling_loop import SamplingResult, check_finite, run_sampler, sample

__all__ = [
    "SAMPLERS",
    "BatchNoise",
    "NoiseLevel",
    "NoiseSchedule",
    "SamplerStep",
    "SamplingResult",
    "add_noise",
    "check_finite",
    "clean_from_prediction",
    "exceedance_probability",
    "make_schedule",
    "noise_levels",
    "plan_steps",
    "probability_matched_mean",
    "run_sampler",
    "sample",
    "spaced_timesteps",
    "stream_key",
    "training_target",
]
