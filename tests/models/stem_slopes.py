"""Gradients at the kink of leaky ReLU: which slope a unit takes when its input is zero within rounding.

The activation of Earthformer's stem and head has slope 1 above zero and 0.1 below. A golden gradient holds the choices
of its own rounding: a unit whose input was 1e-7 there and -1e-7 here has another slope, and the gradients differ by
its whole share, far above any tolerance that means something. So a comparison first finds which of the few units
within rounding of zero the golden took the other way, and then holds everything, computed with those slopes, to the
plain tolerance.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from simcast_hpc.models.earthformer.stems import INPLACE_ACTIVATIONS, LEAKY_SLOPE, ConvBlock

# Relative to the largest input of the layer: a few times what fp32 loses on the way there.
WITHIN_ROUNDING_IN_STEM = 5e-6
WITHIN_ROUNDING_IN_HEAD = 1e-4
FEW_CANDIDATES, MANY_CANDIDATES = 8, 24
ROUNDS = 8
STEP = 1e-3

Unit = tuple[int, int]


@dataclass(eq=False)
class Slopes:
    """Stands for the activation of every convolution; ``flipped`` units (call, flat index) take the other slope."""

    flipped: set[Unit] = field(default_factory=set)
    inputs: list[Tensor] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        call = len(self.inputs)
        chosen = torch.zeros(x.numel(), dtype=torch.bool)
        chosen[[index for place, index in self.flipped if place == call]] = True
        out = torch.where((x > 0) ^ chosen.view(x.shape), x, LEAKY_SLOPE * x)
        if out.requires_grad:
            out.register_hook(lambda gradient: self._keep(call, gradient))
        self.inputs.append(x)
        return out

    def _keep(self, call: int, gradient: Tensor) -> None:
        """Keep the gradient of the first pass; later ones over the same graph have other gradients."""
        self.gradients.setdefault(call, gradient)

    def install(self, model: nn.Module) -> None:
        """Take the place of the activation in every block of convolutions."""
        for module in model.modules():
            if isinstance(module, ConvBlock):
                assert module.activation is INPLACE_ACTIVATIONS["leaky"]
                module.activation = self

    def forget(self) -> None:
        """Forget the calls so far, not the flipped units."""
        self.inputs, self.gradients = [], {}

    def choices(self) -> list[Tensor]:
        """Return for each call which units have the slope of positive inputs."""
        chosen = [(x.detach() > 0).contiguous() for x in self.inputs]
        for call, index in self.flipped:
            chosen[call].view(-1)[index] ^= True
        return chosen

    def near_zero(self) -> list[tuple[int, Tensor]]:
        """Return for each call the flat indices of units within rounding of zero."""
        found = []
        for call, x in enumerate(self.inputs):
            in_stem = 2 * call < len(self.inputs)
            within = WITHIN_ROUNDING_IN_STEM if in_stem else WITHIN_ROUNDING_IN_HEAD
            size = x.detach().abs().flatten()
            found.append((call, (size <= within * size.max()).nonzero().flatten()))
        return found

    def change(self, unit: Unit) -> Tensor:
        """Return by how much the gradient at a unit's input changes if its slope does."""
        call, index = unit
        above = bool(self.inputs[call].flatten()[index] > 0) ^ (unit in self.flipped)
        return self.gradients[call].flatten()[index] * (LEAKY_SLOPE - 1 if above else 1 - LEAKY_SLOPE)


class FixedSlopes:
    """Stands for the activation with the slopes of another run."""

    def __init__(self, model: nn.Module, choices: list[Tensor]):
        self.choices = iter(choices)
        for module in model.modules():
            if isinstance(module, ConvBlock):
                module.activation = self

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(next(self.choices), x, LEAKY_SLOPE * x)


class GoldenBackward:
    """A model's forward and backward pass on golden frames, with the slopes that the golden gradient shows.

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
        """Return output, loss and gradient of the frames; those of the parameters are in the model."""
        self.leaf = self.frames.clone().requires_grad_()
        self.slopes.forget()
        self.model.zero_grad()
        output = self.model(self.leaf)
        loss = (output - self.target).square().mean()
        loss.backward(retain_graph=True)
        assert self.leaf.grad is not None
        return output.detach(), loss.detach(), self.leaf.grad

    def match(self, wanted: Tensor, *, enough: float) -> tuple[Tensor, Tensor, Tensor]:
        """Flip units near zero until the gradient of the frames is ``wanted`` or no flip brings it nearer."""
        for _ in range(ROUNDS):
            output, loss, gradient = self.run()
            missing = wanted - gradient
            if missing.abs().max() <= enough * wanted.abs().max():
                return output, loss, gradient
            flips = self._flips_along(missing, FEW_CANDIDATES) or self._flips_along(missing, MANY_CANDIDATES)
            if not flips:
                return output, loss, gradient
            self.slopes.flipped ^= flips
        return self.run()

    def _flips_along(self, missing: Tensor, most: int) -> set[Unit]:
        """Return candidates whose other slope, one after another, shortens ``missing``."""
        shares = {unit: self._share(unit) for unit in self._candidates(missing)[:most]}
        flips: set[Unit] = set()
        while shares:
            unit = min(shares, key=lambda unit: (missing - shares[unit]).norm().item())
            nearer = missing - shares.pop(unit)
            if nearer.norm() >= missing.norm():
                break
            missing = nearer
            flips.add(unit)
        return flips

    def _candidates(self, missing: Tensor) -> list[Unit]:
        """Return the units near zero whose shares point most along ``missing``.

        The product of a unit's share with a direction is the derivative of its input along it: one more pass at frames
        moved a little gives those of all units at once.
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

    def _share(self, unit: Unit) -> Tensor:
        """Return by how much the gradient of the frames changes if a unit takes its other slope."""
        call, index = unit
        (share,) = torch.autograd.grad(self.slopes.inputs[call].flatten()[index], self.leaf, retain_graph=True)
        return share * self.slopes.change(unit)
