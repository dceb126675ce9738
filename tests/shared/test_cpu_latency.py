"""What is asked of Linux about sleeping CPUs, and for how long."""

from pathlib import Path
from struct import unpack

import pytest

from cluster.shared.cpu_latency import CpuLatencyError, cpu_latency


def is_open_here(file: Path) -> bool:
    descriptors = Path("/proc/self/fd")
    targets: list[Path] = []
    for descriptor in descriptors.iterdir():
        try:
            targets.append(descriptor.readlink())
        except FileNotFoundError:  # of the listing itself
            continue
    return file in targets


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("at_most_us", [0, 20, 1_000_000])
def test_the_device_is_open_with_the_request_until_the_end(tmp_path: Path, at_most_us: int) -> None:
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    with cpu_latency(at_most_us, device):
        assert unpack("=i", device.read_bytes()) == (at_most_us,)
        assert is_open_here(device)
    assert not is_open_here(device)


def test_nothing_is_asked_for_by_default(tmp_path: Path) -> None:
    with cpu_latency(None, tmp_path / "is not there"):
        assert not [*tmp_path.iterdir()]


def test_a_system_without_the_device(tmp_path: Path) -> None:
    device = tmp_path / "cpu_dma_latency"
    with pytest.raises(CpuLatencyError) as raised, cpu_latency(0, device):
        pytest.fail("it was not asked")
    assert str(raised.value) == (
        f"there is no {device}, which Linux has, and a container that was given it"
    )


def test_a_device_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CpuLatencyError) as raised, cpu_latency(0, tmp_path):
        pytest.fail("it was not asked")
    assert str(raised.value).startswith(f"{tmp_path} cannot be written (")
    assert str(raised.value).endswith("); allow it to the user of the node")
