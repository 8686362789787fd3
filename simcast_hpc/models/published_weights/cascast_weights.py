"""The autoencoder and CasFormer as published by CasCast."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from simcast_hpc.config import AutoencoderConfig, CasFormerConfig
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer, position_table

from .architecture import PublicArchitecture, Shape, build_config, check_integers, check_lists, count_keys

_SOURCE = "OpenEarthLab/CasCast, commit 487a68b"
_AUTOENCODER_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
_CASFORMER_DEFAULTS: dict[str, Any] = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "enc_hidden_size": 256,
    "split_num": 12,
    "enc_depth": 6,
    "latent_depth": 12,
    "num_heads": 16,
    "single_heads_num": 1,
    "mlp_ratio": 4.0,
    "out_channels": 1,
}
_RELEASED_AUTOENCODER: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
_RELEASED_CASFORMER: dict[str, Any] = {
    **_CASFORMER_DEFAULTS,
    "input_size": 48,
    "in_channels": 8,
    "enc_depth": 12,
    "single_heads_num": 4,
    "out_channels": 48,
}
_RESIDUAL = (
    ("norm1.{leaf}", "norm1.{leaf}"),
    ("conv1.{leaf}", "conv1.{leaf}"),
    ("norm2.{leaf}", "norm2.{leaf}"),
    ("conv2.{leaf}", "conv2.{leaf}"),
    ("shortcut.{leaf}", "conv_shortcut.{leaf}"),
)
_ATTENTION = (
    ("norm.{leaf}", "group_norm.{leaf}"),
    ("query.{leaf}", "query.{leaf}"),
    ("key.{leaf}", "key.{leaf}"),
    ("value.{leaf}", "value.{leaf}"),
    ("out.{leaf}", "proj_attn.{leaf}"),
)


@dataclass(frozen=True, kw_only=True)
class AutoencoderSpec:
    """Our configuration of a published autoencoder."""

    config: AutoencoderConfig
    channels: int

    def build(self) -> nn.Module:
        """Return the model, randomly initialized."""
        return Autoencoder(self.config, channels=self.channels)


@dataclass(frozen=True, kw_only=True)
class CasFormerSpec:
    """Our configuration of a published CasFormer, and the side of its position table in patches."""

    config: CasFormerConfig
    frames: int
    channels: int
    positions: int

    def build(self) -> nn.Module:
        """Return the model, randomly initialized."""
        model = CasFormer(self.config, frames=self.frames, channels=self.channels)
        # Our model accepts any grid; the published position table, which is not a weight, has one.
        model.published_positions = self.positions
        return model


def _half(half: str, level: str, resample: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the key pairs of encoder or decoder; ``level`` is the public name of its levels."""
    public = f"net.{half}."
    blocks = (f"{half}.levels.{{i}}.blocks.{{j}}.", f"{public}{level}.{{i}}.resnets.{{j}}.")
    middle = f"{public}mid_block."
    prefixed = [(blocks, _RESIDUAL)]
    prefixed += [
        ((f"{half}.middle.before.", f"{middle}resnets.0."), _RESIDUAL),
        ((f"{half}.middle.after.", f"{middle}resnets.1."), _RESIDUAL),
        ((f"{half}.middle.attention.", f"{middle}attentions.0."), _ATTENTION),
    ]
    names = [(a + own_key, b + public_key) for (a, b), pairs in prefixed for own_key, public_key in pairs]
    return (
        *names,
        (f"{half}.levels.{{i}}.{resample[0]}.{{leaf}}", f"{public}{level}.{{i}}.{resample[1]}.0.conv.{{leaf}}"),
        (f"{half}.stem.{{leaf}}", f"{public}conv_in.{{leaf}}"),
        (f"{half}.norm.{{leaf}}", f"{public}conv_norm_out.{{leaf}}"),
        (f"{half}.head.{{leaf}}", f"{public}conv_out.{{leaf}}"),
    )


