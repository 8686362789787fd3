"""Protocols: hashes depend on every field that changes a number, and invalid fields raise errors."""

import dataclasses
import json

import pytest

from simcast_hpc.data.dataset_spec import read_spec
from simcast_hpc.verification import PROTOCOLS, Pool, ScoreProtocol, protocol_for, resolve_protocol

GLOBAL = PROTOCOLS["sevir-global"]


def test_every_protocol_has_its_name_as_key_and_a_source():
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {name: name for name in PROTOCOLS}
    assert all(protocol.source for protocol in PROTOCOLS.values())


def test_equal_hashes_are_equal_calculations():
    # CasCast counts the tables of sevir-global, and FlowCast uses the comparison of pysteps.
    assert PROTOCOLS["cascast"].hash == PROTOCOLS["sevir-global"].hash
    assert PROTOCOLS["flowcast"].hash == PROTOCOLS["pysteps"].hash
    others = {name: p.hash for name, p in PROTOCOLS.items() if name not in ("cascast", "cascast-released", "flowcast")}
    assert len(set(others.values())) == len(others)


def test_hashes_do_not_change():
    # Hashes are printed with published numbers; a changed hash means that the numbers were computed differently.
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
def test_hash_depends_on_fields_that_change_scores(change):
    changed = dataclasses.replace(GLOBAL, **change)
    assert changed.hash != GLOBAL.hash
    same_counts = set(change) <= {"aggregation", "epsilon", "pool_aggregation", "epsilon_numerator", "undefined"}
    assert (changed.counting_hash == GLOBAL.counting_hash) == same_counts


@pytest.mark.parametrize("added", [{"pools": (Pool(size=8),)}, {"fss_km": (2,)}, {"ssim": False}, {"spectrum": True}])
def test_fields_that_only_add_scores_change_the_counting_hash_only(added):
    changed = dataclasses.replace(GLOBAL, **added)
    assert changed.hash == GLOBAL.hash
    assert changed.counting_hash != GLOBAL.counting_hash


def test_frame_mean_changes_the_counting_hash():
    frames = dataclasses.replace(GLOBAL, aggregation="frame-mean")
    assert frames.counting_hash != GLOBAL.counting_hash
    assert dataclasses.replace(frames, epsilon=1e-4).counting_hash != frames.counting_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fss_km": (0.5,)}, "must not be smaller than a pixel"),
        ({"fss_km": (200.0,)}, "a window of 200 pixels; with more than 128"),
        ({"fss_km": (4.0, 4.2)}, "must not contain a window twice"),
        ({"pools": (Pool(size=4), Pool(size=4))}, "must not contain a window twice"),
        ({"balance": (1.0, 2.0)}, "must have 7 weights"),
        ({"oddities": ("bias",)}, r"oddities \['bias'\] are not in"),
        ({"rounding": "up"}, "rounding='up' is not one of"),
        ({"missing_members": "drop"}, r"missing_members='drop' is not one of \('mask', 'ignore'\)"),
        ({"scores": ("ets", "sedy")}, "unknown score 'sedy'; did you mean 'sedi'.*choose from ets, pofd"),
        ({"partial_blocks": True, "pools": (Pool(size=4, kind="avg"),)}, "requires pools with kind='max'"),
    ],
)
def test_rejects_invalid_fields(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GLOBAL, **change)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"size": 1}, "must be at least 2 pixels"), ({"size": 4, "kind": "median"}, "kind 'median'"),
     ({"size": 3, "kind": "avg", "overlapping": True}, "overlapping blocks require kind='max'")],
)  # fmt: skip
def test_rejects_invalid_pools(fields, message):
    with pytest.raises(ValueError, match=message):
        Pool(**fields)


def test_hash_ignores_name_source_and_int_or_float():
    other = protocol_for("mine", (16, 74, 133, 160, 181, 219), source="elsewhere")
    assert other.hash == GLOBAL.hash
    assert dataclasses.replace(GLOBAL, thresholds=(16, 74, 133, 160, 181, 219), scale=255).hash == GLOBAL.hash


def test_json_round_trip():
    for protocol in PROTOCOLS.values():
        assert ScoreProtocol.from_json(protocol.to_json()) == protocol


def test_protocols_of_earlier_versions_lack_later_fields():
    values = json.loads(GLOBAL.to_json())
    del values["scores"], values["missing_members"]
    assert ScoreProtocol.from_json(json.dumps(values)) == GLOBAL


