"""Check of the projections in radar files: PROJ opens any file that a projection names, such as grids of shifts."""

import re
from pathlib import Path

from simcast_hpc.config import DataError

_LONGEST = 20_000
_MOST_WORDS = 60
_NAME_CHARACTERS = 80
# Parameters of map projections that name no file and no further steps.
_NAMES = (
    "proj type no_defs wktext over units to_meter vunits vto_meter axis pm lon_wrap geoc title "
    "a b R R_A R_a R_V R_g R_h R_lat_a R_lat_g rf f e es ellps datum towgs84 "
    "lon_0 lon_1 lon_2 lon_3 lonc lat_0 lat_1 lat_2 lat_3 lat_ts lat_b k k_0 x_0 y_0 z_0 zone south north "
    "alpha gamma no_uoff no_off no_rot h sweep theta tilt azi approx algo no_cut ns n M W m "
    "o_proj o_lat_p o_lon_p o_alpha o_lon_c o_lat_c o_lon_1 o_lat_1 o_lon_2 o_lat_2"
)
_PARAMETERS = frozenset(_NAMES.split())
_VALUE = re.compile(r"[\w.,:^°'\"+\-]*")
_EXEMPT = re.compile(r"nadgrids=@null|init=epsg:\d+", re.IGNORECASE)
_CODE = re.compile(r"(EPSG|ESRI|OGC|IGNF):\w+|urn:ogc:def:crs:\w+:[\w.]*:\w+|WGS ?84", re.IGNORECASE)
_WKT = re.compile(r"[A-Za-z0-9_]+\s*[\[(].*[\])]", re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def check_projection(projection: str, path: Path, *, field: str = "the projection") -> str:
    """Return the projection of a file.

    Args:
        projection: a PROJ string, WKT, or a code such as ``EPSG:3035``.
        path: the file, for messages.
        field: name of the field, for messages.

    Raises:
        DataError: it has another form, or names a file.
    """
    if len(projection) > _LONGEST:
        raise DataError(f"{path}: {field} has {len(projection)} characters; at most {_LONGEST} are valid")
    wrong = None
    if _WKT.fullmatch(projection.strip()):
        if re.search("PARAMETERFILE", _QUOTED.sub("", projection), re.IGNORECASE):
            wrong = "PARAMETERFILE"
        for text in _QUOTED.findall(projection):  # an extension or a method may contain a PROJ string
            if wrong is None and re.search(r"(proj|init|step)\s*=|[+]\s*\w+\s*=|\bstep\b", text):
                wrong = next((word for word in text.split() if "=" in word and _wrong_word(word)), None)
    elif "=" in projection:
        words = projection.split()
        if len(words) > _MOST_WORDS:
            raise DataError(f"{path}: {field} has {len(words)} parameters; at most {_MOST_WORDS} are valid")
        wrong = next(filter(_wrong_word, words), None)
    elif not _CODE.fullmatch(projection.strip()):
        raise DataError(
            f"{path}: {field} {projection[:80]!r} is not a valid projection; it must be a PROJ string, WKT or a code "
            "such as EPSG:3035"
        )
    if wrong is not None:
        raise DataError(
            f"{path}: {field} contains {wrong[:80]!r}, which is not a parameter of a map projection or names a file"
        )
    return projection


def projection_name(projection: str) -> str:
    """Return a projection in at most 80 characters: name and method of WKT, or the beginning of a PROJ string."""
    text = " ".join(projection.split())
    if _WKT.fullmatch(text):
        name = next(iter(_QUOTED.findall(text)), "")
        method = re.search(r'(?:METHOD|PROJECTION)\s*\[\s*"([^"]*)"', text, re.IGNORECASE)
        text = name + (f" ({method[1].replace('_', ' ')})" if method else "") or text
    return text if len(text) <= _NAME_CHARACTERS else text[: _NAME_CHARACTERS - 4] + " ..."


def _wrong_word(word: str) -> bool:
    """Return whether a word of a PROJ string is not a parameter with a plain value."""
    word = word.removeprefix("+")
    name, _, value = word.partition("=")
    if _EXEMPT.fullmatch(word):
        return False
    return name not in _PARAMETERS or not _VALUE.fullmatch(value) or value == "pipeline"
