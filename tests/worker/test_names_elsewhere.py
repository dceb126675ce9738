"""Names of other frameworks say what to use here, and stand in nobody's way."""

import pytest

from cluster.worker import App, Session
from cluster.worker.names_elsewhere import OF_APP, OF_SESSION
from tests.worker.test_session import make_session


@pytest.mark.parametrize("name", OF_APP)
def test_an_app_says_what_to_use_instead(name: str):
    with pytest.raises(AttributeError, match=rf"^App has no '{name}': .*(app|session|cluster)"):
        getattr(App(), name)
    assert not hasattr(App, name)


@pytest.mark.parametrize("name", OF_SESSION)
def test_a_session_says_what_to_use_instead(name: str):
    with pytest.raises(AttributeError, match=rf"^Session has no '{name}': .*(app|session)"):
        getattr(make_session(), name)
    assert not hasattr(Session, name)


@pytest.mark.parametrize("said", [*OF_APP.values(), *OF_SESSION.values()])
def test_what_they_say_exists(said: str):
    for words in said.replace(",", " ").replace("(", " ").split():
        owner, _, name = words.lstrip("@").partition(".")
        if name and owner in ("app", "session"):
            assert hasattr(App if owner == "app" else Session, name), words


def test_an_application_may_have_such_names_of_its_own():
    class Mine(App):
        def run(self) -> str:
            return "ran"

    app = Mine()
    app.route = "mine"  # type: ignore[attr-defined]
    assert (app.run(), vars(app)["route"], app.route) == ("ran", "mine", "mine")  # type: ignore[attr-defined]
