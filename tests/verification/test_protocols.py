"""Protocols are data: hashed by what they compute, refused where they cannot mean what they say."""

import dataclasses

import pytest

from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.verification import PROTOCOLS, Pool, ScoreProtocol, protocol_for, resolve_protocol

GLOBAL = PROTOCOLS["sevir-global"]


def test_every_protocol_stands_under_its_name_and_has_a_source():
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {name: name for name in PROTOCOLS}
    assert all(protocol.source for protocol in PROTOCOLS.values())


def test_equal_hashes_are_equal_calculations():
    # CasCast's tables are counted as SEVIR's global ones, and FlowCast's comparison is that of pysteps.
    assert PROTOCOLS["cascast"].hash == PROTOCOLS["sevir-global"].hash
    assert PROTOCOLS["flowcast"].hash == PROTOCOLS["pysteps"].hash
    others = {name: p.hash for name, p in PROTOCOLS.items() if name not in ("cascast", "cascast-released", "flowcast")}
    assert len(set(others.values())) == len(others)


def test_hashes_are_those_of_published_results():
    # A hash stands beside numbers on pages; a change here declares that numbers of the same name were made otherwise.
    assert {name: protocol.hash for name, protocol in PROTOCOLS.items()} == {
        "sevir-global": "34141d47e456",
        "sevir-lead-mean": "a81b2d82da2d",
        "sevir-frame-mean": "2917f621804a",
        "sevir-sample-mean": "a4aaccca638f",
        "sevir-global-released": "fd35a505ed98",
        "sevir-lead-mean-released": "46f3ec1fec1e",
        "sevir-challenge": "45720ca8a19b",
        "sevir-challenge-released": "7152079f9f59",
        "cascast": "34141d47e456",
        "cascast-released": "fd35a505ed98",
        "diffcast": "585eac41aa5f",
        "diffcast-released": "ec87f1a34631",
        "flowcast": "6d4eb2bee93b",
        "hko7": "dbd66e014925",
        "meteonet-cascast": "de7fe511ab11",
        "meteonet-cascast-released": "dd39daee6c6b",
        "pysteps": "6d4eb2bee93b",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"thresholds": (16.0, 74.0, 133.0, 160.0, 181.0, 220.0)},
        {"labels": ("a", "b", "c", "d", "e", "f")},
        {"unit": "dBZ"},
        {"scale": 254.0},
        {"comparison": "released"},
        {"aggregation": "lead-mean"},
        {"missing": None},
        {"missing_rule": "non-event"},
        {"epsilon": 1e-4},
        {"strict": True},
        {"members": "each"},
        {"clip": True},
        {"rounding": "nearest"},
        {"partial_blocks": True},
        {"pool_aggregation": "lead-mean"},
        {"epsilon_numerator": 1e-6},
        {"undefined": "zero"},
        {"grid_km": 0.5},
    ],
)
def test_everything_that_moves_a_number_moves_the_hash(change):
    changed = dataclasses.replace(GLOBAL, **change)
    assert changed.hash != GLOBAL.hash
    same_counts = set(change) <= {"aggregation", "epsilon", "pool_aggregation", "epsilon_numerator", "undefined"}
    assert (changed.counting_hash == GLOBAL.counting_hash) == same_counts


@pytest.mark.parametrize("added", [{"pools": (Pool(size=8),)}, {"fss_km": (2,)}, {"ssim": False}, {"spectrum": True}])
def test_what_only_adds_scores_moves_what_is_counted_but_not_the_hash(added):
    changed = dataclasses.replace(GLOBAL, **added)
    assert changed.hash == GLOBAL.hash
    assert changed.counting_hash != GLOBAL.counting_hash


def test_a_mean_over_frames_is_part_of_what_is_counted():
    frames = dataclasses.replace(GLOBAL, aggregation="frame-mean")
    assert frames.counting_hash != GLOBAL.counting_hash
    assert dataclasses.replace(frames, epsilon=1e-4).counting_hash != frames.counting_hash


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fss_km": (0.5,)}, "none may be smaller than a pixel"),
        ({"fss_km": (200.0,)}, "reach 200 pixels; beyond 128"),
        ({"fss_km": (4.0, 4.2)}, "repeat a window"),
        ({"pools": (Pool(size=4), Pool(size=4))}, "repeat a window"),
        ({"balance": (1.0, 2.0)}, "wants 7 weights"),
        ({"oddities": ("bias",)}, r"oddities \['bias'\] are not of"),
        ({"rounding": "up"}, "rounding='up' is not one of"),
        ({"partial_blocks": True, "pools": (Pool(size=4, kind="avg"),)}, "partial blocks are for max pools"),
    ],
)
def test_fields_that_cannot_be_meant_are_rejected(change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(GLOBAL, **change)


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"size": 1}, "pools nothing"), ({"size": 4, "kind": "median"}, "kind 'median'"),
     ({"size": 3, "kind": "avg", "overlapping": True}, "overlapping blocks are for maxima")],
)  # fmt: skip
def test_pools_that_cannot_be_meant_are_rejected(fields, says):
    with pytest.raises(ValueError, match=says):
        Pool(**fields)


