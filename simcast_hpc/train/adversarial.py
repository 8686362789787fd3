"""Adversarial training of an autoencoder under DeepSpeed.

DeepSpeed trains the autoencoder. The discriminator is a plain torch module, replicated on every rank, with its own
optimizer and gradients averaged explicitly: with two DeepSpeed engines in one process, each takes the other's backward
pass for its own. For the same reason the adversarial loss never passes through the engine's backward pass: both losses
are differentiated with respect to a detached reconstruction, and the engine gets their sum as the gradient of the
reconstruction.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from simcast_hpc.config import AutoencoderTrainingConfig, OptimizerConfig
from simcast_hpc.distributed.named_tensors import MOMENTS, Tensors
from simcast_hpc.distributed.process_group import TorchRanks
from simcast_hpc.losses import hinge_loss, reconstruction_loss
from simcast_hpc.models.autoencoder import Autoencoder, Posterior
from simcast_hpc.models.discriminator import Discriminator

from .stage_engine import StageEngine

_EPS = 1e-4
_MAX_WEIGHT = 1e4


class AutoencoderModule(torch.nn.Module):
    """The module of the engine: the autoencoder and the log of the learned variance of its error."""

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model
        self.log_variance = torch.nn.Parameter(torch.zeros(1))

    def forward(self, frames: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return reconstruction, mean and log-variance of the posterior, and the learned log-variance, all fp32."""
        reconstruction, posterior = self.model(frames, noise)
        return reconstruction, *posterior, self.log_variance.float()


