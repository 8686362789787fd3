"""Sampling replayed as a CUDA graph gives the same members as the sampling loop, on the kernels."""

import logging

import pytest

pytest.importorskip("simcast_hpc")

import torch
from torch import Tensor

from simcast_hpc.config import CasFormerConfig
from simcast_hpc.diffusion import BatchNoise, SamplingResult, make_schedule, plan_steps, run_sampler, spaced_timesteps
from simcast_hpc.inference.cuda_graph import GraphCache
from simcast_hpc.models.casformer import CasFormer

SHAPE = (3, 2, 8, 8)


def network_on(device: str) -> CasFormer:
    config = CasFormerConfig(frame_width=16, frame_depth=1, frame_heads=2, width=32, depth=2, heads=4)
    torch.manual_seed(0)
    network = CasFormer(config, frames=SHAPE[0], channels=SHAPE[1]).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.to(device)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpm_solver"])
def test_graph_and_loop_give_the_same_members(kind, kernel_device, caplog):
    caplog.set_level(logging.WARNING, logger="simcast_hpc")
    network, schedule = network_on(kernel_device), make_schedule()
    steps = plan_steps(kind, schedule, spaced_timesteps(schedule, 6, "trailing"))

    def loop(start: Tensor, sample: Tensor, member: Tensor, condition: Tensor) -> SamplingResult:
        return run_sampler(
            steps,
            lambda x, t: network(x, t, condition),
            start,
            unconditional=lambda x, t: network(x, t, torch.zeros_like(condition)),
            guidance=2.0,
            clip=1.0,
            batch_noise=BatchNoise(11, sample, member),
        )

    graphs, previous = GraphCache(), None
    for seed in range(4):
        for rows in (5, 2):
            member = torch.arange(rows, device=kernel_device)
            generator = torch.Generator(kernel_device).manual_seed(seed)
            condition = torch.randn(rows, *SHAPE, device=kernel_device, generator=generator)
            start = BatchNoise(11, member * 0 + seed, member).initial(SHAPE)
            tensors = (start, member * 0 + seed, member, condition)
            drawn, want = graphs.run(loop, *tensors), loop(*tensors)
            torch.testing.assert_close(drawn.latents, want.latents, atol=1e-5, rtol=0)
            torch.testing.assert_close(drawn.clip_rate, want.clip_rate)
            assert int(drawn.non_finite) == 0 and 0 < float(drawn.clip_rate) < 1
            if rows == 5:
                assert previous is None or (drawn.latents - previous).abs().max() > 1e-3
                previous = drawn.latents
    assert caplog.text == "", "a loop that could not be recorded would agree too"
