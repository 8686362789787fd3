"""Ensembles of finished runs: members independent of batch, chunk and order; mismatched runs are rejected."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import load_file, save_file

from simcast_hpc.config import ConfigError, SamplingConfig
from simcast_hpc.data.open_windows import open_windows, target_spec
from simcast_hpc.diffusion.sampling_loop import NonFiniteLatentError
from simcast_hpc.distill.cut_windows import to_frames
from simcast_hpc.evaluation.entries import ForecastFile
from simcast_hpc.inference.cuda_graph import GraphCache
from simcast_hpc.inference.ensemble import sample_identity
from simcast_hpc.inference.ensemble_files import batches_per_round, ensemble_products, share_members, write_ensembles
from simcast_hpc.inference.trained_ensemble import load_autoencoder, load_ensemble
from simcast_hpc.inference.trained_model import load_trained
from simcast_hpc.storage.run_directory import RunDirectory, file_hash
from tests.emulated_graphs import EmulatedGraph


@pytest.fixture(scope="module")
def ensemble(runs: Path):
    return load_ensemble(runs / "diffusion")


@pytest.fixture(scope="module")
def frames(ensemble) -> torch.Tensor:
    source = open_windows(ensemble.config.data, split="train", frames=7)
    return torch.stack([torch.from_numpy(source.read(index)[:3]) for index in (0, 3, 5)])


def changed(ensemble, **values):
    return ensemble.sampled_by(ensemble.sampling.model_copy(update=values))


def test_members_differ_and_are_in_range(ensemble, frames):
    members = ensemble.forecast(frames, frames_out=4)
    assert members.shape == (3, 5, 4, 16, 16) and members.dtype == torch.float32
    assert members.min() >= 0 and members.max() <= 1
    spread = (members[:, :, None] - members[:, None]).abs().flatten(3).amax(-1) + torch.eye(5)
    assert spread.min() > 1e-3


@pytest.mark.parametrize(
    "sampling",
    [{}, {"sampler": "dpm_solver"}, {"sampler": "ddpm"}, {"eta": 1.0}, {"sampler": "dpm_solver_sde", "order": 3}],
)
def test_chunk_size_does_not_change_members(ensemble, frames, sampling):
    one, five = (changed(ensemble, chunk=chunk, **sampling).forecast(frames, frames_out=4) for chunk in (1, 5))
    torch.testing.assert_close(one, five, atol=1e-5, rtol=0)


def test_member_is_independent_of_other_members(ensemble, frames):
    together = ensemble.forecast(frames, frames_out=4)
    single = ensemble.members(frames[1:2], [4, 0])
    torch.testing.assert_close(single[0], together[1, [4, 0]], atol=1e-5, rtol=0)
    more = changed(ensemble, members=7).forecast(frames, frames_out=4)
    torch.testing.assert_close(more[:, :5], together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["v", "sample"])
def test_samples_from_pure_noise_with_every_sampler(ensemble, frames, prediction):
    section = ensemble.config.diffusion.model_copy(update={"prediction": prediction, "zero_terminal_snr": True})
    pure = replace(ensemble, config=ensemble.config.model_copy(update={"diffusion": section}))
    one, settings = frames[:1], {"spacing": "trailing", "steps": 5, "clip": None}
    found = {
        (sampler, order): changed(pure, sampler=sampler, order=order, **settings).members(one, [0, 3])
        for sampler, order in (
            ("ddim", 2),
            ("ddpm", 2),
            *((f"dpm_solver{kind}", n) for kind in ("", "_sde") for n in (1, 2, 3)),
        )
    }
    assert all(torch.isfinite(members).all() for members in found.values())
    for first_order, equal in (("dpm_solver", "ddim"), ("dpm_solver_sde", "ddpm")):
        torch.testing.assert_close(found.pop((first_order, 1)), found[equal, 2], atol=1e-4, rtol=0)
    distinct = list(found.values())
    assert all(not torch.equal(a, b) for n, a in enumerate(distinct) for b in distinct[:n])
    with pytest.raises(ConfigError, match="sampling: spacing karras requires a finite largest sigma"):
        changed(pure, spacing="karras")


@pytest.mark.parametrize("sampling", [{}, {"sampler": "dpm_solver_sde", "order": 3, "spacing": "karras"}])
def test_cuda_graph_does_not_change_members(ensemble, frames, sampling):
    chunked = changed(ensemble, chunk=4, **sampling)
    want = chunked.forecast(frames, frames_out=4)
    graphs = GraphCache(capture=EmulatedGraph)  # pyright: ignore[reportArgumentType]
    graphed = replace(chunked, graphs=graphs)
    before = EmulatedGraph.captures
    assert torch.equal(graphed.forecast(frames, frames_out=4), want)
    assert EmulatedGraph.captures == before + 1, "captured at the second of three full chunks; the remainder runs once"
    assert torch.equal(replace(changed(graphed, cuda_graph=False), graphs=graphs).forecast(frames, frames_out=4), want)
    assert EmulatedGraph.captures == before + 1
    assert changed(graphed, seed=1).graphs is not graphs, "a graph contains the sampling settings"


def test_rejects_non_finite_latents(ensemble, frames, monkeypatch):
    forward = ensemble.network.forward
    monkeypatch.setattr(ensemble.network, "forward", lambda x, *rest: forward(x, *rest) * float("nan"))
    with pytest.raises(NonFiniteLatentError, match="15 of 15 sampled latents are not finite"):
        changed(ensemble, chunk=4).forecast(frames, frames_out=4)


def test_members_depend_on_seed_and_input(ensemble, frames):
    base = ensemble.members(frames[:1], [0])
    assert (changed(ensemble, seed=1).members(frames[:1], [0]) - base).abs().max() > 1e-3
    assert len(set(sample_identity(frames).tolist())) == 3
    assert torch.equal(sample_identity(frames[1:]), sample_identity(frames)[1:])


def test_bf16_members_are_close_to_fp32(runs, frames):
    loaded = load_ensemble(runs / "diffusion")
    exact = loaded.members(frames[:1], [0, 1])
    rounded = changed(loaded, precision="bf16").on(torch.device("cpu")).members(frames[:1], [0, 1])
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.02
    assert torch.equal(
        loaded.on(torch.device("cpu")).members(frames[:1], [0]).isfinite(), torch.ones(1, 1, 4, 16, 16) > 0
    )


def test_precision_takes_effect_without_changing_the_loaded_networks(runs, frames):
    loaded = load_ensemble(runs / "diffusion")
    exact = loaded.members(frames[:1], [0, 1])
    rounded = changed(loaded, precision="bf16")
    assert {one.dtype for one in (*rounded.network.parameters(), *rounded.autoencoder.network.parameters())} == {
        torch.bfloat16
    }
    assert 0 < (rounded.members(frames[:1], [0, 1]) - exact).abs().mean() < 0.02
    assert torch.equal(loaded.members(frames[:1], [0, 1]), exact)
    with pytest.raises(ConfigError, match=r"sampling\.precision='fp32': the weights are loaded in bf16"):
        changed(rounded, precision="fp32")


def test_a_run_in_bf16_can_be_loaded_in_fp32(runs, tmp_path, frames):
    shutil.copytree(runs, tmp_path / "runs")
    config = RunDirectory(tmp_path / "runs" / "diffusion").config
    text = config.read_text(encoding="utf-8")
    assert "precision: fp32\n  cuda_graph" in text
    config.write_text(text.replace("precision: fp32\n  cuda_graph", "precision: bf16\n  cuda_graph"), encoding="utf-8")
    stored = load_ensemble(config.parent)
    assert next(stored.network.parameters()).dtype == torch.bfloat16
    exact = load_ensemble(config.parent, change_sampling=lambda own: own.model_copy(update={"precision": "fp32"}))
    assert torch.equal(exact.members(frames[:1], [0]), load_ensemble(runs / "diffusion").members(frames[:1], [0]))


def test_decoding_inverts_latent_scale(ensemble, frames):
    frames = to_frames(frames).values
    mean, _ = ensemble.autoencoder.moments(frames)
    decoded = ensemble.autoencoder.decode(mean * ensemble.autoencoder.scale)
    network = ensemble.autoencoder.network
    want = network(frames.flatten(0, 1)[:, None])[0][:, 0].clamp(0, 1)
    torch.testing.assert_close(decoded.flatten(0, 1), want)
    assert ensemble.autoencoder.scale == 1.25


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"steps": 1001}, "1001 sampling steps for a schedule of 1000"),
        ({"sampler": "ddpm", "eta": 0.5}, r"eta=0\.5 is invalid for sampler ddpm"),
        ({"sampler": "ddpm", "order": 3}, "order=3 is invalid for sampler ddpm"),
        ({"steps": 1, "spacing": "linspace"}, "choose 2 to 1000 for spacing linspace"),
    ],
)
def test_rejects_invalid_sampling_settings(ensemble, sampling, message):
    with pytest.raises(ConfigError, match=message):
        changed(ensemble, **sampling)


def test_rejects_guidance_without_condition_dropout(ensemble):
    diffusion = ensemble.config.diffusion.model_copy(update={"condition_dropout": 0.0})
    untrained = replace(ensemble, config=ensemble.config.model_copy(update={"diffusion": diffusion}))
    with pytest.raises(ConfigError, match="requires a network trained with condition dropout"):
        untrained.sampled_by(SamplingConfig(guidance=2.0))
    untrained.sampled_by(SamplingConfig(guidance=1.0))


@pytest.mark.parametrize("part", ["autoencoder", "student"])
def test_rejects_parts_of_another_run(runs, tmp_path, part):
    for name in ("autoencoder", "student", "diffusion"):
        shutil.copytree(runs / name, tmp_path / name)
    folder, config = RunDirectory(tmp_path / part), RunDirectory(tmp_path / "diffusion").config
    config.write_text(config.read_text().replace(str(runs), str(tmp_path)))
    load_ensemble(tmp_path / "diffusion")
    weights = {name: tensor + 0.01 for name, tensor in load_file(folder.weights).items()}
    save_file(weights, folder.weights, metadata={"scale_factor": "1.25"})
    marker = json.loads(folder.done.read_text())
    folder.finish(marker["inputs"], steps=3, weights=file_hash(folder.weights))
    with pytest.raises(ConfigError, match=f"was trained with the {part} of weights"):
        load_ensemble(tmp_path / "diffusion")


def test_rejects_run_of_another_stage(runs, tmp_path):
    with pytest.raises(ConfigError, match="is a run of stage direct; a finished autoencoder is needed"):
        load_autoencoder(runs / "student")
    with pytest.raises(
        ConfigError, match="is a run of stage autoencoder; a finished teacher or direct or student is needed"
    ):
        load_trained(runs / "autoencoder")
    with pytest.raises(ConfigError, match="is not a finished training run"):
        load_ensemble(tmp_path / "nothing")


def test_products_of_floats_use_the_threshold_of_encoded_values():
    codes = torch.tensor([218, 219, 220], dtype=torch.float32) / torch.tensor(255.0)
    products = ensemble_products(codes.view(1, 3, 1, 1, 1), [219.0])
    assert products.probability.item() == pytest.approx(2 / 3)
    assert products.mean.item() == pytest.approx(219 / 255)


def test_evaluation_reads_the_file(ensemble, tmp_path):
    out = tmp_path / "deep" / "ensemble.h5"
    source = open_windows(ensemble.config.data, split="train", frames=7)
    write_ensembles(ensemble, source, out, spec=target_spec(ensemble.config.data), windows=3, batch=2)
    written = ForecastFile(out)
    keys = [source.key(index) for index in range(3)]
    codes = torch.stack([torch.from_numpy(source.read(index)[:3]) for index in range(3)])
    want = ensemble.forecast(codes, frames_out=4)
    got = written.read(keys, frames_out=4).float()
    torch.testing.assert_close(got, want, atol=5e-4, rtol=0)
    with h5py.File(out) as file:
        mean = torch.from_numpy(file["mean"][:]).float()  # pyright: ignore
        assert file["probability"].shape == (3, len(target_spec(ensemble.config.data).threshold_codes()), 4, 16, 16)  # pyright: ignore
        assert file.attrs["student"] == ensemble.student.weights_hash
    torch.testing.assert_close(mean, want.mean(dim=1), atol=5e-4, rtol=0)
    assert [path.name for path in out.parent.iterdir()] == ["ensemble.h5"]


def clip_rate(ensemble, out: Path, *, batch: int, **sampling) -> float:
    source = open_windows(ensemble.config.data, split="train", frames=7)
    spec = target_spec(ensemble.config.data)
    write_ensembles(changed(ensemble, **sampling), source, out, spec=spec, windows=3, batch=batch)
    with h5py.File(out) as file:
        return float(file.attrs["clip_rate"])  # pyright: ignore


def test_stores_and_logs_the_clip_rate(ensemble, tmp_path, caplog):
    caplog.set_level("INFO", logger="simcast_hpc")
    assert clip_rate(ensemble, tmp_path / "none.h5", batch=2, clip=None) == 0
    assert "clipped" not in caplog.text
    assert clip_rate(ensemble, tmp_path / "all.h5", batch=2, clip=1e-12) == 1
    assert "100 % of the elements of the clean latents were clipped at sampling.clip=1e-12" in caplog.text
    some = [
        clip_rate(ensemble, tmp_path / "some.h5", batch=batch, clip=0.5, chunk=chunk)
        for batch, chunk in ((1, 2), (2, 4), (3, 50))
    ]
    assert 0.01 < some[0] < 0.99
    assert some == pytest.approx([some[0]] * 3, rel=1e-3)
    source = open_windows(ensemble.config.data, split="train", frames=7)
    codes = torch.stack([torch.from_numpy(source.read(index)[:3]) for index in range(3)])
    assert float(changed(ensemble, clip=0.5).sample_members(codes, range(5)).clip_rate) == pytest.approx(
        some[0], rel=1e-3
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 10, 12, 15, 64, 100])
@pytest.mark.parametrize("members", [1, 5, 10])
def test_all_ranks_sample_equally_many_members(members, ranks):
    rounds = batches_per_round(members, ranks)
    for batches in {rounds, 1, max(1, rounds - 1)}:
        shares = share_members(batches, members, ranks)
        pairs = [(batch, member) for share in shares for batch, numbers in share.items() for member in numbers]
        assert pairs == [(batch, member) for batch in range(batches) for member in range(members)], (
            "each once, in order"
        )
        sizes = [sum(map(len, share.values())) for share in shares]
        assert len(shares) == ranks and max(sizes) - min(sizes) <= (batches != rounds)


def test_failure_leaves_no_file(ensemble, tmp_path, monkeypatch):
    source = open_windows(ensemble.config.data, split="train", frames=7)

    def broken(*_arguments):
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(ensemble), "sample_members", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        write_ensembles(ensemble, source, tmp_path / "e.h5", spec=target_spec(ensemble.config.data), windows=1, batch=1)
    assert list(tmp_path.iterdir()) == []


def test_warns_about_crps_of_one_member(ensemble, tmp_path, caplog):
    source = open_windows(ensemble.config.data, split="train", frames=7)
    single = changed(ensemble, members=1)
    write_ensembles(single, source, tmp_path / "e.h5", spec=target_spec(ensemble.config.data), windows=1, batch=1)
    assert "its standard CRPS is its mean absolute error" in caplog.text
