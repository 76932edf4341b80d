import pytest

from maavt.errors import UserError
from tests.sources.common import params


def test_all_mistakes_in_the_settings_of_data_sets_are_told_at_once():
    with pytest.raises(UserError) as caught:
        params(dataset="folder", vggsound={"youtube_url": "https://example.org/"}, cremad={"files": "https://x/"},
               folder={"val_share": 0.5, "test_share": 0.5})
    message = str(caught.value)
    for mistake in ("vggsound.youtube_url: 'https://example.org/'; expected {id} in it",
                    "cremad.files: 'https://x/'; expected {path} in it",
                    "folder: val_share 0.5 and test_share 0.5 leave nothing to train on",
                    "folder.root: ''; expected the folder that holds your clips"):
        assert mistake in message


@pytest.mark.parametrize("change", [{"cremad": {"split": "random"}}, {"download": {"min_coverage": 1.5}},
                                    {"ave": {"locale": "x"}}, {"dataset": "kinetics"}])
def test_a_value_that_makes_no_sense_is_refused(change):
    with pytest.raises(UserError, match="1 mistake|2 mistakes"):
        params(**change)
