"""`python -m tactic.service.frontend`: runs one front end with the settings of `tactic.service.config`."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys

from redis.exceptions import RedisError

from tactic.service.config import ConfigError, Settings, load_settings
from tactic.service.frontend.app import FrontEnd
from tactic.service.text import UnsupportedTokenizerError


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    front_end = FrontEnd(settings)
    address = await front_end.start()
    print(json.dumps({"event": "listening", "address": address}), flush=True)
    failure, stop = asyncio.create_task(front_end.failure()), asyncio.create_task(stopping.wait())
    await asyncio.wait([failure, stop], return_when=asyncio.FIRST_COMPLETED)
    if failure.done():
        await failure
    logging.getLogger(__name__).info("stopping; running turns have %g s", settings.frontend.shutdown_grace_s)
    await front_end.stop()


def main() -> int:
    """Returns the exit status; what is wrong with the settings goes to stderr in one line."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        asyncio.run(serve(load_settings().settings))
    except (ConfigError, UnsupportedTokenizerError, RedisError, OSError) as error:
        print(f"the front end cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
