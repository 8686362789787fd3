"""Published scores of persistence on the SEVIR test split, as a check of data, split and scores."""

from collections.abc import Mapping
from typing import Any

# (protocol, source, {score: (published value, half a unit of its last digit)})
_PERSISTENCE: tuple[tuple[str, str, dict[str, tuple[float, float]]], ...] = (
    (
        "sevir-lead-mean",
        "sevir-vil-nowcasting-lab (0.269448, 0.01152859, 0.04434994), which compares [0, 1] floats with T / 255",
        {"csi/mean": (0.26945, 5e-6), "mse": (0.0115286, 5e-8), "mae": (0.0443499, 5e-8)},
    ),
    (
        "sevir-lead-mean-released",
        "Earthformer, appendix (.2695, 11.5283e-3, 4.4349e-2), computed by its published evaluator, mode 2",
        {"csi/mean": (0.2695, 5e-5), "mse": (0.0115283, 5e-8), "mae": (0.044349, 5e-7)},
    ),
)
TEST_WINDOWS = 12_159


def sevir_reference(result: Mapping[str, Any]) -> list[str]:
    """Return lines that compare persistence with the published values; empty if they do not apply.

    Args:
        result: the content of a score file.
    """
    by_protocol = result["scores"].get("persistence")
    if by_protocol is None or result["dataset"] != "sevir" or result["split"] != "test":
        return []
    lines = []
    if result["windows"] != TEST_WINDOWS or (result["frames_in"], result["frames_out"]) != (13, 12):
        lines.append(
            f"The published values are for all {TEST_WINDOWS} test windows of 13 -> 12 frames; this evaluation has "
            f"{result['windows']} windows of {result['frames_in']} -> {result['frames_out']}, which will differ."
        )
    for protocol, source, published in _PERSISTENCE:
        ours = by_protocol.get(protocol)
        if ours is None:
            continue
        lines.append(f"persistence under {protocol} ({result['protocols'][protocol]['hash']}), published by {source}:")
        for key, (value, half_digit) in published.items():
            agrees = ours[key] is not None and abs(ours[key] - value) <= 1.01 * half_digit + 1e-9
            verdict = "agrees" if agrees else "differs"
            lines.append(f"  {key:<9} here {_number(ours[key])}   published {value:.7g}   {verdict}")
    return lines


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.7f}"
