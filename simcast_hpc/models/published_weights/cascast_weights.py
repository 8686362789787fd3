"""CasCast's autoencoder and CasFormer, as its repository publishes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from simcast_hpc.config import AutoencoderConfig, CasFormerConfig
from simcast_hpc.models.autoencoder import Autoencoder
from simcast_hpc.models.casformer import CasFormer, position_table

from .architecture import PublicArchitecture, Shape, count_of

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
class AutoencoderForm:
    """A public autoencoder's configuration as ours."""

    config: AutoencoderConfig
    channels: int

    def build(self) -> nn.Module:
        """Return the model, freshly initialised."""
        return Autoencoder(self.config, channels=self.channels)


@dataclass(frozen=True, kw_only=True)
class CasFormerForm:
    """A public CasFormer's configuration as ours, and the grid of patches whose positions it stores."""

    config: CasFormerConfig
    frames: int
    channels: int
    places: int

    def build(self) -> nn.Module:
        """Return the model, freshly initialised."""
        model = CasFormer(self.config, frames=self.frames, channels=self.channels)
        # Ours takes any grid; the published table of positions, which is no weight, has one.
        model.published_positions = self.places
        return model


def _half(half: str, level: str, resample: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the names of encoder or decoder; its levels are called ``level`` there."""
    theirs = f"net.{half}."
    blocks = (f"{half}.levels.{{i}}.blocks.{{j}}.", f"{theirs}{level}.{{i}}.resnets.{{j}}.")
    middle = f"{theirs}mid_block."
    prefixed = [(blocks, _RESIDUAL)]
    prefixed += [
        ((f"{half}.middle.before.", f"{middle}resnets.0."), _RESIDUAL),
        ((f"{half}.middle.after.", f"{middle}resnets.1."), _RESIDUAL),
        ((f"{half}.middle.attention.", f"{middle}attentions.0."), _ATTENTION),
    ]
    names = [(a + ours, b + their) for (a, b), pairs in prefixed for ours, their in pairs]
    return (
        *names,
        (f"{half}.levels.{{i}}.{resample[0]}.{{leaf}}", f"{theirs}{level}.{{i}}.{resample[1]}.0.conv.{{leaf}}"),
        (f"{half}.stem.{{leaf}}", f"{theirs}conv_in.{{leaf}}"),
        (f"{half}.norm.{{leaf}}", f"{theirs}conv_norm_out.{{leaf}}"),
        (f"{half}.head.{{leaf}}", f"{theirs}conv_out.{{leaf}}"),
    )


def _stated(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    stated = {field: config.get(field, default) for field, default in defaults.items()}
    return {field: tuple(value) if isinstance(value, list) else value for field, value in stated.items()}


def _autoencoder_stated(config: Mapping[str, Any]) -> dict[str, Any]:
    return _stated(config, _AUTOENCODER_DEFAULTS)


def _autoencoder_measured(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    widths = [shapes.get(f"net.encoder.down_blocks.{i}.resnets.0.conv1.weight", ()) for i in range(32)]
    measured: dict[str, Any] = {
        "layers_per_block": count_of("net.encoder.down_blocks.0.resnets.{j}.conv1.weight", shapes)
    }
    stem, head = shapes.get("net.encoder.conv_in.weight", ()), shapes.get("net.decoder.conv_out.weight", ())
    latent = shapes.get("net.post_quant_conv.weight", ())
    if any(widths):
        measured["block_out_channels"] = tuple(shape[0] for shape in widths if shape)
    for field, shape, axis in (("in_channels", stem, 1), ("out_channels", head, 0), ("latent_channels", latent, 0)):
        if len(shape) == 4:
            measured[field] = shape[axis]
    return measured


def _our_autoencoder(config: Mapping[str, Any]) -> AutoencoderForm:
    stated = _autoencoder_stated(config)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        levels = config.get(field, (kind,))
        if set(levels) != {kind} or len(levels) != len(stated["block_out_channels"]):
            raise ValueError(
                f"{field}={list(levels)} is not built here; one {kind!r} for each of block_out_channels="
                f"{list(stated['block_out_channels'])} is"
            )
    if config.get("act_fn", "silu") != "silu":
        raise ValueError(f"act_fn={config['act_fn']!r} is not built here; only 'silu' is")
    if stated["in_channels"] != stated["out_channels"]:
        raise ValueError(
            f"in_channels={stated['in_channels']} and out_channels={stated['out_channels']} must be equal: an "
            "autoencoder gives back what it was given"
        )
    own = AutoencoderConfig(
        widths=stated["block_out_channels"],
        blocks=stated["layers_per_block"],
        latent_channels=stated["latent_channels"],
        groups=stated["norm_num_groups"],
    )
    return AutoencoderForm(config=own, channels=stated["in_channels"])


def _casformer_stated(config: Mapping[str, Any]) -> dict[str, Any]:
    return _stated(config, _CASFORMER_DEFAULTS)


def _casformer_measured(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    measured: dict[str, Any] = {
        "enc_depth": count_of("model.encoder_blocks.{i}.attn.qkv.weight", shapes),
        "latent_depth": count_of("model.blocks.{i}.attn.qkv.weight", shapes),
    }
    embed = shapes.get("model.x_embedder.proj.weight", ())
    joined = shapes.get("model.enc2hidden_linear.weight", ())
    head = shapes.get("model.final_layer.linear.weight", ())
    places = shapes.get("model.pos_embed", ())
    if len(embed) == 4:
        measured |= {"enc_hidden_size": embed[0], "in_channels": embed[1], "patch_size": embed[2]}
        if len(places) == 3:
            measured["input_size"] = round(places[1] ** 0.5) * embed[2]
        if len(head) == 2:
            measured["out_channels"] = head[0] // embed[2] ** 2
        if len(joined) == 2:
            measured |= {"hidden_size": joined[0], "split_num": joined[1] // embed[0]}
    return measured


def _our_casformer(config: Mapping[str, Any]) -> CasFormerForm:
    stated = _casformer_stated(config)
    if config.get("learn_sigma", False):
        raise ValueError("learn_sigma=True is not built here: the network predicts no variance")
    frames, channels = stated["split_num"], stated["in_channels"] // 2
    if stated["in_channels"] % 2 or stated["out_channels"] != frames * channels:
        raise ValueError(
            f"in_channels={stated['in_channels']} must be twice the channels of a latent (noisy and condition), and "
            f"out_channels={stated['out_channels']} those of split_num={frames} frames"
        )
    own = CasFormerConfig(
        frame_width=stated["enc_hidden_size"],
        frame_depth=stated["enc_depth"],
        frame_heads=stated["single_heads_num"],
        width=stated["hidden_size"],
        depth=stated["latent_depth"],
        heads=stated["num_heads"],
        feed_forward_ratio=float(stated["mlp_ratio"]),
        patch=stated["patch_size"],
    )
    return CasFormerForm(
        config=own, frames=frames, channels=channels, places=stated["input_size"] // stated["patch_size"]
    )


def _positions(model: nn.Module) -> dict[str, Tensor]:
    assert isinstance(model, CasFormer)
    places = model.published_positions
    assert places is not None
    like = model.aggregate.weight
    return {"model.pos_embed": position_table(places, places, model.config.frame_width, like=like)[None]}


def _blocks(ours: str, theirs: str) -> tuple[tuple[str, str], ...]:
    pairs = (
        ("attention.project", "attn.qkv"),
        ("attention.out", "attn.proj"),
        ("feed_forward.inner", "mlp.fc1"),
        ("feed_forward.outer", "mlp.fc2"),
        ("modulate", "adaLN_modulation.1"),
    )
    return tuple((f"{ours}.{{i}}.{a}.{{leaf}}", f"model.{theirs}.{{i}}.{b}.{{leaf}}") for a, b in pairs)


AUTOENCODER = PublicArchitecture(
    source=f"autoencoder_kl of {_SOURCE}",
    names=(
        *_half("encoder", "down_blocks", ("down", "downsamplers")),
        *_half("decoder", "up_blocks", ("up", "upsamplers")),
        ("to_moments.{leaf}", "net.quant_conv.{leaf}"),
        ("from_latent.{leaf}", "net.post_quant_conv.{leaf}"),
    ),
    ours=_our_autoencoder,
    released=_RELEASED_AUTOENCODER,
    stated=_autoencoder_stated,
    measured=_autoencoder_measured,
)

CASFORMER = PublicArchitecture(
    source=f"CasFormer of {_SOURCE}",
    names=(
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
    ours=_our_casformer,
    released=_RELEASED_CASFORMER,
    stated=_casformer_stated,
    measured=_casformer_measured,
    constants=_positions,
)
