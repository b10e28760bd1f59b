"""Two processes of pytest-xdist: whole systems take turns in one, all other tests run in the other."""

from xdist.scheduler import LoadScopeScheduling

WHOLE_SYSTEMS = ("tests/contract/", "tests/integration/", "tests/fault/")


class Lanes(LoadScopeScheduling):
    """Gives all tests of whole systems to one process, and every other test to one that has time."""

    def _split_scope(self, nodeid: str) -> str:
        return "system" if nodeid.startswith(WHOLE_SYSTEMS) else nodeid
