import time

from maavt.progress import Waited


def test_the_share_of_time_spent_waiting_is_told():
    def slow():
        for item in range(3):
            time.sleep(0.02)
            yield item

    waited, found = Waited(slow()), []
    assert str(waited) == "0%"
    for item in waited:
        found.append(item)
        time.sleep(0.02)
    assert found == [0, 1, 2]
    assert waited.seconds >= 0.06 and 0 < int(str(waited).removesuffix("%")) < 100
