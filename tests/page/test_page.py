"""The report and the comparison as a reader finds them: parsed, and opened in a browser where Chromium is there."""

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from flows import compare
from maavt.measure import plots
from maavt.page import charts, published, ran, samples
from maavt.page.draw import svg
from maavt.page.results import Result
from maavt.params import load_params
from maavt.stages import report
from tests import browser
from tests.conftest import ROOT
from tests.page.made_up import HOSTILE, make_up, names

PAGE = "data/report/index.html"
DESK, PHONE = (1400, 900), (390, 844)
WIDEST = """Math.max(...[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .map, .looks'))
            .map(e => e.getBoundingClientRect().right))"""


class Page(HTMLParser):
    """Elements as (tag, attributes), and text by the section that it is in."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements, self.sections, self.within, self.raw = [], {}, "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "h2":
            self.within = dict(attrs)["id"]
        self.raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self.raw = ""

    def handle_data(self, data):
        if not self.raw:
            self.sections[self.within] = self.sections.get(self.within, "") + " ".join(data.split()) + " "

    def all(self, tag: str, **wanted: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag
                and all(attributes.get(key) == value for key, value in wanted.items())]


def read(folder: Path) -> Page:
    return Page((folder / "data/report/index.html").read_text())


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """Three models that know twelve classes, eight of them with hostile names."""
    folder = make_up(tmp_path_factory.mktemp("page") / "three", names(12), ("maavt", "linear", "lavish"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        report.main([])
    return folder


def test_the_page_needs_no_other_file_and_no_network(three):
    page = read(three)
    for name, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "data", "srcset"):
            own = ("data:", "#", "../") if name == "a" else ("data:", "#")  # links to files beside the report
            assert (attributes.get(key) or "data:").startswith(own), (name, attributes)
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]
    text = (three / "data/report/index.html").read_text()
    assert not re.findall(r"url\((?!#|&quot;#)", text) and "@import" not in text


def test_hostile_names_are_text_and_nothing_but_text(three):
    page = read(three)
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1
    assert not [attributes for _, attributes in page.elements if any(key.startswith("on") for key in attributes)]
    for name in HOSTILE:
        assert " ".join(name.split()) in page.sections["good"]
    assert "{{ 7 * 7 }}" in page.sections["data"] and "alert(1)" in page.sections["samples"]


def test_the_sections_answer_in_their_order(three):
    page = read(three)
    assert [title["id"] for title in page.all("h2")] == ["good", "training", "samples", "speed", "paper", "data", "run"]
    expected = {
        "": ("95.8 % accuracy of maavt on your files", "95 % interval", "audio only", "chance level", "predicted",
             "12 classes, 48 training, 48 validation, 48 test samples"),
        "good": ("Test split: 48 samples of 24 clips", "most frequent label", "audio only", "visual only",
                 "95 % interval", "lead over linear", "is the linear probe", "calibration error",
                 "no dvc.lock is committed"),
        "training": ("Contrastive loss", "Learning rate", "Retrieval by block", "Recall at 1",
                     "fitted on the validation split: visual early 0.60, audio early 0.42."),
        "samples": ("Map", "principal components", "far more frequent", "At random", "Best", "Worst"),
        "speed": ("the slowest to the fastest", "Rings", "Logarithmic", "1.50×", "1.00× maavt"),
        "paper": ("Table 7", "Table 9", "make paper", "device AMD EPYC 7B13 64-Core Processor, 2 threads"),
        "data": ("12 classes", "no sound", "96.0 %", "half silent 0 24 0", "frame size 64 x 48",
                 "near-duplicates of a clip in another split 0 0 24"),
        "run": ("dvc repro", "git revision", "settings", f"{len(os.sched_getaffinity(0))} cores", "not run here"),
    }
    for section, texts in expected.items():
        for text in texts:
            assert text in page.sections[section], (section, text)


def test_accuracies_on_ave_stand_beside_no_other_data_set(three):
    text = read(three).sections["paper"]
    assert "77.9" not in text and "Table 8" not in text and "accuracies are on AVE" in text


def test_a_run_is_no_change_of_the_code(three, monkeypatch):
    monkeypatch.chdir(three)
    for name in ("data/eval/maavt/metrics.json", "dvc.lock", "params.yaml", "dvc.yaml"):
        path = three / name
        before = path.read_text() if path.exists() else None
        subprocess.run(["git", "add", "-f", name], check=True) if before is not None else path.touch()
        path.write_text((before or "") + "\n")
        subprocess.run(["git", "add", "-f", name], check=True)
        try:
            assert ran.revision()["changed"] == (["dvc.yaml"] if name == "dvc.yaml" else []), name
        finally:
            subprocess.run(["git", "reset", "-q"], check=True)
            path.write_text(before) if before is not None else path.unlink()


def test_a_single_epoch_gives_a_curve_and_validation_is_told_apart():
    figure = Figure()
    charts.curves(figure, {"maavt": np.array([np.linspace(0.02, 1, 50), np.linspace(0, 0.8, 50)])},
                  {"maavt": np.array([[1.0], [0.7]])}, {}, "accuracy")
    faint, line, dashes, point = figure.axes[0].lines
    assert len(line.get_xdata()) == 50 and (point.get_marker(), line.get_marker()) == ("o", "None")
    assert figure.axes[0].get_xlim()[0] == 0 and figure.axes[0].get_ylim()[0] == 0


def test_charts_have_tips_and_axes_in_plain_words(three):
    text = (three / "data/report/index.html").read_text()
    assert "mathdefault" not in text and "<title>maavt: 30.5 samples per second (28.1 to 33.9)" in text
    assert re.search(r"<title>linear, validation after epoch 3: 0.600</title>", text)


def test_a_row_in_int8_is_compared_with_the_model_that_it_is_named_after():
    def row(model: str, speed: str, mode: str = "inference") -> dict:
        return {"model": model, "backbone": "a", "mode": mode, "batch": "2", "samples_per_second": speed}

    rows = [row("maavt", "10"), row("maavt_paper", "40"), row("maavt", "5", "training"), row("maavt_int8", "15"),
            row("mbt_int8", "9")]
    assert published.int8_to_float(rows) == {3: "1.50"}


def test_the_map_has_near_samples_of_equal_predictions_near():
    rows = [{"likeliest": f'[["{first}", {share}], ["{second}", 0.05]]'} for first, share, second in
            (("a", 0.9, "b"), ("a", 0.85, "b"), ("b", 0.9, "a"), ("c", 0.9, "a"))]
    at = samples.positions(Result("maavt", {}, {}, [{"class": name} for name in "abc"], rows, [], [], []))
    near, *far = (np.linalg.norm(at[0] - at[other]) for other in (1, 2, 3))
    assert near < 0.1 < 0.5 < min(far) and at.min() >= 0 and at.max() <= 1


def test_a_reason_that_one_split_alone_has_is_counted_in_all():
    assert ran.rejected([{"stage": "download", "reason": "content: not media", "split": "test"}]) == [
        {"stage": "download", "reason": "content: not media", "total": 1, "train": 0, "val": 0, "test": 1}]


@pytest.mark.parametrize("key, value, before", [
    ("tokens", 10, 5), ("tokens", 5, 5), ("new", 1, 1), ("epochs", 2, {"synth": 1, "folder": "auto"}),
    ("epochs.synth", 1, 1), ("seed.a", 1, 0)])
def test_a_setting_is_compared_with_what_is_committed_be_it_one_value_or_one_for_each_data_set(key, value, before):
    committed = {"tokens": 5, "epochs.synth": 1, "epochs.folder": "auto", "seed": 0}
    assert ran._before(key, committed, value) == before


def test_numbers_are_rounded(three):
    assert "0.5833" in read(three).sections["good"]
    assert not re.findall(r"\d\.\d{7,}", "".join(read(three).sections.values()))


def test_one_model_has_one_colour_and_no_other_thing_has_it(three):
    text = (three / "data/report/index.html").read_text()
    hues = dict(re.findall(r"--([a-z_]+): (#[0-9a-f]{6})", text.split("@media")[0]))
    assert len(set(hues.values())) == len(hues) and {"maavt", "linear", "lavish", "mbt", "wrong"} <= hues.keys()
    drawn = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawn) >= 8
    for picture in drawn:  # colours come from the page, so that they are the same and change with the scheme
        assert set(re.findall(r"#[0-9a-f]{6}\b", picture)) <= {"#ffffff", "#000000"}


def test_every_colour_of_a_model_is_in_the_style_and_none_is_that_of_the_page():
    style = (ROOT / "maavt/page/page.css").read_text()
    rows = [{"model": name, "backbone": "a", "mode": "inference", "batch": 2, "samples_per_second": 3, "slowest": 2,
             "fastest": 4, "image_size": 56, "dtype": dtype, "device": "this one"}
            for name, dtype in [*((name, "float32") for name in plots.HUES), ("maavt_int8", "int8")]]
    drawn = svg(plots.throughput, rows, label="speed")
    used = set(re.findall(r"var\(--(\w+)\)", drawn))
    assert used >= {"maavt", "maavt_paper", "maavt_merge16", "linear", "lavish", "mbt"} and "paper" not in used
    for scheme in style.split("@media screen")[:2]:
        assert used <= set(re.findall(r"--(\w+):", scheme))
    assert "float32, this one" in drawn and "int8, this one" not in drawn


def test_every_sample_has_frame_attention_spectrogram_audio_and_says_whose_it_is(three):
    page = read(three)
    cards = [card for card in page.all("figure") if (card.get("class") or "").startswith("sample")]
    assert 20 <= len(cards) <= 36
    players = page.all("audio", preload="metadata")
    gone = "".join(page.sections.values()).count("no audio file here")  # the files of two clips are missing
    assert len(players) + gone == 3 + len(cards) and gone > 0
    assert all(player["src"].startswith("data:audio/mpeg") for player in players)
    assert len(page.all("img", alt="attention")) == 2 * len(cards)
    assert {card["data-right"] for card in cards} == {"0", "1"}
    assert page.sections["samples"].count("The whole clip") == len(cards)
    assert page.sections["samples"].count("linear: ") == len(cards)


def test_the_page_is_the_same_to_the_byte_when_it_is_made_again(three, monkeypatch):
    before = (three / "data/report/index.html").read_bytes()
    monkeypatch.chdir(three)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    report.main([])
    assert (three / "data/report/index.html").read_bytes() == before


def test_with_309_classes_the_page_is_small_and_names_every_class(tmp_path, monkeypatch):
    folder = make_up(tmp_path / "many", names(309), ("maavt", "linear"))
    monkeypatch.chdir(folder)
    report.main([])
    page = read(folder)
    assert (folder / "data/report/index.html").stat().st_size < 15e6
    for number in range(301):
        assert f"playing instrument {number} " in page.sections["good"]
    assert "309 classes are too many to name" in page.sections["good"]


def test_the_settings_say_what_the_papers_recipe_takes_instead(tmp_path, monkeypatch):
    settings = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"recipe": "paper"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    rows = {row["key"]: row for row in ran.settings(load_params())}
    assert (rows["maavt.lora_rank"]["value"], rows["maavt.lora_rank"]["paper"]) == ("4", "0")
    assert rows["maavt.lsa"]["paper"] is None and rows["maavt.depth"]["paper"] is None


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    """A comparison of five models over two seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "params.yaml").write_text("dataset: synth\n")
    (folder / "dvc.yaml").touch()
    runs = {name: [{"rate": "0.1", "trained": 10**7, "epoch": 1, "accuracy": accuracy, "accuracy_audio_only": 0.3,
                    "accuracy_visual_only": 0.2, "chance": 0.125, "seconds_per_epoch": 12.3,
                    "right": {(str(clip), "0"): (clip < 10 * accuracy, str(clip)) for clip in range(10)}}
                   for accuracy in (0.9 - place / 10, 0.8 - place / 10)]
            for place, name in enumerate(compare.CONTENDERS)}
    compare.write(compare.rows(runs, "maavt"), "maavt", [], folder)
    return folder / "data/comparison/index.html"


