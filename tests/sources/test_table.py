"""A table of one's own clips in the forms in which spreadsheets write it, and names as disks write them."""

import unicodedata

import pytest

from maavt.errors import UserError
from maavt.params import Folder
from maavt.sources.table import read_table, unread
from maavt.stages.listing import listing
from tests.sources.common import params

PLAIN = "path,label\ncat/0.mp4,cat\ndog/0.mp4,dog\n"
COMPOSED, APART = (unicodedata.normalize(form, "café/bébé.mp4") for form in ("NFC", "NFD"))


def settings(**changes) -> Folder:
    return params(dataset="folder", folder={"root": ".", "table": "clips.csv"} | changes).folder


def read(folder, content: str | bytes, **changes):
    (folder / "clips.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return [(row.path, row.label) for row in read_table(folder, settings(**changes))]


@pytest.mark.parametrize("content", [
    PLAIN, PLAIN.replace(",", ";"), PLAIN.replace(",", "\t"), PLAIN.replace(",", "|"), PLAIN.replace("\n", "\r\n"),
    PLAIN.replace("\n", "\r"), "sep=;\r\n" + PLAIN.replace(",", ";"), '"SEP=\t"\n' + PLAIN.replace(",", "\t"),
    "sep=,\n" + PLAIN, "\ufeffsep=,\n" + PLAIN, "\n\n" + PLAIN, ",,\n , \n" + PLAIN, PLAIN + ",\r\n,\r\n",
    PLAIN + " , ,\n",
    PLAIN.replace("\n", ",,\n"), PLAIN.replace("\n", ";;\n").replace(",", ";"), "," + PLAIN.replace("\n", "\n,")[:-1],
    PLAIN.replace("path,label", "path;label;\"note (who, when, where)\"").replace("mp4,", "mp4;"),
    PLAIN.replace("path,label", "path;label;who, when, where, why").replace("mp4,", "mp4;"),
    '"path";"label"\n"cat/0.mp4";"cat"\n"dog/0.mp4";"dog"\n', "path, label\ncat/0.mp4, cat\ndog/0.mp4, \"dog\"\n",
    "Path , LABEL\n" + PLAIN.partition("\n")[2], "\u00a0label,PATH\ncat,cat/0.mp4\ndog,dog/0.mp4",
    'path,label,"a note\nof two lines"\ncat/0.mp4,cat,"x\ny"\ndog/0.mp4,dog,\n',
])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-16-be and mark"])
def test_a_table_is_read_as_any_spreadsheet_writes_it(tmp_path, content, encoding):
    name, _, mark = encoding.partition(" ")
    if mark:
        content = "\ufeff" + content.removeprefix("\ufeff")
    elif encoding != "utf-8":
        content = content.removeprefix("\ufeff")
    assert read(tmp_path, content.encode(name)) == [("cat/0.mp4", "cat"), ("dog/0.mp4", "dog")]


def test_columns_that_nothing_reads_are_told_and_blank_ones_are_not(tmp_path):
    (tmp_path / "clips.csv").write_text('sep=;\nPATH;label;;" note (who, when)";;\na;b;;c;;\n')
    assert unread(tmp_path / "clips.csv", settings()) == ["note (who, when)"]


def test_mistakes_are_told_with_the_line_that_an_editor_shows(tmp_path):
    with pytest.raises(UserError, match="clips.csv, line 5: label is empty"):
        read(tmp_path, "sep=;\r\npath;label\r\n;\r\ncat/0.mp4;cat\r\ndog/0.mp4;\r\n")
    with pytest.raises(UserError, match="line 3: more fields than the header has columns, from 'x' on"):
        read(tmp_path, PLAIN.replace("dog\n", "dog,,x\n"))


def test_a_table_in_another_encoding_is_an_error_that_names_line_and_letter(tmp_path):
    with pytest.raises(UserError, match=r"clips.csv, line 3: the byte e9 is not UTF-8.*Windows-1252.*'é'.*CSV UTF-8"):
        read(tmp_path, "path,label\na.mp4,dog\nb.mp4,caf\u00e9\n".encode("cp1252"))
    with pytest.raises(UserError, match="is a workbook.*CSV UTF-8"):
        read(tmp_path, b"PK\3\4" + bytes(50))


def test_a_column_of_groups_may_have_capitals_and_names_in_two_compositions(tmp_path):
    read(tmp_path, f"path,label,Speaker\na.mp4,a,{COMPOSED}\nb.mp4,a,{APART}\n", group="speaker")
    assert {row.group for row in read_table(tmp_path, settings(group="speaker"))} == {COMPOSED}


@pytest.mark.parametrize("table, disk", [(COMPOSED, APART), (APART, COMPOSED), (COMPOSED.replace("/", "\\"), APART)])
def test_a_file_is_found_whatever_the_composition_of_its_name(tmp_path, table, disk):
    (tmp_path / disk).parent.mkdir()
    (tmp_path / disk).touch()
    assert read(tmp_path, f"path,label\n{table},a\n") == [(disk, "a")]
    with pytest.raises(UserError, match="line 3: .* is in line 2 already"):
        read(tmp_path, f"path,label\n{table},a\n{disk},a\n")


def test_two_files_that_differ_in_composition_alone_are_told_apart_where_they_are_named_exactly(tmp_path):
    for name in (COMPOSED, APART):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert read(tmp_path, f"path,label\n{COMPOSED},a\n{APART},b\n") == [(COMPOSED, "a"), (APART, "b")]


def test_a_control_character_in_a_label_is_an_error_that_names_the_row(tmp_path):
    with pytest.raises(UserError, match="line 2: the label 'a.x07b' holds a control character"):
        read(tmp_path, "path,label\na.mp4,a\7b\n")


def test_a_file_elsewhere_that_a_spreadsheet_names_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr("maavt.stages.listing.project_root", lambda: tmp_path)
    root = tmp_path / "mine"
    root.mkdir()
    (tmp_path / unicodedata.normalize("NFD", "bébé.mp4")).write_bytes(b"1")
    (root / "clips.csv").write_bytes("sep=;\nPath;Label\n../b\u00e9b\u00e9.mp4;a\n".encode("utf-16"))
    assert listing(params(dataset="folder", folder={"root": "mine", "table": "clips.csv"}))["files"] == 2
