"""Radar files of weather services as one common form; then as the frames and the code that a model takes."""

from .frame_encoding import CodedFrame, ModelCode, code_of_run, coded
from .frame_sequence import FrameSet, Wanted, choose_frames
from .radar_frame import RadarFrame, RadarGrid
from .read_frame import frame_times, read_frames

__all__ = [
    "CodedFrame",
    "FrameSet",
    "ModelCode",
    "RadarFrame",
    "RadarGrid",
    "Wanted",
    "choose_frames",
    "code_of_run",
    "coded",
    "frame_times",
    "read_frames",
]
