"""Inventory of a source: formats, quantities, cadence, grids, gaps, coverage, rain, and files that are not used."""

from collections import Counter
from typing import Any

import numpy as np

from simcast_hpc.config.text_files import printable
from simcast_hpc.radar.projection_text import projection_name

from .frame_selection import MEANING, REASONS, FrameSeries, Selection, gaps, text_of
from .scan_table import NO_INTERVAL, ScanTable, StoredCounts
from .wet_rule import WetRule

COVERED_PERCENT = 1.0
_MAX_LISTED = 10_000  # files per reason
_MINUTE = 60_000_000
# Reasons for which no frame of a file is used; those of frames are in ``MEANING``.
FILE_MEANING = {
    "unreadable": "cannot be read",
    "implausible": "values outside of the valid range of their unit",
    "missing": "all pixels are missing",
}
_NOTE_MEANING = {
    "jitter": "times off the cadence",
    "gain": "another packing than most frames",
    "implausible": "some pixels were out of the valid range and are missing",
    "high": "values that are possible but very high; check for clutter or a wrong unit",
}
_MEANINGS = {"not used": FILE_MEANING | MEANING, "note": _NOTE_MEANING}
_HIGH = {"dBZ": 80.0, "mm/h": 500.0, "kg/m^2": 150.0}
_JITTER_NOTE = 1_000_000  # differences from the nominal time above a second are listed


def inventory(table: ScanTable, series: FrameSeries, selection: Selection, rule: WetRule) -> dict[str, Any]:
    """Return the inventory as a JSON object."""
    used = selection.used
    tiles = _tile_rows(table, used)
    with np.errstate(invalid="ignore"):
        is_wet = np.array([np.nanmax(table.statistics[rows, 1], initial=0) >= rule.share for rows in tiles], bool)
        missing = [float(table.statistics[rows, 2].mean(dtype=np.float64)) for rows in tiles]
        rates = [float(np.nanmax(table.statistics[rows, 0], initial=0)) for rows in tiles]
    counts = valid_counts(table, series)
    frames = int(sum(np.isin(table.grid, same_grids(table, series))))
    found = gaps(selection.slot[used], series)
    return {
        "files": len(table.files),
        "stores": sum(file.is_store for file in table.files),
        "frames": len(table),
        "used": len(used),
        "from": text_of(table.time[used[0]]) if len(used) else None,
        "to": text_of(table.time[used[-1]]) if len(used) else None,
        "formats": _count(table.kinds[kind].format for kind in table.kind),
        "quantities": _count(f"{table.kinds[kind].quantity} [{table.kinds[kind].unit}]" for kind in table.kind),
        "packing": _count(_packing(table, kind) for kind in table.kind),
        "step_minutes": series.step_minutes,
        "phase_seconds": series.phase / 1e6,
        "differences_minutes": _differences(table.time[used]),
        "intervals_minutes": _count(_interval_text(table)),
        "grids": _grids(table, series),
        "gaps": found,
        "missing_frames": sum(int(gap["frames"]) for gap in found),  # pyright: ignore[reportArgumentType]
        "covered_percent": _percent((counts > COVERED_PERCENT / 100 * frames).mean()) if frames else None,
        "never_covered_percent": _percent((counts == 0).mean()) if frames else None,
        "missing_percent": _percent(np.mean(missing)) if missing else None,
        "wet_rule": str(rule),
        "dry_percent": _percent(1 - is_wet.mean()) if len(used) else None,
        "largest_mean_rate": round(max(rates), 6) if rates else None,
        "not_used": rejected(table, series, selection),
        "notes": notes(table, series, selection),
    }


def rejected(table: ScanTable, series: FrameSeries, selection: Selection) -> dict[str, list[dict[str, str]]]:
    """Return the files that are not used, by reason."""
    listed: dict[str, list[dict[str, str]]] = {}
    for file, error in zip(table.files, table.errors, strict=True):
        if error and len(of_kind := listed.setdefault(_error_kind(error), [])) < _MAX_LISTED:
            reason = error.removeprefix(f"{file.path} ").removeprefix(f"{file.path}: ")
            of_kind.append({"file": file.path, "reason": reason})
    listed = {name: listed[name] for name in FILE_MEANING if name in listed}
    for number, name in enumerate(REASONS):
        rows = np.flatnonzero(selection.reason == number)
        if name != "used" and len(rows):
            listed[name] = [
                {"file": table.files[table.file[row]].path, "time": text_of(table.time[row]),
                 "reason": _detail(table, series, selection, row, name)}
                for row in rows[:_MAX_LISTED]
            ]  # fmt: skip
    return listed


