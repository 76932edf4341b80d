import re

import pytest

from maavt.errors import UserError
from maavt.stages import report


def test_the_page_opens_without_a_server(made):
    page = (made / "data/report/index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page


def test_the_page_shows_the_result_the_pairs_and_the_benchmark(made):
    page = (made / "data/report/index.html").read_text()
    for told in ("maavt on synth", "audio only", "visual only", "confusion matrix", "disc-tone", "backbone",
                 "samples per second", "train 10 clips"):
        assert told in page
    assert page.count("<figure") >= 5
    assert page.count("data:image/svg") == 5  # modalities, curves, a confusion matrix, parameters, throughput


def test_names_in_the_data_cannot_inject_markup(project):
    rejects = project / "data/shards/synth/rejects.csv"
    rejects.unlink()
    rejects.write_text("key,split,label,stage,reason\n<script>alert(1)</script>,train,a,download,gone\n")
    report.main([])
    assert "<script>" not in (project / "data/report/index.html").read_text()


def test_without_an_evaluation_the_error_says_what_to_run(project):
    (project / "data/eval/maavt/metrics.json").unlink()
    with pytest.raises(UserError, match="no .*metrics.json; run the stages before the report first"):
        report.main([])
