"""Storm systems: squall lines, clusters, scattered cells and rain shields that form, drift and decay."""

from dataclasses import dataclass

import numpy as np

from .wind import BOX, Flow

SPIN_UP = 20
"""Frames simulated before the first one, so that an event starts with storms of all ages."""


@dataclass(frozen=True, kw_only=True)
class SystemType:
    """Parameters of one type of storm system; a pair is the range of a uniform distribution.

    Attributes:
        share: probability of the type.
        line: cells are evenly distributed along a line across the wind; otherwise scattered around the center.
        half_length: extent of the cells along the system, units of 8 km.
        half_width: spread of the cells across the system, units.
        active_cells: number of simultaneous cells.
        peak: median of the maximum VIL of a cell, kg/m^2.
        shield: VIL of the stratiform shield, kg/m^2.
        shield_radius: radius of the shield across the system, units.
        lag: distance of the shield behind the center, units.
    """

    share: float
    line: bool
    half_length: tuple[float, float]
    half_width: float
    active_cells: tuple[float, float]
    peak: float
    shield: tuple[float, float]
    shield_radius: tuple[float, float]
    lag: float


SQUALL_LINE = SystemType(
    share=0.34,
    line=True,
    half_length=(7, 16),
    half_width=0.9,
    active_cells=(8, 14),
    peak=10.2,
    shield=(0.4, 1.3),
    shield_radius=(5.0, 8.5),
    lag=3.5,
)
CLUSTER = SystemType(
    share=0.3,
    line=False,
    half_length=(2.5, 5),
    half_width=2.6,
    active_cells=(5, 10),
    peak=9.2,
    shield=(0.2, 1.1),
    shield_radius=(6.0, 11.0),
    lag=0.8,
)
SCATTERED_CELLS = SystemType(
    share=0.18,
    line=False,
    half_length=(7, 13),
    half_width=7.0,
    active_cells=(6, 12),
    peak=5.9,
    shield=(0.0, 0.15),
    shield_radius=(6.0, 9.0),
    lag=0.0,
)
RAIN_SHIELD = SystemType(
    share=0.18,
    line=False,
    half_length=(6, 12),
    half_width=4.0,
    active_cells=(2, 5),
    peak=1.7,
    shield=(0.4, 1.3),
    shield_radius=(10.0, 18.0),
    lag=0.0,
)
KINDS = (SQUALL_LINE, CLUSTER, SCATTERED_CELLS, RAIN_SHIELD)


