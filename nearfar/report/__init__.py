"""A run's folder to one self-contained page."""

from nearfar.report.page import write

__all__ = ["write"]
