"""The same programs as ONNX, where its exporter carries them: the extra ``[onnx]``."""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from simcast_hpc.config import ConfigError, SimcastError

# Another library's convolutions: sums in another order, and its own exponentials.
ONNX_TOLERANCE = 1e-4


class OnnxError(SimcastError, RuntimeError):
    """A program that ONNX does not carry."""


def require_onnx() -> None:
    """Refuse to begin where what ONNX needs is not installed.

    Raises:
        ConfigError: says what to install.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--onnx needs the package {error.name}: pip install -c constraints.txt -e '.[onnx]', or leave --onnx out"
        ) from error


def write_onnx(program: ExportedProgram, original: nn.Module, inputs: Sequence[Tensor], path: Path) -> float:
    """Write a captured program as ``path``, run it by onnxruntime, and return the largest difference from ``original``.

    Raises:
        OnnxError: the exporter does not carry the program, or what it makes gives other numbers; no file is left.
    """
    import onnxruntime

    try:
        with _quietly():
            made: Any = torch.onnx.export(program, (inputs[-1],), dynamo=True, verbose=False)
            made.save(str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = max(_difference(session, original, one) for one in inputs)
    except Exception as error:  # torch, onnx_ir and onnxruntime each have their own, without a common one
        path.unlink(missing_ok=True)
        raise OnnxError(f"ONNX does not carry {path.stem}: {type(error).__name__}: {str(error)[:300]}") from error
    if found > ONNX_TOLERANCE:
        path.unlink()
        raise OnnxError(
            f"ONNX does not carry {path.stem}: its numbers differ by {found:.1e}, allowed are {ONNX_TOLERANCE:g}"
        )
    return found


def _difference(session: Any, original: nn.Module, one: Tensor) -> float:
    got = session.run(None, {session.get_inputs()[0].name: one.numpy()})
    with torch.no_grad():
        wanted = original(one)
    pairs = zip(got, (wanted,) if isinstance(wanted, Tensor) else wanted, strict=True)
    return max(
        float(np.abs(mine - theirs.numpy()).max() / max(1.0, theirs.abs().max().item())) for mine, theirs in pairs
    )


@contextlib.contextmanager
def _quietly():
    """Keep the exporter's progress, and its remarks on packages that nobody here uses, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)
