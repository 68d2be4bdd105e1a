"""Pages of results, as the tests read them."""

import json
import re
from pathlib import Path
from typing import Any


def data_of(page: Path) -> dict[str, Any]:
    """What a page shows."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>',
                         page.read_text(), re.S)  # fmt: skip
    return json.loads(text)
