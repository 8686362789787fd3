"""Compare our published protocols with the evaluators of their authors on the same fields.

    python -m benchmarks.published_evaluators --earthformer DIR --cascast DIR --diffcast DIR --sevir-challenges DIR \
        --hko7 DIR

Each DIR is a checkout of the repository at the commit given in docs/reference/scores.md; others are skipped. The files
are executed unchanged and require torchmetrics and einops; packages that they import and do not use here (plotting, FVD
networks, TensorFlow, numba, LPIPS) are replaced by stubs.

Prints one row per protocol and quantity: the max. absolute difference over thresholds, lead times and batches. The
quantities of the 2 x 2 table follow from integers on both sides; their difference is that of float32 division.
"""

import argparse
import contextlib
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.stub_imports import execute_file, import_earthformer, stub_imports
from simcast_hpc.verification import PROTOCOLS, ScoreProtocol, score


@dataclass(frozen=True)
class Fields:
    """Fields ``[N, T, H, W]`` in [0, 1]: encoded observations, unrounded forecast; members ``[N, M, T, H, W]``."""

    observed: torch.Tensor
    forecast: torch.Tensor
    members: torch.Tensor


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    protocol: str
    evaluator: str
    quantity: str
    difference: float


def sample_fields(*, seed: int = 0, shape: tuple[int, int, int, int] = (4, 6, 64, 64), scale: float = 255.0) -> Fields:
    """Return smooth fields with all intensities and values on every threshold, and an imperfect forecast."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(shape[0], shape[1], 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[2:], mode="bilinear", align_corners=False)
    codes = (smooth * 1.3 - 0.15).clamp(0, 1).mul(scale - 1).round()
    thresholds = torch.tensor(PROTOCOLS["sevir-global"].thresholds)
    on_edge = torch.rand(shape, generator=generator) < 0.05
    edges = thresholds[torch.randint(len(thresholds), shape, generator=generator)].clamp(max=scale - 1)
    observed = torch.where(on_edge, edges, codes) / torch.full((), scale)
    noise = torch.randn(shape[0], 4, *shape[1:], generator=generator) * 0.06
    forecast = (observed + noise[:, 0]).clamp(0, 1)
    forecast = torch.where(torch.rand(shape, generator=generator) < 0.2, observed, forecast)
    return Fields(observed, forecast, (observed[:, None] + noise).clamp(0, 1))


def largest(ours: dict[str, float], expected: dict[str, float]) -> float:
    """Return the max. absolute difference over the keys of ``expected``; a one-sided NaN counts as infinite."""
    worst = 0.0
    for key, value in expected.items():
        if np.isnan(value) and np.isnan(ours[key]):
            continue
        worst = max(worst, abs(ours[key] - value) if np.isfinite(value) and np.isfinite(ours[key]) else np.inf)
    return worst


def _by_threshold(answers: dict[Any, dict[str, float]], name: str, ours: str) -> dict[str, float]:
    result = {}
    for threshold, row in answers.items():
        label = "mean" if threshold == "avg" else f"{threshold:g}"
        result[f"{ours}/{label}"] = 1 - row[name] if name == "sucr" else row[name]
    return result


def earthformer_rows(root: Path) -> list[Row]:
    """Compare with Earthformer's ``SEVIRSkillScore``, modes 0 and 2."""
    with stub_imports("lpips", "torchvision", "skimage", "cv2", "pytorch_lightning", "tensorflow"):
        evaluator_type = import_earthformer(root, "metrics.sevir").SEVIRSkillScore
    fields, rows = sample_fields(), []
    for mode, name in (("0", "sevir-global-released"), ("2", "sevir-lead-mean-released")):
        evaluator = evaluator_type(layout="NTHW", mode=mode, seq_len=fields.observed.shape[1])
        for half in (slice(0, 2), slice(2, 4)):
            evaluator.update(fields.forecast[half], fields.observed[half])
        answers, ours = evaluator.compute(), score(fields.observed, fields.forecast, protocol=name)
        for quantity, key in (("csi", "csi"), ("pod", "pod"), ("sucr", "far"), ("bias", "bias_ln2")):
            rows.append(
                Row(name, f"Earthformer, mode {mode}", key, largest(ours, _by_threshold(answers, quantity, key)))
            )
    return rows


