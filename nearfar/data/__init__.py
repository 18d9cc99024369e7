"""Sources of records, and the loader that makes batches of them. No torch in this room."""

from nearfar.data.folder import to_stderr
from nearfar.data.loader import Batch, Loader
from nearfar.data.open import open_image, open_source
from nearfar.data.source import Skipped, Source, Splits, hold_out

__all__ = ["Batch", "Loader", "Skipped", "Source", "Splits", "hold_out", "open_image", "open_source", "to_stderr"]
