"""The HTML report: well-formed, accessible, self-contained, and with text from files escaped."""

import base64
import io
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simcast_hpc.config import PipelineConfig, read_config
from simcast_hpc.report import write_report
from tests.report.fake_run import MEAN_CSI, STEPS, radar_file, score_file, write_json, write_run

HOSTILE = "<script>alert('x')</script> & \"quotes\" $a_1$"
VOID = {"meta", "img", "br", "hr", "link", "input"}
MOST_BYTES = 1_200_000


class Page(HTMLParser):
    """Parse a report; an end tag that does not close the innermost element is an error."""

    def __init__(self, path: Path):
        super().__init__()
        self.folder, self.text = path.parent, path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.words: dict[str, list[str]] = {}
        self.feed(self.text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data):
        self.words.setdefault(self.open[-1] if self.open else "", []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Page:
    config = {"synthesis": {"train_events": 150}, "student": {"init": "teacher"}, "time_budget_minutes": 9.0}
    return Page(write_report(write_run(tmp_path_factory.mktemp("quick") / "run", config=config)))


@pytest.fixture(scope="module")
def radar(tmp_path_factory) -> Page:
    """Two test sets not in alphabetical order, texts with markup characters, undefined scores."""
    with_gaps = {name: [*leads[:3], None, *leads[4:]] for name, leads in MEAN_CSI.items()} | {"<b>odd": [None] * 6}
    texts = {name: f"{name} {HOSTILE}" for name in ("citation", "license", "fingerprint", "split")}
    units = {name: f"{name} {HOSTILE}" for name in ("unit", "quantity")}
    sets = [
        radar_file("also", title=f"MCH {HOSTILE}", mean_csi=with_gaps, dates=[HOSTILE, "2017-01-31"], **texts),
        radar_file("test", title="MRMS tiles", dataset="mrms-4km", dates=["2019-06-10"], step_minutes=4.0, **units),
    ]
    for entry in sets[0]["entries"]:
        entry["note"] = f"note {HOSTILE}"
    for protocol in sets[0]["protocols"].values():
        protocol |= {"source": f"source {HOSTILE}", "hash": f"hash {HOSTILE}"}
    folder = HOSTILE.replace("$", "")  # in a path, $NAME is an environment variable
    also = {"also": [{"name": "also", "data": {"dataset": "mch", "root": f"root {folder}"}}]}
    run_dir = tmp_path_factory.mktemp("radar") / "run"
    write_run(run_dir, name="radar", config={"evaluation": also}, test_sets=sets)
    write_json(run_dir / "versions.json", {"torch": f"version {HOSTILE}", HOSTILE: "1"})
    example = dict(np.load(run_dir / "scores" / "also.example.npz"))
    np.savez(run_dir / "scores" / "also.example.npz", **(example | {"event": np.array(f"event {HOSTILE}")}))
    return Page(write_report(run_dir))


@pytest.fixture(scope="module")
def ensemble(ensemble_report) -> Page:
    return Page(ensemble_report)


@pytest.fixture(params=["quick", "radar", "ensemble"])
def page(request) -> Page:
    return request.getfixturevalue(request.param)


def test_images_are_embedded_and_have_alternative_texts(page):
    pictures = page.attributes("img")
    assert len(pictures) >= 40
    for picture in pictures:
        kind, _, data = str(picture["src"]).partition(";base64,")
        assert kind in ("data:image/png", "data:image/gif")
        Image.open(io.BytesIO(base64.b64decode(data))).load()
        assert len(str(picture["alt"])) > 20


def test_report_is_one_small_self_contained_file(page):
    assert [path.name for path in page.folder.iterdir()] == ["index.html"]
    assert len(page.text.encode()) < MOST_BYTES
    assert not {"iframe", "object"} & {tag for tag, _, _ in page.elements}
    assert page.attributes("link") == [{"rel": "icon", "href": "data:,"}]
    assert page.attributes("script") == [{}], "one inline script"
    for _, attrs, _ in page.elements:
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attrs)
    assert "@import" not in page.text and "url(" not in page.text and "http" not in "".join(page.words["script"])


def test_all_lead_times_are_present_without_the_script(page):
    """Only the script hides lead times and displays the controls."""
    strips = [k for k, (_, attrs, _) in enumerate(page.elements) if attrs.get("class") == "strip"]
    assert strips
    assert not any("hidden" in attrs for tag, attrs, _ in page.elements if tag == "figure")
    assert all("hidden" in attrs for _, attrs, _ in page.elements if attrs.get("class") == "controls")
    captions = [words for words in page.words["figcaption"] if words.endswith("min")]
    assert {f"+{minutes} min" for minutes in (5, 10, 15, 20, 25, 30)} <= set(captions) or "+4 min" in captions


def test_ensemble_section(ensemble):
    cells = ensemble.words["td"] + ensemble.words["small"]
    assert "5 members" in cells and "−0.0100 " in cells and "[−0.0120, −0.0080]" in cells
    titles = ensemble.words["p"]
    for title in ("CRPS by lead time", "Spread and error", "Rank histogram", "Reliability", "+30 min, power"):
        assert title in titles
    panels = ensemble.words["h4"]
    assert {"member 4", "ensemble mean", "probability-matched mean", "probability of ≥ 181"} <= set(panels)
    assert "diffusion, member 1" in panels and "diffusion, members" in ensemble.words["li"]


