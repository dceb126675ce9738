"""The steps by which workers come to run the latest version."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.supervisor.replacement import (
    CANDIDATES_MAX,
    ReplaceWorker,
    Retire,
    StartCandidate,
    Step,
    next_steps,
)
from cluster.supervisor.shard import ShardPlace
from cluster.supervisor.spare import Spare
from cluster.supervisor.spares import Spares
from cluster.supervisor.versions import Verdict, Versions
from tests.supervisor.fake_child import fake_child, process_of

START = StartCandidate()


def worker(index: int, version: int, state: str = "ready") -> ShardPlace:
    shard = ShardPlace(index)
    shard.started(fake_child(version), 0.0)
    shard.state = state  # type: ignore[assignment]
    return shard


def waiting(version: int, *, is_ready: bool = True) -> Spare:
    spare = Spare()
    spare.started(fake_child(version), 0.0)
    if is_ready:
        spare.became_ready(0.0)
    return spare


def versions(latest: int, verdict: Verdict) -> Versions:
    made = Versions()
    made.latest, made.verdict = latest, verdict
    return made


def test_nothing_is_to_be_done_where_all_run_the_latest_version():
    assert next_steps(versions(1, Verdict.SERVES), [worker(0, 1)], [waiting(1)], []) == []


def test_after_a_change_one_process_tries_it_and_everybody_else_stays():
    shards, spares = [worker(0, 0), worker(1, 0)], [waiting(0)]
    assert next_steps(versions(1, Verdict.UNTRIED), shards, spares, []) == [START]
    tries = [waiting(1, is_ready=False)]
    assert next_steps(versions(1, Verdict.UNTRIED), shards, spares, tries) == []


def test_when_it_imports_one_worker_is_replaced_and_the_others_wait_for_its_successor():
    shards, spares, candidates = [worker(0, 0), worker(1, 0)], [waiting(0)], [waiting(1)]
    imports = versions(1, Verdict.IMPORTS)
    assert next_steps(imports, shards, spares, candidates) == [ReplaceWorker(shards[0])]
    shards[0].asked_to_end(100.0)
    assert next_steps(imports, shards, spares, [*candidates, waiting(1)]) == []
    shards[0] = worker(0, 1, "starting")
    assert next_steps(imports, shards, spares, [waiting(1)]) == []


def test_when_it_serves_old_spares_go_and_the_others_follow_as_successors_are_ready():
    shards = [worker(0, 1), *(worker(index, 0) for index in range(1, 5))]
    old, serves = waiting(0), versions(1, Verdict.SERVES)
    candidates = [waiting(1), waiting(1, is_ready=False)]
    steps = next_steps(serves, shards, [old], candidates)
    # Four are to be replaced: by two that are there, one in the place of the spare, one more.
    assert steps == [Retire(old), START, ReplaceWorker(shards[1])]


def test_when_it_fails_nothing_more_of_it_is_started_and_what_waits_of_it_goes():
    shards, old, candidate = [worker(0, 0)], waiting(0), waiting(1)
    fails = versions(1, Verdict.FAILS)
    assert next_steps(fails, shards, [old], [candidate]) == [Retire(candidate)]
    died = Spare()
    assert next_steps(fails, shards, [old], [died]) == [Retire(died)]


def test_what_was_importing_as_the_files_changed_is_of_no_use():
    spare, candidate = waiting(1, is_ready=False), waiting(1, is_ready=False)
    steps = next_steps(versions(2, Verdict.UNTRIED), [worker(0, 0)], [spare], [candidate])
    assert steps == [Retire(spare), Retire(candidate), START]


def test_what_is_retired_is_not_retired_again():
    spare = waiting(0)
    spare.retire()
    assert process_of(spare.child).was_killed
    assert next_steps(versions(1, Verdict.SERVES), [worker(0, 1)], [spare], []) == []


def test_a_candidate_that_nobody_needs_any_more_goes():
    candidate = waiting(1)
    steps = next_steps(versions(1, Verdict.SERVES), [worker(0, 1)], [waiting(1)], [candidate])
    assert steps == [Retire(candidate)]


def test_who_waits_is_kept_for_a_shard_that_has_nobody():
    vacant, candidate = ShardPlace(0), waiting(1)
    assert next_steps(versions(1, Verdict.SERVES), [vacant], [], [candidate]) == []
    # And for that alone: a worker that serves is not asked to end for a process that is meant
    # for another shard.
    shards = [vacant, worker(1, 0)]
    assert next_steps(versions(1, Verdict.SERVES), shards, [waiting(1)], []) == []


@pytest.mark.parametrize("verdict", [Verdict.IMPORTS, Verdict.SERVES])
def test_a_worker_that_has_not_started_is_the_first_to_be_replaced(verdict: Verdict):
    """It may never start, and serves nobody."""
    serves, starts = worker(0, 0), worker(1, 1, "starting")
    shards = [serves, starts]
    assert next_steps(versions(2, Verdict.UNTRIED), [starts], [], []) == [START]
    first = next_steps(versions(2, verdict), shards, [], [waiting(2)])[-1:]
    assert first == [ReplaceWorker(starts)]


def test_candidates_are_bounded():
    shards = [worker(index, 0) for index in range(64)]
    steps = next_steps(versions(1, Verdict.SERVES), shards, [], [waiting(1, is_ready=False)])
    assert steps == [START] * (CANDIDATES_MAX - 1)


class World:
    """A node whose processes do at once what they are to do, one thing at a time."""

    def __init__(self, shard_count: int, spare_count: int) -> None:
        self.versions = versions(0, Verdict.SERVES)
        self.shards = [worker(index, 0) for index in range(shard_count)]
        self.spares = Spares(spare_count)
        for place in self.spares:
            place.started(fake_child(0), 0.0)
            place.became_ready(0.0)
        self.quality = ["good"]

    def change(self, quality: str) -> None:
        self.versions.changed()
        self.quality.append(quality)

    def turn(self) -> bool:
        """Take the steps, then let everything happen that follows; False if nothing did."""
        steps = self._next_steps()
        for step in steps:
            match step:
                case StartCandidate():
                    candidate = self.spares.add_candidate()
                    candidate.started(fake_child(self.versions.latest), 0.0)
                case Retire(spare=spare):
                    self.spares.retire(spare)
                case ReplaceWorker(shard=shard):
                    shard.asked_to_end(1.0)
        self.spares.holds = self.versions.verdict is not Verdict.SERVES
        self.check()
        return self._exits() | self._fills() | self._starts() | bool(steps)

    def check(self) -> None:
        assert len(self.spares.candidates) <= CANDIDATES_MAX
        if self.versions.verdict is not Verdict.SERVES:
            unserved = [shard for shard in self.shards if shard.is_ending or not shard.child]
            assert len(unserved) <= 1 + self.deaths
        if self.versions.verdict in (Verdict.UNTRIED, Verdict.FAILS):
            assert not any(step for step in self._replacements())

    deaths = 0

    def _next_steps(self) -> list[Step]:
        spares = self.spares
        return next_steps(self.versions, self.shards, spares.lasting, spares.candidates)

    def _replacements(self) -> Sequence[Step]:
        return [step for step in self._next_steps() if isinstance(step, ReplaceWorker)]

    def _exits(self) -> bool:
        happened = False
        for spare in self.spares:
            if spare.is_retired:
                self.spares.retired(spare, 0.0)
                happened = True
        for shard in self.shards:
            if shard.is_ending:
                shard.replaced(0.0)
                happened = True
        return happened

    def _fills(self) -> bool:
        happened = False
        for shard in self.shards:
            if shard.child is None:
                spare = self.spares.choose()
                if spare is None:
                    shard.started(fake_child(self.versions.latest), 0.0)
                else:
                    shard.started(self.spares.take(spare, 0.0), 0.0)
                happened = True
        for place in self.spares.fillable:
            if place.restart_due is not None:
                place.started(fake_child(self.versions.latest), 0.0)
                happened = True
        return happened

    def _starts(self) -> bool:
        happened = False
        for spare in self.spares:
            if spare.child is not None and not spare.is_ready:
                happened = True
                if self.quality[spare.child.version] == "does not import":
                    self.versions.failed(spare.child.version)
                    spare.ended(0.0)
                else:
                    spare.became_ready(0.0)
                    self.versions.imported(spare.child.version)
        for shard in self.shards:
            if shard.child is not None and shard.state == "starting":
                version = shard.child.version
                if self.quality[version] == "good":
                    shard.state = "ready"
                    self.versions.served(version)
                    happened = True
                else:
                    happened |= self.versions.failed(version)
                    shard.withdraw()
        return happened

    def settle(self) -> None:
        for _ in range(200):
            if not self.turn():
                return
        pytest.fail("the steps never end")


QUALITIES = ("good", "does not import", "does not start")


@given(
    shards=st.integers(1, 6),
    spares=st.integers(0, 3),
    changes=st.lists(st.tuples(st.sampled_from(QUALITIES), st.integers(0, 12)), max_size=6),
)
def test_the_last_good_version_is_run_by_all_and_a_bad_one_by_nobody(
    shards: int, spares: int, changes: list[tuple[str, int]]
):
    world = World(shards, spares)
    for quality, turns in [*changes, ("good", 0)]:
        world.change(quality)
        for _ in range(turns):
            world.turn()
    world.settle()
    latest = world.versions.latest
    assert {shard.version for shard in world.shards} == {latest}
    assert {spare.version for spare in world.spares.lasting} <= {latest}
    assert world.spares.are_ready
    assert world.spares.candidates == []


@given(shards=st.integers(1, 6), spares=st.integers(0, 3), index=st.integers(0, 5))
def test_a_version_that_does_not_import_leaves_everybody_in_place(
    shards: int, spares: int, index: int
):
    world = World(shards, spares)
    before = [shard.child for shard in world.shards]
    world.change("does not import")
    world.settle()
    assert [shard.child for shard in world.shards] == before
    assert [spare.version for spare in world.spares.lasting] == [0] * spares
    if spares:
        # A worker that dies meanwhile is succeeded by a spare that is still there.
        world.shards[index % shards].withdraw()
        world.turn()
        assert world.shards[index % shards].version == 0


@given(shards=st.integers(1, 6), spares=st.integers(1, 3))
def test_a_version_that_does_not_start_costs_one_handover_to_a_spare_of_before(
    shards: int, spares: int
):
    world = World(shards, spares)
    before = [shard.child for shard in world.shards]
    world.change("does not start")
    world.settle()
    assert [shard.version for shard in world.shards] == [0] * shards
    kept = [shard.child in before for shard in world.shards]
    assert kept.count(False) == 1
