"""The completion port by itself."""

from cluster.iocp.driver.windows_port import CompletionPort


def test_a_wake_ends_the_wait_that_comes_after_it() -> None:
    port = CompletionPort(1)
    port.wake()
    assert port.wait(60_000, 1) == []
    port.close()


def test_a_wake_that_comes_after_the_close_does_nothing() -> None:
    port = CompletionPort(1)
    port.close()
    port.wake()
    port.close()
