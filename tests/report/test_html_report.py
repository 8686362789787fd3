"""The page: well-formed, accessible, without anything from outside, and with every text from a file escaped."""

import base64
import io
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from simcast_hpc.config import PipelineConfig, read_config
from simcast_hpc.report import write_report
from tests.report.fake_run import MEAN_CSI, STEPS, radar_file, score_file, write_run

HOSTILE = "<script>alert('x')</script> & \"quotes\" $a_1$"
VOID = {"meta", "img", "br", "hr", "link", "input"}
MOST_BYTES = 1_200_000


class Page(HTMLParser):
    """Reads a page as a tree; an end tag that closes another element than the innermost is an error."""

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
    """Two test sets out of alphabetical order, texts that HTML would take for markup, undefined scores."""
    holed = {name: [*leads[:3], None, *leads[4:]] for name, leads in MEAN_CSI.items()} | {"<b>odd": [None] * 6}
    sets = [
        radar_file("also & <more>", title=f"MCH {HOSTILE}", citation=HOSTILE, mean_csi=holed),
        radar_file("test", title="MRMS tiles", dataset="mrms-4km", dates=["2019-06-10"], step_minutes=4.0),
    ]
    also = {"also": [{"name": "also & <more>", "data": {"dataset": "mch"}}]}
    run_dir = tmp_path_factory.mktemp("radar") / "run"
    return Page(write_report(write_run(run_dir, name=HOSTILE, config={"evaluation": also}, test_sets=sets)))


@pytest.fixture(scope="module")
def ensemble(ensemble_page) -> Page:
    return Page(ensemble_page)


@pytest.fixture(params=["quick", "radar", "ensemble"])
def page(request) -> Page:
    return request.getfixturevalue(request.param)


def test_every_picture_is_in_the_page_whole_and_described(page):
    pictures = page.attributes("img")
    assert len(pictures) >= 40
    for picture in pictures:
        kind, _, data = str(picture["src"]).partition(";base64,")
        assert kind in ("data:image/png", "data:image/gif")
        Image.open(io.BytesIO(base64.b64decode(data))).load()
        assert len(str(picture["alt"])) > 20


def test_the_page_is_one_small_file_and_nothing_comes_from_outside(page):
    assert [path.name for path in page.folder.iterdir()] == ["index.html"]
    assert len(page.text.encode()) < MOST_BYTES
    assert not {"iframe", "object"} & {tag for tag, _, _ in page.elements}
    assert page.attributes("link") == [{"rel": "icon", "href": "data:,"}]
    assert page.attributes("script") == [{}], "one script, in the page"
    for _, attrs, _ in page.elements:
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attrs)
    assert "@import" not in page.text and "url(" not in page.text and "http" not in "".join(page.words["script"])


def test_every_lead_can_be_reached_without_the_script(page):
    """The strips stand open in the page; the script alone hides all but one lead, and shows the controls."""
    strips = [k for k, (_, attrs, _) in enumerate(page.elements) if attrs.get("class") == "strip"]
    assert strips
    assert not any("hidden" in attrs for tag, attrs, _ in page.elements if tag == "figure")
    assert all("hidden" in attrs for _, attrs, _ in page.elements if attrs.get("class") == "controls")
    captions = [words for words in page.words["figcaption"] if words.endswith("min")]
    assert {f"+{minutes} min" for minutes in (5, 10, 15, 20, 25, 30)} <= set(captions) or "+4 min" in captions


def test_the_ensemble_stands_beside_single_forecasts(ensemble):
    cells = ensemble.words["td"] + ensemble.words["small"]
    assert "5 members" in cells and "−0.0100 " in cells and "[−0.0120, −0.0080]" in cells
    titles = ensemble.words["p"]
    for title in ("CRPS by lead", "Spread and error", "Rank histogram", "Reliability", "+30 min, power"):
        assert title in titles
    panels = ensemble.words["h4"]
    assert {"member 4", "mean of all members", "probability-matched mean", "probability of ≥ 181"} <= set(panels)
    assert "diffusion, member 1" in panels and "diffusion, its members" in ensemble.words["li"]


def test_a_page_without_ensembles_says_nothing_of_members(quick):
    assert not [words for words in quick.words["h3"] if "ensemble" in words]
    assert "Rank histogram" not in quick.words["p"]


