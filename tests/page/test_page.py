"""The page as a reader finds it, without a browser: its HTML is parsed."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from maavt.measure import plots
from maavt.page import ran
from maavt.page.draw import svg
from maavt.params import load_params
from maavt.stages import report
from tests.conftest import ROOT
from tests.page.made_up import HOSTILE, make_up, names

VOID = {"meta", "img", "br", "input", "hr", "link", "use"}


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
            assert attributes.get(key, "data:").startswith(("data:", "#")), (name, attributes)
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
    assert "{{ 7 * 7 }}" in page.sections["run"] and "alert(1)" in page.sections["pairs"]


def test_the_sections_answer_in_their_order(three):
    page = read(three)
    assert [title["id"] for title in page.all("h2")] == ["run", "good", "paper", "training", "pairs", "speed"]
    said = page.sections
    for told in ("dvc repro", "git revision", "settings", "12 classes", "no sound",
                 f"{len(os.sched_getaffinity(0))} cores", "not run here", "96.0 %", "half or more is silent 0 24 0",
                 "picture 64 x 48", "copies of a clip in another split 0 0 24"):
        assert told in said["run"], told
    for told in ("Test split: 48 pairs of 24 clips", "most frequent label", "sound alone", "picture alone",
                 "95 % interval", "more than the linear probe", "is the probe", "calibration error",
                 "no dvc.lock is committed"):
        assert told in said["good"], told
    for told in ("Table 7", "Table 8", "Table 9", "77.9", "make paper", "make ablate", "data set folder",
                 "device cpu, 2 threads"):
        assert told in said["paper"], told
    for told in ("chance level", "Learning rate", "Retrieval by block", "Own one is the nearest",
                 "validation pairs say: picture early 0.60, sound early 0.42."):
        assert told in said["training"], told
    for told in ("as maavt sees and hears", "far more frequent", "At random", "Best", "Worst"):
        assert told in said["pairs"], told
    for told in ("Whiskers", "Rings", "logarithmic", "1.50×"):
        assert told in said["speed"], told


def test_a_reason_that_one_split_alone_has_is_counted_in_all():
    assert ran.drop_outs([{"stage": "download", "reason": "content: not media", "split": "test"}]) == [
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


def test_every_pair_has_frame_attention_spectrogram_sound_and_says_whose_it_is(three):
    page = read(three)
    cards = page.all("figure")
    pairs = [card for card in cards if (card.get("class") or "").startswith("pair")]
    assert 20 <= len(pairs) <= 36
    players = page.all("audio")
    gone = page.sections["pairs"].count("its sound is not at hand")  # the files of two clips are not there
    assert len(players) == len(pairs) - gone > gone > 0
    assert all(player["src"].startswith("data:audio/mpeg") for player in players)
    assert len(page.all("img", alt="attention")) == 2 * len(pairs)
    assert {card["data-right"] for card in pairs} == {"0", "1"}
    assert page.sections["pairs"].count("The whole clip") == len(pairs)
    assert page.sections["pairs"].count("linear: ") == len(pairs)


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
    assert "309 classes are too many to be named" in page.sections["good"]


def test_the_settings_say_what_the_papers_recipe_takes_instead(tmp_path, monkeypatch):
    settings = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"recipe": "paper"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    rows = {row["key"]: row for row in ran.settings(load_params())}
    assert (rows["maavt.lora_rank"]["value"], rows["maavt.lora_rank"]["paper"]) == ("4", "0")
    assert rows["maavt.lsa"]["paper"] is None and rows["maavt.depth"]["paper"] is None
