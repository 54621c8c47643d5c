"""The clock of a GPU, on a device that is played here and on a real one where there is one."""

from contextlib import contextmanager

import pytest
import torch

from pqkv.speed.clock import DeviceClock, WallClock, stopwatch

CALL_MS, LAUNCH_MS = 3.0, 0.5  # of the played device: work, and what a launch from Python adds


class Event:
    def __init__(self, device, enable_timing):
        assert enable_timing
        self.device, self.at, self.waited = device, None, False

    def record(self):
        self.at = self.device.now

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, end):
        assert end.waited, "read before the device got there"
        return end.at - self.at


class Graph:
    def __init__(self, device):
        self.device, self.work = device, 0.0

    def replay(self):
        self.device.log.append("replay")
        self.device.now += self.work


class Device:
    """Time in milliseconds. While a graph is captured a call takes none: the graph takes it when replayed."""

    def __init__(self, captures=True):
        self.now, self.log, self.captures, self.capturing = 0.0, [], captures, None

    def call(self):
        if self.capturing is None:
            self.now += CALL_MS + LAUNCH_MS
        elif self.captures:
            self.capturing.work += CALL_MS
        else:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.log.append("captured" if self.capturing else "call")

    def synchronize(self):
        self.log.append("synchronize")

    def CUDAGraph(self):  # noqa: N802 - torch's name
        return Graph(self)

    current = None

    def Stream(self):  # noqa: N802 - torch's name
        return object()

    @contextmanager
    def stream(self, stream):
        self.current = stream
        try:
            yield
        finally:
            self.current = None

    @contextmanager
    def graph(self, graph, stream):
        assert stream is self.current is not None
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None

    def Event(self, enable_timing):  # noqa: N802 - torch's name
        return Event(self, enable_timing)


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_a_graph_of_calls_is_replayed_and_its_time_is_divided_by_them(count):
    device = Device()
    clock = DeviceClock([device.call] * count, device)
    # each buffer once outside of the capture; then whole rounds of at least four calls
    assert device.log[: count + 1] == ["call"] * count + ["synchronize"]
    captured = device.log.count("captured")
    assert captured >= 4 and captured % count == 0 and captured - count < 4
    before = len(device.log)
    assert clock.captured
    assert clock.seconds() == pytest.approx(1e-3 * CALL_MS)
    assert device.log[before:] == ["replay"]


def test_what_cannot_be_captured_is_timed_with_its_launches():
    device = Device(captures=False)
    clock = DeviceClock([device.call] * 2, device)
    assert not clock.captured
    assert device.log[-1] == "synchronize"  # the broken capture is over
    assert device.current is None  # and its stream is not the current one any more
    before = len(device.log)
    assert clock.seconds() == pytest.approx(1e-3 * (CALL_MS + LAUNCH_MS))
    assert device.log[before:] == ["call"] * 4


def test_what_waits_for_the_device_is_not_tried():
    device = Device()
    clock = DeviceClock([device.call] * 4, device, capture=False)
    assert (clock.captured, device.log) == (False, ["call"] * 4 + ["synchronize"])
    assert clock.seconds() == pytest.approx(1e-3 * (CALL_MS + LAUNCH_MS))


def test_an_error_that_is_no_matter_of_capturing_is_not_hidden():
    def broken():
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        DeviceClock([broken], Device())


def test_a_cpu_has_the_wall_clock():
    assert isinstance(stopwatch(torch.device("cpu"), [lambda: None]), WallClock)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_longer_for_more_work():
    small, large = (torch.ones(size, device="cuda") for size in (1 << 12, 1 << 28))
    clocks = [stopwatch(torch.device("cuda"), [lambda t=t: t.mul_(1.0)]) for t in (small, large)]
    assert all(clock.captured for clock in clocks)
    few, many = (min(clock.seconds() for _ in range(5)) for clock in clocks)
    assert 0 < few < many
    # 2 GiB read and written: no device does it faster than at 20 TB/s, none that is alive slower than at 20 GB/s
    assert 1e-4 < many < 1e-1