@dataclass(frozen=True)
class Systems:
    """Parameters of storm systems, each ``[systems]``; the first axis of ``centres`` is the frame from ``-SPIN_UP``."""

    kinds: list[SystemType]
    lines: np.ndarray
    centres: np.ndarray
    angles: np.ndarray
    turns: np.ndarray
    bends: np.ndarray
    half_lengths: np.ndarray
    strengths: np.ndarray
    starts: np.ndarray
    lives: np.ndarray
    drifts: np.ndarray
    shields_peak: np.ndarray
    radii: np.ndarray
    lags: np.ndarray

    @classmethod
    def sample(cls, random: np.random.Generator, flow: Flow, frames: int) -> "Systems":
        """Sample the systems of one event: the first is inside the box at mid-event, the others inside or near it."""
        count = int(random.integers(2, 6))
        kinds = [KINDS[number] for number in random.choice(len(KINDS), count, p=[kind.share for kind in KINDS])]
        lines = np.array([kind.line for kind in kinds])
        anchor = random.uniform(-0.1 * BOX, 1.1 * BOX, (count, 2))
        anchor[0] = random.uniform(0.25 * BOX, 0.75 * BOX, 2)
        drifts = random.normal(0, 0.22, (count, 2))
        lives = random.uniform(30, 80, count)
        middle = frames / 2 + random.normal(0, 0.35 * frames, count)
        half_lengths = np.array([random.uniform(*kind.half_length) for kind in kinds])
        across = np.array([random.uniform(*kind.shield_radius) for kind in kinds])
        # A squall line is perpendicular to the wind, with some spread; the others have a random orientation.
        angles = random.uniform(0, np.pi, count)
        angles = np.where(lines, flow.heading + np.pi / 2 + random.normal(0, 0.5, count), angles)
        return cls(
            kinds=kinds,
            lines=lines,
            centres=_paths(anchor, drifts, flow, frames),
            angles=angles,
            turns=random.normal(0, 0.012, count),
            bends=random.normal(0, 0.018, count),
            half_lengths=half_lengths,
            strengths=random.lognormal(0, 0.4, count),
            starts=middle - lives / 2,
            lives=lives,
            drifts=drifts,
            shields_peak=np.array([random.uniform(*kind.shield) for kind in kinds]),
            radii=np.stack([across, across + 0.75 * half_lengths * lines], axis=1),
            lags=np.array([kind.lag for kind in kinds]),
        )

    def activity(self, time: np.ndarray | float) -> np.ndarray:
        """Return the stage of growth and decay of each system, 0 to 1, ``[systems]`` or ``[times, systems]``."""
        age = np.clip((np.asarray(time)[..., None] - self.starts) / self.lives, 0, 1)
        return np.sin(np.pi * age) ** 0.7

    def positions(self, which: np.ndarray, along: np.ndarray, across: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Return the positions ``[..., 2]`` of coordinates relative to the systems ``which`` at frames ``time``."""
        angle = self.angles[which] + self.turns[which] * time
        bent = across + self.bends[which] * along**2
        y = along * np.sin(angle) + bent * np.cos(angle)
        x = along * np.cos(angle) - bent * np.sin(angle)
        return self.centres[time + SPIN_UP, which] + np.stack([y, x], axis=-1)

    def shields(self, time: int, coarse: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the stratiform VIL in kg/m^2, ``[H, W]``; the ``coarse`` texture makes its border irregular."""
        total = np.zeros_like(coarse)
        ragged = np.exp(-0.7 * np.clip(coarse, -0.8, 0.8))
        activity = self.activity(time - 4.0)  # stratiform rain follows the cells by about 20 minutes
        for number, peak in enumerate(self.shields_peak * activity * self.strengths**0.4):
            if peak < 0.02:
                continue
            angle = self.angles[number] + self.turns[number] * time
            sin, cos = np.float32(np.sin(angle)), np.float32(np.cos(angle))
            y, x = (self.centres[time + SPIN_UP, number] - self._trail(number)).astype(np.float32)
            along = (rows - y) * sin + (columns - x) * cos
            across = (rows - y) * cos - (columns - x) * sin - np.float32(self.bends[number]) * along**2
            narrow, wide = self.radii[number].astype(np.float32)
            ring = (along / wide) ** 2 + (across / narrow) ** 2
            total += np.float32(peak) * np.exp(-np.float32(1.3) * (ring * ragged) ** 0.85)
        return total

    def _trail(self, number: int) -> np.ndarray:
        step = self.centres[SPIN_UP + 1, number] - self.centres[SPIN_UP, number]
        return self.lags[number] * step / max(float(np.hypot(*step)), 1e-6)


def _paths(anchor: np.ndarray, drifts: np.ndarray, flow: Flow, frames: int) -> np.ndarray:
    """Advect the systems from ``anchor`` at mid-event in both directions: ``[SPIN_UP + frames + 1, systems, 2]``."""
    steps = SPIN_UP + frames + 1
    middle = SPIN_UP + frames // 2
    centres = np.empty((steps, *anchor.shape))
    centres[middle] = anchor
    for sign, end in ((1, steps - 1), (-1, 0)):
        for step in range(middle, end, sign):
            y, x = centres[step].T
            velocity = np.stack(flow.at(y, x, step - SPIN_UP), axis=1) + drifts
            centres[step + sign] = centres[step] + sign * velocity
    return centres
