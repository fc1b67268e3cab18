"""A figure that shows itself in a notebook, without pyplot and its global state."""

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A matplotlib figure; notebooks display it, ``savefig`` writes it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        return buffer.getvalue()
