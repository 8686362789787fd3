"""LPIPS, an optional extra: errors for absent packages and weights, and for invalid fields."""

import importlib

import pytest
import torch

from simcast_hpc.verification import perceptual

FIELD = torch.zeros(1, 2, 64, 64)


def test_absent_package_raises_with_the_install_command(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install -c constraints\.txt -e '\.\[perceptual\]'"):
        perceptual.lpips(FIELD, FIELD)


def test_absent_weights_raise_with_their_path(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib, "import_module", lambda _name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"checkpoints/alexnet-owt-7be5be79\.pth does not exist"):
        perceptual.lpips(FIELD, FIELD)


@pytest.mark.parametrize(
    ("observation", "message"),
    [(FIELD[:, :1], "must be"), (FIELD.clone().fill_(torch.nan), "missing"),
     (torch.full((1, 2, 64, 64), 255, dtype=torch.uint8), "missing")],
)  # fmt: skip
def test_rejects_other_shapes_and_missing_pixels(observation, message):
    with pytest.raises(ValueError, match=message):
        perceptual.lpips(observation, FIELD)
