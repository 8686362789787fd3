"""``nn.Module`` layers on the kernels, and a patch that puts them into the public Earthformer.

The attention layers have the constructor arguments, parameter names and results of the public implementation
(amazon-science/earth-forecasting-transformer), so its checkpoints load unchanged. Example::

    from simcast_kernels.modules import patch_earthformer

    model = CuboidTransformerModel(**config)  # the official implementation
    patch_earthformer(model)  # replaces its attention layers in place, weights kept
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adaln_norm import adaln_norm
from .cuboid_layers import CuboidAttention, CuboidCrossAttention, CuboidSelfAttention, norm_and_project
from .weighted_mse import weighted_mse

__all__ = [
    "AdaLayerNorm",
    "CuboidCrossAttention",
    "CuboidSelfAttention",
    "LayerNormLinear",
    "WeightedMSELoss",
    "patch_earthformer",
]


class WeightedMSELoss(nn.Module):
    """Weighted mean squared error; the arguments are those of :func:`simcast_kernels.weighted_mse`."""

    def __init__(
        self,
        thresholds: Sequence[float],
        weights: Sequence[float],
        *,
        inclusive: bool = False,
        code_scale: float = 255.0,
    ):
        super().__init__()
        self.thresholds, self.weights = tuple(thresholds), tuple(weights)
        self.inclusive, self.code_scale = inclusive, code_scale

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss, a float32 scalar, of a prediction in [0, 1] and a uint8 or float32 target."""
        return weighted_mse(
            prediction,
            target,
            thresholds=self.thresholds,
            weights=self.weights,
            inclusive=self.inclusive,
            code_scale=self.code_scale,
            mask=mask,
        )


