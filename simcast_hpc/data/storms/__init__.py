"""Synthetic storms: one event of radar-like VIL codes out of a seed and an index.

An event is a box of 48 x 48 units of 8 km (SEVIR's 384 km); ``size`` only sets how finely it is drawn. In it

* a wind that turns slowly and three slow, long waves of a stream function move everything;
* two to five storm systems (squall lines, clusters, scattered cells, rain shields) form, drift off the wind, decay;
* each breeds convective cells with an exponential profile (Capsoni, Fedi, Paraboni 1987), sharp when heavy, that grow
  faster than they decay, live 25 to 90 minutes, drift off their system and are drawn back to it, so that some merge;
* each carries a stratiform shield, behind the line where there is one;
* all of it is multiplied by log-normal texture whose scales are renewed at their own pace, the small ones fastest
  (as in the cascades of S-PROG, Seed 2003), and carried by the flow of each pixel in between.

Nothing here calls a matrix library, so an event does not depend on the number of threads.
"""

import numpy as np

from ..encoding import SevirVil
from .cells import Cells, render_convection
from .systems import Systems
from .texture import Texture
from .wind import Flow

GENERATOR = 1
"""Raised with every change after which an event has other pixels, so that no cache passes for its successor."""


def storm_event(*, seed: int, index: int, size: int = 48, frames: int = 25) -> np.ndarray:
    """Return event ``index`` of ``seed`` as SEVIR VIL codes, uint8 ``[frames, size, size]``, none missing.

    Events depend on nothing but ``(seed, index)``. Another ``size`` draws the same storms at another resolution.

    Raises:
        ValueError: ``size`` is under 16, or ``frames`` under 1.
    """
    if size < 16 or frames < 1:
        raise ValueError(f"an event needs size >= 16 and frames >= 1, got size={size}, frames={frames}")
    random = np.random.default_rng([seed, index])
    flow = Flow.draw(random)
    systems = Systems.draw(random, flow, frames)
    cells = Cells.draw(random, systems, frames)
    convection = render_convection(cells, cells.tracks(systems, flow, frames), size, frames)
    texture = Texture(random, size, frames)
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
