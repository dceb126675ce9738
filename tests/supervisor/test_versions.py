"""What is known of the versions of an application, from change to change."""

from cluster.supervisor.versions import Verdict, Versions


def test_a_version_is_tried_step_by_step():
    versions = Versions()
    assert (versions.latest, versions.verdict) == (0, Verdict.UNTRIED)
    assert versions.last_served is None
    versions.imported(0)
    assert versions.verdict is Verdict.IMPORTS
    assert versions.served(0)
    assert not versions.served(0)
    assert versions.verdict is Verdict.SERVES
    assert versions.last_served == 0


def test_a_change_makes_another_version_of_which_nothing_is_known():
    versions = Versions()
    versions.served(0)
    assert versions.changed() == 1
    assert (versions.latest, versions.verdict) == (1, Verdict.UNTRIED)
    assert versions.last_served == 0


def test_news_of_an_earlier_version_changes_nothing():
    versions = Versions()
    versions.changed()
    versions.imported(0)
    assert not versions.served(0)
    assert not versions.failed(0)
    assert versions.verdict is Verdict.UNTRIED


def test_a_version_fails_before_it_served_and_only_once():
    for steps in (0, 1):
        versions = Versions()
        for _ in range(steps):
            versions.imported(0)
        assert versions.failed(0)
        assert not versions.failed(0)
        assert versions.verdict is Verdict.FAILS


def test_a_version_that_served_is_not_at_fault():
    versions = Versions()
    versions.served(0)
    assert not versions.failed(0)
    assert versions.verdict is Verdict.SERVES


def test_a_version_that_failed_is_no_better_for_another_import_but_for_a_worker_that_starts():
    versions = Versions()
    versions.failed(0)
    versions.imported(0)
    assert versions.verdict is Verdict.FAILS
    assert versions.served(0)
    assert versions.verdict is Verdict.SERVES
