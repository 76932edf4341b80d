"""Why a file or clip cannot be used: one of a few reasons, raised and handed on as data."""

REASONS = {
    "missing file": "there is no such file",
    "unreadable file": "the file may not be read, or the disk fails",
    "empty file": "the file has no bytes",
    "not media": "not a file that FFmpeg takes for one recording",
    "encrypted": "a track is encrypted",
    "no video stream": "there is no picture track (a cover picture is none)",
    "no audio stream": "there is no sound track",
    "no video decoder": "FFmpeg here has no decoder for the picture track",
    "no audio decoder": "FFmpeg here has no decoder for the sound track",
    "unusable dimensions": "the picture is larger than MAX_PIXELS or longer than MAX_ASPECT times its short side",
    "no frame decoded": "not one picture could be decoded",
    "no sound decoded": "not one sample of sound could be decoded",
    "nothing to see or hear": "the picture is of one colour, or none, and there is only silence",
    "too short": "picture or sound reaches less far than the recipe needs (media.length.shortest)",
    "unknown length": "the file does not say how long it is, and goes on behind the first minute that was read",
    "out of memory": "there was not enough memory to decode the file",
    "timed out": "decoding took longer than its time limit",
    "decoder crashed": "the decoding process died, or failed in a way that it should not",
    "failed here": "a fault of our own, not of the file; its traceback is in the log",
}


class Rejected(Exception):
    """A file or clip that cannot be used: `reason` is one of REASONS, `detail` is free text for people."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def explain(rejected: Rejected) -> dict[str, str]:
    """The reason as JSON; of a clip that is too short with its length and the shortest that would do."""
    return {"reason": rejected.reason} | ({"detail": rejected.detail} if rejected.reason == "too short" else {})
