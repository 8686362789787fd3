"""Synthetic storms: one event of radar-like VIL from a seed and an index.

An event is a box of 48 x 48 units of 8 km (SEVIR's 384 km); ``size`` only sets the resolution. The components are

* a wind that turns slowly, and three slow, long waves of a stream function, which advect everything;
* two to five storm systems (squall lines, clusters, scattered cells, rain shields) that form, drift relative to the
  wind and decay;
* convective cells of each system with an exponential profile (Capsoni, Fedi, Paraboni 1987), sharper when intense,
  that grow faster than they decay, live 25 to 90 minutes, and drift away from and back to their system;
* a stratiform shield of each system, behind the line of a squall line;
* log-normal texture as a factor, whose scales are renewed at different rates, small scales fastest (as in the cascade
  of S-PROG, Seed 2003), and advected by the flow of each pixel.

No function calls a matrix library, so an event does not depend on the number of threads.
"""

import numpy as np

from ..encoding import SevirVil
from .cells import Cells, render_convection
from .systems import Systems
from .texture import Texture
from .wind import Flow

GENERATOR = 1
"""Version of the generator: increase it with each change of the pixels, so that old archives are not reused."""


def storm_event(*, seed: int, index: int, size: int = 48, frames: int = 25) -> np.ndarray:
    """Return event ``index`` of ``seed`` in the SEVIR VIL encoding, uint8 ``[frames, size, size]``, none missing.

    An event depends only on ``(seed, index)``. Another ``size`` gives the same storms at another resolution.

    Raises:
        ValueError: ``size`` is under 16, or ``frames`` under 1.
    """
    if size < 16 or frames < 1:
        raise ValueError(f"an event needs size >= 16 and frames >= 1, got size={size}, frames={frames}")
    # 1. Components
    random = np.random.default_rng([seed, index])
    flow = Flow.sample(random)
    systems = Systems.sample(random, flow, frames)
    cells = Cells.sample(random, systems, frames)
    convection = render_convection(cells, cells.tracks(systems, flow, frames), size, frames)
    texture = Texture(random, size, frames)
    # 2. Frames
    codes = np.empty((frames, size, size), np.uint8)
    encoding = SevirVil()
    for time in range(frames):
        if time:
            texture.advect(flow, time)
        coarse, fine = texture.at(time)
        shield = systems.shields(time, coarse, texture.rows, texture.columns)
        vil = convection[time] * np.exp(0.35 * coarse + fine) + shield * np.exp(0.9 * coarse + fine)
        codes[time] = encoding.encode(80 * -np.expm1(-np.maximum(vil - 0.05, 0) / 80))
    return codes
