"""Readers of radar file formats, which return ``RadarFrame`` objects, and the encoding of these frames for a model.

The input frames of a forecast are chosen in ``simcast_hpc.forecast.choose_frames``.
"""

from .frame_encoding import EncodedFrame, ModelEncoding, encode_frame, encoding_of_run
from .radar_frame import FieldChoice, RadarFrame, RadarGrid
from .read_frame import frame_times, read_frames

__all__ = [
    "EncodedFrame",
    "FieldChoice",
    "ModelEncoding",
    "RadarFrame",
    "RadarGrid",
    "encode_frame",
    "encoding_of_run",
    "frame_times",
    "read_frames",
]