def test_additional_scores_change_the_counting_hash_only_if_they_need_sums():
    of_tables = dataclasses.replace(GLOBAL, scores=("sedi", "ets", "sedi"))
    assert of_tables.scores == ("ets", "sedi")
    assert (of_tables.hash, of_tables.counting_hash) == (GLOBAL.hash, GLOBAL.counting_hash)
    first, second = (dataclasses.replace(GLOBAL, scores=(name,)) for name in ("mean_error", "correlation"))
    assert first.hash == GLOBAL.hash
    assert first.counting_hash == second.counting_hash != GLOBAL.counting_hash
    by_frame = dataclasses.replace(PROTOCOLS["sevir-frame-mean"], scores=("ets",))
    assert by_frame.hash == PROTOCOLS["sevir-frame-mean"].hash
    assert by_frame.counting_hash != PROTOCOLS["sevir-frame-mean"].counting_hash
    assert dataclasses.replace(GLOBAL, missing_members="ignore").hash != GLOBAL.hash


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}'])
def test_rejects_other_json(text):
    with pytest.raises(ValueError, match="JSON of a verification protocol"):
        ScoreProtocol.from_json(text)


def test_rain_rate_thresholds_have_labels_in_mm_per_hour_and_encoded_values():
    codes = (47.6, 87.7, 114.2, 134.3, 166.1)
    rain = protocol_for("mrms-global", codes, ("0.5", "2", "5", "10", "30"), unit="mm/h")
    assert rain.labels == ("0.5", "2", "5", "10", "30")
    assert rain.thresholds == codes


@pytest.mark.parametrize("name", ["sevir", "mrms-4km", "fmi"])
def test_protocols_of_built_in_data_sets(name):
    spec = read_spec(name)
    protocol = protocol_for(name, spec.threshold_codes(), spec.threshold_labels(), unit=spec.thresholds.unit)
    assert protocol.labels == spec.threshold_labels()
    assert (protocol.hash == GLOBAL.hash) == (name == "sevir")


def test_thresholds_are_snapped_to_integers_within_rounding():
    assert protocol_for("x", (134.0000000001, 160.9999999)).thresholds == (134.0, 161.0)
    assert protocol_for("x", (134.3333,)).thresholds == (134.3333,)


@pytest.mark.parametrize(
    ("thresholds", "options", "message"),
    [
        ((0.5, 2.0, 5.0, 10.0, 30.0), {"unit": "mm/h"}, "are in mm/h; they must be the encoded values"),
        ((0.1, 2.0), {"unit": "mm/h"}, "0.1 is not an encoded value.*convert thresholds in mm/h"),
        ((2.0, 5.0, 10.0), {"unit": "mm/h"}, "must be the encoded values of 2, 5, 10 mm/h"),
        ((0.154, 0.775), {}, "0.154 is not an encoded value"),
        ((74.0, 16.0), {}, r"must ascend; try \(16.0, 74.0\)"),
        ((74.0, 74.0), {}, "must ascend"),
        ((16.0, 300.0), {}, "300 is not an encoded value of an echo, 1 to 254"),
        ((16.0, 255.0), {}, "255 is not an encoded value"),
        ((0.0, 16.0), {}, "0 is not an encoded value"),
        ((float("nan"),), {}, "nan is not an encoded value"),
        ((), {}, "no thresholds"),
        ((16.0, 74.0), {"labels": ("16",)}, "2 thresholds .* and 1 labels"),
        ((16.0, 74.0), {"labels": ("16", "16")}, "must be unique"),
        ((16.0,), {"labels": ("mean",)}, "is invalid in a key"),
        ((16.0,), {"labels": ("0.5 mm/h",)}, "is invalid in a key"),
        ((16.0,), {"aggregation": "per-frame"}, "aggregation='per-frame' is not one of"),
        ((16.0,), {"missing": 300}, "missing=300 must be within 0..255"),
        ((16.0,), {"scale": 0.0}, "scale=0.0 must be positive"),
    ],
)
def test_rejects_invalid_thresholds(thresholds, options, message):
    with pytest.raises(ValueError, match=message):
        protocol_for("radar", thresholds, **options)


def test_threshold_of_half_means_any_echo():
    assert protocol_for("rain", (0.5,), ("0.05",), unit="mm/h").thresholds == (0.5,)


def test_dbz_thresholds_may_equal_their_labels():
    assert protocol_for("meteonet", (19, 28), unit="dBZ").labels == ("19", "28")


def test_threshold_255_is_valid_without_missing_value():
    assert protocol_for("x", (255.0,), missing=None).thresholds == (255.0,)


def test_rejects_negative_epsilon():
    with pytest.raises(ValueError, match="epsilon"):
        dataclasses.replace(GLOBAL, epsilon=-1e-4)


def test_resolves_names_and_suggests_the_nearest_for_unknown_ones():
    assert resolve_protocol("sevir-global") is GLOBAL
    assert resolve_protocol(GLOBAL) is GLOBAL
    with pytest.raises(KeyError, match="did you mean 'sevir-lead-mean'"):
        resolve_protocol("sevir-leadmean")
