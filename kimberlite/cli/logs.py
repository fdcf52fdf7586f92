"""What the daemon says of itself, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

from kimberlite.cli.terminal import escaped

#: What a record has of itself; the rest is what was said with it.
OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Text(logging.Formatter):
    """One line of text."""

    def format(self, record: logging.LogRecord) -> str:
        # It may cite what a client has said.
        line = f"{record.levelname.lower()}: {escaped(' '.join(record.getMessage().split()))}"
        line += "".join(f" {name}={value}" for name, value in more(record).items())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Json(logging.Formatter):
    """One line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        form = {
            "time": f"{when}.{round(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
            **more(record),
        }
        if record.exc_info:
            form["error"] = self.formatException(record.exc_info)
        return json.dumps(form, default=str)


def more(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in OWN}


def start_logging(level: str, form: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if form == "json" else Text())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