class LayerNormLinear(nn.Module):
    """A layer norm followed by one or several linear layers that read it: ``[..., D] -> [..., F]``.

    Args:
        width: D.
        features: F, or one F per layer.
        bias: whether the linear layers have a bias.
        eps: added to the variance.
    """

    def __init__(self, width: int, features: int | Sequence[int], *, bias: bool = True, eps: float = 1e-5):
        super().__init__()
        self.is_single = not isinstance(features, Sequence)
        sizes = list(features) if isinstance(features, Sequence) else [features]
        self.norm = nn.LayerNorm(width, eps=eps)
        self.linears = nn.ModuleList(nn.Linear(width, size, bias=bias) for size in sizes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the result of the layer; a list of results if ``features`` was a sequence."""
        results = norm_and_project(self.norm, x, list(self.linears))  # pyright: ignore[reportArgumentType]
        return results[0] if self.is_single else results


class AdaLayerNorm(nn.Module):
    """Adaptive layer norm with a gated residual connection (adaLN-Zero): shift, scale and gate from a condition.

    The projection of the condition is initialized to zero: at the start the norm is plain and the gate closed.

    Args:
        width: D of the tokens.
        condition_width: C of the condition.
        residual: whether the layer adds a gated branch before the norm.
        eps: added to the variance.

    Source: Peebles and Xie, Scalable diffusion models with transformers (2023), section 3.2.
    """

    def __init__(self, width: int, condition_width: int, *, residual: bool = True, eps: float = 1e-6):
        super().__init__()
        self.residual, self.eps = residual, eps
        self.projection = nn.Linear(condition_width, (3 if residual else 2) * width)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor, condition: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(modulated, carried)``: the input of the next branch and the residual stream.

        Args:
            x: residual stream ``[N, L, D]``.
            condition: ``[N, C]``.
            branch: output of the branch to add, ``[N, L, D]``; required if and only if ``residual``.
        """
        if (branch is not None) != self.residual:
            raise ValueError(
                f"AdaLayerNorm: residual={self.residual} and branch is {'' if branch is None else 'not '}None; "
                "a branch is required if and only if residual=True"
            )
        shift, scale, *gate = self.projection(F.silu(condition)).to(x.dtype).chunk(3 if self.residual else 2, dim=-1)
        return adaln_norm(x, shift, scale, branch=branch, gate=gate[0] if gate else None, eps=self.eps)


def patch_earthformer(model: nn.Module) -> int:
    """Replace the attention layers of a public Earthformer by layers on the kernels, in place.

    Layers are recognized by their class names, ``CuboidSelfAttentionLayer`` and ``CuboidCrossAttentionLayer``.
    Their parameters, buffers and hooks are kept, the same objects under the same names, so optimizers and checkpoints
    stay valid. If a layer has an unsupported option, an error is raised before anything is replaced. Parameters whose
    result is not used (of the last update of the global vectors) get gradients of zero instead of none.

    Args:
        model: a model that contains layers of the official implementation,
            amazon-science/earth-forecasting-transformer.

    Returns:
        The number of replaced layers; 0 for a model that has been patched.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: a layer has an option that these layers do not support, or there is no attention layer.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch_earthformer: model is a {type(model).__name__}; it must be a torch.nn.Module")
    replacements: dict[nn.Module, nn.Module] = {}
    slots = []
    for parent in model.modules():
        for name, child in parent._modules.items():  # named_children() yields a shared layer only once
            if child is not None and (layer := _LAYERS.get(type(child).__name__)) is not None:
                slots.append((parent, name, child))
                if child not in replacements:
                    replacements[child] = _from_public(layer, child)
    if not slots and not any(isinstance(module, CuboidAttention) for module in model.modules()):
        raise ValueError(f"patch_earthformer: {type(model).__name__} contains none of {', '.join(_LAYERS)}")
    for parent, name, child in slots:
        setattr(parent, name, replacements[child])
    return len(replacements)


_SHARED_FIELDS = (
    "dim", "num_heads", "strategy", "padding_type", "use_relative_pos", "use_global_vector", "separate_global_qkv",
    "global_dim_ratio", "attn_linear_init_mode", "ffn_linear_init_mode", "norm_init_mode",
)  # fmt: skip
_LAYERS = {"CuboidSelfAttentionLayer": CuboidSelfAttention, "CuboidCrossAttentionLayer": CuboidCrossAttention}
_FIELDS = {
    CuboidSelfAttention: ("cuboid_size", "shift_size", "use_final_proj", "use_global_self_attn", "checkpoint_level"),
    CuboidCrossAttention: ("n_temporal", "cuboid_hw", "shift_hw", "cross_last_n_frames", "max_temporal_relative"),
}


def _from_public(layer: type[CuboidAttention], public: nn.Module) -> nn.Module:
    """Return a layer with the options, parameters and buffers of a public layer."""
    absent = [name for name in (*_SHARED_FIELDS, *_FIELDS[layer], "scale") if not hasattr(public, name)]
    if absent:
        raise ValueError(f"{type(public).__name__}: it is not the public layer; it has no {', '.join(absent)}")
    options = {name: getattr(public, name) for name in (*_SHARED_FIELDS, *_FIELDS[layer])}
    projection = public.qkv if layer is CuboidSelfAttention else public.kv_proj
    for name in ("norm", "global_vec_norm"):
        norm = getattr(public, name, None)
        if norm is not None and not (isinstance(norm, nn.LayerNorm) and norm.elementwise_affine):
            raise ValueError(f"{type(public).__name__}: norm_layer {type(norm).__name__} is not supported")
    with torch.device("meta"):
        new = layer(**options, qkv_bias=projection.bias is not None, qk_scale=public.scale)  # pyright: ignore
    missing = set(new.state_dict()) ^ set(public.state_dict())
    if missing:
        raise ValueError(f"{type(public).__name__}: unexpected or missing parameters {', '.join(sorted(missing))}")
    new._parameters, new._buffers, new._modules = public._parameters, public._buffers, public._modules
    for name, hooks in vars(public).items():
        if name.endswith(("_hook", "_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            setattr(new, name, hooks)
    new.training = public.training  # train() would also set the children
    return new
