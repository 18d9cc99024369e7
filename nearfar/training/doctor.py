"""The doctor reads the logged rows and says in words what is wrong, why it likely is, and what helps, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nearfar.training.optim import Optim


@dataclass(frozen=True)
class Facts:
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)


@dataclass(frozen=True)
class Finding:
    step: int
    name: str
    seen: str
    cause: str
    remedy: str


class Doctor:
    def __init__(self, facts: Facts, tell: Callable[[Finding], None] = lambda finding: None) -> None:
        self.facts, self.tell, self.findings = facts, tell, []

    def see(self, row):
        return []
