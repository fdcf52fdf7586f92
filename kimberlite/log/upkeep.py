"""What a writer does by itself for the segments that are closed, and what it found."""

from __future__ import annotations

from dataclasses import dataclass

from kimberlite.log.erasure import Eraser
from kimberlite.log.findings import Findings
from kimberlite.log.packing import Packer
from kimberlite.log.retention import Retention
from kimberlite.log.scrub import Scrubber


@dataclass(frozen=True, slots=True)
class Upkeep:
    packer: Packer
    scrubber: Scrubber
    retention: Retention
    eraser: Eraser
    findings: Findings