def test_an_older_score_file_without_example_frames_still_has_its_page(tmp_path):
    """Before spectra, diagrams and intervals were written."""
    older = {
        key: value
        for key, value in score_file().items()
        if key not in ("diagrams", "differences", "intervals", "grid", "spacing_km")
    }
    run_dir = write_run(tmp_path / "run", steps={"direct": STEPS["direct"]}, test_sets=[older])
    (run_dir / "scores" / "test.example.npz").unlink()
    page = Page(write_report(run_dir))
    assert "No example frames were kept for this test set." in page.words["p"]
    assert page.words["p"][0].startswith("One SimVP model was trained")
    assert any("No spectra were summed" in words for words in page.words["p"])
    assert "mean-csi" not in page.text and "Mean CSI" in page.words["p"]


def test_intervals_stand_under_their_scores(quick):
    assert "[0.369, 0.451]" in quick.words["small"], "of the mean CSI of 0.41"


def test_units_spacing_and_time_are_told_with_the_frames(radar, quick):
    assert any("48 × 48 pixels of 8 km, frames 5 minutes apart" in words for words in quick.words["p"])
    assert "≥ 30" in radar.words["li"] and "missing" in radar.words["li"]
    assert any(words == "rain rate, mm/h" for words in radar.words["span"])
    alts = [str(picture["alt"]) for picture in radar.attributes("img")]
    assert any(alt.startswith("observed at +5 min: up to at least") and "mm/h, on" in alt for alt in alts)


def test_tables_have_captions_and_scoped_headings(page):
    tables = len(page.attributes("table"))
    assert tables >= 5
    assert len(page.attributes("caption")) == tables
    assert all(head.get("scope") in {"col", "row", "rowgroup"} for head in page.attributes("th"))


def test_links_on_the_page_lead_somewhere(page):
    identifiers = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    targets = [str(link["href"])[1:] for link in page.attributes("a") if str(link["href"]).startswith("#")]
    assert targets and set(targets) <= set(identifiers)


def test_language_title_and_screen_width_are_given(page):
    assert page.attributes("html") == [{"lang": "en"}]
    assert page.words["title"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")


def test_text_from_files_is_shown_as_text(radar):
    assert HOSTILE in unescape(radar.text)
    assert radar.text.count("<script") == 1 and "<b>" not in radar.text
    assert any(HOSTILE in words for words in radar.words["h1"])
    assert any(HOSTILE in words for words in radar.words["h2"])
    assert "<b>odd" in radar.words["th"]


def test_the_runs_own_test_set_comes_first(radar):
    titles = radar.words["h2"]
    assert titles.index("MRMS tiles") < titles.index(f"MCH {HOSTILE}")


def test_undefined_scores_are_dashes(radar):
    assert "–" in radar.words["td"]
    assert not {"nan", "NaN", "None"} & {cell.strip() for cell in radar.words["td"]}


def test_the_best_of_each_lead_is_bold(quick):
    assert quick.words["strong"] == ["0.318", "0.278", "0.438", "0.573", "0.461", "0.373", "0.318", "0.686"]


def test_the_opening_says_what_on_what_how_large_and_how_long(quick):
    opening = quick.words["p"][0]
    for fact in (
        "teacher (500 optimizer steps), student (800 optimizer steps), direct (1300 optimizer steps)",
        "synthetic storms in SEVIR's layout",
        "150 simulated events",
        "144 windows of 48 held-out events",
        "5 min 12 s in all on cpu (x86_64)",
    ):
        assert fact in opening, fact


def test_every_protocol_is_named_with_its_hash(quick):
    captions = " ".join(quick.words["caption"])
    assert "test-global, hash 1a2b3c4d5e6f" in captions
    assert "test-lead-mean, hash 6f5e4d3c2b1a" in captions


def test_it_says_how_to_reproduce(quick):
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


def test_thresholds_carry_their_unit_and_what_was_observed(radar, quick):
    assert any(words.startswith("≥ 0.5 mm/h: 90000 pixels, 48 events") for words in radar.words["th"])
    assert any(words.startswith("≥ 219: 87 pixels") and "too rare" in words for words in quick.words["th"])