def rejected_counts(table: ScanTable, selection: Selection) -> dict[str, int]:
    """Return the number of files or frames that are not used, by reason."""
    kinds = Counter(_error_kind(error) for error in table.errors if error)
    counts = {name: kinds[name] for name in FILE_MEANING}
    counts |= {name: int((selection.reason == number).sum()) for number, name in enumerate(REASONS) if number}
    return {name: count for name, count in counts.items() if count}


def _error_kind(error: str) -> str:
    """Return why no frame of a file is used, a key of ``FILE_MEANING``."""
    if "outside the valid range of" in error:
        return "implausible"
    return "missing" if "all pixels are missing" in error else "unreadable"


def notes(table: ScanTable, series: FrameSeries, selection: Selection) -> dict[str, list[dict[str, str]]]:
    """Return peculiarities of frames that are used, by kind, see ``_NOTE_MEANING``."""
    used = selection.used
    listed: dict[str, list[dict[str, str]]] = {}
    late = used[np.abs(selection.jitter[used]) > _JITTER_NOTE]
    if len(late):
        listed["jitter"] = [
            {"file": table.files[table.file[row]].path, "time": text_of(table.time[row]),
             "reason": f"{selection.jitter[row] / 1e6:+g} s from the nominal time"}
            for row in late[:_MAX_LISTED]
        ]  # fmt: skip
    packings = Counter(_packing(table, kind) for kind in table.kind[used])
    if len(packings) > 1:
        usual = packings.most_common(1)[0][0]
        others = [row for row in used if _packing(table, table.kind[row]) != usual]
        listed["gain"] = [
            {"file": table.files[table.file[row]].path, "time": text_of(table.time[row]),
             "reason": f"{_packing(table, table.kind[row])} instead of {usual}"}
            for row in others[:_MAX_LISTED]
        ]  # fmt: skip
    for name, rows, reason in (
        ("implausible", np.flatnonzero(table.implausible > 0),
         lambda row: _out_of_range(int(table.implausible[row]), series.unit)),
        ("high", np.flatnonzero(table.largest > _HIGH.get(series.unit, np.inf)),
         lambda row: f"values up to {table.largest[row]:g} {series.unit} are used as they are"),
    ):  # fmt: skip
        found = np.intersect1d(rows, used).tolist()
        if found:
            listed[name] = [
                {"file": table.files[table.file[row]].path, "time": text_of(table.time[row]), "reason": reason(row)}
                for row in found[:_MAX_LISTED]
            ]
    return listed


def _out_of_range(count: int, unit: str) -> str:
    pixels, are = ("pixel", "is") if count == 1 else ("pixels", "are")
    return f"{count} {pixels} out of the valid range of {unit} {are} missing"


def same_grids(table: ScanTable, series: FrameSeries) -> list[int]:
    """Return the numbers of the grids that equal the reference grid."""
    return [number for number, grid in enumerate(table.grids) if not grid.difference(series.grid)]


def valid_counts(table: ScanTable, series: FrameSeries) -> np.ndarray:
    """Return in how many frames on the reference grid each pixel is valid, uint32 ``[H, W]``, not to be changed."""
    found = [counts for number in same_grids(table, series) if (counts := table.valid[number]) is not None]
    arrays = [counts.read() if isinstance(counts, StoredCounts) else counts for counts in found]
    if len(arrays) == 1:
        return arrays[0]
    return sum(arrays, np.zeros(series.grid.shape, np.uint32))