def _fields(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field: config.get(field, default) for field, default in defaults.items()}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()}


def _autoencoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = _fields(config, _AUTOENCODER_DEFAULTS)
    check_lists(fields, ("block_out_channels",))
    check_integers(fields, fields)
    return fields


def _autoencoder_shape_fields(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    widths = [shapes.get(f"net.encoder.down_blocks.{i}.resnets.0.conv1.weight", ()) for i in range(32)]
    fields: dict[str, Any] = {
        "layers_per_block": count_keys("net.encoder.down_blocks.0.resnets.{j}.conv1.weight", shapes)
    }
    stem, head = shapes.get("net.encoder.conv_in.weight", ()), shapes.get("net.decoder.conv_out.weight", ())
    latent = shapes.get("net.post_quant_conv.weight", ())
    if any(widths):
        fields["block_out_channels"] = tuple(shape[0] for shape in widths if shape)
    for field, shape, axis in (("in_channels", stem, 1), ("out_channels", head, 0), ("latent_channels", latent, 0)):
        if len(shape) == 4:
            fields[field] = shape[axis]
    return fields


def _autoencoder_spec(config: Mapping[str, Any]) -> AutoencoderSpec:
    fields = _autoencoder_fields(config)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        levels = config.get(field, (kind,))
        if not isinstance(levels, list | tuple) or not all(isinstance(level, str) for level in levels):
            raise ValueError(f"{field}={levels!r} must be a list of names")
        if set(levels) != {kind} or len(levels) != len(fields["block_out_channels"]):
            raise ValueError(
                f"{field}={list(levels)} is not supported; it must contain {kind!r} once per entry of "
                f"block_out_channels={list(fields['block_out_channels'])}"
            )
    if config.get("act_fn", "silu") != "silu":
        raise ValueError(f"act_fn={config['act_fn']!r} is not supported; only 'silu' is")
    if fields["in_channels"] != fields["out_channels"]:
        raise ValueError(
            f"in_channels={fields['in_channels']} and out_channels={fields['out_channels']} must be equal for an "
            "autoencoder"
        )
    autoencoder = build_config(
        AutoencoderConfig,
        {},
        widths=fields["block_out_channels"],
        blocks=fields["layers_per_block"],
        latent_channels=fields["latent_channels"],
        groups=fields["norm_num_groups"],
    )
    return AutoencoderSpec(config=autoencoder, channels=fields["in_channels"])


def _casformer_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = _fields(config, _CASFORMER_DEFAULTS)
    check_integers(fields, [name for name in fields if name != "mlp_ratio"])
    ratio = fields["mlp_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < float("inf"):
        raise ValueError(f"mlp_ratio={ratio!r} must be a positive number")
    if fields["input_size"] % fields["patch_size"]:
        raise ValueError(f"input_size={fields['input_size']} must be a multiple of patch_size={fields['patch_size']}")
    return fields


def _casformer_shape_fields(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "enc_depth": count_keys("model.encoder_blocks.{i}.attn.qkv.weight", shapes),
        "latent_depth": count_keys("model.blocks.{i}.attn.qkv.weight", shapes),
    }
    embed = shapes.get("model.x_embedder.proj.weight", ())
    aggregate = shapes.get("model.enc2hidden_linear.weight", ())
    head = shapes.get("model.final_layer.linear.weight", ())
    positions = shapes.get("model.pos_embed", ())
    if len(embed) == 4:
        fields |= {"enc_hidden_size": embed[0], "in_channels": embed[1], "patch_size": embed[2]}
        if len(positions) == 3:
            fields["input_size"] = round(positions[1] ** 0.5) * embed[2]
        if len(head) == 2:
            fields["out_channels"] = head[0] // embed[2] ** 2
        if len(aggregate) == 2:
            fields |= {"hidden_size": aggregate[0], "split_num": aggregate[1] // embed[0]}
    return fields


def _casformer_spec(config: Mapping[str, Any]) -> CasFormerSpec:
    fields = _casformer_fields(config)
    if config.get("learn_sigma", False):
        raise ValueError("learn_sigma=True is not supported; the network does not predict a variance")
    frames, channels = fields["split_num"], fields["in_channels"] // 2
    if fields["in_channels"] % 2 or fields["out_channels"] != frames * channels:
        raise ValueError(
            f"in_channels={fields['in_channels']} must be even (noisy latent and condition), and "
            f"out_channels={fields['out_channels']} must be half of it times split_num={frames}"
        )
    casformer = build_config(
        CasFormerConfig,
        {},
        frame_width=fields["enc_hidden_size"],
        frame_depth=fields["enc_depth"],
        frame_heads=fields["single_heads_num"],
        width=fields["hidden_size"],
        depth=fields["latent_depth"],
        heads=fields["num_heads"],
        feed_forward_ratio=float(fields["mlp_ratio"]),
        patch=fields["patch_size"],
    )
    return CasFormerSpec(
        config=casformer, frames=frames, channels=channels, positions=fields["input_size"] // fields["patch_size"]
    )


def _positions(model: nn.Module) -> dict[str, Tensor]:
    assert isinstance(model, CasFormer)
    positions = model.published_positions
    assert positions is not None
    like = model.aggregate.weight
    return {"model.pos_embed": position_table(positions, positions, model.config.frame_width, like=like)[None]}


def _blocks(own: str, public: str) -> tuple[tuple[str, str], ...]:
    pairs = (
        ("attention.project", "attn.qkv"),
        ("attention.out", "attn.proj"),
        ("feed_forward.inner", "mlp.fc1"),
        ("feed_forward.outer", "mlp.fc2"),
        ("modulate", "adaLN_modulation.1"),
    )
    return tuple((f"{own}.{{i}}.{a}.{{leaf}}", f"model.{public}.{{i}}.{b}.{{leaf}}") for a, b in pairs)


AUTOENCODER = PublicArchitecture(
    source=f"autoencoder_kl of {_SOURCE}",
    wrapper="net.",
    key_pairs=(
        *_half("encoder", "down_blocks", ("down", "downsamplers")),
        *_half("decoder", "up_blocks", ("up", "upsamplers")),
        ("to_moments.{leaf}", "net.quant_conv.{leaf}"),
        ("from_latent.{leaf}", "net.post_quant_conv.{leaf}"),
    ),
    to_spec=_autoencoder_spec,
    released=_RELEASED_AUTOENCODER,
    config_fields=_autoencoder_fields,
    shape_fields=_autoencoder_shape_fields,
)

CASFORMER = PublicArchitecture(
    source=f"CasFormer of {_SOURCE}",
    wrapper="model.",
    key_pairs=(
        *_blocks("frame_blocks", "encoder_blocks"),
        *_blocks("blocks", "blocks"),
        ("embed.{leaf}", "model.x_embedder.proj.{leaf}"),
        ("frame_time.inner.{leaf}", "model.t_embedder.mlp.0.{leaf}"),
        ("frame_time.outer.{leaf}", "model.t_embedder.mlp.2.{leaf}"),
        ("time.inner.{leaf}", "model.aggr_t_embedder.mlp.0.{leaf}"),
        ("time.outer.{leaf}", "model.aggr_t_embedder.mlp.2.{leaf}"),
        ("aggregate.{leaf}", "model.enc2hidden_linear.{leaf}"),
        ("modulate.{leaf}", "model.final_layer.adaLN_modulation.1.{leaf}"),
        ("head.{leaf}", "model.final_layer.linear.{leaf}"),
    ),
    to_spec=_casformer_spec,
    released=_RELEASED_CASFORMER,
    config_fields=_casformer_fields,
    shape_fields=_casformer_shape_fields,
    constants=_positions,
)