_CASCAST_KEYS = {
    "csi": "csi", "csi-4-max": "csi_pool4", "csi-16-max": "csi_pool16", "csi-4-avg": "csi_pool4_avg",
    "csi-16-avg": "csi_pool16_avg", "pod": "pod", "sucr": "far", "hss": "hss", "bias": "bias_ln2",
}  # fmt: skip


def load_cascast(root: Path) -> Any:
    """Return CasCast's ``utils/metrics.py`` as a module."""
    importlib.import_module("torchmetrics")
    misc = types.ModuleType("utils.misc")
    misc.is_dist_avail_and_initialized = lambda: False  # type: ignore[attr-defined]
    with stub_imports("utils", "torchvision"):
        sys.modules["utils"], sys.modules["utils.misc"] = types.ModuleType("utils"), misc
        try:
            return execute_file(root / "utils" / "metrics.py", "cascast_metrics")
        finally:
            del sys.modules["utils"], sys.modules["utils.misc"]


def cascast_rows(root: Path) -> list[Row]:
    """Compare with CasCast's ``SEVIRSkillScore`` on SEVIR's and MeteoNet's scale, its CRPS and its SSIM."""
    module, rows = load_cascast(root), []
    for name, kind, thresholds in (
        ("cascast-released", "sevir", [16, 74, 133, 160, 181, 219]),
        ("meteonet-cascast-released", "meteonet", [19, 28, 35, 40, 47]),
    ):
        protocol = PROTOCOLS[name]
        fields = sample_fields(scale=protocol.scale)
        for mode, aggregation in (("0", "global"), ("2", "lead-mean")):
            evaluator = module.SEVIRSkillScore(
                layout="NTCHW", mode=mode, seq_len=6, preprocess_type=kind, threshold_list=thresholds
            )
            evaluator.update(fields.forecast[:, :, None], fields.observed[:, :, None])
            answers = evaluator.compute()
            ours = score(fields.observed, fields.forecast, protocol=replace(protocol, aggregation=aggregation))
            rows += [
                Row(name, f"CasCast, mode {mode}", key, largest(ours, _by_threshold(answers, quantity, key)))
                for quantity, key in _CASCAST_KEYS.items()
            ]
        evaluator = module.SEVIRSkillScore(layout="NTCHW", mode="0", seq_len=6)
        crps = evaluator.get_crps(fields.observed[:, :, None], fields.members[:, :, :, None])["crps"]
        ours = score(fields.observed, fields.members, protocol=protocol)
        rows.append(Row(name, "CasCast", "crps_gaussian", abs(ours["crps_gaussian"] - crps)))
        if kind == "sevir":
            frames = evaluator.get_single_frame_metrics(
                fields.observed[:, :, None], fields.forecast[:, :, None], ["ssim"]
            )
            ours = score(fields.observed, fields.forecast, protocol=protocol)
            rows.append(Row(name, "CasCast", "ssim_batch_range", abs(ours["ssim_batch_range"] - frames["ssim"])))
    return rows


