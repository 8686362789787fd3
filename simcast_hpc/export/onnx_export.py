"""Exported programs as ONNX, where the exporter of torch supports them; needs the extra ``[onnx]``."""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from simcast_hpc.config import ConfigError, SimcastError

from .torch_export import Inputs, arguments

# onnxruntime sums convolutions in another order and has its own exponential.
ONNX_TOLERANCE = 1e-4


class OnnxError(SimcastError, RuntimeError):
    """A program that cannot be converted to ONNX."""


def require_onnx() -> None:
    """Check that the packages for ONNX are installed.

    Raises:
        ConfigError: names the missing package.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--onnx needs the package {error.name}: pip install -c constraints.txt -e '.[onnx]', or omit --onnx"
        ) from error


def write_onnx(program: ExportedProgram, original: nn.Module, inputs: Sequence[Inputs], path: Path) -> float:
    """Write a captured program as ONNX, run it by onnxruntime and return the max. difference from ``original``.

    Raises:
        OnnxError: the program cannot be converted, or the result gives other numbers; no file is left.
    """
    import onnxruntime

    try:
        with _quietly():
            converted: Any = torch.onnx.export(program, arguments(inputs[-1]), dynamo=True, verbose=False)
            converted.save(str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        difference = max(_difference(session, original, one) for one in inputs)
    except Exception as error:  # torch, onnx_ir and onnxruntime have no common exception class
        path.unlink(missing_ok=True)
        raise OnnxError(f"ONNX export of {path.stem} failed: {type(error).__name__}: {str(error)[:300]}") from error
    if difference > ONNX_TOLERANCE:
        path.unlink()
        raise OnnxError(
            f"ONNX export of {path.stem} failed: its output differs by {difference:.1e}; "
            f"at most {ONNX_TOLERANCE:g} is allowed"
        )
    return difference


def _difference(session: Any, original: nn.Module, inputs: Inputs) -> float:
    given = arguments(inputs)
    named = {own.name: tensor.numpy() for own, tensor in zip(session.get_inputs(), given, strict=True)}
    outputs = session.run(None, named)
    with torch.no_grad():
        expected = original(*given)
    pairs = zip(outputs, arguments(expected), strict=True)
    return max(
        float(np.abs(output - other.numpy()).max() / max(1.0, other.abs().max().item())) for output, other in pairs
    )


@contextlib.contextmanager
def _quietly():
    """Suppress the exporter's progress output and its warnings about packages that are not used."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(before)
