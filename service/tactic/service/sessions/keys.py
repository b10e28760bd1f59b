"""Names of Redis keys. All keys of a session share a hash tag, hence a slot of a cluster."""

from dataclasses import dataclass

SESSION_INDEX = "tactic:sessions"


@dataclass(frozen=True)
class Keys:
    """Keys of one session."""

    session_id: str

    @property
    def prefix(self) -> str:
        """What all of them start with."""
        return f"tactic:{{{self.session_id}}}:"

    @property
    def meta(self) -> str:
        """Hash: everything about the session that is small."""
        return self.prefix + "meta"

    @property
    def lease(self) -> str:
        """String with a ttl: "fence kind id nonce" of the turn or append under way."""
        return self.prefix + "lease"

    @property
    def log(self) -> str:
        """List: the token log, in packed chunks."""
        return self.prefix + "log"

    @property
    def turns(self) -> str:
        """Hash: state of each turn there ever was, by turn id."""
        return self.prefix + "turns"

    @property
    def appends(self) -> str:
        """Hash: "bytes tokens" of each finished append, by append id."""
        return self.prefix + "appends"

    @property
    def tombstone(self) -> str:
        """String with a ttl: nonce of the deletion, for its replay."""
        return self.prefix + "deleted"

    def turn(self, turn_id: str) -> str:
        """Hash: one turn's request, prompt and progress."""
        return f"{self.prefix}turn:{turn_id}"

    def frames(self, turn_id: str) -> str:
        """Stream: one turn's frames; the entry of frame n has the id n-0."""
        return f"{self.prefix}frames:{turn_id}"

    def staging(self, nonce: str) -> str:
        """List with a ttl: the log of a fork while it is being copied."""
        return f"{self.prefix}staging:{nonce}"
