"""Diffusion as pure functions: noise schedule, forward process, samplers, guidance, ensembles.

Notation: x_t = alpha_t x_0 + sigma_t epsilon with alpha_t^2 = alpha_bar_t and alpha_t^2 + sigma_t^2 = 1, timestep t
from 0 (almost clean) to T - 1 (almost noise). Timesteps and numbers of the schedule are Python floats or float64, never
buffers that an engine could cast. Random numbers are functions of counters (``noise.py``).
"""

from .counter_noise import Rows, stream_key
from .ensemble_products import exceedance_probability, probability_matched_mean
from .forward_process import add_noise, clean_from_prediction, training_target
from .noise_schedule import NoiseSchedule, make_schedule, spaced_timesteps
from .samplers import SAMPLERS, Step, plan_steps
from .sampling_loop import Drawn, reject_broken, sample, walk

__all__ = [
    "SAMPLERS",
    "Drawn",
    "NoiseSchedule",
    "Rows",
    "Step",
    "add_noise",
    "clean_from_prediction",
    "exceedance_probability",
    "make_schedule",
    "plan_steps",
    "probability_matched_mean",
    "reject_broken",
    "sample",
    "spaced_timesteps",
    "stream_key",
    "training_target",
    "walk",
]