def diffcast_rows(root: Path) -> list[Row]:
    """Compare with the numbers that DiffCast's ``Evaluator`` prints."""
    with stub_imports("lpips", "cv2", "einops", "matplotlib"):
        module = execute_file(root / "utils" / "metrics.py", "diffcast_metrics")
    module.cal_cprs2 = lambda *_: 0.0  # uses image rows as members; not compared
    module.Evaluator.cal_batch_lpips = lambda self, pred, true: [np.zeros(pred.shape[1])] * len(pred)
    fields, name = sample_fields(shape=(4, 6, 70, 64)), "diffcast-released"
    forecast = fields.forecast * 1.1 - 0.05
    evaluator = module.Evaluator(seq_len=6, value_scale=255, thresholds=[16, 74, 133, 160, 181, 219])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate(fields.observed, forecast)
    printed: list[str] = []
    module.print_log = printed.append
    evaluator.done()
    text = "\n".join(printed)
    ours = score(fields.observed, forecast, protocol=name)
    reads = {
        "csi": "[ avg_csi ] : ", "pod": "[ avg_pod ] : ", "far": "[ avg_far ] : ", "hss": "[ avg_hss] : ",
        "csi_pool4": "[ avg_csi_pool 4x4 ] : ", "csi_pool16": "[ avg_csi_pool 16x16 ]: ",
    }  # fmt: skip
    rows = [
        Row(
            name,
            "DiffCast",
            f"{key}/mean",
            abs(ours[f"{key}/mean"] - float(text.split(mark)[1].split(";")[0].split("\n")[0])),
        )
        for key, mark in reads.items()
    ]
    for key, mark, unit in (("mse", "<MSE> : ", 255.0**2), ("mae", "<MAE> : ", 255.0), ("ssim", "<SSIM> : ", 1.0)):
        value = float(text.split(mark)[1].split(";")[0])
        if np.isfinite(value):
            rows.append(Row(name, "DiffCast", key, abs(ours[key] - value / unit)))
    return rows


def challenge_rows(root: Path) -> list[Row]:
    """Compare with the SEVIR challenge's metrics, with TensorFlow functions replaced by NumPy functions."""
    tf = types.ModuleType("tensorflow")
    tf.math = types.SimpleNamespace(  # type: ignore[attr-defined]
        greater_equal=np.greater_equal, is_nan=np.isnan, logical_or=np.logical_or, log=np.log, pow=np.power
    )
    tf.dtypes = types.SimpleNamespace(cast=lambda x, dtype: x.astype(dtype))  # type: ignore[attr-defined]
    tf.float32, tf.where = np.float32, np.where  # type: ignore[attr-defined]
    tf.zeros_like = lambda x, dtype: np.zeros_like(x, dtype)  # type: ignore[attr-defined]
    tf.reduce_sum, tf.reduce_mean, tf.transpose = np.sum, np.mean, np.transpose  # type: ignore[attr-defined]
    tf.map_fn = lambda f, e, dtype: np.array([f(x) for x in zip(*e, strict=True)])  # type: ignore[attr-defined]
    sys.modules["tensorflow"] = tf
    try:
        module = execute_file(root / "src" / "metrics" / "metrics.py", "challenge_metrics")
    finally:
        del sys.modules["tensorflow"]
    fields, name = sample_fields(), "sevir-challenge-released"
    # Their fields are [N, L, L, T] in [0, 255].
    observed, forecast = (
        (field.double() * 255).permute(0, 2, 3, 1).numpy() for field in (fields.observed, fields.forecast)
    )
    observed = observed.round()
    ours, rows = score(fields.observed, fields.forecast, protocol=name), []
    for key, function in (
        ("csi", module.critical_success_index),
        ("pod", module.probability_of_detection),
        ("far", module.success_rate),
    ):
        answers = {
            f"{key}/{threshold:g}": float(
                np.mean(
                    [
                        function(observed[..., t : t + 1], forecast[..., t : t + 1], np.array([threshold]))
                        for t in range(6)
                    ]
                )
            )
            for threshold in (16.0, 74.0, 133.0)
        }
        answers |= {f"{key}/mean": float(np.mean(list(answers.values())))}
        if key == "far":
            answers = {label: 1 - value for label, value in answers.items()}
        rows.append(Row(name, "SEVIR challenge", key, largest(ours, answers)))
    return rows


