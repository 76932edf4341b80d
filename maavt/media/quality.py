"""What a clip is like: the facts of quality.csv, and a fingerprint that finds its near-duplicates among all clips.

Both come from what a sample is made of anyway: its small frames, and the sound of the whole clip.
"""

from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maavt.media.decode import Media
from maavt.media.sound import SILENT, power

FULL = 0.999  # a sample from here on is clipped
CELLS = 16  # rows and columns of the grid of grey levels that frames are compared by
STILL = 3.0  # grey levels: below it in every cell, a frame is the one before

# A fingerprint is the grey levels of two frames, 8 x 8, and the log energies of the sound, 32 times x 8 bands, each
# less its mean and in units of its own deviation, or of these where it has less contrast: then codecs make it up. The
# times are short at first and grow, so that they tell a clip of a second as well as one of ten; those that the clip
# does not reach are absent, as is a frame that it does not have: where a copy ends is the encoder's doing.
TIMES, BANDS = 32, 8
BLOCKS = 0.016  # seconds that one spectrum is of
ABSENT = -128
GREY, LOG_ENERGY = 5.0, 0.5
LEAST_GREY = 2.0  # deviation of a frame that shows something at all
RANGE = 1e-4  # of the loudest energy: what is softer is not told apart
STEP = 24  # int8 steps to a deviation
PICTURE = 2 * (CELLS // 2) ** 2  # the first numbers of a fingerprint

# Half the mean square by which pictures and sound may each differ: 1 - their correlation. Copies at 60 % of the size
# and 32 kbit/s mostly come to 0.005, the worst to 0.02, and to 0.04 under noise; the closest two of 1100 made clips,
# which are of few kinds, to 0.022, and of 1600 real ones to 0.06.
ALIKE = 0.018
TABLES, NEAR = 24, 16  # ways to hash all clips into buckets, and how many neighbours in its bucket a clip is held to


@dataclass(frozen=True)
class Quality:
    """Shares are of the clip as it is used, what fills up a short one included; still_share is None of one frame."""

    seconds: float  # that picture and sound both reach, or the one that is there
    width: int  # of the pictures as they are stored
    height: int
    frame_rate: float  # as the file's header says
    loudness_dbfs: float  # of what is not silent; -120 is digital silence
    silent_share: float
    still_share: float | None
    clipped_share: float
    absent: str  # sound or picture, where a clip without it is kept
    sound_track: int  # the number of the track of sound that was taken since those before it are silent, else 0
    fingerprint: str  # base64; empty where there is nothing to see, or nothing to hear


def measure(media: Media, frames: dict[int, np.ndarray], *, shown: Sequence[int], sample_rate: int) -> Quality:
    """The quality of a clip with these frames (S, S, 3) uint8 by their second; `shown` are the seconds of all that
    the splits have in common, of which the first and the middle one are in the fingerprint."""
    powers = power(media.waveform, sample_rate)
    loud = powers > SILENT
    grids = _grids(np.stack(list(frames.values()) or [np.zeros((CELLS, CELLS, 3), np.uint8)]))
    still = np.abs(np.diff(grids, axis=0)).max((1, 2)) < STILL
    clipped = np.count_nonzero(media.waveform >= FULL) + np.count_nonzero(media.waveform <= -FULL)
    fingerprint = b""
    if loud.any() and frames:
        energies = _log_energies(media.waveform, sample_rate, reach=media.audio_seconds)
        chosen = dict.fromkeys((shown[0], shown[len(shown) // 2]))
        fingerprint = _fingerprint(grids[[place for place, second in enumerate(frames) if second in chosen]], energies)
    return Quality(
        seconds=round(media.seconds, 3),
        width=media.width,
        height=media.height,
        frame_rate=round(media.frame_rate, 3),
        loudness_dbfs=round(10 * np.log10(powers[loud if loud.any() else ...].mean() + 1e-12).item(), 1),
        silent_share=round(1 - loud.mean().item(), 3),
        still_share=round(still.mean().item(), 3) if len(still) else None,
        clipped_share=round(clipped / len(media.waveform), 5),
        absent=media.absent,
        sound_track=media.sound_track,
        fingerprint=b64encode(fingerprint).decode(),
    )


def _grids(frames: np.ndarray) -> np.ndarray:
    """Frames (N, S, S, 3) -> mean grey levels (N, CELLS, CELLS), but for up to CELLS - 1 pixels at the edges."""
    cell = frames.shape[1] // CELLS
    edge = (frames.shape[1] - CELLS * cell) // 2
    frames = frames[:, edge : edge + CELLS * cell, edge : edge + CELLS * cell]
    rows = frames.reshape(len(frames), CELLS, cell, -1).sum(2, dtype=np.uint16)  # in two steps: five times as fast
    return rows.reshape(len(frames), CELLS, CELLS, -1).sum(3, dtype=np.uint32) / (3 * cell**2)


def _fingerprint(grids: np.ndarray, energies: np.ndarray) -> bytes:
    pictures = grids.reshape(-1, CELLS // 2, 2, CELLS // 2, 2).mean((2, 4))
    if pictures.std((1, 2)).max() < LEAST_GREY:
        return b""
    fingerprint = np.full(PICTURE + TIMES * BANDS, ABSENT, np.int8)
    fingerprint[: pictures.size] = np.concatenate([_in_deviations(picture, GREY) for picture in pictures])
    fingerprint[PICTURE : PICTURE + energies.size] = _in_deviations(energies, LOG_ENERGY)
    return fingerprint.tobytes()


def _in_deviations(values: np.ndarray, least: float) -> np.ndarray:
    values = values.ravel() - values.mean()
    return (values * (STEP / max(values.std(), least))).round().clip(-127, 127).astype(np.int8)


def _log_energies(waveform: np.ndarray, sample_rate: int, reach: float) -> np.ndarray:
    """Sound (samples,) -> (times, BANDS): the times that end before `reach` seconds, at least one."""
    size = round(BLOCKS * sample_rate)
    blocks = waveform[: len(waveform) // size * size].reshape(-1, size)
    ends = len(blocks) * (np.arange(1, TIMES + 1) / TIMES) ** 2
    begins = np.append(0, ends[:-1].astype(int))[: max(np.count_nonzero(ends * size <= reach * sample_rate), 1)]
    spectrum = np.fft.rfft(blocks[: int(ends[len(begins) - 1])], norm="forward")
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    edges = np.geomspace(100, sample_rate / 2, BANDS + 1)[:-1] * BLOCKS  # in Hz, then in bins
    energies = np.add.reduceat(power, np.rint(edges).astype(int).clip(1), axis=1)
    means = np.add.reduceat(energies, begins) / np.diff(begins, append=len(energies)).clip(1)[:, None]
    return np.log(means + RANGE * means.max() + 1e-12)


def near_duplicates(fingerprints: list[str]) -> dict[int, list[int]]:
    """For each clip that has any, the others with nearly the same picture and nearly the same sound.

    Clips are hashed in several ways into buckets of a few, and only neighbours in a bucket are compared: time and
    memory grow with the number of clips, not with its square. All in whole numbers: the same clips, the same answer.
    """
    numbers = np.array([number for number, own in enumerate(fingerprints) if own], int)
    if len(numbers) < 2:
        return {}
    points = np.frombuffer(b"".join(map(b64decode, fingerprints)), np.int8)
    points = points.reshape(len(numbers), PICTURE + TIMES * BANDS)
    known = np.where(points == ABSENT, np.float32(0), points)
    rng = np.random.default_rng(0)
    bits = max((len(points) // 8).bit_length(), 1)  # buckets of about eight
    pairs: set[tuple[int, int]] = set()
    for _ in range(TABLES):
        planes = rng.choice(np.float32([-1, 1]), (points.shape[1], bits + 1))
        places = known @ planes  # float32 holds these whole numbers exactly
        keys = (places[:, 1:] > np.median(places[:, 1:], axis=0)) @ (1 << np.arange(bits))
        order = np.lexsort((places[:, 0], keys))
        for step in range(1, NEAR + 1):
            left, right = order[:-step], order[step:]
            together = keys[left] == keys[right]
            left, right = left[together], right[together]
            for part in (slice(PICTURE), slice(PICTURE, None)):  # most pairs end at the first
                alike = _differ(points[left, part], points[right, part]) <= 2 * ALIKE * STEP**2
                left, right = left[alike], right[alike]
            pairs.update(zip(numbers[left].tolist(), numbers[right].tolist(), strict=True))
    found = defaultdict(set)
    for one, other in pairs:
        found[one].add(other)
        found[other].add(one)
    return {number: sorted(found[number]) for number in sorted(found)}


def _differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean squares of the differences of rows (N, D) int8, over what is absent from neither."""
    both = (one != ABSENT) & (other != ABSENT)
    return np.square(one.astype(np.int32) - other).sum(1, where=both) / both.sum(1).clip(1)
