"""The node-hours that a run used."""

from __future__ import annotations
