"""Score fields that fit into memory: ``score(observation, forecast)``."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .counting import count
from .optional_scores import requested_scores
from .protocols import MissingMembers, ScoreProtocol
from .published_protocols import resolve_protocol
from .scores import scores as scores_by_key


def score(
    observation: Tensor | np.ndarray,
    forecast: Tensor | np.ndarray,
    *,
    protocol: str | ScoreProtocol = "sevir-global",
    events: Sequence[str] | None = None,
    valid: Tensor | np.ndarray | None = None,
    per_lead: bool = False,
    mean_over: Sequence[str] | None = None,
    scores: Sequence[str] = (),
    missing_members: MissingMembers | None = None,
) -> dict[str, float]:
    """Score a forecast that fits into memory.

    Args:
        observation: ``[N, T, H, W]`` or ``[T, H, W]`` of one window, uint8 pixel values or floats in [0, 1]; missing is
            255 (see the protocol), NaN or masked.
        forecast: of the same shape, or members ``[N, M, T, H, W]`` or ``[M, T, H, W]``, uint8 pixel values or floats;
            clipped and rounded only if the protocol requires it.
        protocol: a name in ``PROTOCOLS`` or a protocol of :func:`~simcast_hpc.verification.protocols.protocol_for`.
        events: the event of each window; does not change pooled scores.
        valid: boolean, broadcastable; False pixels count as missing.
        per_lead: whether to add ``<key>/lead/<k>``, k from 1, for every key.
        mean_over: labels of the thresholds in ``<score>/mean``; all by default.
        scores: names of additional scores, such as ``ets`` (see ``OPTIONAL_SCORES``), or ``all``.
        missing_members: ``mask`` excludes pixels where any member is missing, ``ignore`` scores the members that are
            present; by default as the protocol defines.

    Returns:
        The keys of :func:`scores`.

    Raises:
        KeyError: unknown protocol, or a label in ``mean_over`` that the protocol does not have.
        ValueError: an unknown score, shapes differ, floats are not [0, 1] fields, or a float observation contains 1 =
            255 / 255 under a protocol that excludes pixels of 255 (a forecast may, and so may the protocols
            ``-released``).
        TypeError: fields are neither uint8 nor floating point.
    """
    rules = resolve_protocol(protocol)
    rules = dataclasses.replace(
        rules,
        scores=requested_scores((*rules.scores, *([scores] if isinstance(scores, str) else scores))),
        missing_members=missing_members or rules.missing_members,
    )
    statistics = count(observation, forecast, protocol=rules, events=events, valid=valid)
    return scores_by_key(statistics, per_lead=per_lead, mean_over=mean_over)