class AdversarialEngine(StageEngine):
    """A DeepSpeed engine and a discriminator, used by the loop as one engine.

    The adaptive weight of the adversarial loss is computed per micro-batch, over all ranks. It is the only quantity of
    the project that depends on how a global batch is divided into micro-batches.
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
        """Wrap an engine of an :class:`AutoencoderModule`. A collective."""
        super().__init__(engine)
        self.ranks, self.config = ranks, config
        self.step_number = 0
        self.discriminator = discriminator.to(ranks.device)
        initial = {name: tensor.cpu() for name, tensor in self.discriminator.state_dict().items()}
        self.discriminator.load_state_dict(ranks.broadcast(initial))
        self._optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=0.0, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self._surrogate: Tensor | None = None
        self._discriminator_loss: Tensor | None = None
        self._last_layer_input: Tensor | None = None
        engine.module.model.last_layer.register_forward_hook(self._store_input)

    @property
    def is_adversarial(self) -> bool:
        """Whether the discriminator takes part in the next optimizer step."""
        return self.step_number >= self.config.adversarial_start

    def __call__(self, *sample: Tensor) -> Tensor:
        """Return the loss of a micro-batch and store what :meth:`backward` needs.

        Args:
            *sample: frames, fp32 ``[B, C, H, W]`` in [0, 1] and 0 where missing; their mask of valid pixels, bool;
                standard normal noise in the shape of the latents.
        """
        frames, valid, noise = sample
        # 1. Reconstruction loss, differentiated with respect to the detached reconstruction
        reconstruction, mean, log_variance, learned_log_variance = self.engine(frames, noise)
        detached = reconstruction.detach().requires_grad_()
        reconstruction_term = reconstruction_loss(frames, detached, valid, learned_log_variance.detach())
        (gradient,) = torch.autograd.grad(reconstruction_term, detached)
        # 2. Terms that depend on encoder and variance only. The variance is learned at the reconstruction's value.
        divergence = Posterior(mean, log_variance).divergence().mean()
        variance_term = reconstruction_loss(frames, reconstruction.detach(), valid, learned_log_variance)
        loss = reconstruction_term.detach() + self.config.divergence_weight * divergence.detach()
        # 3. Adversarial loss and the discriminator's own
        self._discriminator_loss = None
        if self.is_adversarial:
            # Missing pixels are 0 in both, so they give the discriminator nothing to distinguish.
            masked = torch.where(valid, detached, 0.0)
            adversarial_term = -self.discriminator(masked).mean()
            (adversarial_gradient,) = torch.autograd.grad(adversarial_term, detached)
            weight = self._adaptive_weight(gradient, adversarial_gradient)
            gradient = gradient + weight * adversarial_gradient
            loss = loss + weight * adversarial_term.detach()
            self._discriminator_loss = hinge_loss(self.discriminator(frames), self.discriminator(masked.detach()))
        # 4. A scalar whose gradient is that of the loss
        self._surrogate = (reconstruction * gradient).sum() + variance_term + self.config.divergence_weight * divergence
        return loss

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of the last micro-batch in both networks; ``loss`` itself is not used."""
        assert self._surrogate is not None
        self.engine.backward(self._surrogate)
        if self._discriminator_loss is not None:
            (self._discriminator_loss / self.engine.gradient_accumulation_steps()).backward()
        self._surrogate = self._discriminator_loss = None

    def step(self) -> None:
        """Count a micro-batch; after the last one of an optimizer step, update both networks. A collective."""
        is_last = self.engine.is_gradient_accumulation_boundary()
        schedule = {key: self.engine.optimizer.param_groups[0][key] for key in ("lr", "betas")}
        self.engine.step()
        if not is_last:
            return
        if self.is_adversarial:
            parameters = list(self.discriminator.parameters())
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            mean = self.ranks.mean(flat).split([p.numel() for p in parameters])
            for parameter, gradient in zip(parameters, mean, strict=True):
                parameter.grad = gradient.view_as(parameter)
            self._optimizer.param_groups[0].update(schedule)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self.step_number += 1

    def gradients_are_finite(self) -> Tensor:
        """Return whether this rank's gradients of both networks are finite, a bool tensor."""
        gradients = [parameter.grad for parameter in self.discriminator.parameters() if parameter.grad is not None]
        finite = torch.isfinite(torch.nn.utils.get_total_norm(gradients, float("inf")))
        return finite & super().gradients_are_finite().to(finite.device)

    def skip_step(self) -> None:
        """Count the pending optimizer step without changing either network. A collective."""
        super().skip_step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step_number += 1

    def auxiliary_state(self) -> Tensors:
        """Return the discriminator's weights and moments by name."""
        tensors: Tensors = {}
        for name, parameter in self.discriminator.named_parameters():
            state = self._optimizer.state.get(parameter, {})
            tensors[f"param/{name}"] = parameter.detach()
            tensors |= {f"{key}/{name}": state[key] for key in MOMENTS if state}
        return tensors

    def restore_auxiliary(self, state: Tensors, *, step: int) -> None:
        """Restore the discriminator as it was after ``step`` optimizer steps."""
        self.step_number = step
        for name, parameter in self.discriminator.named_parameters():
            parameter.data.copy_(state[f"param/{name}"])
            if f"exp_avg/{name}" in state:
                moments = {key: state[f"{key}/{name}"].to(parameter.device) for key in MOMENTS}
                updates = torch.tensor(float(step - self.config.adversarial_start))
                self._optimizer.state[parameter] = {"step": updates, **moments}

    def _adaptive_weight(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Return the weight of the adversarial loss, from both gradients at the weights of the last layer."""
        layer = self.engine.module.model.last_layer
        assert self._last_layer_input is not None
        shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
        both = torch.stack(
            [
                conv2d_weight(self._last_layer_input, shape, gradient, padding=layer.padding)
                for gradient in (reconstruction, adversarial)
            ]
        )
        norms = self.ranks.mean(both).flatten(1).norm(dim=1)
        ratio = (norms[0] / (norms[1] + _EPS)).clamp(0.0, _MAX_WEIGHT)
        return self.config.adversarial_weight * ratio

    def _store_input(self, _module: torch.nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        self._last_layer_input = inputs[0].detach().float()
