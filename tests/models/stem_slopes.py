"""Gradients at the kink of leaky ReLU: the slope of units whose input is zero within rounding.

The activation of Earthformer's stem and head has slope 1 above zero and 0.1 below. A golden gradient has the slopes
of its own rounding: a unit with input 1e-7 there and -1e-7 here has another slope, and the gradients differ by its
complete contribution, far above a meaningful tolerance. A comparison therefore first determines which of the few units
near zero have the other slope in the golden, and then compares everything, computed with these slopes, at the usual
tolerance.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from simcast_hpc.models.earthformer.stems import INPLACE_ACTIVATIONS, LEAKY_SLOPE, ConvBlock

# Relative to the largest input of the layer: a few times the accumulated fp32 rounding error.
WITHIN_ROUNDING_IN_STEM = 5e-6
WITHIN_ROUNDING_IN_HEAD = 1e-4
FEW_CANDIDATES, MANY_CANDIDATES = 8, 24
ROUNDS = 8
STEP = 1e-3

Unit = tuple[int, int]


@dataclass(eq=False)
class Slopes:
    """Replace the activation of every convolution; ``flipped`` units (call, flat index) have the other slope."""

    flipped: set[Unit] = field(default_factory=set)
    inputs: list[Tensor] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        call = len(self.inputs)
        flipped = torch.zeros(x.numel(), dtype=torch.bool)
        flipped[[index for unit_call, index in self.flipped if unit_call == call]] = True
        out = torch.where((x > 0) ^ flipped.view(x.shape), x, LEAKY_SLOPE * x)
        if out.requires_grad:
            out.register_hook(lambda gradient: self._keep(call, gradient))
        self.inputs.append(x)
        return out

    def _keep(self, call: int, gradient: Tensor) -> None:
        """Store the gradient of the first pass; later passes over the same graph have other gradients."""
        self.gradients.setdefault(call, gradient)

    def install(self, model: nn.Module) -> None:
        """Replace the activation in every block of convolutions."""
        for module in model.modules():
            if isinstance(module, ConvBlock):
                assert module.activation is INPLACE_ACTIVATIONS["leaky"]
                module.activation = self

    def forget(self) -> None:
        """Discard the calls so far but not the flipped units."""
        self.inputs, self.gradients = [], {}

    def choices(self) -> list[Tensor]:
        """Return, per call, which units have the slope of positive inputs."""
        positive = [(x.detach() > 0).contiguous() for x in self.inputs]
        for call, index in self.flipped:
            positive[call].view(-1)[index] ^= True
        return positive

    def near_zero(self) -> list[tuple[int, Tensor]]:
        """Return, per call, the flat indices of units within rounding of zero."""
        near = []
        for call, x in enumerate(self.inputs):
            in_stem = 2 * call < len(self.inputs)
            within = WITHIN_ROUNDING_IN_STEM if in_stem else WITHIN_ROUNDING_IN_HEAD
            size = x.detach().abs().flatten()
            near.append((call, (size <= within * size.max()).nonzero().flatten()))
        return near

    def change(self, unit: Unit) -> Tensor:
        """Return the change of the gradient at the input of a unit if its slope is flipped."""
        call, index = unit
        above = bool(self.inputs[call].flatten()[index] > 0) ^ (unit in self.flipped)
        return self.gradients[call].flatten()[index] * (LEAKY_SLOPE - 1 if above else 1 - LEAKY_SLOPE)


class FixedSlopes:
    """Replace the activation by one with the slopes of another run."""

    def __init__(self, model: nn.Module, choices: list[Tensor]):
        self.choices = iter(choices)
        for module in model.modules():
            if isinstance(module, ConvBlock):
                module.activation = self

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(next(self.choices), x, LEAKY_SLOPE * x)


class GoldenBackward:
    """Forward and backward pass of a model on golden frames, with the slopes of the golden gradient.

    Args:
        model: an Earthformer; its activations are replaced.
        frames: ``[B, T, C, H, W]``.
        target: ``[B, T', C, H, W]``; the loss is the mean squared error.
    """

    def __init__(self, model: nn.Module, frames: Tensor, target: Tensor):
        self.model, self.frames, self.target = model, frames, target
        self.slopes = Slopes()
        self.slopes.install(model)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return output, loss and gradient of the frames; the gradients of the parameters are in the model."""
        self.leaf = self.frames.clone().requires_grad_()
        self.slopes.forget()
        self.model.zero_grad()
        output = self.model(self.leaf)
        loss = (output - self.target).square().mean()
        loss.backward(retain_graph=True)
        assert self.leaf.grad is not None
        return output.detach(), loss.detach(), self.leaf.grad

    def match(self, expected: Tensor, *, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Flip units near zero until the gradient of the frames is ``expected`` or no flip reduces the difference."""
        for _ in range(ROUNDS):
            output, loss, gradient = self.run()
            missing = expected - gradient
            if missing.abs().max() <= tolerance * expected.abs().max():
                return output, loss, gradient
            flips = self._flips_along(missing, FEW_CANDIDATES) or self._flips_along(missing, MANY_CANDIDATES)
            if not flips:
                return output, loss, gradient
            self.slopes.flipped ^= flips
        return self.run()

    def _flips_along(self, missing: Tensor, limit: int) -> set[Unit]:
        """Return candidates whose flips, applied greedily, reduce the norm of ``missing``."""
        contributions = {unit: self._contribution(unit) for unit in self._candidates(missing)[:limit]}
        flips: set[Unit] = set()
        while contributions:
            unit = min(contributions, key=lambda unit: (missing - contributions[unit]).norm().item())
            remaining = missing - contributions.pop(unit)
            if remaining.norm() >= missing.norm():
                break
            missing = remaining
            flips.add(unit)
        return flips

    def _candidates(self, missing: Tensor) -> list[Unit]:
        """Return the units near zero, sorted by the projection of their contribution on ``missing``.

        The projection of a contribution on a direction is the derivative of the unit's input along it, so one more pass
        at slightly moved frames gives all of them.
        """
        here, self.slopes.inputs = self.slopes.inputs, []
        with torch.no_grad():
            self.model(self.frames + STEP * missing / missing.abs().max())
        moved, self.slopes.inputs = self.slopes.inputs, here
        products = []
        for call, near in self.slopes.near_zero():
            along = (moved[call] - here[call]).detach().flatten()
            products += [((along[at] * self.slopes.change((call, at))).item(), (call, at)) for at in near.tolist()]
        return [unit for product, unit in sorted(products, reverse=True) if product > 0]

    def _contribution(self, unit: Unit) -> Tensor:
        """Return by how much the gradient of the frames changes if a unit takes its other slope."""
        call, index = unit
        (gradient,) = torch.autograd.grad(self.slopes.inputs[call].flatten()[index], self.leaf, retain_graph=True)
        return gradient * self.slopes.change(unit)
