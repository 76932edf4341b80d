"""yt-dlp really run against a page on loopback, and the meaning of its messages."""

import sys

import av
import pytest

from maavt.clips import read_manifest
from maavt.errors import UserError
from maavt.fetch import Failed, explain, youtube
from maavt.stages import download
from tests.server import Fault, Hub
from tests.sources.common import make_project, media

pytest.importorskip("yt_dlp")


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    """A VGGSound of three clips, of which the archives have none."""
    server.files["/vggsound.csv"] = b"-video00001,2,air horn,train\nvideo000002,0,air horn,test\n" \
                                    b"video000003,0,air horn,test\n"
    Hub(server).put("vggsound_00.tar.gz", b"empty")
    video = media(seconds=14)
    for name in ("-video00001", "video000002"):
        page = f'<html><title>{name}</title><video src="/{name}.mp4" type="video/mp4"></video></html>'.encode()
        server.routes[f"/watch/{name}"] = lambda *_, page=page: ("text/html", page)
        server.files[f"/{name}.mp4"] = video
    folder = make_project(tmp_path / "project", dataset="vggsound", download={"min_coverage": 0.5}, vggsound={
        "hub": server.url, "annotations": f"{server.url}/vggsound.csv", "youtube": True,
        "youtube_url": f"{server.url}/watch/{{id}}"})
    monkeypatch.chdir(folder)
    monkeypatch.setattr(youtube, "check_tools", lambda: None)  # no JavaScript on a page of ours
    return folder


def test_gaps_are_filled_with_sections_of_videos(server, project):
    download.main()
    clips, _ = read_manifest(project / "data/raw/vggsound")
    assert [clip.reason for clip in clips] == ["", "", "permanent: gone"]
    for clip in clips[:2]:
        with av.open(str(project / "data/raw/vggsound" / clip.path)) as container:
            assert {stream.type for stream in container.streams} == {"video", "audio"}
            assert 9 < container.duration / av.time_base < 11
    server.asked.clear()
    download.main()
    assert not [asked for asked in server.asked if "video" in asked.path]
    download.main(["--retry", "permanent"])
    assert [asked.path for asked in server.asked if "video" in asked.path][0] == "/watch/video000003"


def test_a_site_that_takes_us_for_a_bot_stops_the_run(server, project):
    server.fault = lambda asked: Fault(status=429) if "watch" in asked.path else None
    with pytest.raises(UserError, match="takes us for a bot.*MAAVT_COOKIES"):
        download.main()
    assert len({asked.path for asked in server.asked if "watch" in asked.path}) == 1


def test_without_ffmpeg_nothing_is_asked_of_the_site(server, project, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(project)
    monkeypatch.setattr(youtube, "find_ffmpeg", lambda: None)
    with pytest.raises(UserError, match="needs ffmpeg"):
        download.main()
    assert not [asked for asked in server.asked if "watch" in asked.path]


def test_without_yt_dlp_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(Failed, match=r"environment.*maavt\[youtube\]"):
        youtube.section("http://127.0.0.1:9", 0, 10, tmp_path / "a.mp4", tmp_path)


def test_cookies_proxy_and_sleep_are_passed_on(monkeypatch):
    for name, value in {"COOKIES": "/my/cookies.txt", "PROXY": "socks5://127.0.0.1:1", "SLEEP": "5,20"}.items():
        monkeypatch.setenv(f"MAAVT_{name}", value)
    options = youtube._options()
    assert (options["cookiefile"], options["proxy"]) == ("/my/cookies.txt", "socks5://127.0.0.1:1")
    assert (options["sleep_interval"], options["max_sleep_interval"]) == (5, 20)


@pytest.mark.parametrize("message, kind", [
    ("ERROR: [youtube] abc: Private video. Sign in if you've been granted access to this video", "permanent"),
    ("ERROR: [youtube] abc: Video unavailable. This video is no longer available because the YouTube account "
     "associated with this video has been terminated.", "permanent"),
    ("ERROR: [youtube] abc: Video unavailable. The uploader has not made this video available in your "
     "country", "permanent"),
    ("ERROR: [youtube] abc: This video has been removed by the uploader", "permanent"),
    ("ERROR: [youtube] abc: Sign in to confirm your age. This video may be inappropriate for some users.", "permanent"),
    ("ERROR: [youtube] abc: Sign in to confirm you’re not a bot. Use --cookies-from-browser or --cookies", "session"),
    ("ERROR: [youtube] abc: Video unavailable. This content isn't available, try again later. The current session has "
     "been rate-limited by YouTube for up to an hour.", "session"),
    ("ERROR: unable to download video data: HTTP Error 503: Service Unavailable", "transient"),
    ("ERROR: [youtube] abc: Unable to download webpage: The read operation timed out", "transient"),
    ("ERROR: [youtube] abc: Unable to download API page: <urllib3.connection.HTTPSConnection>: Failed to resolve "
     "'www.youtube.com'", "transient"),
    ("ERROR: You have requested merging of multiple formats but ffmpeg is not installed. Aborting", "environment"),
    ("ERROR: unable to open for writing: [Errno 28] No space left on device", "environment"),
    ("ERROR: [youtube] abc: Unable to extract player version; please report this issue on  https://github.com/yt-dlp",
     "environment"),
    ("something never seen", "transient"),
])
def test_messages_are_told_apart(message, kind):
    found = explain("youtube", message)
    assert (found.kind if found else "transient") == kind
