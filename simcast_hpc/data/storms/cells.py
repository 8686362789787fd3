"""Convective cells of a storm system: tracks, growth and decay, and their VIL on a grid."""

from dataclasses import dataclass

import numpy as np

from .systems import SPIN_UP, Systems
from .wind import BOX, Flow


@dataclass(frozen=True)
class Cells:
    """Parameters of convective cells: position and time of birth, lifetime, peak VIL and size, each ``[cells]``."""

    system: np.ndarray
    birth: np.ndarray
    life: np.ndarray
    along: np.ndarray
    across: np.ndarray
    peak: np.ndarray
    radius: np.ndarray
    aspect: np.ndarray
    angle: np.ndarray
    drift: np.ndarray

    @classmethod
    def sample(cls, random: np.random.Generator, systems: Systems, frames: int) -> "Cells":
        """Sample the cells of an event; number, places and intensity follow from ``systems``."""
        mean_life, span = 12.0, frames + SPIN_UP
        active = np.array([random.uniform(*kind.active_cells) for kind in systems.kinds])
        system = np.repeat(np.arange(len(active)), np.rint(active * span / mean_life).astype(int))
        count = len(system)
        birth = random.uniform(-SPIN_UP, frames - 1, count)
        stage = systems.activity(birth)[np.arange(count), system]
        along = np.where(systems.lines[system], random.uniform(-1, 1, count), random.normal(0, 0.7, count))
        width = np.array([kind.half_width for kind in systems.kinds])[system]
        base = np.array([kind.peak for kind in systems.kinds])[system]
        peak = base * systems.strengths[system] * random.lognormal(0, 0.75, count) * stage
        return cls(
            system=system,
            birth=birth,
            life=np.clip(mean_life * random.lognormal(0, 0.35, count), 5, SPIN_UP),
            along=along * systems.half_lengths[system],
            across=random.normal(0, 1, count) * width,
            peak=peak,
            radius=random.uniform(0.85, 1.5, count) * np.clip(peak / 5, 0.4, 2.0) ** 0.2,
            aspect=random.uniform(1.0, 1.9, count),
            angle=systems.angles[system] + random.normal(0, 0.6, count),
            drift=random.normal(0, 0.16, (count, 2)),
        )

    def tracks(self, systems: Systems, flow: Flow, frames: int) -> np.ndarray:
        """Return the positions of all cells, ``[frames, cells, 2]``; before birth, the place of birth."""
        born = np.floor(self.birth).astype(int)
        position = systems.positions(self.system, self.along, self.across, born)
        tracks = np.empty((frames, len(born), 2))
        for time in range(-SPIN_UP, frames):
            if time >= 0:
                tracks[time] = position
            y, x = position.T
            velocity = np.stack(flow.at(y, x, time), axis=1) + self.drift + systems.drifts[self.system]
            velocity += 0.02 * (systems.centres[time + SPIN_UP, self.system] - position)
            position = np.where((born <= time)[:, None], position + velocity, position)
        return tracks


def render_convection(cells: Cells, tracks: np.ndarray, size: int, frames: int) -> np.ndarray:
    """Return the sum of the cells' VIL in kg/m^2, float32 ``[frames, size, size]``; only their pixels are computed."""
    scale = size / BOX
    reach = 5.2 * cells.radius
    margin = int(np.ceil(reach.max() * scale)) + 1
    canvas = np.zeros((frames, size + 2 * margin, size + 2 * margin), np.float32)
    for number in range(len(cells.birth)):
        first = max(0, int(np.ceil(cells.birth[number])))
        times = np.arange(first, min(frames, int(np.ceil(cells.birth[number] + cells.life[number]))))
        half = int(np.ceil(reach[number] * scale))
        corner = np.floor(tracks[times, number] * scale).astype(int) - half
        inside = ((corner > -2 * half - 2) & (corner <= size)).all(axis=1)
        times, corner = times[inside], corner[inside]
        if not times.size:
            continue
        box = np.arange(2 * half + 1)
        rows, columns = corner[:, :1] + box, corner[:, 1:] + box
        dy = ((rows + 0.5) / scale - tracks[times, number, :1]).astype(np.float32)[:, :, None]
        dx = ((columns + 0.5) / scale - tracks[times, number, 1:]).astype(np.float32)[:, None, :]
        # Clipped pixels fall on the edge of the margin, which is removed.
        rows = np.clip(rows + margin, 0, canvas.shape[1] - 1)
        columns = np.clip(columns + margin, 0, canvas.shape[2] - 1)
        canvas[times[:, None, None], rows[:, :, None], columns[:, None, :]] += _profile(
            cells, number, times, dy, dx, np.float32(reach[number])
        )
    return canvas[:, margin : margin + size, margin : margin + size]


def _profile(
    cells: Cells, number: int, times: np.ndarray, dy: np.ndarray, dx: np.ndarray, reach: np.floating
) -> np.ndarray:
    age = (times - cells.birth[number]) / cells.life[number]
    stage = (age**0.9 * (1 - age) ** 1.4 / 0.2145).astype(np.float32)[:, None, None]
    width = (cells.radius[number] * (0.8 + 0.5 * age)).astype(np.float32)[:, None, None]
    sin, cos = np.float32(np.sin(cells.angle[number])), np.float32(np.cos(cells.angle[number]))
    stretch = np.float32(np.sqrt(cells.aspect[number]))
    near = ((dy * sin + dx * cos) / stretch) ** 2 + ((dy * cos - dx * sin) * stretch) ** 2
    # Exponential profile with a rounded top, and a taper that ends it without an edge.
    skirt = np.exp(1 - np.sqrt(1 + 2.2 * near / width**2))
    taper = np.maximum(1 - (dy**2 + dx**2) / reach**2, 0) ** 2
    return np.float32(cells.peak[number]) * stage * skirt * taper
