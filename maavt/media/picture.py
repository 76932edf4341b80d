"""The picture track of a media file -> one upright, square frame for every second."""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from maavt.media.rejected import Rejected
from maavt.media.track import Track

MAX_PIXELS = 8192 * 4352  # a picture of 8K, UHD or DCI, with its last macroblocks full
REORDERED = 16  # frames that may be stored between a frame and the one shown next, at most, in any codec
MAX_WAITING = 16 * 2**20  # bytes of packets
MAX_STILL = 60.0  # seconds that the last frame may be shown
PROGRESSIVE = 0, 1  # orders of fields: not known, and none
MAX_ASPECT = 16  # long side over short side, as displayed

# Correct to the rounding, at 1 ms per 1080p frame; without the flags white comes out as 253.
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class Picture:
    """Chooses the frames on view at 0.5, 1.5, ... as decoded frames come, holding one of them at a time.

    Frames that no other one refers to are decoded only when they are on view at such a time: packets wait until so
    many later ones are known that none of these can come before them. That is exact, and a fifth faster.
    """

    def __init__(self, track: Track, seconds: int, wanted: range, size: int):
        self.track = track
        self.seconds = seconds
        self.wanted = wanted
        self.needed = max(wanted) + 1  # frames, from the first second on
        self.size = size
        self.frames: list[np.ndarray] = []
        self.held: av.VideoFrame | None = None
        self.matrix: list[int] | None = None
        self.decoded = 0
        self.begin = math.inf
        self.last = -math.inf  # time of the held frame
        self.step = 0.04  # seconds between the last two frames; at first a guess
        self.rate = float(track.stream.average_rate or 0)  # for people to read; nothing goes by it
        self.shape = float(track.stream.sample_aspect_ratio or 1)  # asked later, it is read from a closed file
        coded = track.stream.codec_context  # without reordering, every frame may be referred to; fields come in packets
        self.reordered = coded.has_b_frames and coded.field_order in PROGRESSIVE
        self.waiting: deque[av.Packet] = deque()
        self.waiting_bytes = 0
        self.times: list[float] = []  # of the waiting packets and of some before them, sorted
        self.gone: deque[float] = deque()  # times of some packets before the waiting ones

    @property
    def done(self) -> bool:
        return len(self.frames) >= self.needed

    @property
    def end(self) -> float:
        """When the held frame ends, if it is the last: its own length counts, as far as a picture may stand still."""
        own = self.held.duration * self.track.tick if self.held and self.held.duration else 0.0
        return self.last + (own if self.step < own <= MAX_STILL else self.step)

    def take(self, packet: av.Packet | None) -> None:
        """Note a packet (None: there are no more) and decode those whose turn has come."""
        if packet and packet.pts is None:  # when it is shown, only decoding tells
            self.reordered = False
        if not self.reordered:
            self._empty(0)
            self._decode(packet)
            return
        if packet:
            self.waiting.append(packet)
            self.waiting_bytes += packet.size
            insort(self.times, self.track.own_time(packet, default=-math.inf))
        self._empty(REORDERED if packet else 0)
        if packet is None:
            self._decode(None)

    def _empty(self, most: int) -> None:
        """Decode waiting packets until there are `most`."""
        while len(self.waiting) > most or self.waiting and self.waiting_bytes > MAX_WAITING:
            first = self.waiting.popleft()
            self.waiting_bytes -= first.size
            time = self.track.own_time(first, default=-math.inf)
            quick = self.reordered and not self._on_view(time)
            self.track.stream.codec_context.skip_frame = "NONREF" if quick else "DEFAULT"
            self._decode(first)
            self.gone.append(time)
            if len(self.gone) > 2 * REORDERED:  # a decoder gives out some of its frames that late
                del self.times[bisect_left(self.times, self.gone.popleft())]
        if not self.reordered:
            self.track.stream.codec_context.skip_frame = "DEFAULT"

    def _on_view(self, time: float) -> bool:
        """Whether a frame is the last one before some s + 0.5, or may be."""
        place = bisect_right(self.times, time)
        if time == -math.inf or self.decoded == 0 or place == len(self.times):
            return True
        return max(math.ceil(time - 0.5 - 1e-6), 0) + 0.5 < self.times[place] - 1e-6

    def _decode(self, packet: av.Packet | None) -> None:
        for frame in self.track.decode(packet):
            time = self.track.own_time(frame)
            if self.held is None:
                self.last = self.begin = 0.0 if time is None else time
                self.step = frame.duration * self.track.tick if frame.duration > 0 else self.step
            else:
                if time is None or time <= self.last:  # missing, or the clock ran backwards: go on from here
                    time = self.last + self.step
                self._show(before=time)
                self.step, self.last = time - self._before(time), time
            if frame.interlaced_frame:  # one frame may come in two packets
                self.reordered = False
            self.held = frame
            self.decoded += 1

    def _before(self, time: float) -> float:
        """When the frame before that of `time` began, decoded or not."""
        place = bisect_left(self.times, time - 1e-6)
        return max(self.last, self.times[place - 1]) if place else self.last

    def _show(self, before: float) -> None:
        count = min(self.seconds, math.ceil(before - 0.5 - 1e-6))  # 1e-6: times are rounded, being floats
        if count > len(self.frames):
            rgb = _to_rgb(_whole(self.held), self.shape, self.size)
            if self.matrix is None:
                self.matrix = _display_matrix(rgb)
            image = _upright(_centre(rgb.to_ndarray(), self.size), self.matrix)
            self.frames += [image] * (count - len(self.frames))

    def finish(self, *, repeat: bool) -> np.ndarray:
        """(those wanted, size, size, 3) uint8, after the last packet."""
        if not self.done:
            self._show(before=max(self.end, 1.0) if repeat else self.seconds)
        return np.stack([self.frames[s % len(self.frames)] for s in self.wanted])


