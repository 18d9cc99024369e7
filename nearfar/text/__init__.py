"""Texts: sources of them, tokenisers, and tokens. No torch."""

from nearfar.text.open import looks_like_text, open_texts
from nearfar.text.options import TextOptions
from nearfar.text.records import Texts, TextSplits

__all__ = ["TextOptions", "TextSplits", "Texts", "looks_like_text", "open_texts"]
