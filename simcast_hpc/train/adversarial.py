"""Training an autoencoder against a discriminator under DeepSpeed.

The autoencoder is the engine's; the discriminator is a plain torch module that every rank holds whole, with an
optimizer of its own, its gradients averaged by hand. Two engines would be wrong: each takes the other's backward for
its own. So the adversarial gradient never passes through the engine's backward as a loss: both losses are
differentiated by a detached reconstruction first, and the engine is given the sum as the gradient of the
reconstruction.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from simcast_hpc.config import AutoencoderTrainingConfig, OptimizerConfig
from simcast_hpc.distributed.gradients import gradients_are_finite, leave_out_step
from simcast_hpc.distributed.named_tensors import Tensors
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.losses import hinge_loss, reconstruction_loss
from simcast_hpc.models.autoencoder import Autoencoder, Posterior
from simcast_hpc.models.discriminator import Discriminator

_EPS = 1e-4
_MOST_WEIGHT = 1e4
_MOMENTS = ("exp_avg", "exp_avg_sq")


class AutoencoderModule(torch.nn.Module):
    """What the engine holds: the autoencoder and the logarithm of the learned variance of its error."""

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model
        self.log_variance = torch.nn.Parameter(torch.zeros(1))

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return reconstruction, mean and log-variance of the posterior, and the learned log-variance, all fp32."""
        reconstruction, posterior = self.model(frames, noise)
        return reconstruction, *posterior, self.log_variance.float()


class AdversarialEngine:
    """A DeepSpeed engine and a discriminator that the training loop takes for one engine.

    The adaptive weight is computed for each micro batch, over all ranks: with accumulation it depends on how a global
    batch falls into micro batches, as nothing else does.
    """

    def __init__(
        self,
        engine: Any,
        discriminator: Discriminator,
        ranks: TorchRanks,
        *,
        config: AutoencoderTrainingConfig,
        optimizer: OptimizerConfig,
    ):
        """Take over an engine that holds an :class:`AutoencoderModule`. A collective."""
        self.engine, self.ranks, self.config = engine, ranks, config
        self.step_number = 0
        self.discriminator = discriminator.to(ranks.device)
        self.discriminator.load_state_dict(ranks.broadcast(_on_host(self.discriminator.state_dict())))
        self._optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=0.0, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self._surrogate: Tensor | None = None
        self._discriminator_loss: Tensor | None = None
        self._last_input: Tensor | None = None
        engine.module.model.last_layer.register_forward_hook(self._keep_input)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the engine's."""
        return getattr(self.engine, name)

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator takes part in the coming optimizer step."""
        return self.step_number >= self.config.adversarial_start

    def __call__(self, frames: Tensor, valid: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of a micro batch; what :meth:`backward` needs is kept.

        Args:
            frames: fp32 ``[B, C, H, W]`` in [0, 1], 0 where missing.
            valid: bool, same shape.
            noise: standard normal, of the latents' shape.
        """
        made, mean, log_variance, spread = self.engine(frames, noise)
        leaf = made.detach().requires_grad_()
        reconstruction = reconstruction_loss(frames, leaf, valid, spread.detach())
        (gradient,) = torch.autograd.grad(reconstruction, leaf)
        divergence = Posterior(mean, log_variance).divergence().mean()
        # The variance is learned through the very loss, at the reconstruction's value.
        learned = reconstruction_loss(frames, made.detach(), valid, spread)
        loss = reconstruction.detach() + self.config.divergence_weight * divergence.detach()
        self._discriminator_loss = None
        if self.adversarial:
            # Missing pixels show the discriminator the same zeros in both.
            shown = torch.where(valid, leaf, 0.0)
            fooled = -self.discriminator(shown).mean()
            (against,) = torch.autograd.grad(fooled, leaf)
            weight = self._adaptive_weight(gradient, against)
            gradient = gradient + weight * against
            loss = loss + weight * fooled.detach()
            self._discriminator_loss = hinge_loss(self.discriminator(frames), self.discriminator(shown.detach()))
        self._surrogate = (made * gradient).sum() + learned + self.config.divergence_weight * divergence
        return loss

    def backward(self, _loss: Tensor) -> None:
        """Accumulate the gradients of the micro batch that was seen last."""
        assert self._surrogate is not None
        self.engine.backward(self._surrogate)
        if self._discriminator_loss is not None:
            (self._discriminator_loss / self.engine.gradient_accumulation_steps()).backward()
        self._surrogate = self._discriminator_loss = None

    def step(self) -> None:
        """Count a micro batch; on the last of a step, update both networks. A collective."""
        last = self.engine.is_gradient_accumulation_boundary()
        rate = self.engine.optimizer.param_groups[0]["lr"]
        self.engine.step()
        if not last:
            return
        if self.adversarial:
            parameters = list(self.discriminator.parameters())
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            mean = self.ranks.mean(flat).split([p.numel() for p in parameters])
            for parameter, gradient in zip(parameters, mean, strict=True):
                parameter.grad = gradient.view_as(parameter)
            self._optimizer.param_groups[0]["lr"] = rate
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self.step_number += 1

    def gradients_are_finite(self) -> Tensor:
        """Return whether this rank's gradients are, of both networks."""
        own = [parameter.grad for parameter in self.discriminator.parameters() if parameter.grad is not None]
        finite = torch.isfinite(torch.nn.utils.get_total_norm(own, float("inf")))
        return finite & gradients_are_finite(self.engine).to(finite.device)

    def leave_out_step(self) -> None:
        """Count the optimizer step that is due without changing either network. A collective."""
        leave_out_step(self.engine)
        self._optimizer.zero_grad(set_to_none=True)
        self.step_number += 1

    def state(self) -> Tensors:
        """Return the discriminator's weights and moments by name, for a checkpoint."""
        found: Tensors = {}
        for name, parameter in self.discriminator.named_parameters():
            state = self._optimizer.state.get(parameter, {})
            found[f"param/{name}"] = parameter.detach()
            found |= {f"{key}/{name}": state[key] for key in _MOMENTS if state}
        return found

    def restore(self, state: Tensors, *, step: int) -> None:
        """Take up the discriminator where ``step`` optimizer steps left it."""
        self.step_number = step
        for name, parameter in self.discriminator.named_parameters():
            parameter.data.copy_(state[f"param/{name}"])
            if f"exp_avg/{name}" in state:
                moments = {key: state[f"{key}/{name}"].to(parameter.device) for key in _MOMENTS}
                seen = torch.tensor(float(step - self.config.adversarial_start))
                self._optimizer.state[parameter] = {"step": seen, **moments}

    def _adaptive_weight(self, reconstruction: Tensor, against: Tensor) -> Tensor:
        """Return the weight of the adversarial loss, from both gradients at the last layer's weights."""
        layer = self.engine.module.model.last_layer
        assert self._last_input is not None
        shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
        both = torch.stack(
            [
                conv2d_weight(self._last_input, shape, gradient, padding=layer.padding)
                for gradient in (reconstruction, against)
            ]
        )
        norms = self.ranks.mean(both).flatten(1).norm(dim=1)
        ratio = (norms[0] / (norms[1] + _EPS)).clamp(0.0, _MOST_WEIGHT)
        return self.config.adversarial_weight * ratio

    def _keep_input(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self._last_input = inputs[0].detach().float()


def _on_host(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in state.items()}