def inventory_text(content: dict[str, Any]) -> str:
    """Return an inventory as text for a terminal."""

    def shares(name: str) -> str:
        return ", ".join(f"{key} ({count})" for key, count in content[name].items())

    lines = [
        f"files          {content['files']}" + (f", {content['stores']} of them stores" if content["stores"] else ""),
        f"frames         {content['frames']}, {content['used']} used, {content['from']} .. {content['to']} UTC",
        f"formats        {shares('formats')}",
        f"quantities     {shares('quantities')}",
        f"packing        {shares('packing')}",
        f"cadence        {content['step_minutes']:g} minutes"
        + (f", {content['phase_seconds']:g} s after" if content["phase_seconds"] else "")
        + f"; differences in minutes: {shares('differences_minutes')}",
        f"intervals      {shares('intervals_minutes')}",
    ]
    for grid in content["grids"]:
        lines.append(
            f"grid           {grid['height']} x {grid['width']} pixels of {grid['spacing_km']:g} km: {grid['frames']} "
            f"frames, {grid['from']} .. {grid['to']}{', reference' if grid['reference'] else ''}"
        )
        lines.append(f"  {projection_name(grid['projection'])}; {_extent(grid)}")
    lines.append(f"gaps           {len(content['gaps'])} with {content['missing_frames']} missing frames")
    lines += [f"  {gap['from']} .. {gap['to']}: {gap['frames']} frames" for gap in content["gaps"][:10]]
    lines += [
        f"coverage       {_text(content['covered_percent'])} % of the pixels are valid in more than "
        f"{COVERED_PERCENT:g} % of the frames, {_text(content['never_covered_percent'])} % never",
        f"missing        {_text(content['missing_percent'])} % of the pixels of the frames",
        f"dry            {_text(content['dry_percent'])} % of the frames (wet: {content['wet_rule']})",
    ]
    for title, listed in (("not used", content["not_used"]), ("note", content["notes"])):
        for reason, files in listed.items():
            meaning = _MEANINGS[title].get(reason, "")
            meaning = meaning and f": {meaning}"
            lines.append(f"{title:<14} {len(files)} {reason}{meaning}")
            lines += [f"  {file['file']}: {file['reason']}" for file in files[:5]]
            lines += [f"  and {len(files) - 5} more"] if len(files) > 5 else []
    return "\n".join(printable(line) for line in lines)


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _percent(share: Any) -> float:
    return round(100 * float(share), 4)


def _count(things: Any) -> dict[str, int]:
    counts = Counter(things)
    return {key: counts[key] for key in sorted(counts, key=lambda key: (-counts[key], key))}


def _tile_rows(table: ScanTable, rows: np.ndarray) -> list[slice]:
    return [slice(int(table.first[row]), int(table.first[row + 1])) for row in rows]


def _packing(table: ScanTable, kind: Any) -> str:
    one = table.kinds[kind]
    if one.gain is None:
        return "unknown"
    return f"{one.stored_type or 'values'}, gain {one.gain:g}, offset {one.offset or 0:g}"


def _differences(times: np.ndarray) -> dict[str, int]:
    return dict(list(_count(f"{round(value / _MINUTE, 1):g}" for value in np.diff(times).tolist()).items())[:10])


def _interval_text(table: ScanTable) -> list[str]:
    return [
        "instantaneous" if start == NO_INTERVAL else f"{round((time - start) / _MINUTE, 1):g}"
        for time, start in zip(table.time.tolist(), table.start.tolist(), strict=True)
    ]


def _grids(table: ScanTable, series: FrameSeries) -> list[dict[str, Any]]:
    listed = []
    for number, grid in enumerate(table.grids):
        times = table.time[table.grid == number]
        if len(times):
            listed.append(
                {
                    "height": grid.height, "width": grid.width, "spacing_km": round(grid.spacing_km, 6),
                    "projection": grid.projection, "left": grid.left, "top": grid.top, "unit": grid.unit,
                    "right": grid.left + grid.width * grid.spacing_x,
                    "bottom": grid.top - grid.height * grid.spacing_y,
                    "frames": len(times), "from": text_of(times.min()), "to": text_of(times.max()),
                    "reference": not grid.difference(series.grid),
                }
            )  # fmt: skip
    return sorted(listed, key=lambda one: (-one["frames"], one["from"]))


def _extent(grid: dict[str, Any]) -> str:
    """Return the outer edges of a grid, from west to east and from south to north."""
    scale, unit, names = (1.0, "degrees", ("longitude", "latitude")) if grid["unit"] == "degree" else (1e-3, "km", "xy")
    edges = [scale * grid[name] for name in ("left", "right", "bottom", "top")]
    return f"{names[0]} {edges[0]:.6g} .. {edges[1]:.6g}, {names[1]} {edges[2]:.6g} .. {edges[3]:.6g} {unit}"


def _detail(table: ScanTable, series: FrameSeries, selection: Selection, row: int, name: str) -> str:
    kind = table.kinds[table.kind[row]]
    if name == "quantity":
        return f"{kind.quantity} in {kind.unit} instead of {series.quantity} in {series.unit}"
    if name == "grid":
        return table.grids[table.grid[row]].difference(series.grid)
    if name == "interval":
        return f"an accumulation over {(table.time[row] - table.start[row]) / _MINUTE:g} minutes"
    if name == "cadence":
        return f"{selection.jitter[row] / 1e6:+g} s from the nominal time"
    if name == "duplicate":
        used = selection.used
        other = used[np.searchsorted(selection.slot[used], selection.slot[row])]
        return f"the same time as {table.files[table.file[other]].path}"
    return MEANING[name]
