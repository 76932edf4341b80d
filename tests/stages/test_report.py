
import pytest

from maavt.errors import UserError
from maavt.stages import report


def test_without_an_evaluation_the_error_says_what_to_run(project):
    (project / "data/eval/maavt/metrics.json").unlink()
    with pytest.raises(UserError, match="no .*metrics.json; run the stages before the report first"):
        report.main([])