def check_size(width: float, height: float) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise Rejected("unusable dimensions", f"{width:g} x {height:g}")


def _whole(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame, of an interlaced one the picture of its first field: else what moves is torn into a comb."""
    if not frame.interlaced_frame:
        return frame
    graph = Graph()
    graph.threads = 1
    try:
        graph.link_nodes(graph.add_buffer(template=None, width=frame.width, height=frame.height, format=frame.format,
                                          time_base=Fraction(1, 25)), graph.add("estdif", "mode=frame"),
                         graph.add("buffersink")).configure()
        graph.push(frame)
        graph.push(None)
        return graph.pull()
    except (ValueError, OSError):  # of a size or a format that is not for it
        return frame


def _to_rgb(frame: av.VideoFrame, shape: float, size: int) -> av.VideoFrame:
    """The picture with square pixels, its short side scaled, as RGB in planes: for these swscale is twice as fast.
    `shape` is a pixel's width over its height."""
    width = frame.width * (shape if 0.1 <= shape <= 10 else 1)
    check_size(width, frame.height)
    scale = size / min(width, frame.height)
    width, height = max(round(width * scale), size), max(round(frame.height * scale), size)
    target = {"width": width, "height": height, "format": "gbrp", "interpolation": SCALING,
              "dst_color_range": ColorRange.JPEG, "threads": 1}
    try:
        return frame.reformat(**target)
    except OSError:  # a colour matrix that swscale does not know, or that is none
        return frame.reformat(**target, src_colorspace=Colorspace.ITU709, dst_colorspace=Colorspace.ITU709)


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top:top + size, left:left + size]


def _display_matrix(frame: av.VideoFrame) -> list[int]:
    """a, b, c, d of x' = a x + c y, y' = b x + d y, from stored to displayed.

    To be asked of one small frame only: a frame that was asked for its side data lives until the garbage collector
    comes, and a hundred pictures of 1080p pile up.
    """
    try:
        a, b, _, c, d = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)[:5].tolist()
    except KeyError:
        return [1, 0, 0, 1]
    except ValueError:  # there is side data of a kind that PyAV does not know; the angle it reads without looking
        quarter = round(frame.rotation / 90) % 4
        return [[1, 0, 0, 1], [0, -1, 1, 0], [-1, 0, 0, -1], [0, 1, -1, 0]][quarter]
    return [a, b, c, d]


def _upright(image: np.ndarray, matrix: list[int]) -> np.ndarray:
    """The square image as displayed; rotations are rounded to quarter turns."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[::-1 if d < 0 else 1, ::-1 if a < 0 else 1])  # rows that an encoder can read