@pytest.fixture(scope="module")
def tab():
    if not browser.CHROMIUM:
        pytest.skip("needs Chromium")
    with browser.browser() as found:
        yield found


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_the_first_screen_has_the_accuracy_the_bars_three_samples_and_the_data(three, tab, size):
    tab.open(three / PAGE, *size)
    for part in ("h1", ".bars > div:last-child", ".three figure:last-child audio, .three figure:last-child p",
                 ".three figcaption", "header .data"):
        box = tab.js(f"document.querySelector('{part}').getBoundingClientRect().toJSON()")
        assert 0 <= box["top"] and box["bottom"] <= size[1] and box["right"] <= size[0] and box["height"] > 0, part
    text = tab.js("document.querySelector('header').innerText")
    for words in ("accuracy of maavt", "95 % interval", "chance level", "audio only", "visual only", "linear",
                  "predicted", "12 classes"):
        assert words in text


@pytest.mark.parametrize("scheme", browser.SCHEMES)
@pytest.mark.parametrize("size", [DESK, PHONE])
@pytest.mark.parametrize("which", ["report", "comparison"])
def test_nothing_is_wider_than_the_window_and_the_console_has_no_error(three, comparison, tab, which, size, scheme):
    tab.errors.clear()
    tab.open(three / PAGE if which == "report" else comparison, *size, scheme)
    tab.js("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert tab.js("document.documentElement.scrollWidth") <= size[0] and tab.js(WIDEST) <= size[0]
    dark = tab.js("getComputedStyle(document.body).backgroundColor") == "rgb(18, 24, 27)"
    assert dark == (scheme == "dark") and not tab.errors


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_charts_and_their_words_stay_within_their_panels(three, tab, size):
    tab.open(three / PAGE, *size)
    tab.js("document.querySelectorAll('details').forEach(part => part.open = true)")
    outside = tab.js("""[...document.querySelectorAll('.chart svg')].flatMap(svg => {
        const panel = svg.closest('.chart').getBoundingClientRect(), own = svg.getBoundingClientRect();
        return [own, ...[...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect())]
            .filter(box => box.left < panel.left - 1 || box.right > panel.right + 1 || box.top < own.top - 1 ||
                           box.bottom > own.bottom + 1).map(box => svg.getAttribute('aria-label')) })""")
    assert outside == []
    assert tab.js("document.querySelectorAll('.chart svg').length") >= 6


def test_words_of_the_throughput_chart_do_not_overlap(three, tab):
    tab.open(three / PAGE, *PHONE)
    overlap = tab.js("""(() => { const boxes = [...document.querySelectorAll('svg[aria-label^=throughput] text')]
        .map(text => text.getBoundingClientRect()); return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
            a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2)).length
        })()""")
    assert overlap == 0


def test_a_click_on_the_map_shows_and_plays_the_sample(three, tab):
    tab.open(three / PAGE, *DESK)
    assert tab.js("document.querySelector('.playing').hidden")
    tab.js("""document.querySelector('.map button[data-audio^="data:audio"]').click()""")
    assert not tab.js("document.querySelector('.playing').hidden")
    assert tab.js("document.querySelector('.playing audio').src").startswith("data:audio/mpeg")
    assert "predicted" in tab.js("document.querySelector('.playing').innerText")
    link = tab.js("document.querySelector('.playing a').href")
    assert link.endswith("clips/one.mp4") and Path(link.removeprefix("file://").replace("%20", " ")).exists()


def test_a_filter_shows_the_wrong_samples_alone(three, tab):
    tab.open(three / PAGE, *DESK)
    tab.js("document.querySelector('select[name=right]').value = '0'; "
           "document.querySelector('.filters').dispatchEvent(new Event('input'))")
    shown = tab.js("[...document.querySelectorAll('.sample:not([hidden])')].map(card => card.dataset.right)")
    assert shown and set(shown) == {"0"}


def test_the_comparison_begins_at_zero_and_says_data_set_date_revision_and_chance_level(comparison, tab):
    tab.open(comparison, *PHONE)
    text = tab.js("document.body.innerText").replace("\N{NO-BREAK SPACE}", " ")
    for words in ("maavt, paper, linear, lavish, mbt on synth", "UTC", "chance level", "12.5 %", "85.0 %"):
        assert words in text
    bar = tab.js("""(() => { const track = document.querySelector('.track'); const [a, b] = [track,
        track.querySelector('i')].map(part => part.getBoundingClientRect()); return [b.left - a.left, b.width / a.width]
        })()""")
    assert abs(bar[0]) < 1 and bar[1] == pytest.approx(0.85, abs=0.01)
    assert tab.js("document.querySelector('.track').offsetWidth") > 150  # else its bars and ticks are illegible


@pytest.mark.skipif(not browser.CHROMIUM, reason="needs Chromium")
def test_the_pictures_for_the_readme_are_small(three, tmp_path):
    browser.pictures(three / PAGE, tmp_path)
    for scheme in browser.SCHEMES:
        assert 5e3 < os.path.getsize(tmp_path / f"report-{scheme}.png") < 150e3
