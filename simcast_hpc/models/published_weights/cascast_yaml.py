"""CasCast's YAML files: the section of a network, and how its diffusion is trained and sampled.

Source: OpenEarthLab/CasCast, commit 487a68b: ``configs/sevir_used/``, ``models/latent_diffusion_model.py`` and
``scripts/eval_diffusion.sh``. The options of the noise scheduler and their defaults are those of diffusers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .earthformer_yaml import RELEASED as RELEASED_EARTHFORMER

# Written in CasCast's code for its autoencoder on SEVIR: 1 / standard deviation of the latents of the first batch.
RELEASED_SCALE_FACTOR = 0.6786020398139954
# Guidance of the published evaluation (``--cfg_weight``); the YAML has another field that no code reads.
RELEASED_GUIDANCE = 2.0
_SUB_MODELS = {"autoencoder": "autoencoder_kl", "casformer": "casformer", "earthformer": "EarthFormer_xy"}
_FRAME_SIZES = ("in_len", "out_len", "height", "width")
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
_SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "timestep_spacing": "leading",
}
_SCHEDULER_FIXED: dict[str, Any] = {
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "thresholding": False,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
_SCHEDULER_IGNORED = frozenset({"variance_type", "dynamic_thresholding_ratio", "sample_max_value"})


@dataclass(frozen=True)
class DiffusionSettings:
    """Values of our sections ``diffusion`` and ``sampling``; the default is CasCast's release for SEVIR."""

    diffusion: Mapping[str, Any] = field(
        default_factory=lambda: {
            "schedule": "linear",
            "timesteps": 1000,
            "beta_start": 1e-4,
            "beta_end": 0.02,
            "prediction": "epsilon",
            "condition_dropout": 0.1,
        }
    )
    sampling: Mapping[str, Any] = field(
        default_factory=lambda: {
            "sampler": "ddim",
            "steps": 20,
            "spacing": "leading",
            "eta": 0.0,
            "clip": 13.0,
            "guidance": RELEASED_GUIDANCE,
        }
    )


def network_section(architecture: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the public configuration of a network from a published YAML file.

    The file is the configuration itself, or contains it under ``model`` (Earthformer, OpenSTL, PreDiff) or under
    ``model.params.sub_model`` and the name of the network (CasCast).

    Raises:
        ValueError: the file has sub-models, but not this one; the message contains their names.
    """
    section, path = data, []
    for key in ("model", "params", "sub_model"):
        if isinstance(section.get(key), Mapping):
            section = section[key]
            path.append(key)
    name = _SUB_MODELS.get(architecture, architecture)
    if path[-1:] == ["sub_model"] or name in section:
        if not isinstance(section.get(name), Mapping):
            raise ValueError(f"the configuration has no sub-model {name!r}; its sub-models are {', '.join(section)}")
        section = section[name]
    if isinstance(section.get("config"), Mapping):
        section = section["config"]
    if architecture == "earthformer" and all(size in section for size in _FRAME_SIZES):
        frames_in, frames_out, height, width = (section[size] for size in _FRAME_SIZES)
        # CasCast's EarthFormer_xy fixes all other fields to those of the released Earthformer.
        return RELEASED_EARTHFORMER | {
            "input_shape": [frames_in, height, width, 1],
            "target_shape": [frames_out, height, width, 1],
        }
    return dict(section)


def diffusion_settings(data: Mapping[str, Any]) -> DiffusionSettings:
    """Return the settings in CasCast's YAML file, or those of the release if it has none.

    Raises:
        ValueError: an option of the noise scheduler is not supported; the message contains it and its value.
    """
    section = data
    for key in ("model", "params", "diffusion_kwargs"):
        if isinstance(section.get(key), Mapping):
            section = section[key]
    schedulers = section.get("noise_scheduler")
    released = DiffusionSettings()
    if schedulers is None:
        return released
    options = schedulers.get("DDPMScheduler") if isinstance(schedulers, Mapping) else None
    if not isinstance(options, Mapping):
        raise ValueError(f"noise_scheduler={schedulers!r} is not supported; only DDPMScheduler with its options is")
    if schedulers.get("noise_scale", 1.0) != 1.0:
        raise ValueError(f"noise_scale={schedulers['noise_scale']!r} is not supported; only 1.0 is")
    values = _scheduler_values(options)
    guidance = section.get("classifier_free_guidance") or {}
    dropout = guidance.get("p_uncond", 0.0) if isinstance(guidance, Mapping) else guidance
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"classifier_free_guidance.p_uncond={dropout!r} must be at least 0 and less than 1")
    diffusion = {
        "schedule": values["beta_schedule"],
        "timesteps": values["num_train_timesteps"],
        "beta_start": values["beta_start"],
        "beta_end": values["beta_end"],
        "prediction": values["prediction_type"],
        "condition_dropout": dropout,
    }
    clip = values["clip_sample_range"] if values["clip_sample"] else None
    sampling = {**released.sampling, "clip": clip, "spacing": values["timestep_spacing"]}
    return DiffusionSettings(diffusion, sampling if dropout else {**sampling, "guidance": 1.0})


def _scheduler_values(options: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if name in _SCHEDULER_FIXED and value != _SCHEDULER_FIXED[name]:
            raise ValueError(f"noise scheduler: {name}={value!r} is not supported; only {_SCHEDULER_FIXED[name]!r} is")
        if name not in {*_SCHEDULER_DEFAULTS, *_SCHEDULER_FIXED, *_SCHEDULER_IGNORED}:
            raise ValueError(f"noise scheduler: {name}={value!r} is an unknown option; remove it")
    values = {name: options.get(name, default) for name, default in _SCHEDULER_DEFAULTS.items()}
    for name, known in (("beta_schedule", _SCHEDULES), ("prediction_type", _PREDICTIONS)):
        if values[name] not in known:
            raise ValueError(f"noise scheduler: {name}={values[name]!r} is not supported; choose {', '.join(known)}")
        values[name] = known[values[name]]
    return values
