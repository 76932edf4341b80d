"""One track of a media file: its frames, and their times on the clip's clock."""

import av


class Track:
    """A stream and its frames, with their times in seconds on the clip's clock."""

    def __init__(self, stream, begin: float):
        self.stream = stream
        self.tick = float(stream.time_base or 0)
        self.origin = begin
        self.error = ""

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
