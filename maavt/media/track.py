"""One track of a media file: its frames, and their times on the clip's clock."""

import math

import av

JUMP = 0.1  # seconds back in a track's clock from which on another recording is taken to begin


class Track:
    """A stream and its frames, with their times in seconds on the clip's clock.

    Files may be several recordings one after the other, whose clocks start anew. `joints`, which the tracks of a file
    share, says by how many seconds the clock of each is set on, so that it begins where the one before ended and sound
    stays with its picture.
    """

    def __init__(self, stream, begin: float, joints: list[float], others: bool = False):
        self.stream = stream  # not to be asked anything when the file is closed
        self.index = stream.index
        self.others = others  # whether the file has more tracks of the kind
        self.tick = float(stream.time_base or 0)
        self.origin = begin
        self.joints = joints
        self.recording = 0  # the number of the one that packets come from
        self.latest: int | None = None  # decoding time of the last packet, as stored
        self.reach = -math.inf  # seconds: how far the packets go, on the joint clock
        self.empty = True  # whether no packet has come
        self.begins: list[float] = []  # where further recordings begin, on the clip's clock
        self.error = ""

    def join(self, packet: av.Packet) -> None:
        """Set a packet's times to the joint clock; to be called with each packet of the track in its order."""
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None or not self.tick:
            return
        self.empty = False
        duration = packet.duration or 0
        if packet.dts is None:  # when it is shown says nothing: Matroska stores B-frames behind what comes after them
            pass
        elif self.latest is not None and (self.latest - stamp) * self.tick > JUMP:
            self.recording += 1
            begin = (stamp if packet.pts is None else packet.pts) * self.tick
            if len(self.joints) == self.recording:  # the other track is not there yet
                self.joints.append(self.reach - begin)
            self.begins.append(begin + self.joints[self.recording] - self.origin)
        elif self.latest is not None:
            duration = duration or max(stamp - self.latest, 0)
        self.latest = self.latest if packet.dts is None else stamp
        if shift := round(self.joints[self.recording] / self.tick):
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        stamp = packet.dts if packet.pts is None else packet.pts
        self.reach = max(self.reach, (stamp + duration) * self.tick)

    def own_time(self, item, default: float | None = None) -> float | None:
        stamp = item.dts if item.pts is None else item.pts
        return default if stamp is None or not self.tick else stamp * self.tick - self.origin

    def decode(self, packet: av.Packet | None) -> list:
        """The frames that come out for a packet (None: at the end); a broken packet costs only itself."""
        try:
            return self.stream.codec_context.decode(packet)
        except MemoryError:
            raise
        except Exception as error:
            self.error = str(error)
            return []
