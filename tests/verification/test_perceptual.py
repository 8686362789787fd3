"""LPIPS is an extra: it says what it lacks, and refuses what it cannot mean."""

import importlib

import pytest
import torch

from simcast_hpc.verification import perceptual

FIELD = torch.zeros(1, 2, 64, 64)


def test_without_the_package_it_names_the_extra(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install -c constraints\.txt -e '\.\[perceptual\]'"):
        perceptual.lpips(FIELD, FIELD)


def test_without_weights_it_says_where_they_go(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib, "import_module", lambda _name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"checkpoints/alexnet-owt-7be5be79\.pth, which are not there"):
        perceptual.lpips(FIELD, FIELD)


@pytest.mark.parametrize(
    ("observation", "says"),
    [(FIELD[:, :1], "must be"), (FIELD.clone().fill_(torch.nan), "missing"),
     (torch.full((1, 2, 64, 64), 255, dtype=torch.uint8), "missing")],
)  # fmt: skip
def test_other_shapes_and_missing_pixels_are_rejected(observation, says):
    with pytest.raises(ValueError, match=says):
        perceptual.lpips(observation, FIELD)
