"""Draws a qlog trace as one HTML page.

Floor 6.  A trace comes from a stranger: its text is escaped, and memory and output are bounded
for files of any length.
"""

from .page import write_page
from .reading import Reader
from .story import Story, tell

__all__ = ["Reader", "Story", "tell", "write_page"]
