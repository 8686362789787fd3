"""Readers of radar file formats, which return ``RadarFrame`` objects, and the encoding of these frames for a model.

The input frames of a forecast are chosen in ``simcast_hpc.forecast.choose_frames``.
"""

from .frame_encoding import EncodedFrame, ModelEncoding, encode_frame, encoding_of_run
from .importer_choice import ImporterChoice, parse_importer
from .radar_frame import FieldChoice, RadarFrame, RadarGrid
from .read_frame import frame_times, read_frames

__all__ = [
    "EncodedFrame",
    "FieldChoice",
    "ImporterChoice",
    "ModelEncoding",
    "RadarFrame",
    "RadarGrid",
    "encode_frame",
    "encoding_of_run",
    "frame_times",
    "parse_importer",
    "read_frames",
]
