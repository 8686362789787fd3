"""Compared with the published evaluators of Earthformer and CasCast on the same fields (golden/verification)."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from simcast_hpc.verification import PROTOCOLS, count, score, scores
from tests.shared_data import shared

LABELS = PROTOCOLS["sevir-global"].labels


@pytest.fixture(scope="module")
def golden():
    answers = json.loads(shared("golden/verification/scores.json").read_text())["earthformer_sevir_skill_score"]
    fields = load_file(shared("golden/verification/scores.safetensors"))
    # The evaluator accumulated both batches, so its totals are those of all windows.
    return answers, fields["target"].flatten(0, 1), fields["prediction"].flatten(0, 1)


def compare(ours, answers, *, suffix=""):
    for label in LABELS:
        expected = answers[label]
        assert ours[f"csi/{label}{suffix}"] == pytest.approx(expected["csi"], abs=1e-6)
        assert ours[f"pod/{label}{suffix}"] == pytest.approx(expected["pod"], abs=1e-6)
        assert 1 - ours[f"far/{label}{suffix}"] == pytest.approx(expected["sucr"], abs=1e-6)
    assert ours[f"csi/mean{suffix}"] == pytest.approx(answers["avg"]["csi"], abs=1e-6)
    assert ours[f"pod/mean{suffix}"] == pytest.approx(answers["avg"]["pod"], abs=1e-6)
    assert 1 - ours[f"far/mean{suffix}"] == pytest.approx(answers["avg"]["sucr"], abs=1e-6)


@pytest.mark.parametrize(("mode", "protocol"), [("0", "sevir-global-released"), ("2", "sevir-lead-mean-released")])
def test_pooled_and_lead_averaged_modes(golden, mode, protocol):
    answers, target, prediction = golden
    compare(score(target, prediction, protocol=protocol), answers[mode])


def test_mode_with_one_value_per_lead_time(golden):
    answers, target, prediction = golden
    ours = score(target, prediction, protocol="sevir-global-released", per_lead=True)
    leads = len(answers["1"]["16"]["csi"])
    assert leads == target.shape[1]
    for lead in range(leads):
        at_lead = {label: {name: values[lead] for name, values in row.items()} for label, row in answers["1"].items()}
        compare(ours, at_lead, suffix=f"/lead/{lead + 1}")


def test_merged_batches(golden):
    answers, target, prediction = golden
    protocol = PROTOCOLS["sevir-global-released"]
    half = len(target) // 2
    first = count(target[:half], prediction[:half], protocol=protocol, events=["a"] * half)
    second = count(target[half:], prediction[half:], protocol=protocol, events=["b"] * (len(target) - half))
    compare(scores(first.merge(second)), answers["0"])


def test_exact_comparison_changes_only_csi_219(golden):
    answers, target, prediction = golden
    # Target pixels of 1.0 are 255 / 255, which is missing in this protocol and valid in the published evaluator.
    with pytest.raises(ValueError, match="float observations contain 1 = 255 / 255"):
        score(target, prediction, protocol="sevir-global")
    exact = score(target, prediction, protocol=dataclasses.replace(PROTOCOLS["sevir-global"], missing=None))
    assert exact["csi/219"] == pytest.approx(0.42243, abs=5e-6)
    for label in LABELS[:-1]:
        assert exact[f"csi/{label}"] == pytest.approx(answers["0"][label]["csi"], abs=2e-6)


def test_uint8_values_score_like_the_floats_made_from_them(golden):
    _, target, prediction = golden
    target_codes = (target.double() * 255).round().to(torch.uint8)
    for protocol in (protocol for protocol in PROTOCOLS.values() if protocol.scale == 255.0):
        # 385 target pixels are 1.0, which as uint8 would be the missing value.
        every_code = dataclasses.replace(protocol, missing=None)
        from_floats = count(target, prediction, protocol=every_code)
        from_codes = count(target_codes, prediction, protocol=every_code)
        for name in ("hits", "misses", "false_alarms", "correct_negatives", "squared_error", "absolute_error"):
            assert torch.equal(getattr(from_floats, name), getattr(from_codes, name)), name


CASCAST_NAMES = {
    "csi": "csi",
    "csi-4-max": "csi_pool4",
    "csi-16-max": "csi_pool16",
    "csi-4-avg": "csi_pool4_avg",
    "csi-16-avg": "csi_pool16_avg",
    "pod": "pod",
    "hss": "hss",
    "bias": "bias_ln2",
}


@pytest.fixture(scope="module")
def cascast():
    answers = json.loads(shared("golden/verification/scores.json").read_text())
    return answers, load_file(shared("golden/verification/scores.safetensors"))


@pytest.mark.parametrize(("mode", "aggregation"), [("0", "global"), ("2", "lead-mean")])
def test_cascast_tables_pools_and_bias(cascast, mode, aggregation):
    answers, fields = cascast
    protocol = dataclasses.replace(PROTOCOLS["cascast-released"], aggregation=aggregation)
    ours = score(fields["target"].flatten(0, 1), fields["prediction"].flatten(0, 1), protocol=protocol)
    for label, row in answers["cascast_sevir_skill_score"][mode].items():
        row = dict(row)
        label = "mean" if label == "avg" else label
        assert 1 - ours[f"far/{label}"] == pytest.approx(row.pop("sucr"), abs=1e-6)
        assert set(row) == set(CASCAST_NAMES)
        for name, expected in row.items():
            assert ours[f"{CASCAST_NAMES[name]}/{label}"] == pytest.approx(expected, abs=2e-6), (name, label)


@pytest.mark.parametrize("batch", [0, 1])
def test_cascast_gaussian_crps_and_ssim_with_batch_range(cascast, batch):
    answers, fields = cascast
    target, protocol = fields["target"][batch], PROTOCOLS["cascast-released"]
    ensemble = score(target, fields["ensemble"][batch], protocol=protocol)
    single = score(target, fields["prediction"][batch], protocol=protocol)
    expected = answers["cascast_crps_per_batch"][str(batch)]["crps"]
    assert ensemble["crps_gaussian"] == pytest.approx(expected, abs=2e-7)
    assert abs(ensemble["crps_standard"] - expected) > 1e-4, "it differs from the CRPS"
    expected = answers["cascast_ssim_psnr_per_batch"][str(batch)]["ssim"]
    assert single["ssim_batch_range"] == pytest.approx(expected, abs=1e-6)
    assert single["crps_gaussian"] == pytest.approx(single["mae"], rel=1e-6), "one member has no spread"
