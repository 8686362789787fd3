"""Cuboid attention layers with the arguments, parameter names and results of the public Earthformer."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cuboid_attention import cuboid_attention, cuboid_cross_attention
from .cuboid_attention.geometry import PADDINGS, Grid, Triple, make_grid
from .cuboid_attention.reference import resample, to_cuboids
from .layer_norm_linear import layer_norm_linear

Pair = tuple[int, int]
Strategy = tuple[str, str, str]


def norm_and_project(norm: nn.LayerNorm, x: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """Return each of ``layers`` of ``norm(x)``, computed by one op."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    weights = [layer.weight for layer in layers]
    return layer_norm_linear(x, norm.weight, norm.bias, weights=weights, biases=biases, eps=norm.eps)


class CuboidAttention(nn.Module):
    """Arguments and steps that cuboid self-attention and cross-attention share."""

    attn_drop: nn.Dropout
    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    def __init__(
        self, dim: int, num_heads: int, *, padding_type: str, qk_scale: float | None, init_modes: Sequence[str]
    ):
        super().__init__()
        name = type(self).__name__
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"{name}: num_heads={num_heads} must divide dim={dim}")
        if padding_type not in PADDINGS:
            raise ValueError(f"{name}: padding_type={padding_type!r} is invalid; choose one of {', '.join(PADDINGS)}")
        self.attn_linear_init_mode, self.ffn_linear_init_mode, self.norm_init_mode = init_modes
        if set(init_modes[:2]) - {"0", "1"} or init_modes[2] != "0":
            raise ValueError(f"{name}: initialization modes {', '.join(init_modes)} are not supported; use 0")
        self.dim, self.num_heads, self.padding_type = dim, num_heads, padding_type
        self.scale = qk_scale or (dim // num_heads) ** -0.5

    def _check_options(self, norm_layer: str, global_dim_ratio: int, separate_global_qkv: bool) -> None:
        name = type(self).__name__
        if norm_layer != "layer_norm":
            raise ValueError(f"{name}: norm_layer={norm_layer!r} is not supported; use 'layer_norm'")
        if global_dim_ratio != 1 and not separate_global_qkv:
            raise ValueError(f"{name}: global_dim_ratio={global_dim_ratio} requires separate_global_qkv=True")

    def _add_bias_table(self, extents: Triple) -> None:
        """Create the table of relative position biases and its index, for cuboids of up to ``extents`` tokens."""
        t, h, w = extents
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * t - 1) * (2 * h - 1) * (2 * w - 1), self.num_heads)
        )
        grid = torch.meshgrid(*(torch.arange(extent) for extent in extents), indexing="ij")
        positions = torch.stack(grid).flatten(1)
        offset_t, offset_h, offset_w = positions[:, :, None] - positions[:, None, :]
        index = ((offset_t + t - 1) * (2 * h - 1) + offset_h + h - 1) * (2 * w - 1) + offset_w + w - 1
        self.register_buffer("relative_position_index", index)

    def _bias(self, index: Tensor) -> Tensor:
        """Return the biases ``[heads, queries, keys]`` of the rows ``index`` of the table."""
        # An embedding, because the gradient of indexing is not deterministic on CUDA.
        return F.embedding(index, self.relative_position_bias_table).permute(2, 0, 1).contiguous()

    def _dropout(self) -> dict[str, Any]:
        """Return the arguments of the attention dropout; the seed comes from PyTorch's CPU generator."""
        if not (self.training and self.attn_drop.p > 0):
            return {"dropout": 0.0}
        return {"dropout": self.attn_drop.p, "seed": int(torch.randint(2**62, ()))}

    def reset_parameters(self) -> None:
        """Initialize as the public implementation: Kaiming-normal weights, zero biases, unit norms.

        The table of biases keeps its values, as in the official implementation.
        """
        for name, layer in self.named_children():
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
            elif isinstance(layer, nn.Linear) and name != "global_proj":
                mode = self.ffn_linear_init_mode if name == "proj" else self.attn_linear_init_mode
                if mode == "0":
                    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="linear")
                else:
                    nn.init.kaiming_normal_(layer.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class CuboidSelfAttention(CuboidAttention):
    """Self-attention within cuboids, and global vectors that attend to all tokens; includes its layer norms.

    A drop-in for ``CuboidSelfAttentionLayer`` of the public Earthformer: the same arguments, parameter names and
    result. ``checkpoint_level`` has no effect in either: the block around the layer applies activation checkpointing.

    Source: Gao et al. (arXiv 2207.05833), sections 3.1 and 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        cuboid_size: Triple = (2, 7, 7),
        shift_size: Triple = (0, 0, 0),
        strategy: Strategy = ("l", "l", "l"),
        padding_type: str = "ignore",
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_final_proj: bool = True,
        norm_layer: str = "layer_norm",
        use_global_vector: bool = False,
        use_global_self_attn: bool = False,
        separate_global_qkv: bool = False,
        global_dim_ratio: int = 1,
        checkpoint_level: bool | int = True,
        use_relative_pos: bool = True,
        attn_linear_init_mode: str = "0",
        ffn_linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ):
        modes = (attn_linear_init_mode, ffn_linear_init_mode, norm_init_mode)
        super().__init__(dim, num_heads, padding_type=padding_type, qk_scale=qk_scale, init_modes=modes)
        self._check_options(norm_layer, global_dim_ratio, separate_global_qkv)
        self.cuboid_size, self.shift_size, self.strategy = _triple(cuboid_size), _triple(shift_size), _triple(strategy)
        if min(self.cuboid_size) < 1:
            raise ValueError(f"CuboidSelfAttention: cuboid_size={self.cuboid_size} must be at least 1 along T, H, W")
        self.use_final_proj, self.use_relative_pos = use_final_proj, use_relative_pos
        self.use_global_vector, self.use_global_self_attn = use_global_vector, use_global_self_attn
        self.separate_global_qkv, self.global_dim_ratio = separate_global_qkv, global_dim_ratio
        self.checkpoint_level = checkpoint_level
        # 1. Parameters, with the public names
        if use_relative_pos:
            self._add_bias_table(self.cuboid_size)
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        global_dim = global_dim_ratio * dim
        if use_global_vector and separate_global_qkv:
            self.l2g_q_net = nn.Linear(dim, dim, bias=qkv_bias)
            self.l2g_global_kv_net = nn.Linear(global_dim, 2 * dim, bias=qkv_bias)
            self.g2l_global_q_net = nn.Linear(global_dim, dim, bias=qkv_bias)
            self.g2l_k_net = nn.Linear(dim, dim, bias=qkv_bias)
            self.g2l_v_net = nn.Linear(dim, global_dim, bias=qkv_bias)
            if use_global_self_attn:
                self.g2g_global_qkv_net = nn.Linear(global_dim, 3 * global_dim, bias=qkv_bias)
        elif use_global_vector:
            self.global_qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if use_global_vector:
            self.global_attn_drop = nn.Dropout(attn_drop)
        if use_final_proj:
            self.proj = nn.Linear(dim, dim)
            self.proj_drop = nn.Dropout(proj_drop)
            if use_global_vector:
                self.global_proj = nn.Linear(global_dim, global_dim)
        self.norm = nn.LayerNorm(dim)
        if use_global_vector:
            self.global_vec_norm = nn.LayerNorm(global_dim)
        self.reset_parameters()

    def forward(self, x: Tensor, global_vectors: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Return the attention of ``x [B, T, H, W, D]``; with global vectors ``[B, G, D]`` also their update."""
        grid = make_grid(_triple(x.shape[1:4]), cuboid=self.cuboid_size, strategy=self.strategy, shift=self.shift_size)
        if self.padding_type == "zeros" and any(grid.padding) and self.qkv.bias is not None:
            raise ValueError("CuboidSelfAttention: qkv_bias=True is not supported with padding of type 'zeros'")
        # 1. Projections of tokens and global vectors
        layers = [self.qkv]
        global_inputs: dict[str, Any] = {}
        update: tuple[Any, ...] = ()
        separate = self.use_global_vector and self.separate_global_qkv
        if separate:
            layers += [self.l2g_q_net, self.g2l_k_net, self.g2l_v_net]
        qkv, *tokens = norm_and_project(self.norm, x, layers)
        if self.use_global_vector:
            if global_vectors is None:
                raise ValueError("CuboidSelfAttention: use_global_vector=True requires global_vectors")
            vectors = self.global_vec_norm(global_vectors)
            if separate:
                key, value = self.l2g_global_kv_net(vectors).chunk(2, dim=-1)
                global_inputs = {"global_query": tokens[0], "global_key": key, "global_value": value}
                self_qkv = self.g2g_global_qkv_net(vectors).chunk(3, dim=-1) if self.use_global_self_attn else None
                update = (self.g2l_global_q_net(vectors), tokens[1], tokens[2], self_qkv)
            else:
                query, key, value = self.global_qkv(vectors).chunk(3, dim=-1)
                global_inputs = {"global_key": key, "global_value": value}
                self_qkv = (query, key, value) if self.use_global_self_attn else None
                update = (query, *qkv.chunk(3, dim=-1)[1:], self_qkv)
            global_inputs = {name: tensor.to(qkv.dtype) for name, tensor in global_inputs.items()}
        # 2. Attention within cuboids; the bias index is cut as in the official implementation
        bias = None
        if self.use_relative_pos:
            bias = self._bias(self.relative_position_index[: grid.tokens, : grid.tokens])
        out = cuboid_attention(
            qkv,
            heads=self.num_heads,
            cuboid=self.cuboid_size,
            strategy=self.strategy,
            shift=self.shift_size,
            padding=self.padding_type,
            bias=bias,
            scale=self.scale,
            **global_inputs,
            **self._dropout(),
        )
        if self.use_final_proj:
            out = self.proj_drop(self.proj(out))
        if not self.use_global_vector:
            return out
        # 3. Update of the global vectors
        result = self._update_global_vectors(*update, grid=grid)
        return out, self.proj_drop(self.global_proj(result)) if self.use_final_proj else result

    def _update_global_vectors(
        self, query: Tensor, key: Tensor, value: Tensor, self_qkv: Sequence[Tensor] | None, *, grid: Grid
    ) -> Tensor:
        """Return the attention of the global vectors to all tokens and, with ``self_qkv``, to one another."""
        # 1. Tokens and mask. The public mask is in the order of the grid, its keys in the order of the cuboids.
        mask = None
        if not any(grid.padding):
            key, value = key.flatten(1, 3), value.flatten(1, 3)
        elif self.padding_type == "nearest":
            key, value = (resample(tensor, grid.padded).flatten(1, 3) for tensor in (key, value))
        else:
            layers = (self.g2l_k_net, self.g2l_v_net) if self.separate_global_qkv else (None, None)
            biases = [layer.bias for layer in layers if layer is not None]
            if not biases and self.qkv.bias is not None:
                biases = list(self.qkv.bias.chunk(3)[1:])
            key, value = (
                to_cuboids(tensor if bias is None else tensor - bias, grid).flatten(1, 2)
                + (0 if bias is None else bias)
                for tensor, bias in zip((key, value), biases or (None, None), strict=True)
            )
            if self.padding_type == "ignore":
                t, h, w = grid.padding
                inside = F.pad(torch.ones(grid.size, dtype=torch.bool, device=key.device), (0, w, 0, h, 0, t))
                mask = inside.roll([-shift for shift in grid.shift], (0, 1, 2)).flatten()
        # 2. Softmax over tokens and global vectors
        heads = (self.num_heads, -1)
        query, key, value = (x.unflatten(-1, heads).transpose(1, 2) for x in (query, key, value))
        scores = query @ key.mT * self.scale
        if self_qkv is not None:
            self_query, self_key, self_value = (x.unflatten(-1, heads).transpose(1, 2) for x in self_qkv)
            scores = torch.cat([scores, self_query @ self_key.mT * self.scale], dim=-1)
            value = torch.cat([value, self_value], dim=2)
            mask = None if mask is None else F.pad(mask, (0, self_key.shape[2]), value=True)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = self.global_attn_drop(scores.softmax(-1))
        return (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)


class CuboidCrossAttention(CuboidAttention):
    """Attention of decoder tokens to all memory frames of their cuboid in H and W; includes the norm of the queries.

    A drop-in for ``CuboidCrossAttentionLayer`` of the public Earthformer: the same arguments, parameter names and
    result. Not supported: ``n_temporal`` other than 1, and padding of type ``zeros`` or ``nearest`` on grids that need
    padding (where the official implementation fails as well).

    Source: Gao et al. (arXiv 2207.05833), section 3.3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        n_temporal: int = 1,
        cuboid_hw: Pair = (7, 7),
        shift_hw: Pair = (0, 0),
        strategy: Strategy = ("d", "l", "l"),
        padding_type: str = "ignore",
        cross_last_n_frames: int | None = None,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        max_temporal_relative: int = 50,
        norm_layer: str = "layer_norm",
        use_global_vector: bool = True,
        separate_global_qkv: bool = False,
        global_dim_ratio: int = 1,
        checkpoint_level: int = 1,
        use_relative_pos: bool = True,
        attn_linear_init_mode: str = "0",
        ffn_linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ):
        modes = (attn_linear_init_mode, ffn_linear_init_mode, norm_init_mode)
        super().__init__(dim, num_heads, padding_type=padding_type, qk_scale=qk_scale, init_modes=modes)
        self._check_options(norm_layer, global_dim_ratio, separate_global_qkv)
        if n_temporal != 1:
            raise ValueError(f"CuboidCrossAttention: n_temporal={n_temporal} is not supported; it must be 1")
        self.n_temporal, self.cuboid_hw, self.strategy = n_temporal, tuple(cuboid_hw), _triple(strategy)
        self.shift_hw = tuple(0 if how == "d" else shift for how, shift in zip(strategy[1:], shift_hw, strict=True))
        self.cross_last_n_frames, self.max_temporal_relative = cross_last_n_frames, max_temporal_relative
        self.use_relative_pos, self.use_global_vector = use_relative_pos, use_global_vector
        self.separate_global_qkv, self.global_dim_ratio = separate_global_qkv, global_dim_ratio
        self.checkpoint_level = checkpoint_level
        # 1. Parameters, with the public names
        if use_relative_pos:
            self._add_bias_table(_triple((max_temporal_relative, *self.cuboid_hw)))
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv_proj = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if use_global_vector and separate_global_qkv:
            self.l2g_q_net = nn.Linear(dim, dim, bias=qkv_bias)
            self.l2g_global_kv_net = nn.Linear(global_dim_ratio * dim, 2 * dim, bias=qkv_bias)
        self.norm = nn.LayerNorm(dim)
        self.reset_parameters()

    def forward(self, x: Tensor, mem: Tensor, mem_global_vectors: Tensor | None = None) -> Tensor:
        """Return the attention of ``x [B, T, H, W, D]`` to ``mem [B, T_mem, H, W, D]``, of the shape of ``x``.

        ``mem_global_vectors`` are the global vectors of the memory, ``[B, G, D]``.
        """
        if self.cross_last_n_frames is not None:
            mem = mem[:, -self.cross_last_n_frames :]
        frames, memory_frames, size = x.shape[1], mem.shape[1], x.shape[2:4]
        if max(frames, memory_frames) >= self.max_temporal_relative:
            raise ValueError(
                f"CuboidCrossAttention: {max(frames, memory_frames)} frames; they must be fewer than "
                f"max_temporal_relative={self.max_temporal_relative}"
            )
        if self.padding_type != "ignore" and any(n % tokens for n, tokens in zip(size, self.cuboid_hw, strict=True)):
            raise ValueError(
                f"CuboidCrossAttention: padding_type={self.padding_type!r} is not supported with H, W = {tuple(size)} "
                f"and cuboid_hw={self.cuboid_hw}; use padding_type='ignore'"
            )
        # 1. Projections
        separate = self.use_global_vector and self.separate_global_qkv
        query, *rest = norm_and_project(self.norm, x, [self.q_proj, self.l2g_q_net] if separate else [self.q_proj])
        global_inputs: dict[str, Any] = {}
        if self.use_global_vector:
            if mem_global_vectors is None:
                raise ValueError("CuboidCrossAttention: use_global_vector=True requires mem_global_vectors")
            layer = self.l2g_global_kv_net if separate else self.kv_proj
            key, value = layer(mem_global_vectors).to(query.dtype).chunk(2, dim=-1)
            global_inputs = {"global_key": key, "global_value": value}
            if separate:
                global_inputs["global_query"] = rest[0]
        # 2. Attention within cuboids
        cuboid_hw, shift_hw = self._cuboids(size)
        bias = None
        if self.use_relative_pos:
            bias = self._bias(self._bias_index(frames, memory_frames, tuple(map(min, cuboid_hw, size))))
        out = cuboid_cross_attention(
            query,
            self.kv_proj(mem).to(query.dtype),
            heads=self.num_heads,
            cuboid=_triple((max(frames, memory_frames), *cuboid_hw)),
            strategy=self.strategy,
            shift=_triple((0, *shift_hw)),
            padding=self.padding_type,
            bias=bias,
            scale=self.scale,
            **global_inputs,
            **self._dropout(),
        )
        return self.proj_drop(self.proj(out))

    def _cuboids(self, size: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return cuboid and shift along H and W.

        The official implementation also shifts an axis that is one cuboid: the two parts of the rolled axis do not
        attend to each other. They are the cuboids of a smaller size with a shift.
        """
        cuboids, shifts = list(self.cuboid_hw), list(self.shift_hw)
        for axis, length in enumerate(size):
            if shifts[axis] and cuboids[axis] == length:
                cuboids[axis] -= shifts[axis]
                shifts[axis] %= cuboids[axis]
            elif shifts[axis] and cuboids[axis] > length:
                raise ValueError(
                    f"CuboidCrossAttention: cuboid_hw={self.cuboid_hw} with shift_hw={self.shift_hw} is not supported "
                    f"on H, W = {tuple(size)}; a shifted cuboid must not exceed its axis"
                )
        return cuboids, shifts

    def _bias_index(self, frames: int, memory_frames: int, cuboid_hw: Sequence[int]) -> Tensor:
        """Return the rows of the table for the tokens of a cuboid clipped to ``cuboid_hw``, ``[queries, keys]``."""
        height, width = cuboid_hw
        index = self.relative_position_index.unflatten(1, (-1, *self.cuboid_hw)).unflatten(0, (-1, *self.cuboid_hw))
        index = index[:frames, :height, :width, :memory_frames, :height, :width]
        return index.flatten(3).flatten(0, 2)


def _triple(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    if len(values) != 3:
        raise ValueError(f"got {tuple(values)}; three values are needed, for T, H, W")
    t, h, w = values
    return t, h, w
