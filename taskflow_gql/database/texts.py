"""Which text both databases can hold."""

from __future__ import annotations

import re

# PostgreSQL cannot hold U+0000 in text; a lone surrogate is no character and has no UTF-8 form.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def is_storable(text: str) -> bool:
    return not _UNSTORABLE.search(text)
