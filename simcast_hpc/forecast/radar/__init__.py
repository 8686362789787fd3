"""Radar files of weather services as one common form; then as the frames and the code that a model takes."""

from .coding import CodedFrame, ModelCode, code_of_run, coded
from .frame import RadarFrame, RadarGrid
from .reading import frame_times, read_frames
from .sequence import FrameSet, Wanted, choose_frames

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