def test_report_without_ensembles_has_no_ensemble_section(quick):
    assert not [words for words in quick.words["h3"] if "nsemble" in words]
    assert "Rank histogram" not in quick.words["p"]


def test_report_of_an_older_score_file_without_example(tmp_path):
    """Older files have no spectra, diagrams and intervals."""
    older = {
        key: value
        for key, value in score_file().items()
        if key not in ("diagrams", "differences", "intervals", "grid", "spacing_km")
    }
    run_dir = write_run(tmp_path / "run", steps={"direct": STEPS["direct"]}, test_sets=[older])
    (run_dir / "scores" / "test.example.npz").unlink()
    page = Page(write_report(run_dir))
    assert "This test set has no example window." in page.words["p"]
    assert page.words["p"][0].startswith("One SimVP model was trained")
    assert any("has no spectra" in words for words in page.words["p"])
    assert "mean-csi" not in page.text and "Mean CSI" in page.words["p"]


def test_intervals_are_below_their_scores(quick):
    assert "[0.369, 0.451]" in quick.words["small"], "of the mean CSI of 0.41"


def test_frames_have_units_spacing_and_time(radar, quick):
    assert any("48 × 48 pixels of 8 km, frames 5 minutes apart" in words for words in quick.words["p"])
    assert "≥ 30" in radar.words["li"] and "missing" in radar.words["li"]
    assert any(words == "rain rate, mm/h" for words in radar.words["span"])
    alts = [str(picture["alt"]) for picture in radar.attributes("img")]
    assert any(alt.startswith("observed at +5 min: maximum at or above") and "mm/h, on" in alt for alt in alts)


def test_tables_have_captions_and_scoped_headings(page):
    tables = len(page.attributes("table"))
    assert tables >= 5
    assert len(page.attributes("caption")) == tables
    assert all(head.get("scope") in {"col", "row", "rowgroup"} for head in page.attributes("th"))


def test_links_have_targets(page):
    identifiers = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    targets = [str(link["href"])[1:] for link in page.attributes("a") if str(link["href"]).startswith("#")]
    assert targets and set(targets) <= set(identifiers)


def test_document_has_language_title_and_viewport(page):
    assert page.attributes("html") == [{"lang": "en"}]
    assert page.words["title"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")


def test_text_from_files_is_escaped(radar):
    assert HOSTILE in unescape(radar.text)
    assert radar.text.count("<script") == 1 and "<b>" not in radar.text
    words = unescape(radar.text)
    for text in ("note", "source", "hash", "version", "event", "citation", "license", "quantity", "unit"):
        assert f"{text} {HOSTILE}" in words, text
    assert any(HOSTILE in words for words in radar.words["h2"])
    assert "<b>odd" in radar.words["th"]


def test_own_test_set_of_the_run_is_first(radar):
    titles = radar.words["h2"]
    assert titles.index("MRMS tiles") < titles.index(f"MCH {HOSTILE}")


def test_undefined_scores_are_dashes(radar):
    assert "–" in radar.words["td"]
    assert not {"nan", "NaN", "None"} & {cell.strip() for cell in radar.words["td"]}


def test_best_of_each_lead_time_is_bold(quick):
    assert quick.words["strong"] == ["0.318", "0.278", "0.438", "0.573", "0.461", "0.373", "0.318", "0.686"]


def test_summary_contains_models_data_and_training_time(quick):
    opening = quick.words["p"][0]
    for fact in (
        "teacher (500 optimizer steps), student (800 optimizer steps), direct (1300 optimizer steps)",
        "synthetic storms in SEVIR's layout",
        "150 simulated events",
        "144 windows of 48 held-out events",
        "5 min 12 s on cpu (x86_64)",
    ):
        assert fact in opening, fact


def test_protocols_have_hashes(quick):
    captions = " ".join(quick.words["caption"])
    assert "test-global, hash 1a2b3c4d5e6f" in captions
    assert "test-lead-mean, hash 6f5e4d3c2b1a" in captions


def test_reproduction_section(quick):
    code = "".join(quick.words["code"])
    run_dir = quick.folder.parent
    data_root = read_config(PipelineConfig, run_dir / "config.yaml").data.root
    root = "" if data_root is None else f" --set data.root={data_root}"
    assert (
        f"simcast pipeline {run_dir / 'config.yaml'} --set run_dir=again{root} --set time_budget_minutes=null" in code
    )
    assert "max_steps: 1300" in code
    described = " ".join(quick.words["dd"])
    for fact in ("2.13.0", "01c0580", "0123456789abcdef", "fedcba9876543210"):
        assert fact in described


def test_thresholds_have_units_and_observed_counts(radar, quick):
    assert any(words.startswith("≥ 0.5 mm/h: 90000 pixels, 48 events") for words in radar.words["th"])
    assert any(words.startswith("≥ 219: 87 pixels") and "excluded from means" in words for words in quick.words["th"])
