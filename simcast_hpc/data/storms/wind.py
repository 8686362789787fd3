"""Wind that advects the storms: one vector that turns, and three long, slow waves of a stream function."""

import math
from dataclasses import dataclass

import numpy as np

BOX = 48.0
"""Side of the box of an event in units of 8 km (SEVIR's 384 km)."""


@dataclass(frozen=True)
class Flow:
    """Velocity in units per frame at any position and time: wind, and the rotated gradient of a stream function."""

    speed: float
    heading: float
    turn: float
    waves: np.ndarray
    phases: np.ndarray
    drifts: np.ndarray
    amplitudes: np.ndarray

    @classmethod
    def sample(cls, random: np.random.Generator) -> "Flow":
        """Sample the flow of one event."""
        angle = random.uniform(0, 2 * np.pi, 3)
        number = 2 * np.pi / (BOX * random.uniform(0.6, 1.3, 3))
        return cls(
            speed=random.uniform(0.25, 1.2),
            heading=random.uniform(0, 2 * np.pi),
            turn=random.normal(0, 0.012),
            waves=np.stack([number * np.cos(angle), number * np.sin(angle)], axis=1),
            phases=random.uniform(0, 2 * np.pi, 3),
            drifts=random.normal(0, 0.03, 3),
            amplitudes=random.uniform(0.15, 0.45, 3),
        )

    def at(self, y: np.ndarray, x: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (v, u), southward and eastward, at positions of one shape and dtype and a time in frames."""
        angle = self.heading + self.turn * time
        v = np.full_like(y, self.speed * np.sin(angle))
        u = np.full_like(x, self.speed * np.cos(angle))
        phases = self.phases + self.drifts * time
        # tolist: a numpy float64 would promote a float32 grid to float64
        for ky, kx, phase, amplitude in np.column_stack([self.waves, phases, self.amplitudes]).tolist():
            swing = amplitude / math.hypot(ky, kx) * np.sin(y * ky + x * kx + phase)
            v += kx * swing
            u -= ky * swing
        return v, u