def hko_rows(root: Path) -> list[Row]:
    """Compare with HKO-7's ``HKOEvaluation``, with its plain Python functions instead of numba."""
    config = types.ModuleType("nowcasting.config")
    section = types.SimpleNamespace(
        ZR=types.SimpleNamespace(a=58.53, b=1.56), THRESHOLDS=(0.5, 2, 5, 10, 30),
        BALANCING_WEIGHTS=(1, 1, 2, 5, 10, 30), CENTRAL_REGION=(0, 0, 1, 1),
    )  # fmt: skip
    config.cfg = types.SimpleNamespace(HKO=types.SimpleNamespace(EVALUATION=section))  # type: ignore[attr-defined]
    with stub_imports("nowcasting"):
        sys.modules["nowcasting.config"] = config
        try:
            module = execute_file(root / "nowcasting" / "hko_evaluation.py", "hko_evaluation")
        finally:
            del sys.modules["nowcasting.config"]
    module.get_hit_miss_counts_numba, module.get_exclude_mask = module.get_hit_miss_counts, lambda: None
    module.get_balancing_weights_numba = module.get_balancing_weights
    module.get_GDL_numba = lambda prediction, truth, mask: np.zeros(prediction.shape[:2])
    with _numpy_of_2017():
        fields = sample_fields()
        mask = np.random.default_rng(0).random(fields.observed.shape[2:]) < 0.9
        shape = fields.observed.swapaxes(0, 1)[:, :, None].shape
        evaluator = module.HKOEvaluation(seq_len=6, use_central=False)
        observed, forecast = (
            field.swapaxes(0, 1)[:, :, None].numpy().copy() for field in (fields.observed, fields.forecast)
        )
        evaluator.update(observed, forecast, np.broadcast_to(mask, shape))
        pod, far, csi, hss, _gss, _mse, _mae, balanced_mse, balanced_mae, _gdl = evaluator.calculate_stat()
    ours, rows = score(fields.observed, fields.forecast, protocol="hko7", valid=mask, per_lead=True), []
    for key, values in (("csi", csi), ("pod", pod), ("far", far), ("hss", hss)):
        answers = {
            f"{key}/{label}/lead/{lead + 1}": values[lead, row]
            for row, label in enumerate(PROTOCOLS["hko7"].labels)
            for lead in range(6)
        }
        answers |= {f"{key}/{label}": values[:, row].mean() for row, label in enumerate(PROTOCOLS["hko7"].labels)}
        rows.append(Row("hko7", "HKO-7", key, largest(ours, answers)))
    for key, values in (("balanced_mse", balanced_mse), ("balanced_mae", balanced_mae)):
        rows.append(Row("hko7", "HKO-7", f"{key} (relative)", abs(ours[key] / float(values.mean()) - 1)))
    return rows


@contextlib.contextmanager
def _numpy_of_2017() -> Iterator[None]:
    """Define ``np.int``, which NumPy has removed, inside the block."""
    np.int = int  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.int  # type: ignore[attr-defined]


def _strict_count(protocol: ScoreProtocol) -> Row:
    """Compare ``flowcast``, whose evaluator is not published, with a count by ``>`` in NumPy."""
    fields = sample_fields()
    codes = (fields.observed * 255).round().byte()
    ours, answers = score(codes, fields.forecast, protocol=protocol), {}
    for label, threshold in zip(protocol.labels, protocol.thresholds, strict=True):
        observed, forecast = codes.numpy() > threshold, fields.forecast.numpy() > np.float32(threshold / 255)
        answers[f"csi/{label}"] = float((observed & forecast).sum() / (observed | forecast).sum())
    return Row(protocol.name, "not published; NumPy", "csi", largest(ours, answers))


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| protocol | hash | published evaluator | quantity | max. difference |", "|---|---|---|---|---|"]
    for row in rows:
        digest = PROTOCOLS[row.protocol].hash
        lines.append(f"| `{row.protocol}` | {digest} | {row.evaluator} | {row.quantity} | {row.difference:.1e} |")
    return "\n".join(lines)


SOURCES: dict[str, Callable[[Path], list[Row]]] = {
    "earthformer": earthformer_rows,
    "cascast": cascast_rows,
    "diffcast": diffcast_rows,
    "sevir-challenges": challenge_rows,
    "hko7": hko_rows,
}


def main() -> None:
    """Compare with the evaluators of the given checkouts and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for name in SOURCES:
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT")
    options = vars(parser.parse_args())
    rows: list[Row] = []
    for name, compare in SOURCES.items():
        path = options[name.replace("-", "_")]
        rows += compare(path.resolve()) if path else []
    rows.append(_strict_count(PROTOCOLS["flowcast"]))
    print(table(rows))


if __name__ == "__main__":
    main()
