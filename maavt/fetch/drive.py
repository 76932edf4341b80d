"""Google Drive's web pages: the one that asks to confirm a large file, and those that refuse."""

import re
from html.parser import HTMLParser
from urllib.parse import urlencode, urljoin, urlsplit

from maavt.fetch import PERMANENT, SESSION, Failed


def confirm(page: str, url: str) -> str:
    """Where the file is, from the page that came instead of it; raises Failed where the page is another one."""
    form = _Form()
    form.feed(page)
    if form.action:
        target = urljoin(url, form.action)
        return f"{target}{'&' if urlsplit(target).query else '?'}{urlencode(form.inputs)}"
    if re.search(r"quota exceeded|too many users have viewed or downloaded", page, re.IGNORECASE):
        raise Failed(SESSION, "Google Drive's quota for this file is used up; try again in a day, or fetch the file "
                     "with a browser where you are signed in, and set ave.local to it")
    if re.search(r"does not exist|no longer available|in violation", page, re.IGNORECASE):
        raise Failed(PERMANENT, "Google Drive has no such file any more")
    raise Failed(SESSION, "Google Drive sends a page that asks for something else, such as a login; fetch the file "
                 "with a browser and set ave.local to it")


class _Form(HTMLParser):
    """The action and the hidden inputs of the form `download-form`."""

    def __init__(self):
        super().__init__()
        self.action, self.inputs, self._inside = "", {}, False

    def handle_starttag(self, tag: str, attributes: list) -> None:
        facts = dict(attributes)
        if tag == "form" and facts.get("id") == "download-form":
            self.action, self._inside = facts.get("action") or "", True
        elif tag == "input" and self._inside and facts.get("type") == "hidden" and facts.get("name"):
            self.inputs[facts["name"]] = facts.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