def test_name_and_source_and_int_thresholds_do_not_move_the_hash():
    other = protocol_for("mine", (16, 74, 133, 160, 181, 219), source="elsewhere")
    assert other.hash == GLOBAL.hash
    assert dataclasses.replace(GLOBAL, thresholds=(16, 74, 133, 160, 181, 219), scale=255).hash == GLOBAL.hash


def test_json_comes_back():
    for protocol in PROTOCOLS.values():
        assert ScoreProtocol.from_json(protocol.to_json()) == protocol


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}'])
def test_other_json_is_rejected(text):
    with pytest.raises(ValueError, match="JSON of a verification protocol"):
        ScoreProtocol.from_json(text)


def test_rain_rate_thresholds_are_named_in_their_unit_and_compared_as_codes():
    codes = (47.6, 87.7, 114.2, 134.3, 166.1)
    rain = protocol_for("mrms-global", codes, ("0.5", "2", "5", "10", "30"), unit="mm/h")
    assert rain.labels == ("0.5", "2", "5", "10", "30")
    assert rain.thresholds == codes


@pytest.mark.parametrize("name", ["sevir", "mrms-4km", "fmi"])
def test_built_in_data_sets_make_protocols(name):
    spec = read_spec(name)
    protocol = protocol_for(name, spec.threshold_codes(), spec.threshold_labels(), unit=spec.thresholds.unit)
    assert protocol.labels == spec.threshold_labels()
    assert (protocol.hash == GLOBAL.hash) == (name == "sevir")


def test_a_threshold_on_a_code_up_to_rounding_is_that_code():
    assert protocol_for("x", (134.0000000001, 160.9999999)).thresholds == (134.0, 161.0)
    assert protocol_for("x", (134.3333,)).thresholds == (134.3333,)


@pytest.mark.parametrize(
    ("thresholds", "options", "says"),
    [
        ((0.5, 2.0, 5.0, 10.0, 30.0), {"unit": "mm/h"}, "repeat the labels in mm/h"),
        ((0.1, 2.0), {"unit": "mm/h"}, "0.1 is no code.*mm/h into the data set's code"),
        ((2.0, 5.0, 10.0), {"unit": "mm/h"}, "repeat the labels in mm/h; give the data set's codes of 2, 5, 10 mm/h"),
        ((0.154, 0.775), {}, "0.154 is no code"),
        ((74.0, 16.0), {}, r"must ascend; try \(16.0, 74.0\)"),
        ((74.0, 74.0), {}, "must ascend"),
        ((16.0, 300.0), {}, "300 is no code of the data set, whose echoes have codes 1 to 254"),
        ((16.0, 255.0), {}, "255 is no code"),
        ((0.0, 16.0), {}, "0 is no code"),
        ((float("nan"),), {}, "nan is no code"),
        ((), {}, "no thresholds"),
        ((16.0, 74.0), {"labels": ("16",)}, "2 thresholds .* and 1 labels"),
        ((16.0, 74.0), {"labels": ("16", "16")}, "repeat themselves"),
        ((16.0,), {"labels": ("mean",)}, "cannot stand in a key"),
        ((16.0,), {"labels": ("0.5 mm/h",)}, "cannot stand in a key"),
        ((16.0,), {"aggregation": "per-frame"}, "aggregation='per-frame' is not one of"),
        ((16.0,), {"missing": 300}, "missing=300 is no 8-bit code"),
        ((16.0,), {"scale": 0.0}, "scale=0.0 must be positive"),
    ],
)
def test_wrong_thresholds_are_rejected_with_what_would_be_right(thresholds, options, says):
    with pytest.raises(ValueError, match=says):
        protocol_for("radar", thresholds, **options)


def test_a_threshold_below_the_first_echo_means_any_echo():
    assert protocol_for("rain", (0.5,), ("0.05",), unit="mm/h").thresholds == (0.5,)


def test_dbz_may_be_its_own_code():
    assert protocol_for("meteonet", (19, 28), unit="dBZ").labels == ("19", "28")


def test_code_255_may_be_a_threshold_where_it_is_no_missing_code():
    assert protocol_for("x", (255.0,), missing=None).thresholds == (255.0,)


def test_a_negative_epsilon_is_rejected():
    with pytest.raises(ValueError, match="epsilon"):
        dataclasses.replace(GLOBAL, epsilon=-1e-4)


def test_names_are_resolved_and_unknown_ones_get_the_nearest():
    assert resolve_protocol("sevir-global") is GLOBAL
    assert resolve_protocol(GLOBAL) is GLOBAL
    with pytest.raises(KeyError, match="did you mean 'sevir-lead-mean'"):
        resolve_protocol("sevir-leadmean")
